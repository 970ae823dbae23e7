"""The parts of a report's page that show where a run stands that is not finished, by its curves so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auxnet.page_frame import heading_of, line_of, table_of, tiles_of
from auxnet.words import per_cent, plural

Facts = dict[str, Any]
"""what `report.gather` returns"""


def epochs_of(run: Facts) -> str:
    """How many epochs of a run, finished or not, are done, in words."""
    done = run["epochs"]["last"]
    return plural(done, "epoch") if run["finished"] else f"{done} of {run['recipe']['epochs']} epochs so far"


def headline(run: Facts) -> str:
    """Where it stands, in a sentence."""
    error, output = _lowest(run)
    which = f", output {output}" if len(run["curves"]["outputs"]) > 1 else ""
    epochs = f"after epoch {run['epochs']['last']} of {run['recipe']['epochs']}"
    return f"Not finished: {epochs} the lowest validation error is {per_cent(error)}{which}."


def tiles(run: Facts) -> str:
    """Where it stands, in numbers."""
    done, epochs, seconds = run["epochs"]["last"], run["recipe"]["epochs"], run["wall_seconds"]
    error, output = _lowest(run)
    numbers = [
        ("Epochs done", f"{done:,}", f"of {epochs:,}"),
        (f"Lowest validation error after epoch {done}", per_cent(error), f"output {output}"),
        ("Trained for", f"{seconds:,.0f} s", f"about {seconds / done * (epochs - done):,.0f} s left at this pace"),
    ]
    return tiles_of(numbers, "Where it stands")


def table(runs: Sequence[Facts]) -> str:
    """The outputs of all such runs after the last epoch that is done; nothing if there are none."""
    heads, lines = ("output", "depth", "training loss", "validation loss", "validation error"), []
    for run in runs:
        lines.append(heading_of(f"{run['name']}: {epochs_of(run)}", len(heads)))
        for each in run["curves"]["outputs"]:
            train, val, error = (each[key][-1] for key in ("train_loss", "val_loss", "val_error"))
            lines.append(line_of([each["output"], each["depth"], f"{train:.4f}", f"{val:.4f}", per_cent(error)]))
    return table_of(heads, lines, "Where the outputs stand") if lines else ""


def _lowest(run: Facts) -> tuple[float, int]:
    """(validation error, output) after the last epoch that is done."""
    return min((each["val_error"][-1], each["output"]) for each in run["curves"]["outputs"])
