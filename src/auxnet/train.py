"""Training by recipe: `fit` makes a run directory out of a Recipe.

Everything random in epoch e follows from (seed, e), so a run that is resumed draws what it would have drawn.
The test set is read once, after the last epoch, and nothing is chosen on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from auxnet import __version__, batches, checkpoint, data, rundir
from auxnet.evaluation import evaluate, losses_and_errors
from auxnet.methods import StepScale, joint, multiway, pairwise
from auxnet.network import AuxNet
from auxnet.recipe import Recipe, nearest
from auxnet.residual import resnet
from auxnet.update import Method


@dataclass(frozen=True)
class Progress:
    """Where a training stands; given to `watch` after every step, and once more when an epoch is saved."""

    epoch: int
    epochs: int
    step: int
    steps: int
    """of this epoch"""
    images_per_second: float
    seconds_left: float
    val_errors: list[float]
    """of each output after the last epoch that is done; empty in the first"""
    done: bool = False
    """whether the epoch is validated and saved"""


@dataclass(frozen=True)
class Run:
    """A finished training: its folder, its net (of the last epoch) and what summary.json says."""

    folder: Path
    net: AuxNet
    summary: dict[str, Any]


def fit(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Run:
    """Train by `recipe` into the run directory `out`, and evaluate it.

    The same recipe gives the same weights, byte for byte, on a CPU with the same number of threads.

    Raises ValueError for a recipe that cannot be, FileExistsError if `out` holds something (a run is continued
    with `resume` or replaced with `overwrite`, anything else is never touched), RuntimeError if a loss stops
    being finite.
    """
    folder = Path(out)
    rundir.check(folder, recipe, resume, overwrite)
    device = device_of(recipe)
    with threads_of(recipe), torch.random.fork_rng(devices=[]):
        dataset = load_data(recipe)
        net, method = build(recipe, dataset, device)
        standing = rundir.resume(folder, net, method) if resume else rundir.Standing()
        standing = _epochs(recipe, dataset, net, method, folder, standing, watch)
        summary = _finish(recipe, dataset, net, folder, standing)
    return Run(folder, net.eval(), summary)


# ---- what a recipe describes -----------------------------------------------------------------------------------


def load_data(recipe: Recipe) -> data.DataSet:
    """The data set of a recipe, split for it."""
    return data.load(
        recipe.data,
        recipe.data_dir,
        image_size=recipe.image_size,
        val_fraction=recipe.val_fraction,
        seed=recipe.seed,
        augment=recipe.augment,
    )


def training_batches(
    recipe: Recipe, dataset: data.DataSet, device: torch.device, random: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of (images [N, C, H, W], labels [N]): shuffled, augmented, normalised."""
    return batches.batches(
        dataset.train,
        recipe.batch_size,
        dataset.mean,
        dataset.std,
        device=device,
        generator=random,
        pad=dataset.pad,
        flip=dataset.flip,
    )


