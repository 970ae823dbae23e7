"""The gradients that the methods are made of: of the losses in the heads, and from where they enter the trunk on down.

Shapes: N images; K outputs; x_k is the feature after segment S_k, which head H_k reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

import torch
from torch import Tensor, nn

from auxnet.network import logits_of
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
    """L_k of each output. With `distill`, those of the auxiliary outputs look at what the final one says, as it is."""
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


class Supervised(NamedTuple):
    """What head k = 0..K-1 makes of its feature."""

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

    With `distill` all pairs are taken first: the auxiliary outputs look at what the final one says.
    """
    if distill is not None:
        return _distilled(heads, dict(numbered), labels, loss, distill)
    return starmap(lambda k, x: _at_head(k, heads[k], x, lambda logits: loss(logits, labels)), numbered)


def _distilled(
    heads: Sequence[nn.Module] | nn.ModuleList,
    features: dict[int, Tensor],
    labels: Tensor,
    loss: Loss,
    distill: Distillation,
) -> Iterator[Supervised]:
    """The final head first: what it says, as it is, is what the others look at."""
    last, said = len(heads) - 1, []

    def loss_of_final(logits: Tensor) -> Tensor:
        said.append(logits.detach())
        return loss(logits, labels)

    final = _at_head(last, heads[last], features[last], loss_of_final)
    for k, x in features.items():
        yield final if k == last else _at_head(k, heads[k], x, lambda logits: distill(logits, labels, *said))


def _at_head(k: int, head: nn.Module, feature: Tensor, loss: Callable[[Tensor], Tensor]) -> Supervised:
    """A head at work on its feature, and the gradients of the loss of its logits."""
    x = feature.detach().requires_grad_()
    logits = logits_of(k + 1, head, x)
    L = _checked(loss(logits), logits)
    supervision, *of_head = gradients([L], [x, *parameters(head)])
    if supervision is None:
        raise ValueError(f"the loss of output {k + 1} does not depend on its feature: head {k + 1} cuts it off")
    return Supervised(k, feature, L.detach(), supervision, of_head)


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
