"""The one forward of multi-way, and the checks that its features stay as they are and that live sees updated weights.

Live lets parameters change between two backwards of one forward. But autograd keeps the old values of tensors that the
forward computed from parameters (`weight * 0.5`, weight norm): layers that use such tensors as weights would silently
be frozen. They are found in the autograd graph, and refused.

Shapes: N images; K outputs; x_k is the feature after segment S_k, which head H_k reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from auxnet.network import AuxNet

FACTORS = {  # what convolutions, matrix products and norms multiply, by autograd's names
    "ConvolutionBackward0": ("weight",),
    "AddmmBackward0": ("mat1", "mat2"),
    "MmBackward0": ("self", "mat2"),
    "BmmBackward0": ("self", "mat2"),
    "BaddbmmBackward0": ("batch1", "batch2"),
    "MvBackward0": ("self", "vec"),
    "AddmvBackward0": ("mat", "vec"),
    "NativeBatchNormBackward0": ("weight",),  # InstanceNorm is one with a repeated weight
    "CudnnBatchNormBackward0": ("weight",),
    "MiopenBatchNormBackward0": ("weight",),
    "NativeLayerNormBackward0": ("weight",),
    "NativeGroupNormBackward0": ("weight",),
    "FusedRmsNormBackward0": ("weight",),  # on a GPU; on a CPU it is an elementwise product
}


def kept_features(net: AuxNet, live: bool) -> Callable[[Tensor], Iterator[Tensor]]:
    """The one forward of multi-way: images -> x_1..x_K, each computed on demand and checked to stay as it was.

    With `live`, backwards through these features must see weights that were updated after the forward. Two causes of
    old weights are refused: autocast, with RuntimeError; and, during the first step, convolutions, matrix products and
    norms whose weights are computed from parameters (`weight * 0.5`, weight norm), with ValueError. Other uses of
    computed weights, as in `x * (1 + weight)` and in RMSNorm on a CPU, are not checked.
    """
    checked = not live

    def features_of(images: Tensor) -> Iterator[Tensor]:
        nonlocal checked
        if live and torch.is_autocast_enabled(next(net.parameters()).device.type):
            raise RuntimeError(
                "autocast keeps casts of old weights: live would be frozen; use auxnet.precision.to_bfloat16"
            )
        if not checked:
            _check_uncompiled(net)
        seen: set[Node] = set()
        if not checked and images.is_floating_point():
            # The graph of whatever is computed from features then leads to these images, and not to weights alone.
            images = images.detach().requires_grad_().clone()
        features = net.features(images)
        for x in _unchanged(_not_recomputed(features) if live else features):
            if not checked:
                check_weights(net, nodes_below(x.grad_fn, seen), len(images))
            yield x
        checked = True

    return features_of


def _check_uncompiled(net: AuxNet) -> None:
    """Raise ValueError for compiled segments whose weights change between two backwards of one forward."""
    trained = net.outputs > 1 and any(p.requires_grad for p in net.segments.parameters())
    if trained and any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in net.segments.modules()):
        mend = "compiled(method, images) of auxnet.compiling compiles segments in which live stays live"
        raise ValueError(f"compiled segments may recompute features with new weights: {mend}")


def _not_recomputed(features: Iterable[Tensor]) -> Iterator[Tensor]:
    """The features. Raises RuntimeError under saved-tensor hooks (activation checkpointing, save_on_cpu)."""
    rest = iter(features)
    while True:
        with torch.autograd.graph.disable_saved_tensors_hooks(
            "activation checkpointing recomputes features with new weights, save_on_cpu keeps old weights: live would "
            "be neither live nor frozen; use mode='fused' there"
        ):
            x = next(rest, None)
        if x is None:
            return
        yield x


def _unchanged(features: Iterable[Tensor]) -> Iterator[Tensor]:
    """The features, each checked for changes in place when the next one has been computed from it.

    By then a head has read it. Raises RuntimeError if a segment begins by changing its input in place.
    """
    last: tuple[Tensor, int] | None = None
    for k, x in enumerate(features, start=1):
        if last is not None and last[0]._version != last[1]:
            raise RuntimeError(
                f"segment {k} changes its input in place, which head {k - 1} has read: inplace=False there"
            )
        last = x, x._version
        yield x


def check_weights(net: nn.Module, nodes: Iterable[Any], images: int) -> None:
    """Raise ValueError if a product among the nodes of a graph has a factor computed from parameters and constants.

    Views of a parameter are allowed: they share its storage and change with it. A factor that requires no gradient
    counts as a feature, not as a constant, if it has two dimensions or more, the first a multiple of the number of
    images.
    """
    names = {id(p): name for name, p in net.named_parameters()}
    storages = {tensor.untyped_storage().data_ptr() for tensor in chain(net.parameters(), net.buffers())}

    def is_own(tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in storages

    def parameters_of(factor: Tensor) -> list[str]:
        """The names of the parameters that a factor is computed from; [] if it is computed from features too."""
        found = []
        for node in nodes_below(factor.grad_fn, set()):
            if hasattr(node, "variable"):
                if id(node.variable) not in names:
                    return []
                found.append(names[id(node.variable)])
            elif any(not (f.requires_grad or is_own(f) or f.ndim < 2 or len(f) % images) for f in _factors(node)):
                return []  # a product with a feature that was made without gradients
        return found

    for factor in chain.from_iterable(map(_factors, nodes)):
        if factor.requires_grad and not is_own(factor) and (names_of := parameters_of(factor)):
            raise ValueError(
                "mode='live' needs layers that take their weights as they are, and one takes what is computed from "
                f"{names_of[0]!r}, as weight norm does: use mode='frozen' or 'fused'"
            )


def _factors(node: Any) -> list[Tensor]:
    """The factors that a product in an autograd graph has saved; [] for any other node."""
    kept = (getattr(node, f"_saved_{name}") for name in FACTORS.get(node.name(), ()))
    return [factor for factor in kept if factor is not None]


def nodes_below(last: Node | None, seen: set[Node]) -> Iterator[Any]:
    """The nodes of an autograd graph, `last` and below, that are not in `seen`; each is added to it."""
    unvisited = [last]
    while unvisited:
        node = unvisited.pop()
        if node is not None and node not in seen:
            seen.add(node)
            unvisited += [before for before, _ in node.next_functions]
            yield node
