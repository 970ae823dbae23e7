"""Thresholds of early exit, solved on validation images: when may an image leave at a shallow output?

An image leaves at the first output whose confidence reaches that output's threshold; the final output takes
the rest. Choosing the K - 1 thresholds trades errors against mean cost. The least of one under a bound on the
other is looked for by coordinate descent: with all thresholds but one held, every value of that one is tried
exactly, by sorting the images that reach it. Several starts (weighted sums of errors and cost, one threshold
for all, geometric exit shares) are refined; the result is a good local optimum, with no proof that it is the best.

Shapes: K outputs, N images. Cost is whatever `costs` [K] holds, of stopping at each output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from auxnet.policy import ALWAYS, NEVER, Confidence, Policy, first_exit
from auxnet.scores import Comparison, Predictions, compare, fit_temperature, wilson


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


def outcome(said: Predictions, policy: Policy, costs: Sequence[float]) -> Outcome:
    """What a policy does to the images of `said`, where stopping at output k costs costs[k - 1]. Raises ValueError."""
    policy.check(len(said.logits))
    left = policy.exits(said.logits)
    n = len(left)
    wrong_n = said.wrong[left - 1, torch.arange(n)]
    wrong = int(wrong_n.sum())
    spent = torch.tensor(costs, dtype=torch.float64)[left - 1]
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
    task = _Task.of(said, costs, confidence, temperatures)
    return task.policy(_solve(task, task.starts(common), max_error_increase, max_mean_cost, refine=not common))


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
    *,
    points: int = 12,
    confidence: Confidence = "entropy",
    temperatures: Sequence[float] | None = None,
    common: bool = False,
) -> list[Policy]:
    """Least-error policies for mean costs evenly spaced from the first output's to the final one's."""
    task = _Task.of(said, costs, confidence, temperatures)
    starts = task.starts(common)
    bounds = torch.linspace(min(costs), max(costs), points, dtype=torch.float64).tolist()
    solved = (_solve(task, starts, None, bound, refine=not common) for bound in bounds)
    return [policy for thresholds in solved if (policy := task.policy(thresholds)) is not None]


def anytime(
    outputs: int, confidence: Confidence = "entropy", temperatures: Sequence[float] | None = None
) -> list[Policy]:
    """MSDNet's anytime setting: for each output k, every image stops there."""
    rule = _rule(outputs, confidence, temperatures)
    rows = [[NEVER] * (k - 1) + [ALWAYS] * (outputs - k) for k in range(1, outputs + 1)]
    return [replace(rule, thresholds=tuple(row)) for row in rows]


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
    return replace(rule, thresholds=_geometric(rule.confidences(said.logits), q))


def _rule(outputs: int, confidence: Confidence, temperatures: Sequence[float] | None) -> Policy:
    """The policy by which no image leaves early, for thresholds to be put in. Raises ValueError."""
    ones = [1.0] * outputs
    rule = Policy(
        (NEVER,) * (outputs - 1), confidence, tuple(map(float, ones if temperatures is None else temperatures))
    )
    rule.check(outputs)
    return rule


# ---- solving ---------------------------------------------------------------------------------------------------

Thresholds = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Task:
    """Confidences [K - 1, N] in the precision that decides, errors [K, N] and costs [K] in float64, and their rule."""

    sure: Tensor
    wrong: Tensor
    costs: Tensor
    rule: Policy

    @staticmethod
    def of(
        said: Predictions, costs: Sequence[float], confidence: Confidence, temperatures: Sequence[float] | None
    ) -> _Task:
        if len(costs) != len(said.logits):
            raise ValueError(f"{len(said.logits)} outputs need {len(said.logits)} costs, got {len(costs)}")
        rule = _rule(len(costs), confidence, temperatures)
        costs_k = torch.tensor(costs, dtype=torch.float64)
        return _Task(rule.confidences(said.logits), said.wrong.double(), costs_k, rule)

    def policy(self, thresholds: Thresholds | None) -> Policy | None:
        return None if thresholds is None else replace(self.rule, thresholds=thresholds)

    def totals(self, thresholds: Thresholds) -> tuple[float, float]:
        """Errors and cost of all images together."""
        left = first_exit(self.sure, thresholds) - 1
        wrong = self.wrong.gather(0, left[None]).sum()
        return float(wrong), float(self.costs[left].sum())

    def starts(self, common: bool) -> dict[Thresholds, tuple[float, float]]:
        """Policies to begin from, with their totals."""
        auxiliary = len(self.sure)
        found: set[Thresholds] = {(value,) * auxiliary for value in _grid(self.sure)}
        found |= {(NEVER,) * auxiliary, (ALWAYS,) * auxiliary}
        if not common:
            found |= {_geometric(self.sure, q) for q in torch.logspace(-1.5, 1.5, 16).tolist()}
            found |= {anytime(auxiliary + 1)[k].thresholds for k in range(auxiliary + 1)}
            span = float(self.costs.max() - self.costs.min()) or 1.0
            thresholds: Thresholds = (NEVER,) * auxiliary
            for price in torch.logspace(-4, 0.5, 19).tolist():  # errors that saving the whole span is worth
                thresholds = self.descend(thresholds, 1.0, price / span, float("inf"), float("inf"))
                found.add(thresholds)
        return {thresholds: self.totals(thresholds) for thresholds in found}

    def descend(
        self, thresholds: Thresholds, per_error: float, per_cost: float, max_wrong: float, max_cost: float
    ) -> Thresholds:
        """Coordinate descent on per_error x errors + per_cost x cost, within the bounds on their totals."""
        row = list(thresholds)
        for _ in range(10):
            before = tuple(row)
            for k in range(len(row)):
                reach = (first_exit(self.sure, row) > k).nonzero().squeeze(1)
                if not len(reach):
                    continue
                onward = first_exit(self.sure[k + 1 :, reach], row[k + 1 :]) + k
                order = self.sure[k, reach].argsort(descending=True, stable=True)
                reach, onward, sure = reach[order], onward[order], self.sure[k, reach][order]
                wrong, cost = self.totals((*row[:k], NEVER, *row[k + 1 :]))
                # After the first m images of `reach` leave here, m = 0..len(reach):
                wrongs = wrong + _cumulated(self.wrong[k, reach] - self.wrong[onward, reach])
                costs = cost + _cumulated(self.costs[k] - self.costs[onward])
                value = per_error * wrongs + per_cost * costs
                split = torch.cat([torch.tensor([True]), sure[:-1] > sure[1:], torch.tensor([True])])
                allowed = split & (wrongs <= max_wrong) & (costs <= max_cost * (1 + 1e-12))
                if allowed.any():
                    m = int(torch.where(allowed, value, float("inf")).argmin())
                    row[k] = _cut(sure, m)
            if tuple(row) == before:
                break
        return tuple(row)


