"""How supervision reaches the layers: its share in the gradient of each, and how the gradients of outputs agree.

With identity skips dL/dx_l = dL/dx_L (1 + d/dx_l sum F): the first term is supervision that arrives unchanged, the
second what the layers in between turn it into (paper, eq:gradient_resnet). The share of the first in the whole is

    multi-way, pair-wise, for output k and l <= l_k      ||dL_k/dx_{l_k}|| / ||dL_k/dx_l||
    joint          ||sum_{k: l_k >= l} lambda_k dL_k/dx_{l_k}|| / ||sum_{k: l_k >= l} lambda_k dL_k/dx_l||

With one output, both are the paper's share for ResNet, ||dL/dx_L|| / ||dL/dx_l||. Norms are taken per image, over
channels and positions, and averaged over the images; the share is a ratio of these means. Features and weights are
those the net has now (as in frozen multi-way, for pair-wise too); BatchNorm normalises by the batch, as in training.
In joint's numerator, gradients of different shapes (of different stages) cannot be added: gradients of one shape are
added, and the norms of these sums are combined as of orthogonal vectors, by the root of the sum of their squares.

Shapes: N images, K outputs, x_l the feature [N, ...] after layer l; output k sits at layer l_k, after segment k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxnet.backbones.dryrun import features
from auxnet.batches import Batches
from auxnet.errors import check_choice
from auxnet.gradients import Distillation, Loss, losses_of, parameters
from auxnet.machine import random_kept
from auxnet.method import Weights, check_loss, checked_weights
from auxnet.modules import in_mode, leaves, statistics_kept
from auxnet.network import AuxNet, check_forward, check_net, check_tensors, fitting, logits_of
from auxnet.sections import MethodName

ALL = 0  # in place of the number of one output or segment


@dataclass(frozen=True)
class Layer:
    """A layer of the trunk whose feature can be seen."""

    layer: int
    """layers with weights on the longest path from the images: stem = 1, block b ends at 2b + 1"""
    segment: int
    """1..K; the last layer of segment k is where output k sits"""
    module: nn.Module
    """from the feature of the layer before to this one's"""


@dataclass(frozen=True)
class Share:
    """How much of the gradient that arrives at a layer is supervision that arrived unchanged."""

    output: int | None
    """whose loss; None: those of all outputs together (joint)"""
    layer: int
    share: float | None
    """None where no gradient arrives"""
    supervision: float
    """mean over the images of the norm of the gradient (of the sum of their losses) that would arrive unchanged"""
    gradient: float
    """mean over the images of the norm of the gradient that does arrive"""


@dataclass(frozen=True)
class GradientNorm:
    """||dL_k/dS_j||: the gradient of an output's loss (a mean over a batch) in the parameters of a segment."""

    output: int
    segment: int
    norm: float
    """mean over the batches"""


