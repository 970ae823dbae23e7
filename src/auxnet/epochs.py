"""The epochs of a training: steps, validation, checkpoints. Whatever stops it, it continues from its last checkpoint.

Everything random in step s of epoch e follows from (seed, e, s), so that a resumed training continues as if it had
never stopped.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from auxnet import signals
from auxnet.averaging import RECALIBRATION_BATCHES, copy_buffers, recalibrate_norms, update_average
from auxnet.batches import seed_of
from auxnet.build import (
    distillation_of,
    dtype_of,
    evaluation_batches,
    first_batches,
    loss_of,
    mixed_at,
    training_batches,
)
from auxnet.data import DataSet
from auxnet.diagnosis import diagnose
from auxnet.distributed import Team
from auxnet.errors import DivergedError
from auxnet.evaluation import tally
from auxnet.machine import seed_random
from auxnet.method import Method
from auxnet.network import AuxNet
from auxnet.progress import Progress, progress_of, steps_per_epoch
from auxnet.recipe import Recipe
from auxnet.resuming import Checkpointer, TrainingState
from auxnet.schedules import lambdas_at, lr_at, trained_outputs_only
from auxnet.synchronised import unsynchronised
from auxnet.tensorboard import History

T = TypeVar("T")
DIAGNOSED = 512  # images on which supervision is measured after an epoch


@dataclass
class Training:
    """What is trained, on what data, how, where it is saved, and who is told."""

    recipe: Recipe
    dataset: DataSet
    net: AuxNet
    method: Method
    team: Team
    checkpointer: Checkpointer
    average: AuxNet | None = None
    """the moving average of the net, if the recipe asks for one"""
    diagnose: bool = False
    """whether this process measures supervision after every epoch"""
    began: float = field(default_factory=time.perf_counter)
    """when this session began"""
    watch: Callable[[Progress], object] | None = None
    write_events: Callable[[History], None] | None = None
    """writes the rows of metrics.jsonl so far for TensorBoard"""
    signal_received: Callable[[], int] = lambda: 0
    """the number of the signal that asks the training to stop; 0 if none has"""

    @property
    def judged(self) -> AuxNet:
        """The net that is validated and saved: the moving average if there is one, else the trained net."""
        return self.net if self.average is None else self.average

    @property
    def device(self) -> torch.device:
        """The device of the net."""
        return next(self.net.parameters()).device

    def seconds(self, state: TrainingState) -> float:
        """The wall time so far, of this session and those before it."""
        return state.seconds + time.perf_counter() - self.began

    def report(self, state: TrainingState, done: bool = False) -> None:
        """Tell `watch` where the training stands: within an epoch, or `done` with one."""
        if self.watch is not None:
            self.watch(progress_of(self.recipe, self.dataset, state, done, self.team.size))

    def save(self, state: TrainingState) -> None:
        """Make a checkpoint, at the end of an epoch after diagnosing; then write the curves so far for TensorBoard."""
        self.team.average_buffers(self.net.trained)
        diagnosed = None
        if self.diagnose:
            diagnosed = [] if state.step else [*supervision_after(self, state.epoch)]
        so_far = replace(state, seconds=self.seconds(state))
        self.checkpointer.save(so_far, self.net, self.method, self.average, diagnosed)
        if self.write_events is not None:
            self.write_events(state.history)


def run_epochs(training: Training, state: TrainingState) -> TrainingState:
    """Train and validate from `state` to the end of the recipe.

    Raises signals.Stopped after a signal to stop, once all is saved; RuntimeError if a loss stops being finite or
    the run directory cannot be written to.
    """

    def at_once() -> str:
        folder = training.checkpointer.folder
        last = f"--resume goes on from the last checkpoint in {folder}, if there is one yet"
        return f"stopped at once, in the middle of a step; {_as_it_was(training) or last}"

    with signals.held(at_once) as training.signal_received:
        while state.epoch < training.recipe.epochs:
            state = train_epoch(training, state)
            state = validate(training, state)
            training.save(state)
            training.report(state, done=True)
            _stop_if_asked(training, state)
    return state


def train_epoch(training: Training, state: TrainingState) -> TrainingState:
    """Do the remaining steps of the current epoch, which `validate` then validates.

    Raises what `run_epochs` does.
    """
    recipe, net, method, team = training.recipe, training.net, training.method, training.team
    epoch, before, began = state.epoch + 1, state, time.perf_counter()
    losses = torch.tensor(state.losses or [0.0] * net.outputs, dtype=torch.float64)
    method.set_weights(lambdas_at(recipe, net.depths, epoch))
    method.set_lr(lr_at(recipe, epoch))
    net.train()
    steps = steps_per_epoch(len(training.dataset.train), recipe.batch_size)
    every = steps_between_reads(training.device)
    unread: list[tuple[int, int, Tensor]] = []  # (step, images, losses [K]), losses not read yet

    def save_is_due() -> bool:
        return training.signal_received() > 0 or training.checkpointer.due

    def read_losses() -> TrainingState:
        """The state with the losses of all steps so far. Raises DivergedError as `_add_up` does."""
        nonlocal state
        if unread:
            last = unread[-1][0]
            _add_up(losses, unread, net, epoch)
            state = before.within(last, losses.tolist(), time.perf_counter() - began)
        return state

    batches = _team_batches(training, epoch, state.step)
    for step, n, x, labels in _saving_on_failure(batches, training, read_losses):
        seed_random(seed_of(recipe.seed, epoch, step, team.rank), training.device)  # for dropout and the like
        x, labels = mixed_at(recipe, x, labels, training.dataset.num_classes, epoch, step)
        unread.append((step, n, method.step(x, labels)))
        if training.average is not None and recipe.ema is not None:
            update_average(training.average, net, recipe.ema, (epoch - 1) * steps + step)
        if len(unread) == every or step == steps or (team.size == 1 and save_is_due()):
            training.report(read_losses())
            if team.any(save_is_due()):  # only here: asking the others waits for the device
                if training.checkpointer.older_run_intact:  # a stop before the first save must not replace it
                    _stop_if_asked(training, state)
                training.save(state)
                _stop_if_asked(training, state)
    return state


def _add_up(sums: Tensor, unread: list[tuple[int, int, Tensor]], net: AuxNet, epoch: int) -> None:
    """Add the losses [K] of unread steps to the sums over images, and empty the list; waits for the device only once.

    Raises DivergedError for a loss that is not finite.
    """
    read = torch.stack([losses for _, _, losses in unread]).cpu()
    for (step, images, _), losses in zip(unread, read, strict=True):
        _check_finite(losses.tolist(), net, f"in epoch {epoch}, step {step}")
        sums.add_(losses.double() * images)
    unread.clear()


def steps_between_reads(device: torch.device) -> int:
    """Steps from one read of the losses to the next: a read waits for the GPU, which Python otherwise runs ahead of."""
    return 1 if device.type == "cpu" else 50


def _team_batches(training: Training, epoch: int, start: int = 0) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """The batches of an epoch after `start` steps: (step, images of the whole batch, this process's images, labels)."""
    recipe, team, images = training.recipe, training.team, len(training.dataset.train)
    batches = training_batches(recipe, training.dataset, training.device, epoch, start, team.part)
    for step, (x, labels) in enumerate(batches, start=start + 1):
        n = min(recipe.batch_size, images - (step - 1) * recipe.batch_size)
        team.weigh(n)
        yield step, n, x, labels


def _saving_on_failure(batches: Iterable[T], training: Training, state_now: Callable[[], TrainingState]) -> Iterator[T]:
    """The batches. If one cannot be read, what was done is saved first, and RuntimeError says how to continue.

    (Not in a team, where all processes would have to save; nor while an older run is intact.)
    """
    try:
        yield from batches
    except (OSError, RuntimeError) as error:
        checkpointer, state = training.checkpointer, state_now()
        if training.team.size > 1 or checkpointer.older_run_intact:
            raise
        if state.step:
            training.save(state)
        if not checkpointer.begun:
            raise
        _stop_if_asked(training, state)
        if isinstance(error, torch.OutOfMemoryError):  # sweeps count these
            raise
        raise RuntimeError(
            f"{error}; the run is saved in {checkpointer.folder}, --resume (resume=True) goes on with it"
        ) from error


def validate(training: Training, state: TrainingState) -> TrainingState:
    """Measure each output on the validation images, each image counted once, and return the state after the epoch.

    The best epoch is chosen by the outputs whose loss still counts in the last epoch.
    """
    recipe, net, team, dataset = training.recipe, training.judged, training.team, training.dataset
    epoch, began = state.epoch + 1, time.perf_counter()
    if net is training.average:
        copy_buffers(net, training.net)
        seen = _saving_on_failure(_team_batches(training, epoch), training, lambda: state)
        recalibrate_norms(net, (x for _, _, x, _ in islice(seen, RECALIBRATION_BATCHES)))
    team.average_buffers(net.trained)
    batches = evaluation_batches(dataset.val, dataset, training.device, team.own, dtype_of(recipe))
    totals = tally(net, _saving_on_failure(batches, training, lambda: state))
    losses, wrong = (team.sum(total).double() / len(dataset.val) for total in totals)
    _check_finite(losses.tolist(), net, f"on the validation images after epoch {epoch}")
    seconds = time.perf_counter() - began
    means = [loss / len(dataset.train) for loss in state.losses]
    lr = lr_at(recipe, epoch)
    rows = [
        *_rows(net, epoch, "train", means, None, lr, state.epoch_seconds),
        *_rows(net, epoch, "val", losses.tolist(), wrong.tolist(), lr, seconds),
    ]
    return state.after(trained_outputs_only(recipe, net.depths, wrong.tolist()), rows)


def supervision_after(training: Training, epoch: int) -> Iterator[dict[str, Any]]:
    """Lines of diagnosis.jsonl: the share of supervision at each layer, on the first batches of the epoch.

    One process measures them on a copy of the net, so that the training is not affected.
    """
    recipe, net = training.recipe, unsynchronised(training.net)
    batches = first_batches(recipe, training.dataset, training.device, epoch, DIAGNOSED)
    weights = lambdas_at(recipe, net.depths, epoch)
    loss = loss_of(recipe, training.dataset, training.device)
    found = diagnose(net, batches, recipe.method, weights, loss=loss, distill=distillation_of(recipe, loss))
    for share in found.shares:
        yield {"epoch": epoch, "output": share.output, "layer": share.layer, "share": share.share}


def _stop_if_asked(training: Training, state: TrainingState) -> None:
    """Raise signals.Stopped, which says what was saved, if any process of the team was asked to stop."""
    if training.team.any(training.signal_received() > 0):
        folder = training.checkpointer.folder
        where = f"in epoch {state.epoch + 1}, after step {state.step}" if state.step else f"after epoch {state.epoch}"
        why = f"stopped {where}; the run is saved in {folder}, --resume (resume=True) goes on with it"
        if untouched := _as_it_was(training):
            why = f"stopped before anything was saved; {untouched}"
        raise signals.Stopped(training.signal_received() or signal.SIGTERM, why)


def _as_it_was(training: Training) -> str:
    """That an older run is still there as it was, in words; "" if it is not."""
    keeps = training.checkpointer.older_run_intact
    return f"{training.checkpointer.folder} is as it was" if keeps else ""


def _check_finite(losses: list[float], net: AuxNet, where: str) -> None:
    for k, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss of output {k + 1} (layer {net.depths[k]}) became {loss} {where}; "
                "the run stops there: a smaller --lr, or --clip, may help"
            )


def _rows(
    net: AuxNet, epoch: int, split: str, losses: list[float], errors: list[float] | None, lr: float, seconds: float
) -> Iterator[dict[str, Any]]:
    """Lines of metrics.jsonl. In training, losses are means over the epoch's steps and errors are not measured."""
    for k, (depth, loss) in enumerate(zip(net.depths, losses, strict=True)):
        yield {
            "epoch": epoch,
            "split": split,
            "output": k + 1,
            "depth": depth,
            "loss": loss,
            "error": None if errors is None else errors[k],
            "lr": lr,
            "seconds": round(seconds, 3),
        }
