"""What the seeds say of a claim: paired differences, their interval, and a verdict in plain words.

A claim is that one side errs less than another. Both were trained with the same seeds (the same validation split, the
same order of the images), so that the difference is taken seed by seed. The errors are those of the last epoch on the
test images: nothing was chosen on them.

The interval is of one claim alone, and of the seeds alone. The spread of the seeds counts as one test image at least:
a few seeds that agree to less agree by luck, for no seed can resolve less. A verdict asks for more: that the interval
stays farther from 0 than what one test image makes, and that the claim stands among all the claims of its study
(Holm 1979), of which otherwise one in twenty would be told by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from statistics import mean, stdev
from typing import Any, Literal

from auxnet.reading.splits import tested_alike
from auxnet.scores import holm
from auxnet.studies.spec import Claim, Side

LEVEL = 0.95
FEWEST = 3  # seeds: the spread of two is known too badly to judge by

Word = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True)
class Verdict:
    """A claim on one data set, and what came out."""

    claim: Claim
    data: str
    differences: tuple[float, ...]
    """error of the worse side less that of the better one, seed by seed, as fractions; above 0 speaks for the claim"""
    mean: float
    low: float
    """of the 95 % interval of the mean difference, by Student's t over the seeds; -inf with a single seed"""
    high: float
    word: Word
    why: str = ""
    """what keeps it from being told, other than the spread of the seeds"""
    p: float = 1.0
    """of the paired t over the seeds, two-sided; 1 where the claim cannot be told even alone"""
    adjusted: float | None = None
    """the same by Holm's method among the claims of its study; None for a claim that was judged alone"""


def interval(values: Sequence[float], least: float = 0.0) -> tuple[float, float, float]:
    """The mean of values, and the ends of its 95 % interval by Student's t; infinite ends for a single value.

    Their standard deviation counts as `least` where it is below that.
    """
    from scipy.stats import t

    center = mean(values)
    if len(values) < 2:
        return center, -inf, inf
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * _error(values, least)
    return center, center - half, center + half


def judge_all(claims: Sequence[Claim], datasets: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """The verdicts on all claims of a study, on each data set: those that `judge` gives, and that stand among them."""
    alone = [judge(claim, data, rows) for data in datasets for claim in claims]
    among = []
    for verdict, adjusted in zip(alone, holm([verdict.p for verdict in alone]), strict=True):
        if verdict.word != "cannot be told" and adjusted > 1 - LEVEL:
            why = f"alone it {verdict.word}, but among {len(alone)} claims p = {adjusted:.2g} (Holm)"
            verdict = replace(verdict, word="cannot be told", why=why)
        among.append(replace(verdict, adjusted=adjusted))
    return among


def judge(claim: Claim, data: str, rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict on a claim alone, from the rows of a ledger.

    It is of the seeds with which both sides were trained to the end. Raises ValueError for a claim about an output that
    its variant does not have.
    """
    worth = errors_of if claim.of == "error" else lacks_of
    better, worse = (worth(side, data, rows) for side in (claim.better, claim.worse))
    seeds = sorted(better.keys() & worse.keys())
    failed = [
        row
        for row in rows
        if row["data"] == data and row["failed"] and row["variant"] in (claim.better.variant, claim.worse.variant)
    ]
    if not seeds:
        return Verdict(claim, data, (), 0.0, -inf, inf, "cannot be told", _why_nothing(claim, data, rows))
    differences = tuple(worse[seed] - better[seed] for seed in seeds)
    variants = (claim.better.variant, claim.worse.variant)
    images = [row["images"] for row in rows if row["variant"] in variants and row["data"] == data and row["last"]]
    image = 1 / min(each["test"] for each in images) if claim.of == "error" else 0.0
    center, low, high = interval(differences, image)
    why = ""
    if not tested_alike(images):
        who = " and ".join(dict.fromkeys(variants))
        why = f"{who} were tested on different images: train what is older again, in another --out"
    elif failed:
        why = f"{len(failed)} of the trainings failed, and are in no mean"
    elif len(seeds) < FEWEST:
        why = f"{FEWEST} seeds are the fewest to judge by"
    elif not low <= 0 <= high and min(abs(low), abs(high)) <= image:
        why = f"the interval comes within one test image, {100 * image:.2g} points, of 0"
    if why or low <= 0 <= high:
        return Verdict(claim, data, differences, center, low, high, "cannot be told", why)
    word: Word = "holds" if low > 0 else "does not hold"
    return Verdict(claim, data, differences, center, low, high, word, p=_p_value(differences, image))


def _error(values: Sequence[float], least: float) -> float:
    """The standard error of the mean of several values."""
    return max(stdev(values), least) / sqrt(len(values))


def _p_value(values: Sequence[float], least: float) -> float:
    """Of a mean of 0, two-sided, by Student's t."""
    from scipy.stats import t

    error = _error(values, least)
    return 2 * float(t.sf(abs(mean(values)) / error, len(values) - 1)) if error else 0.0


def _why_nothing(claim: Claim, data: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Why there is no difference yet, not of a single seed, or never will be."""
    variants = dict.fromkeys((claim.better.variant, claim.worse.variant))
    sides = [[row for row in rows if row["variant"] == each and row["data"] == data] for each in variants]
    for variant, side in zip(variants, sides, strict=True):
        if side and all(row["failed"] for row in side):
            return f"every training of {variant} failed"
    if not any(row["last"] for side in sides for row in side):
        return "nothing is trained yet"
    if set.intersection(*({row["seed"] for row in side if row["last"]} for side in sides)):
        return "the supervision is not measured yet"
    failed = sum(row["failed"] is not None for side in sides for row in side)
    return "no seed is trained on both sides" + (f", {failed} of the trainings failed" if failed else " yet")


def errors_of(side: Side, data: str, rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """The test error of one side of a claim after the last epoch, by seed.

    Raises ValueError for an output that its variant does not have.
    """
    found = {}
    for row in rows:
        if row["variant"] == side.variant and row["data"] == data and row["last"]:
            errors = [output["test_error"] for output in row["last"]]
            if side.output == "mean":
                found[row["seed"]] = mean(errors)
            elif side.output != "final" and not 1 <= int(side.output) <= len(errors):
                raise ValueError(f"a claim names {side}, but {side.variant} has {len(errors)} outputs")
            else:
                found[row["seed"]] = errors[-1 if side.output == "final" else int(side.output) - 1]
    return found


def lacks_of(side: Side, data: str, rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """By seed, how much of the gradient in the shallowest layer of a variant is not supervision: less is better."""
    mine = [row for row in rows if row["variant"] == side.variant and row["data"] == data]
    return {row["seed"]: 1.0 - row["share"] for row in mine if row["share"] is not None}


def in_words(verdict: Verdict) -> str:
    """The verdict with its figures, in percentage points."""
    if not verdict.differences:
        return f"{verdict.word}: {verdict.why}"
    points = f"{100 * verdict.mean:+.2f} points"
    n = len(verdict.differences)
    if n > 1:
        stands = verdict.adjusted is not None and verdict.word != "cannot be told"
        by_holm = f", p = {verdict.adjusted:.2g} by Holm" if stands else ""
        points += f" ({100 * verdict.low:+.2f} .. {100 * verdict.high:+.2f}, {n} seeds{by_holm})"
    return f"{verdict.word} at this scale: {points}" + (f"; {verdict.why}" if verdict.why else "")
