"""Thresholds of early exit, solved on validation images: when may an image leave at a shallow output?

An image leaves at the first output whose confidence reaches that output's threshold; the final output takes
the rest. Choosing the K - 1 thresholds trades errors against mean cost (`descent`).

Thresholds that just keep a bound on the images they were solved on exceed it on other images, since they were picked
for the former. `Solver.cross_fitted` therefore solves on four fifths of the images and counts errors on the last fifth,
five times over, and tightens the bound until the target is kept on those fifths.

Shapes: K outputs, N images. Costs may be in any unit: `costs` [K] of leaving at each output, `passing` [K - 1] of
running a head whose output an image then does not leave at (default: nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from auxnet.descent import Costs, Starts, Task, geometric_shares, only_at, surest_first
from auxnet.errors import check_limit, check_share
from auxnet.policy import ALWAYS, Policy
from auxnet.scores import Comparison, Predictions, compare, fit_temperature, interval_of_mean, wilson

FOLDS = 5  # parts of the images, each left out of solving once
TRIES = 7  # steps of bisection for the error to allow
BEST = 8  # starting policies that are refined
FEWEST = 5  # images that a target on the error must amount to: with fewer, only luck shows that it is kept


@dataclass(frozen=True)
class Outcome:
    """What a policy does to a set of images, with 95 % intervals: Wilson's, and of the cost `interval_of_mean`."""

    images: int
    error: float
    error_interval: tuple[float, float]
    mean_cost: float
    cost_interval: tuple[float, float]
    shares: tuple[float, ...]
    """[K], of the images that leave at each output; their sum is one"""
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


# ---- solving ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossFit:
    """What thresholds do to images that they were not solved on: each part of the images in turn is left out."""

    parts: int
    allowed: float | None
    """the rise of the error (a fraction) to allow on the images solved on, so that the target is kept on those left
    out; None if none that was tried does that, or the images are too few to show it: all take the final output"""
    rise: float
    """of the error on the images left out, above the final output's, with that much allowed; 0 without it"""
    rise_interval: tuple[float, float]
    """95 %; it ignores that `allowed` was picked among several"""


def smallest_provable_target(images: int) -> float:
    """The smallest rise of the error (a fraction) that so many images can verify: `FEWEST` errors.

    A smaller target is verified only by thresholds that are shown to err no more than the final output.
    """
    return FEWEST / images


