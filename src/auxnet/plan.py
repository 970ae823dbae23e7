"""What a recipe will do, before it is done: outputs, weights, effective steps, cost, time, and what looks unwise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from auxnet.build import build, check_data, check_last_batch, check_recipe, net_of, precision_of, step_scale_of
from auxnet.by_name import without_effect
from auxnet.capturing import WARM_UP
from auxnet.cost import costs
from auxnet.data import LARGE, DataSet, OnDisk, load_data
from auxnet.evaluation import tally
from auxnet.machine import bfloat16_pays, device_of, random_kept, threads_set
from auxnet.progress import judged_images, seconds_left, steps_per_epoch
from auxnet.recipe import Recipe
from auxnet.residual import layout
from auxnet.resuming import TrainingState
from auxnet.schedules import lambdas_at, weights_of
from auxnet.steps import step_scales
from auxnet.words import plural

MEASURED_STEPS = 4
COMPILING_PAYS = 600.0  # seconds of training, of which a minute is a tenth
LONG = 10.0  # seconds of steps after which no other is measured
FEW_STEPS, SMALL_BATCH = 10, 16
VERY_UNEVEN = 4  # times the training images of the smallest class in the largest
FEW_EPOCHS = 3  # in which a cosine falls
OF_SMALL_STEPS = {  # of SGD's step size
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop"), "a hundredth"),
    **dict.fromkeys(("Adagrad", "Adafactor"), "a tenth"),
}


@dataclass(frozen=True)
class PlannedOutput:
    """One output, and the trunk segment that ends in it."""

    output: int
    depth: int
    weight: float
    """lambda, in the first epoch"""
    params: int
    macs: int
    step: float
    """what a gradient of L_k that reaches this segment from its own output is multiplied by, times eta; a gradient that
    the optimizer normalises (Adam and kin, with a state per output) does not feel lambda"""
    steps_above: float
    """the same, summed over this output and all above it"""
    decay: float
    """weight decay that the segment sees in one training step, in multiples of eta * weight_decay"""


@dataclass(frozen=True)
class Plan:
    """What `plan` found out."""

    outputs: list[PlannedOutput]
    train: int
    val: int
    test: int
    seconds_per_epoch: float
    """its steps and its validation, measured on random images (`time_steps`)"""
    seconds: float
    """the whole training, with the evaluation at its end"""
    measured_steps: int
    warnings: list[str]
    notes: list[str]
    """how the outputs' weights and steps change after the first epoch; what the time leaves out"""


def plan(recipe: Recipe) -> Plan:
    """Work out a recipe without training by it. Raises what `fit` would raise for the same recipe."""
    check_recipe(recipe)
    with threads_set(recipe.threads), random_kept(device_of(recipe)):
        dataset = load_data(recipe)
        check_data(recipe, dataset)
        outputs = planned_outputs(recipe, dataset)
        depths = [output.depth for output in outputs]
        trained, evaluated, steps = time_steps(recipe, dataset)
        seconds = seconds_left(recipe, dataset, TrainingState(), trained, evaluated)
        return Plan(
            outputs=outputs,
            train=len(dataset.train),
            val=len(dataset.val),
            test=len(dataset.test),
            seconds_per_epoch=trained * len(dataset.train) + evaluated * judged_images(recipe, dataset),
            seconds=seconds,
            measured_steps=steps,
            warnings=[
                *warnings_of(recipe, depths, dataset.image_size),
                *few_steps(recipe, len(dataset.train)),
                *optimizer_doubts(recipe, depths),
                *data_doubts(recipe, dataset),
                *precision_doubts(recipe),
            ],
            notes=[*notes_of(recipe, depths), *speed_notes(recipe, seconds), *time_notes(recipe, dataset)],
        )


def planned_outputs(recipe: Recipe, dataset: DataSet) -> list[PlannedOutput]:
    """Depth, weight, cost and effective multipliers of each output under the recipe's method."""
    net = net_of(replace(recipe, pretrained=None), dataset)
    lambdas = lambdas_at(recipe, net.depths)
    c = step_scales(lambdas, step_scale_of(recipe)) if recipe.freeze == "none" else [0.0] * net.outputs
    felt = [float(w > 0) for w in lambdas] if ignores_weights(recipe) else lambdas
    rows = []
    for k, (depth, (params, macs)) in enumerate(
        zip(net.depths, costs(net, (dataset.channels, *dataset.image_size)), strict=True)
    ):
        own = c[k] * felt[k]
        if recipe.method == "joint":  # one update: segment k at its own scale
            above, decay = c[k] * sum(lambdas[k:]), c[k]
        else:  # an update per output k and above, but for discarded ones
            counted = [(a, w) for a, w in zip(c[k:], felt[k:], strict=True) if w > 0]
            above, decay = sum(a * w for a, w in counted), sum(a for a, _ in counted)
        rows.append(PlannedOutput(k + 1, depth, lambdas[k], params, macs, own, above, decay))
    return rows


