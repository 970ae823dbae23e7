"""`auxnet export` and `auxnet predict`."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, arg

from auxnet.cli import say, screen
from auxnet.cli.arguments import named_as_flags, parse
from auxnet.errors import printable
from auxnet.sections import Confidence, Format, Which
from auxnet.words import first_few, per_cent, plural

if TYPE_CHECKING:
    from auxnet.policy import Policy
    from auxnet.prediction import Prediction, Unreadable


@dataclass(frozen=True)
class Export:
    """Write one output of a model, or the early exit of a run, for another runtime, and prove it equal to the model."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """a run, a folder that this or save_pretrained wrote, or hf:owner/name"""
    output: int | None = None
    """the output, from 1, shallow to deep; of an early exit the last one; none: the deepest there is"""
    format: Format = "onnx"
    """safetensors: for auxnet.load and the hub; torch: torch.export (.pt2); onnx-early-exit: one image at a time"""
    out: Path | None = None
    """the file or folder; none: named after the model, in this folder"""
    which: Which = "last"
    """of a run: weights of the last epoch, or of the best one on validation"""
    confidence: Literal["none", Confidence] = "none"
    """early exit: what is compared with the thresholds; none: RUN/exits.json, or exits-best.json"""
    thresholds: tuple[float, ...] | None = None
    """early exit: least confidence, in 0..1, to leave at each output but the last"""
    temperatures: tuple[float, ...] | None = None
    """early exit: of each output; none: 1"""
    data_dir: str | None = None
    """the folder that holds the data, on whose images the export is compared; none: the same as in training"""
    images: int = 64
    """validation images that the export is compared on (an early exit on more, until one has left at each output that
    can be left at); random ones if a run's data are not here, or the model is not a run"""
    overwrite: FlagCreatePairsOff[bool] = False
    """replace what is there"""
    json: FlagCreatePairsOff[bool] = False
    """print JSON instead of words"""


