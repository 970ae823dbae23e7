"""Checkpoints: how far a training has come, saved while it runs, and loaded when it is resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from auxnet.answers import Rebuilt, check_answers
from auxnet.checkpoint import load_state, save_state
from auxnet.errors import DamagedError, DivergedError, first_line, warn
from auxnet.files import write_text
from auxnet.lineage import Earlier
from auxnet.loading import load_weights
from auxnet.method import Method
from auxnet.modules import copied
from auxnet.network import AuxNet
from auxnet.recipe import Recipe
from auxnet.rundir import append, begin, checkpoints, is_finished, left_in, lines, read_rows
from auxnet.tensors import read_about, save_tensors


@dataclass(frozen=True)
class TrainingState:
    """How far a training has come, and what it has seen."""

    epoch: int = 0
    """epochs done"""
    step: int = 0
    """steps done in the current epoch, the one after those"""
    losses: tuple[float, ...] = ()
    """the training losses of the current epoch's steps, one per output, summed over images"""
    seconds: float = 0.0
    """of all sessions so far, each up to its last checkpoint; what a killed session did after that is not known"""
    epoch_seconds: float = 0.0
    """spent in the current epoch's steps"""
    best_epoch: int = 0
    best_error: float = float("inf")
    """mean validation error, in the best epoch, of the outputs that train to the end"""
    history: tuple[dict[str, Any], ...] = ()
    """the rows of metrics.jsonl"""
    drawn: str | None = None
    """`DataSet.drawn`; None in old checkpoints"""
    left_out: tuple[str, ...] = ()
    """`DataSet.left_out` when the images were drawn; empty in old checkpoints"""
    train_images: int | None = None
    """how many there were in the last session; None in old checkpoints"""
    judged_on: dict[str, Any] | None = None
    """`DataSet.judged_on` in the last session; None in old checkpoints"""
    preprocessing: dict[str, Any] | None = None
    """`Preprocessing.content()`, which never changes within a run; None in old checkpoints"""
    classes: tuple[str, ...] | None = None
    """`DataSet.classes`; None in old checkpoints"""
    earlier_runs: tuple[Earlier, ...] = ()
    """the runs that its pretrained weights come from"""
    pretrained_sha256: str | None = None
    """of the weights that it began with; None for random ones, and in old checkpoints"""

    def within(self, step: int, losses: Iterable[float], seconds: float) -> TrainingState:
        """The state in the middle of an epoch, `seconds` after this one."""
        return replace(self, step=step, losses=tuple(losses), epoch_seconds=self.epoch_seconds + seconds)

    def after(self, val_errors: list[float], rows: Iterable[dict[str, Any]]) -> TrainingState:
        """The state once the epoch is done; on a tie the earlier epoch stays the best."""
        epoch, error = self.epoch + 1, mean_error(val_errors)
        best = replace(self, best_epoch=epoch, best_error=error) if error < self.best_error else self
        return replace(best, epoch=epoch, step=0, losses=(), epoch_seconds=0.0, history=(*self.history, *rows))


def mean_error(errors: Sequence[float]) -> float:
    """The mean over outputs, without the last bits, which depend on their order: equal means compare as equal."""
    return round(fmean(errors), 12)


