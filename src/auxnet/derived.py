"""Weights that are computed from parameters (`weight * 0.5`, weight norm), found in the autograd graph of a forward.

Live multi-way lets parameters change between two backwards of one forward. Autograd holds what was computed from them
as it was: there live would silently be frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

FACTORS = {  # of convolutions, matrix products and norms, by autograd's names for them
    "ConvolutionBackward0": ("weight",),
    "AddmmBackward0": ("mat1", "mat2"),
    "MmBackward0": ("self", "mat2"),
    "BmmBackward0": ("self", "mat2"),
    "BaddbmmBackward0": ("batch1", "batch2"),
    "NativeBatchNormBackward0": ("weight",),  # InstanceNorm is one with a repeated weight
    "CudnnBatchNormBackward0": ("weight",),
    "MiopenBatchNormBackward0": ("weight",),
}


def check_weights(net: nn.Module, nodes: Iterable[Any], images: int) -> None:
    """Raise ValueError if a product among the nodes of a graph has a factor computed from parameters and constants.

    Views of a parameter share its storage, and change with it. A factor without gradient is taken for a feature, and
    not for a constant, if its first dimension is a multiple of the number of images. What else computes with such a
    thing, as `x * (1 + weight)` does, is not looked at.
    """
    names = {id(p): name for name, p in net.named_parameters()}
    storages = {tensor.untyped_storage().data_ptr() for tensor in chain(net.parameters(), net.buffers())}

    def is_own(tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in storages

    def parameters_of(factor: Tensor) -> list[str]:
        """The names of the parameters that a factor is computed from; none if features are among what it is made of."""
        found = []
        for node in nodes_below(factor.grad_fn, set()):
            if hasattr(node, "variable"):
                if id(node.variable) not in names:
                    return []
                found.append(names[id(node.variable)])
            elif any(not (f.requires_grad or is_own(f) or len(f) % images) for f in _factors(node)):
                return []  # a product with a feature that was made without gradients
        return found

    for factor in chain.from_iterable(map(_factors, nodes)):
        if factor.requires_grad and not is_own(factor) and (names_of := parameters_of(factor)):
            raise ValueError(
                "mode='live' needs layers that take their weights as they are, and one takes what is computed from "
                f"{names_of[0]!r}, as weight norm does: use mode='frozen' or 'fused'"
            )


def _factors(node: Any) -> list[Tensor]:
    """What a product in an autograd graph multiplies, as far as it is kept; nothing of any other node."""
    kept = (getattr(node, f"_saved_{name}") for name in FACTORS.get(node.name(), ()))
    return [factor for factor in kept if factor is not None]


def nodes_below(last: Node | None, seen: set[Node]) -> Iterator[Any]:
    """The nodes of an autograd graph that are not in `seen`, each added to it."""
    unvisited = [last]
    while unvisited:
        node = unvisited.pop()
        if node is not None and node not in seen:
            seen.add(node)
            unvisited += [before for before, _ in node.next_functions]
            yield node
