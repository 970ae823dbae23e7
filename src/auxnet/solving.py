"""Early exit solved for a run: thresholds from its validation images, and what they do on images not seen.

The test images decide nothing: policies are made first, of validation images alone, and then reported on both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from auxnet.descent import Costs
from auxnet.errors import check_choice, warn
from auxnet.exits import exit_latencies, exit_macs, exits_file
from auxnet.files import write_json
from auxnet.latency import OF_PYTORCH, Timing, measured_on
from auxnet.loading import weights_sha256
from auxnet.opening import opened
from auxnet.policy import Policy, never
from auxnet.precision import usual_defaults
from auxnet.provenance import provenance
from auxnet.recipe import RunDir
from auxnet.scores import predictions, too_few
from auxnet.sections import Confidence, Cost, Which
from auxnet.thresholds import (
    CrossFit,
    Outcome,
    anytime,
    budgeted,
    check_target,
    cost_curve,
    fit_temperatures,
    outcome,
    smallest_provable_target,
    solve,
    solve_cross_fitted,
    starts_of,
)
from auxnet.words import command, per_cent, plural, which_flags

Unit = Literal["MACs", "ms"]
INCREASE = 0.005  # the target, if none is given
MOST_POINTS = 100  # of a curve: each but the anytime one's is solved anew


@dataclass(frozen=True)
class Point:
    """A policy, and what it does to validation and to test images."""

    policy: Policy
    val: Outcome
    test: Outcome


@dataclass(frozen=True, kw_only=True)
class Solved:
    """The answer to a target, the curves around it, and what they were made of."""

    answer: Point | None = None
    """None if no thresholds meet the target"""
    reason: str | None = None
    """why there is no answer; None where there is one"""
    curves: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    """"solved": least errors for bounds on the mean cost; "anytime": all images at output 1, 2, ..., K; "budgeted":
    shares proportional to q^k; {} without a policy. Choose by `val` alone: a target picked by `test` unseals it"""
    cross_fitted: CrossFit | None = None
    """the rise of error on images left out of solving, by which max_error_increase is kept; None for another target"""
    costs: tuple[float, ...]
    """[K], of an image that leaves at each output, with the heads that it passes under the policy"""
    alone: tuple[float, ...]
    """[K], of each output as a model of its own: what could be shipped in place of early exit"""
    unit: Unit
    """of all costs: multiply-adds, or milliseconds of one image at a time, measured here"""
    target: dict[str, float]
    """max_error_increase (a fraction), or max_mean_cost (in `unit`)"""
    notes: tuple[str, ...] = ()
    """what a reader must know before trusting the thresholds; () without a policy"""
    source: dict[str, Any] = field(default_factory=dict, repr=False)
    """what the policy was made of and where, as exits.json has it: weights, weights_sha256, common, versions, commit,
    device; {} without a policy"""
    written: Path | None = None
    """RUN/exits.json, or exits-best.json; None if nothing was written"""
    measured_on: str | None = None
    """the device and threads of the milliseconds, as "cpu, 2 threads"; None where the unit is MACs"""

    @property
    def policy(self) -> Policy | None:
        """The policy that was solved for; None if no thresholds meet the target."""
        return None if self.answer is None else self.answer.policy

    @property
    def val(self) -> Outcome | None:
        """What the policy does to the images that it was solved on."""
        return None if self.answer is None else self.answer.val

    @property
    def test(self) -> Outcome | None:
        """What the policy does to images that decided nothing."""
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
            "val": asdict(self.answer.val),
            "test": asdict(self.answer.test),
            "curves": {
                name: [
                    {"thresholds": each.policy.thresholds, "val": asdict(each.val), "test": asdict(each.test)}
                    for each in curve
                ]
                for name, curve in self.curves.items()
            },
        }


@usual_defaults()
def solve_exits(
    run: RunDir,
    *,
    max_error_increase: float | None = None,
    max_mean_macs: float | None = None,
    max_mean_latency: float | None = None,
    cost: Cost = "macs",
    confidence: Confidence = "entropy",
    common: bool = False,
    temperature: bool = True,
    points: int = 8,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    which: Which = "last",
) -> Solved:
    """Solve when an image may leave a run at a shallow output, on validation; `early_exit` and `export` take it up.

    One target:

    - `max_error_increase`: the least mean `cost` ("macs" or "latency") with an error of at most that much above the
      final output's, as a fraction of the images (0.005, the default, is half a percentage point). It is kept in the
      mean over images that the thresholds were not solved on (`solve_cross_fitted`: no promise for one set of them),
      by the final output alone if nothing else is shown to keep it.
    - `max_mean_macs`: the least error with at most that many multiply-adds for an image in the mean.
    - `max_mean_latency`: the same in milliseconds, one image at a time, measured here.

    `confidence` is how sure an output is: "entropy" (BranchyNet, Teerapittayanon et al. 2016), "top" (the largest
    probability: MSDNet, Huang et al. 2018) or "margin" (over the second); with `common` one threshold serves all
    outputs (BranchyNet). With `temperature`, one is fitted to each output first (Guo et al. 2017). Each of the curves
    has that many `points`; the anytime and the budgeted one are MSDNet's settings. Data, device and CPU threads are
    those of the training where they are not given. `which` says for which weights of the run, "last" or "best": those
    that are shipped, for no others can be used with them.

    Writes RUN/exits.json (exits-best.json for the best weights) where thresholds meet the target, and warns
    (UserWarning) if that fails; where none do (a mean cost below that of output 1), the policy is None, the reason is
    there, and nothing is written. Raises ValueError for what cannot be asked for (two targets, a run with one output),
    TypeError for a net (docs/guide.md, "In your own loop", says how its thresholds are solved), and FileNotFoundError
    or RuntimeError as `opened` does.
    """
    target, unit = _target(max_error_increase, max_mean_macs, max_mean_latency, cost)
    check_choice("confidence", confidence, Confidence)
    if points not in range(2, MOST_POINTS + 1):
        raise ValueError(f"points of a curve must be a whole number in 2..{MOST_POINTS}, got {points!r}")
    with opened(run, data_dir=data_dir, device=device, threads=threads, which=which) as it:
        if it.net.outputs < 2:
            raise ValueError(f"{run} has one output: there is nothing to leave early at")
        val = predictions(it.net, it.batches("val"))
        stop, passing, alone, timing = (
            exit_latencies(it.net, it.image_shape, confidence) if unit == "ms" else exit_macs(it.net, it.image_shape)
        )
        measured = measured_on(it.device, torch.get_num_threads()) if unit == "ms" else None
        unsolved = Solved(costs=tuple(stop), alone=tuple(alone), unit=unit, target=target, measured_on=measured)
        rule = never(len(stop), confidence, fit_temperatures(val) if temperature else (1.0,) * len(stop))
        starts = starts_of(val, rule, stop, passing, common=common)
        how: dict[str, Any] = {"common": common, "starts": starts}
        policy: Policy | None
        policy, cross_fitted = None, None
        if (increase := target.get("max_error_increase")) is not None:
            policy, cross_fitted = solve_cross_fitted(val, rule, stop, passing, max_error_increase=increase, **how)
        else:
            policy = solve(val, rule, stop, passing, max_mean_cost=target["max_mean_cost"], **how)
        if policy is None:
            return replace(unsolved, reason=_unmet(unsolved, val.errors[0], timing))
        policies = {
            "solved": cost_curve(val, rule, stop, passing, points=int(points), common=common, starts=starts),
            "anytime": anytime(rule),
            "budgeted": budgeted(val, rule, points=int(points)),
        }
        test = predictions(it.net, it.batches("test"))  # after the choice, and only to report it
        made_of = {"weights": which, "weights_sha256": weights_sha256(Path(run), which), "common": common}
        source = {**made_of, **provenance(it.device)}

    def seen(policies: Iterable[Policy]) -> tuple[Point, ...]:
        return tuple(Point(p, outcome(val, p, stop, passing), outcome(test, p, stop, passing)) for p in policies)

    (answer,), curves = seen([policy]), {name: seen(several) for name, several in policies.items()}
    notes: list[str] = []
    if cross_fitted is not None and increase is not None:
        bound = _bound(curves["solved"], increase, curves["anytime"][-1].val.error, alone[-1], unit)
        notes += _of_target(increase, cross_fitted, answer, bound)
    select = command("select", Path(run), *which_flags(which))
    notes += _of_output_alone(select, curves["anytime"], alone, answer.val, target, unit)
    notes += [note for note in (too_few(answer.val.images), OF_PYTORCH if unit == "ms" else None) if note]
    found = replace(
        unsolved,
        answer=answer,
        curves=curves,
        cross_fitted=cross_fitted,
        costs=tuple(Costs.of(stop, passing).under(policy.thresholds).tolist()),
        notes=tuple(notes),
        source=source,
    )
    return _written(found, exits_file(run, which))


def cost_text(value: float) -> str:
    """A cost as people read it: 12,345 or 0.123."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"


