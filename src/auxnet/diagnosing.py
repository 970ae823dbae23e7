"""The supervision in finished runs: measured, gathered as plain values, and put into sentences.

Gradients are taken on the first batches of the run's last epoch as training sees them, shuffled, augmented and mixed;
probes are trained on images of the training split and judged on images of the validation split, neither augmented. The
test images are never read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auxnet import diagnosis_page, rundir
from auxnet.batches import batches
from auxnet.build import distillation_of, first_batches, loss_of
from auxnet.data import DataSet
from auxnet.diagnosis import diagnose
from auxnet.diagnosis_page import RunDiagnosis
from auxnet.errors import not_finite
from auxnet.files import unwritable, write_json, write_text
from auxnet.loading import weights_sha256
from auxnet.opening import Opened
from auxnet.page_frame import check_ours, check_runs, made_by
from auxnet.probing import probe
from auxnet.provenance import provenance
from auxnet.reading.splits import Labelled
from auxnet.recipe import Recipe, method_name
from auxnet.schedules import lambdas_at

DIAGNOSIS_FILES = ("diagnosis.json", "diagnosis.html")
LEVEL = 0.8
"""a share of supervision stays level if at every layer it is at least this part of the share at its output's layer, and
at most the inverse of this part"""


def diagnosis_of_run(folder: Path, name: str, run: Opened, images: int, probe_images: int | None) -> RunDiagnosis:
    """All that is shown of the run in a folder, which is open as `run`; values that JSON can hold.

    Gradients are taken on so many `images`, in whole batches; probes are trained on so many `probe_images`, and judged
    on at most as many of the validation split (None: no probes). Raises ValueError for a frozen trunk, RuntimeError for
    gradients or features that are not finite.
    """
    recipe, net, dataset, device = run.recipe, run.net, run.dataset, run.device
    weights = lambdas_at(recipe, net.depths, recipe.epochs)
    if recipe.freeze == "trunk":
        raise ValueError(f"{folder}: no supervision reached its trunk, which was frozen: there is nothing to diagnose")
    seen = first_batches(replace(recipe, precision="float32"), dataset, device, recipe.epochs, images)
    loss = loss_of(recipe, dataset, device)
    found = diagnose(net, seen, recipe.method, weights, loss=loss, distill=distillation_of(recipe, loss))
    measured = [(f"output {row.output}", row.norm) for row in found.norms]
    measured += [(f"layer {row.layer}", row.supervision + row.gradient) for row in found.shares]
    for part, value in measured:
        if not math.isfinite(value):
            raise not_finite(f"{folder}: {part}", "gradients")
    probes = None
    if probe_images is not None:
        splits = dataset.train.center_crop(dataset.image_size), dataset.val  # both as evaluation would see them
        samples = [_sample(split, recipe, dataset, device, probe_images) for split in splits]
        probes = [asdict(row) for row in probe(net, *samples)]
    facts = {
        "name": name,
        "folder": str(folder),
        "data": dataset.name,
        "method": method_name(recipe) if net.outputs > 1 else "one output",
        "depths": list(net.depths),
        "weights": weights,
        "ends": list(found.ends),
        "images": found.images,
        "batch_size": min(recipe.batch_size, found.images),
        "shares": [asdict(row) for row in found.shares],
        "norms": [asdict(row) for row in found.norms],
        "agreements": [asdict(row) for row in found.agreements],
        "probes": probes,
        "epochs": rundir.read_rows(folder / "diagnosis.jsonl"),
        "weights_sha256": weights_sha256(folder),
        **provenance(device),
    }
    return {**facts, "said": list(sentences(facts))}


def checked_folder(runs: Sequence[Path], out: Path | None) -> Path:
    """The folder for the files. Refuses, before anything is computed, one that holds other files of these names."""
    check_runs(runs, out, "a diagnosis", "give --out DIR")
    folder = out or runs[0]
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder for {' and '.join(DIAGNOSIS_FILES)}")
    if not folder.exists() and not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.parent} to make {folder.name} in")
    for name in DIAGNOSIS_FILES:
        check_ours(folder / name, diagnosis_page.COMMAND)
    if why := unwritable(folder if folder.exists() else folder.absolute().parent):
        raise PermissionError(f"{folder} cannot be written to ({why}): give --out DIR")
    return folder


def content_of(runs: Sequence[RunDiagnosis]) -> dict[str, Any]:
    """The content of diagnosis.json for the diagnoses of some runs."""
    return {"made_by": made_by(diagnosis_page.COMMAND), "runs": list(runs)}


def write(runs: Sequence[RunDiagnosis], folder: Path) -> list[Path]:
    """Write diagnosis.json and diagnosis.html of some runs into a folder, made if need be; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / name for name in DIAGNOSIS_FILES]
    write_json(paths[0], content_of(runs))
    headline = compared(runs) if len(runs) > 1 else runs[0]["said"][0]
    write_text(paths[1], diagnosis_page.page(runs, headline))
    return paths


