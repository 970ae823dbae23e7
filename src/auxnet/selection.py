"""Choosing one output of a net, on validation images and under budgets. The test set has no way in.

The rule: of the outputs that meet every budget, take the best on validation, and then the cheapest (in
multiply-adds) whose error is within a margin of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from auxnet.balanced import compare_balanced, guessing_balanced
from auxnet.batches import Batches
from auxnet.errors import check_choice, check_limit, check_share
from auxnet.evaluation import OutputReport, image_shape_of, reports
from auxnet.latency import OF_PYTORCH, Timing, latencies
from auxnet.network import AuxNet, check_net
from auxnet.opening import opened
from auxnet.precision import usual_defaults
from auxnet.recipe import RunDir
from auxnet.scores import (
    ERROR_NAME,
    Comparison,
    Predictions,
    compare,
    compared_with,
    guessing,
    no_better_than_guessing,
    predictions,
    too_few,
)
from auxnet.sections import By, Which
from auxnet.words import first_few, listed, p_text, per_cent, plural

MARGIN = 0.005
FEWEST_OF_CLASS = 3  # validation images, none of which is recognised, that are told of
P_VALUE_NAME: dict[By, str] = {"error": "McNemar's p", "balanced": "p"}  # the p-value's name
UNITS = {"params": "parameters", "macs": "MACs", "latency": "ms for one image"}


@dataclass(frozen=True)
class Candidate:
    """One output as the choice sees it."""

    report: OutputReport
    """on validation"""
    timing: Timing | None
    """of one image, as a model of its own; None where it was not measured"""
    meets: bool
    """whether it meets every budget"""
    borderline: bool
    """whether the latency budget lies within its quartiles: measured again, it may fall on the other side"""
    against_chosen: Comparison | None
    """this output's errors less the chosen one's, on the same images (None for itself, and without a choice); its
    p-value is adjusted for all pairs of outputs (`scores.adjusted_p_values`)"""


@dataclass(frozen=True)
class Choice:
    """The output chosen, and why."""

    output: int | None
    """1..K; None if no output meets the budgets"""
    reason: str
    within: float
    budgets: Mapping[str, float]
    """those given, of params, macs and latency (ms)"""
    candidates: tuple[Candidate, ...]
    """all outputs, shallow to deep"""
    guessing: float
    """the error of predicting the most frequent class for every one of these images"""
    against_guessing: Comparison | None
    """the chosen output's errors less those of guessing so, on the same images; None without a choice"""
    measured_on: str | None = None
    """the device and threads of the latencies, as "cpu, 2 threads"; None where none was measured"""
    by: By = "error"
    """the error that it was chosen by; all comparisons and `guessing` are of that error"""
    classes: tuple[str, ...] = ()
    """the names of the classes; () if they are not known"""

    @property
    def alike(self) -> int | None:
        """The cheapest output, cheaper than the chosen one, that these images cannot tell from it; else None."""
        return None if self.output is None else _alike(self.candidates, self.candidates[self.output - 1].report)

    @property
    def no_better_than_guessing(self) -> str | None:
        """A remark if the chosen output is not shown to err less than guessing; else, and without a choice, None."""
        if self.output is None:
            return None
        chosen = self.candidates[self.output - 1].report
        error = error_of(chosen, self.by)
        return no_better_than_guessing(error, chosen.images, self.guessing, self.against_guessing, self.by)

    @property
    def classes_lost(self) -> str | None:
        """A remark if the chosen output recognises no image of a class, of `FEWEST_OF_CLASS` or more; else None."""
        if self.output is None:
            return None
        chosen = self.candidates[self.output - 1].report
        names, rows = dict(enumerate(self.classes)), zip(chosen.class_images, chosen.class_errors, strict=True)
        lost = [
            f"{names.get(c, f'class {c}')} ({plural(n, 'image')})"
            for c, (n, error) in enumerate(rows)
            if error == 1 and n >= FEWEST_OF_CLASS
        ]
        return f"output {self.output} recognises no validation image of {first_few(lost)}" if lost else None

    @property
    def by_balanced_error(self) -> str | None:
        """A remark if classes differ much in size and the same rule would choose another output by balanced error."""
        if self.output is None or self.by == "balanced" or not self.candidates[0].report.uneven:
            return None
        meeting = sorted((each.report for each in self.candidates if each.meets), key=lambda row: row.macs)
        place = cheapest_within([row.balanced_error for row in meeting], [row.macs for row in meeting], self.within)
        other, chosen = meeting[place], self.candidates[self.output - 1].report
        if other is chosen:
            return None
        errors = f"{per_cent(other.balanced_error)}, output {self.output} {per_cent(chosen.balanced_error)}"
        rule = f"by balanced error (--by balanced) the same rule would choose output {other.output} ({errors})"
        return f"classes differ in size: {rule}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be known before the choice is trusted."""
        few = too_few(self.candidates[0].report.images)
        found = [self.no_better_than_guessing, self.classes_lost, few, self.by_balanced_error]
        compared = [each.against_chosen for each in self.candidates if each.against_chosen is not None]
        if any(not (each.significant or each.low <= 0 <= each.high) for each in compared):
            tested = "McNemar's p is exact and adjusted (Holm), the intervals are approximate and unadjusted"
            tested = tested if self.by == "error" else "p is adjusted (Holm), the intervals are not"
            found.append(f"{tested}: one may exclude 0 although p is 0.05 or more")
        if "latency" in self.budgets:
            found.append(OF_PYTORCH)
        return tuple(filter(None, found))


