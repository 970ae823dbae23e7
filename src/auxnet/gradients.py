"""Gradients for the methods: of each loss L_k in its head H_k, and in the trunk from the feature x_k down.

Shapes: N images; K outputs; x_k is the feature after segment S_k, which head H_k reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from auxnet.network import check_tensors, logits_of
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
    """L_k of each output. With `distill`, the final output's logits, detached, teach the auxiliary outputs."""
    if distill is None:
        return [_loss_at(z, loss, labels) for z in logits]
    *auxiliary, final = logits
    teacher = final.detach()
    return [*(_loss_at(z, distill, labels, teacher) for z in auxiliary), _loss_at(final, loss, labels)]


def _loss_at(logits: Tensor, loss: Callable[..., Tensor], *targets: Any) -> Tensor:
    """L_k; logits and targets (such as a teacher's logits) in bfloat16 or float16 are cast to float32 first.

    Raises ValueError if the loss is not a scalar tensor, or not differentiable although its logits are; and for labels
    that PyTorch's cross entropy does not take.
    """
    try:
        L = loss(*map(_in_float32, (logits, *targets)))
    except RuntimeError:
        known = loss is nn.functional.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)
        if known and isinstance(targets[0], Tensor):
            _check_labels(logits, targets[0])
        raise
    if not isinstance(L, Tensor):
        raise ValueError(f"loss must give a tensor that autograd can differentiate, got {type(L).__name__}")
    if L.ndim != 0:
        raise ValueError(f"loss must give one number, such as the mean over the images, got the shape {list(L.shape)}")
    if logits.requires_grad and not L.requires_grad:
        raise ValueError("loss must depend on the logits in a way that autograd sees, and does not: is one detached?")
    return L


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless labels are class indices [N], or class probabilities [N, classes]."""
    check_tensors(logits, labels)
    if labels.is_floating_point() and labels.shape != logits.shape:
        rule = f"probabilities as labels must be {list(logits.shape)}, one for each logit"
        raise ValueError(f"{rule}, got {list(labels.shape)}: give one column to each class of the net")


def _in_float32(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


class Supervised(NamedTuple):
    """The loss at head k = 1..K, and its gradients."""

    k: int
    feature: Tensor
    """x_k"""
    loss: Tensor
    """L_k"""
    supervision: Tensor
    """dL_k/dx_k"""
    head: Gradients
    """the gradients of the head's own parameters"""


def supervise(
    heads: Sequence[nn.Module] | nn.ModuleList,
    numbered: Iterable[tuple[int, Tensor]],
    labels: Tensor,
    loss: Loss,
    distill: Distillation | None = None,
) -> Iterator[Supervised]:
    """Compute the loss and its gradients at one head after another, for pairs (k, x_k) in their order.

    Each is computed when it is asked for, so that nothing is held longer than needed. With `distill` all pairs are
    taken first, and the final head runs before the others, which learn from its logits.
    """
    if distill is None:
        for k, x in numbered:
            yield _at_head(heads, k, x, loss, labels)[0]
        return
    features, last = dict(numbered), len(heads)
    final, teacher = _at_head(heads, last, features[last], loss, labels)
    for k, x in features.items():
        yield final if k == last else _at_head(heads, k, x, distill, labels, teacher)[0]


def _at_head(
    heads: Sequence[nn.Module] | nn.ModuleList, k: int, feature: Tensor, loss: Callable[..., Tensor], *targets: Tensor
) -> tuple[Supervised, Tensor]:
    """Run head k on its feature: loss(logits, *targets) with its gradients, and the logits, detached."""
    x = feature.detach().requires_grad_()
    logits = logits_of(heads, k, x)
    L = _loss_at(logits, loss, *targets)
    supervision, *of_head = gradients([L], [x, *parameters(heads[k - 1])])
    if supervision is None:
        raise ValueError(f"the loss of output {k} does not depend on its feature: head {k} cuts the gradient off")
    return Supervised(k, feature, L.detach(), supervision, of_head), logits.detach()


def gradients(
    of: Sequence[Tensor], wrt: Sequence[Tensor], entering: Sequence[Tensor | None] = (None,), keep: bool = False
) -> Gradients:
    """Gradients of the tensors `of`, times the gradients `entering` at them, with respect to `wrt`; None if unused."""
    reached = [(x, gradient) for x, gradient in zip(of, entering, strict=True) if x.requires_grad]
    if not (wrt and reached):  # everything below is frozen
        return [None] * len(wrt)
    x, gradient = zip(*reached, strict=True)
    return list(torch.autograd.grad(x, wrt, gradient, retain_graph=keep, allow_unused=True))


def aggregated(losses: Sequence[Tensor], wrt: Sequence[Tensor], aggregate: Aggregator, average: Average) -> Gradients:
    """One gradient out of those of K losses: K times what `aggregate` makes of them, so that a mean becomes a sum.

    None for a parameter that no loss reaches. The graph is kept for another backward.
    """
    if not wrt:
        return []
    rows = [gradients([L], wrt, keep=True) for L in losses]
    whole = [[torch.zeros_like(p) if g is None else g for g, p in zip(row, wrt, strict=True)] for row in rows]
    one = len(rows) * aggregate(average(torch.stack([torch.cat([g.flatten() for g in row]) for row in whole])))
    parts = one.split_with_sizes([p.numel() for p in wrt])
    return [
        None if all(g is None for g in of_each) else torch.empty_like(p).copy_(part.view_as(p))
        for of_each, part, p in zip(zip(*rows, strict=True), parts, wrt, strict=True)
    ]
