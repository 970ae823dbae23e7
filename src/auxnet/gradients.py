"""The gradients that the methods are made of: of the losses in the heads, and from where they enter the trunk on down.

And the checks that they are what a method takes them for: features that nothing changes, weights that live can see.

Shapes: N images; K outputs; x_k is the feature after segment S_k, which head H_k reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from auxnet.network import AuxNet, logits_of
from auxnet.update import Average, Gradients

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [N, classes], labels [N] -> scalar
Distillation = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, labels, the final output's logits -> scalar
Aggregator = Callable[[Tensor], Tensor]  # gradients of K outputs [K, parameters] -> one [parameters]


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are to be trained."""
    return [p for p in module.parameters() if p.requires_grad]


def losses_of(
    logits: Sequence[Tensor], labels: Tensor, loss: Loss, distill: Distillation | None = None
) -> list[Tensor]:
    """L_k of each output. With `distill`, the final output, detached, teaches the auxiliary ones."""
    if distill is None:
        return [_checked(loss(z, labels), z) for z in logits]
    *auxiliary, final = logits
    teacher = final.detach()
    return [*(_checked(distill(z, labels, teacher), z) for z in auxiliary), _checked(loss(final, labels), final)]


def _checked(L: Tensor, logits: Tensor) -> Tensor:
    """A loss. Raises ValueError unless it is one number, and can be differentiated where its logits can be."""
    if L.ndim != 0:
        raise ValueError(f"loss must give one number, such as the mean over the images, got the shape {list(L.shape)}")
    if logits.requires_grad and not L.requires_grad:
        raise ValueError("loss must depend on the logits in a way that autograd sees, and does not: is one detached?")
    return L


def unchanged(features: Iterable[Tensor]) -> Iterator[Tensor]:
    """The features, each checked once the next is made: a head would else read it before a segment writes over it.

    Raises RuntimeError for a segment that begins by changing its input in place.
    """
    last: tuple[Tensor, int] | None = None
    for k, x in enumerate(features, start=1):
        if last is not None and last[0]._version != last[1]:
            raise RuntimeError(
                f"segment {k} changes its input in place, which head {k - 1} has read: inplace=False there"
            )
        last = x, x._version
        yield x


def live(net: AuxNet) -> Callable[[Tensor], Iterator[Tensor]]:
    """The features of images, `unchanged`, for backwards that are to see weights as the updates before them left these.

    It refuses what would show them old weights: casts by autocast with RuntimeError, and with ValueError, before the
    first step is over, convolutions and matrix products by something made of weights alone (`weight * 0.5`, weight
    norm). What else computes with such a thing, as `x * (1 + weight)` does, is not looked at.
    """
    checked = False

    def features_of(images: Tensor) -> Iterator[Tensor]:
        nonlocal checked
        if torch.is_autocast_enabled(next(net.parameters()).device.type):
            raise RuntimeError(
                "autocast keeps casts of old weights: live would be frozen; use auxnet.precision.to_bfloat16"
            )
        seen: set[Node] = set()
        if not checked and images.is_floating_point():
            # What is made of features then leads back to these images, and not to weights alone.
            images = images.detach().requires_grad_().clone()
        for x in unchanged(net.features(images)):
            if not checked:
                _check_weights(net, _nodes(x.grad_fn, seen))
            yield x
        checked = True

    return features_of


PRODUCTS = {
    "ConvolutionBackward0": "_saved_weight",
    **dict.fromkeys(("AddmmBackward0", "MmBackward0", "BmmBackward0"), "_saved_mat2"),
}


def _check_weights(net: nn.Module, nodes: Iterable[Any]) -> None:
    """Raise ValueError if convolutions and matrix products in a graph hold what is computed from parameters alone."""
    names = {id(p): name for name, p in net.named_parameters()}
    storages = {p.untyped_storage().data_ptr() for p in net.parameters()}
    for node in nodes:
        weight = getattr(node, PRODUCTS[node.name()]) if node.name() in PRODUCTS else None
        if weight is not None and weight.requires_grad and weight.untyped_storage().data_ptr() not in storages:
            leaves = [below.variable for below in _nodes(weight.grad_fn, set()) if hasattr(below, "variable")]
            if leaves and all(id(leaf) in names for leaf in leaves):
                raise ValueError(
                    "mode='live' needs layers that take their weights as they are, and one takes what is computed from "
                    f"{names[id(leaves[0])]!r}, as weight norm does: use mode='frozen' or 'fused'"
                )


