"""The epochs of a training: steps, validation, checkpoints. Whatever stops it, it goes on from the last checkpoint.

Everything random in step s of epoch e follows from (seed, e, s), so that a training that is resumed goes on as if it
had never stopped.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from auxnet import rundir, signals
from auxnet.averaging import recalibrate_norms, take_buffers, update_average
from auxnet.batches import seed_of
from auxnet.build import evaluation_batches, first_batches, loss_of, precision_of, training_batches
from auxnet.data import DataSet
from auxnet.diagnosis import diagnose
from auxnet.distributed import Team
from auxnet.errors import DivergedError
from auxnet.evaluation import tally
from auxnet.mixing import mixed
from auxnet.network import AuxNet
from auxnet.recipe import Recipe
from auxnet.rundir import Standing
from auxnet.schedules import lambdas_at, lr_at, to_the_end
from auxnet.synchronised import unsynchronised
from auxnet.tensorboard import History
from auxnet.update import Method
from auxnet.words import duration, val_errors

SETTLING = 100  # batches that the norms of an averaged net are measured on
DIAGNOSED = 512  # images that supervision is measured on after an epoch


@dataclass(frozen=True)
class Progress:
    """Where a training stands; given to `watch` whenever losses are read, and once more when an epoch is saved."""

    epoch: int
    epochs: int
    step: int
    steps: int
    """of this epoch"""
    images_per_second: float
    seconds_left: float
    val_errors: list[float]
    """of each output after the last epoch that is done; empty in the first"""
    losses: list[float]
    """of each output, the mean over the training images of this epoch so far"""
    lr: float
    """of this epoch"""
    done: bool = False
    """whether the epoch is validated and saved"""

    @property
    def pace(self) -> str:
        """Where it is, how fast, and for how long still."""
        left = duration(self.seconds_left)
        return f"epoch {self.epoch}/{self.epochs}  {self.images_per_second:,.0f} images/s  {left} left"

    def __str__(self) -> str:
        return f"{self.pace}  {val_errors(self.val_errors)}".rstrip()


@dataclass
class Training:
    """All that an epoch needs."""

    recipe: Recipe
    dataset: DataSet
    net: AuxNet
    method: Method
    team: Team
    folder: Path
    save_every: float
    """seconds between two checkpoints within an epoch"""
    keep: int
    """how many of the newest checkpoints to keep"""
    watch: Callable[[Progress], object]
    begun: bool
    """whether the run directory is this run's; until its first checkpoint, what an older run left stays"""
    replaces: bool = False
    """whether an older run may be there: asked to stop before there is anything of this one, it is not touched"""
    diagnose: bool = False
    """whether supervision is measured after every epoch"""
    saved: float = field(default_factory=time.monotonic)
    """when the last checkpoint was made"""
    average: AuxNet | None = None
    """the moving average of the net, where the recipe asks for one"""
    write_events: Callable[[History], None] | None = None
    """shows TensorBoard the rows of metrics.jsonl so far"""

    @property
    def judged(self) -> AuxNet:
        """The net that is validated and kept: the average, or the one that is trained."""
        return self.net if self.average is None else self.average

    @property
    def device(self) -> torch.device:
        """Where the net is."""
        return next(self.net.parameters()).device

    def save(self, standing: Standing) -> None:
        """Make a checkpoint; of the processes of a team, one writes."""
        self.team.average_buffers(self.net)
        if self.team.leads:
            diagnosed = [*supervision_after(self, standing.epoch)] if self.diagnose and standing.step == 0 else []
            rundir.check_finite(self.net)
            if not self.begun:
                rundir.begin(self.folder, self.recipe)
            rundir.save(self.folder, standing, self.net, self.method, self.keep, self.average, diagnosed)
            if self.write_events is not None and standing.step == 0:
                self.write_events(standing.history)
        self.begun, self.saved = True, time.monotonic()


def run_epochs(training: Training, standing: Standing) -> Standing:
    """Train and validate to the end of the recipe, from where a training stands.

    Raises signals.Stopped, once all is saved, after SIGTERM or Ctrl-C; RuntimeError if a loss stops being finite or
    the run directory cannot be written to.
    """
    with signals.held() as noted:
        while standing.epoch < training.recipe.epochs:
            standing = train_epoch(training, standing, noted)
            standing = validate(training, standing)
            training.save(standing)
            training.watch(_progress(training, standing, done=True))
            _stop_if_asked(training, standing, noted)
    return standing


