"""Sweeps: trials drawn from a space of recipes, each trained into a run directory, by any number of workers.

A trial is judged by its validation errors alone. `fit` reads the test set at its end, for the run's own summary; a
sweep never looks at that. Whatever stops a worker, the next worker continues its trial from the last checkpoint.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from auxnet import sections
from auxnet.build import build, depths_of
from auxnet.data import DataSet, load_data
from auxnet.errors import each_warning_once
from auxnet.feasible import check_enough_images, check_fields, check_last_batch
from auxnet.files import to_write
from auxnet.machine import device_of, random_kept, threads_set
from auxnet.precision import usual_defaults
from auxnet.processes import check_count, work_together
from auxnet.reading.sources import existing_path
from auxnet.recipe import WHERE, Recipe, has_recipe, read_recipe, read_run_recipe, words_of
from auxnet.rundir import check_outside_data, with_absolute_paths
from auxnet.sweeps.journal import database_errors, optuna
from auxnet.sweeps.settings import Sampler, Settings, pretrained_of
from auxnet.sweeps.space import Range, space_from, values_of
from auxnet.sweeps.trials import (
    Trial,
    check_same_data,
    check_same_weights,
    join_sweep,
    open_sweep,
    total_of,
    trials_of,
    try_again,
)
from auxnet.sweeps.worker import objective_of, work

Watch = Callable[[Sequence[Trial], int], None]
"""is called now and then with all trials as they are, and how many there shall be"""
COMBINATIONS = 50  # of the other fields' values, tried before a value is said to be impossible
FINDS_DATA = {"data", "data_dir", "image_size"}
"""fields by which data may be refused: if one varies, each trial finds data of its own"""
OF_DATA = (*(field.name for field in fields(sections.DataFields)), "seed")
"""fields that a data set and its splits depend on"""
OF_NETWORK = {field.name for field in fields(sections.NetworkFields)}


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is at this moment."""

    folder: Path
    settings: Settings
    trials: tuple[Trial, ...]
    total: int
    """trials that there shall be"""
    study: optuna.Study

    @property
    def best(self) -> Trial | None:
        """The complete trial of least validation error, on a tie the earlier one."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return min(complete, key=lambda trial: (trial.objective, trial.number), default=None)

    @property
    def best_recipe(self) -> Recipe | None:
        """The recipe that trains the best trial again: on the data that it was trained on, from any folder."""
        if self.best is None:
            return None
        recipe = replace(self.settings.recipe, **self.best.values)
        if has_recipe(self.best.folder):  # it may be removed to save room
            run = read_run_recipe(self.best.folder)
            recorded = read_recipe(self.best.folder / "recipe.yaml")
            if run.data != recorded.data and existing_path(run.data, run.data_dir) is None:
                run = recorded  # the data are gone: say where they were, and not just their name
            recipe = replace(recipe, data=run.data, data_dir=run.data_dir, pretrained=run.pretrained)
        return with_absolute_paths(recipe)


@usual_defaults()
@each_warning_once()
@database_errors()
def sweep(
    space: Mapping[str, Any],
    out: Path | str,
    recipe: Recipe | None = None,
    *,
    trials: int | None = None,
    objective: str | int = "mean",
    sampler: Sampler = "tpe",
    prune: bool = True,
    storage: str | None = None,
    processes: int = 1,
    retry_failed: bool = False,
    watch: Watch = lambda trials, total: None,
) -> Sweep:
    """Train recipes drawn from `space` into `out`/trials/0000, 0001, ... and find the best on validation.

    `space` maps recipe fields to choices ([8, 14, 20]) or ranges ("0.01..0.5:log"); all else is as in `recipe`.
    `trials` counts the trials of all workers that ever work on `out`, failed ones included (default: 20, or the whole
    grid; never more than there are combinations). Any number of processes, on any machines that share `out`, may call
    this with the same arguments at any time; `processes` of them are started here, and share the CPU threads. The study
    is in `out` too, or in the database `storage`. With `retry_failed` the trials that have failed are tried again,
    under new numbers.

    Raises ValueError for a space, recipe or setting that cannot be, or that differs from what `out` was begun with;
    FileExistsError if `out` holds something else; RuntimeError or OSError for what may be the machine's fault and no
    trial's (`worker.work`), which leaves trials undone: the same call continues them;
    signals.Stopped (a KeyboardInterrupt) after Ctrl-C or SIGTERM, once the steps at hand are done and saved.
    """
    if not isinstance(space, Mapping):
        raise TypeError(f"space must map fields of the recipe to what they may be, got {space!r}")
    folder, recipe = to_write(out), recipe or Recipe()
    settings = Settings(recipe, space_from(space), str(objective), sampler, prune)
    check_count(processes, "a sweep")
    check_outside_data(folder, recipe.data, recipe.data_dir)
    if "device" not in settings.space:
        device_of(recipe.device)
    dataset = None if FINDS_DATA & settings.space.keys() else load_data(recipe)
    if settings.objective.isdecimal() and not OF_NETWORK & settings.space.keys():
        objective_of([0.0] * len(depths_of(recipe)), settings.objective, recipe)  # or the field that varies is blamed
    joined = join_sweep(folder, settings, trials, storage, check=lambda: check_space(settings))
    if dataset is not None:
        check_same_data(joined, dataset.drawn, dataset.val_sha256(), len(dataset.train))
    check_same_weights(joined, pretrained_of(joined.settings))
    if retry_failed:
        try_again(joined)
    where = {field: getattr(recipe, field) for field in ("data", *WHERE) if field not in settings.space}

    def see() -> None:
        watch(trials_of(joined), total_of(joined))

    def unfinished() -> bool:
        trials = trials_of(joined)
        return len(trials) < total_of(joined) or any(trial.state == "interrupted" for trial in trials)

    processes = min(processes, total_of(joined) - sum(trial.ended for trial in trials_of(joined)))
    if processes <= 1:
        work(joined, where, see)
    else:
        shared = partial(_work, joined.folder, storage)
        work_together(processes, shared, where, see, unfinished=unfinished, what="sweep")
    return read_sweep(out, storage)


def read_sweep(out: Path | str, storage: str | None = None) -> Sweep:
    """A sweep as it is at this moment, whoever works on it. Raises FileNotFoundError if there is none in `out`."""
    opened = open_sweep(Path(out), storage)
    return Sweep(opened.folder, opened.settings, trials_of(opened), total_of(opened), opened.study)


# ---- what no trial could do ------------------------------------------------------------------------------------


def check_space(settings: Settings) -> None:
    """Raise ValueError for a value of a field with which no trial can begin here, whatever the other fields draw."""
    data = lru_cache(1)(load_data)
    with threads_set(settings.recipe.threads), random_kept(torch.device("cpu")):
        for field, domain in settings.space.items():
            others = {name: values_of(other) for name, other in settings.space.items() if name != field}
            for value in values_of(domain):
                drawn = ({field: value, **rest} for rest in _combinations(others))
                if complaint := _complaint_of_all(settings, drawn, data):
                    steps = isinstance(domain, Range) and domain.step == 1
                    hint = f"; steps are given as {field}=low..high:step" if steps else ""
                    raise ValueError(f"{field}={words_of(value)} cannot be: {complaint}{hint}")


def _combinations(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Combinations of one value of each field: all, or if there are many, that of the first values and random ones."""
    if math.prod(map(len, values.values())) <= COMBINATIONS:
        yield from (dict(zip(values, each, strict=True)) for each in itertools.product(*values.values()))
        return
    yield {field: each[0] for field, each in values.items()}
    draw = random.Random(0)
    for _ in range(COMBINATIONS):
        yield {field: draw.choice(each) for field, each in values.items()}


