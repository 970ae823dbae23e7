"""Thresholds of least cost, or of least errors, by coordinate descent on what the outputs said of images.

The least of one under a bound on the other is looked for: with all thresholds but one held, every value of that one is
tried exactly, by sorting the images that reach it. Several starts (weighted sums of errors and cost, one threshold for
all, geometric exit shares) are refined; the result is a good local optimum, with no proof that it is the best.

Shapes: K outputs, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from auxnet.policy import ALWAYS, NEVER, can_leave, first_exit

Thresholds = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Costs:
    """Of stopping at each output [K], and of going on from one at which images may leave [K - 1], in float64."""

    stop: Tensor
    passing: Tensor

    @staticmethod
    def of(costs: Sequence[float], passing: Sequence[float] | None) -> Costs:
        """From plain numbers; without `passing`, going on costs nothing. Raises ValueError."""
        passing = [0.0] * (len(costs) - 1) if passing is None else passing
        if len(passing) != len(costs) - 1:
            raise ValueError(f"{len(costs)} outputs need {len(costs) - 1} costs of passing, got {len(passing)}")
        return Costs(torch.tensor(costs, dtype=torch.float64), torch.tensor(passing, dtype=torch.float64))

    def under(self, thresholds: Sequence[float]) -> Tensor:
        """Of an image that leaves at each output, float64 [K], with the heads that it passes under these thresholds."""
        asked = torch.tensor([can_leave(threshold) for threshold in thresholds], dtype=torch.float64)
        return self.stop + _cumulated(asked * self.passing)


@dataclass(frozen=True, eq=False)
class Task:
    """Confidences [K - 1, N] in the precision that decides, errors [K, N] in float64, and costs."""

    sure: Tensor
    wrong: Tensor
    costs: Costs

    def of_images(self, chosen: Tensor) -> Task:
        """The same, of the images alone for which bool [N] is true."""
        return replace(self, sure=self.sure[:, chosen], wrong=self.wrong[:, chosen])

    def totals(self, thresholds: Thresholds) -> tuple[float, float]:
        """Errors and cost of all images together."""
        left = first_exit(self.sure, thresholds) - 1
        wrong = self.wrong.gather(0, left[None]).sum()
        return float(wrong), float(self.costs.under(thresholds)[left].sum())

    def common(self, thresholds: Sequence[float]) -> dict[Thresholds, tuple[float, float]]:
        """Policies of one threshold in [0, 1] for all outputs, with their totals: of all at once, by sorting.

        An image has left at output k or before if the largest confidence so far reaches the threshold.
        """
        values, costs = torch.tensor(thresholds, dtype=self.sure.dtype), self.costs.under((ALWAYS,) * len(self.sure))
        wrong = self.wrong[-1].sum().expand(len(values))
        cost = (costs[-1] * self.wrong.shape[1]).expand(len(values))
        for k, surest in enumerate(self.sure.cummax(0).values):
            ordered, order = surest.sort(descending=True)
            gone = torch.searchsorted(-ordered, -values, right=True)
            wrong = wrong + _cumulated((self.wrong[k] - self.wrong[k + 1])[order])[gone]
            cost = cost + (costs[k] - costs[k + 1]) * gone
        rows = zip(thresholds, wrong.tolist(), cost.tolist(), strict=True)
        return {(value,) * len(self.sure): (errors, spent) for value, errors, spent in rows}

    def starts(self, common: bool) -> dict[Thresholds, tuple[float, float]]:
        """Policies to begin from, with their totals."""
        auxiliary = len(self.sure)
        never: Thresholds = (NEVER,) * auxiliary
        alike = self.common([*_grid(self.sure), ALWAYS]) | {never: self.totals(never)}
        if common:
            return alike
        found: set[Thresholds] = {geometric_shares(self.sure, q) for q in torch.logspace(-1.5, 1.5, 16).tolist()}
        found |= {only_at(k, auxiliary + 1) for k in range(1, auxiliary + 2)}
        span = float(self.costs.stop.max() - self.costs.stop.min()) or 1.0
        thresholds = never
        for price in torch.logspace(-4, 0.5, 19).tolist():  # errors that saving the whole span is worth
            thresholds = self.descend(thresholds, 1.0, price / span, float("inf"), float("inf"))
            found.add(thresholds)
        return alike | {thresholds: self.totals(thresholds) for thresholds in found}

    @cached_property
    def order(self) -> Tensor:
        """The images from the surest to the least sure, of each auxiliary output, int64 [K - 1, N]."""
        return self.sure.argsort(dim=1, descending=True, stable=True)

    def descend(
        self, thresholds: Thresholds, per_error: float, per_cost: float, max_wrong: float, max_cost: float
    ) -> Thresholds:
        """Coordinate descent on per_error x errors + per_cost x cost, within the bounds on their totals."""
        row, last, stop = list(thresholds), len(thresholds), self.costs.stop
        for _ in range(10):
            before = tuple(row)
            # What every image errs and costs [K - 1, N] if it goes on from output k, under the later thresholds:
            onward = [(self.wrong[last], stop[last].expand(self.wrong.shape[1]))]
            for k in range(last - 1, 0, -1):
                leaves, (wrong, cost) = self.sure[k] >= row[k], onward[0]
                cost = cost + can_leave(row[k]) * self.costs.passing[k]
                onward.insert(0, (torch.where(leaves, self.wrong[k], wrong), torch.where(leaves, stop[k], cost)))
            here, gone_wrong, gone_cost = torch.ones(self.wrong.shape[1], dtype=torch.bool), 0.0, 0.0
            for k, (wrong_on, cost_on) in enumerate(onward):
                reach = self.order[k][here[self.order[k]]]
                if not len(reach):
                    break
                sure, wrong_here, wrong, cost = (
                    self.sure[k, reach],
                    self.wrong[k, reach],
                    wrong_on[reach],
                    cost_on[reach],
                )
                # After the first m images of `reach` leave here, m = 0..len(reach):
                wrongs = gone_wrong + wrong.sum() + _cumulated(wrong_here - wrong)
                passing = self.costs.passing[k]
                costs = gone_cost + cost.sum() + passing * len(reach) + _cumulated(stop[k] - cost - passing)
                costs[0] -= passing * len(reach)  # where none leaves, the head is not run
                value = per_error * wrongs + per_cost * costs
                ends = torch.ones(1, dtype=torch.bool)
                allowed = torch.cat([ends, sure[:-1] > sure[1:], ends])
                allowed &= (wrongs <= max_wrong) & (costs <= max_cost * (1 + 1e-12))
                if allowed.any():
                    row[k] = _cut(sure, int(torch.where(allowed, value, float("inf")).argmin()))
                leaves = sure >= row[k]
                gone_wrong += float(wrong_here[leaves].sum())
                gone_cost += float(stop[k]) * int(leaves.sum())
                gone_cost += can_leave(row[k]) * float(passing) * int((~leaves).sum())
                here[reach[leaves]] = False
            if tuple(row) == before:
                break
        return tuple(row)

    def solve(
        self,
        starts: dict[Thresholds, tuple[float, float]],
        max_error_increase: float | None,
        max_mean_cost: float | None,
        refine: int,
    ) -> Thresholds | None:
        """The best of the starts within the bound, the best few of them refined; None if none is."""
        n = self.wrong.shape[1]
        if max_error_increase is not None:
            max_wrong, max_cost = float(self.wrong[-1].sum()) + max_error_increase * n + 1e-9, float("inf")
            per_error, per_cost = 1e-9 * float(self.costs.stop.mean()), 1.0
        else:
            max_wrong, max_cost = float("inf"), (max_mean_cost or 0.0) * n
            per_error, per_cost = 1.0, 1e-9 / float(self.costs.stop.mean())

        def value(totals: tuple[float, float]) -> float:
            return per_error * totals[0] + per_cost * totals[1]

        within = [t for t, (wrong, cost) in starts.items() if wrong <= max_wrong and cost <= max_cost * (1 + 1e-12)]
        if not within:
            return None
        within.sort(key=lambda thresholds: (value(starts[thresholds]), thresholds))
        if not refine:
            return within[0]
        refined = [self.descend(t, per_error, per_cost, max_wrong, max_cost) for t in within[:refine]]
        return min(refined, key=lambda thresholds: value(self.totals(thresholds)))


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


def only_at(k: int, outputs: int) -> Thresholds:
    """Thresholds by which every image leaves at output k of 1..outputs."""
    return (NEVER,) * (k - 1) + (ALWAYS,) * (outputs - k)


def geometric_shares(sure: Tensor, q: float) -> Thresholds:
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