def train_epoch(training: Training, standing: Standing, noted: Callable[[], int]) -> Standing:
    """The steps of the epoch at hand that are not done yet; the standing is in the middle of it, at its end."""
    recipe, net, method, team = training.recipe, training.net, training.method, training.team
    epoch, began, begun_at = standing.epoch + 1, time.perf_counter(), standing
    losses = torch.tensor(standing.losses or [0.0] * net.outputs, dtype=torch.float64)
    method.set_weights(lambdas_at(recipe, net.depths, epoch))
    method.set_lr(lr_at(recipe, epoch))
    net.train()
    steps = steps_per_epoch(len(training.dataset.train), recipe.batch_size)
    every = steps_between_reads(training.device)
    unread: list[tuple[int, int, Tensor]] = []  # steps, their images and their losses [K]

    def read() -> Standing:
        """The standing after the last step: waits for the device, once for all losses that are not read yet."""
        values = torch.stack([step_losses for _, _, step_losses in unread]).cpu()
        for (step, n, _), step_losses in zip(unread, values, strict=True):
            _check_finite(step_losses.tolist(), net, f"in epoch {epoch}, step {step}")
            losses.add_(step_losses.double() * n)
        last, *_ = unread[-1]
        unread.clear()
        return begun_at.within(last, losses.tolist(), time.perf_counter() - began)

    def to_save() -> bool:
        """Whether a checkpoint is due, or the training is asked to stop."""
        return noted() > 0 or (team.leads and time.monotonic() - training.saved >= training.save_every)

    for step, n, x, labels in _team_batches(training, epoch, standing.step):
        torch.manual_seed(seed_of(recipe.seed, epoch, step, team.rank))  # for nets that draw numbers
        if recipe.mixup > 0 or recipe.cutmix > 0:
            drawn = Random(seed_of(recipe.seed, epoch, step, 0, 0))  # the same in all processes
            x, labels = mixed(x, labels, training.dataset.num_classes, recipe.mixup, recipe.cutmix, drawn)
        unread.append((step, n, method.step(x, labels)))
        if training.average is not None and recipe.ema is not None:
            update_average(training.average, net, recipe.ema, (epoch - 1) * steps + step)
        if len(unread) == every or step == steps or (team.size == 1 and to_save()):
            standing = read()
            training.watch(_progress(training, standing))
            if team.any(to_save()):  # in a team only where losses are read: to ask the others is to wait for the device
                if training.replaces and not training.begun and team.any(noted() > 0):
                    spared = f"stopped before anything was saved; {training.folder} is as it was"
                    raise signals.Stopped(noted() or signal.SIGTERM, spared)
                training.save(standing)
                _stop_if_asked(training, standing, noted)
    return standing


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Every image is seen once in an epoch; its last batch may be smaller."""
    return math.ceil(images / batch_size)


def steps_between_reads(device: torch.device) -> int:
    """To read a loss is to wait for the device, which Python else runs ahead of."""
    return 1 if device.type == "cpu" else 50


def _team_batches(training: Training, epoch: int, start: int = 0) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """The batches of an epoch after `start` steps: (step, images of the whole batch, this process's images, labels)."""
    recipe, team, images = training.recipe, training.team, len(training.dataset.train)
    batches = training_batches(recipe, training.dataset, training.device, epoch, start, team.part)
    for step, (x, labels) in enumerate(batches, start=start + 1):
        n = min(recipe.batch_size, images - (step - 1) * recipe.batch_size)
        team.weigh(n)
        yield step, n, x, labels


def validate(training: Training, standing: Standing) -> Standing:
    """The standing after the epoch: each output's loss and error on the validation images, each counted once.

    Epochs are compared by the outputs that train to the end.
    """
    recipe, net, team, dataset = training.recipe, training.judged, training.team, training.dataset
    epoch, began = standing.epoch + 1, time.perf_counter()
    if net is training.average:
        take_buffers(net, training.net)
        recalibrate_norms(net, (x for _, _, x, _ in islice(_team_batches(training, epoch), SETTLING)))
    team.average_buffers(net)
    said = tally(net, evaluation_batches(dataset.val, dataset, training.device, team.own, precision_of(recipe)))
    losses, wrong = (team.sum(total).double() / len(dataset.val) for total in said)
    _check_finite(losses.tolist(), net, f"on the validation images after epoch {epoch}")
    seconds = time.perf_counter() - began
    means = [loss / len(dataset.train) for loss in standing.losses]
    lr = lr_at(recipe, epoch)
    rows = [
        *_rows(net, epoch, "train", means, None, lr, standing.epoch_seconds),
        *_rows(net, epoch, "val", losses.tolist(), wrong.tolist(), lr, seconds),
    ]
    return standing.after(to_the_end(recipe, net.depths, wrong.tolist()), rows, seconds)


def supervision_after(training: Training, epoch: int) -> Iterator[dict[str, Any]]:
    """Lines of diagnosis.jsonl: the share of supervision at each layer, on the first batches of the epoch.

    Measured by one process on a copy of the net, it changes nothing of the training.
    """
    recipe, net = training.recipe, unsynchronised(training.net)
    batches = first_batches(recipe, training.dataset, training.device, epoch, DIAGNOSED)
    weights = lambdas_at(recipe, net.depths, epoch)
    loss = loss_of(recipe, training.dataset, training.device)
    for share in diagnose(net, batches, recipe.method, weights, loss=loss).shares:
        yield {"epoch": epoch, "output": share.output, "layer": share.layer, "share": share.share}


def _stop_if_asked(training: Training, standing: Standing, noted: Callable[[], int]) -> None:
    if training.team.any(noted() > 0):
        where = f"epoch {standing.epoch + 1}, step {standing.step}" if standing.step else f"epoch {standing.epoch}"
        saved = f"stopped after {where}; the run is saved in {training.folder}, --resume goes on with it"
        raise signals.Stopped(noted() or signal.SIGTERM, saved)


def _progress(training: Training, standing: Standing, done: bool = False) -> Progress:
    """Where a training stands, by the pace of the epoch at hand, or of all that are done."""
    recipe, per_epoch = training.recipe, len(training.dataset.train)
    steps = steps_per_epoch(per_epoch, recipe.batch_size)
    images = min(standing.step * recipe.batch_size, per_epoch)
    if images:
        rate = images / max(standing.epoch_seconds, 1e-9)
    else:
        rate = standing.epoch * per_epoch / max(standing.seconds, 1e-9)
    left = ((recipe.epochs - standing.epoch) * per_epoch - images) / rate
    K = training.net.outputs
    errors = [row["error"] for row in standing.history[-K:]]
    if done:
        losses, epoch, step = [row["loss"] for row in standing.history[-2 * K : -K]], standing.epoch, steps
    else:
        losses, epoch, step = [loss / max(images, 1) for loss in standing.losses], standing.epoch + 1, standing.step
    return Progress(epoch, recipe.epochs, step, steps, rate, left, errors, losses, lr_at(recipe, epoch), done)


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
