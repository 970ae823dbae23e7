"""Build what a recipe describes: its data as training takes them, its batches, net, loss and method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import islice
from random import Random
from typing import Any

import torch
from torch import nn

from auxnet import batches, data
from auxnet.answers import Rebuilt
from auxnet.backbones.described import cuts_of, net_from
from auxnet.backbones.named import normalisation
from auxnet.backbones.pretrained import pretrained_net
from auxnet.backbones.weights import config_of, is_weights_of_run, run_of
from auxnet.batches import BatchPart
from auxnet.by_name import aggregator_of, optimizer_of
from auxnet.capturing import as_cuda_graph, can_be_graphs
from auxnet.distributed import Team
from auxnet.gradients import Distillation, Loss
from auxnet.losses import balanced, cross_entropy, distilled, square_hinge
from auxnet.machine import free_memory, random_kept, seed_random, to_device
from auxnet.method import Method
from auxnet.methods import joint, multiway, pairwise
from auxnet.mixing import mixed
from auxnet.network import AuxNet
from auxnet.precision import to_bfloat16
from auxnet.preprocessing import read_preprocessing
from auxnet.reading.splits import Labelled
from auxnet.recipe import Recipe
from auxnet.residual import MIN_SIZE, layout, resnet
from auxnet.schedules import lambdas_at
from auxnet.sections import MethodName, StepScale
from auxnet.synchronised import synchronise_norms
from auxnet.update import identity

PIXELS = 2**21  # in an evaluation batch: 25 MB of float32 in three channels
METHODS: dict[MethodName, Callable[..., Method]] = {"joint": joint, "pairwise": pairwise, "multiway": multiway}


def depths_of(recipe: Recipe) -> tuple[int, ...]:
    """The layers of a recipe's outputs, shallow to deep; for a backbone, which is not built here, 1, 2, ... instead.

    Raises ValueError for outputs that cannot be placed.
    """
    if recipe.backbone is not None:
        cuts = _asked_cuts(recipe)
        depths = tuple(range(1, 2 + (cuts if isinstance(cuts, int) else len(cuts))))
    else:
        depths = outline(recipe).depths
    return depths if recipe.alone is None else depths[recipe.alone - 1 : recipe.alone]


def outline(recipe: Recipe) -> AuxNet:
    """The built-in net of a recipe, for two classes of color images, on device "meta", where it takes no memory."""
    with torch.device("meta"):
        return resnet(**_resnet_options(recipe, num_classes=2, in_channels=3))


def _asked_cuts(recipe: Recipe) -> int | tuple[str, ...]:
    """How many cuts a recipe asks for in its backbone, or the modules after which it is cut."""
    return 2 if recipe.cuts is None else recipe.cuts


def normalised_for(recipe: Recipe, dataset: data.DataSet) -> data.DataSet:
    """The data set, normalised as the images on which pretrained weights were trained; unchanged if that is unknown.

    A run has their mean and deviation in its config.json; for a library's backbone the library has them, for color
    images.
    """
    if recipe.pretrained is None:
        return dataset
    if recipe.backbone is not None and not is_weights_of_run(recipe.pretrained):
        seen = normalisation(recipe.backbone)
    else:
        run = run_of(recipe.pretrained)
        config = config_of(run)
        if config.get("preprocessing") is None:
            return dataset
        theirs = read_preprocessing(config, run / "config.json")
        seen = theirs.mean, theirs.std
    if seen is None or len(seen[0]) != dataset.channels:
        return dataset
    return replace(dataset, mean=seen[0], std=seen[1])


def resident(dataset: data.DataSet, device: torch.device) -> data.DataSet:
    """The data set with its training and validation images in GPU memory, if they take less than half of what is free.

    Unchanged if PIL augments the images, since PIL works on the CPU.
    """
    train, val = dataset.train, dataset.val
    if dataset.augmentation is not None or not (isinstance(train, data.Split) and isinstance(val, data.Split)):
        return dataset
    if 2 * (train.nbytes + val.nbytes) > free_memory(device):
        return dataset
    return replace(dataset, train=train.on(device), val=val.on(device))


def training_batches(
    recipe: Recipe, dataset: data.DataSet, device: torch.device, epoch: int, start: int = 0, part: BatchPart = slice
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """An epoch (1-based) of (images [N, C, H, W], labels [N]), shuffled, augmented, normalised, from batch `start` on.

    Everything random in it follows from the recipe's seed and the epoch. `part` says which of the n images of a batch
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
        augmentation=dataset.augmentation,
        dtype=dtype_of(recipe),
    )