@usual_defaults()
def select(
    run: RunDir,
    *,
    within: float | None = None,
    max_params: float | None = None,
    max_macs: float | None = None,
    max_latency: float | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    which: Which = "last",
    by: By = "error",
) -> Choice:
    """Choose an output of a run directory's weights, "last" or "best", on the validation images of its data set.

    It is the cheapest output (in multiply-adds) whose error is within a margin of the best. The margin `within` is a
    fraction; by default it is 0.005 (half a percentage point) without a budget, and 0 with one: the best output that
    meets it. `by` says which error: "error", or "balanced", the mean of the errors of the classes. Latency (ms, one
    image, the truncated model) is measured if it is budgeted. Data, device and CPU threads are those of the training
    unless they are given.

    Raises ValueError for an impossible request, FileNotFoundError or RuntimeError if `run` is not a finished run.
    """
    limits = {"params": max_params, "macs": max_macs, "latency": max_latency}
    checked_within(within, checked_budgets(limits))  # before the run is opened and its images are read
    check_choice("by", by, By)
    with opened(run, data_dir=data_dir, device=device, threads=threads, which=which) as it:
        budgets = {"max_params": max_params, "max_macs": max_macs, "max_latency": max_latency}
        choice = select_on(it.net, it.batches("val"), within=within, **budgets, by=by)
        return replace(choice, classes=it.dataset.classes)


@usual_defaults()
def select_on(
    net: AuxNet,
    batches: Batches,
    *,
    within: float | None = None,
    max_params: float | None = None,
    max_macs: float | None = None,
    max_latency: float | None = None,
    by: By = "error",
) -> Choice:
    """Choose an output of a net on batches of *validation* images, by the rule and under the budgets of `select`."""
    limits = {"params": max_params, "macs": max_macs, "latency": max_latency}
    checked_within(within, checked_budgets(limits))
    check_net(net)
    shape, batches = image_shape_of(batches)
    predicted = predictions(net, batches)
    measured = [] if max_latency is None else latencies(net, shape, (1,))
    times = [found.timings[0] for found in measured] or None
    choice = choose(predicted, reports(net, shape, predicted), within=within, budgets=limits, latency=times, by=by)
    return replace(choice, measured_on=measured[0].measured_on) if measured else choice


