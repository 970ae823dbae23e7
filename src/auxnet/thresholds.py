"""Thresholds of early exit, solved on validation images: when may an image leave at a shallow output?

An image leaves at the first output whose confidence reaches that output's threshold; the final output takes
the rest. Choosing the K - 1 thresholds trades errors against mean cost (`descent`).

Thresholds that just keep a bound on the images they were solved on exceed it on others: they were picked for those
images. `solve_cross_fitted` therefore solves on four fifths of the images, counts on the fifth, five times over, and
allows so much that the target is kept there.

Shapes: K outputs, N images. Cost is whatever `costs` [K] holds, of stopping at each output, and `passing` [K - 1] of
going on from an output at which other images may leave (default: nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from auxnet.descent import Costs, Starts, Task, geometric_shares, only_at, surest_first
from auxnet.errors import check_limit, check_share
from auxnet.policy import ALWAYS, Policy
from auxnet.scores import Comparison, Predictions, compare, fit_temperature, interval_of_mean, wilson

FOLDS = 5  # of the images, each left out of solving once
TRIES = 7  # of allowances, by bisection
BEST = 8  # of the policies to begin from, as many are refined
FEWEST = 5  # images that a target on the error must be worth: of fewer, thresholds are shown to keep it by luck alone


@dataclass(frozen=True)
class Outcome:
    """What a policy does to a set of images, with 95 % intervals: Wilson's of shares, that of a mean of the cost."""

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


def fit_temperatures(predicted: Predictions) -> tuple[float, ...]:
    """The temperature of each output, fitted on validation images."""
    return tuple(fit_temperature(logits, predicted.labels) for logits in predicted.logits)


def outcome(
    predicted: Predictions, policy: Policy, costs: Sequence[float], passing: Sequence[float] | None = None
) -> Outcome:
    """What a policy does to the images of `predicted`. Raises ValueError for a policy or costs of other outputs."""
    policy.check(len(predicted.logits))
    exits = policy.exits(predicted.logits)
    n = len(exits)
    wrong_n = predicted.wrong[exits - 1, torch.arange(n)]
    wrong = int(wrong_n.sum())
    stops = Costs.of(costs, passing).under(policy.thresholds)
    spent = stops[exits - 1]
    possible = stops[[k - 1 for k in range(1, policy.deepest + 1) if k == policy.deepest or policy.decides(k)]]
    counts = torch.bincount(exits - 1, minlength=len(costs)).tolist()
    return Outcome(
        images=n,
        error=wrong / n,
        error_interval=wilson(wrong, n),
        mean_cost=float(spent.mean()),
        cost_interval=interval_of_mean(spent, float(possible.min()), float(possible.max())),
        shares=tuple(count / n for count in counts),
        share_intervals=tuple(wilson(count, n) for count in counts),
        against_final=compare(wrong_n, predicted.wrong[-1]),
    )


# ---- policies --------------------------------------------------------------------------------------------------


def starts_of(
    predicted: Predictions,
    rule: Policy,
    costs: Sequence[float],
    passing: Sequence[float] | None = None,
    *,
    common: bool = False,
) -> Starts:
    """What solving begins from: found once, it serves all that is asked of the same predictions, rule and costs."""
    return _task(predicted, rule, costs, passing).starts(common)


def solve(
    predicted: Predictions,
    rule: Policy,
    costs: Sequence[float],
    passing: Sequence[float] | None = None,
    *,
    max_error_increase: float | None = None,
    max_mean_cost: float | None = None,
    common: bool = False,
    starts: Starts | None = None,
) -> Policy | None:
    """Thresholds for one target, from predictions of *validation* images; None if nothing meets it.

    Either the mean cost is least with an error of at most the final output's + `max_error_increase` (a
    fraction), or the error is least with a mean cost of at most `max_mean_cost`. Of the `rule` (`policy.never` makes
    one) all but the thresholds is kept. With `common`, one threshold serves all outputs (BranchyNet's rule).
    `starts`, here and below, are those of `starts_of`, where they are known already. Raises ValueError for a target
    that cannot be, or two.
    """
    check_target(max_error_increase, max_mean_cost)
    task = _task(predicted, rule, costs, passing)
    found = task.solve(starts or task.starts(common), max_error_increase, max_mean_cost, refine=0 if common else BEST)
    return None if found is None else replace(rule, thresholds=found)


@dataclass(frozen=True)
class CrossFit:
    """What thresholds do to images that they were not solved on: each part of them in turn is left out of solving."""

    parts: int
    allowed: float | None
    """the rise of error allowed on the images solved on (a fraction) by which the target is kept on those left out;
    None: by no allowance that was tried, or the images are too few to show it, and all take the final output"""
    rise: float
    """of the error above the final output's, on the images left out, under that allowance; else 0"""
    rise_interval: tuple[float, float]
    """95 %, of the one allowance: that it was picked among several is not in it"""


def smallest_provable_target(images: int) -> float:
    """The smallest rise of error (a fraction) that so many images can verify: `FEWEST` errors.

    Below it luck decides, unless the thresholds are shown to err no more than the final output.
    """
    return FEWEST / images