def _nodes(last: Node | None, seen: set[Node]) -> Iterator[Any]:
    """The nodes of an autograd graph that are not in `seen`, each added to it."""
    unvisited = [last]
    while unvisited:
        node = unvisited.pop()
        if node is not None and node not in seen:
            seen.add(node)
            unvisited += [before for before, _ in node.next_functions]
            yield node


class Supervised(NamedTuple):
    """The loss at head k = 0..K-1, and its gradients."""

    k: int
    feature: Tensor
    """x_k"""
    loss: Tensor
    """L_k"""
    supervision: Tensor
    """dL_k/dx_k"""
    head: Gradients
    """of the head's own parameters"""


def supervise(
    heads: Sequence[nn.Module] | nn.ModuleList,
    numbered: Iterable[tuple[int, Tensor]],
    labels: Tensor,
    loss: Loss,
    distill: Distillation | None = None,
) -> Iterator[Supervised]:
    """Head after head, for pairs (k, x_k) in their order, each when it is asked for: nothing is held longer than used.

    With `distill` all pairs are taken first, and the final head is at work before the others, which look at its logits.
    """
    if distill is None:
        for k, x in numbered:
            yield _at_head(heads, k, x, loss, labels)[0]
        return
    features, last = dict(numbered), len(heads) - 1
    final, teacher = _at_head(heads, last, features[last], loss, labels)
    for k, x in features.items():
        yield final if k == last else _at_head(heads, k, x, distill, labels, teacher)[0]


def _at_head(
    heads: Sequence[nn.Module] | nn.ModuleList,
    k: int,
    feature: Tensor,
    loss: Callable[..., Tensor],
    *targets: Tensor,
) -> tuple[Supervised, Tensor]:
    """A head at work on its feature, with the gradients of loss(logits, *targets); and those logits, detached."""
    x = feature.detach().requires_grad_()
    logits = logits_of(heads, k + 1, x)
    L = _checked(loss(logits, *targets), logits)
    supervision, *of_head = gradients([L], [x, *parameters(heads[k])])
    if supervision is None:
        raise ValueError(f"the loss of output {k + 1} does not depend on its feature: head {k + 1} cuts it off")
    return Supervised(k, feature, L.detach(), supervision, of_head), logits.detach()


def gradients(
    of: Sequence[Tensor], wrt: Sequence[Tensor], entering: Sequence[Tensor | None] = (None,), keep: bool = False
) -> Gradients:
    """Gradients of `of`, with `entering` arriving there from above, with respect to `wrt`; None where unused."""
    reached = [(x, gradient) for x, gradient in zip(of, entering, strict=True) if x.requires_grad]
    if not (wrt and reached):  # all that lies below is frozen
        return [None] * len(wrt)
    x, gradient = zip(*reached, strict=True)
    return list(torch.autograd.grad(x, wrt, gradient, retain_graph=keep, allow_unused=True))


def combined(rows: Sequence[Gradients], wrt: Sequence[Tensor], aggregate: Aggregator, average: Average) -> Gradients:
    """One gradient out of K: K times what `aggregate` makes of them, so that their mean would be their sum."""
    whole = [[torch.zeros_like(p) if g is None else g for g, p in zip(row, wrt, strict=True)] for row in rows]
    one = len(rows) * aggregate(average(torch.stack([torch.cat([g.flatten() for g in row]) for row in whole])))
    parts = one.split_with_sizes([p.numel() for p in wrt])
    return [torch.empty_like(p).copy_(part.view_as(p)) for part, p in zip(parts, wrt, strict=True)]
