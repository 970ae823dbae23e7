"""What there is to see of finished runs, gathered into plain values, and the page that shows it.

Validation and test images are read once each. Choices are made on validation; test errors are only shown.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auxnet import build, data, machine, report_page, rundir
from auxnet.batches import Labelled
from auxnet.checkpoint import load, read_config, whole
from auxnet.documents import read_json
from auxnet.errors import one_line
from auxnet.evaluation import OutputReport, fingerprint, reports
from auxnet.exits import exit_macs
from auxnet.latency import latencies
from auxnet.network import AuxNet
from auxnet.opening import data_of
from auxnet.page_frame import is_ours
from auxnet.recipe import Recipe, network_name, read_run_recipe
from auxnet.scores import Predictions, confusion, predictions, reliability, wilson
from auxnet.selection import MARGIN, cheapest_within, choose
from auxnet.thresholds import fit_temperatures, outcome, sweep

MOST_IMAGES, MOST_CLASSES, THUMBNAIL = 24, 100, 96
"""images of the gallery; classes of a confusion matrix that is drawn whole; largest side of an image, in pixels"""


@dataclass(frozen=True)
class Report:
    """A page that was written."""

    path: Path
    headlines: list[str]
    """one per run"""
    missing: list[str]
    """what could not be shown, and why, one per run that lacks something"""


def write_report(runs: Sequence[Path], out: Path | None = None, data_dir: str | None = None) -> Report:
    """One HTML file for one or several finished runs; `out` is by default report.html in the one run.

    Raises ValueError for several runs without `out`, FileExistsError if `out` is something else than a report,
    FileNotFoundError if a run or the folder of `out` does not exist, RuntimeError if a run is damaged.
    """
    path = checked_path(runs, out)
    names = [run.resolve().name for run in runs]
    shown = [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]
    gathered = [gather(run, name, data_dir) for run, name in zip(runs, shown, strict=True)]
    try:
        html = report_page.page(gathered, 100 * MARGIN).encode()
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise RuntimeError(f"{' or '.join(map(str, runs))} is damaged: it cannot be shown ({error})") from error
    with whole(path) as partial:
        partial.write_bytes(html)
    missing = [f"{run['name']}: {run['missing']}" for run in gathered if run["missing"]]
    several = len(gathered) > 1
    headlines = [f"{run['name']}: " * several + report_page.headline(run) for run in gathered]
    return Report(path, headlines, missing)


def checked_path(runs: Sequence[Path], out: Path | None) -> Path:
    """Where the report goes, refused before anything is computed if something of the user's would be lost."""
    if not runs:
        raise ValueError("there is no run to report on: name one or more run directories")
    if len({run.resolve() for run in runs}) < len(runs):
        raise ValueError(f"a run is named twice: {' '.join(map(str, runs))}")
    if out is None and len(runs) > 1:
        raise ValueError("a report of several runs needs a name: give --out FILE.html")
    path = out or runs[0] / "report.html"
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file for the report")
    if out is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to put {path.name} in")
    own = path.name == "report.html" and (path.parent / "recipe.yaml").is_file()
    if path.exists() and not own and not is_ours(path, report_page.COMMAND):
        raise FileExistsError(f"{path} is not a report of this program, and is left alone: give another --out")
    return path


