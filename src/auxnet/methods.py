"""The three ways to propagate gradients through an AuxNet: `joint`, `pairwise` and `multiway`.

Output k = 1..K has loss L_k, weight lambda_k and head H_k, and sees the segments S_1..S_k; x_k is the feature
after S_k and eta the step size. Equations carry the labels of the paper's LaTeX source.

Pair-wise and multi-way update S_1..S_k and H_k once per output k, each output with an optimizer state of its
own. There lambda_k scales the gradient of L_k where it enters the trunk, at x_k; the head takes its gradient
unscaled and at the full step. An output with lambda_k = 0 is discarded (`Method.set_weights`).

Gradients and losses pass through `average`, the mean over the processes that train together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxnet.network import AuxNet, statistics_kept
from auxnet.update import Average, Gradients, Method, Optimizer, Update, Weights, alone

Mode = Literal["live", "frozen", "fused"]
StepScale = Literal["none", "sum", "equilibrium", "cumulative", "adaptive"]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits [N, classes], labels [N] -> scalar
Taught = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, labels, the final output's logits -> scalar
Combine = Callable[[Tensor], Tensor]  # gradients of K outputs [K, parameters] -> one [parameters]


def joint(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights,
    step_scale: StepScale = "sum",
    *,
    loss: Loss = F.cross_entropy,
    taught: Taught | None = None,
    combine: Combine | None = None,
    clip: float | None = None,
    average: Average = alone,
) -> Method:
    """One forward, one backward of the weighted sum of all losses, one update (paper, eq:joint_gradient).

    `step_scale`: "sum" divides the step of a segment by the sum of the weights of the auxiliary outputs at
    or above it, where that exceeds 1; "equilibrium" by the number of outputs there (IMTA); "none" does not.

    `combine` makes one gradient of the trunk out of those of all lambda_k L_k, K backwards, in place of their sum.
    """
    lambdas = _checked(net, weights, step_scale, ("none", "sum", "equilibrium"))
    trunk, heads = parameters(net.segments), parameters(net.heads)
    update = Update(optimizer, [*(parameters(s) for s in net.segments), heads], clip, average)

    def weigh(weights: Weights) -> None:
        lambdas[:] = _checked(net, weights)
        update.rescale([*step_scales(lambdas, step_scale), 1.0])

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses = losses_of(net(images), labels, loss, taught)
        weighted = [w * L for w, L in zip(lambdas, losses, strict=True) if w > 0]
        objective = torch.stack(weighted).sum()  # L_K + sum lambda_k L_k
        if combine is None:
            update(gradients([objective], [*trunk, *heads]))
        else:
            of_trunk = [gradients([L], trunk, keep=True) for L in weighted]
            update([*combined(of_trunk, trunk, combine, average), *gradients([objective], heads)])
        return average(torch.stack(losses).detach())

    weigh(weights)
    return Method(step, [update], weigh)


def pairwise(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights,
    step_scale: StepScale = "none",
    *,
    loss: Loss = F.cross_entropy,
    clip: float | None = None,
    average: Average = alone,
) -> Method:
    """A forward, a backward and an update for each output in turn (paper, eq:pair-wise_gradient).

    Output k sees the weights as output k-1 left them: K forwards. BatchNorm statistics move once per batch.
    """
    lambdas = _checked(net, weights, step_scale, ("none", "cumulative"))
    updates = _update_per_output(net, optimizer, clip, average)

    def weigh(weights: Weights) -> None:
        lambdas[:] = _checked(net, weights)
        _rescale(updates, step_scales(lambdas, step_scale))

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses = []
        for k, update in enumerate(updates):
            x = images
            with statistics_kept(net.segments[:k]):
                for segment in net.segments[: k + 1]:
                    x = segment(x)
            ((L, supervision, head_gradient),) = supervise([net.heads[k]], [x], labels, loss)
            if lambdas[k] > 0:
                update([*gradients([x], update.trunk, [lambdas[k] * supervision]), *head_gradient])
            losses.append(L)
        return average(torch.stack(losses))

    weigh(weights)
    return Method(step, updates, weigh)


def multiway(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights,
    mode: Mode = "live",
    step_scale: StepScale = "cumulative",
    *,
    loss: Loss = F.cross_entropy,
    taught: Taught | None = None,
    clip: float | None = None,
    average: Average = alone,
) -> Method:
    """One forward; with all its features kept, a backward and an update for each output in turn.

    (paper, eq:multipath_individual_gradient and eq:gradient-multi-way.) What backward k sees of the weights:

    - "live", the paper's: old features, weights as the updates of outputs 1..k-1 left them.
    - "frozen": old features, old weights; all gradients come before the first update.
    - "fused": frozen in one backward. For SGD its K updates add up to one, of sum_k c_k lambda_k L_k.

    `step_scale` divides the trunk's step in pass k: "cumulative" by the sum of the weights of the auxiliary
    outputs k and above, where that exceeds 1; "adaptive" by L_k / L_K in its place, where that exceeds 2.
    """
    lambdas = _checked(net, weights, step_scale, ("none", "cumulative", "adaptive"))
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if mode == "fused":
        return _fused(net, optimizer, lambdas, step_scale, loss, taught, clip, average)
    updates = _update_per_output(net, optimizer, clip, average)

    def weigh(weights: Weights) -> None:
        lambdas[:] = _checked(net, weights)
        _rescale(updates, step_scales(lambdas, step_scale))

    def step(images: Tensor, labels: Tensor) -> Tensor:
        features = net.features(images)
        supervised = supervise(net.heads, features, labels, loss, taught)
        losses = average(torch.stack([L for L, _, _ in supervised]))
        if step_scale == "adaptive":
            _rescale(updates, adaptive_scales(losses, step_scales(lambdas, step_scale)))
        kept = [k for k in range(net.outputs) if lambdas[k] > 0]

        def backward(k: int) -> Gradients:
            _, supervision, head_gradient = supervised[k]
            entering, keep = lambdas[k] * supervision, k < kept[-1]
            return [*gradients([features[k]], updates[k].trunk, [entering], keep), *head_gradient]

        if mode == "live":
            for k in kept:
                updates[k](backward(k))
        else:
            old_weights = {k: backward(k) for k in kept}
            for k, gradient in old_weights.items():
                updates[k](gradient)
        return losses

    weigh(weights)
    return Method(step, updates, weigh)


def _fused(
    net: AuxNet,
    optimizer: Optimizer,
    lambdas: list[float],
    step_scale: StepScale,
    loss: Loss,
    taught: Taught | None,
    clip: float | None,
    average: Average,
) -> Method:
    if step_scale == "adaptive":
        raise ValueError("mode='fused' needs steps in constant ratio, and step_scale='adaptive' has none: use 'live'")
    trunk = [parameters(segment) for segment in net.segments]
    update = Update(optimizer, [*trunk, *(parameters(head) for head in net.heads)], clip, average)
    trunk_parameters = parameters(net.segments)

    def weigh(weights: Weights) -> None:
        lambdas[:] = _checked(net, weights)
        c = [c_k if w > 0 else 0.0 for c_k, w in zip(step_scales(lambdas, step_scale), lambdas, strict=True)]
        decays = [sum(c[k:]) for k in range(net.outputs)]  # outputs k..K decay S_k
        update.rescale([1.0] * 2 * net.outputs, [*decays, *([1.0] * net.outputs)])

    def step(images: Tensor, labels: Tensor) -> Tensor:
        features, c = net.features(images), step_scales(lambdas, step_scale)
        supervised = supervise(net.heads, features, labels, loss, taught)
        kept = [k for k in range(net.outputs) if lambdas[k] > 0]
        entering = [c[k] * lambdas[k] * supervised[k][1] for k in kept]
        of_trunk = gradients([features[k] for k in kept], trunk_parameters, entering)
        of_heads = [g if w > 0 else None for w, (*_, head) in zip(lambdas, supervised, strict=True) for g in head]
        update([*of_trunk, *of_heads])
        return average(torch.stack([L for L, _, _ in supervised]))

    weigh(lambdas)
    return Method(step, [update], weigh)


# ---- gradients -------------------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are to be trained."""
    return [p for p in module.parameters() if p.requires_grad]


