"""The parts of a report's page that show how far an unfinished run has come, from its learning curves so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from auxnet.page_frame import heading_of, line_of, table_of, tiles_of
from auxnet.words import per_cent, plural


class RunFacts(TypedDict):
    """What `report.facts_of_run` gathers of a run: values that JSON can hold, for the page and its program."""

    name: str
    """of the run on the page"""
    folder: str
    recipe: dict[str, Any]
    network: str
    """in words, as is the method"""
    method: str
    seed: int
    select: str
    """the command that chooses an output of this run"""
    finished: bool
    epochs: dict[str, int]
    """the "last" epoch that is done, and of a finished run the "best" one"""
    wall_seconds: float
    data: dict[str, Any]
    """its name; of a finished run also how many images each split has, and their checksums, as in summary.json"""
    curves: dict[str, Any]
    """learning curves, as `report.curves` returns them"""
    missing: str | None
    """why a part of the page has no figures"""

    # of a finished run alone, but for `outputs`, which is [] before
    outputs: list[dict[str, Any]]
    """per output, shallow to deep: its place and costs, its latency, and its errors on val and test with intervals"""
    chosen: int
    """the output that is chosen on validation, from 1"""
    reason: str | None
    """why it is chosen; None if only the errors are known, as of a run whose images are gone"""
    alike: int | None
    """a smaller output that the validation images cannot tell from the chosen one"""
    no_better: str | None
    """a doubt, in words, whether the chosen output is better than guessing"""
    seen: str | None
    """a doubt, in words, whether the weights have seen the images that judge them"""
    classes: list[str]
    device: dict[str, Any]
    versions: dict[str, str]
    commit: str | None

    # of a finished run whose images are there; else None
    changed: str | None
    """how the images differ from those of the training, in words"""
    lost: str | None
    """the classes of which the chosen output recognises no validation image, in words"""
    balanced: str | None
    """what the choice by the balanced error would be, in words, if that is another"""
    measured: str | None
    """what the latencies were measured on"""
    p_values: list[list[float | None]] | None
    """for each pair of outputs, on validation, adjusted"""
    val_wrong: Any
    """whether each of K outputs errs on each of N validation images, a list [K, N] of booleans"""
    val_pictures: str | None
    """what tells whether two runs have the same validation images (`run_data.validated_alike`)"""
    exits: dict[str, Any] | None
    calibration: list[dict[str, Any]] | None
    confusion: list[dict[str, Any]] | None
    gallery: list[dict[str, Any]] | None
    """some of the test images that one output gets wrong and all deeper ones right"""
    gallery_of: int
    """how many such images there are"""


def epochs_of(run: RunFacts) -> str:
    """How many epochs of a run, finished or not, are done, in words."""
    done = run["epochs"]["last"]
    return plural(done, "epoch") if run["finished"] else f"{done} of {run['recipe']['epochs']} epochs so far"


def headline(run: RunFacts) -> str:
    """How far an unfinished run has come, in a sentence."""
    error, output = _lowest(run)
    which = f", output {output}" if len(run["curves"]["outputs"]) > 1 else ""
    epochs = f"after epoch {run['epochs']['last']} of {run['recipe']['epochs']}"
    return f"Not finished: {epochs} the lowest validation error is {per_cent(error)}{which}."


def tiles(run: RunFacts) -> str:
    """How far an unfinished run has come, in numbers."""
    done, epochs, seconds = run["epochs"]["last"], run["recipe"]["epochs"], run["wall_seconds"]
    error, output = _lowest(run)
    numbers = [
        ("Epochs done", f"{done:,}", f"of {epochs:,}"),
        (f"Lowest validation error after epoch {done}", per_cent(error), f"output {output}"),
        ("Trained for", f"{seconds:,.0f} s", f"about {seconds / done * (epochs - done):,.0f} s left at this pace"),
    ]
    return tiles_of(numbers, "Where it stands")


def table(runs: Sequence[RunFacts]) -> str:
    """The outputs of unfinished runs after the last epoch that is done; nothing if there are no such runs."""
    heads, lines = ("output", "depth", "training loss", "validation loss", "validation error"), []
    for run in runs:
        lines.append(heading_of(f"{run['name']}: {epochs_of(run)}", len(heads)))
        for each in run["curves"]["outputs"]:
            train, val, error = (each[key][-1] for key in ("train_loss", "val_loss", "val_error"))
            lines.append(line_of([each["output"], each["depth"], f"{train:.4f}", f"{val:.4f}", per_cent(error)]))
    return table_of(heads, lines, "Where the outputs stand") if lines else ""


def _lowest(run: RunFacts) -> tuple[float, int]:
    """The lowest validation error after the last epoch that is done, and its output."""
    return min((each["val_error"][-1], each["output"]) for each in run["curves"]["outputs"])
