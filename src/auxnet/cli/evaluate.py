"""`auxnet evaluate` and `auxnet select`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional

from auxnet.cli import screen
from auxnet.cli.arguments import OfRun, above_zero, number, parse, points
from auxnet.words import command, per_cent, with_interval

if TYPE_CHECKING:
    from auxnet.evaluation import OutputReport
    from auxnet.latency import Latency
    from auxnet.scores import Comparison
    from auxnet.selection import Choice

WORST = 3


@dataclass(frozen=True)
class Evaluate(OfRun):
    """Say what each output of a run is worth, and measure what it costs; written to RUN/evaluation.json too."""

    run: Positional[Path]
    """the run directory"""
    which: Literal["last", "best"] = "last"
    """weights of the last epoch, or of the best one on validation (written to RUN/evaluation-best.json)"""
    latency: bool = True
    """measure the latency and the peak memory of each output as a model of its own; if not, evaluation.json keeps those
    that were measured of these weights before"""
    classes: FlagCreatePairsOff[bool] = False
    """the error on every class, on validation and on test, not on the worst of each output alone"""
    json: FlagCreatePairsOff[bool] = False
    """print JSON instead of tables"""


@dataclass(frozen=True)
class Select(OfRun):
    """Choose the cheapest output that is good enough on validation; exit status 1 if none meets the budgets."""

    run: Positional[Path]
    """the run directory"""
    within: float | None = None
    """percentage points that its validation error may lie above the best one's; none: 0.5, and 0 with a budget"""
    max_params: str | None = None
    """at most this many parameters: 200000, 200k, 0.2M"""
    max_macs: str | None = None
    """at most this many multiply-adds for one image: 30M"""
    max_latency: float | None = None
    """at most this many milliseconds for one image, measured here and now (median) of the PyTorch model; an ONNX file
    of it is usually faster (docs/performance.md)"""
    json: FlagCreatePairsOff[bool] = False
    """print JSON instead of words and a table"""


def evaluate(words: list[str]) -> None:
    """`auxnet evaluate`."""
    options = parse(Evaluate, words)
    screen.load_torch()
    from auxnet.opening import opened

    opening = opened(options.run, **options.where, which=options.which)
    with screen.working("evaluating"), opening as run:
        from auxnet.evaluation import evaluate as measure
        from auxnet.evaluation import evaluation_file, evaluation_of, unlike_summary
        from auxnet.files import write_json
        from auxnet.latency import latencies
        from auxnet.provenance import provenance

        by_split = {"val": measure(run.net, run.batches("val")), "test": measure(run.net, run.batches("test"))}
        latency = latencies(run.net, run.image_shape) if options.latency else None
        content = evaluation_of(options.run, by_split, latency, options.which)
        content |= {"classes": list(run.dataset.classes), "may_be_seen_by": run.may_be_seen_by}
        content |= provenance(run.device)
        unlike = unlike_summary(options.run, by_split, options.which)
    if unlike:
        warnings.warn(unlike, stacklevel=2)
    file = evaluation_file(options.run, options.which)
    try:
        write_json(file, content)
    except OSError as error:
        warnings.warn(f"{file.name} is not written: {error}", stacklevel=2)
    if options.json:
        print(json.dumps(content, indent=2))
        return
    console = screen.console()
    for title, reports in zip(("validation", "test"), by_split.values(), strict=True):
        images = f"{title}, {reports[0].images:,} images (95 % intervals)"
        screen.print_table(console, _worth_table(images, reports))
    screen.print_table(console, _cost_table(by_split["val"], latency))
    names = run.dataset.classes
    splits = (run.dataset.val, run.dataset.test)
    on_val, on_test = (split.labels.bincount(minlength=len(names)).tolist() for split in splits)
    if options.classes:
        screen.print_table(console, _classes_table(names, on_val, on_test, by_split))
    else:
        for report in by_split["val"]:
            most = _worst(names, on_val, report)
            said = f"errs most, on validation, on {most}" if most else "errs on no validation image"
            screen.print_line(console, f"output {report.output} {said}")


def select(words: list[str]) -> int:
    """`auxnet select`."""
    options = parse(Select, words)
    budgets = {
        "params": number("--max-params", options.max_params),
        "macs": number("--max-macs", options.max_macs),
        "latency": above_zero("--max-latency", options.max_latency),
    }
    within = points("--within", options.within)
    screen.load_torch()
    from auxnet.opening import opened

    opening = opened(options.run, **options.where)
    with screen.working("comparing the outputs"), opening as run:
        from auxnet.evaluation import evaluate as measure
        from auxnet.selection import select_on as choose

        choice = choose(run.net, run.batches("val"), within=within, budgets=budgets)
        test = measure(run.net, run.batches("test"))  # after the choice, and only to report it
    chosen = None if choice.output is None else test[choice.output - 1]
    if options.json:
        print(json.dumps(_content(choice, chosen) | {"may_be_seen_by": run.may_be_seen_by}, indent=2))
    else:
        console = screen.console()
        screen.print_table(console, _candidates_table(choice))
        screen.print_line(console, choice.reason)
        for note in choice.notes:
            screen.print_line(console, f"note: {note}")
        if chosen is not None:
            doubt = "test" in run.may_be_seen_by
            seen = "some of which it may have been trained on" if doubt else "which no choice has seen"
            images = f"{chosen.images:,} test images, {seen}"
            error = with_interval(chosen.error, chosen.low, chosen.high)
            screen.print_line(console, f"output {chosen.output} errs by {error} on {images}")
            where = ["--data-dir", options.data_dir] if options.data_dir else []
            take = command("export", options.run, "--output", chosen.output, *where)
            screen.print_line(console, f"to export it: {take}")
    return 0 if chosen is not None else 1


