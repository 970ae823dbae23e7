"""What a study writes for people: study.md, study.html, and the ledger as JSON lines and CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import fsum
from pathlib import Path
from typing import Any

from auxnet.files import write_text
from auxnet.lineage import in_doubt
from auxnet.page_frame import Figure, line_of, page_of_figures, table_of, unbroken
from auxnet.run_data import tested_alike
from auxnet.studies.checking import MARK, check_folder
from auxnet.studies.ledger import Average, Findings, MeanAndSpread, Row, averages, write_rows
from auxnet.studies.verdicts import FEWEST, Verdict, in_words, least_told, replaced_weights, trained_alike
from auxnet.words import duration, plural, sentence

MEASURED = ("variant", "output", "depth", "parameters", "MACs", "test error, %", "at the best epoch, %", "n")
HEAD = (*MEASURED, "published, %")
CLAIMED = (  # a figure for each kind of claim: its id, the kind (`Claim.of`), its title, and whose differences it shows
    ("shares", "share", "Claims about supervision", "shares of supervision in the shallowest layer"),
    ("differences", "error", "Claims", "test errors"),
)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "x", "hexagon")


def write_findings(findings: Findings, folder: Path) -> list[Path]:
    """Write pages and ledger of a study into `folder`, and return their paths. Raises what `check_folder` raises."""
    check_folder(folder, findings.study, [row["training"] for row in findings.rows if row["last"]])
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "study.md", folder / "study.html"]
    for path, text in zip(paths, (markdown(findings), page(findings)), strict=True):
        write_text(path, text)
    return [*paths, *write_rows(findings.rows, folder)]


def headline(findings: Findings) -> str:
    """How many claims hold, in a sentence."""
    if not findings.verdicts:
        return f"{_progress(findings.rows)}."
    words: list[str] = [verdict.word for verdict in findings.verdicts]
    of_several = {"holds": "hold", "does not hold": "do not hold", "cannot be told": "cannot be told"}
    counts = [f"{n} {word if n == 1 else of_several[word]}" for word in of_several if (n := words.count(word))]
    if len(words) == 1:
        return f"The one claim {words[0]} at this scale."
    return f"Of {len(words)} claims at this scale: {', '.join(counts)}."


def markdown(findings: Findings) -> str:
    """The study as Markdown."""
    study = findings.study
    parts = [MARK, f"# {study.name}, {study.scale}: {study.question}", study.note, headline(findings)]
    if findings.verdicts:
        lines = [markdown_row(("claim", "found")), "|---|---|"]
        claims = (
            (f"{data_prefix(findings, v)}{v.claim.says} ({v.claim.sides})", in_words(v)) for v in findings.verdicts
        )
        parts += ["\n".join([*lines, *map(markdown_row, claims)]), _method(findings)]
    head, *lines = map(markdown_row, table_cells(findings))
    table = [head, f"|---|{'---:|' * (head.count(' | '))}", *lines]
    parts += ["\n".join(table), *warnings_of(findings), *sources_of(findings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a table in Markdown; a | in a text is escaped."""
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def warnings_of(findings: Findings) -> Iterator[str]:
    """What is missing, what failed, and what cannot be compared."""
    done = [row for row in findings.rows if row["last"]]
    if len(done) < len(findings.rows):
        yield f"Not complete: {_progress(findings.rows)}."
    for row in findings.rows:
        if row["failed"]:
            yield f"Failed: {row['variant']}, {row['data']}, seed {row['seed']}: {row['failed']}"
    for data in dict.fromkeys(row["data"] for row in done):
        of_data = [row for row in done if row["data"] == data]
        if not tested_alike(row["images"] for row in of_data):
            yield f"Warning: not all trainings were tested on the same images of {data}: their errors do not compare."
        if not trained_alike(of_data):
            yield (
                f"Warning: the training images of {data} were more or fewer in some trainings than in others, though "
                "no recipe says so: their errors do not compare."
            )
    for variant, data in dict.fromkeys((row["variant"], row["data"]) for row in done):
        of_seeds = [row["images"] for row in done if (row["variant"], row["data"]) == (variant, data)]
        if any(each[part] != of_seeds[0][part] for each in of_seeds for part in ("val", "test")):
            yield f"Warning: {data} has changed between the seeds of {variant}: they cannot be compared."
        if doubt := in_doubt(_seen(of_seeds)):
            yield f"Warning: {variant}, {data}: {doubt}."
    for weights in replaced_weights(done):
        yield f"Warning: {weights} was replaced between the trainings that began with it: their errors do not compare."


