"""What a run's net does on its images, as plain values: errors, choice, latency, early exit, mistakes.

Validation and test images are read once each. Choices are made on validation; test errors are only shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from auxnet import build, machine
from auxnet.data import DataSet
from auxnet.evaluation import MOST_CLASSES, OutputReport, reports
from auxnet.exits import ExitCosts, exit_macs, read_notes, read_policy
from auxnet.latency import Timing, latencies
from auxnet.loading import load_net
from auxnet.network import AuxNet
from auxnet.policy import Policy, never
from auxnet.reading.splits import Labelled
from auxnet.recipe import Recipe
from auxnet.scores import Predictions, adjusted_p_values, confusion, interval_of, predictions, reliability
from auxnet.selection import choose
from auxnet.thresholds import Solver, fit_temperatures, outcome
from auxnet.words import sentence, with_interval

T = TypeVar("T")
MOST_PAIRS = 12  # of a class and what it is most often mistaken for
MOST_IMAGES, THUMBNAIL = 24, 96
"""images of the gallery; largest side of an image, in pixels"""


def examine(run: Path, recipe: Recipe, dataset: DataSet) -> dict[str, Any]:
    """Examine the net of a run's last epoch on the images, on the device and the threads of the recipe."""
    device = machine.device_of(recipe.device)
    with machine.threads_set(recipe.threads):
        net = machine.to_device(load_net(run), device)
        shape = (dataset.channels, *dataset.image_size)
        val, test = (
            predictions(net, build.evaluation_batches(split, dataset, device)) for split in (dataset.val, dataset.test)
        )
        on_val, on_test = reports(net, shape, val), reports(net, shape, test)
        measured = latencies(net, shape, (1,), seconds=1.0)
    choice = replace(choose(val, on_val), classes=tuple(dataset.classes))
    rows = [
        {**v.costs, **time_of(latency.timings[0]), "val": _worth(v), "test": _worth(t)}
        for v, t, latency in zip(on_val, on_test, measured, strict=True)
    ]
    p_values, every = adjusted_p_values([*val.wrong]), range(len(rows))
    deeper = only_deeper(test)
    answers = list(zip(test.logits, on_test, strict=True))
    return {
        "outputs": rows,
        "chosen": choice.output,
        "reason": choice.reason,
        "p_values": [[None if j == k else p_values[min(j, k), max(j, k)] for j in every] for k in every],
        "alike": choice.alike,
        "no_better": choice.no_better_than_guessing,
        "lost": choice.classes_lost,
        "balanced": choice.by_balanced_error,
        "measured": measured[0].measured_on,
        "val_wrong": val.wrong.tolist(),
        "val_pictures": dataset.val_pictures(),
        "calibration": [calibration(logits, test.labels, row) for logits, row in answers],
        "confusion": [confused(logits, test.labels) for logits, _ in answers],
        "gallery": gallery(test, dataset.test, deeper),
        "gallery_of": len(deeper),
        "exits": early_exits(val, test, exit_macs(net, shape), *solved_for(run, net)) if net.outputs > 1 else None,
    }


WORTH = ("error", "low", "high", "images", "loss")
"""the fields of an `OutputReport` that a page shows beside `COSTS`"""


def _worth(report: OutputReport) -> dict[str, Any]:
    return {key: getattr(report, key) for key in WORTH}


def time_of(timing: Timing | None) -> dict[str, Any]:
    """The fields of a timing that a page shows: its median and quartiles in ms, None if nothing was measured."""
    keys = {"latency": "median_ms", "latency_low": "low_ms", "latency_high": "high_ms"}
    return {ours: getattr(timing, theirs, None) for ours, theirs in keys.items()}


# ---- leaving early; mistakes ------------------------------------------------------------------------------------


def solved_for(run: Path, net: AuxNet) -> tuple[Policy | None, list[str]]:
    """What `auxnet exits` solved for these weights, and its notes; None, and why, if exits.json is of no use."""
    try:
        return read_policy(run, net.outputs), read_notes(run)
    except FileNotFoundError:  # nobody has asked for it yet
        return None, []
    except RuntimeError as error:
        return None, [f"what `auxnet exits` solved is not shown: {error}"]


