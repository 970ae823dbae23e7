"""What the seeds say of a claim: paired differences, their interval, and a verdict in plain words.

A claim is that one side errs less than another. Both were trained with the same seeds (the same validation split, the
same order of the images), so that the difference is taken seed by seed. The errors are those of the last epoch on the
test images: nothing was chosen on them.

The interval is of one claim alone, and of the seeds alone. The deviation over seeds counts as at least one test image:
errors cannot be measured more finely, so closer agreement is luck. A verdict asks for more: that the interval stays
farther from 0 than one test image, and that the claim is significant among all the claims of its study (Holm 1979);
else one claim in twenty would be told by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from statistics import mean, stdev
from typing import Any, Literal

from auxnet.run_data import tested_alike
from auxnet.scores import holm
from auxnet.studies.spec import Claim, Side, Study
from auxnet.words import p_text, plural

LEVEL = 0.95
FEWEST = 3  # seeds: the spread of two is known too badly to judge by

Word = Literal["holds", "does not hold", "cannot be told"]
Rows = Sequence[Mapping[str, Any]]
"""of a ledger"""
OF_COUNT = ("train_images", "val_fraction", "max_corrupt")  # fields that say how many images of a data set train


@dataclass(frozen=True)
class Verdict:
    """A claim on one data set, and the verdict on it."""

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
    """why it cannot be told, apart from the spread of the seeds"""
    p: float = 1.0
    """p-value of the paired t-test over the seeds, two-sided; 1 if the claim cannot be told even alone"""
    adjusted: float | None = None
    """the p-value adjusted by Holm's method for all claims of the study; None for a claim that was judged alone"""


def least_told(study: Study) -> str:
    """How large a difference must be for a study with so many seeds and claims to tell any; nothing without claims.

    (By Holm's method no claim is told unless the least p-value is at most 5 % divided by the number of claims.)
    """
    from scipy.stats import t

    seeds, claims = study.seeds, len(study.claims) * len(study.datasets)
    if not claims:
        return ""
    if seeds < FEWEST:
        few = plural(seeds, "seed")
        return f"with {few} no claim can be told: {FEWEST} are the fewest to judge by (--seeds {FEWEST})"
    least = float(t.isf((1 - LEVEL) / 2 / claims, seeds - 1)) / sqrt(seeds)
    return (
        f"with {seeds} seeds and {plural(claims, 'claim')} the largest difference must be {least:.1f} standard "
        "deviations or more, or none is told"
    )


def interval(values: Sequence[float], least: float = 0.0) -> tuple[float, float, float]:
    """The mean of values, and the ends of its 95 % interval by Student's t; infinite ends for a single value.

    Their standard deviation counts as `least` if it is below that.
    """
    from scipy.stats import t

    center = mean(values)
    if len(values) < 2:
        return center, -inf, inf
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * _standard_error(values, least)
    return center, center - half, center + half


def judge_all(claims: Sequence[Claim], datasets: Sequence[str], rows: Rows) -> list[Verdict]:
    """The verdicts of `judge` on all claims of a study, on each data set, corrected for their number (Holm)."""
    alone = [judge(claim, data, rows) for data in datasets for claim in claims]
    among = []
    for verdict, adjusted in zip(alone, holm([verdict.p for verdict in alone]), strict=True):
        if verdict.word != "cannot be told" and adjusted > 1 - LEVEL:
            why = f"alone it {verdict.word}, but among {len(alone)} claims p = {p_text(adjusted)} (Holm)"
            verdict = replace(verdict, word="cannot be told", why=why)
        among.append(replace(verdict, adjusted=adjusted))
    return among


def judge(claim: Claim, data: str, rows: Rows) -> Verdict:
    """The verdict on a claim alone, from the rows of a ledger.

    It counts the seeds with which both sides were trained to the end.
    """
    of_data = [row for row in rows if row["data"] == data]
    trainings = {side.variant: [row for row in of_data if row["variant"] == side.variant] for side in claim.variants}
    by_seed = _errors if claim.of == "error" else _lacks
    better, *others = (by_seed(side, trainings[side.variant]) for side in claim.variants)
    worse = dict.fromkeys(better, 1.0 - claim.worse) if isinstance(claim.worse, float) else others[0]
    differences = tuple(worse[seed] - better[seed] for seed in sorted(better.keys() & worse.keys()))
    if not differences:
        return Verdict(claim, data, (), 0.0, -inf, inf, "cannot be told", _why_no_pair(trainings))
    image = 1 / min(images["test"] for images in _tested_on(trainings)) if claim.of == "error" else 0.0
    center, low, high = interval(differences, image)
    doubt = _doubt(trainings, len(differences), low, high, image)
    if doubt or low <= 0 <= high:
        return Verdict(claim, data, differences, center, low, high, "cannot be told", doubt)
    word: Word = "holds" if low > 0 else "does not hold"
    return Verdict(claim, data, differences, center, low, high, word, p=_p_value(differences, image))


