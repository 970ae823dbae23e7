"""A run that is not finished: where it stands by what is logged after every epoch, as values and as parts of a page.

config.json, summary.json and the weights are written at the end of a training alone; metrics.jsonl grows as it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from auxnet.page_frame import heading_of, line_of, table_of, tiles_of
from auxnet.recipe import Recipe, data_name
from auxnet.words import command, per_cent, plural

Facts = dict[str, Any]
"""what `report.gather` returns"""


def so_far(run: Path, recipe: Recipe, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `report.gather` has of such a run beside its curves, by the rows of one whole epoch or more."""
    done = max(row["epoch"] for row in rows)
    resume = command("train", "--out", run, "--resume")
    return {
        "finished": False,
        "outputs": [],
        "epochs": {"last": done},
        "data": {"name": data_name(recipe.data)},
        "wall_seconds": sum(row["seconds"] for row in rows if row["output"] == 1),
        "missing": f"it is not finished ({done} of {recipe.epochs} epochs are done): report it again when it is; "
        f"if it was stopped, `{resume}` goes on with it",
    }


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