def time_steps(recipe: Recipe, dataset: DataSet) -> tuple[float, float, int]:
    """Seconds an image takes in a training step and in an evaluation, and of how many steps the first is the median.

    Measured on random images. The first step is not counted, unless it took too long for another.
    """
    device = device_of(recipe)
    net, method = build(recipe, dataset, device)
    check_last_batch(recipe, dataset, net)
    net.train()
    images = torch.randn(recipe.batch_size, dataset.channels, *dataset.image_size, device=device)
    images = images.to(precision_of(recipe), memory_format=torch.channels_last)
    labels = torch.randint(dataset.num_classes, (recipe.batch_size,), device=device)
    first = WARM_UP + 1 if recipe.cuda_graph else 1  # steps in which things are done once
    times: list[float] = []
    while len(times) < first + MEASURED_STEPS and sum(times) < LONG:
        times.append(_seconds_of(lambda: method.step(images, labels).cpu()))
    steady = sorted(times[first:] or times[-1:])
    evaluated = _seconds_of(lambda: tally(net, [(images, labels)]))
    return steady[len(steady) // 2] / recipe.batch_size, evaluated / recipe.batch_size, len(steady)


def _seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def few_steps(recipe: Recipe, images: int) -> list[str]:
    """A warning where an epoch has hardly any steps, as with few images in large batches."""
    steps = steps_per_epoch(images, recipe.batch_size)
    if steps >= FEW_STEPS or recipe.batch_size <= SMALL_BATCH:
        return []
    smaller = max(SMALL_BATCH, images // (2 * FEW_STEPS))
    more = steps_per_epoch(images, smaller)
    if more == steps:
        return []
    said = f"an epoch has {plural(steps, 'step')} of {recipe.batch_size} images"
    return [f"{said}: with --batch-size {smaller} it has {more}, and wants a smaller --lr"]


def data_doubts(recipe: Recipe, dataset: DataSet) -> list[str]:
    """Warnings of what is asked for and changes nothing with these data, and of classes of very different sizes."""
    doubts, sizes = [], dataset.train.labels.bincount(minlength=dataset.num_classes).tolist()
    if dataset.brings_val and recipe.val_fraction != Recipe.val_fraction:
        given = f"val_fraction={recipe.val_fraction:g} (--val-fraction)"
        doubts.append(f"{given} has no effect: {dataset.name} brings validation images of its own")
    if recipe.class_weights == "none" and max(sizes) >= VERY_UNEVEN * min(sizes):
        apart = f"classes have {min(sizes):,} to {max(sizes):,} training images"
        doubts.append(f"{apart}: with --class-weights balanced each counts alike; evaluate shows the balanced error")
    return doubts


def precision_doubts(recipe: Recipe) -> list[str]:
    """A warning of bfloat16 on a CPU that has no units for it."""
    if recipe.precision == "float32" or device_of(recipe).type != "cpu" or bfloat16_pays() is not False:
        return []
    return ["this CPU has no units for bfloat16, which is slower on it than float32: leave --precision out"]


def speed_notes(recipe: Recipe, seconds: float) -> list[str]:
    """What should make steps faster, and the recipe may have: bfloat16, and compiling if it trains for so long."""
    notes = []
    if device_of(recipe).type == "cpu" and bfloat16_pays() and _may_gain(recipe, precision="bfloat16"):
        notes.append("this CPU has units for bfloat16 (AMX): with --precision bfloat16 a step should take less time")
    if seconds > COMPILING_PAYS and _may_gain(recipe, compile=True):
        notes.append("with --compile, which takes a minute at the start, a step should take less time")
    return notes


def _may_gain(recipe: Recipe, **fields: Any) -> bool:
    """Whether a recipe has these fields otherwise, and may have them so."""
    try:
        return replace(recipe, **fields) != recipe
    except ValueError:
        return False


def time_notes(recipe: Recipe, dataset: DataSet) -> list[str]:
    """What the time of some steps on random images leaves out, such as images that are decoded when needed."""
    notes = []
    if dataset.augmentation is not None or isinstance(dataset.train, OnDisk):
        notes.append("the time of decoding and augmenting the images is not counted")
    if recipe.compile:
        notes.append("the time of compiling, once in a training, is not counted")
    return notes


def ignores_weights(recipe: Recipe) -> bool:
    """Whether the trunk hardly feels the loss weights: each output's own optimizer divides its gradient by its size."""
    if recipe.freeze == "trunk":
        return False
    own_state = recipe.method == "pairwise" or (recipe.method == "multiway" and recipe.mode != "fused")
    return own_state and recipe.state == "per_output" and recipe.optimizer != "SGD"  # all others normalise the gradient


def optimizer_doubts(recipe: Recipe, depths: Sequence[int]) -> list[str]:
    """Warnings where an optimizer gets SGD's step size, fields that it does not take, or loss weights it cannot feel.

    And where a warm-up leaves a cosine hardly any epochs to fall.
    """
    name, doubts = recipe.optimizer, []
    lambdas = {w for epoch in (1, recipe.epochs) for w in lambdas_at(recipe, depths, epoch) if w > 0}
    if name in OF_SMALL_STEPS and recipe.lr == Recipe.lr:
        doubts.append(
            f"--lr {recipe.lr:g} is the step size for SGD: {name} usually wants about {OF_SMALL_STEPS[name]} of it"
        )
    if name == "AdamW" and recipe.weight_decay == Recipe.weight_decay:
        doubts.append(f"--weight-decay {recipe.weight_decay:g} is SGD's: AdamW usually wants 0.01 to 0.05")
    doubts += [f"{field}={getattr(recipe, field)} has no effect: {name} has none" for field in without_effect(recipe)]
    if recipe.schedule == "cosine" and recipe.warmup > 0 and (left := recipe.epochs - recipe.warmup) < FEW_EPOCHS:
        spent = f"--warmup {recipe.warmup} of {recipe.epochs} epochs"
        doubts.append(f"{spent} leaves the cosine {plural(left, 'epoch')} to fall in: give a shorter warm-up")
    if recipe.discard_after is not None and recipe.discards_from is None and recipe.epochs > 1:
        after = f"--discard-after {recipe.discard_after:g} of {recipe.epochs} epochs"
        doubts.append(f"{after} is after the last: it never acts")
    if ignores_weights(recipe) and len(lambdas) > 1:
        doubts.append(
            f"{name} normalises gradients, and in {recipe.method} each output has one of its own: loss weights (gamma, "
            "weights, weight_schedule) hardly change what the trunk learns, unless they are 0; SGD, joint and fused "
            "multi-way feel them"
        )
    return doubts


def notes_of(recipe: Recipe, depths: Sequence[int]) -> list[str]:
    """How loss weights and steps change after the first epoch, which alone `planned_outputs` is of."""
    notes, auxiliary = [], weights_of(recipe, depths)[:-1]
    if recipe.freeze == "trunk":
        step = "lambda times the step" if recipe.method == "joint" else "the full step, whatever lambda"
        notes.append(f"freeze trunk: the trunk and the final output stay as they are; auxiliary heads take {step}")
    if recipe.weight_schedule == "linear" and any(auxiliary) and recipe.epochs > 1:
        notes.append(
            "lambda and the steps are those of the first epoch: weight_schedule linear lowers the auxiliary weights "
            f"evenly, to 1/{recipe.epochs} of themselves in the last"
        )
    if any(auxiliary) and (epoch := recipe.discards_from) is not None:
        notes.append(f"from epoch {epoch} on the auxiliary losses are discarded (discard_after)")
    if step_scale_of(recipe) == "adaptive" and auxiliary:
        notes.append(
            "the steps are those of step_scale cumulative: adaptive takes L_K / L_k in place of an output's scale "
            "wherever its loss L_k is more than twice the final one's, L_K"
        )
    return notes


def warnings_of(recipe: Recipe, depths: list[int], image_size: tuple[int, int]) -> list[str]:
    """What the paper advises against (section 3.1), very shallow outputs and too many of them; an ill-fitting form."""
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
            f"form cifar keeps maps of {W}x{H} pixels to the end of its first stage: consider form imagenet"
        )
    if recipe.form == "imagenet" and max(H, W) < 64:
        left = f"{math.ceil(W / 32)}x{math.ceil(H / 32)}"
        warnings.append(f"form imagenet leaves {left} pixels of {W}x{H} images: consider form cifar")
    return warnings