@dataclass(frozen=True)
class Agreement:
    """The cosine between the gradients of two outputs' losses in the parameters that both reach."""

    output: int
    other: int
    segment: int | None
    """None: all segments that both reach, as one vector"""
    cosine: float | None
    """mean over the batches; None where a gradient vanishes"""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` measured, shallow to deep."""

    ends: tuple[int, ...]
    """the layer that each output sits at"""
    shares: tuple[Share, ...]
    norms: tuple[GradientNorm, ...]
    agreements: tuple[Agreement, ...]
    images: int
    """how many it was measured on"""


def supervision(
    net: AuxNet,
    images: Tensor,
    labels: Tensor,
    method: MethodName = "multiway",
    weights: Weights | None = None,
    *,
    loss: Loss = F.cross_entropy,
    distill: Distillation | None = None,
) -> tuple[Share, ...]:
    """The share of supervision at every layer, for one batch of images [N, C, H, W] and labels [N].

    Under "multiway" and "pairwise" there is a share for each output and each layer below it, which `weights` do not
    influence; under "joint" one for each layer. `weights` are by default the paper's. `loss` is a mean over the batch;
    `distill`, if given, is the loss of auxiliary outputs, as in `multiway`. The net is measured in training mode and
    left as it was: its weights, its statistics, its mode. Raises what `diagnose` raises.
    """
    return diagnose(net, [(images, labels)], method, weights, loss=loss, distill=distill).shares


def diagnose(
    net: AuxNet,
    batches: Batches,
    method: MethodName = "multiway",
    weights: Weights | None = None,
    *,
    loss: Loss = F.cross_entropy,
    distill: Distillation | None = None,
) -> Diagnosis:
    """Measure, over batches, shares of supervision (as `supervision` does), and norms and cosines of gradients.

    One forward and K backwards a batch. Raises ValueError without images, or for impossible weights; RuntimeError where
    gradients are disabled.
    """
    check_net(net)
    check_choice("method", method, MethodName)
    check_forward(net)
    check_loss(loss, trains=False)
    if not torch.is_grad_enabled():
        raise RuntimeError("supervision is of gradients, which are disabled here: call it outside no_grad()")
    lambdas = checked_weights(net.loss_weights() if weights is None else weights, net.outputs)
    layers: list[Layer] = []
    sums, seen = Measured({}, {}, {}, {}), 0
    for images, labels in batches:
        check_tensors(images, labels, loss)
        net.check_images(images.shape)
        layers = layers or layers_of(net, images.shape[1:])
        with fitting(net, images), in_mode(net, True), statistics_kept([net]), random_kept(images.device):
            measured = _measure(net, layers, images, labels, lambdas if method == "joint" else None, loss, distill)
        for total, found in zip(sums, measured, strict=True):
            for key, value in found.items():
                total[key] = total.get(key, 0.0) + len(images) * value
        seen += len(images)
    if not seen:
        raise ValueError("there are no images to measure supervision on")
    return _diagnosis(sums, layers, seen)


def layers_of(net: AuxNet, image_shape: Sequence[int]) -> list[Layer]:
    """The layers of a trunk that can be seen without hooks or rewriting, for images of shape (C, H, W).

    A segment that is an nn.Sequential is a chain of modules, and the feature after each is a layer; modules without
    weight matrices (norms, activations) belong to the module before them. Of any other segment only the end is seen.
    """
    chains = [_links(segment) for segment in net.segments]
    try:
        found = features([link for chain in chains for link in chain], image_shape)
    except ValueError:  # a module changes its input in place: of such nets only the cuts are seen
        chains = [[segment] for segment in net.segments]
        found = features([segment for (segment,) in chains], image_shape)
    places = [(k, link) for k, chain in enumerate(chains, start=1) for link in chain]
    return [Layer(feature.depth, k, link) for feature, (k, link) in zip(found, places, strict=True)]


# ---- one batch -------------------------------------------------------------------------------------------------


Means = dict[tuple[int, ...], float]


class Measured(NamedTuple):
    """What is measured on a batch of images; or its sums over all of them."""

    supervision: Means
    """by output (or ALL) and index of a layer: the norm of the gradient at the layer where the output sits"""
    gradient: Means
    """by the same: the norm of the gradient that arrives at the layer"""
    norms: Means
    """by output and segment: the norm of the gradient in the segment's parameters"""
    cosines: Means
    """by output, deeper output, and segment (or ALL that they share): the cosine between these gradients"""


def _measure(
    net: AuxNet,
    layers: Sequence[Layer],
    images: Tensor,
    labels: Tensor,
    joint: list[float] | None,
    loss: Loss,
    distill: Distillation | None,
) -> Measured:
    """All that is measured on one batch; `joint` holds weights if the outputs' gradients are to be added by them."""
    x = images.detach().requires_grad_().clone()  # a frozen trunk has gradients too, and may write over its images
    features = [x := layer.module(x) for layer in layers]
    ends = [max(place for place, at in enumerate(layers) if at.segment == k) for k in range(1, net.outputs + 1)]
    segments = [parameters(segment) for segment in net.segments]
    measured = Measured({}, {}, {}, {})
    arriving: list[Tensor | None] = [None] * len(layers)  # the joint gradient of each layer
    supervisions: list[Tensor] = []
    trunks: list[list[Tensor]] = []  # of each output, its gradient in each parameter that it reaches

    logits = [logits_of(net.heads, k, features[end]) for k, end in enumerate(ends, start=1)]
    losses = losses_of(logits, labels, loss, distill)
    for k, (end, L) in enumerate(zip(ends, losses, strict=True), start=1):
        below = features[: end + 1]
        reached = [p for segment in segments[:k] for p in segment]
        found = torch.autograd.grad(L, [*below, *reached], retain_graph=True, materialize_grads=True)
        of_features, of_parameters = found[: end + 1], list(found[end + 1 :])
        trunks.append(of_parameters)
        if joint is None:
            supervision = mean_norm([of_features[end]])
            for place, gradient in enumerate(of_features):
                measured.gradient[k, place] = mean_norm([gradient])
                measured.supervision[k, place] = supervision
        else:
            weighted = [joint[k - 1] * gradient for gradient in of_features]
            arriving[: end + 1] = [g if a is None else a + g for a, g in zip(arriving, weighted, strict=False)]
            supervisions.append(weighted[end])
    if joint is not None:
        for place, (layer, whole) in enumerate(zip(layers, arriving, strict=True)):
            assert whole is not None
            measured.gradient[ALL, place] = mean_norm([whole])
            measured.supervision[ALL, place] = mean_norm(supervisions[layer.segment - 1 :])
    _note_agreements(measured, trunks, [len(segment) for segment in segments])
    return measured


def mean_norm(gradients: Sequence[Tensor]) -> float:
    """The mean over N images of the norm of a sum of gradients [N, ...] of a loss that is a mean over those images.

    N times such a gradient is that of the images' own losses. Gradients of one shape are added; the sums of different
    shapes count as orthogonal.
    """
    sums: dict[torch.Size, Tensor] = {}
    for gradient in gradients:
        sums[gradient.shape] = sums[gradient.shape] + gradient if gradient.shape in sums else gradient
    norms = [
        torch.linalg.vector_norm(_for_float64(total).flatten(1), dim=1, dtype=torch.float64) for total in sums.values()
    ]
    norms_N = torch.stack(norms).norm(dim=0)
    return float(norms_N.sum())  # times N, and divided by N for the mean


def _for_float64(gradient: Tensor) -> Tensor:
    """A tensor on a device that has float64: the squares of small gradients are 0 in float32."""
    return gradient.cpu() if gradient.device.type == "mps" else gradient


def _note_agreements(measured: Measured, trunks: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> None:
    """Note the norms of the outputs' gradients in each segment, and their cosines there and over all they share."""
    K = len(trunks)
    products = [torch.zeros(K, K, dtype=torch.float64) for _ in counts]  # in segment j: <dL_a/dS_j, dL_b/dS_j>
    start = 0
    for j, count in enumerate(counts):
        for p in range(start, start + count):
            V = torch.stack([_for_float64(trunk[p].detach()).flatten().double() for trunk in trunks[j:]])
            products[j][j:, j:] += (V @ V.T).cpu()
        start += count
    for j, product in enumerate(products, start=1):
        for a in range(j, K + 1):
            measured.norms[a, j] = float(product[a - 1, a - 1].sqrt())
    for a in range(1, K + 1):
        for b in range(a + 1, K + 1):
            shared = products[:a]
            for j, product in ((ALL, torch.stack(shared).sum(0)), *enumerate(shared, start=1)):
                scale = (product[a - 1, a - 1] * product[b - 1, b - 1]).sqrt()
                measured.cosines[a, b, j] = float(product[a - 1, b - 1] / scale)  # 0 / 0 is nan


# ---- put together --------------------------------------------------------------------------------------------------


def _diagnosis(sums: Measured, layers: Sequence[Layer], images: int) -> Diagnosis:
    supervision, gradient, norms, cosines = ({key: x / images for key, x in found.items()} for found in sums)
    shares = []
    for (k, place), whole in gradient.items():
        arrived = supervision[k, place]
        share = arrived / whole if 0 < whole < float("inf") else None
        shares.append(Share(None if k == ALL else k, layers[place].layer, share, arrived, whole))
    by_segment = tuple(GradientNorm(k, segment, norms[k, segment]) for k, segment in sorted(norms))
    agreements = tuple(
        Agreement(a, b, None if j == ALL else j, x if math.isfinite(x) else None) for (a, b, j), x in cosines.items()
    )
    ends = tuple({at.segment: at.layer for at in layers}.values())  # of each segment the last
    return Diagnosis(ends, tuple(shares), by_segment, agreements, images)


# ---- layers ----------------------------------------------------------------------------------------------------


def _links(module: nn.Module) -> list[nn.Module]:
    """An nn.Sequential as a chain: each module with weight matrices, and the modules without that follow it."""
    parts = list(leaves(module))
    begins = [i for i, part in enumerate(parts) if any(p.ndim > 1 for p in part.parameters())][1:]
    return [nn.Sequential(*parts[i:j]) for i, j in zip([0, *begins], [*begins, len(parts)], strict=True)]
