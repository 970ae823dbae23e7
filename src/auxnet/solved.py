"""The answer of solving early exit: a policy, what it does to images, and curves to compare it with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from auxnet.policy import Policy
from auxnet.thresholds import CrossFit, Outcome

Unit = Literal["MACs", "ms"]


@dataclass(frozen=True)
class Point:
    """A policy, and what it does to validation and to test images."""

    policy: Policy
    val: Outcome
    test: Outcome | None
    """None where no test images were given"""

    @property
    def outcomes(self) -> dict[str, Any]:
        """What it does, as exits.json has it."""
        return {"val": asdict(self.val), "test": self.test and asdict(self.test)}


@dataclass(frozen=True, kw_only=True)
class Solved:
    """The answer to a target, curves to compare it with, and what they were made from."""

    answer: Point | None = None
    """None if no thresholds meet the target"""
    reason: str | None = None
    """why there is no answer; None if there is one"""
    curves: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    """"solved": the least errors for bounds on the mean cost; "anytime": all images at output 1, 2, ..., K;
    "budgeted": shares proportional to q^k; {} without an answer. Choose by `val` alone: picking a target by `test`
    would be choosing on the test set"""
    cross_fitted: CrossFit | None = None
    """how max_error_increase is kept on images left out of solving; None for another target"""
    costs: tuple[float, ...]
    """[K], of an image that leaves at each output, with the heads that the policy runs before it"""
    alone: tuple[float, ...]
    """[K], of each output as a model of its own, the alternative to early exit"""
    unit: Unit
    """of all costs: multiply-adds, or milliseconds of one image at a time, measured here"""
    target: dict[str, float]
    """max_error_increase (a fraction), or max_mean_cost (in `unit`)"""
    notes: tuple[str, ...] = ()
    """what to know before trusting the thresholds; () without an answer"""
    source: dict[str, Any] = field(default_factory=dict, repr=False)
    """what the policy was made from and where, as exits.json has it: weights, weights_sha256, common, versions, commit,
    device; {} without a run or an answer"""
    written: Path | None = None
    """RUN/exits.json, or exits-best.json; None if nothing was written"""
    measured_on: str | None = None
    """the device and threads of the milliseconds, as "cpu, 2 threads"; None where the unit is MACs"""

    @property
    def policy(self) -> Policy | None:
        """The policy that meets the target; None if no thresholds do."""
        return None if self.answer is None else self.answer.policy

    @property
    def val(self) -> Outcome | None:
        """What the policy does to the images that it was solved on."""
        return None if self.answer is None else self.answer.val

    @property
    def test(self) -> Outcome | None:
        """What the policy does to test images, which decided nothing; None also if none were given."""
        return None if self.answer is None else self.answer.test

    @property
    def content(self) -> dict[str, Any]:
        """What exits.json holds; {} without a policy."""
        if self.answer is None:
            return {}
        return {
            **self.source,
            **asdict(self.answer.policy),
            "target": self.target,
            "cross_fitted": None if self.cross_fitted is None else asdict(self.cross_fitted),
            "notes": list(self.notes),
            "unit": self.unit,
            "costs": list(self.costs),
            "alone": list(self.alone),
            **self.answer.outcomes,
            "curves": {
                name: [{"thresholds": each.policy.thresholds, **each.outcomes} for each in curve]
                for name, curve in self.curves.items()
            },
        }


def cost_text(value: float) -> str:
    """A cost as people read it: 12,345 or 0.123."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"