def choose(
    predicted: Predictions,
    rows: Sequence[OutputReport],
    *,
    within: float | None = None,
    budgets: Mapping[str, float | None] | None = None,
    latency: Sequence[Timing] | None = None,
    by: By = "error",
) -> Choice:
    """Choose by predictions of validation images, reports of the outputs on them, and latencies (medians, ms).

    `within` is a fraction: 0.005 is half a percentage point. By default it is MARGIN if no budget is given, and else 0
    (the best output that meets the budgets). Of two outputs with equal errors the cheaper one is the better.
    Raises ValueError for an impossible margin or budget, and for a latency budget without latencies.
    """
    budgets = checked_budgets(budgets or {})
    margin = checked_within(within, budgets)
    check_choice("by", by, By)
    if "latency" in budgets and latency is None:
        raise ValueError("a latency budget needs the measured latency of each output")
    timings: Sequence[Timing | None] = latency or [None] * len(rows)
    limit = budgets.get("latency", 0.0)
    excess = [_excess(row, timing, budgets) for row, timing in zip(rows, timings, strict=True)]
    meeting = sorted((row for row, over in zip(rows, excess, strict=True) if over <= 1), key=lambda row: row.macs)
    chosen = None
    if meeting:
        errors = [error_of(row, by) for row in meeting]
        chosen = meeting[cheapest_within(errors, [row.macs for row in meeting], margin)]
    comparing = compare if by == "error" else partial(compare_balanced, labels=predicted.labels)
    against = {} if chosen is None else compared_with(chosen.output, predicted, comparing)
    candidates = tuple(
        Candidate(
            report=row,
            timing=timing,
            meets=over <= 1,
            borderline=timing is not None and timing.low_ms <= limit <= timing.high_ms,
            against_chosen=against.get(row.output),
        )
        for row, timing, over in zip(rows, timings, excess, strict=True)
    )
    against_guessing = None
    if chosen is None:
        nearest = min(range(len(rows)), key=excess.__getitem__)
        reason = f"no output stays within {_limits(budgets)}; {_miss(candidates[nearest], budgets, by)}"
    else:
        reason = _reason(candidates, chosen, min(meeting, key=lambda row: error_of(row, by)), margin, budgets, by)
        guessed_wrong = predicted.labels != predicted.labels.bincount().argmax()
        against_guessing = comparing(predicted.wrong[chosen.output - 1], guessed_wrong)
    return Choice(
        output=None if chosen is None else chosen.output,
        reason="; ".join([reason, *(_borderline(each) for each in candidates if each.borderline)]),
        within=margin,
        budgets=budgets,
        candidates=candidates,
        guessing=(guessing if by == "error" else guessing_balanced)(predicted.labels),
        against_guessing=against_guessing,
        by=by,
    )


def error_of(row: OutputReport, by: By) -> float:
    """The error, or the balanced error, of an output."""
    return row.error if by == "error" else row.balanced_error


def _alike(candidates: Sequence[Candidate], chosen: OutputReport) -> int | None:
    """The cheapest output, cheaper than the chosen one, that cannot be told from it; None if there is none."""
    below = [each for each in candidates if each.report.macs < chosen.macs]
    alike = [each.report for each in below if each.against_chosen and not each.against_chosen.significant]
    return min(alike, key=lambda report: report.macs).output if alike else None


def cheapest_within(errors: Sequence[float], macs: Sequence[int], margin: float) -> int:
    """The index of the cheapest model whose error is within a margin of the least; of equal costs, the better one."""
    good_enough = [k for k, error in enumerate(errors) if error <= min(errors) + margin + 1e-12]
    return min(good_enough, key=lambda k: (macs[k], errors[k]))


def checked_budgets(limits: Mapping[str, float | None]) -> dict[str, float]:
    """The budgets given. Raises ValueError for one that no model could meet."""
    given = {name: limit for name, limit in limits.items() if limit is not None}
    for name, limit in given.items():
        if name not in UNITS:
            raise ValueError(f"a budget must be of {', '.join(UNITS)}, got {name!r}")
        check_limit(f"max_{name}", limit)
    return given


def checked_within(within: float | None, budgets: Mapping[str, float]) -> float:
    """The margin, by default MARGIN without a budget and 0 with one. Raises ValueError outside 0..0.5."""
    if within is None:
        return 0.0 if budgets else MARGIN
    check_share("within", within)
    return within


