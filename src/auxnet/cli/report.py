"""`auxnet report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from auxnet.cli import screen
from auxnet.cli.arguments import OfRun, Runs, parse


@dataclass(frozen=True)
class Report(OfRun):
    """Show runs as one HTML file that opens offline: curves, choice, early exit, mistakes, recipe.

    Of a run that is not finished: its learning curves so far.
    """

    runs: Runs
    """run directories; several are compared"""
    out: Path | None = None
    """the file to write, needed for several runs; none: report.html in the run"""


def report(words: list[str]) -> None:
    """`auxnet report`."""
    options = parse(Report, words)
    screen.load_torch()
    from auxnet.report import write_report

    console = screen.console()
    with screen.working("evaluating the runs and drawing"):
        made = write_report(options.runs, options.out, **options.where)
    for line in made.headlines:
        screen.print_line(console, line)
    for line in made.missing:
        screen.print_line(console, f"not shown of {line}")
    screen.print_line(console, f"the report lies in {made.path}")