@dataclass(frozen=True)
class Predict:
    """Say what is in image files, in their order; exit status 1 if some could not be read."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """a run, an exported folder, an ONNX file made by auxnet export, or hf:owner/name"""
    paths: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE ...", help_behavior_hint="")] = ()
    """image files; folders, searched below too; - for a list of them on standard input, a line each or as find -print0
    gives them"""
    output: int | None = None
    """the output, from 1, shallow to deep; none: the deepest there is"""
    exits: FlagCreatePairsOff[bool] = False
    """let each image leave at the first output that is sure of it, by RUN/exits.json (auxnet exits RUN), or with
    --which best RUN/exits-best.json"""
    top: int = 3
    """how many classes to name"""
    format: Literal["none", "table", "csv", "jsonl"] = "none"
    """table for people; csv or jsonl for programs, where an image that cannot be read has a line too, with empty cells
    or its error; none: by the suffix of --out (.csv, .jsonl), else table"""
    batch_size: int = 32
    """images at a time"""
    which: Which = "last"
    """of a run: weights of the last epoch, or of the best one on validation"""
    device: str | None = None
    """auto, cpu, cuda, ...; none: the CPU"""
    threads: int | None = None
    """CPU threads, and processes that decode; none: PyTorch's own number, at most one per core; for an ONNX file one
    per core"""
    out: Path | None = None
    """a file to write to"""
    overwrite: FlagCreatePairsOff[bool] = False
    """replace the file"""


def export(words: list[str]) -> None:
    """`auxnet export`."""
    o = parse(Export, words)
    screen.load_torch()
    from auxnet.exits import exits_file, read_notes
    from auxnet.exporting import export as write

    policy = _policy(o)
    with screen.working("exporting, and running the export"), named_as_flags(r"^(out|output)\b|^images(?= must be a)"):
        done = write(
            o.model,
            o.output,
            o.format,
            o.out,
            overwrite=o.overwrite,
            which=o.which,
            policy=policy,
            data_dir=o.data_dir,
            images=o.images,
        )
    if o.json:
        print(json.dumps(asdict(done) | {"path": str(done.path)}, indent=2))
        return
    what = f"output {done.output}" if done.exits is None else f"early exit over outputs 1..{done.output}"
    console = screen.console()
    screen.print_line(console, f"{done.path}: {what} of {o.model} as {done.format}, {done.bytes:,} bytes")
    if done.format != "safetensors":  # which is for auxnet.load
        N = "N" if done.exits is None else "1"
        gives = "logits and probabilities" + ("" if done.exits is None else ", and the exit")
        screen.print_line(console, f"takes images, uint8 [{N}, {', '.join(map(str, done.takes))}]; gives {gives}")
    for k in done.unreached:
        screen.print_line(console, f"output {k} is never reached: left out")
    if done.exits is not None:
        shares = ", ".join(f"{n} at {k}" for k, n in enumerate(done.exits, start=1))
        screen.print_line(console, f"exits of the {done.images} images: {shares}")
        if not done.random and not any(done.exits[:-1]):
            alone = f"--format onnx --output {done.output}"
            screen.print_line(console, f"note: none left early: {alone} gives a smaller file that answers sooner")
        notes = read_notes(o.model, o.which) if o.thresholds is None else []
        if done.cut:
            solved = f"{exits_file(o.model, o.which).name} was solved over all outputs"
            shown = f"cut to 1..{done.output}, its target is not shown to be kept"
            notes = [f"{solved}; {shown}: leave --output out to export what was solved"]
        for note in notes:
            screen.print_line(console, f"note: {note}")
    images = (
        "random images (the data of its training are not here, or of no use)" if done.random else "validation images"
    )
    equal = f"run again on {done.images} {images}: the largest difference of a logit is {done.difference:.2g}"
    screen.print_line(console, equal)
    for k in done.uncompared:
        screen.print_line(console, f"no image left at output {k}: what it answers was not compared")


def _policy(o: Export) -> Policy | None:
    """The policy that the options spell out, its temperatures 1 by default; None if none of these options is given."""
    if o.confidence == "none" and o.thresholds is None and o.temperatures is None:
        return None
    if o.format != "onnx-early-exit":
        rule = "--confidence, --thresholds and --temperatures are for --format onnx-early-exit"
        raise ValueError(f"{rule}, not for {o.format}: leave them out")
    if o.confidence == "none" or o.thresholds is None:
        raise ValueError("--confidence and --thresholds go together: give both, or neither (exits.json)")
    from auxnet.policy import Policy

    return Policy(o.thresholds, o.confidence, o.temperatures or (1.0,) * (len(o.thresholds) + 1))


def predict(words: list[str]) -> int:
    """`auxnet predict`."""
    options = parse(Predict, words)
    form = _format(options.format, options.out)
    paths = [path for given in options.paths for path in (_listed() if given == "-" else [given])]
    if options.out is not None and options.out.is_dir():
        raise FileExistsError(f"{options.out} is a folder: name a file with --out")
    if options.out is not None and options.out.is_file() and not options.overwrite:
        raise FileExistsError(f"{options.out} exists: name another with --out, or replace it with --overwrite")
    screen.load_torch()
    from auxnet.exits import read_notes
    from auxnet.prediction import Prediction, open_for
    from auxnet.prediction import predict as ask

    how = (options.output, options.which, options.device, options.threads, options.exits)
    with named_as_flags(r"^(output|device|threads|top|batch_size)\b"):
        model = open_for(paths, options.model, *how)
        answers = ask(model, paths, top=options.top, batch_size=options.batch_size)
    if "-" not in options.paths and not any(map(os.path.exists, paths)):
        raise FileNotFoundError(f"there is no such file or folder: {_shown(first_few(paths))}")
    if options.device is None and _gpu_of(Path(options.model)):
        what = f"{options.model} was trained on a GPU and is asked on the CPU"
        say(f"note: {what}: --device cuda takes the GPU that is here")
    answered, unreadable, resized, first = 0, 0, 0, ""

    def counted() -> Iterator[Prediction | Unreadable]:
        nonlocal answered, unreadable, resized, first
        for answer in answers:
            answered += 1
            if not isinstance(answer, Prediction):
                unreadable += 1
                say(printable(_shown(f"{answer.image}: {answer.reason}")))
            elif answer.resized_from is not None:
                H, W = answer.resized_from
                resized, first = resized + 1, first or f"{printable(_shown(answer.image))}, {W}x{H}"
            yield answer

    with _destination(options.out) as file:
        top = min(options.top, len(model.classes))
        {"table": _table, "csv": _csv, "jsonl": _jsonl}[form](counted(), top, file)
    for note in read_notes(options.model, options.which) if options.exits else ():
        if form == "table" and options.out is None:
            screen.print_line(screen.console(), f"note: {note}")
        else:
            say(f"note: {note}")
    if resized:
        of = f"{resized} of the images (fit {model.preprocessing.fit})"
        say(f"note: resized {of}, the first one {first}")
    if unreadable:
        say(f"{unreadable} of what was named could not be read")
    if options.out is not None:
        rows = answered - (unreadable if form == "table" else 0)
        say(f"written: {printable(str(options.out))}, {plural(rows, 'row')} as {form}")
    return 1 if unreadable else 0


def _format(given: str, out: Path | None) -> str:
    """The format asked for, or else that of a file's suffix. Raises ValueError if they contradict each other."""
    suffix = "" if out is None else out.suffix.lower()
    meant = {".csv": "csv", ".jsonl": "jsonl"}.get(suffix)
    if given == "none" and out is not None and suffix == ".json":
        raise ValueError(f"a table does not go into {out}: give --format jsonl, or name it {out.with_suffix('.jsonl')}")
    if given != "none" and meant not in (None, given):
        raise ValueError(f"--format {given} does not go with --out {out}: give --format {meant}, or name another file")
    return meant or ("table" if given == "none" else given)


