"""Thresholds of early exit, solved on validation images: when may an image leave at a shallow output?

An image leaves at the first output whose confidence reaches that output's threshold; the final output takes
the rest. Choosing the K - 1 thresholds trades errors against mean cost (`descent`).

Thresholds that may just err so often on the images that they are solved on err more often on others: the images
whose luck let them through were picked for it. `solve_cross_fitted` therefore solves on four fifths of the images,
counts on the fifth, five times over, and allows so much that the target is kept there.

Shapes: K outputs, N images. Cost is whatever `costs` [K] holds, of stopping at each output, and `passing` [K - 1] of
going on from an output at which other images may leave (default: nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch

from auxnet.descent import Costs, Task, Thresholds, geometric_shares, only_at
from auxnet.policy import ALWAYS, NEVER, Confidence, Policy
from auxnet.scores import Comparison, Predictions, compare, fit_temperature, wilson

BEST = 8  # of the policies to begin from, as many are refined


@dataclass(frozen=True)
class Outcome:
    """What a policy does to a set of images, with 95 % intervals: Wilson's of shares, the normal one of the cost."""

    images: int
    error: float
    error_interval: tuple[float, float]
    mean_cost: float
    cost_interval: tuple[float, float]
    shares: tuple[float, ...]
    """[K], of the images that leave at each output; they sum to one"""
    share_intervals: tuple[tuple[float, float], ...]
    against_final: Comparison
    """its errors less those of the final output, on the same images"""


def fit_temperatures(said: Predictions) -> tuple[float, ...]:
    """The temperature of each output, fitted on validation images."""
    return tuple(fit_temperature(logits, said.labels) for logits in said.logits)


def costs_under(policy: Policy, costs: Sequence[float], passing: Sequence[float] | None = None) -> tuple[float, ...]:
    """[K], of an image that leaves at each output under a policy, with the heads that it passes there."""
    return tuple(Costs.of(costs, passing).under(policy.thresholds).tolist())


def outcome(
    said: Predictions, policy: Policy, costs: Sequence[float], passing: Sequence[float] | None = None
) -> Outcome:
    """What a policy does to the images of `said`. Raises ValueError for a policy or costs of other outputs."""
    policy.check(len(said.logits))
    left = policy.exits(said.logits)
    n = len(left)
    wrong_n = said.wrong[left - 1, torch.arange(n)]
    wrong = int(wrong_n.sum())
    spent = Costs.of(costs, passing).under(policy.thresholds)[left - 1]
    mean = float(spent.mean())
    half = 1.96 * float(spent.std(correction=0)) / n**0.5
    counts = torch.bincount(left - 1, minlength=len(costs)).tolist()
    return Outcome(
        n,
        wrong / n,
        wilson(wrong, n),
        mean,
        (mean - half, mean + half),
        tuple(count / n for count in counts),
        tuple(wilson(count, n) for count in counts),
        compare(wrong_n, said.wrong[-1]),
    )


# ---- policies --------------------------------------------------------------------------------------------------


def solve(
    said: Predictions,
    costs: Sequence[float],
    passing: Sequence[float] | None = None,
    *,
    max_error_increase: float | None = None,
    max_mean_cost: float | None = None,
    confidence: Confidence = "entropy",
    temperatures: Sequence[float] | None = None,
    common: bool = False,
) -> Policy | None:
    """Thresholds for one target, from what the outputs said of *validation* images; None if nothing meets it.

    Either the mean cost is least with an error of at most the final output's + `max_error_increase` (a
    fraction), or the error is least with a mean cost of at most `max_mean_cost`. `temperatures` are K (default:
    all 1). With `common`, one threshold serves all outputs (BranchyNet's rule).
    Raises ValueError for a target that cannot be, or two.
    """
    check_target(max_error_increase, max_mean_cost)
    task, rule = _task(said, costs, passing, confidence, temperatures)
    return _with(rule, task.solve(task.starts(common), max_error_increase, max_mean_cost, refine=0 if common else BEST))


@dataclass(frozen=True)
class CrossFit:
    """What thresholds do to images that they were not solved on: each part of them in turn is left out of solving."""

    parts: int
    allowed: float | None
    """the rise of error allowed on the images solved on (a fraction) by which the target is kept on those left out;
    None: by no allowance that was tried, and all images leave at the cheapest output that keeps it"""
    rise: float
    """of the error above the final output's, on the images left out, under that allowance; of that output, on all"""


