"""`auxnet evaluate` and `auxnet select`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff

from auxnet.cli import screen
from auxnet.cli.arguments import OfOneRun, above_zero, number, parse, points
from auxnet.errors import warn
from auxnet.sections import By
from auxnet.words import command, in_points, listed, p_text, per_cent, which_flags, with_interval

if TYPE_CHECKING:
    from auxnet.comparing import Pair
    from auxnet.evaluation import OutputReport
    from auxnet.latency import Latency
    from auxnet.selection import Choice

WORST = 3
INTERVALS = "95 % intervals, unadjusted; p of 0.05 or more: cannot be told apart"


@dataclass(frozen=True)
class Evaluate(OfOneRun):
    """Say what each output of a run is worth, and measure what it costs; written to RUN/evaluation.json too (of the
    best weights: evaluation-best.json).
    """

    latency: bool = True
    """measure the latency and the peak memory of each output as a model of its own; if not, evaluation.json keeps those
    that were measured of these weights before"""
    classes: FlagCreatePairsOff[bool] = False
    """show the error on every class, on validation and on test, not only on the worst classes of each output"""
    on: str | None = None
    """other labelled images to judge the run on, and nothing else: a folder of class folders or of parquet shards, an
    .npz file, or what else --data takes (of several splits, test). Classes are matched by name, nothing is written"""
    against: Path | None = None
    """another run, to compare with output by output on the same validation images, or on those of --on, and nothing
    else"""
    by: By = "error"
    """the error to compare --against by; balanced: the mean of the errors of the classes"""
    json: FlagCreatePairsOff[bool] = False
    """print JSON instead of tables"""


@dataclass(frozen=True)
class Select(OfOneRun):
    """Choose the cheapest output that is good enough on validation; exit status 1 if none meets the budgets."""

    within: float | None = None
    """percentage points that its validation error may be above the lowest of all; none: 0.5, or 0 with a budget"""
    max_params: str | None = None
    """at most this many parameters: 200000, 200k, 0.2M"""
    max_macs: str | None = None
    """at most this many multiply-adds for one image: 30M"""
    max_latency: float | None = None
    """at most so many milliseconds for one image: the median here and now, of the PyTorch model (ONNX: often less)"""
    by: By = "error"
    """the error to choose by; balanced: the mean of the errors of the classes, for classes that differ in size"""
    json: FlagCreatePairsOff[bool] = False
    """print JSON instead of words and a table"""


def evaluate(words: list[str]) -> None:
    """`auxnet evaluate`."""
    options = parse(Evaluate, words)
    if options.against is None and options.by != "error":
        raise ValueError("--by is for two runs: leave it out, or name the other --against")
    if options.against is not None:
        _evaluate_against(options, options.against)
        return
    screen.load_torch()
    from auxnet.opening import opened

    own = options.on is None
    titles = {"val": "validation", "test": "test"} if own else {"on": str(options.on)}
    opening = opened(options.run, **options.where, which=options.which, on=options.on)
    with screen.working("evaluating"), opening as run:
        from auxnet.evaluation import evaluation_file, evaluation_of, measure, unlike_summary
        from auxnet.files import json_text, try_write_json
        from auxnet.latency import latencies
        from auxnet.provenance import provenance

        by_split = {split: measure(run.net, run.batches("test" if split == "on" else split)) for split in titles}
        latency = latencies(run.net, run.image_shape) if own and options.latency else None
        content = evaluation_of(options.run, by_split, latency, options.which)
        content |= {"classes": list(run.dataset.classes)}
        content |= {"may_be_seen_by": run.may_be_seen_by} if own else {"on": options.on}
        content |= provenance(run.device)
        unlike = unlike_summary(options.run, by_split, options.which) if own else None
    if unlike:
        warn(unlike)
    if own:
        try_write_json(evaluation_file(options.run, options.which), content)
    if options.json:
        print(json_text(content))
        return
    console = screen.console()
    titled = {titles[split]: reports for split, reports in by_split.items()}
    screen.print_which(console, options.run, options.which)
    for title, reports in titled.items():
        screen.print_table(console, _worth_table(title, reports))
    if own:
        screen.print_table(console, _cost_table(by_split["val"], latency))
    _print_classes(console, run.dataset.classes, titled, options.classes)


def _evaluate_against(options: Evaluate, other: Path) -> None:
    """`auxnet evaluate RUN --against OTHER`."""
    for flag, given in (("--classes", options.classes), ("--no-latency", not options.latency)):
        if given:
            raise ValueError(f"{flag} is for one run: leave it out, or --against")
    screen.load_torch()
    from auxnet.comparing import OF_TWO_MODELS, compare_runs
    from auxnet.files import json_text
    from auxnet.opening import best_weights_in_words
    from auxnet.scores import too_few

    with screen.working("comparing the runs"):
        found = compare_runs(options.run, other, **options.where, which=options.which, on=options.on, by=options.by)
    runs, pairs = (options.run, other), found.pairs
    on = "validation images" if options.on is None else f"images of {options.on}"
    if options.json:
        about = {"runs": [*map(str, runs)], "weights": options.which, "on": options.on, "by": options.by}
        content = {**about, **asdict(found)}
        for each, pair in zip(content["pairs"], pairs, strict=True):
            each["comparison"]["significant"] = pair.comparison.significant
        print(json_text(content))
        return
    console = screen.console()
    if options.which == "best":
        for run in runs:
            screen.print_line(console, f"{run}: {best_weights_in_words(run)}")
    screen.print_table(console, _pairs_table(*runs, pairs, on, options.by))
    screen.print_line(console, f"{'by balanced error ' * (options.by == 'balanced')}{_told_apart(*runs, pairs)}")
    few = too_few(pairs[0].first.images) if options.on is None else None
    otherwise = _otherwise_balanced(*runs, pairs) if options.by == "error" else None
    for note in filter(None, (OF_TWO_MODELS, otherwise, few)):
        screen.print_line(console, f"note: {note}")


def select(words: list[str]) -> int:
    """`auxnet select`."""
    options = parse(Select, words)
    budgets = {
        "max_params": number("--max-params", options.max_params),
        "max_macs": number("--max-macs", options.max_macs),
        "max_latency": above_zero("--max-latency", options.max_latency),
    }
    within = points("--within", options.within)
    screen.load_torch()
    from auxnet.opening import opened

    opening = opened(options.run, **options.where, which=options.which)
    with screen.working("comparing the outputs"), opening as run:
        from auxnet.evaluation import measure
        from auxnet.selection import select_on

        choice = select_on(run.net, run.batches("val"), within=within, **budgets, by=options.by)
        choice = replace(choice, classes=run.dataset.classes)
        test = measure(run.net, run.batches("test"))  # after the choice, and only to report it
    chosen = None if choice.output is None else test[choice.output - 1]
    if options.json:
        about = {"weights": options.which, "may_be_seen_by": run.may_be_seen_by}
        print(json.dumps(_content(choice, chosen) | about, indent=2))
    else:
        console = screen.console()
        screen.print_which(console, options.run, options.which)
        screen.print_table(console, _candidates_table(choice))
        screen.print_line(console, choice.reason)
        for note in choice.notes:
            screen.print_line(console, f"note: {note}")
        if chosen is not None:
            doubt = "test" in run.may_be_seen_by
            seen = "some of which it may have been trained on" if doubt else "which no choice has seen"
            images = f"{chosen.images:,} test images, {seen}"
            error = with_interval(chosen.error, chosen.low, chosen.high)
            error += f", balanced {per_cent(chosen.balanced_error)}," if options.by == "balanced" else ""
            screen.print_line(console, f"output {chosen.output} errs by {error} on {images}")
            where = ["--data-dir", options.data_dir] if options.data_dir else []
            take = command("export", options.run, "--output", chosen.output, *which_flags(options.which), *where)
            screen.print_line(console, f"to export it: {take}")
    return 0 if chosen is not None else 1


# ---- words and tables ------------------------------------------------------------------------------------------


def _content(choice: Choice, test: OutputReport | None) -> dict[str, object]:
    """A choice as JSON can hold it, with all that is printed of it, and what its output does on test images."""
    content = asdict(choice)
    for each, candidate in zip(content["candidates"], choice.candidates, strict=True):
        if candidate.against_chosen is not None:
            each["against_chosen"]["significant"] = candidate.against_chosen.significant
    return {
        **content,
        "alike": choice.alike,
        "no_better_than_guessing": choice.no_better_than_guessing,
        "notes": choice.notes,
        "test": None if test is None else asdict(test),
    }


def _pairs_table(run: Path, other: Path, pairs: Sequence[Pair], on: str, by: By) -> Table:
    from auxnet.selection import P_VALUE_NAME

    title = f"on {pairs[0].first.images:,} {on} ({INTERVALS})"
    heads = [
        key if all(getattr(p.first, key) == getattr(p.second, key) for p in pairs) else f"{key}, {run} / {other}"
        for key in ("output", "depth")
    ]
    balanced = pairs[0].first.uneven or by == "balanced"
    columns = (*heads, str(run), str(other), *(["balanced errors"] if balanced else []))
    columns += (f"points that {run} errs more", f"{P_VALUE_NAME[by]} (Holm)")
    made = screen.table(title, *columns)
    for pair in pairs:
        a, b, found = pair.first, pair.second, pair.comparison
        numbers = [str(x) if x == y else f"{x} / {y}" for x, y in ((a.output, b.output), (a.depth, b.depth))]
        errors = [with_interval(each.error, each.low, each.high) for each in (a, b)]
        more = in_points(found.difference, found.low, found.high)
        both = [f"{100 * a.balanced_error:.2f} / {per_cent(b.balanced_error)}"] if balanced else []
        made.add_row(*numbers, *errors, *both, more, p_text(found.p_value))
    return made


def _otherwise_balanced(run: Path, other: Path, pairs: Sequence[Pair]) -> str | None:
    """A note if classes differ in size and the balanced errors order two runs otherwise than the errors do."""
    if not pairs[0].first.uneven:
        return None
    gains = [(pair, pair.second.balanced_error - pair.first.balanced_error) for pair in pairs]
    otherwise = [pair for pair, gain in gains if gain * pair.comparison.difference > 0 and abs(gain) > 1e-9]
    if not otherwise:
        return None
    where = listed([*map(_outputs, otherwise)])
    tested = "--by balanced says whether beyond chance"
    return f"classes differ in size: the balanced errors order {run} and {other} otherwise at {where} ({tested})"


def _told_apart(run: Path, other: Path, pairs: Sequence[Pair]) -> str:
    """At which outputs one of two runs errs less."""
    told = [pair for pair in pairs if pair.comparison.significant]
    less = [pair for pair in told if pair.comparison.difference < 0]
    more = [pair for pair in told if pair.comparison.difference > 0]
    said = [
        f"{run} errs {how} than {other} at {listed([*map(_outputs, found)])}"
        for how, found in (("less", less), ("more", more))
        if found
    ]
    if len(told) < len(pairs):
        apart = "them apart" if told else f"{run} from {other}"
        said.append(f"{'else ' if told else ''}these images cannot tell {apart}")
    return "; ".join(said)


def _outputs(pair: Pair) -> str:
    """Which outputs a pair is of, in words."""
    a, b = pair.first.output, pair.second.output
    return f"output {a}" if a == b else f"output {a} (there output {b})"


def _worth_table(title: str, reports: Sequence[OutputReport]) -> Table:
    uneven, top5 = reports[0].uneven, reports[0].top5_error is not None
    columns = ["output", "depth", "error", *(["balanced error"] if uneven else []), *(["top-5 error"] if top5 else [])]
    what = f"{title}, {reports[0].images:,} images (95 % intervals)"
    made = screen.table(what, *columns, "log-loss", "calibration error")
    for r in reports:
        cells = [str(r.output), str(r.depth), with_interval(r.error, r.low, r.high)]
        cells += [per_cent(r.balanced_error)] if uneven else []
        cells += [per_cent(r.top5_error)] if r.top5_error is not None else []
        made.add_row(*cells, f"{r.loss:.4f}", per_cent(r.calibration_error))
    return made


def _cost_table(reports: Sequence[OutputReport], latency: Sequence[Latency] | None) -> Table:
    if latency is None:
        made = screen.table("each output as a model of its own", "output", "parameters", "MACs")
        for r in reports:
            made.add_row(str(r.output), f"{r.params:,}", f"{r.macs:,}")
        return made
    runs = " and ".join(str(timing.runs) for timing in latency[0].timings)
    columns = ["output", "parameters", "MACs"]
    for timing in latency[0].timings:
        columns += [f"ms, batch {timing.batch}", "images/s"]
    title = f"each output as a model of its own: median time (quartiles) of {runs} runs on {latency[0].measured_on}"
    batches = " / ".join(str(timing.batch) for timing in latency[0].timings)
    made = screen.table(title, *columns, f"peak MiB of tensors, batch {batches}")
    for r, costs in zip(reports, latency, strict=True):
        cells = [str(r.output), f"{r.params:,}", f"{r.macs:,}"]
        for t in costs.timings:
            cells += [str(t), f"{t.images_per_second:,.0f}"]
        made.add_row(*cells, " / ".join(f"{peak / 2**20:.2f}" for peak in costs.peak_bytes))
    return made


def _print_classes(
    console: Console, names: Sequence[str], titled: Mapping[str, Sequence[OutputReport]], every: bool
) -> None:
    """The errors on every class, or on the worst of each output on the first of these images."""
    if every:
        screen.print_table(console, _classes_table(names, titled))
        return
    title, reports = next(iter(titled.items()))
    for report in reports:
        worst = _worst(names, report)
        errs = f"errs most, on {title}, on {worst}" if worst else f"errs on no image of {title}"
        screen.print_line(console, f"output {report.output} {errs}")


def _classes_table(names: Sequence[str], titled: Mapping[str, Sequence[OutputReport]]) -> Table:
    """A line per class, with the figures on each of these images."""
    outputs = [*zip(*titled.values(), strict=True)]
    columns = ("images", *(f"output {on_each[0].output}" for on_each in outputs))
    made = screen.table(f"error by class: {' / '.join(titled)}", "class", *columns)
    for c, name in enumerate(names):
        images = (f"{report.class_images[c]:,}" for report in outputs[0])
        errors = ([report.class_errors[c] for report in on_each] for on_each in outputs)
        cells = (" / ".join("-" if e is None else per_cent(e) for e in each) for each in errors)
        made.add_row(str(name), " / ".join(images), *cells)
    return made


def _worst(names: Sequence[str], report: OutputReport) -> str:
    rows = [
        (error, name, n)
        for name, n, error in zip(names, report.class_images, report.class_errors, strict=True)
        if error
    ]
    worst = sorted(rows, key=lambda row: -row[0])[:WORST]
    return ", ".join(f"{name} ({round(error * n):,} of {n:,})" for error, name, n in worst)


def _candidates_table(choice: Choice) -> Table:
    from auxnet.selection import P_VALUE_NAME

    timed = choice.candidates[0].timing is not None
    columns = [
        "output",
        "",
        "depth",
        "parameters",
        "MACs",
        *(["ms, batch 1 (quartiles)"] if timed else []),
        "val. error",
        *(["balanced error"] if choice.by == "balanced" else []),
    ]
    title = f"on {choice.candidates[0].report.images:,} validation images ({INTERVALS})"
    title += f"; ms measured on {choice.measured_on}" if timed else ""
    made = screen.table(title, *columns, "points behind the chosen", f"{P_VALUE_NAME[choice.by]} (Holm)")
    for c in choice.candidates:
        r, against = c.report, c.against_chosen
        marks = ["chosen"] if r.output == choice.output else [] if c.meets else ["over budget"]
        marks += ["near the limit"] if c.borderline else []
        cells = [str(r.output), ", ".join(marks), str(r.depth), f"{r.params:,}", f"{r.macs:,}"]
        cells += [str(c.timing)] if c.timing else []
        cells.append(with_interval(r.error, r.low, r.high))
        cells += [per_cent(r.balanced_error)] if choice.by == "balanced" else []
        if against is None or r.output == choice.output:
            made.add_row(*cells, "", "")
        else:
            behind = in_points(against.difference, against.low, against.high)
            made.add_row(*cells, behind, p_text(against.p_value))
    return made