def losses_of(logits: Sequence[Tensor], labels: Tensor, loss: Loss, taught: Taught | None = None) -> list[Tensor]:
    """L_k of each output. With `taught`, those of the auxiliary outputs look at what the final one says, as it is."""
    if taught is None:
        return [loss(z, labels) for z in logits]
    *auxiliary, final = logits
    return [*(taught(z, labels, final.detach()) for z in auxiliary), loss(final, labels)]


def supervise(
    heads: Iterable[nn.Module], features: Sequence[Tensor], labels: Tensor, loss: Loss, taught: Taught | None = None
) -> list[tuple[Tensor, Tensor, Gradients]]:
    """For each head L_k, the supervision dL_k/dx_k, and the gradient of the head's own parameters."""
    heads, cut = list(heads), [x.detach().requires_grad_() for x in features]
    losses = losses_of([head(x) for head, x in zip(heads, cut, strict=True)], labels, loss, taught)
    supervised = []
    for head, x, L in zip(heads, cut, losses, strict=True):
        supervision, *head_gradient = gradients([L], [x, *parameters(head)])
        assert supervision is not None
        supervised.append((L.detach(), supervision, head_gradient))
    return supervised


def gradients(
    of: Sequence[Tensor], wrt: Sequence[Tensor], entering: Sequence[Tensor | None] = (None,), keep: bool = False
) -> Gradients:
    """Gradients of `of`, with `entering` arriving there from above, with respect to `wrt`; None where unused."""
    reached = [(x, gradient) for x, gradient in zip(of, entering, strict=True) if x.requires_grad]
    if not (wrt and reached):  # all that lies below is frozen
        return [None] * len(wrt)
    x, gradient = zip(*reached, strict=True)
    return list(torch.autograd.grad(x, wrt, gradient, retain_graph=keep, allow_unused=True))