def _solve(
    task: _Task,
    starts: dict[Thresholds, tuple[float, float]],
    max_error_increase: float | None,
    max_mean_cost: float | None,
    refine: bool,
) -> Thresholds | None:
    """The best of the starts within the bound, the best few of them refined; None if none is."""
    n = task.wrong.shape[1]
    if max_error_increase is not None:
        max_wrong, max_cost = float(task.wrong[-1].sum()) + max_error_increase * n + 1e-9, float("inf")
        per_error, per_cost = 1e-9 * float(task.costs.mean()), 1.0
    else:
        max_wrong, max_cost = float("inf"), (max_mean_cost or 0.0) * n
        per_error, per_cost = 1.0, 1e-9 / float(task.costs.mean())

    def value(totals: tuple[float, float]) -> float:
        return per_error * totals[0] + per_cost * totals[1]

    within = [t for t, (wrong, cost) in starts.items() if wrong <= max_wrong and cost <= max_cost * (1 + 1e-12)]
    if not within:
        return None
    within.sort(key=lambda thresholds: (value(starts[thresholds]), thresholds))
    if not refine:
        return within[0]
    refined = [task.descend(t, per_error, per_cost, max_wrong, max_cost) for t in within[:8]]
    return min(refined, key=lambda thresholds: value(task.totals(thresholds)))


def _cut(ordered: Tensor, m: int) -> float:
    """A threshold that the first m of confidences in falling order reach, and no others."""
    if m in (0, len(ordered)):
        return NEVER if m == 0 else ALWAYS
    return float(_between(ordered[m], ordered[m - 1]))


def _between(lower: Tensor, upper: Tensor) -> Tensor:
    """Thresholds that `upper` reaches and `lower` does not: their middle, or `upper` where none is left in between.

    In the precision of the confidences, in which images leave: a finer one's middle is rounded there, to `lower` too.
    """
    middle = (lower + upper) / 2
    return torch.where(middle > lower, middle, upper)


def _cumulated(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _grid(sure: Tensor, most: int = 500) -> list[float]:
    """Thresholds between neighbouring confidences, at most so many, evenly spread over the images."""
    values = sure.flatten().sort().values
    apart = values[1:] > values[:-1]
    middles = _between(values[:-1][apart], values[1:][apart])
    if not len(middles):
        return []
    picked = torch.linspace(0, len(middles) - 1, min(most, len(middles))).round().long()
    return [float(value) for value in middles[picked]]


def _geometric(sure: Tensor, q: float) -> Thresholds:
    """Thresholds by which output k takes a share proportional to q^k of the images, the surest of those left."""
    outputs, n = len(sure) + 1, sure.shape[1]
    shares = torch.tensor(q, dtype=torch.float64).pow(torch.arange(1, outputs + 1))
    left = torch.ones(n, dtype=torch.bool)
    thresholds = []
    for row, share in zip(sure, (shares / shares.sum()).tolist(), strict=False):
        ordered = row[left].sort(descending=True).values
        m = min(round(share * n), len(ordered))
        thresholds.append(_cut(ordered, m))
        left &= row < thresholds[-1]
    return tuple(thresholds)
