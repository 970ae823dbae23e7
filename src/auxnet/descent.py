"""Thresholds of least cost, or of least errors, by coordinate descent on what the outputs said of images.

One is minimised under a bound on the other: while all other thresholds are held, every value of one threshold is tried
exactly, by sorting the images that reach it. Several starts (weighted sums of errors and cost, one threshold for all,
geometric exit shares) are refined; the result is a good local optimum, without proof that it is the best.

Shapes: K outputs, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from auxnet.policy import ALWAYS, NEVER, can_leave, first_exit

Thresholds = tuple[float, ...]
Starts = dict[Thresholds, tuple[float, float]]  # with their errors and cost, summed over all images
Amount = TypeVar("Amount", float, Tensor)
MOST_THRESHOLDS = 500  # tried as one threshold for all outputs


@dataclass(frozen=True, eq=False)
class Costs:
    """The cost of leaving at each output [K], and of a head that an image passes without leaving [K - 1]; float64."""

    stop: Tensor
    passing: Tensor

    @staticmethod
    def of(costs: Sequence[float], passing: Sequence[float] | None) -> Costs:
        """Costs from plain numbers; without `passing`, heads passed cost nothing. Raises ValueError."""
        passing = [0.0] * (len(costs) - 1) if passing is None else passing
        if len(passing) != len(costs) - 1:
            raise ValueError(f"{len(costs)} outputs need {len(costs) - 1} costs of passing, got {len(passing)}")
        return Costs(torch.tensor(costs, dtype=torch.float64), torch.tensor(passing, dtype=torch.float64))

    def under(self, thresholds: Sequence[float]) -> Tensor:
        """The cost of leaving at each output, float64 [K], with that of the heads run before it."""
        asked = torch.tensor([can_leave(threshold) for threshold in thresholds], dtype=torch.float64)
        return self.stop + _cumulated(asked * self.passing)


class Aim(NamedTuple):
    """Minimise per_error x errors + per_cost x cost, summed over all images, within bounds on both."""

    per_error: float
    per_cost: float
    max_errors: float = float("inf")
    max_cost: float = float("inf")

    def value(self, errors: Amount, cost: Amount) -> Amount:
        """The objective."""
        return self.per_error * errors + self.per_cost * cost

    def allows(self, errors: Amount, cost: Amount) -> Any:
        """Whether both are within their bounds: a bool, or bool [M] for tensors [M]."""
        return (errors <= self.max_errors) & (cost <= self.max_cost * (1 + 1e-12))


@dataclass(frozen=True, eq=False)
class Task:
    """What thresholds are solved on: confidences [K - 1, N] in the dtype in which images will leave, errors [K, N]
    in float64, and costs."""

    confidences: Tensor
    wrong: Tensor
    costs: Costs

    def of_images(self, chosen: Tensor) -> Task:
        """The same task on some images: those for which `chosen`, bool [N], is true."""
        return replace(self, confidences=self.confidences[:, chosen], wrong=self.wrong[:, chosen])

    def errors(self, thresholds: Thresholds) -> Tensor:
        """Whether each image is misclassified, 0 or 1 in float64 [N]."""
        return self.wrong.gather(0, first_exit(self.confidences, thresholds)[None] - 1)[0]

    def totals(self, thresholds: Thresholds) -> tuple[float, float]:
        """Errors and cost, summed over all images."""
        exits = first_exit(self.confidences, thresholds) - 1
        return float(self.errors(thresholds).sum()), float(self.costs.under(thresholds)[exits].sum())

    def common(self, thresholds: Sequence[float]) -> Starts:
        """Policies of one threshold in [0, 1] for all outputs, with their totals, all computed at once by sorting.

        An image has left at output k or before if its largest confidence up to there reaches the threshold.
        """
        auxiliary = len(self.confidences)
        values, costs = torch.tensor(thresholds, dtype=self.confidences.dtype), self.costs.under((ALWAYS,) * auxiliary)
        wrong = self.wrong[-1].sum().expand(len(values))
        cost = (costs[-1] * self.wrong.shape[1]).expand(len(values))
        for k, surest in enumerate(self.confidences.cummax(0).values):
            ordered, order = surest.sort(descending=True)
            gone = torch.searchsorted(-ordered, -values, right=True)
            wrong = wrong + _cumulated((self.wrong[k] - self.wrong[k + 1])[order])[gone]
            cost = cost + (costs[k] - costs[k + 1]) * gone
        rows = zip(thresholds, wrong.tolist(), cost.tolist(), strict=True)
        return {(value,) * auxiliary: (errors, spent) for value, errors, spent in rows}

    def starts(self, common: bool) -> Starts:
        """Policies to start from, with their totals."""
        auxiliary = len(self.confidences)
        never: Thresholds = (NEVER,) * auxiliary
        alike = self.common([*_grid(self.confidences), ALWAYS]) | {never: self.totals(never)}
        if common:
            return alike
        qs = torch.logspace(-1.5, 1.5, 16).tolist()
        found = {geometric_shares(self.confidences, self.order, q) for q in qs}
        found |= {only_at(k, auxiliary + 1) for k in range(1, auxiliary + 2)}
        span = float(self.costs.stop.max() - self.costs.stop.min()) or 1.0
        thresholds = never
        for price in torch.logspace(-4, 0.5, 19).tolist():  # in errors, of the whole span of costs
            thresholds = self.descend(thresholds, Aim(1.0, price / span))
            found.add(thresholds)
        return alike | {thresholds: self.totals(thresholds) for thresholds in found}

    @cached_property
    def order(self) -> Tensor:
        """The images of each auxiliary output, surest first, int64 [K - 1, N]."""
        return surest_first(self.confidences)

    def descend(self, thresholds: Thresholds, aim: Aim) -> Thresholds:
        """Coordinate descent: set each threshold in turn to its best value, until none changes."""
        row, stop, passing = list(thresholds), self.costs.stop.tolist(), self.costs.passing.tolist()
        for _ in range(10):
            before = tuple(row)
            errors, costs = self._onward(before)
            staying, gone = torch.ones(self.wrong.shape[1], dtype=torch.bool), (0.0, 0.0)
            for k in range(len(row)):
                reach = self.order[k].masked_select(staying.index_select(0, self.order[k]))
                if not len(reach):
                    break
                onward = errors[k].index_select(0, reach), costs[k].index_select(0, reach)
                best = self._best_cut(k, reach, onward, gone, aim)
                row[k] = row[k] if best is None else best
                leave = reach.masked_select(self.confidences[k].index_select(0, reach) >= row[k])
                on = can_leave(row[k]) * passing[k] * (len(reach) - len(leave))
                wrong = float(self.wrong[k].index_select(0, leave).sum())
                gone = (gone[0] + wrong, gone[1] + stop[k] * len(leave) + on)
                staying.index_fill_(0, leave, False)
            if tuple(row) == before:
                break
        return tuple(row)

    def _onward(self, thresholds: Thresholds) -> tuple[list[Tensor], list[Tensor]]:
        """Errors and costs of every image that passes output k, under the later thresholds: K - 1 tensors [N] each."""
        last = len(thresholds)
        errors, costs = [self.wrong[last]], [self.costs.stop[last].expand(self.wrong.shape[1])]
        for k in range(last - 1, 0, -1):
            leaves, passing = self.confidences[k] >= thresholds[k], can_leave(thresholds[k]) * self.costs.passing[k]
            errors.append(torch.where(leaves, self.wrong[k], errors[-1]))
            costs.append(torch.where(leaves, self.costs.stop[k], costs[-1] + passing))
        return errors[::-1], costs[::-1]

    def _best_cut(
        self, k: int, reach: Tensor, onward: tuple[Tensor, Tensor], gone: tuple[float, float], aim: Aim
    ) -> float | None:
        """The best threshold of output k; None if none is within the aim's bounds.

        `reach`, int64 [M], are the images that get to output k, surest first; `onward` their errors and costs [M] if
        they pass it; `gone` the errors and cost of all images that left before.
        """
        (errors, costs), confidences = onward, self.confidences[k].index_select(0, reach)
        stop, passing = self.costs.stop[k], self.costs.passing[k]
        # Summed over all images, if the first m of `reach` leave here, m = 0..M:
        all_errors = gone[0] + errors.sum() + _cumulated(self.wrong[k].index_select(0, reach) - errors)
        all_costs = gone[1] + costs.sum() + passing * len(reach) + _cumulated(stop - costs - passing)
        all_costs[0] -= passing * len(reach)  # if none leaves, the head is not run
        ends = torch.ones(1, dtype=torch.bool)
        apart = torch.cat([ends, confidences[:-1] > confidences[1:], ends])
        allowed = apart & aim.allows(all_errors, all_costs)
        if not allowed.any():
            return None
        value = aim.value(all_errors, all_costs)
        return _cut(confidences, int(torch.where(allowed, value, float("inf")).argmin()))

    def solve(
        self, starts: Starts, max_error_increase: float | None, max_mean_cost: float | None, refine: int
    ) -> Thresholds | None:
        """The best of the starts within the bound, after the best few were refined; None if no start is within it."""
        n, scale = self.wrong.shape[1], float(self.costs.stop.mean())
        if max_error_increase is not None:  # between equals, errors decide
            most = float(self.wrong[-1].sum()) + max_error_increase * n + 1e-9
            aim = Aim(per_error=1e-9 * scale, per_cost=1.0, max_errors=most)
        else:
            aim = Aim(per_error=1.0, per_cost=1e-9 / scale, max_cost=(max_mean_cost or 0.0) * n)
        within = [thresholds for thresholds, totals in starts.items() if aim.allows(*totals)]
        if not within:
            return None
        within.sort(key=lambda thresholds: (aim.value(*starts[thresholds]), thresholds))
        if not refine:
            return within[0]
        refined = [self.descend(thresholds, aim) for thresholds in within[:refine]]
        return min(refined, key=lambda thresholds: aim.value(*self.totals(thresholds)))


def _cut(ordered: Tensor, m: int) -> float:
    """A threshold that the first m confidences, in falling order, reach, and no others."""
    if m in (0, len(ordered)):
        return NEVER if m == 0 else ALWAYS
    return float(_between(ordered[m], ordered[m - 1]))


def _between(lower: Tensor, upper: Tensor) -> Tensor:
    """Thresholds that `upper` reaches and `lower` does not: their middle, or `upper` if no number lies between.

    They are in the dtype of the confidences: the middle in a finer one could be rounded to `lower` when images leave.
    """
    middle = (lower + upper) / 2
    return torch.where(middle > lower, middle, upper)


def _cumulated(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _grid(confidences: Tensor) -> list[float]:
    """Thresholds between neighbouring confidences, at most `MOST_THRESHOLDS`, evenly spread over the images."""
    values = confidences.flatten().sort().values
    apart = values[1:] > values[:-1]
    middles = _between(values[:-1][apart], values[1:][apart])
    if not len(middles):
        return []
    picked = torch.linspace(0, len(middles) - 1, min(MOST_THRESHOLDS, len(middles))).round().long()
    return [float(value) for value in middles[picked]]


def only_at(k: int, outputs: int) -> Thresholds:
    """Thresholds by which every image leaves at output k of 1..outputs."""
    return (NEVER,) * (k - 1) + (ALWAYS,) * (outputs - k)


def surest_first(confidences: Tensor) -> Tensor:
    """The images of each auxiliary output, surest first, int64 [K - 1, N]."""
    return confidences.argsort(dim=1, descending=True, stable=True)


def geometric_shares(confidences: Tensor, order: Tensor, q: float) -> Thresholds:
    """Thresholds by which output k takes a share proportional to q^k of the images, the surest of those left.

    `order` is what `surest_first` makes of the confidences.
    """
    outputs, n = len(confidences) + 1, confidences.shape[1]
    shares = torch.tensor(q, dtype=torch.float64).pow(torch.arange(1, outputs + 1))
    staying = torch.ones(n, dtype=torch.bool)
    thresholds = []
    for row, surest, share in zip(confidences, order, (shares / shares.sum()).tolist(), strict=False):
        left = surest.masked_select(staying.index_select(0, surest))
        m = min(round(share * n), len(left))
        thresholds.append(_cut(row.index_select(0, left), m))
        staying &= row < thresholds[-1]
    return tuple(thresholds)