def _target(
    increase: float | None, macs: float | None, latency: float | None, cost: Cost
) -> tuple[dict[str, float], Unit]:
    """The target as `solve` takes it, and the unit of cost. Raises ValueError for two, or one that cannot be."""
    check_choice("cost", cost, Cost)
    asked = {"max_error_increase": increase, "max_mean_macs": macs, "max_mean_latency": latency}
    given = {name: value for name, value in asked.items() if value is not None} or {"max_error_increase": INCREASE}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are {len(given)} targets: give one")
    ((name, value),) = given.items()
    if name == "max_mean_macs" and cost == "latency":
        raise ValueError("cost latency goes with max_error_increase, but max_mean_macs is given")
    key = "max_error_increase" if name == "max_error_increase" else "max_mean_cost"
    check_target(**{key: value})
    return {key: float(value)}, "ms" if name == "max_mean_latency" or cost == "latency" else "MACs"


def _unmet(unsolved: Solved, first_error: float, timing: Timing | None) -> str:
    """Why no thresholds keep the mean cost below a bound: output 1 alone costs more."""
    first, unit = unsolved.costs[0], unsolved.unit
    bound = f"a mean of at most {cost_text(unsolved.target['max_mean_cost'])} {unit}"
    cheapest = f"every image that leaves at output 1 costs {cost_text(first)} {unit}"
    reason = f"no thresholds meet {bound}: {cheapest} ({100 * first_error:.2f} % error)"
    if timing is None:
        return reason
    spread = f"its quartiles {cost_text(timing.low_ms)} .. {cost_text(timing.high_ms)}"
    return f"{reason}, the median measured on {unsolved.measured_on}, {spread}; times vary: ask again, or for more"