def _doubt(trainings: Mapping[str, Rows], seeds: int, low: float, high: float, image: float) -> str:
    """Why a claim cannot be told, apart from an interval (low .. high) that holds 0; "" if it can."""
    who = " and ".join(trainings)
    if not tested_alike(_tested_on(trainings)):
        return f"{who} were tested on different images: train what is older again, in another --out"
    if replaced := replaced_weights([row for side in trainings.values() for row in side]):
        return f"{replaced[0]} was replaced between the trainings: train what is older again, in another --out"
    if not trained_alike([row for side in trainings.values() for row in side]):
        return f"{who} were trained on different numbers of images: train what is older again, in another --out"
    if failed := _failed(trainings):
        return f"{failed} of the trainings failed, and are in no mean"
    if seeds < FEWEST:
        return f"{FEWEST} seeds are the fewest to judge by"
    if not low <= 0 <= high and min(abs(low), abs(high)) <= image:
        return f"the interval comes within one test image, {100 * image:.2g} points, of 0"
    return ""


def trained_alike(rows: Rows) -> bool:
    """Whether trainings on one data set were on equally many images if their recipes ask for equally many."""
    counts: dict[tuple[Any, ...], set[int]] = {}
    for row in rows:
        if row["last"]:
            counts.setdefault(tuple(map(row["recipe"].get, OF_COUNT)), set()).add(row["images"]["train"])
    return all(len(found) == 1 for found in counts.values())


def _tested_on(trainings: Mapping[str, Rows]) -> list[Mapping[str, Any]]:
    return [row["images"] for side in trainings.values() for row in side if row["last"]]


def replaced_weights(rows: Rows) -> list[str]:
    """The names of initial weights that were replaced between two trainings, as far as that is known."""
    known: dict[str, set[str]] = {}
    for row in rows:
        if weights := row.get("pretrained_sha256"):
            known.setdefault(str(row["recipe"].get("pretrained")), set()).add(weights)
    return [name for name, found in known.items() if len(found) > 1]


def _errors(side: Side, trainings: Rows) -> dict[int, float]:
    """The test error of one side of a claim after the last epoch, by seed."""
    return {row["seed"]: _error(side, [each["test_error"] for each in row["last"]]) for row in trainings if row["last"]}


def _error(side: Side, errors: Sequence[float]) -> float:
    """The error of a side, given those of all outputs of its variant."""
    if side.output == "mean":
        return mean(errors)
    return errors[int(side.output) - 1 if side.output.isdecimal() else -1]


def _lacks(side: Side, trainings: Rows) -> dict[int, float]:
    """By seed, how much of the gradient in the shallowest layer is not supervision: less is better."""
    shares = {row["seed"]: _share(side, row) for row in trainings}
    return {seed: 1.0 - share for seed, share in shares.items() if share is not None}


def _share(side: Side, row: Mapping[str, Any]) -> float | None:
    """The share of supervision of a side; None if it is not known: old ledgers hold the largest alone."""
    if not side.output:
        return row["share"]  # type: ignore[no-any-return]
    return (row.get("shares") or {}).get(str(len(row["last"])) if side.output == "final" else side.output)


def _why_no_pair(trainings: Mapping[str, Rows]) -> str:
    """Why no seed gives a difference: none does yet, or none ever will."""
    for variant, side in trainings.items():
        if side and all(row["failed"] for row in side):
            return f"every training of {variant} failed"
    seeds = [{row["seed"] for row in side if row["last"]} for side in trainings.values()]
    if not any(seeds):
        return "nothing is trained yet"
    if set.intersection(*seeds):
        return "the supervision is not measured yet"
    failed = _failed(trainings)
    return "no seed is trained on both sides" + (f", {failed} of the trainings failed" if failed else " yet")


def _failed(trainings: Mapping[str, Rows]) -> int:
    return sum(row["failed"] is not None for side in trainings.values() for row in side)


def _standard_error(values: Sequence[float], least: float) -> float:
    """The standard error of the mean of several values."""
    return max(stdev(values), least) / sqrt(len(values))


def _p_value(values: Sequence[float], least: float) -> float:
    """The two-sided p-value of Student's t-test that the mean is 0."""
    from scipy.stats import t

    error = _standard_error(values, least)
    return 2 * float(t.sf(abs(mean(values)) / error, len(values) - 1)) if error else 0.0


def in_words(verdict: Verdict) -> str:
    """The verdict with its figures, in percentage points; and when the claim was added, if after others."""
    return _found(verdict) + (f"; a claim added {verdict.claim.added}" if verdict.claim.added else "")


def _found(verdict: Verdict) -> str:
    if not verdict.differences:
        return f"{verdict.word}: {verdict.why}"
    points = f"{100 * verdict.mean:+.2f} points"
    n = len(verdict.differences)
    if n > 1:
        p = None if verdict.word == "cannot be told" else verdict.adjusted
        by_holm = "" if p is None else f", p = {p_text(p)} by Holm"
        points += f" ({100 * verdict.low:+.2f} .. {100 * verdict.high:+.2f}, {n} seeds{by_holm})"
    return f"{verdict.word} at this scale: {points}" + (f"; {verdict.why}" if verdict.why else "")
