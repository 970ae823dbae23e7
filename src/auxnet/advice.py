"""What looks unwise about a recipe, and what is worth knowing about it, said before the first step.

Functions here give warnings and notes, each a clause; they refuse nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from auxnet.build import step_scale_of
from auxnet.by_name import without_effect
from auxnet.data import LARGE, DataSet, OnDisk, Split
from auxnet.machine import bfloat16_pays, device_of
from auxnet.progress import steps_per_epoch
from auxnet.recipe import Recipe
from auxnet.residual import layout
from auxnet.schedules import lambdas_at, weights_of
from auxnet.scores import too_few
from auxnet.words import first_few, plural

COMPILING_PAYS = 1800.0  # seconds of training: it takes up to a minute, and saves a twentieth of them or more
FEW_STEPS, SMALL_BATCH = 10, 16
VERY_UNEVEN = 4  # training images of the largest class over those of the smallest
LARGE_CUT, MANY_CUT = 0.4, 0.1  # share of a picture that is lost (of 16:9, not of 3:2), and of pictures that lose it
FEW_EPOCHS = 3  # in which a cosine falls
OF_SMALL_STEPS = {  # optimizers, and which part of SGD's step size they usually want
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop"), "a hundredth"),
    "Adagrad": "a tenth",
}


def few_steps(recipe: Recipe, images: int) -> Iterator[str]:
    """A warning if an epoch has hardly any steps, as with few images in large batches."""
    smaller = max(SMALL_BATCH, images // (2 * FEW_STEPS))
    steps, more = (steps_per_epoch(images, size) for size in (recipe.batch_size, smaller))
    if steps < FEW_STEPS and recipe.batch_size > SMALL_BATCH and more > steps:
        said = f"an epoch has {plural(steps, 'step')} of {recipe.batch_size} images"
        yield f"{said}: with --batch-size {smaller} it has {more}, and wants a smaller --lr"


def doubts_of(recipe: Recipe, depths: Sequence[int], dataset: DataSet) -> list[str]:
    """All warnings about a training that is to begin."""
    of_data = [*unreadable(dataset), *data_doubts(recipe, dataset)]
    return [*training_doubts(recipe, depths), *of_data, *precision_doubts(recipe)]


def unreadable(dataset: DataSet) -> Iterator[str]:
    """A warning with the names of images that cannot be read and are left out."""
    if dataset.left_out:
        yield f"left out, unreadable, {plural(len(dataset.left_out), 'image')}: {first_few(dataset.left_out)}"


def data_doubts(recipe: Recipe, dataset: DataSet) -> Iterator[str]:
    """Warnings about the data: settings without effect, few, cropped or copied images, classes of uneven size."""
    sizes = [size for size in dataset.train.labels.bincount().tolist() if size]  # of classes with images
    if dataset.brings_val and recipe.val_fraction != Recipe.val_fraction:
        given = f"val_fraction={recipe.val_fraction:g} (--val-fraction)"
        yield f"{given} has no effect: {dataset.name} brings validation images of its own"
    if few := too_few(len(dataset.val)):
        yield few
    if recipe.image_size is not None and recipe.fit == "crop":
        cut = [1 - min(shape) / max(shape) >= LARGE_CUT for shape in dataset.shapes()]
        if cut and (share := fmean(cut)) >= MANY_CUT:
            said = f"--image-size {recipe.image_size} keeps the middle square of each picture"
            lost = f"about {100 * share:.0f} % of them lose {100 * LARGE_CUT:.0f} % or more"
            yield f"{said}, {lost}: --fit pad keeps whole pictures, between black borders, --fit stretch distorts them"
    yield from copies_doubts(dataset)
    if recipe.class_weights == "none" and max(sizes) >= VERY_UNEVEN * min(sizes):
        apart = f"classes have {min(sizes):,} to {max(sizes):,} training images"
        yield f"{apart}: with --class-weights balanced each counts alike; evaluate shows the balanced error"


def copies_doubts(dataset: DataSet) -> Iterator[str]:
    """A warning about validation or test images that are training images too; images on disk are not looked through."""
    if isinstance(dataset.train, OnDisk):
        return
    train, copies = dataset.train.center_crop(dataset.image_size), []  # as evaluation would see them
    known = set(train.hashes())
    for name, split in (("validation", dataset.val), ("test", dataset.test)):
        if isinstance(split, Split) and (n := sum(each in known for each in split.hashes())):
            copies.append(f"{n:,} of {plural(len(split), f'{name} image')}")
    if copies:
        low = "errors on them come out too low; remove the copies, or keep them all in train/"
        yield f"copies, pixel for pixel, of training images are {' and '.join(copies)}: {low}"


def precision_doubts(recipe: Recipe) -> Iterator[str]:
    """A warning if bfloat16 is asked for on a CPU that has no units for it."""
    if recipe.precision != "float32" and device_of(recipe.device).type == "cpu" and bfloat16_pays() is False:
        yield "this CPU has no units for bfloat16, which is slower on it than float32: leave --precision out"


def speed_notes(recipe: Recipe, seconds: float) -> Iterator[str]:
    """What should make steps faster and goes with the recipe: bfloat16, and compiling if it trains for so long."""
    device = device_of(recipe.device)
    if device.type == "cpu" and bfloat16_pays() and _may_gain(recipe, precision="bfloat16"):
        yield "this CPU has units for bfloat16 (AMX): with --precision bfloat16 a step should take less time"
    on_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if on_gpu and _may_gain(recipe, precision="bfloat16"):
        yield "this GPU has units for bfloat16: with --precision bfloat16 a step should take less time"
    if device.type in ("cpu", "cuda") and seconds > COMPILING_PAYS and _may_gain(recipe, compile=True):
        yield "with --compile, a minute or more at the start, a step may take less time: plan with it measures whether"


def _may_gain(recipe: Recipe, **fields: Any) -> bool:
    """Whether a recipe has other values in these fields, and would not be refused with the values given."""
    try:
        return replace(recipe, **fields) != recipe
    except ValueError:
        return False


def time_notes(recipe: Recipe, dataset: DataSet, seconds: float) -> Iterator[str]:
    """What is not in the time that was measured with steps on random images, such as decoding."""
    if dataset.augmentation is not None or isinstance(dataset.train, OnDisk):
        yield "the time of decoding and augmenting the images is not counted"
    if recipe.compile:
        longer = "; in a training this short it may take longer than it saves" if seconds < COMPILING_PAYS else ""
        yield f"the time of compiling, once in a training, is not counted{longer}"


def ignores_weights(recipe: Recipe) -> bool:
    """Whether the trunk hardly feels the loss weights: each output's own optimizer divides its gradient by its size."""
    if recipe.freeze == "trunk":
        return False
    own_state = recipe.method == "pairwise" or (recipe.method == "multiway" and recipe.mode != "fused")
    return own_state and recipe.state == "per_output" and recipe.optimizer != "SGD"  # all others normalise the gradient


