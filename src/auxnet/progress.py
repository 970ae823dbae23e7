"""Where a training stands, and how long it still takes: its steps, its validations, and the evaluation at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from auxnet.averaging import RECALIBRATION_BATCHES
from auxnet.data import DataSet
from auxnet.recipe import Recipe
from auxnet.resuming import TrainingState
from auxnet.schedules import lr_at
from auxnet.words import duration, val_errors

STEP_PER_EVALUATION = 3.0  # of their times for the same images, until a validation was timed


@dataclass(frozen=True)
class Progress:
    """Where a training stands; given to `watch` whenever losses are read, and once more when an epoch is saved."""

    epoch: int
    epochs: int
    step: int
    steps: int
    """of this epoch"""
    images_per_second: float
    """of the training steps of this epoch"""
    seconds_left: float
    """to the end of the training: validations and the evaluation after the last epoch are counted"""
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
        """The epoch, the images per second and the time left, as text."""
        left = duration(self.seconds_left)
        return f"epoch {self.epoch}/{self.epochs}  {self.images_per_second:,.0f} images/s  {left} left"

    @property
    def result(self) -> str:
        """The validation errors as text; the training losses while there are none."""
        return val_errors(self.val_errors) or f"loss {' / '.join(f'{loss:.3f}' for loss in self.losses)}"

    def __str__(self) -> str:
        of_before = f" after epoch {self.epoch - 1}" if self.val_errors and not self.done else ""
        return f"{self.pace}  {self.result}{of_before}"


def progress_of(recipe: Recipe, dataset: DataSet, state: TrainingState, done: bool = False, team: int = 1) -> Progress:
    """Where a training by `team` processes stands: within an epoch, after one step or more, or `done` with an epoch."""
    per_epoch, rows = len(dataset.train), state.history
    K = max((row["output"] for row in rows), default=len(state.losses))
    train_rows, val_rows = rows[-2 * K : -K], rows[-K:]
    if done:
        epoch, step, images = state.epoch, steps_per_epoch(per_epoch, recipe.batch_size), per_epoch
        losses, seconds = [row["loss"] for row in train_rows], train_rows[0]["seconds"]
    else:
        epoch, step, images = state.epoch + 1, state.step, min(state.step * recipe.batch_size, per_epoch)
        losses, seconds = [loss / images for loss in state.losses], state.epoch_seconds
    trained = max(seconds, 1e-6) / images
    evaluated = team * (
        val_rows[0]["seconds"] / judged_images(recipe, dataset) if val_rows else trained / STEP_PER_EVALUATION
    )
    return Progress(
        epoch=epoch,
        epochs=recipe.epochs,
        step=step,
        steps=steps_per_epoch(per_epoch, recipe.batch_size),
        images_per_second=1 / trained,
        seconds_left=seconds_left(recipe, dataset, state, trained, evaluated, team),
        val_errors=[row["error"] for row in val_rows],
        losses=losses,
        lr=lr_at(recipe, epoch),
        done=done,
    )


def seconds_left(
    recipe: Recipe, dataset: DataSet, state: TrainingState, trained: float, evaluated: float, team: int = 1
) -> float:
    """How long a training still takes from a state on: its steps, its validations, the evaluation at its end.

    A training step takes `trained` seconds per image, an evaluation by one process `evaluated` seconds per image.
    """
    epochs, done = recipe.epochs - state.epoch, min(state.step * recipe.batch_size, len(dataset.train))
    nets = 1 if state.best_epoch == recipe.epochs or recipe.epochs == 1 else 2  # at the end: the last, and the best
    final = nets * (len(dataset.val) + len(dataset.test))
    validations = epochs * judged_images(recipe, dataset) / team
    return trained * (epochs * len(dataset.train) - done) + evaluated * (validations + final)


def judged_images(recipe: Recipe, dataset: DataSet) -> int:
    """The images of a validation, and the training images on which a moving average's norms are measured before it."""
    averaged = recipe.ema is not None
    return len(dataset.val) + averaged * min(len(dataset.train), RECALIBRATION_BATCHES * recipe.batch_size)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """The steps of an epoch, in which every image is seen once; the last batch may be smaller."""
    return math.ceil(images / batch_size)