def _sample(
    split: Labelled, recipe: Recipe, dataset: DataSet, device: torch.device, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """At most `most` images of a split, in batches: drawn by the recipe's seed, never augmented."""
    size = min(most, 250)
    drawn = batches(
        split, size, dataset.mean, dataset.std, device=device, seed=(recipe.seed, 0), workers=dataset.workers
    )
    for images, labels in drawn:
        yield images[:most], labels[:most]
        if (most := most - len(labels)) <= 0:
            return


# ---- in sentences ----------------------------------------------------------------------------------------------


def sentences(run: RunDiagnosis) -> Iterator[str]:
    """The findings on a run in sentences, made from its values."""
    if len(each := series(run["shares"])) > 1:
        parts = [f"{_short(rows[0]['share'])} of output {output}" for output, rows in each]
        layer = each[0][1][0]["layer"]
        yield f"at layer {layer} the share of supervision is {', '.join(parts[:-1])} and {parts[-1]}"
    for output, rows in each:
        whose = "" if output is None or len(run["depths"]) == 1 else f" of output {output}"
        yield f"the share of supervision{whose} {course(rows)}"
    worst = [row for row in run["agreements"] if row["segment"] is None and row["cosine"] is not None]
    if worst:
        least = min(worst, key=lambda row: row["cosine"])
        yield (
            f"the gradients of outputs {least['output']} and {least['other']} agree least: "
            f"cosine {least['cosine']:.2f} over what they share"
        )
    if run["probes"]:
        probes = run["probes"]
        first, last = probes[0], probes[-1]
        best = max(probes, key=lambda row: row["accuracy"])
        words = f"a linear probe is right on {_percent(first)} at layer {first['layer']}"
        yield f"{words}, {_percent(last)} at layer {last['layer']}; best is layer {best['layer']}, {_percent(best)}"


def series(shares: Sequence[dict[str, Any]]) -> list[tuple[int | None, list[dict[str, Any]]]]:
    """The shares of each output (None: of all together), shallow to deep."""
    outputs = dict.fromkeys(row["output"] for row in shares)
    return [(output, [row for row in shares if row["output"] == output]) for output in outputs]


def course(rows: Sequence[dict[str, Any]]) -> str:
    """How a share changes from its output down to the shallowest layer, in words."""
    there = [row for row in rows if row["share"] is not None]
    if len(there) < len(rows):
        return f"is not defined at {len(rows) - len(there)} of {len(rows)} layers: no gradient arrives there"
    if len(rows) == 1:
        return f"is {_short(rows[0]['share'])} at layer {rows[0]['layer']}, the only one that is seen"
    bottom, top = rows[0], rows[-1]
    low, high = (pick(rows, key=lambda row: row["share"]) for pick in (min, max))
    way = f"from {_short(top['share'])} at layer {top['layer']} to {_short(bottom['share'])} at layer {bottom['layer']}"
    if LEVEL * top["share"] <= low["share"] and high["share"] <= top["share"] / LEVEL:
        return f"stays level {way}"
    turns = []
    if low["share"] < bottom["share"] and LEVEL * top["share"] > low["share"]:
        turns.append(f"its least, {_short(low['share'])}, at layer {low['layer']}")
    if LEVEL * high["share"] > max(top["share"], bottom["share"]):
        turns.append(f"its most, {_short(high['share'])}, at layer {high['layer']}")
    if turns:
        return f"goes {way}, with {' and '.join(turns)}"
    return f"{'falls' if bottom['share'] < top['share'] else 'rises'} {way}"


def compared(runs: Sequence[RunDiagnosis]) -> str:
    """Runs compared at the shallowest layer, each by the output whose share is largest there."""
    parts = []
    for run in runs:
        at = [(rows[0]["share"], output, rows[0]["layer"]) for output, rows in series(run["shares"])]
        share, output, layer = max(at, key=lambda each: -1.0 if each[0] is None else each[0])
        whose = f", output {output}" if output and len(run["depths"]) > 1 else ""
        parts.append(f"{_short(share)} in {run['name']} (layer {layer}{whose})")
    return f"the largest share of supervision in the shallowest layer: {'; '.join(parts)}"


def _short(share: float | None) -> str:
    return "undefined" if share is None else f"{share:.2f}" if share >= 0.1 else f"{share:.2g}"


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} %"