def combined(rows: Sequence[Gradients], wrt: Sequence[Tensor], combine: Combine, average: Average) -> Gradients:
    """One gradient out of K: K times what `combine` makes of them, so that their mean would be their sum."""
    whole = [[torch.zeros_like(p) if g is None else g for g, p in zip(row, wrt, strict=True)] for row in rows]
    one = len(rows) * combine(average(torch.stack([torch.cat([g.flatten() for g in row]) for row in whole])))
    parts = one.split_with_sizes([p.numel() for p in wrt])
    return [torch.empty_like(p).copy_(part.view_as(p)) for part, p in zip(parts, wrt, strict=True)]


# ---- steps -----------------------------------------------------------------------------------------------------


def step_scales(lambdas: Sequence[float], rule: StepScale) -> list[float]:
    """c_k = 1 / max(1, sum of lambda_j over auxiliary outputs j >= k); all 1 under "none".

    Joint applies c_k to the step of segment k ("sum"), multi-way to the trunk's step in pass k ("cumulative").
    "equilibrium": one over the number of outputs k and above, discarded ones not counted.
    """
    if rule == "none":
        return [1.0] * len(lambdas)
    if rule == "equilibrium":
        return [1.0 / max(1, sum(w > 0 for w in lambdas[k:])) for k in range(len(lambdas))]
    return [1.0 / max(1.0, sum(lambdas[k:-1])) for k in range(len(lambdas))]


def adaptive_scales(losses: Tensor, scales: Sequence[float]) -> list[float]:
    """L_K / L_k where output k's loss is more than twice the final one's, else the scale it would have had."""
    *_, final = values = losses.tolist()
    return [final / L if 2 * final < L else scale for L, scale in zip(values, scales, strict=True)]


def _update_per_output(net: AuxNet, optimizer: Optimizer, clip: float | None, average: Average) -> list[Update]:
    """For each output k an optimizer over S_1..S_k and H_k."""
    return [
        Update(optimizer, [parameters(net.segments[:k]), parameters(net.heads[k - 1])], clip, average)
        for k in range(1, net.outputs + 1)
    ]


def _rescale(updates: Sequence[Update], scales: Sequence[float]) -> None:
    """The trunk at its own scale in each output's update, the head at the full step."""
    for update, scale in zip(updates, scales, strict=True):
        update.rescale([scale, 1.0])


def _checked(net: AuxNet, weights: Weights, rule: str = "none", rules: Sequence[str] = ("none",)) -> list[float]:
    lambdas = [float(w) for w in weights]
    if len(lambdas) != net.outputs or not all(0 <= w < float("inf") for w in lambdas):
        raise ValueError(f"weights must be {net.outputs} finite numbers >= 0, one per output, got {lambdas}")
    if not any(lambdas):
        raise ValueError(f"weights must leave at least one output above 0 (0 discards it), got {lambdas}")
    if rule not in rules:
        raise ValueError(f"step_scale must be one of {', '.join(rules)} for this method, got {rule!r}")
    return lambdas