def solve_cross_fitted(
    predicted: Predictions,
    rule: Policy,
    costs: Sequence[float],
    passing: Sequence[float] | None = None,
    *,
    max_error_increase: float,
    common: bool = False,
    starts: Starts | None = None,
) -> tuple[Policy, CrossFit]:
    """Thresholds of the least mean cost with an error that rises by at most `max_error_increase` on *other* images.

    On average, not with certainty. Bisection looks for the largest rise to allow: thresholds solved with it on all
    folds but one, and judged on that one, keep the target, over all folds. A single output that takes all images is
    among the candidates. A target below `smallest_provable_target` counts as kept only where the 95 % interval of the
    rise ends at 0 or below. Where nothing is shown to keep the target, all images take the final output. Else as
    `solve`, which allows all of the target on the images that it solves on.
    """
    check_target(max_error_increase)
    task, n, refine = _task(predicted, rule, costs, passing), len(predicted.labels), 0 if common else BEST
    final = replace(rule, thresholds=only_at(len(costs), len(costs)))
    final_alone = final, CrossFit(FOLDS, None, 0.0, (0.0, 0.0))
    unprovable = max_error_increase < smallest_provable_target(n) - 1e-9
    part = torch.randperm(n, generator=torch.Generator().manual_seed(0)) % FOLDS
    folds = [(task.of_images(part != k), task.of_images(part == k)) for k in range(FOLDS)]
    begun = [solved_on.starts(common) for solved_on, _ in folds]

    def rise(allowed: float) -> Comparison:
        errors = []
        for (solved_on, left_out), begin in zip(folds, begun, strict=True):
            found = solved_on.solve(begin, allowed, None, refine=min(refine, 2))
            errors.append(left_out.errors(found or final.thresholds))
        finals = torch.cat([left_out.wrong[-1] for _, left_out in folds])
        return compare(torch.cat(errors).bool(), finals.bool())

    def keeps_target(found: Comparison) -> bool:
        return found.high <= 0 if unprovable else found.difference <= max_error_increase + 1e-9

    # Between the target and that less two targets, or two standard errors of the final output's error:
    error = predicted.errors[-1]
    width = 2 * max(max_error_increase, (error * (1 - error) / n) ** 0.5)
    best = _largest_kept(rise, keeps_target, max_error_increase - width, max_error_increase)
    if best is None:
        return final_alone
    allowed, found = best
    thresholds = task.solve(starts or task.starts(common), allowed, None, refine)
    if thresholds is None:
        return final_alone
    return replace(rule, thresholds=thresholds), CrossFit(FOLDS, allowed, found.difference, (found.low, found.high))


def _largest_kept(
    rise: Callable[[float], Comparison], keeps_target: Callable[[Comparison], bool], low: float, high: float
) -> tuple[float, Comparison] | None:
    """Bisect for the largest rise to allow, and give what comes of it; None if none that was tried keeps the target.

    `high`, all of the target, is tried first; `low` is a bound alone.
    """
    best, allowed = None, high
    for _ in range(TRIES):
        found = rise(allowed)
        if keeps_target(found):
            best, low = (allowed, found), allowed
        else:
            high = allowed
        if low == high:  # all of the target may be allowed
            break
        allowed = (low + high) / 2
    return best


def check_target(max_error_increase: float | None = None, max_mean_cost: float | None = None) -> None:
    """Raise ValueError unless this is one target, and one that can be: a fraction below 0.5, a cost above 0."""
    if (max_error_increase is None) == (max_mean_cost is None):
        raise ValueError("give one target: max_error_increase or a bound on the mean cost")
    if max_error_increase is not None:
        check_share("max_error_increase", max_error_increase)
    if max_mean_cost is not None:
        check_limit("the bound on the mean cost", max_mean_cost)


def cost_curve(
    predicted: Predictions,
    rule: Policy,
    costs: Sequence[float],
    passing: Sequence[float] | None = None,
    *,
    points: int = 12,
    common: bool = False,
    starts: Starts | None = None,
) -> list[Policy]:
    """Least-error policies for mean costs evenly spaced from the first output's to that of passing all heads."""
    task = _task(predicted, rule, costs, passing)
    starts = starts or task.starts(common)
    most = float(task.costs.under((ALWAYS,) * (len(costs) - 1)).max())
    bounds = torch.linspace(min(costs), most, points, dtype=torch.float64).tolist()
    solved = (task.solve(starts, None, bound, refine=0 if common else BEST) for bound in bounds)
    return [replace(rule, thresholds=thresholds) for thresholds in solved if thresholds is not None]


def anytime(rule: Policy) -> list[Policy]:
    """MSDNet's anytime setting: for each output k, every image stops there."""
    outputs = len(rule.temperatures)
    return [replace(rule, thresholds=only_at(k, outputs)) for k in range(1, outputs + 1)]


def budgeted(predicted: Predictions, rule: Policy, *, points: int = 12) -> list[Policy]:
    """MSDNet's budgeted-batch setting: `geometric` policies for q from 1/10 (shallow) to 10 (deep)."""
    confidences = rule.confidences(predicted.logits)
    order, qs = surest_first(confidences), torch.logspace(-1, 1, points).tolist()
    return [replace(rule, thresholds=geometric_shares(confidences, order, q)) for q in qs]


def geometric(predicted: Predictions, rule: Policy, q: float) -> Policy:
    """Output k takes a share proportional to q^k of the images of `predicted`: the surest of those that are left."""
    if not 0 < q < float("inf"):
        raise ValueError(f"q must be above 0 and finite, got {q}")
    confidences = rule.confidences(predicted.logits)
    return replace(rule, thresholds=geometric_shares(confidences, surest_first(confidences), q))


def _task(predicted: Predictions, rule: Policy, costs: Sequence[float], passing: Sequence[float] | None) -> Task:
    """What is to be solved. Raises ValueError."""
    if len(costs) != len(predicted.logits):
        raise ValueError(f"{len(predicted.logits)} outputs need {len(predicted.logits)} costs, got {len(costs)}")
    return Task(rule.confidences(predicted.logits), predicted.wrong.double(), Costs.of(costs, passing))
