"""The supervision in the trainings of a study (METHOD section 4, the paper's figure): measured once each, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from auxnet import diagnosing
from auxnet.documents import read_json
from auxnet.opening import opened
from auxnet.studies.running import folder_of, is_done
from auxnet.studies.spec import Trial

IMAGES = 512  # of the last epoch, that gradients are taken on


def diagnose(out: Path, trials: Sequence[Trial]) -> None:
    """Measure the supervision of the trainings that are done, where it is not measured yet: diagnosis.json of each."""
    for trial in trials:
        folder = folder_of(out, trial)
        if is_done(out, trial) and not (folder / "diagnosis.json").is_file():
            here = {"data_dir": trial.recipe.data_dir, "device": trial.recipe.device}
            with opened(folder, **here, threads=trial.recipe.threads) as run:
                diagnosing.write([diagnosing.gather(folder, trial.variant, run, IMAGES, None)], folder)


def draw(out: Path, trials: Sequence[Trial], folder: Path) -> list[Path]:
    """The diagnoses of the first seed of every variant side by side, as JSON and HTML in `folder`; [] without any."""
    first = [t for t in trials if t.seed == 0 and t.recipe.data == trials[0].recipe.data]
    runs = [{**run, "name": t.variant} for t in first if (run := _diagnosis(folder_of(out, t)))]
    return diagnosing.write(runs, folder) if runs else []


def share_of(folder: Path) -> float | None:
    """The share of supervision in the shallowest layer, of the output where it is largest; None if not measured."""
    run = _diagnosis(folder)
    if run is None:
        return None
    layer = min(row["layer"] for row in run["shares"])
    return max(
        (row["share"] for row in run["shares"] if row["layer"] == layer and row["share"] is not None), default=None
    )


def _diagnosis(folder: Path) -> dict[str, Any] | None:
    path = folder / "diagnosis.json"
    run: dict[str, Any] | None = read_json(path)["runs"][0] if path.is_file() else None
    return run
