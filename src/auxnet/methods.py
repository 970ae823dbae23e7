"""The three ways to propagate gradients through an AuxNet: `joint`, `pairwise` and `multiway`.

Output k = 1..K has loss L_k, weight lambda_k and head H_k, and sees the segments S_1..S_k; x_k is the feature
after S_k and eta the step size. Equations carry the labels of the paper's LaTeX source.

Pair-wise and multi-way update S_1..S_k and H_k once per output k, each output with an optimizer state of its
own. There lambda_k scales the gradient of L_k where it enters the trunk, at x_k; the head takes its gradient
unscaled and at the full step.

Gradients and losses pass through `average`, the mean over the processes that train together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxnet.network import AuxNet, statistics_kept
from auxnet.update import Average, Gradients, Group, Method, Optimizer, Update, alone

Mode = Literal["live", "frozen", "fused"]
StepScale = Literal["none", "sum", "cumulative", "adaptive"]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits [N, classes], labels [N] -> scalar
Weights = Sequence[float] | Tensor  # lambda [K]
Supervised = tuple[Tensor, Tensor, Gradients]  # L_k, what enters the trunk at x_k, the gradient of H_k


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
            L, entering, head_gradient = supervise(net.heads[k], x, labels, loss, lambdas[k])
            update([*gradients([x], update.trunk, [entering]), *head_gradient])
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
    """
    lambdas = _checked(net, weights, step_scale, ("none", "cumulative", "adaptive"))
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if mode == "fused":
        return _fused(net, optimizer, lambdas, step_scale, loss, clip, average)
    scales = step_scales(lambdas, step_scale)
    updates = _update_per_output(net, optimizer, scales, clip, average)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        if mode == "live" and torch.is_autocast_enabled(images.device.type):
            raise RuntimeError("autocast keeps casts of old weights: live would be frozen; use precision.lowered(net)")
        features = net.features(images)
        heads = zip(net.heads, features, lambdas, strict=True)
        supervised: Iterable[Supervised] = (supervise(head, x, labels, loss, w) for head, x, w in heads)
        if step_scale == "adaptive":  # the one rule that needs all losses before the first backward
            supervised = list(supervised)
            known = average(torch.stack([L for L, _, _ in supervised]))
            for update, scale in zip(updates, adaptive_scales(known, scales), strict=True):
                update.rescale_trunk(scale)
        losses = []

        def backwards() -> Iterator[tuple[Update, Gradients]]:
            """Each output's update and gradients when its turn comes: what enters at another x_j is not held."""
            for k, (update, (L, entering, head_gradient)) in enumerate(zip(updates, supervised, strict=True)):
                losses.append(L)
                trunk_gradient = gradients([features[k]], update.trunk, [entering], keep=k + 1 < net.outputs)
                yield update, [*trunk_gradient, *head_gradient]

        for update, gradient in backwards() if mode == "live" else list(backwards()):
            update(gradient)
        return average(torch.stack(losses))

    return Method(step, updates)


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
        heads = zip(net.heads, features, c, lambdas, strict=True)
        supervised = (supervise(head, x, labels, loss, c_k * w) for head, x, c_k, w in heads)
        losses, entering, head_gradients = zip(*supervised, strict=True)
        update([*gradients(features, trunk_parameters, entering), *(g for head in head_gradients for g in head)])
        return average(torch.stack(losses))

    return Method(step, [update])


# ---- gradients -------------------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are to be trained."""
    return [p for p in module.parameters() if p.requires_grad]


def supervise(head: nn.Module, x: Tensor, labels: Tensor, loss: Loss, weight: float) -> Supervised:
    """L_k, the supervision dL_k/dx_k times `weight`, and the gradient of the head's own parameters, unscaled."""
    x = x.detach().requires_grad_()
    L = loss(head(x), labels)
    supervision, *head_gradient = gradients([L], [x, *parameters(head)])
    assert supervision is not None
    return L.detach(), weight * supervision, head_gradient


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


def _checked(net: AuxNet, weights: Weights, rule: str, rules: Sequence[str]) -> list[float]:
    lambdas = [float(w) for w in weights]
    if len(lambdas) != net.outputs or not all(0 <= w < float("inf") for w in lambdas):
        raise ValueError(f"weights must be {net.outputs} finite numbers >= 0, one per output, got {lambdas}")
    if rule not in rules:
        raise ValueError(f"step_scale must be one of {', '.join(rules)} for this method, got {rule!r}")
    return lambdas
