"""The three ways to propagate gradients through an AuxNet: `joint`, `pairwise` and `multiway`.

Output k = 1..K has loss L_k, weight lambda_k and head H_k, and sees the segments S_1..S_k; x_k is the feature
after S_k and eta the step size. Equations carry the labels of the paper's LaTeX source.

Pair-wise and multi-way update S_1..S_k and H_k once per output k, each output with an optimizer state of its
own. There lambda_k scales the gradient of L_k where it enters the trunk, at x_k; the head takes its gradient
unscaled and at the full step. An output with lambda_k = 0 is discarded (`Method.set_weights`).

Gradients and losses pass through `average`, the mean over the processes that train together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from auxnet.gradients import (
    Aggregator,
    Distillation,
    Loss,
    Supervised,
    combined,
    gradients,
    live,
    losses_of,
    parameters,
    supervise,
    unchanged,
)
from auxnet.network import AuxNet, check_net, statistics_kept
from auxnet.sections import Mode, Order, State, StepScale
from auxnet.update import (
    Average,
    Gradients,
    Method,
    Optimizer,
    SharedUpdate,
    Update,
    Weights,
    identity,
    weights_for,
)


def joint(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights | None = None,
    step_scale: StepScale = "sum",
    *,
    loss: Loss = F.cross_entropy,
    distill: Distillation | None = None,
    aggregate: Aggregator | None = None,
    clip: float | None = None,
    average: Average = identity,
) -> Method:
    """One forward, one backward of the weighted sum of all losses, one update (paper, eq:joint_gradient).

    `step_scale`: "sum" divides the step of a segment by the sum of the weights of the auxiliary outputs at
    or above it, where that exceeds 1; "equilibrium" by the number of outputs there (IMTA); "none" does not.

    `aggregate` makes one gradient of the trunk out of those of all lambda_k L_k, K backwards, in place of their sum.
    """
    check_net(net)
    _check_rule(step_scale, "none", "sum", "equilibrium")
    lambdas = weights_for(net, weights)
    trunk, heads = parameters(net.segments), parameters(net.heads)
    update = Update(optimizer, [*(parameters(s) for s in net.segments), heads], clip, average)

    def follow() -> None:
        update.rescale([*step_scales(lambdas, step_scale), 1.0])

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses = losses_of(net(images), labels, loss, distill)
        weighted = [w * L for w, L in zip(lambdas, losses, strict=True) if w > 0]
        objective = torch.stack(weighted).sum()  # L_K + sum lambda_k L_k
        if aggregate is None:
            update(gradients([objective], [*trunk, *heads]))
        else:
            of_trunk = [gradients([L], trunk, keep=True) for L in weighted]
            update([*combined(of_trunk, trunk, aggregate, average), *gradients([objective], heads)])
        return average(torch.stack(losses).detach())

    return Method(net, step, [update], lambdas, follow, loss)


def pairwise(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights | None = None,
    step_scale: StepScale = "none",
    *,
    loss: Loss = F.cross_entropy,
    clip: float | None = None,
    average: Average = identity,
) -> Method:
    """A forward, a backward and an update for each output in turn (paper, eq:pair-wise_gradient).

    Output k sees the weights as output k-1 left them: K forwards. Running statistics move once per batch.
    """
    check_net(net)
    _check_rule(step_scale, "none", "cumulative")
    lambdas = weights_for(net, weights)
    updates = _update_per_output(net, optimizer, clip, average)

    def follow() -> None:
        _rescale(updates, step_scales(lambdas, step_scale))

    def step(images: Tensor, labels: Tensor) -> Tensor:
        net.check_images(images.shape)
        losses = []
        for k, update in enumerate(updates):
            x = images
            torch.clear_autocast_cache()  # it holds casts of the weights as they were before the last update
            with statistics_kept(net.segments[:k]):
                for segment in net.segments[: k + 1]:
                    x = segment(x)
                (output,) = supervise(net.heads, [(k, x)], labels, loss)
                if lambdas[k] > 0:
                    update([*gradients([x], update.trunk, [lambdas[k] * output.supervision]), *output.head])
            losses.append(output.loss)
        return average(torch.stack(losses))

    return Method(net, step, updates, lambdas, follow, loss)


def multiway(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights | None = None,
    mode: Mode = "live",
    step_scale: StepScale = "cumulative",
    *,
    state: State = "per_output",
    order: Order = "shallow_first",
    loss: Loss = F.cross_entropy,
    distill: Distillation | None = None,
    clip: float | None = None,
    average: Average = identity,
) -> Method:
    """One forward, whose features are kept; a backward and an update for each output in turn.

    (paper, eq:multipath_individual_gradient and eq:gradient-multi-way.) What backward k sees of the weights:

    - "live", the paper's: old features, weights as the updates of outputs 1..k-1 left them.
    - "frozen": old features, old weights; all gradients come before the first update.
    - "fused": frozen in one backward. For SGD its K updates add up to one, of sum_k c_k lambda_k L_k; any other
      optimizer (Adam, or SGD under `clip`) makes a step of its own along that sum, which is not frozen's.

    `step_scale` divides the trunk's step in pass k: "cumulative" by the sum of the weights of the auxiliary
    outputs k and above, where that exceeds 1; "adaptive" by L_k / L_K in its place, where that exceeds 2.

    Two departures from the paper, to see what its choices are worth: `state="shared"` gives all outputs one optimizer
    state (one momentum) in place of one each, `order="deep_first"` lets the final output update first.
    """
    check_net(net)
    _check_rule(step_scale, "none", "cumulative", "adaptive")
    for name, value, known in (("mode", mode, Mode), ("state", state, State), ("order", order, Order)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if mode == "fused":
        if (state, order) != ("per_output", "shallow_first"):
            raise ValueError("mode='fused' has one update alone: leave state and order out, or use 'live' or 'frozen'")
        return _fused(net, optimizer, weights, step_scale, loss, distill, clip, average)
    lambdas = weights_for(net, weights)
    updates: Sequence[Update] | Sequence[SharedUpdate]
    if state == "per_output":
        updates = optimizers = _update_per_output(net, optimizer, clip, average)
    else:
        updates, optimizers = _parts_of_one_update(net, optimizer, clip, average)
    last = max if order == "shallow_first" else min
    features_of = live(net) if mode == "live" else lambda images: unchanged(net.features(images))

    def follow() -> None:
        _rescale(updates, step_scales(lambdas, step_scale))

    def backward(output: Supervised) -> tuple[int, Tensor, Gradients | None]:
        """k, L_k and its gradients: lambda_k dL_k/dx_k goes down from x_k through S_k..S_1; H_k has its own."""
        k, x, L, supervision, of_head = output
        counted = [j for j, weight in enumerate(lambdas) if weight > 0]
        if k not in counted:
            return k, L, None
        of_trunk = gradients([x], updates[k].trunk, [lambdas[k] * supervision], keep=k != last(counted))
        return k, L, [*of_trunk, *of_head]

    def step(images: Tensor, labels: Tensor) -> Tensor:
        # Updates 1..k-1 leave S_k alone: x_k, made only when its turn comes, is the old feature all the same.
        features = enumerate(features_of(images))
        turns = features if order == "shallow_first" else reversed([*features])
        outputs: Iterable[Supervised] = supervise(net.heads, turns, labels, loss, distill)
        if step_scale == "adaptive":  # the one rule that needs all losses before the first backward
            outputs = list(outputs)
            known = average(torch.stack([output.loss for output in sorted(outputs, key=lambda output: output.k)]))
            _rescale(updates, adaptive_scales(known, step_scales(lambdas, step_scale)))
        losses: dict[int, Tensor] = {}
        backwards = map(backward, outputs)
        for k, L, gradient in backwards if mode == "live" else list(backwards):  # frozen: all before the first update
            losses[k] = L
            if gradient is not None:
                updates[k](gradient)
            del gradient  # it would be held while the next output is at work
        return average(torch.stack([losses[k] for k in range(net.outputs)]))

    return Method(net, step, optimizers, lambdas, follow, loss)


def _fused(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights | None,
    step_scale: StepScale,
    loss: Loss,
    distill: Distillation | None,
    clip: float | None,
    average: Average,
) -> Method:
    if step_scale == "adaptive":
        raise ValueError("mode='fused' needs steps in constant ratio, and step_scale='adaptive' has none: use 'live'")
    lambdas = weights_for(net, weights)
    trunk = parameters(net.segments)
    update = Update(optimizer, [parameters(part) for part in (*net.segments, *net.heads)], clip, average)

    def follow() -> None:
        c = [c_k if w > 0 else 0.0 for c_k, w in zip(step_scales(lambdas, step_scale), lambdas, strict=True)]
        decays = [sum(c[k:]) for k in range(net.outputs)]  # outputs k..K decay S_k
        update.rescale([1.0] * 2 * net.outputs, [*decays, *([1.0] * net.outputs)])

    def step(images: Tensor, labels: Tensor) -> Tensor:
        features, c = unchanged(net.features(images)), step_scales(lambdas, step_scale)
        losses, reached, entering, of_heads = [], [], [], Gradients()
        for k, x, L, supervision, of_head in supervise(net.heads, enumerate(features), labels, loss, distill):
            losses.append(L)
            if lambdas[k] > 0:
                reached.append(x)
                entering.append(c[k] * lambdas[k] * supervision)
            of_heads += of_head if lambdas[k] > 0 else [None] * len(of_head)
        of_trunk = gradients(reached, trunk, entering)
        update([*of_trunk, *of_heads])
        return average(torch.stack(losses))

    return Method(net, step, [update], lambdas, follow, loss)


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


def _parts_of_one_update(
    net: AuxNet, optimizer: Optimizer, clip: float | None, average: Average
) -> tuple[list[SharedUpdate], list[Update]]:
    """For each output k the same, as a part of one optimizer over all; and that one."""
    whole = Update(optimizer, [parameters(net.segments), parameters(net.heads)], clip, average)
    parts = [
        SharedUpdate(whole, parameters(net.segments[:k]), parameters(net.heads[k - 1]))
        for k in range(1, net.outputs + 1)
    ]
    return parts, [whole]


def _rescale(updates: Sequence[Update] | Sequence[SharedUpdate], scales: Sequence[float]) -> None:
    """The trunk at its own scale in each output's update, the head at the full step."""
    for k, scale in enumerate(scales):
        updates[k].rescale([scale, 1.0])


def _check_rule(rule: str, *rules: str) -> None:
    if rule not in rules:
        raise ValueError(f"step_scale must be one of {', '.join(rules)} for this method, got {rule!r}")