def _gpu_of(model: Path) -> bool:
    """Whether there is a GPU here, and this is a run that was trained on one."""
    import torch

    from auxnet.rundir import is_finished, summary_of

    if not (torch.cuda.is_available() and is_finished(model)):
        return False
    with summary_of(model, "it does not say on what device") as summary:
        return bool(summary["device"]["type"] == "cuda")


def _listed() -> list[str]:
    """The names on standard input: one a line, or with NUL between them, as `find -print0` has it."""
    text = sys.stdin.read()
    names = text.split("\0") if "\0" in text else (line.rstrip("\r") for line in text.split("\n"))
    return [name for name in names if name]


def _shown(name: str) -> str:
    """A file name that can be printed, whatever bytes it is made of."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def _destination(out: Path | None) -> Iterator[TextIO]:
    """The stream for answers: a file (a link is followed) appears whole or not at all; a device or a pipe stays."""
    if out is None:
        yield sys.stdout
        return
    if out.exists() and not out.is_file():
        try:
            with out.open("w", encoding="utf-8", newline="") as file:
                yield file
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, os.strerror(error.errno), str(out)) from error
        return
    from auxnet.files import written_whole

    with written_whole(out.resolve()) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        yield file


def _table(answers: Iterator[Prediction | Unreadable], top: int, file: TextIO) -> None:
    from auxnet.prediction import Unreadable

    table = screen.table("", "image", "output", "class", "probability", *(["then"] if top > 1 else []))
    for column in table.columns:
        column.justify = "right" if column.header in ("output", "probability") else "left"
    for a in (each for each in answers if not isinstance(each, Unreadable)):
        then = ", ".join(f"{c} {per_cent(p)}" for c, p in zip(a.classes[1:], a.probabilities[1:], strict=True))
        cells = (a.image, str(a.output), a.classes[0], per_cent(a.probabilities[0]), then)
        table.add_row(*map(_shown, cells[: len(table.columns)]))
    if table.row_count:
        plain = Console(file=file, width=160, markup=False, emoji=False)
        screen.print_table(screen.console() if file is sys.stdout else plain, table)


def _csv(answers: Iterator[Prediction | Unreadable], top: int, file: TextIO) -> None:
    from auxnet.prediction import Unreadable

    writer = csv.writer(file, lineterminator="\n")
    each = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "probability")]
    writer.writerow(["image", "output", *each])
    for a in answers:
        if isinstance(a, Unreadable):
            writer.writerow([_shown(a.image), *[""] * (1 + len(each))])
            continue
        pairs = [text for c, p in zip(a.classes, a.probabilities, strict=True) for text in (c, f"{p:.6f}")]
        writer.writerow([_shown(a.image), a.output, *pairs])


def _jsonl(answers: Iterator[Prediction | Unreadable], top: int, file: TextIO) -> None:
    from auxnet.prediction import Unreadable

    for a in answers:
        if isinstance(a, Unreadable):
            print(json.dumps({"image": _shown(a.image), "error": _shown(a.reason)}), file=file)
            continue
        line = {
            "image": _shown(a.image),
            "output": a.output,
            "predictions": [
                {"class": c, "probability": round(p, 6)} for c, p in zip(a.classes, a.probabilities, strict=True)
            ],
            "resized_from": a.resized_from,
        }
        print(json.dumps(line), file=file)