def early_exits(
    val: Predictions, test: Predictions, costs: ExitCosts, solved: Policy | None, notes: Sequence[str]
) -> dict[str, Any]:
    """The early-exit curve on validation: policies solved there for bounds on the mean cost, and the one of exits.json.

    What each policy does on test images is reported beside it.
    """

    def point(policy: Policy) -> dict[str, Any]:
        on_val, on_test = (outcome(each, policy, costs.stop, costs.passing) for each in (val, test))
        (low, high), (test_low, test_high) = on_val.error_interval, on_test.error_interval
        return {
            "macs": on_val.mean_cost,
            "val": {"error": on_val.error, "low": low, "high": high},
            "test": {"error": on_test.error, "low": test_low, "high": test_high},
            "test_macs": on_test.mean_cost,
            "shares": on_val.shares,
        }

    rule = never(len(val.logits), temperatures=fit_temperatures(val))
    policies = Solver(val, rule, costs.stop, costs.passing).cost_curve(points=16)
    held = None if solved is None else point(solved)
    words = [
        "Thresholds on the entropy, and temperatures, are solved on the very validation images that are shown "
        f"(n = {len(val.labels):,}), for the least error at a bound on the mean cost. The cost counts every head "
        "that is run."
    ]
    if held is not None:
        val_error, test_error = (
            with_interval(held[split]["error"], held[split]["low"], held[split]["high"]) for split in ("val", "test")
        )
        words.append(
            f"The ring is what exits.json holds: {val_error} on validation, and {test_error} on test (the bar)."
        )
    words += map(sentence, notes)
    words.append(f"Test (n = {len(test.labels):,}) is a report, and decides nothing.")
    return {
        "points": sorted(map(point, policies), key=lambda each: each["macs"]),
        "solved": held,
        "words": " ".join(words),
    }


def calibration(logits: Tensor, labels: Tensor, report: OutputReport) -> dict[str, Any]:
    """The reliability diagram of one output: its filled bins, with 95 % intervals of the accuracy."""
    bins = []
    for b in reliability(logits, labels):
        if b.images:
            low, high = interval_of(b.accuracy, b.images)
            values = {"from": b.low, "to": b.high, "count": b.images, "confidence": b.confidence}
            bins.append({**values, "accuracy": b.accuracy, "low": low, "high": high})
    return {"bins": bins, "calibration_error": report.calibration_error}


def confused(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The confusion matrix of one output (truth by answer) unless it is too large to draw, and its worst pairs."""
    classes, called = logits.shape[1], logits.argmax(1)
    mistakes = torch.stack([labels, called], 1)[called != labels]
    pairs, counts = torch.unique(mistakes, dim=0, return_counts=True)
    worst = counts.argsort(descending=True, stable=True)[:MOST_PAIRS]
    return {
        "counts": confusion(logits, labels).tolist() if classes <= MOST_CLASSES else None,
        "pairs": torch.column_stack([pairs, counts])[worst].tolist(),
    }


def only_deeper(test: Predictions) -> list[tuple[int, int]]:
    """(image, k) for each image that output k - 1 gets wrong, and output k and all deeper outputs get right."""
    numbers = torch.arange(1, len(test.wrong) + 1)
    deepest_wrong = (test.wrong * numbers[:, None]).amax(0).tolist()  # 0: none
    return [(n, k + 1) for n, k in enumerate(deepest_wrong) if 0 < k < len(numbers)]


def gallery(test: Predictions, split: Labelled, deeper: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Some images that one output gets wrong and all deeper ones right, taken in turn from each output and class."""
    labels = test.labels.tolist()
    piles: dict[int, dict[int, list[tuple[int, int]]]] = {}  # by output and class: (output, image)
    for n, k in deeper:
        piles.setdefault(k, {}).setdefault(labels[n], []).append((k, n))
    shown = _in_turn(_in_turn(of_classes.values()) for _, of_classes in sorted(piles.items()))[:MOST_IMAGES]
    sure, answers = test.logits.softmax(2).max(2)
    return [
        {
            "index": n,
            "from": k,
            "label": labels[n],
            "answers": [[a, round(p, 4)] for a, p in zip(answers[:, n].tolist(), sure[:, n].tolist(), strict=True)],
            "png": png(split.read(torch.tensor([n]))[0]),
        }
        for k, n in sorted(shown)
    ]


def _in_turn(piles: Iterable[Iterable[T]]) -> list[T]:
    """The first of each pile, then the second of each, ..."""
    return [each for turn in zip_longest(*piles) for each in turn if each is not None]


def png(image_HWC: Tensor) -> str:
    """A uint8 image [H, W, C] as a data URI, made smaller if it is large."""
    pixels = image_HWC.numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