def training_doubts(recipe: Recipe, depths: Sequence[int]) -> Iterator[str]:
    """Warnings if an optimizer gets SGD's step size, fields that it does not have, or loss weights that it cannot feel.

    And if a warm-up leaves a cosine hardly any epochs to fall in, or losses would be discarded after the last epoch.
    """
    name = recipe.optimizer
    lambdas = {w for epoch in (1, recipe.epochs) for w in lambdas_at(recipe, depths, epoch) if w > 0}
    if name in OF_SMALL_STEPS and recipe.lr == Recipe.lr:
        yield f"--lr {recipe.lr:g} is the step size for SGD: {name} usually wants about {OF_SMALL_STEPS[name]} of it"
    if name == "AdamW" and recipe.weight_decay == Recipe.weight_decay:
        yield f"--weight-decay {recipe.weight_decay:g} is SGD's: AdamW usually wants 0.01 to 0.05"
    for field in without_effect(recipe):
        yield f"{field}={getattr(recipe, field)} has no effect: {name} has none"
    if recipe.distill == 0 and recipe.temperature != Recipe.temperature:
        yield f"--temperature {recipe.temperature:g} has no effect: it is distillation's, and --distill is 0"
    if recipe.schedule == "cosine" and recipe.warmup > 0 and (left := recipe.epochs - recipe.warmup) < FEW_EPOCHS:
        spent = f"--warmup {recipe.warmup} of {recipe.epochs} epochs"
        yield f"{spent} leaves the cosine {plural(left, 'epoch')} to fall in: give a shorter warm-up"
    if recipe.discard_after is not None and recipe.discards_from is None and recipe.epochs > 1:
        after = f"--discard-after {recipe.discard_after:g} of {recipe.epochs} epochs"
        yield f"{after} is after the last: it never acts"
    if ignores_weights(recipe) and len(lambdas) > 1:
        yield (
            f"{name} normalises gradients, and in {recipe.method} each output has one of its own: loss weights (gamma, "
            "weights, weight_schedule) hardly change what the trunk learns, unless they are 0; SGD, joint and fused "
            "multi-way feel them"
        )


