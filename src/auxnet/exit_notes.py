"""What to know before trusting solved thresholds: the notes of `auxnet exits`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from auxnet.latency import OF_PYTORCH
from auxnet.scores import too_few
from auxnet.solved import Point, Solved, Unit, cost_text
from auxnet.thresholds import CrossFit, Outcome, smallest_provable_target
from auxnet.words import per_cent, plural


def notes_on(found: Solved, answer: Point, select: str) -> Iterator[str]:
    """The notes on an answer; `select` names what compares the outputs."""
    outputs, val = found.curves["anytime"], answer.val
    if found.cross_fitted is not None:
        target = found.target["max_error_increase"]
        bound = _bound(found.curves["solved"], target, outputs[-1].val.error, found.alone[-1], found.unit)
        yield from _of_target(target, found.cross_fitted, answer, bound)
    yield from _of_output_alone(select, outputs, found.alone, val, found.target, found.unit)
    if few := too_few(val.images):
        yield few
    if found.unit == "ms":
        yield OF_PYTORCH


def _bound(curve: Sequence[Point], target: float, final_error: float, final_cost: float, unit: Unit) -> str:
    """If no image leaves early: the bound on the mean cost to ask for instead.

    Of the policies that cost less than the final output, that of the cheapest within the target, or of the one that
    errs least.
    """
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
    """Whether a target on the error is kept: on the images solved on, on those left out, and on test images.

    `bound` says what to ask for if all images take the final output.
    """
    n, points = answer.val.images, plural(100 * target, "point")
    if found.allowed is not None:
        low, high = found.rise_interval
        here, there = (
            100 * answer.val.against_final.difference,
            f"{100 * found.rise:.2f} ({100 * low:.1f} .. {100 * high:.1f})",
        )
        yield (
            f"the error rises by {here:.2f} points on the validation images that the thresholds are solved on, "
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
    if answer.test is not None and answer.test.against_final.difference > target + 1e-9:
        how = "beyond chance" if answer.test.against_final.low > target + 1e-9 else "which may be chance"
        yield f"on test images the error rises by more than the target of {points}, {how}"


def _of_output_alone(
    select: str, outputs: Sequence[Point], alone: Sequence[float], val: Outcome, target: dict[str, float], unit: Unit
) -> Iterator[str]:
    """Early exit beside the best output for the same target as a model of its own, and which of the two is better.

    For a bound on the cost, the best output is the one within it that errs least; for a target on the error, the
    cheapest that keeps it. All by validation.
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
            f"against {early_words}; {select} compares the outputs"
        )
    else:
        less = "costs less" if (bound is None) == (early[0] < one[0]) else "errs less"
        yield (
            f"on validation early exit {less} than the {best} output alone for this target (output {k + 1}): "
            f"{early_words}, against {one_words}"
        )
