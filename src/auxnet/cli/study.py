"""`auxnet study`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, arg

from auxnet.cli import screen
from auxnet.cli.arguments import parse
from auxnet.sections import Stream

if TYPE_CHECKING:
    from auxnet.studies.ledger import Findings
    from auxnet.studies.spec import Training


@dataclass(frozen=True)
class Study:
    """One of the paper's experiments: its trainings, its tables, and a verdict on each of its claims.

    What is trained already, even by another study, is not trained again; the same command, given again or elsewhere at
    the same time, joins in. Nothing is chosen on the test set.
    """

    name: Annotated[Positional[str], arg(metavar="[STUDY]", help_behavior_hint="")] = ""
    """compact, gamma, intermediate, methods, outputs, settings, systems, vanishing, or a FILE.yaml (none: list them)"""
    scale: str | None = None
    """smoke (a minute), small (an afternoon on two cores), full (the paper's schedule, for GPUs), or one of FILE's;
    none: small, or the only one that FILE has"""
    seeds: int | None = None
    """trainings of each variant; none: as the study says"""
    only: tuple[str, ...] | None = None
    """train only these variants (none: all); the tables show all that is trained by then"""
    out: Path = Path("runs/studies")
    """the folder for the trainings, of all studies together"""
    report: Path | None = None
    """the folder for tables, figures and ledger; none: OUT/NAME-SCALE"""
    processes: int = 1
    """trainings at a time, which share the threads and are dealt out to the GPUs"""
    show: FlagCreatePairsOff[bool] = False
    """train nothing; show what is trained already, and write it"""
    data_dir: str | None = None
    """the folder that holds data sets; none: $AUXNET_DATA"""
    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu, cuda, cuda:1, mps"""
    threads: int | None = None
    """CPU threads, of all processes together; none: PyTorch's choice"""
    stream: Stream = "auto"
    """read images of folders and parquet from disk in training; auto: if they would take half of free memory"""
    workers: int | None = None
    """processes that decode images left on disk, of all processes together; none: one per core"""
    cuda_graph: bool = True
    """on a GPU, steps as CUDA graphs"""
    compile: FlagCreatePairsOff[bool] = False
    """compile the trunks for training (torch.compile)"""


def study(words: list[str]) -> int:
    """`auxnet study`; exit status 1 if a training failed."""
    options = parse(Study, words)
    from auxnet.recipe import WHERE
    from auxnet.studies.spec import names, read_study

    console = screen.console()
    if not options.name:
        if words:
            raise ValueError(f"name the study first: auxnet study NAME {' '.join(words)}")
        for name in names():
            screen.print_line(console, f"{name:<14}{read_study(name, 'small').question}")
        return 0
    made = read_study(options.name, options.scale, options.seeds)
    where: dict[str, Any] = {name: getattr(options, name) for name in WHERE}
    screen.load_torch()
    from auxnet.processes import check_count
    from auxnet.studies.checking import check_claims, check_data_found, check_folder, check_variants
    from auxnet.studies.ledger import findings_of
    from auxnet.studies.running import check_same_images, is_done, left_of, train, under_way
    from auxnet.studies.study_page import write_findings
    from auxnet.studies.supervising import diagnose, draw
    from auxnet.studies.verdicts import least_told
    from auxnet.words import nearest

    check_count(options.processes, "a study")
    folder, drawn = options.report or options.out / f"{made.name}-{made.scale}", list[Path]()
    with screen.working("looking through its variants"):
        check_claims(made)
        if not options.show:
            check_variants(made, where)
    trainings = list(made.trainings(where))
    done = [training for training in trainings if is_done(options.out, training)]
    if unknown := {*(options.only or ())} - made.variants.keys():
        raise ValueError(f"--only names {min(unknown)!r}, no variant{nearest(min(unknown), [*made.variants])}")
    asked = [training for training in trainings if not options.only or training.variant in options.only]
    left = [] if options.show else left_of(options.out, asked)
    check_folder(folder, made, [training.name for training in (*done, *left)])
    check_data_found(options.out, left)
    compared = done if options.show else [training for training in trainings if training in asked or training in done]
    check_same_images(options.out, compared)
    if least := least_told(made):
        screen.print_line(console, f"note: {least}")
    try:
        if not options.show:
            with _progress(console, options.out, len(asked)) as watch, _goes_on():
                train(options.out, asked, options.processes, where, watch)
        if made.measures:
            with screen.working("measuring the supervision in each"), _goes_on():
                diagnose(options.out, trainings)
    except Exception:
        with suppress(OSError, RuntimeError, ValueError):  # what is told is what ended the study
            write_findings(findings_of(made, options.out), folder)
        raise
    findings = findings_of(made, options.out)
    paths = write_findings(findings, folder)
    if made.measures:
        drawn = draw(options.out, trainings, folder)
    _show(console, findings)
    for stands in under_way(options.out, trainings):
        screen.print_line(console, f"under way: {stands}")
    screen.print_line(console, f"written: {', '.join(map(str, [*paths, *drawn]))}")
    return 1 if any(row["failed"] for row in findings.rows) else 0


@contextmanager
def _goes_on() -> Iterator[None]:
    """Have a stop of the block say what continues the study."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = ("stopped, and saved; the same command again goes on with the study",)
        raise


@contextmanager
def _progress(console: Console, out: Path, total: int) -> Iterator[Callable[[Sequence[Training]], None]]:
    """A live bar on a terminal; elsewhere a line for each training that ends, and now and then what is under way."""
    from auxnet.studies.running import under_way

    known, due = None, screen.now_and_then(console)
    with screen.live_bar(console, "training", "the same command") as update:

        def watch(left: Sequence[Training]) -> None:
            nonlocal known
            done = total - len(left)
            words = f"{done}/{total} trainings done"
            if known is not None and done > known and not screen.redraws(console):
                screen.print_line(console, words)
            known = done
            update(total=total, completed=done, description=words)
            if due() and (stand := "; ".join(under_way(out, left))):
                if not screen.redraws(console):
                    screen.print_line(console, f"{words}, under way: {stand}")
                update(result=stand)

        yield watch


def _show(console: Console, findings: Findings) -> None:
    from auxnet.studies.study_page import data_prefix, headline, sources_of, table_cells, warnings_of
    from auxnet.studies.verdicts import in_words

    head, *lines = table_cells(findings)
    table = screen.table(f"{findings.study.name}, {findings.study.scale}", *head)
    for column in table.columns:
        column.justify = "left" if column.header == "variant" else "right"
    for cells in lines:
        table.add_row(*cells)
    screen.print_table(console, table)
    screen.print_line(console, f"{findings.study.question} {headline(findings)}")
    if findings.verdicts:
        screen.print_line(console, "points above 0 are in favour of a claim, below 0 against it:")
    for verdict in findings.verdicts:
        screen.print_line(console, f"- {data_prefix(findings, verdict)}{verdict.claim.says}: {in_words(verdict)}")
    for note in (*warnings_of(findings), *sources_of(findings)):
        screen.print_line(console, note)
