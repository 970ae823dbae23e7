"""The trainings of a study: each done once, in a run directory of its own, by any number of processes that join.

OUT/trials/NAME/         a run directory; its name follows from the recipe: studies of the same recipe share it
    trials/NAME.failed   why a training cannot succeed, such as a loss that became infinite: not tried again
    claims/NAME.lock     held by the process that trains it; a lock dies with its process
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from auxnet.data import load_data
from auxnet.errors import DivergedError, one_line
from auxnet.files import claimed, is_held, write_text
from auxnet.processes import work_together
from auxnet.progress import Progress
from auxnet.recipe import Recipe, has_recipe, read_run_recipe
from auxnet.run_data import data_section
from auxnet.rundir import is_finished, read_metrics, whole_epochs, with_absolute_paths
from auxnet.signals import raised_after
from auxnet.studies.spec import Training
from auxnet.train import fit_on
from auxnet.words import val_errors

Watch = Callable[[Sequence[Training]], None]
"""is called now and then with the trainings that are left"""


def training_folder(out: Path, training: Training) -> Path:
    """The run directory of a training."""
    return out / "trials" / training.name


def is_done(out: Path, training: Training) -> bool:
    """Whether a training came to its end."""
    return is_finished(training_folder(out, training))


def why_failed(out: Path, training: Training) -> str | None:
    """Why a training failed; None if it did not."""
    path = _failed(out, training)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _failed(out: Path, training: Training) -> Path:
    return out / "trials" / f"{training.name}.failed"


def left_of(out: Path, trainings: Sequence[Training]) -> list[Training]:
    """The trainings that are not done, and have not failed."""
    return [training for training in trainings if not is_done(out, training) and why_failed(out, training) is None]


def check_same_images(out: Path, trainings: Sequence[Training]) -> None:
    """Raise ValueError for a training in `out` that was done on other images than those of the folder asked for now.

    A training's name holds its data as the study writes them, and from elsewhere the same path may be another folder.
    If one of the two folders is gone, as in a project that was moved, they are taken to be the same; if both are there,
    as in a project that was copied, their images are compared, once. (An unfinished training cannot continue on another
    folder.)
    """
    alike: dict[tuple[str, str], bool] = {}
    for training in trainings:
        folder, now = training_folder(out, training), with_absolute_paths(training.recipe).data
        if Path(now).exists() and has_recipe(folder):
            then = with_absolute_paths(read_run_recipe(folder)).data
            if then != now and Path(then).exists():
                if is_done(out, training) and (then, now) not in alike:
                    alike[then, now] = _was_trained_on(training.recipe, folder)
                if is_done(out, training) and alike[then, now]:
                    continue
                raise ValueError(
                    f"{folder} was trained on {then}, and {training.recipe.data} is {now} here: give another --out, or "
                    "write the data's whole path in the study"
                )


def _was_trained_on(recipe: Recipe, run: Path) -> bool:
    """Whether a recipe has the images of a finished run: as many for training, the same for validation and test."""
    then, data = data_section(run), load_data(recipe)
    return {"train": len(data.train), **data.judged_on}.items() <= then.items()


def under_way(out: Path, trainings: Sequence[Training]) -> Iterator[str]:
    """How far each of the trainings has come that some process is doing at this moment, in words."""
    for training in left_of(out, trainings):
        if is_held(_claim(out, training)):
            done, errors = _stands(training_folder(out, training))
            which = f"{training.variant} on {training.recipe.data}, seed {training.seed}"
            stands = f"{which}: {done}/{training.recipe.epochs} epochs"
            yield f"{stands}, {val_errors(errors)}" if errors else stands


def _stands(folder: Path) -> tuple[int, list[float]]:
    """The epochs that a training has done, and the validation errors of its outputs after the last of them."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        return 0, []
    written = metrics.stat()
    return _read_stands(folder, written.st_size, written.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_stands(folder: Path, size: int, time: int) -> tuple[int, list[float]]:
    """`_stands`, for a metrics file of this size and time of change, so that each state of the file is read once."""
    rows = whole_epochs(read_metrics(folder))
    done = max((row["epoch"] for row in rows), default=0)
    return done, [row["error"] for row in rows if row["epoch"] == done and row["split"] == "val"]


def _claim(out: Path, training: Training) -> Path:
    return out / "claims" / f"{training.name}.lock"


def train(out: Path, trainings: Sequence[Training], processes: int, where: dict[str, Any], watch: Watch) -> None:
    """Do the `trainings` that are left, in at most `processes` processes, and wait for those that others are doing.

    Raises RuntimeError if processes die and leave trainings undone; OSError for a disk that is full; signals.Stopped
    after Ctrl-C or SIGTERM, once the steps at hand are done and saved.
    """
    for folder in ("trials", "claims"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    watch(left := left_of(out, trainings))
    processes = min(processes, len(left))

    def see() -> None:
        watch(left_of(out, trainings))

    if processes <= 1:
        _work(out, trainings, where, see)
    else:
        work = partial(_work, out, trainings)
        work_together(processes, work, where, see, unfinished=lambda: bool(left_of(out, trainings)), what="study")


def _work(out: Path, trainings: Sequence[Training], where: dict[str, Any], watch: Callable[[], None]) -> None:
    """Do one training after the other until all are done or failed, waiting for those that other processes do."""
    while left := left_of(out, trainings):
        held = 0
        for training in left:
            if (lock := claimed(_claim(out, training))) is None:
                held += 1
                continue
            try:
                if left_of(out, [training]):
                    with raised_after():
                        _train(out, replace(training, recipe=replace(training.recipe, **where)), watch)
                        watch()
            finally:
                lock.release()
        if held == len(left):
            watch()
            time.sleep(1.0)


def _train(out: Path, training: Training, watch: Callable[[], None]) -> None:
    """Do a training. If it diverges, that is noted as a finding and not tried again; any other error is raised."""

    told = -math.inf

    def follow(progress: Progress) -> None:  # after each step, but `watch` looks through all trainings
        nonlocal told
        if progress.done or time.monotonic() - told >= 1:
            told = time.monotonic()
            watch()

    try:
        fit_on(training.recipe, training_folder(out, training), follow)
    except DivergedError as failure:
        write_text(_failed(out, training), one_line(failure) + "\n")