def solve_cross_fitted(
    said: Predictions,
    costs: Sequence[float],
    passing: Sequence[float] | None = None,
    *,
    max_error_increase: float,
    confidence: Confidence = "entropy",
    temperatures: Sequence[float] | None = None,
    common: bool = False,
    parts: int = 5,
) -> tuple[Policy, CrossFit]:
    """Thresholds of the least mean cost with an error that rises by at most `max_error_increase` on *other* images.

    In the mean, not with certainty: on the images at hand the largest rise is allowed with which, solved on all parts
    of them but one and counted on that one, part by part, the target is kept (by bisection). Else as `solve`, which
    allows all of it on the images that it solves on.
    """
    check_target(max_error_increase)
    task, rule = _task(said, costs, passing, confidence, temperatures)
    n, final, never = task.wrong.shape[1], float(task.wrong[-1].sum()), only_at(len(costs), len(costs))
    part = torch.randperm(n, generator=torch.Generator().manual_seed(0)) % parts
    halves = [(task.of_images(part != k), task.of_images(part == k)) for k in range(parts if n >= parts else 0)]
    begun = [solved_on.starts(common) for solved_on, _ in halves]

    def rise(allowed: float) -> float:
        wrong = -final
        for (solved_on, left_out), starts in zip(halves, begun, strict=True):
            found = solved_on.solve(starts, allowed, None, refine=0 if common else 2)
            wrong += left_out.totals(found or never)[0]
        return wrong / n

    # Between all of the target and that less two standard errors of the final output's error (or two targets):
    high = max_error_increase
    low = high - 2 * max(high, (final * (n - final) / n**3) ** 0.5)
    kept, allowed = None, high
    for _ in range(7 if halves else 0):
        if (found := rise(allowed)) <= max_error_increase + 1e-9:
            kept, low = CrossFit(parts, allowed, found), allowed
        else:
            high = allowed
        if low == high:
            break
        allowed = (low + high) / 2
    refine = 0 if common else BEST
    thresholds = None if kept is None else task.solve(task.starts(common), kept.allowed, None, refine)
    if kept is not None and thresholds is not None:
        return replace(rule, thresholds=thresholds), kept
    # An output by itself was not solved, so that luck has hardly chosen it:
    alone = [only_at(k, len(costs)) for k in range(1, len(costs) + 1)] if halves else [never]
    rises = {each: (task.totals(each)[0] - final) / n for each in alone}
    within = [each for each in alone if rises[each] <= max_error_increase + 1e-9]
    cheapest = min(within, key=lambda each: task.totals(each)[1])
    return replace(rule, thresholds=cheapest), CrossFit(parts, None, rises[cheapest])


def check_target(max_error_increase: float | None = None, max_mean_cost: float | None = None) -> None:
    """Raise ValueError unless this is one target, and one that can be: a fraction below 0.5, a cost above 0."""
    if (max_error_increase is None) == (max_mean_cost is None):
        raise ValueError("give one target: max_error_increase or a bound on the mean cost")
    increase, bound = max_error_increase, max_mean_cost
    if increase is not None and not (isinstance(increase, Real) and 0 <= increase < 0.5):  # 0.5 is meant as points
        rule = "must be a share of images below 0.5 (0.005 is half a percentage point)"
        raise ValueError(f"max_error_increase {rule}, got {increase!r}")
    if bound is not None and not (isinstance(bound, Real) and 0 < bound < float("inf")):
        raise ValueError(f"the bound on the mean cost must be above 0 and finite, got {bound!r}")


def sweep(
    said: Predictions,
    costs: Sequence[float],
    passing: Sequence[float] | None = None,
    *,
    points: int = 12,
    confidence: Confidence = "entropy",
    temperatures: Sequence[float] | None = None,
    common: bool = False,
) -> list[Policy]:
    """Least-error policies for mean costs evenly spaced from the first output's to that of passing all heads."""
    task, rule = _task(said, costs, passing, confidence, temperatures)
    starts = task.starts(common)
    most = float(task.costs.under((ALWAYS,) * (len(costs) - 1)).max())
    bounds = torch.linspace(min(costs), most, points, dtype=torch.float64).tolist()
    solved = (task.solve(starts, None, bound, refine=0 if common else BEST) for bound in bounds)
    return [policy for thresholds in solved if (policy := _with(rule, thresholds)) is not None]


def anytime(
    outputs: int, confidence: Confidence = "entropy", temperatures: Sequence[float] | None = None
) -> list[Policy]:
    """MSDNet's anytime setting: for each output k, every image stops there."""
    rule = _rule(outputs, confidence, temperatures)
    return [replace(rule, thresholds=only_at(k, outputs)) for k in range(1, outputs + 1)]


def budgeted(
    said: Predictions,
    *,
    points: int = 12,
    confidence: Confidence = "top",
    temperatures: Sequence[float] | None = None,
) -> list[Policy]:
    """MSDNet's budgeted-batch setting: `geometric` policies for q from 1/10 (shallow) to 10 (deep)."""
    qs = torch.logspace(-1, 1, points).tolist()
    return [geometric(said, q, confidence=confidence, temperatures=temperatures) for q in qs]


def geometric(
    said: Predictions, q: float, *, confidence: Confidence = "top", temperatures: Sequence[float] | None = None
) -> Policy:
    """Output k takes a share proportional to q^k of the images of `said`: the surest of those that are left."""
    if not 0 < q < float("inf"):
        raise ValueError(f"q must be above 0 and finite, got {q}")
    rule = _rule(len(said.logits), confidence, temperatures)
    return replace(rule, thresholds=geometric_shares(rule.confidences(said.logits), q))


def _rule(outputs: int, confidence: Confidence, temperatures: Sequence[float] | None) -> Policy:
    """The policy by which no image leaves early, for thresholds to be put in. Raises ValueError."""
    ones = [1.0] * outputs
    rule = Policy(
        (NEVER,) * (outputs - 1), confidence, tuple(map(float, ones if temperatures is None else temperatures))
    )
    rule.check(outputs)
    return rule


def _task(
    said: Predictions,
    costs: Sequence[float],
    passing: Sequence[float] | None,
    confidence: Confidence,
    temperatures: Sequence[float] | None,
) -> tuple[Task, Policy]:
    """What is to be solved, and the rule that thresholds are put into. Raises ValueError."""
    if len(costs) != len(said.logits):
        raise ValueError(f"{len(said.logits)} outputs need {len(said.logits)} costs, got {len(costs)}")
    rule = _rule(len(costs), confidence, temperatures)
    return Task(rule.confidences(said.logits), said.wrong.double(), Costs.of(costs, passing)), rule


def _with(rule: Policy, thresholds: Thresholds | None) -> Policy | None:
    return None if thresholds is None else replace(rule, thresholds=thresholds)