def first_batches(
    recipe: Recipe, dataset: data.DataSet, device: torch.device, epoch: int, images: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The first whole batches of an epoch, as training sees them: at most `images` images, but at least one batch.

    If the recipe mixes images, labels are class probabilities [N, classes]. (In a team, parts of a batch are mixed.)
    """
    whole = min(images, len(dataset.train)) // recipe.batch_size
    first = islice(training_batches(recipe, dataset, device, epoch), max(1, whole))
    for step, (x, labels) in enumerate(first, start=1):
        yield mixed_at(recipe, x, labels, dataset.num_classes, epoch, step)


def mixed_at(
    recipe: Recipe, images: torch.Tensor, labels: torch.Tensor, classes: int, epoch: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of a step (1-based) after mixup or cutmix, if the recipe asks for them; all processes draw the same."""
    if recipe.mixup == 0 and recipe.cutmix == 0:
        return images, labels
    drawn = Random(batches.seed_of(recipe.seed, epoch, step, 0, 0))
    return mixed(images, labels, classes, recipe.mixup, recipe.cutmix, drawn)


def evaluation_batches(
    split: Labelled,
    dataset: data.DataSet,
    device: torch.device,
    part: BatchPart = slice,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A split once through as (images [N, C, H, W], labels [N]): in order, normalised, never augmented."""
    split, (H, W) = split.center_crop(dataset.image_size), dataset.image_size
    most = max(1, min(500, PIXELS // (H * W)))
    workers = dataset.workers if isinstance(split, data.OnDisk) else 0
    options: dict[str, Any] = {"device": device, "workers": workers, "part": part, "dtype": dtype}
    return batches.batches(split, most, dataset.mean, dataset.std, **options)


def dtype_of(recipe: Recipe) -> torch.dtype:
    """The dtype of a training's images, and of what its net computes."""
    return torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32


def network_options(recipe: Recipe, dataset: data.DataSet) -> dict[str, Any]:
    """The options that describe a recipe's net on a data set, as `described.net_from` takes them."""
    return _whole_network(recipe, dataset) | ({} if recipe.alone is None else {"alone": recipe.alone})


def _whole_network(recipe: Recipe, dataset: data.DataSet) -> dict[str, Any]:
    if recipe.backbone is not None:
        fit = (dataset.num_classes, dataset.channels, dataset.image_size)
        cuts = _asked_cuts(recipe)
        return {
            "backbone": recipe.backbone,
            "cuts": list(cuts_of(recipe.backbone, cuts, *fit) if isinstance(cuts, int) else cuts),
            "num_classes": dataset.num_classes,
            "in_channels": dataset.channels,
            "image_size": list(dataset.image_size),
        }
    _check_size(recipe, dataset)
    return _resnet_options(recipe, dataset.num_classes, dataset.channels)


def _resnet_options(recipe: Recipe, num_classes: int, in_channels: int) -> dict[str, Any]:
    """The arguments of `residual.resnet`."""
    plan = layout(recipe.depth, recipe.form)
    outputs, at = recipe.outputs, recipe.at
    if recipe.placement == "blocks":
        outputs = plan.blocks
    elif recipe.placement == "stages":
        at = plan.stage_ends
    return {
        "depth": recipe.depth,
        "form": recipe.form,
        "outputs": 3 if outputs is None and at is None else outputs,
        "at": at,
        "block": recipe.block,
        "width": recipe.width,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "head": recipe.head,
    }


def net_of(recipe: Recipe, dataset: data.DataSet) -> AuxNet:
    """The net of a recipe; weights that are not pretrained are random."""
    options = network_options(recipe, dataset)
    if recipe.pretrained is None:
        return net_from(options)
    return pretrained_net(options, recipe.pretrained, dataset.classes)


def rebuilt(recipe: Recipe, dataset: data.DataSet) -> Rebuilt | None:
    """The net of a recipe with a backbone, built as loading builds it, for `answers`; None for a built-in net."""
    if recipe.backbone is None:
        return None
    cpu = torch.device("cpu")
    with random_kept(cpu), warnings.catch_warnings(action="ignore"):  # building the trained net warned already
        seed_random(recipe.seed + 1, cpu)
        net = net_of(replace(recipe, pretrained=None), dataset)
    return Rebuilt(net, (dataset.channels, *dataset.image_size))


def _check_size(recipe: Recipe, dataset: data.DataSet) -> None:
    """Raise ValueError for images that are too small for the form of the built-in ResNets."""
    least, (H, W) = MIN_SIZE[recipe.form], dataset.image_size
    if min(H, W) < least:
        mend = f"give --image-size {least} or more" + (", or --form cifar" if recipe.form == "imagenet" else "")
        raise ValueError(f"form {recipe.form} takes images of {least}x{least} pixels or more, got {W}x{H}: {mend}")


def build(
    recipe: Recipe, dataset: data.DataSet, device: torch.device, team: Team | None = None
) -> tuple[AuxNet, Method]:
    """The net of a recipe, its weights drawn from the seed or pretrained, and the method that trains it."""
    seed_random(recipe.seed, torch.device("cpu"))  # on which weights are drawn
    net = to_device(net_of(recipe, dataset), device)
    if recipe.freeze == "trunk":
        if recipe.pretrained is not None:  # None in a run that is resumed
            _check_frozen_is_pretrained(recipe, dataset, net)
        net.freeze_trunk()
    loss = loss_of(recipe, dataset, device)
    team = team or Team()
    if team.size > 1:
        team.broadcast(net)
        if recipe.sync_batchnorm:
            synchronise_norms(net, team)
    if dtype_of(recipe) == torch.bfloat16:
        to_bfloat16(net)
    graphs = in_graphs(recipe, device, team.size)
    method = build_method(recipe, net, loss, team, graphs)
    if recipe.compile:
        method = _compiled(method, recipe, dataset, device, team)
    return net, as_cuda_graph(method, device) if graphs and can_be_graphs(method) else method


def in_graphs(recipe: Recipe, device: torch.device, processes: int = 1) -> bool:
    """Whether the steps of a recipe are to be CUDA graphs: on CUDA, with one process, and nothing decided on the CPU.

    A backbone counts as deciding on the CPU: its Python code may do something else in every step, a graph would not.
    """
    decided_on_cpu = recipe.step_scale == "adaptive" or recipe.aggregator is not None or recipe.backbone is not None
    return recipe.cuda_graph and device.type == "cuda" and processes == 1 and not decided_on_cpu


def _compiled(method: Method, recipe: Recipe, dataset: data.DataSet, device: torch.device, team: Team) -> Method:
    """The method, compiled for batches as `training_batches` gives them.

    One process compiles after the other: PyTorch caches what it compiled, and one might load what another has half
    written.
    """
    from auxnet.compiling import compiled  # PyTorch's compiler takes a second to import

    whole = range(min(recipe.batch_size, len(dataset.train)))
    N, (H, W) = len(whole[team.part(len(whole))]), dataset.image_size
    black = torch.zeros(N, H, W, dataset.channels, dtype=torch.uint8, device=device)
    images = batches.normalise(black, dataset.mean, dataset.std).to(dtype_of(recipe))
    for rank in range(team.size):
        if rank == team.rank:
            method = compiled(method, images)
        team.wait()
    return method


def _check_frozen_is_pretrained(recipe: Recipe, dataset: data.DataSet, net: AuxNet) -> None:
    """Raise ValueError if any weights that are to be frozen were drawn at random.

    The net is built again from another seed: weights that differ were drawn.
    """
    seed_random(recipe.seed + 1, torch.device("cpu"))
    with warnings.catch_warnings(action="ignore"):  # the net itself has warned already
        other = to_device(net_of(recipe, dataset), next(net.parameters()).device)
    ours, theirs = (nn.ModuleList([each.segments, each.heads[-1]]).state_dict().values() for each in (net, other))
    if not all(map(torch.equal, ours, theirs)):
        no_answers = f"{recipe.pretrained} has no last layer for these classes"
        raise ValueError(f"freeze='trunk' keeps the final output as it is, and {no_answers}: leave --freeze out")


def build_method(recipe: Recipe, net: AuxNet, loss: Loss, team: Team | None = None, capturable: bool = False) -> Method:
    """The method of a recipe, bound to a net that is on its device. Raises ValueError for options it cannot have."""
    weights, team = lambdas_at(recipe, net.depths), team or Team()
    options: dict[str, Any] = {
        "step_scale": step_scale_of(recipe),
        "loss": loss,
        "clip": recipe.clip,
        "average": identity if team.size == 1 else team.average,
    }
    if recipe.distill > 0:
        options["distill"] = distillation_of(recipe, loss)
    if recipe.aggregator is not None:
        aggregate = aggregator_of(recipe.aggregator)
        options["aggregate"] = lambda rows: team.tensor_from_leader(aggregate(rows))  # some draw random numbers
    if recipe.method == "multiway":
        options |= {"mode": recipe.mode, "state": recipe.state, "order": recipe.order}
    return METHODS[recipe.method](net, optimizer_of(recipe, capturable), weights, **options)


def loss_of(recipe: Recipe, dataset: data.DataSet, device: torch.device) -> Loss:
    """The loss of a recipe at one output; class weights are counted on the training images."""
    weights = None
    if recipe.class_weights == "balanced":
        weights = balanced(dataset.train.labels, dataset.num_classes).to(device)
    if recipe.loss == "square_hinge":
        return partial(square_hinge, class_weights=weights)
    return partial(cross_entropy, smoothing=recipe.label_smoothing, class_weights=weights)


def distillation_of(recipe: Recipe, loss: Loss) -> Distillation | None:
    """What auxiliary outputs minimise in place of the loss if they learn from the final output; None if they do not."""
    if recipe.distill == 0:
        return None
    return partial(distilled, loss=loss, share=recipe.distill, temperature=recipe.temperature)


def step_scale_of(recipe: Recipe) -> StepScale:
    """The rule that divides the trunk's step: the recipe's, or the default of its method."""
    if recipe.step_scale != "default":
        return recipe.step_scale
    own: StepScale = signature(METHODS[recipe.method]).parameters["step_scale"].default
    return own
