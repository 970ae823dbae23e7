"""The three ways to propagate gradients through an AuxNet: `joint`, `pairwise` and `multiway`.

Output k = 1..K has loss L_k, weight lambda_k and head H_k, and sees the segments S_1..S_k; x_k is the feature
after S_k and eta the step size. Equations carry the labels of the paper's LaTeX source.

Pair-wise and multi-way update S_1..S_k and H_k once per output k, each output with an optimizer state of its
own. There lambda_k scales the gradient of L_k where it enters the trunk, at x_k; the head takes its gradient
unscaled and at the full step.

Gradients and losses pass through `average`, the mean over the processes that train together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxnet.network import AuxNet, statistics_kept
from auxnet.update import Average, Gradients, Group, Method, Optimizer, Part, Update, alone

Mode = Literal["live", "frozen", "fused"]
StepScale = Literal["none", "sum", "cumulative", "adaptive"]
State = Literal["per_output", "shared"]
Order = Literal["shallow_first", "deep_first"]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits [N, classes], labels [N] -> scalar
Weights = Sequence[float] | Tensor  # lambda [K]


def joint(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights,
    step_scale: StepScale = "sum",
    *,
    loss: Loss = F.cross_entropy,
    clip: float | None = None,
    average: Average = alone,
) -> Method:
    """One forward, one backward of the weighted sum of all losses, one update (paper, eq:joint_gradient).

    `step_scale`: "sum" divides the step of a segment by the sum of the weights of the auxiliary outputs at
    or above it, where that exceeds 1; "none" does not.
    """
    lambdas = _checked(net, weights, step_scale, ("none", "sum"))
    trunk = [Group(parameters(s), c) for s, c in zip(net.segments, step_scales(lambdas, step_scale), strict=True)]
    update = Update(optimizer, [*trunk, Group(parameters(net.heads))], clip, average)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses = [loss(logits, labels) for logits in net(images)]
        objective = torch.stack([w * L for w, L in zip(lambdas, losses, strict=True)]).sum()  # L_K + sum lambda_k L_k
        update(gradients([objective], update.parameters))
        return average(torch.stack(losses).detach())

    return Method(step, [update])


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
    updates = _update_per_output(net, optimizer, step_scales(lambdas, step_scale), clip, average)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses = []
        for k, update in enumerate(updates):
            x = images
            with statistics_kept(net.segments[:k]):
                for segment in net.segments[: k + 1]:
                    x = segment(x)
            L, supervision, head_gradient = supervise(net.heads[k], x, labels, loss)
            update([*gradients([x], update.trunk, [lambdas[k] * supervision]), *head_gradient])
            losses.append(L)
        return average(torch.stack(losses))

    return Method(step, updates)


def multiway(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights,
    mode: Mode = "live",
    step_scale: StepScale = "cumulative",
    *,
    state: State = "per_output",
    order: Order = "shallow_first",
    loss: Loss = F.cross_entropy,
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

    Two departures from the paper, to see what its choices are worth: `state="shared"` gives all outputs one optimizer
    state (one momentum) in place of one each, `order="deep_first"` lets the final output update first.
    """
    lambdas = _checked(net, weights, step_scale, ("none", "cumulative", "adaptive"))
    for name, value, known in (("mode", mode, Mode), ("state", state, State), ("order", order, Order)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if mode == "fused":
        if (state, order) != ("per_output", "shallow_first"):
            raise ValueError("mode='fused' has one update alone: leave state and order out, or use 'live' or 'frozen'")
        return _fused(net, optimizer, lambdas, step_scale, loss, clip, average)
    scales = step_scales(lambdas, step_scale)
    updates: list[Update] | list[Part]
    if state == "per_output":
        updates = optimizers = _update_per_output(net, optimizer, scales, clip, average)
    else:
        updates, optimizers = _shared_update(net, optimizer, scales, clip, average)
    sequence = range(net.outputs) if order == "shallow_first" else range(net.outputs)[::-1]

    def step(images: Tensor, labels: Tensor) -> Tensor:
        features = net.features(images)
        supervised = [supervise(head, x, labels, loss) for head, x in zip(net.heads, features, strict=True)]
        losses = average(torch.stack([L for L, _, _ in supervised]))
        if step_scale == "adaptive":
            for k, scale in enumerate(adaptive_scales(losses, scales)):
                updates[k].rescale_trunk(scale)

        def backward(k: int) -> Gradients:
            _, supervision, head_gradient = supervised[k]
            entering, keep = lambdas[k] * supervision, k != sequence[-1]
            return [*gradients([features[k]], updates[k].trunk, [entering], keep), *head_gradient]

        if mode == "live":
            for k in sequence:
                updates[k](backward(k))
        else:
            old_weights = [backward(k) for k in sequence]
            for k, gradient in zip(sequence, old_weights, strict=True):
                updates[k](gradient)
        return losses

    return Method(step, optimizers)


def _fused(
    net: AuxNet,
    optimizer: Optimizer,
    lambdas: list[float],
    step_scale: StepScale,
    loss: Loss,
    clip: float | None,
    average: Average,
) -> Method:
    if step_scale == "adaptive":
        raise ValueError("mode='fused' needs steps in constant ratio, and step_scale='adaptive' has none: use 'live'")
    c = step_scales(lambdas, step_scale)
    trunk = [Group(parameters(s), decay=sum(c[k:])) for k, s in enumerate(net.segments)]  # k..K outputs decay S_k
    update = Update(optimizer, [*trunk, *(Group(parameters(head)) for head in net.heads)], clip, average)
    trunk_parameters = parameters(net.segments)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        features = net.features(images)
        losses, supervisions, head_gradients = zip(
            *(supervise(head, x, labels, loss) for head, x in zip(net.heads, features, strict=True)),
            strict=True,
        )
        entering = [c_k * w * s for c_k, w, s in zip(c, lambdas, supervisions, strict=True)]
        update([*gradients(features, trunk_parameters, entering), *(g for head in head_gradients for g in head)])
        return average(torch.stack(losses))

    return Method(step, [update])


# ---- gradients -------------------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are to be trained."""
    return [p for p in module.parameters() if p.requires_grad]


def supervise(head: nn.Module, x: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Gradients]:
    """L_k, the supervision dL_k/dx_k, and the gradient of the head's own parameters."""
    x = x.detach().requires_grad_()
    L = loss(head(x), labels)
    supervision, *head_gradient = gradients([L], [x, *parameters(head)])
    assert supervision is not None
    return L.detach(), supervision, head_gradient


def gradients(
    of: Sequence[Tensor], wrt: Sequence[Tensor], entering: Sequence[Tensor | None] = (None,), keep: bool = False
) -> Gradients:
    """Gradients of `of`, with `entering` arriving there from above, with respect to `wrt`; None where unused."""
    reached = [(x, gradient) for x, gradient in zip(of, entering, strict=True) if x.requires_grad]
    if not (wrt and reached):  # all that lies below is frozen
        return [None] * len(wrt)
    x, gradient = zip(*reached, strict=True)
    return list(torch.autograd.grad(x, wrt, gradient, retain_graph=keep, allow_unused=True))


# ---- steps -----------------------------------------------------------------------------------------------------


def step_scales(lambdas: Sequence[float], rule: StepScale) -> list[float]:
    """c_k = 1 / max(1, sum of lambda_j over auxiliary outputs j >= k); all 1 under "none".

    Joint applies c_k to the step of segment k ("sum"), multi-way to the trunk's step in pass k ("cumulative").
    """
    if rule == "none":
        return [1.0] * len(lambdas)
    return [1.0 / max(1.0, sum(lambdas[k:-1])) for k in range(len(lambdas))]


def adaptive_scales(losses: Tensor, scales: Sequence[float]) -> list[float]:
    """L_K / L_k where output k's loss is more than twice the final one's, else the scale it would have had."""
    *_, final = values = losses.tolist()
    return [final / L if 2 * final < L else scale for L, scale in zip(values, scales, strict=True)]


def _update_per_output(
    net: AuxNet, optimizer: Optimizer, scales: Sequence[float], clip: float | None, average: Average
) -> list[Update]:
    """For each output k an optimizer over S_1..S_k, at its own scale, and H_k, at the full step."""
    return [
        Update(
            optimizer, [Group(parameters(net.segments[:k]), scale), Group(parameters(net.heads[k - 1]))], clip, average
        )
        for k, scale in enumerate(scales, start=1)
    ]


def _shared_update(
    net: AuxNet, optimizer: Optimizer, scales: Sequence[float], clip: float | None, average: Average
) -> tuple[list[Part], list[Update]]:
    """For each output k the same, as a part of one optimizer over all; and that one."""
    whole = Update(optimizer, [Group(parameters(net.segments)), Group(parameters(net.heads))], clip, average)
    parts = [
        Part(whole, parameters(net.segments[:k]), parameters(net.heads[k - 1]), scale)
        for k, scale in enumerate(scales, start=1)
    ]
    return parts, [whole]


def _checked(net: AuxNet, weights: Weights, rule: str, rules: Sequence[str]) -> list[float]:
    lambdas = [float(w) for w in weights]
    if len(lambdas) != net.outputs or not all(0 <= w < float("inf") for w in lambdas):
        raise ValueError(f"weights must be {net.outputs} finite numbers >= 0, one per output, got {lambdas}")
    if rule not in rules:
        raise ValueError(f"step_scale must be one of {', '.join(rules)} for this method, got {rule!r}")
    return lambdas