@dataclass(frozen=True, eq=False)
class Solver:
    """Solves thresholds on predictions of *validation* images.

    The policies found are `rule` (`policy.never` makes one) with other thresholds: its confidence and temperatures are
    kept. With `common`, one threshold serves all outputs (BranchyNet's rule). Raises ValueError for another number of
    costs than of outputs.
    """

    predicted: Predictions
    rule: Policy
    costs: Sequence[float]
    """[K], of an image that leaves at each output"""
    passing: Sequence[float] | None = None
    """[K - 1], what an output at which images may leave adds for one that goes on; None: nothing"""
    common: bool = False

    def __post_init__(self) -> None:
        if len(self.costs) != len(self.predicted.logits):
            K = len(self.predicted.logits)
            raise ValueError(f"{K} outputs need {K} costs, got {len(self.costs)}")

    @cached_property
    def task(self) -> Task:
        """The problem, in tensors. Raises ValueError if rule or costs do not fit."""
        confidences = self.rule.confidences(self.predicted.logits)
        return Task(confidences, self.predicted.wrong.double(), Costs.of(self.costs, self.passing))

    @cached_property
    def starts(self) -> Starts:
        """Where solving starts from, for any target."""
        return self.task.starts(self.common)

    def solve(self, max_error_increase: float | None = None, max_mean_cost: float | None = None) -> Policy | None:
        """Thresholds for one target; None if nothing meets it.

        The target is either the least mean cost with an error of at most the final output's + `max_error_increase` (a
        fraction), or the least error with a mean cost of at most `max_mean_cost`. Raises ValueError for two targets,
        or one that is out of range.
        """
        check_target(max_error_increase, max_mean_cost)
        found = self.task.solve(self.starts, max_error_increase, max_mean_cost, self._refined)
        return None if found is None else replace(self.rule, thresholds=found)

    def cross_fitted(self, max_error_increase: float) -> tuple[Policy, CrossFit]:
        """Thresholds of the least mean cost whose error rises by at most that much (a fraction) on *other* images.

        It does so on average, not with certainty. Bisection looks for the largest rise to allow on the images solved on
        with which the target is kept on the images left out, over all folds. (`solve` allows the whole target.)
        Policies by which all images leave at one output are among the candidates. A target below
        `smallest_provable_target` counts as kept only if the 95 % interval of the rise ends at 0 or below. If nothing
        is shown to keep the target, all images take the final output.
        """
        check_target(max_error_increase)
        n = len(self.predicted.labels)
        final = replace(self.rule, thresholds=only_at(len(self.costs), len(self.costs)))
        final_alone = final, CrossFit(FOLDS, None, 0.0, (0.0, 0.0))
        unprovable = max_error_increase < smallest_provable_target(n) - 1e-9
        part = torch.randperm(n, generator=torch.Generator().manual_seed(0)) % FOLDS
        folds = [(self.task.of_images(part != k), self.task.of_images(part == k)) for k in range(FOLDS)]
        begun = [solved_on.starts(self.common) for solved_on, _ in folds]

        def rise(allowed: float) -> Comparison:
            errors = []
            for (solved_on, left_out), begin in zip(folds, begun, strict=True):
                found = solved_on.solve(begin, allowed, None, min(self._refined, 2))
                errors.append(left_out.errors(found or final.thresholds))
            finals = torch.cat([left_out.wrong[-1] for _, left_out in folds])
            return compare(torch.cat(errors).bool(), finals.bool())

        def keeps_target(found: Comparison) -> bool:
            return found.high <= 0 if unprovable else found.difference <= max_error_increase + 1e-9

        # Search from the target down, by two targets or by two standard errors of the final output's error:
        error = self.predicted.errors[-1]
        width = 2 * max(max_error_increase, (error * (1 - error) / n) ** 0.5)
        best = _largest_kept(rise, keeps_target, max_error_increase - width, max_error_increase)
        if best is None:
            return final_alone
        allowed, found = best
        thresholds = self.task.solve(self.starts, allowed, None, self._refined)
        if thresholds is None:
            return final_alone
        kept = CrossFit(FOLDS, allowed, found.difference, (found.low, found.high))
        return replace(self.rule, thresholds=thresholds), kept

    def cost_curve(self, points: int = 12) -> list[Policy]:
        """Least-error policies for mean costs evenly spaced from the first output's to that of passing all heads."""
        most = float(self.task.costs.under((ALWAYS,) * (len(self.costs) - 1)).max())
        bounds = torch.linspace(min(self.costs), most, points, dtype=torch.float64).tolist()
        return [policy for policy in (self.solve(max_mean_cost=bound) for bound in bounds) if policy is not None]

    @property
    def _refined(self) -> int:
        """How many of the starts are refined: none, if that would give each output a threshold of its own."""
        return 0 if self.common else BEST


def _largest_kept(
    rise: Callable[[float], Comparison], keeps_target: Callable[[Comparison], bool], low: float, high: float
) -> tuple[float, Comparison] | None:
    """Bisect for the largest rise to allow, and give it with its result; None if none tried keeps the target.

    `high`, the whole target, is tried first; `low` is only a bound.
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
    """Raise ValueError unless there is one target, in its range: a fraction below 0.5, a cost above 0."""
    if (max_error_increase is None) == (max_mean_cost is None):
        raise ValueError("give one target: max_error_increase or a bound on the mean cost")
    if max_error_increase is not None:
        check_share("max_error_increase", max_error_increase)
    if max_mean_cost is not None:
        check_limit("the bound on the mean cost", max_mean_cost)


# ---- to compare with -------------------------------------------------------------------------------------------


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
