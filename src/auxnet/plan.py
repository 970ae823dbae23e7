"""What a training by a recipe will be like, found out beforehand: outputs, weights, effective steps, cost, time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auxnet import advice
from auxnet.build import build, dtype_of, in_graphs, net_of, step_scale_of
from auxnet.capturing import WARM_UP, can_be_graphs
from auxnet.cost import costs
from auxnet.data import DataSet, load_data
from auxnet.evaluation import tally
from auxnet.feasible import check_enough_images, check_last_batch, check_memory, check_recipe
from auxnet.machine import device_of, fast_convolutions, random_kept, threads_set
from auxnet.method import Method
from auxnet.precision import usual_defaults
from auxnet.progress import judged_images, seconds_left
from auxnet.recipe import Recipe
from auxnet.resuming import TrainingState
from auxnet.schedules import lambdas_at
from auxnet.steps import step_scales

MEASURED_STEPS = 4
LONG = 10.0  # seconds; once the measured steps have taken so long, no other step is measured
FEW_IMAGES = 8  # of a batch: measured in its place if the whole batch would take longer than LONG


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
    """how far this output moves the segment that ends in it along the gradient of its own loss, in multiples of eta:
    loss weight times step scaling; a weight above 0 counts as 1 if the optimizer normalises gradients (Adam and kin,
    with a state per output)"""
    steps_above: float
    """the same, summed over the losses of this output and of all outputs above it"""
    decay: float
    """the segment's weight decay in one training step, in multiples of eta * weight_decay"""


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
    """training steps, of which the median is the time of a step"""
    measured_images: int
    """in each measured step"""
    step_bytes: int | None
    """memory that a step keeps for its backwards (`cost.step_bytes`); None if that is unknown"""
    warnings: list[str]
    notes: list[str]
    """how the outputs' weights and steps change after the first epoch; what the time leaves out"""


@usual_defaults()
def plan(recipe: Recipe) -> Plan:
    """Find out what a training by a recipe will be like. Raises what `fit` would raise for the same recipe."""
    check_recipe(recipe)
    device = device_of(recipe.device)
    with threads_set(recipe.threads), random_kept(device), fast_convolutions(device):
        dataset = load_data(recipe)
        check_enough_images(recipe, dataset)
        outputs = planned_outputs(recipe, dataset)
        depths = [output.depth for output in outputs]
        net, method = build(recipe, dataset, device)
        check_last_batch(recipe, dataset, net)
        kept = check_memory(recipe, dataset, net)
        trained, evaluated, steps, images = time_steps(recipe, dataset, method)
        seconds = seconds_left(recipe, dataset, TrainingState(), trained, evaluated)
        return Plan(
            outputs=outputs,
            train=len(dataset.train),
            val=len(dataset.val),
            test=len(dataset.test),
            seconds_per_epoch=trained * len(dataset.train) + evaluated * judged_images(recipe, dataset),
            seconds=seconds,
            measured_steps=steps,
            measured_images=images,
            step_bytes=kept,
            warnings=[
                *advice.warnings_of(recipe, depths, dataset.image_size),
                *advice.few_steps(recipe, len(dataset.train)),
                *advice.doubts_of(recipe, depths, dataset),
            ],
            notes=[
                *advice.notes_of(recipe, depths),
                *advice.speed_notes(recipe, seconds),
                *advice.time_notes(recipe, dataset, seconds),
            ],
        )


def planned_outputs(recipe: Recipe, dataset: DataSet) -> list[PlannedOutput]:
    """Depth, weight, cost and effective multipliers of each output under the recipe's method."""
    net = net_of(replace(recipe, pretrained=None), dataset)
    lambdas = lambdas_at(recipe, net.depths)
    c = step_scales(lambdas, step_scale_of(recipe)) if recipe.freeze == "none" else [0.0] * net.outputs
    felt = [float(w > 0) for w in lambdas] if advice.ignores_weights(recipe) else lambdas
    rows = []
    for k, (depth, (params, macs)) in enumerate(
        zip(net.depths, costs(net, (dataset.channels, *dataset.image_size)), strict=True)
    ):
        own = c[k] * felt[k]
        if recipe.method == "joint":  # one update of segment k, at its own scale
            above, decay = c[k] * sum(lambdas[k:]), c[k]
        else:  # an update for output k and for each above it, but for discarded ones
            counted = [(a, w) for a, w in zip(c[k:], felt[k:], strict=True) if w > 0]
            above, decay = sum(a * w for a, w in counted), sum(a for a, _ in counted)
        rows.append(PlannedOutput(k + 1, depth, lambdas[k], params, macs, own, above, decay))
    return rows


def time_steps(recipe: Recipe, dataset: DataSet, method: Method) -> tuple[float, float, int, int]:
    """Seconds per image in a training step and in evaluation; how many steps were measured, on how many images each.

    The time of a training step is the median over steps on random images, whole batches of them unless these take too
    long. The first step is not counted, unless it took so long that no other is measured.
    """
    method.net.train()
    images, labels = _random_batch(recipe, dataset, min(recipe.batch_size, len(dataset.train)))
    few = images[:FEW_IMAGES], labels[:FEW_IMAGES]
    graphs = in_graphs(recipe, images.device) and can_be_graphs(method)
    if len(images) > FEW_IMAGES and not (graphs or recipe.compile):  # both are made for whole batches
        method.step(*few)
        if _seconds_of(lambda: method.step(*few).cpu()) * len(images) / FEW_IMAGES > LONG:
            images, labels = few
    first = WARM_UP + 1 if graphs else 1  # steps not counted, in which things are done once
    times: list[float] = []
    while len(times) < first + MEASURED_STEPS and sum(times) < LONG:
        times.append(_seconds_of(lambda: method.step(images, labels).cpu()))
    steady = sorted(times[first:] or times[-1:])
    evaluated = _seconds_of(lambda: tally(method.net, [(images, labels)]))
    return steady[len(steady) // 2] / len(images), evaluated / len(images), len(steady), len(images)


def _random_batch(recipe: Recipe, dataset: DataSet, size: int) -> tuple[Tensor, Tensor]:
    """Random images [size, C, H, W], as a training step of this recipe gets them, and labels."""
    device = device_of(recipe.device)
    images = torch.randn(size, dataset.channels, *dataset.image_size, device=device)
    labels = torch.randint(dataset.num_classes, (size,), device=device)
    return images.to(dtype_of(recipe), memory_format=torch.channels_last), labels


def _seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