# ---- words and tables ------------------------------------------------------------------------------------------


def points_between(found: Comparison) -> str:
    """+6.90 (+2.3 .. +11.3) points."""
    return f"{100 * found.difference:+.2f} ({100 * found.low:+.1f} .. {100 * found.high:+.1f}) points"


def _content(choice: Choice, test: OutputReport | None) -> dict[str, object]:
    """A choice as JSON can hold it, with all that the text says of it, and what its output does on test images."""
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


def _worth_table(title: str, reports: Sequence[OutputReport]) -> Table:
    made = screen.table(title, "output", "depth", "error", "log-loss", "calibration error")
    for r in reports:
        error = with_interval(r.error, r.low, r.high)
        made.add_row(str(r.output), str(r.depth), error, f"{r.loss:.4f}", per_cent(r.calibration_error))
    return made


def _cost_table(reports: Sequence[OutputReport], latency: Sequence[Latency] | None) -> Table:
    if latency is None:
        made = screen.table("each output as a model of its own", "output", "parameters", "MACs")
        for r in reports:
            made.add_row(str(r.output), f"{r.params:,}", f"{r.macs:,}")
        return made
    turns = " and ".join(str(timing.runs) for timing in latency[0].timings)
    where = f"{latency[0].measured_on}, {turns} turns"
    columns = ["output", "parameters", "MACs"]
    for timing in latency[0].timings:
        columns += [f"ms, batch {timing.batch}", "images/s"]
    title = f"each output as a model of its own: median time (quartiles) on {where}; peak of tensors held"
    batches = " / ".join(str(timing.batch) for timing in latency[0].timings)
    made = screen.table(title, *columns, f"peak MiB, batch {batches}")
    for r, costs in zip(reports, latency, strict=True):
        cells = [str(r.output), f"{r.params:,}", f"{r.macs:,}"]
        for t in costs.timings:
            cells += [f"{t.median_ms:.2f} ({t.low_ms:.2f} .. {t.high_ms:.2f})", f"{t.images_per_second:,.0f}"]
        made.add_row(*cells, " / ".join(f"{peak / 2**20:.2f}" for peak in costs.peak_bytes))
    return made


def _classes_table(
    names: Sequence[str], on_val: Sequence[int], on_test: Sequence[int], by_split: Mapping[str, Sequence[OutputReport]]
) -> Table:
    columns = ("images", *(f"output {r.output}" for r in by_split["val"]))
    made = screen.table("error by class: validation / test", "class", *columns)
    by_class = [zip(*(r.class_errors for r in by_split[split]), strict=True) for split in ("val", "test")]
    for name, n, m, val, test in zip(names, on_val, on_test, *by_class, strict=True):
        errors = (" / ".join("-" if e is None else per_cent(e) for e in pair) for pair in zip(val, test, strict=True))
        made.add_row(str(name), f"{n:,} / {m:,}", *errors)
    return made


def _worst(names: Sequence[str], images_of: Sequence[int], report: OutputReport) -> str:
    rows = [(error, name, n) for name, n, error in zip(names, images_of, report.class_errors, strict=True) if error]
    worst = sorted(rows, key=lambda row: -row[0])[:WORST]
    return ", ".join(f"{name} ({round(error * n):,} of {n:,})" for error, name, n in worst)


def _candidates_table(choice: Choice) -> Table:
    timed = choice.candidates[0].timing is not None
    columns = [
        "",
        "output",
        "depth",
        "parameters",
        "MACs",
        *(["ms, batch 1 (quartiles)"] if timed else []),
        "val. error",
    ]
    title = f"on {choice.candidates[0].report.images:,} validation images (95 % intervals)"
    title += f"; ms measured on {choice.measured_on}" if timed else ""
    made = screen.table(title, *columns, "points behind the chosen", "McNemar's p (Holm)", "")
    for c in choice.candidates:
        r, against = c.report, c.against_chosen
        marks = ["chosen"] if r.output == choice.output else [] if c.meets else ["over budget"]
        marks += ["near the limit"] if c.borderline else []
        cells = [", ".join(marks), str(r.output), str(r.depth), f"{r.params:,}", f"{r.macs:,}"]
        cells += [f"{t.median_ms:.2f} ({t.low_ms:.2f} .. {t.high_ms:.2f})"] if (t := c.timing) else []
        cells.append(with_interval(r.error, r.low, r.high))
        if against is None or r.output == choice.output:
            made.add_row(*cells, "", "", "")
        else:
            behind = points_between(against).removesuffix(" points")
            apart = "" if against.significant else "cannot be told apart"
            made.add_row(*cells, behind, f"{against.p_value:.2g}", apart)
    return made