def _seen(images: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """By split, the earlier runs that may have been trained on its images, of all trainings (`may_be_seen_by`)."""
    seen: dict[str, list[str]] = {}
    for each in images:
        for split, runs in (each.get("may_be_seen_by") or {}).items():
            seen.setdefault(split, []).extend(runs)
    return seen


def sources_of(findings: Findings) -> Iterator[str]:
    """Where the figures come from: trainings, machines, versions, images."""
    done = [row for row in findings.rows if row["last"]]
    if trained := _trained(done):
        took = duration(fsum(row["wall_seconds"] for row in trained))
        commits = ", ".join(dict.fromkeys(str(row["commit"]) for row in done))
        versions = ", ".join(dict.fromkeys(f"torch {row['versions']['torch']}" for row in done))
        devices = ", ".join(
            dict.fromkeys(f"{row['device']['name']}, {plural(row['device']['threads'], 'thread')}" for row in done)
        )
        yield (
            f"{plural(len(trained), 'training')}, {took} in all, on {devices}; {versions}, commit {commits}. Errors "
            "are of the last epoch, and of the epoch that was best on validation; ± is the deviation over the seeds."
        )
    yield from _images(done)


def _images(done: Sequence[Row]) -> Iterator[str]:
    """How many images of each data set were trained and judged on; by variant if variants differ in that."""
    for data in dict.fromkeys(row["data"] for row in done):
        variants: dict[str, list[str]] = {}
        for row in done:
            if row["data"] == data:
                train, val, test = (f"{row['images'][part]:,}" for part in ("train", "val", "test"))
                counts = f"{train} training, {val} validation and {test} test images"
                variants.setdefault(counts, []).append(row["variant"])
        alike = len(variants) == 1
        counted = [counts + ("" if alike else f" ({', '.join(dict.fromkeys(of))})") for counts, of in variants.items()]
        yield f"{data}: {'; '.join(counted)}."


def page(findings: Findings) -> str:
    """The study as one HTML page."""
    study = findings.study
    claims = [
        f'<tr class="{v.word.replace(" ", "-")}"><td class="wide">'
        f"{unbroken(data_prefix(findings, v) + v.claim.says)}</td>"
        f"<td>{escape(v.claim.sides)}</td>"
        f'<td class="wide">{unbroken(in_words(v))}</td></tr>'
        for v in findings.verdicts
    ]
    head, *errors = table_cells(findings)
    sources = "".join(f'<p class="under">{escape(each)}</p>' for each in sources_of(findings))
    table = table_of(("claim", "sides", "found"), claims, "Claims", of_words=True)
    sections = {
        "claims": ("What is claimed, and what was found", table),
        "errors": ("Every output", table_of(head, [*map(line_of, errors)], "Errors") + sources),
    }
    return page_of_figures(
        command="auxnet study",
        title=f"auxnet study: {study.name}",
        eyebrow=f"{study.name} at scale {study.scale}: {_progress(findings.rows)}",
        headline=study.question[0].upper() + study.question[1:],
        sub=f"<strong>{escape(headline(findings))}</strong> {escape(study.note)} "
        f"{escape(_method(findings) if claims else '')}",
        notes=list(warnings_of(findings)),
        figures=list(figures(findings)),
        sections={name: section for name, section in sections.items() if claims or name != "claims"},
    )


def figures(findings: Findings) -> Iterator[Figure]:
    """The claims as intervals, and errors against each cost."""
    for name, of, title, what in CLAIMED:
        if verdicts := [v for v in findings.verdicts if len(v.differences) > 1 and v.claim.of == of]:
            words = (
                f"Mean difference of {what}, 95 % interval; ticks are seeds. Right of the line speaks for the claim."
            )
            yield Figure(name, title, words, _differences(findings, verdicts))
    for n, data in enumerate(dict.fromkeys(row["data"] for row in findings.rows if row["last"])):
        ladders = list(averages([row for row in findings.rows if row["data"] == data]))
        of = f", {data}" if len(findings.study.datasets) > 1 else ""
        for key, title in (("macs", "multiply-adds"), ("params", "parameters"), ("depth", "depth")):
            words = f"Test error of every output against its {title}: mean and standard deviation over the seeds."
            name = f"{key}-{n + 1}" if n else key
            yield Figure(name, f"Error against {title}{of}", words, _against(ladders, key, title))


def _differences(findings: Findings, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    names = [f"{data_prefix(findings, v)}{v.claim.sides}" for v in verdicts]
    seeds = {
        "type": "scatter",
        "mode": "markers",
        "name": "seeds",
        "x": [100 * d for v in verdicts for d in v.differences],
        "y": [name for name, v in zip(names, verdicts, strict=True) for _ in v.differences],
        "marker": {"symbol": "line-ns-open", "size": 12, "color": "--muted"},
    }
    means = {
        "type": "scatter",
        "mode": "markers",
        "name": "mean, 95 %",
        "x": [100 * v.mean for v in verdicts],
        "y": names,
        "marker": {"size": 10, "color": "--accent"},
        "error_x": {"type": "data", "array": [100 * (v.high - v.mean) for v in verdicts], "thickness": 2},
    }
    layout = {
        "xaxis": {"title": {"text": "difference, points"}},
        "yaxis": {"autorange": "reversed", "showgrid": True},
        "shapes": [{"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "--bad"}}],
        "height": 120 + 44 * len(verdicts),
    }
    return {"data": [seeds, means], "layout": layout}


def _against(rows: Sequence[Average], key: str, title: str) -> dict[str, Any]:
    """Errors against a cost on one data set: a line of its own colour and symbol for each variant."""
    ladders: dict[str, list[Average]] = {}
    for row in rows:
        ladders.setdefault(row.variant, []).append(row)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [getattr(row, key) for row in ladder],
            "y": [row.test[0] for row in ladder],
            "error_y": {"type": "data", "array": [row.test[1] or 0 for row in ladder], "thickness": 1},
            "marker": {"symbol": SYMBOLS[n % len(SYMBOLS)], "size": 8},
        }
        for n, (name, ladder) in enumerate(ladders.items())
    ]
    axis: dict[str, Any] = {"title": {"text": title}, "type": "linear" if key == "depth" else "log"}
    depths = [row.depth for row in rows]
    if key == "depth" and max(depths) - min(depths) < 8:
        axis["dtick"] = 1  # no tick between two layers
    return {"data": data, "layout": {"xaxis": axis, "yaxis": {"title": {"text": "test error"}, "tickformat": ".2~%"}}}


def table_cells(findings: Findings) -> list[list[str]]:
    """The table of outputs: its head, then its lines; without the last column if no value is published."""
    table = [[*HEAD], *(cells_of(findings, average) for average in averages(findings.rows))]
    return table if any(cells[-1] for cells in table[1:]) else [cells[:-1] for cells in table]


def cells_of(findings: Findings, average: Average) -> list[str]:
    """The line of one output in the table: a cell for each name in `HEAD`."""
    several = len(findings.study.datasets) > 1
    published = findings.study.published.get(average.variant)
    published_error = ""
    if published and average.final and published["data"] == average.data:
        published_error = f"{published['error']} ({published['source']})"
    return [
        f"{average.variant}, {average.data}" if several else average.variant,
        str(average.output),
        str(average.depth),
        f"{average.params:,}",
        f"{average.macs / 1e6:.1f} M",
        _plus_minus(average.test),
        _plus_minus(average.best_test),
        str(average.n),
        published_error,
    ]


def _plus_minus(value: MeanAndSpread) -> str:
    mean, spread = value
    return f"{100 * mean:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def _method(findings: Findings) -> str:
    number = len(findings.verdicts)
    among = f" by Holm's method among all {number} claims here" if number > 1 else ""
    told = "even one of them is told" if number > 1 else "it is told"
    return (
        "A difference is taken seed by seed; the interval is Student's, 95 %, over the seeds, of each claim alone, "
        "with a spread of one test image at least. "
        f"With {FEWEST} seeds or more a claim holds where the whole interval is above 0, and does not where below, "
        f"by more than one test image makes, and where its paired t-test stands at 5 %{among}: in one of twenty "
        f"studies {told} by chance. {sentence(least_told(findings.study))}"
    )


def data_prefix(findings: Findings, verdict: Verdict) -> str:
    """The data set of a verdict, to begin its line with; nothing if the study has only one."""
    return f"{verdict.data}: " if len(findings.study.datasets) > 1 else ""


def _trained(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, each training once: variants with the same recipe share a training."""
    return [*{row["training"]: row for row in rows}.values()]


def _progress(rows: Sequence[Row]) -> str:
    rows = _trained(rows)
    done, failed = sum(bool(row["last"]) for row in rows), sum(row["failed"] is not None for row in rows)
    return f"{done} of {len(rows)} trainings done{f', {failed} failed' if failed else ''}"
