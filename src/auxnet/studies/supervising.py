"""The supervision in the trainings of a study (METHOD section 4, the paper's figure): measured once each, and drawn.

OUT/trials/NAME.supervision.json    what was measured: beside the run directory, into which `auxnet diagnose` writes
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from filelock import FileLock

from auxnet import diagnosing
from auxnet.documents import parsing, read_json
from auxnet.files import write_json
from auxnet.loading import weights_sha256
from auxnet.opening import opened
from auxnet.rundir import with_absolute_paths
from auxnet.studies.running import is_done, training_folder
from auxnet.studies.spec import Training

IMAGES = 512  # of the last epoch; gradients are taken on these


def diagnose(out: Path, trainings: Sequence[Training]) -> None:
    """Measure the supervision of each training that is done, unless it was measured with the weights there are now.

    Of several processes one measures, and the others wait for it.
    """
    (out / "claims").mkdir(parents=True, exist_ok=True)
    with FileLock(out / "claims" / "supervision.lock"):
        for training in trainings:
            folder = training_folder(out, training)
            weights = folder / "model.safetensors"  # may be removed to save room: then nothing can be measured
            if is_done(out, training) and _measured(out, training) is None and weights.is_file():
                recipe = with_absolute_paths(training.recipe)  # the data may have moved since the training
                data_dir = str(Path(recipe.data).parent) if Path(recipe.data).is_absolute() else recipe.data_dir
                with opened(folder, data_dir=data_dir, device=recipe.device, threads=recipe.threads) as run:
                    diagnosis = diagnosing.diagnosis_of_run(folder, training.variant, run, IMAGES, None)
                write_json(_file(out, training), diagnosis)


def draw(out: Path, trainings: Sequence[Training], folder: Path) -> list[Path]:
    """The diagnoses of the first seed of every variant side by side, as JSON and HTML in `folder`; [] without any."""
    first = [t for t in trainings if t.seed == 0 and t.recipe.data == trainings[0].recipe.data]
    runs = [{**run, "name": t.variant} for t in first if (run := _measured(out, t))]
    with parsing(f"the supervision measured in {out / 'trials'} is damaged: remove *.supervision.json there"):
        return diagnosing.write(runs, folder) if runs else []


def shares_of(out: Path, training: Training) -> dict[str, float] | None:
    """{output: the share of supervision in the shallowest layer, if it is defined}; None if nothing was measured.

    In joint training of several outputs there is a single share, of "all" together.
    """
    run = _measured(out, training)
    if run is None:
        return None
    with parsing(_damaged(out, training)):
        layer = min(row["layer"] for row in run["shares"])
        together = "1" if len(run["depths"]) == 1 else "all"
        rows = [row for row in run["shares"] if row["layer"] == layer and row["share"] is not None]
        shares = {together if row["output"] is None else str(row["output"]): row["share"] for row in rows}
        if not all(map(isfinite, shares.values())):
            raise ValueError("a share is not finite")
        return shares


def _file(out: Path, training: Training) -> Path:
    return out / "trials" / f"{training.name}.supervision.json"


def _measured(out: Path, training: Training) -> dict[str, Any] | None:
    """What was measured in a training that is done; None if nothing was, or with other weights than there are now."""
    path = _file(out, training)
    if not (path.is_file() and is_done(out, training)):
        return None
    run: dict[str, Any] = read_json(path)
    folder = training_folder(out, training)
    gone = not (folder / "model.safetensors").is_file()  # removed to save room: nothing says that they were others
    with parsing(_damaged(out, training)):
        return run if gone or run["weights_sha256"] == weights_sha256(folder) else None


def _damaged(out: Path, training: Training) -> str:
    return f"{_file(out, training)} is damaged: remove it to have the supervision measured again"
