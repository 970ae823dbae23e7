"""The updates of one batch: which parameters each moves, and how long its step is.

lambda_k is the loss weight of output k = 1..K, eta the step size. An output's update moves the segments S_1..S_k of the
trunk, at the step c_k eta, and its head H_k, at the full step.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from auxnet.errors import check_choice
from auxnet.gradients import parameters
from auxnet.network import AuxNet
from auxnet.sections import Mode, Order, State, StepScale
from auxnet.update import Average, Optimizer, SharedUpdate, Update


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
    """L_K / L_k for an output k whose loss is more than twice the final one's; else its entry in `scales`.

    If the final loss is negative, as a custom loss may be, all outputs keep their entries in `scales`.
    """
    *_, final = values = losses.tolist()
    return [final / L if 0 <= 2 * final < L else scale for L, scale in zip(values, scales, strict=True)]


def updates_per_output(
    net: AuxNet, optimizer: Optimizer, clip: float | None, average: Average, state: State = "per_output"
) -> tuple[Sequence[Update | SharedUpdate], list[Update]]:
    """An update of S_1..S_k and H_k for each output k, and the optimizers behind them: one each, or one shared."""
    reached = [(parameters(net.segments[:k]), parameters(head)) for k, head in enumerate(net.heads, start=1)]
    if state == "per_output":
        updates = [Update(optimizer, [trunk, head], clip, average) for trunk, head in reached]
        return updates, updates
    whole = Update(optimizer, [parameters(net.segments), parameters(net.heads)], clip, average)
    return [SharedUpdate(whole, trunk, head) for trunk, head in reached], [whole]


def rescale_each(updates: Sequence[Update | SharedUpdate], scales: Sequence[float]) -> None:
    """Make the trunk's step c_k eta in update k; the head's stays eta."""
    for update, c in zip(updates, scales, strict=True):
        update.rescale([c, 1.0])


def check_rule(rule: str, *rules: str) -> None:
    """Raise ValueError unless `rule` is one of the step_scale rules that a method has."""
    if rule not in rules:
        raise ValueError(f"step_scale must be one of {', '.join(rules)} for this method, got {rule!r}")


def check_choices(mode: str, state: str, order: str, step_scale: str) -> None:
    """Raise ValueError for a mode, state or order that multi-way does not have, or that has no fused form."""
    for name, value, known in (("mode", mode, Mode), ("state", state, State), ("order", order, Order)):
        check_choice(name, value, known)
    if mode == "fused" and (state, order) != ("per_output", "shallow_first"):
        raise ValueError("mode='fused' makes a single update: leave state and order out, or use 'live' or 'frozen'")
    if mode == "fused" and step_scale == "adaptive":
        raise ValueError("mode='fused' needs steps in constant ratio, unlike step_scale='adaptive': use 'live'")
