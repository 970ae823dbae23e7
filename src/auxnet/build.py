"""What a recipe describes, made: its data, its batches, its net, its method, its step sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F

from auxnet import batches, data
from auxnet.backbones.described import cuts_of, net_from
from auxnet.distributed import Team, synchronise_norms
from auxnet.machine import to_device
from auxnet.methods import StepScale, joint, multiway, pairwise
from auxnet.network import AuxNet
from auxnet.recipe import Recipe, nearest
from auxnet.update import Average, Method, alone

PIXELS = 2**21  # evaluated at a time: 25 MB of float32 in three channels
Part = Callable[[int], slice]  # of the n images of a batch


def load_data(recipe: Recipe) -> data.DataSet:
    """The data set of a recipe, split for it."""
    return data.load(
        recipe.data,
        recipe.data_dir,
        image_size=recipe.image_size,
        val_fraction=recipe.val_fraction,
        train_images=recipe.train_images,
        seed=recipe.seed,
        augment=recipe.augment,
        stream=recipe.stream,
        workers=recipe.workers,
        max_corrupt=recipe.max_corrupt,
    )


def training_batches(
    recipe: Recipe, dataset: data.DataSet, device: torch.device, epoch: int, start: int = 0, part: Part = slice
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """An epoch (1-based) of (images [N, C, H, W], labels [N]), shuffled, augmented, normalised, from batch `start` on.

    What is random in it follows from the recipe's seed and the epoch. `part` says which of the n images of a batch
    are wanted (`Team.part`).
    """
    return batches.batches(
        dataset.train,
        recipe.batch_size,
        dataset.mean,
        dataset.std,
        device=device,
        seed=(recipe.seed, epoch),
        start=start,
        part=part,
        pad=dataset.pad,
        flip=dataset.flip,
        workers=dataset.workers,
    )


def evaluation_batches(
    split: batches.Labelled, dataset: data.DataSet, device: torch.device, part: Part = slice
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A split once through as (images [N, C, H, W], labels [N]): in order, normalised, never augmented."""
    H, W, _ = split.image_shape
    most = max(1, min(500, PIXELS // (H * W)))
    return batches.batches(split, most, dataset.mean, dataset.std, device=device, workers=dataset.workers, part=part)


def network_options(recipe: Recipe, dataset: data.DataSet) -> dict[str, Any]:
    """What describes the net of a recipe on a data set (`described.net_from`)."""
    if recipe.backbone is not None:
        fit = (dataset.num_classes, dataset.channels, dataset.image_size)
        cuts = 2 if recipe.cuts is None else recipe.cuts
        return {
            "backbone": recipe.backbone,
            "cuts": list(cuts_of(recipe.backbone, cuts, *fit) if isinstance(cuts, int) else cuts),
            "num_classes": dataset.num_classes,
            "in_channels": dataset.channels,
            "image_size": list(dataset.image_size),
        }
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


def net_of(recipe: Recipe, dataset: data.DataSet) -> AuxNet:
    """The net of a recipe, its weights random but for those that are pretrained."""
    net = net_from(network_options(recipe, dataset), recipe.pretrained)
    return net if recipe.alone is None else net.alone(recipe.alone)


def build(
    recipe: Recipe, dataset: data.DataSet, device: torch.device, team: Team | None = None
) -> tuple[AuxNet, Method]:
    """The net of a recipe, its weights drawn from the seed or pretrained, and the method that trains it."""
    torch.manual_seed(recipe.seed)
    net = to_device(net_of(recipe, dataset), device)
    if team is None or team.size == 1:
        return net, build_method(recipe, net)
    team.broadcast(net)
    if recipe.sync_batchnorm:
        synchronise_norms(net, team)
    return net, build_method(recipe, net, team.average)


def build_method(recipe: Recipe, net: AuxNet, average: Average = alone) -> Method:
    """The method of a recipe, bound to a net that is on its device."""
    weights = net.loss_weights(recipe.gamma, recipe.floor, recipe.relative_to)
    options: dict[str, Any] = {
        "step_scale": step_scale_of(recipe),
        "loss": partial(F.cross_entropy, label_smoothing=recipe.label_smoothing),
        "clip": recipe.clip,
        "average": average,
    }
    if recipe.method == "multiway":
        options |= {"mode": recipe.mode, "state": recipe.state, "order": recipe.order}
        return multiway(net, optimizer_of(recipe), weights, **options)
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
        "fused": recipe.state != "shared",  # fused kernels want a momentum of all parameters, or of none
    }
    accepted = signature(kind).parameters
    return partial(kind, **{name: value for name, value in settings.items() if name in accepted})


def lr_at(recipe: Recipe, epoch: int) -> float:
    """The step size in an epoch (1-based): multiplied by lr_decay at each milestone that lies behind."""
    passed = sum(epoch - 1 >= share * recipe.epochs - 1e-9 for share in recipe.milestones)
    return float(recipe.lr * recipe.lr_decay**passed)
