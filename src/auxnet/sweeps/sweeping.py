"""Sweeps: trials drawn from a space of recipes, each trained into a run directory, by any number of workers.

A trial is judged by its validation errors alone. `fit` reads the test set at its end, for the run's own summary; a
sweep never looks at that. Whatever stops a worker, its trial goes on from its last checkpoint with the next one.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch

from auxnet.build import build, load_data
from auxnet.data import DataSet
from auxnet.machine import cores, device_of, keep_freed_memory, threads_of
from auxnet.recipe import Recipe
from auxnet.signals import Stopped, held
from auxnet.sweeps.journal import optuna
from auxnet.sweeps.settings import WHERE, Settings
from auxnet.sweeps.space import Range, shown, space_from, values_of
from auxnet.sweeps.trials import Study, Trial, join_study, open_study, total_of, trials_of
from auxnet.sweeps.worker import objective_of, work

Watch = Callable[[Sequence[Trial], int], None]
"""is told, now and then, all trials as they stand and how many there shall be"""
COMBINATIONS = 50  # of the other fields' values, tried before a value is said to be impossible
DATA = ("data", "data_dir", "image_size", "val_fraction", "augment", "seed", "stream", "workers", "max_corrupt")


@dataclass(frozen=True)
class Sweep:
    """A sweep as it stands."""

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
        """What trains the best trial again."""
        return None if self.best is None else self.settings.recipe_of(self.best.values)


def sweep(
    space: Mapping[str, Any],
    out: Path | str,
    recipe: Recipe | None = None,
    *,
    trials: int | None = None,
    objective: str | int = "mean",
    sampler: str = "tpe",
    prune: bool = True,
    storage: str | None = None,
    processes: int = 1,
    watch: Watch = lambda trials, total: None,
) -> Sweep:
    """Train recipes drawn from `space` into `out`/trials/0000, 0001, ... and say which is the best on validation.

    `space` maps recipe fields to choices ([8, 14, 20]) or ranges ("0.01..0.5:log"); all else is as in `recipe`.
    `trials` counts those of all workers that ever work on `out` (default: 20, or the whole grid), the failed ones
    among them. Any number of processes, on any machines that share `out`, may call this with the same arguments at
    any time; `processes` of them are started here, and share the CPU threads. The study lies in `out` too, or in the
    database `storage`.

    Raises ValueError for a space, recipe or setting that cannot be, or that differs from what `out` was begun with;
    FileExistsError if `out` holds something else; RuntimeError if workers die and leave trials undone;
    signals.Stopped (a KeyboardInterrupt) after Ctrl-C or SIGTERM, once the steps at hand are done and saved.
    """
    recipe = recipe or Recipe()
    settings = Settings(recipe, space_from(space), str(objective), sampler, prune)
    if processes < 1:
        raise ValueError(f"processes must be 1 or more, got {processes}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("torchrun's processes train one net together, a sweep's one each: start them with --processes")
    device_of(recipe)  # what cannot be had here fails the worker, and not one trial after the other
    if not {*DATA[:3]} & settings.space.keys():
        load_data(recipe)
    study = join_study(Path(out), settings, trials, storage, check=lambda: check_space(settings))
    where = {field: getattr(recipe, field) for field in WHERE if field not in settings.space}
    if processes == 1:
        work(study, where, lambda: watch(trials_of(study), total_of(study)))
    else:
        _work_together(processes, study, storage, where, watch)
    return read_sweep(out, storage)


def read_sweep(out: Path | str, storage: str | None = None) -> Sweep:
    """A sweep as it stands, whoever works on it. Raises FileNotFoundError if there is none in `out`."""
    study = open_study(Path(out), storage)
    return Sweep(study.folder, study.settings, trials_of(study), total_of(study), study.optuna)


# ---- what no trial could do ------------------------------------------------------------------------------------


def check_space(settings: Settings) -> None:
    """Refuse a value with which no trial can begin, whatever the others. Raises ValueError, naming the field."""
    data = lru_cache(1)(load_data)
    with threads_of(settings.recipe), torch.random.fork_rng(devices=[]):
        for field, domain in settings.space.items():
            others = {name: values_of(other) for name, other in settings.space.items() if name != field}
            combinations = list(itertools.islice(itertools.product(*others.values()), COMBINATIONS))
            for value in values_of(domain):
                drawn = ({field: value, **dict(zip(others, rest, strict=True))} for rest in combinations)
                complaints = (_complaint(settings, values, data) for values in drawn)
                if (first := next(complaints)) and all(complaints):
                    steps = isinstance(domain, Range) and domain.step == 1
                    hint = f"; steps are given as {field}=low..high:step" if steps else ""
                    raise ValueError(f"{field}={shown(value)} cannot be: {first}{hint}")


def _complaint(settings: Settings, values: dict[str, Any], data: Callable[[Recipe], DataSet]) -> str | None:
    """Why a trial with these values cannot begin; None if it can."""
    try:
        recipe = settings.recipe_of(values)
        net, _ = build(recipe, data(_data_of(recipe)), torch.device("cpu"))
        objective_of([0.0] * net.outputs, settings.objective)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def _data_of(recipe: Recipe) -> Recipe:
    """The recipe less all that its data do not depend on."""
    return replace(Recipe(), **{field: getattr(recipe, field) for field in DATA})


# ---- workers of this machine -----------------------------------------------------------------------------------


def _work_together(count: int, study: Study, storage: str | None, where: dict[str, Any], watch: Watch) -> None:
    """Start processes that work on a sweep, and wait for them. Raises RuntimeError if they leave trials undone."""
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    complaints: list[Connection] = []
    with held() as noted:
        try:
            for place in _places(count, where):
                complaint, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_process, args=(study.folder, storage, place, theirs))
                process.start()
                theirs.close()
                processes.append(process)
                complaints.append(complaint)
            while running := [process.sentinel for process in processes if process.is_alive()]:
                wait(running, timeout=1.0)
                watch(trials_of(study), total_of(study))
                if noted():
                    raise Stopped(noted(), "stopped")
        finally:
            for process in processes:
                process.terminate()  # it saves what it trains, and ends
            for process in processes:
                process.join()
    left = [trial.number for trial in trials_of(study) if trial.state == "interrupted"]
    if left or len(trials_of(study)) < total_of(study):
        died = [f"a worker was killed by signal {-p.exitcode}" for p in processes if p.exitcode and p.exitcode < 0]
        said = []
        for complaint in complaints:
            with suppress(EOFError):
                said.append(complaint.recv())
        raise RuntimeError("; ".join(dict.fromkeys([*said, *died, "the same command again goes on with the sweep"])))


def _places(count: int, where: dict[str, Any]) -> list[dict[str, Any]]:
    """`where` for each of `count` workers: threads, decoding processes and GPUs divided among them."""
    places = [dict(where) for _ in range(count)]
    gpus = torch.cuda.device_count()
    for n, place in enumerate(places):
        if "threads" in where:
            place["threads"] = max(1, (where["threads"] or torch.get_num_threads()) // count)
        if "workers" in where and where["workers"] != 0:
            place["workers"] = max(1, (where["workers"] or cores()) // count)
        if where.get("device") in ("auto", "cuda") and gpus > 1:
            place["device"] = f"cuda:{n % gpus}"
    return places


def _process(folder: Path, storage: str | None, where: dict[str, Any], complain: Connection) -> None:
    """A worker in a process of its own, which ends when the one that started it does."""
    if os.name == "posix":
        os.setpgrp()  # Ctrl-C in a terminal reaches the parent alone, which passes it on once
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None and not parent.is_alive():
            raise Stopped(SIGTERM, "the process that started this worker has ended")

    keep_freed_memory()
    try:
        work(open_study(folder, storage), where, end_with_parent)
    except KeyboardInterrupt as stop:
        sys.exit(getattr(stop, "status", 130))
    except Exception as error:
        complain.send(" ".join(str(error).split()) or type(error).__name__)
        sys.exit(1)
