"""A worker of a sweep: it claims a trial, begins or continues it, tells Optuna how it ended, and claims the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import OutOfMemoryError

from auxnet.build import depths_of
from auxnet.data import load_data
from auxnet.errors import DivergedError, TooLittleMemoryError, first_sentence, one_line
from auxnet.progress import Progress
from auxnet.recipe import Recipe
from auxnet.resuming import mean_error
from auxnet.rundir import checkpoints, read_metrics
from auxnet.schedules import trained_outputs_only
from auxnet.signals import held, raised_after
from auxnet.sweeps.journal import optuna
from auxnet.sweeps.settings import COMPARABLE
from auxnet.sweeps.trials import (
    OpenSweep,
    OtherImagesError,
    check_same_data,
    check_same_weights,
    claim,
    numbered_folder,
    try_again,
    twin_of,
    values_drawn,
)
from auxnet.train import fit_on

State = optuna.trial.TrialState
NO_MEMORY = (OutOfMemoryError, MemoryError, TooLittleMemoryError)
Watch = Callable[[], None]
PATIENCE = 3  # times that the process of a trial may die after the same checkpoint before the trial is given up


def work(sweep: OpenSweep, where: dict[str, Any], watch: Watch, at_step: Watch = lambda: None) -> None:
    """Train trial after trial, until all are done or claimed by others; `where` is device, threads, data, ...

    `watch` is called whenever a trial begins, ends an epoch, or ends; `at_step`, which should take no time, in each
    step. A trial fails by what would happen again wherever it is trained: a recipe that cannot be trained (ValueError),
    a loss that is not finite (DivergedError), or `PATIENCE` times after the same checkpoint the death of its process or
    a lack of memory. Any other error may be the machine's fault, such as a full disk, a GPU that failed, or data that
    are gone or have changed: it is raised, and the trial is left for the next worker. So is a ValueError of a trial
    that is continued, as when its data are elsewhere.
    """
    while (claimed := claim(sweep)) is not None:
        trial, lock = claimed
        try:
            watch()
            with raised_after():
                _run(sweep, trial, where, watch, at_step)
                watch()
        finally:
            lock.release()


def objective_of(val_errors: Sequence[float], objective: str, recipe: Recipe) -> float:
    """One number of the validation errors of a recipe's outputs, shallow to deep: mean, final, or that of output K.

    The mean is over the outputs that train to the end, as when epochs are compared. Raises ValueError if there is no
    output K.
    """
    if objective == "mean":
        return mean_error(trained_outputs_only(recipe, depths_of(recipe), val_errors))
    output = len(val_errors) if objective == "final" else int(objective)
    if output > len(val_errors):
        raise ValueError(f"objective {output} names an output, and the net has {len(val_errors)}")
    return val_errors[output - 1]


def _run(sweep: OpenSweep, trial: optuna.Trial, where: dict[str, Any], watch: Watch, at_step: Watch) -> None:
    """Train one trial; if it is stopped, the next worker continues it."""
    folder = numbered_folder(sweep, trial.number)
    if (twin := twin_of(sweep, trial)) is not None:
        trial.set_user_attr("twin", twin.user_attrs.get("twin", twin.number))
        if twin.state == State.FAIL:
            trial.set_user_attr("error", twin.user_attrs.get("error"))
        sweep.study.tell(trial, twin.value, twin.state)
        return

    starts = trial.user_attrs.get("starts", [])
    start = next((path.stem for path in checkpoints(folder)), "its beginning")
    try:
        trial.set_user_attr("starts", [*starts, start])
        if starts.count(start) < PATIENCE:
            value, state, error = _trained(sweep, trial, where, watch, at_step)
        else:
            died = f"the process that trained it died {PATIENCE} times at {start}: perhaps for want of memory"
            value, state, error = None, State.FAIL, died
        with held():  # a signal must not fall between the result and telling Optuna
            if error is not None:
                trial.set_user_attr("error", error)
            trial.set_user_attr("seconds", sum(row["seconds"] for row in read_metrics(folder) if row["output"] == 1))
            sweep.study.tell(trial, value, state)
    except NO_MEMORY as failure:  # counts as a death, be it the trial's own need or that of others
        raise RuntimeError(
            f"trial {trial.number} found no memory: {first_sentence(failure)}; the same command again tries once more, "
            f"{PATIENCE} times in all"
        ) from failure
    except OtherImagesError:  # a run keeps its images: the trial begins again, once they are back
        with held():
            sweep.study.tell(trial, state=State.FAIL)
            try_again(sweep, trial.number)
        raise
    except BaseException:
        trial.set_user_attr("starts", starts)  # this start does not count against the trial
        raise


def _trained(
    sweep: OpenSweep, trial: optuna.Trial, where: dict[str, Any], watch: Watch, at_step: Watch
) -> tuple[float | None, State, str | None]:
    """Train a trial to its end, and return its objective, its state, and why it failed.

    Raises errors that are not the fault of the values it drew.
    """
    settings, folder = sweep.settings, numbered_folder(sweep, trial.number)
    resuming = bool(checkpoints(folder))

    def follow(progress: Progress) -> None:
        nonlocal resuming
        resuming = False
        at_step()
        if progress.done:
            trial.report(objective_of(progress.val_errors, settings.objective, recipe), progress.epoch)
            watch()
            if settings.prune and progress.epoch < progress.epochs and trial.should_prune():
                raise optuna.TrialPruned

    try:
        recipe = replace(settings.recipe, **{**values_drawn(sweep, trial), **where})
        check_same_weights(sweep, [recipe.pretrained])
        run = fit_on(recipe, folder, follow)
        value = objective_of([row["val_error"] for row in run.summary["last"]], settings.objective, recipe)
        images = [run.summary["data"][key] for key in ("drawn", "val_sha256", "train")]
        state = State.COMPLETE
    except optuna.TrialPruned:
        dataset = load_data(recipe)
        images = [dataset.drawn, dataset.val_sha256(), len(dataset.train)]
        value, state = None, State.PRUNED
    except DivergedError as failure:
        return None, State.FAIL, one_line(failure)
    except TooLittleMemoryError:  # another machine may have more
        raise
    except ValueError as failure:
        if resuming:  # these values were trained with before: they are not at fault
            raise RuntimeError(
                f"trial {trial.number} continues where it was begun, or begins again here once {folder} is removed: "
                f"{one_line(failure).partition(': leave the flag out')[0]}"
            ) from failure
        return None, State.FAIL, one_line(failure)
    if not {*COMPARABLE, "augment"} & settings.space.keys():  # random resized crops take the same images larger
        check_same_data(sweep, *images)
    return value, state, None