def _written(found: Solved, file: Path) -> Solved:
    """The answer, once it lies in the run; a disk that does not take it costs the file alone."""
    try:
        write_json(file, found.content)
    except OSError as error:
        warn(f"{file.name} is not written: {error.strerror or error}")
        return found
    return replace(found, written=file)


def _bound(curve: Sequence[Point], target: float, final_error: float, final_cost: float, unit: Unit) -> str:
    """What to ask for where no image leaves: of what costs less, the cheapest within the target, or what errs least."""
    cheaper = [one.val for one in curve if one.val.mean_cost < final_cost]
    if not cheaper:  # in milliseconds, output 1 can be measured to be no faster
        return ""
    val = min(cheaper, key=lambda val: (max(val.error, final_error + target + 1e-9), val.mean_cost))
    cost = f"macs {math.ceil(val.mean_cost)}" if unit == "MACs" else f"latency {math.ceil(1e3 * val.mean_cost) / 1e3:g}"
    return (
        ". To have images leave all the same, bound the mean cost, which needs no such proof: "
        f"--max-mean-{cost} ({per_cent(val.error)} error on these images, the final output {per_cent(final_error)})"
    )


def _of_target(target: float, found: CrossFit, answer: Point, bound: str) -> Iterator[str]:
    """Whether a target on the error is kept: on images solved on, on those left out of solving, and on test images.

    `bound` says what to ask for where all images take the final output.
    """
    n, points = answer.val.images, plural(100 * target, "point")
    if found.allowed is not None:
        low, high = found.rise_interval
        here, there = (
            answer.val.against_final.difference,
            f"{100 * found.rise:.2f} ({100 * low:.1f} .. {100 * high:.1f})",
        )
        yield (
            f"the error rises by {100 * here:.2f} points on the validation images that the thresholds are solved on, "
            f"and by {there} on images left out of solving, a fifth in turn: there it keeps the target of {points} in "
            "the mean, which promises nothing of one set of images"
        )
    elif target < smallest_provable_target(n) - 1e-9:
        least = math.ceil(1e4 * smallest_provable_target(n)) / 100
        provable = f"{least:g} is the least that they can show" if least < 50 else "they can show none"
        yield (
            f"{n:,} validation images are too few to show that a target of {points} is kept ({provable}). "
            "Nothing is shown to err no more than the final output: all images take that one. More validation images "
            f"(--val-fraction, in training) can show more{bound}"
        )
    else:
        said = f"nothing is shown to keep the target of {points} on images left out"
        yield f"{said}: all images take the final output{bound}"
    test = answer.test.against_final
    if test.difference > target + 1e-9:
        how = "beyond chance" if test.low > target + 1e-9 else "which may be chance"
        yield f"on test images the error rises by more than the target of {points}, {how}"


def _of_output_alone(
    select: str, outputs: Sequence[Point], alone: Sequence[float], val: Outcome, target: dict[str, float], unit: Unit
) -> Iterator[str]:
    """The best output for the same target, as a model of its own, beside early exit, and which does better there.

    With a bound: of the outputs within it, the one that errs least. Without: of those that keep the target on the
    error, the cheapest. All by validation.
    """
    errors, bound, every = [one.val.error for one in outputs], target.get("max_mean_cost"), range(len(outputs))
    if bound is None:
        most = errors[-1] + target["max_error_increase"] + 1e-9
        best, k = "cheapest", min((k for k in every if errors[k] <= most), key=lambda k: alone[k])
    else:
        within = [k for k in every if alone[k] <= bound]
        if not within:  # in milliseconds, early exit can be measured to be faster
            return
        best, k = "best", min(within, key=lambda k: (errors[k], alone[k]))
    if k == len(outputs) - 1 and val.shares[-1] == 1:
        return  # the final output takes all anyway

    def worth(error: float, cost: float) -> tuple[tuple[float, float], str]:
        order = (cost, error) if bound is None else (error, cost)
        return order, f"{per_cent(error)} error at {cost_text(cost)} {unit}"

    (early, early_words), (one, one_words) = worth(val.error, val.mean_cost), worth(errors[k], alone[k])
    if one <= early:
        yield (
            f"for this target output {k + 1} alone does as well as early exit, or better: on validation {one_words}, "
            f"against {early_words}; `{select}` compares the outputs"
        )
    else:
        less = "costs less" if (bound is None) == (early[0] < one[0]) else "errs less"
        yield (
            f"on validation early exit {less} than the {best} output alone for this target (output {k + 1}): "
            f"{early_words}, against {one_words}"
        )