def notes_of(recipe: Recipe, depths: Sequence[int]) -> Iterator[str]:
    """How loss weights and steps change after the first epoch; `planned_outputs` describes the first alone."""
    auxiliary = weights_of(recipe, depths)[:-1]
    if recipe.freeze == "trunk":
        step = "lambda times the step" if recipe.method == "joint" else "the full step, whatever lambda"
        yield f"freeze trunk: the trunk and the final output stay as they are; auxiliary heads take {step}"
    if recipe.weight_schedule == "linear" and any(auxiliary) and recipe.epochs > 1:
        yield (
            "lambda and the steps are those of the first epoch: weight_schedule linear lowers the auxiliary weights "
            f"evenly, to 1/{recipe.epochs} of themselves in the last"
        )
    if any(auxiliary) and (epoch := recipe.discards_from) is not None:
        yield f"from epoch {epoch} on the auxiliary losses are discarded (discard_after)"
    if step_scale_of(recipe) == "adaptive" and auxiliary:
        yield (
            "the steps are those of step_scale cumulative: adaptive takes L_K / L_k in place of an output's scale "
            "wherever its loss L_k is more than twice the final one's, L_K"
        )


def warnings_of(recipe: Recipe, depths: list[int], image_size: tuple[int, int]) -> list[str]:
    """Warnings of very shallow outputs and of too many (the paper, section 3.1), and of a form that does not fit."""
    final = depths[-1]
    warnings = [
        f"output {k} sits at layer {depth} of {final}: features that shallow tell classes apart poorly, "
        "and its loss may not converge"
        for k, depth in enumerate(depths[:-1], start=1)
        if depth < final / 5
    ]
    if recipe.backbone is not None:
        return warnings
    blocks, (H, W) = layout(recipe.depth, recipe.form).blocks, image_size
    if 3 * len(depths) > blocks and recipe.freeze == "none":
        warnings.append(
            f"{len(depths)} outputs on {blocks} blocks: fewer than three blocks to an output tends to over-fit"
        )
    if recipe.form == "cifar" and min(H, W) >= LARGE:
        warnings.append(
            f"form cifar keeps maps of {W}x{H} pixels to the end of its first stage: consider form imagenet, or "
            "a smaller --image-size"
        )
    if recipe.form == "imagenet" and max(H, W) < 64:
        left = f"{math.ceil(W / 32)}x{math.ceil(H / 32)}"
        warnings.append(f"form imagenet leaves {left} pixels of {W}x{H} images: consider form cifar")
    return warnings