def gather(run: Path, name: str, data_dir: str | None = None) -> dict[str, Any]:
    """All that the page shows of a run, as values that JSON can hold; "missing" says why a part is not there."""
    recipe = read_run_recipe(run)
    config, summary = read_config(run), read_json(run / "summary.json")
    try:
        facts = {
            "name": name,
            "folder": str(run),
            "classes": [str(each) for each in config["classes"]],
            "outputs": [_saved(row, summary["data"]) for row in summary["last"]],
            "curves": curves(rundir.read_metrics(run)),
            "recipe": asdict(recipe),
            "network": network_name(recipe),
            **{key: summary[key] for key in ("epochs", "data", "method", "seed", "wall_seconds", "versions", "commit")},
            "device": summary["device"],
        }
        facts |= dict.fromkeys(("exits", "calibration", "confusion", "gallery", "missing", "latency_words"))
        facts |= _chosen_by_rows(facts["outputs"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RuntimeError(f"{run} is damaged: its summary, config or metrics lack {error}") from None
    recipe = replace(recipe, data_dir=data_dir or recipe.data_dir, device="auto")
    try:
        dataset = data_of(run, recipe)
    except (OSError, RuntimeError, ValueError) as error:
        facts["missing"] = f"the images of {recipe.data} are not to be had ({one_line(error)})"
        return facts
    return facts | examine(run, recipe, dataset)


def examine(run: Path, recipe: Recipe, dataset: data.DataSet) -> dict[str, Any]:
    """What the images say about the net of a run's last epoch."""
    device = machine.device_of(recipe)
    with machine.threads_set(recipe.threads):
        net = machine.to_device(load(run), device)
        shape = (dataset.channels, *dataset.image_size)
        val, test = (
            predictions(net, build.evaluation_batches(split, dataset, device)) for split in (dataset.val, dataset.test)
        )
        on_val, on_test = reports(net, shape, val), reports(net, shape, test)
        times, words = latency_of(run, net, shape, recipe.threads or 1)
    choice = choose(val, on_val)
    rows = [
        {**_costs(v), **time, "val": _worth(v), "test": _worth(t)}
        for v, t, time in zip(on_val, on_test, times, strict=True)
    ]
    deeper = only_deeper(test)
    answers = list(zip(test.logits, on_test, strict=True))
    return {
        "outputs": rows,
        "chosen": choice.output,
        "reason": choice.reason,
        "alike": choice.alike,
        "guessing": choice.guessing,
        "latency_words": words,
        "calibration": [calibration(logits, test.labels, row) for logits, row in answers],
        "confusion": [confused(logits, test.labels) for logits, _ in answers],
        "gallery": gallery(test, dataset.test, deeper),
        "gallery_of": len(deeper),
        "exits": early_exits(val, test, exit_macs(net, shape)) if net.outputs > 1 else None,
    }


# ---- from what the run saved -----------------------------------------------------------------------------------


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The learning curves of each output, and the epochs at whose beginning the step size changed."""
    epochs = sorted({row["epoch"] for row in rows})
    at = {(row["epoch"], row["split"], row["output"]): row for row in rows}
    outputs = [
        {
            "output": k,
            "depth": depth,
            **{
                f"{split}_{what}": [at.get((epoch, split, k), {}).get(what) for epoch in epochs]
                for split, what in (("val", "error"), ("val", "loss"), ("train", "loss"))
            },
        }
        for k, depth in sorted({(row["output"], row["depth"]) for row in rows})
    ]
    lr = {row["epoch"]: row["lr"] for row in rows}
    drops = [after for before, after in itertools.pairwise(epochs) if lr[before] != lr[after]]
    return {"epochs": epochs, "outputs": outputs, "drops": drops}


def _saved(row: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
    """An output as summary.json has it."""
    worth = {}
    for split in ("val", "test"):
        n, error = images[split], row[f"{split}_error"]
        low, high = wilson(round(n * error), n)
        worth[split] = {"error": error, "low": low, "high": high, "n": n, "log_loss": row[f"{split}_loss"], "ece": None}
    return {**{key: row[key] for key in ("output", "depth", "params", "macs")}, **_time(None), **worth}


def _chosen_by_rows(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """The rule of `selection.choose` without budgets, for a run of which only the errors are known."""
    place = cheapest_within([row["val"]["error"] for row in outputs], [int(row["macs"]) for row in outputs], MARGIN)
    return {"chosen": outputs[place]["output"], "reason": None, "alike": None, "guessing": None}


# ---- from the images -------------------------------------------------------------------------------------------


def _costs(report: OutputReport) -> dict[str, Any]:
    return {key: getattr(report, key) for key in ("output", "depth", "params", "macs")}


def _worth(report: OutputReport) -> dict[str, Any]:
    return {
        "error": report.error,
        "low": report.low,
        "high": report.high,
        "n": report.images,
        "log_loss": report.loss,
        "ece": report.calibration_error,
    }


def latency_of(run: Path, net: AuxNet, shape: tuple[int, ...], threads: int) -> tuple[list[dict[str, Any]], str]:
    """Latency of one image per output, and how it was measured: by `auxnet evaluate` for these weights, or now."""
    if saved := saved_latency(run, net.outputs):
        return saved
    measured = [asdict(each) for each in latencies(net, shape, (1,), threads=threads, seconds=1.0)]
    return _of_one_image(measured, "for this report")


def saved_latency(run: Path, outputs: int) -> tuple[list[dict[str, Any]], str] | None:
    """What `auxnet evaluate` saved of latency, if it did, for these weights. Raises RuntimeError if that is damaged."""
    path = run / "evaluation.json"
    if not path.is_file():
        return None
    saved = read_json(path)
    try:
        measured = [row["latency"] for row in saved["outputs"]]
        if saved["weights_sha256"] != fingerprint(run) or len(measured) != outputs or not all(measured):
            return None
        return _of_one_image(measured, "by auxnet evaluate")
    except (AttributeError, KeyError, TypeError) as error:
        raise RuntimeError(f"{path} is damaged: it does not hold what auxnet evaluate writes ({error})") from None


def _of_one_image(measured: list[dict[str, Any]], when: str) -> tuple[list[dict[str, Any]], str]:
    single = [next((t for t in each["timings"] if t["batch"] == 1), None) for each in measured]
    where = f"{measured[0]['device']}, threads: {measured[0]['threads']}"
    words = f"Latency: median of the model alone on one image, {where}, measured {when}."
    return [_time(timing) for timing in single], words


def _time(timing: dict[str, Any] | None) -> dict[str, Any]:
    found = timing or {}
    keys = {"latency": "median_ms", "latency_low": "low_ms", "latency_high": "high_ms"}
    return {ours: found.get(theirs) for ours, theirs in keys.items()}


def early_exits(val: Predictions, test: Predictions, macs: Sequence[int]) -> dict[str, Any]:
    """The early-exit curve: policies solved on validation for bounds on the mean cost, and what they do on test."""
    points = []
    for policy in sweep(val, macs, points=16, temperatures=fit_temperatures(val)):
        solved, seen = outcome(val, policy, macs), outcome(test, policy, macs)
        low, high = seen.error_interval
        worth = {"error": seen.error, "low": low, "high": high}
        costs = {"macs": seen.mean_cost, "val_macs": solved.mean_cost}
        points.append({**costs, "val_error": solved.error, "test": worth, "shares": seen.shares})
    words = (
        "Thresholds on the entropy, and temperatures, are solved on validation "
        f"(n = {len(val.labels):,}), for the least error at a bound on the mean cost; test "
        f"(n = {len(test.labels):,}) is a report. The cost counts every head that an image passes."
    )
    return {"points": sorted(points, key=lambda point: point["macs"]), "words": words}


def calibration(logits: Tensor, labels: Tensor, report: OutputReport) -> dict[str, Any]:
    """The reliability diagram of one output: its filled bins, with 95 % intervals of the accuracy."""
    bins = []
    for b in reliability(logits, labels):
        if b.images:
            low, high = wilson(round(b.accuracy * b.images), b.images)
            values = {"from": b.low, "to": b.high, "count": b.images, "confidence": b.confidence}
            bins.append({**values, "accuracy": b.accuracy, "low": low, "high": high})
    return {"bins": bins, "ece": report.calibration_error}


def confused(logits: Tensor, labels: Tensor, most: int = 12) -> dict[str, Any]:
    """The confusion matrix of one output (truth by answer) unless it is too large to draw, and its worst pairs."""
    table = confusion(logits, labels)
    classes = len(table)
    mistakes = table - table.diagonal().diag()
    counts, places = mistakes.flatten().topk(min(most, mistakes.numel()))
    found = zip(places.tolist(), counts.tolist(), strict=True)
    pairs = [[place // classes, place % classes, count] for place, count in found if count]
    return {"counts": table.tolist() if classes <= MOST_CLASSES else None, "pairs": pairs}


def only_deeper(test: Predictions) -> list[tuple[int, int]]:
    """(image, k) of the images that output k - 1 gets wrong, and output k and all deeper ones right."""
    deepest_wrong = [(wrong.nonzero().max().item() + 1 if wrong.any() else 0) for wrong in test.wrong.T]
    return [(n, int(k) + 1) for n, k in enumerate(deepest_wrong) if 0 < k < len(test.logits)]


def gallery(test: Predictions, split: Labelled, deeper: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Some of the images that only deeper outputs get right, evenly over classes and the outputs from which on."""
    alike: dict[tuple[int, int], list[int]] = {}
    for n, k in deeper:
        alike.setdefault((k, int(test.labels[n])), []).append(n)
    turns = [(turn, k, n) for (k, _), found in alike.items() for turn, n in enumerate(found)]
    sure, answers = test.logits.softmax(2).max(2)
    return [
        {
            "index": n,
            "from": k,
            "label": int(test.labels[n]),
            "answers": [[a, round(p, 4)] for a, p in zip(answers[:, n].tolist(), sure[:, n].tolist(), strict=True)],
            "png": png(split.read(torch.tensor([n]))[0]),
        }
        for _, k, n in sorted(sorted(turns)[:MOST_IMAGES], key=lambda each: (each[1], each[2]))
    ]


def png(image_HWC: Tensor) -> str:
    """A uint8 image [H, W, C] as a data URI, made smaller if it is large."""
    from PIL import Image

    pixels = image_HWC.to(torch.uint8).cpu().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
