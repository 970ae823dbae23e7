"""`auxnet diagnose`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff

from auxnet.cli import screen
from auxnet.cli.arguments import OfRun, Runs, parse
from auxnet.errors import one_line, warn
from auxnet.words import of_each, per_cent


@dataclass(frozen=True)
class Diagnose(OfRun):
    """Measure how supervision reaches the layers of runs, how outputs pull together, and what each layer knows.

    Writes diagnosis.json and diagnosis.html, into the run or, of several, into --out.
    """

    runs: Runs
    """run directories; several are shown side by side"""
    images: int = 512
    """how many images of the last epoch gradients are taken on, in whole batches"""
    probes: bool = True
    """train linear probes on the features of each layer"""
    probe_images: int = 5000
    """how many training images probes are trained on at most; judged on as many validation images at most"""
    out: Path | None = None
    """the folder to write to, needed for several runs; none: the run"""
    json: FlagCreatePairsOff[bool] = False
    """print JSON instead of tables and sentences"""


def diagnose(words: list[str]) -> None:
    """`auxnet diagnose`."""
    options = parse(Diagnose, words)
    for flag, value, least in (("--images", options.images, 1), ("--probe-images", options.probe_images, 2)):
        if value < least:
            raise ValueError(f"{flag} must be {least} or more, got {value}")
    if not options.probes and options.probe_images != Diagnose.probe_images:
        raise ValueError("--probe-images is for probes: leave it out, or --no-probes")
    screen.load_torch()
    from auxnet.diagnosing import checked_folder, content_of, diagnosis_of_run, write
    from auxnet.opening import opened
    from auxnet.page_frame import names_of
    from auxnet.recipe import read_run_recipe
    from auxnet.run_data import data_dirs

    folder = checked_folder(options.runs, options.out)
    for path in options.runs:
        read_run_recipe(path)  # told before the first is diagnosed
    gathered = []
    console = screen.console()
    probe_images = options.probe_images if options.probes else None
    places = data_dirs(options.runs, options.data_dir)
    for path, name, place in zip(options.runs, names_of(options.runs), places, strict=True):
        opening = opened(path, **{**options.where, "data_dir": place})
        try:
            with screen.working(f"diagnosing {name}"), opening as run:
                gathered.append(diagnosis_of_run(path, name, run, options.images, probe_images))
        except (ValueError, OSError, RuntimeError) as error:
            if path == options.runs[-1] and not gathered:
                raise
            warn(f"{name} is not shown: {one_line(error)}")
    if options.json:
        print(json.dumps(content_of(gathered), indent=2))
    else:
        _show(console, gathered)
    try:
        paths = write(gathered, folder)
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}): give --out DIR") from error
    if not options.json:
        screen.print_line(console, f"written: {', '.join(map(str, paths))}")


def _show(console: Console, gathered: Sequence[dict[str, Any]]) -> None:
    from auxnet.diagnosing import compared

    for facts in gathered:
        screen.print_table(console, _layers_table(facts))
        screen.print_table(console, _gradients_table(facts))
    for facts in gathered:
        for said in facts["said"]:
            screen.print_line(console, f"{facts['name']}: {said}")
    if len(gathered) > 1:
        screen.print_line(console, compared(gathered))
    seen = "gradients on {images:,} training images of the last epoch, in the run's own batches"
    screen.print_line(console, of_each({facts["name"]: seen.format_map(facts) for facts in gathered}))


def _layers_table(run: dict[str, Any]) -> Table:
    """The share of each output, and the probe, layer by layer."""
    outputs = list(dict.fromkeys(row["output"] for row in run["shares"]))
    share = {(row["output"], row["layer"]): row["share"] for row in run["shares"]}
    probes = {row["layer"]: row for row in run["probes"] or ()}
    heads = ["share" if output is None else f"share, output {output}" for output in outputs]
    title = f"{run['name']} ({run['method']})"
    made = screen.table(title, "layer", "output", *heads, *(["probe accuracy"] if probes else []))
    for layer in dict.fromkeys(sorted(layer for _, layer in share)):
        here = str(run["ends"].index(layer) + 1) if layer in run["ends"] else ""
        cells = [_number(share.get((output, layer)), "3g") for output in outputs]
        made.add_row(str(layer), here, *cells, *([per_cent(probes[layer]["accuracy"])] if probes else []))
    return made


def _gradients_table(run: dict[str, Any]) -> Table:
    """The norm of each output's gradient in each segment, and its cosines with the others over all they share."""
    outputs: Sequence[int] = range(1, len(run["depths"]) + 1)
    norm = {(row["output"], row["segment"]): row["norm"] for row in run["norms"]}
    cosine = {(row["output"], row["other"]): row["cosine"] for row in run["agreements"] if row["segment"] is None}
    heads = [*(f"norm in segment {j}" for j in outputs), *(f"cosine with {b}" for b in outputs[1:])]
    made = screen.table(f"{run['name']}: gradients", "output", *heads)
    for a in outputs:
        norms = [_number(norm.get((a, j)), "3g") for j in outputs]
        made.add_row(str(a), *norms, *(_number(cosine.get((a, b)), "3f") for b in outputs[1:]))
    return made


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:.{form}}"