def evaluation_batches(
    split: data.Split, dataset: data.DataSet, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A split once through as (images [N, C, H, W], labels [N]): in order, normalised, never augmented."""
    return batches.batches(split, 500, dataset.mean, dataset.std, device=device)


def network_options(recipe: Recipe, dataset: data.DataSet) -> dict[str, Any]:
    """The arguments of `resnet` for a recipe on a data set."""
    return {
        "depth": recipe.depth,
        "outputs": 3 if recipe.outputs is None and recipe.at is None else recipe.outputs,
        "at": recipe.at,
        "block": recipe.block,
        "width": recipe.width,
        "num_classes": dataset.num_classes,
        "in_channels": dataset.channels,
        "head": recipe.head,
    }


def build(recipe: Recipe, dataset: data.DataSet, device: torch.device) -> tuple[AuxNet, Method]:
    """The net of a recipe, its weights drawn from the seed, and the method that trains it."""
    torch.manual_seed(recipe.seed)
    net = to_device(resnet(**network_options(recipe, dataset)), device)
    return net, build_method(recipe, net)


def build_method(recipe: Recipe, net: AuxNet) -> Method:
    """The method of a recipe, bound to a net that is on its device."""
    weights = net.loss_weights(recipe.gamma, recipe.floor, recipe.relative_to)
    options: dict[str, Any] = {
        "step_scale": step_scale_of(recipe),
        "loss": partial(F.cross_entropy, label_smoothing=recipe.label_smoothing),
        "clip": recipe.clip,
    }
    if recipe.method == "multiway":
        return multiway(net, optimizer_of(recipe), weights, recipe.mode, **options)
    return {"joint": joint, "pairwise": pairwise}[recipe.method](net, optimizer_of(recipe), weights, **options)


def step_scale_of(recipe: Recipe) -> StepScale:
    """The rule that divides the trunk's step: the recipe's, or its method's own."""
    if recipe.step_scale != "default":
        return recipe.step_scale
    own: dict[str, StepScale] = {"joint": "sum", "pairwise": "none", "multiway": "cumulative"}
    return own[recipe.method]


def optimizer_of(recipe: Recipe) -> Callable[[Any], torch.optim.Optimizer]:
    """The optimizer that a recipe names, as a function of parameter groups; fused kernels where there are any."""
    known = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    if recipe.optimizer not in known:
        raise ValueError(f"torch.optim has no optimizer {recipe.optimizer!r}{nearest(recipe.optimizer, [*known])}")
    kind = known[recipe.optimizer]
    settings: dict[str, Any] = {
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "nesterov": recipe.nesterov and recipe.momentum > 0,
        "weight_decay": recipe.weight_decay,
        "fused": True,
    }
    accepted = signature(kind).parameters
    return partial(kind, **{name: value for name, value in settings.items() if name in accepted})


def lr_at(recipe: Recipe, epoch: int) -> float:
    """The step size in an epoch (1-based): multiplied by lr_decay at each milestone that lies behind."""
    passed = sum(epoch - 1 >= share * recipe.epochs - 1e-9 for share in recipe.milestones)
    return float(recipe.lr * recipe.lr_decay**passed)


# ---- the epochs ------------------------------------------------------------------------------------------------


def _epochs(
    recipe: Recipe,
    dataset: data.DataSet,
    net: AuxNet,
    method: Method,
    folder: Path,
    standing: rundir.Standing,
    watch: Callable[[Progress], None],
) -> rundir.Standing:
    device = next(net.parameters()).device
    steps = -(-len(dataset.train) // recipe.batch_size)
    val_errors: list[float] = []
    for epoch in range(standing.epoch + 1, recipe.epochs + 1):
        began = time.perf_counter()
        torch.manual_seed(_seed(recipe, epoch))
        random = torch.Generator().manual_seed(_seed(recipe, epoch))
        lr = lr_at(recipe, epoch)
        method.set_lr(lr)
        net.train()
        total, images = torch.zeros(net.outputs, dtype=torch.float64), 0
        for step, (x, labels) in enumerate(training_batches(recipe, dataset, device, random), start=1):
            losses = method.step(x, labels)
            _check_finite(losses.tolist(), net, f"in epoch {epoch}, step {step}")
            total += losses.cpu().double() * len(labels)
            images += len(labels)
            rate = images / (time.perf_counter() - began)
            left = ((recipe.epochs - epoch + 1) * len(dataset.train) - images) / rate
            watch(Progress(epoch, recipe.epochs, step, steps, rate, left, val_errors))
        trained = time.perf_counter() - began
        val_losses, val_errors, _ = losses_and_errors(net, evaluation_batches(dataset.val, dataset, device))
        _check_finite(val_losses, net, f"on the validation images after epoch {epoch}")
        seconds = time.perf_counter() - began
        standing = standing.after(epoch, val_errors, seconds)
        rows = [
            *_rows(net, epoch, "train", (total / images).tolist(), None, lr, trained),
            *_rows(net, epoch, "val", val_losses, val_errors, lr, seconds - trained),
        ]
        if epoch == 1:  # only now: what an older run left is not given up for one that cannot even begin
            rundir.begin(folder, recipe)
        rundir.save_epoch(folder, standing, rows, net, method)
        watch(Progress(epoch, recipe.epochs, steps, steps, images / trained, left, val_errors, done=True))
    return standing


def _seed(recipe: Recipe, epoch: int) -> int:
    return (recipe.seed * 1_000_003 + epoch) % 2**63


def _check_finite(losses: list[float], net: AuxNet, where: str) -> None:
    for k, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise RuntimeError(
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


def _finish(
    recipe: Recipe, dataset: data.DataSet, net: AuxNet, folder: Path, standing: rundir.Standing
) -> dict[str, Any]:
    """Save the net, read the test set for the first time, and write the summary."""
    device = next(net.parameters()).device
    config = {
        "model_type": "auxnet",
        "auxnet_version": __version__,
        "network": network_options(recipe, dataset),
        "classes": list(dataset.classes),
        "preprocessing": {"image_size": list(dataset.image_size), "mean": dataset.mean, "std": dataset.std},
    }
    checkpoint.save_weights(folder / "model.safetensors", net)
    checkpoint.write_json(folder / "config.json", config)
    images = {part: len(getattr(dataset, part)) for part in ("train", "val", "test")}
    summary = {
        "epochs": {"last": standing.epoch, "best": standing.best_epoch},
        **tables(folder, dataset, device),
        "method": f"multiway, {recipe.mode}" if recipe.method == "multiway" else recipe.method,
        "data": {"name": dataset.name, **images},
        "seed": recipe.seed,
        "wall_seconds": round(standing.seconds, 1),
        **rundir.provenance(device),
    }
    checkpoint.write_json(folder / "summary.json", summary)
    return summary


def tables(folder: Path, dataset: data.DataSet, device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """The tables of outputs of a run from the weights it saved: {"last": rows, "best": rows on validation}."""
    return {which: _table(checkpoint.load(folder, which), dataset, device) for which in ("last", "best")}


def _table(net: AuxNet, dataset: data.DataSet, device: torch.device) -> list[dict[str, Any]]:
    net = to_device(net, device)
    val = evaluate(net, evaluation_batches(dataset.val, dataset, device))
    test = evaluate(net, evaluation_batches(dataset.test, dataset, device))
    return [
        {
            "output": v.output,
            "depth": v.depth,
            "params": v.params,
            "macs": v.macs,
            "val_loss": v.loss,
            "val_error": v.error,
            "test_loss": t.loss,
            "test_error": t.error,
        }
        for v, t in zip(val, test, strict=True)
    ]


# ---- the machine -----------------------------------------------------------------------------------------------


def to_device(net: AuxNet, device: torch.device) -> AuxNet:
    """The net on its device in channels_last, the memory format that convolutions are fastest in."""
    return net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def device_of(recipe: Recipe) -> torch.device:
    """The device that a recipe names. Raises ValueError if it cannot be used here."""
    name = recipe.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try 'cpu'") from None
    return device


@contextmanager
def threads_of(recipe: Recipe) -> Iterator[None]:
    """Within, PyTorch uses the CPU threads that a recipe names."""
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