def _complaint_of_all(
    settings: Settings, drawn: Iterable[dict[str, Any]], data: Callable[[Recipe], DataSet]
) -> str | None:
    """Why a trial cannot begin with the first of these combinations, if it can begin with none of them; else None."""
    first = None
    for values in drawn:
        complaint = _complaint(settings, values, data)
        if complaint is None:
            return None
        first = first or complaint
    return first


def _complaint(settings: Settings, values: dict[str, Any], data: Callable[[Recipe], DataSet]) -> str | None:
    """Why a trial with these values cannot begin; None if it can."""
    try:
        recipe = replace(settings.recipe, **values)
        check_fields(recipe)
        dataset = data(_data_of(recipe))
        check_enough_images(recipe, dataset)
        net, _ = build(replace(recipe, compile=False), dataset, torch.device("cpu"))
        check_last_batch(recipe, dataset, net)
        objective_of([0.0] * net.outputs, settings.objective, recipe)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def _data_of(recipe: Recipe) -> Recipe:
    """A recipe that has only the fields on which data depend; the others are defaults."""
    return replace(Recipe(), **{field: getattr(recipe, field) for field in OF_DATA})


@database_errors()
def _work(folder: Path, storage: str | None, where: dict[str, Any], watch: Callable[[], None]) -> None:
    """The work of each of several processes."""
    work(open_sweep(folder, storage), where, watch, at_step=watch)