@dataclass
class Checkpointer:
    """When a checkpoint is due, and what happens to the run directory with the first one."""

    folder: Path
    recipe: Recipe
    writes: bool = True
    """whether this process writes; one of a team does"""
    keep: int = 2
    """how many of the newest checkpoints to keep"""
    every: float = math.inf
    """seconds between two checkpoints within an epoch"""
    begun: bool = False
    """whether the run directory is this run's; until its first checkpoint, an older run's files stay"""
    replaces: bool = False
    """whether an older run may be there, and may be replaced"""
    rebuilt: Rebuilt | None = None
    """of a net with a backbone, whose code may change"""
    saved: float = field(default_factory=time.monotonic)
    """when the last checkpoint was made"""

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint within an epoch."""
        return self.writes and time.monotonic() - self.saved >= self.every

    @property
    def older_run_intact(self) -> bool:
        """Whether an older run is still there: a training that is asked to stop now leaves it as it is."""
        return self.replaces and not self.begun

    def save(
        self,
        state: TrainingState,
        net: AuxNet,
        method: Method,
        average: AuxNet | None,
        diagnosed: Sequence[dict[str, Any]] | None,
    ) -> None:
        """Make a checkpoint, and remove all but the newest ones.

        At the end of an epoch its metrics and its diagnosis are logged first; if it is the best epoch so far, its
        weights (their moving average, if there is one) are saved last. `diagnosed` is None if no diagnosis was asked
        for; otherwise diagnosis.jsonl exists from the first checkpoint on, so that a resume continues it. Raises
        RuntimeError if the checkpoint cannot be written, DivergedError for weights that are not finite.
        """
        if self.writes:
            _check_finite(net)
            checkpoint: dict[str, Any] = {
                "standing": vars(state),
                "net": net.state_dict(),
                "method": method.state_dict(),
            }
            checkpoint["saving"] = {"keep": self.keep, "every": self.every}
            note = checkpoint["answers"] = None if self.rebuilt is None else self.rebuilt.note(net)
            if average is not None:
                checkpoint["average"] = average.state_dict()
                note = None if self.rebuilt is None else self.rebuilt.note(average)
            self._write(checkpoint, state, net if average is None else average, note, diagnosed)
        self.begun, self.saved = True, time.monotonic()

    def _write(
        self,
        checkpoint: dict[str, Any],
        state: TrainingState,
        judged: AuxNet,
        note: str | None,
        diagnosed: Sequence[dict[str, Any]] | None,
    ) -> None:
        folder, older = self.folder, left_in(self.folder)

        def log() -> None:
            """Once the checkpoint is on the disk, before it gets its name: remove an older run, log the epoch."""
            if not self.begun:
                begin(folder, self.recipe)
            self.begun = True
            if state.step == 0:
                append(folder / "metrics.jsonl", [row for row in state.history if row["epoch"] == state.epoch])
            if diagnosed is not None:
                append(folder / "diagnosis.jsonl", diagnosed)

        try:
            (folder / "checkpoints").mkdir(exist_ok=True)
            save_state(folder / "checkpoints" / f"{state.epoch:05}-{state.step:07}.ckpt", checkpoint, log)
            if state.step == 0 and state.best_epoch == state.epoch:
                _save_best(folder, state, judged, note)
            for old in checkpoints(folder)[self.keep :]:
                old.unlink(missing_ok=True)
        except OSError as error:
            if not folder.is_dir():
                raise RuntimeError(f"{folder} has vanished, and what was saved of the run with it") from error
            saved = "what was saved before is whole: put that right, then go on with --resume"
            if self.older_run_intact and left_in(folder) != older:
                saved = "a part of the older run is removed: put that right, then begin again with --overwrite"
            elif self.older_run_intact:
                saved = "what lay there is as it was: put that right, then begin again"
            elif not self.begun:
                saved = "nothing was saved before: put that right, then begin again"
            elif not checkpoints(folder):
                saved = "nothing was saved before: put that right, then begin again with --overwrite"
            mend = f"{saved} (a sweep or a study: with the same command)"
            raise RuntimeError(f"{folder} cannot be written to ({error.strerror}); {mend}") from error


def _check_finite(net: AuxNet) -> None:
    """Raise DivergedError for weights that are not finite, before they replace better ones."""
    statistics = [
        (f"{at}.{name}", buffer)
        for at, module in net.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for name, tensor in (*net.named_parameters(), *statistics):  # other buffers may be so on purpose, as masks of -inf
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DivergedError(f"{name} holds values that are not finite; it is not saved, and the run stops there")


def newest_checkpoint(folder: Path) -> dict[str, Any]:
    """The content of a run's newest checkpoint that is not damaged; damaged ones are set aside, with a warning.

    Raises FileNotFoundError if there is none, DamagedError if all are damaged, RuntimeError if the newest is from
    another version of this program.
    """
    paths = checkpoints(folder)
    if not paths:
        finished = "is finished, and nothing is left to train: it " if is_finished(folder) else ""
        raise FileNotFoundError(f"{folder} {finished}holds no checkpoint to resume from; --overwrite begins again")
    for path in paths:
        try:
            return load_state(path)
        except DamagedError as error:
            path.replace(path.with_suffix(".damaged"))
            warn(f"{error}; the one before it is taken")
    raise DamagedError(f"{folder}: every checkpoint is damaged ({len(paths)}); --overwrite begins again")


def load_checkpoint(
    checkpoint: dict[str, Any], net: AuxNet, method: Method, folder: Path, average: AuxNet | None = None
) -> TrainingState:
    """Load a run's checkpoint into net, method and moving average, and return where the training stands.

    Raises RuntimeError if the checkpoint is of another recipe, or from another version of this program.
    """
    try:
        state = TrainingState(**checkpoint["standing"])
    except (KeyError, TypeError) as error:
        mend = "go on with that one, or begin again with --overwrite"
        raise RuntimeError(
            f"{folder}: the checkpoint was made by another version of auxnet ({first_line(error)}): {mend}"
        ) from None
    try:
        net.load_state_dict(checkpoint["net"])
        method.load_state_dict(checkpoint["method"])
        if average is not None:
            average.load_state_dict(checkpoint["average"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RuntimeError(f"{folder}: the checkpoint does not fit the recipe: {first_line(error)}") from None
    if (note := checkpoint.get("answers")) is not None:
        check_answers(net, note, folder)
    return state


def roll_back(
    folder: Path, recipe: Recipe, state: TrainingState, net: AuxNet, rebuilt: Rebuilt | None = None
) -> TrainingState:
    """Bring the other files back to what they were at this state: the lines of metrics.jsonl, the best weights.

    (And the lines of diagnosis.jsonl, if there is one: they reach the disk before the checkpoint of their epoch.)

    The best weights may be gone, if a later epoch had replaced them whose checkpoint was lost, or damaged, which is
    warned of. They are saved again if the state is the end of the best epoch. Otherwise the best so far is forgotten,
    and the epochs still to come decide. Raises DamagedError if none of the recipe's epochs is to come.
    """
    write_text(folder / "metrics.jsonl", lines(state.history))
    if (folder / "diagnosis.jsonl").is_file():
        diagnosed = [row for row in read_rows(folder / "diagnosis.jsonl") if row["epoch"] <= state.epoch]
        write_text(folder / "diagnosis.jsonl", lines(diagnosed))
    if _epoch_of_best(folder, net) == str(state.best_epoch):
        return state
    if state.step == 0 and state.best_epoch == state.epoch:
        _save_best(folder, state, net, None if rebuilt is None else rebuilt.note(net))
        return state
    if state.epoch == recipe.epochs:
        raise DamagedError(f"{folder}: the best weights are gone from checkpoints/: --overwrite trains it again")
    return replace(state, best_epoch=0, best_error=float("inf"))


def _epoch_of_best(folder: Path, net: AuxNet) -> str | None:
    """The epoch of a run's best weights; None if there are none that fit its net."""
    path = folder / "checkpoints" / "best.safetensors"
    try:
        load_weights(path, copied(net))
    except FileNotFoundError:
        return None
    except RuntimeError as error:
        warn(f"{error}; it is not used")
        return None
    return read_about(path).get("epoch")


def _save_best(folder: Path, state: TrainingState, net: AuxNet, note: str | None) -> None:
    path = folder / "checkpoints" / "best.safetensors"
    save_tensors(path, net.state_dict(), epoch=str(state.epoch), answers=note)