def _excess(row: OutputReport, timing: Timing | None, budgets: Mapping[str, float]) -> float:
    """The largest cost as a multiple of its budget; 0 without budgets."""
    return max((_cost(row, timing, name) / limit for name, limit in budgets.items()), default=0.0)


def _cost(row: OutputReport, timing: Timing | None, name: str) -> float:
    return {"params": row.params, "macs": row.macs, "latency": timing.median_ms if timing else 0.0}[name]


def _reason(
    candidates: Sequence[Candidate],
    chosen: OutputReport,
    best: OutputReport,
    margin: float,
    budgets: Mapping[str, float],
    by: By,
) -> str:
    under = f" with at most {_limits(budgets)}" if budgets else ""
    named = f"the best on validation{under}"
    rows = [each.report for each in candidates]
    meeting = [each.report for each in candidates if each.meets]
    alike_in_error = [row for row in meeting if error_of(row, by) == error_of(chosen, by)]
    equal = [row.output for row in alike_in_error if row.macs > chosen.macs]
    if chosen is best:
        lone = not margin or all(row.macs >= chosen.macs for row in rows)  # there is none to come within it
        cheapest = "" if lone else f", and no cheaper one comes within {plural(100 * margin, 'point')} of it"
        tied = f", tied with {listed([f'output {k}' for k in equal])}" if equal else ""
        parts = [f"output {chosen.output} is {named} ({_error(chosen, by)}{tied}){cheapest}"]
    else:
        behind = 100 * (error_of(chosen, by) - error_of(best, by))
        parts = [
            f"output {chosen.output} is the cheapest within {plural(100 * margin, 'point')} of {named}",
            f"{_error(chosen, by)}, {behind:.2f} points behind output {best.output}",
        ]
    overall = min(rows, key=lambda row: (error_of(row, by), row.macs))
    compared = list(dict.fromkeys(row.output for row in (best, overall) if row is not chosen))
    compared += equal[-1:] if chosen is best else []
    if chosen is overall and (alike := _alike(candidates, chosen)) is not None:
        compared.append(alike)
    return "; ".join([*parts, *(_verdict(candidates[k - 1], by) for k in compared)])


def _verdict(other: Candidate, by: By) -> str:
    """The chosen output beside a better one, or one that cannot be told from it."""
    found, row = other.against_chosen, other.report
    assert found is not None
    images = f"{row.images:,} validation images, {P_VALUE_NAME[by]} = {p_text(found.p_value)} (Holm)"
    if not found.significant:
        return f"it cannot be told apart from output {row.output} ({_error(row, by)}) on these {images}"
    return f"it is worse than output {row.output} ({_error(row, by)}) beyond chance on these {images}"


def _borderline(each: Candidate) -> str:
    """A remark that a latency is too near its budget to be sure of."""
    time = each.timing
    assert time is not None
    quartiles = f"{_milliseconds(time.low_ms)} .. {_milliseconds(time.high_ms)}"
    spread = f"its median {_number('latency', time.median_ms)}, its quartiles {quartiles}"
    return f"output {each.report.output} is too near the latency budget to be sure of ({spread}): ask for more or less"


def _miss(nearest: Candidate, budgets: Mapping[str, float], by: By) -> str:
    row = nearest.report
    over = {name: _cost(row, nearest.timing, name) for name, limit in budgets.items()}
    missed = [_number(name, cost) for name, cost in over.items() if cost > budgets[name]]
    return f"output {row.output} comes nearest with {' and '.join(missed)} ({_error(row, by)})"


def _limits(budgets: Mapping[str, float]) -> str:
    return " and ".join(_number(name, limit) for name, limit in budgets.items())


def _number(name: str, value: float) -> str:
    return f"{_milliseconds(value) if name == 'latency' else f'{value:,.0f}'} {UNITS[name]}"


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _error(row: OutputReport, by: By) -> str:
    return f"{per_cent(error_of(row, by))} {ERROR_NAME[by]}"
