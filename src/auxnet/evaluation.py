"""How well each output classifies, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from auxnet.batches import Batches
from auxnet.cost import costs
from auxnet.documents import parsing, read_json
from auxnet.latency import Latency
from auxnet.loading import weights_sha256
from auxnet.modules import in_mode
from auxnet.network import AuxNet, check_net, check_tensors
from auxnet.rundir import summary_of
from auxnet.scores import Predictions, calibration_error, confusion, log_loss, predictions, top_error, wilson
from auxnet.sections import Which
from auxnet.words import first_few, per_cent

COSTS = ("output", "depth", "params", "macs")
"""the fields of an `OutputReport` that say which output it is and what it costs, and are not measured on images"""
MOST_CLASSES = 100  # of a confusion matrix that is kept, or drawn whole
UNEVEN_RATIO = 1.5  # images of the largest class per image of the smallest: above it the balanced error is told


@dataclass(frozen=True)
class OutputReport:
    """One output on one set of images, and its cost as a model of its own."""

    output: int
    """1..K, shallow to deep"""
    depth: int
    """layers, in the paper's count"""
    params: int
    macs: int
    """multiply-adds for one image"""
    loss: float
    """mean cross-entropy, in nats"""
    error: float
    """fraction in [0, 1]"""
    images: int
    """how many it was measured on"""
    low: float
    """95 % interval of the error, Wilson's"""
    high: float
    calibration_error: float
    """expected calibration error, 15 bins (`scores.calibration_error`)"""
    class_images: tuple[int, ...]
    """how many of each class"""
    class_errors: tuple[float | None, ...]
    """error on the images of each class; None for a class without images"""
    balanced_error: float
    """mean error of the classes that have images: each class counts alike, however many images it has"""
    top5_error: float | None
    """share of images whose class is not among the five likeliest; None with fewer than 10 classes"""
    confusion: tuple[tuple[int, ...], ...] | None = field(repr=False)
    """how many images of class i (row) were called class j (column); None with more than `MOST_CLASSES` classes"""

    @property
    def uneven(self) -> bool:
        """Whether classes (those with images) differ so much in size that the balanced error tells something else."""
        sizes = [*filter(None, self.class_images)]
        return max(sizes) > UNEVEN_RATIO * min(sizes)

    @property
    def costs(self) -> dict[str, int]:
        """The fields that say which output it is, and what it costs."""
        return {key: getattr(self, key) for key in COSTS}


def measure(net: AuxNet, batches: Batches) -> list[OutputReport]:
    """A report per output, shallow to deep, over batches of (images [N, C, H, W], labels [N]).

    The net is evaluated in evaluation mode and left in the mode it was in. Raises what `predictions` raises.
    """
    check_net(net)
    shape, batches = image_shape_of(batches)
    return reports(net, shape, predictions(net, batches))


def reports(net: AuxNet, image_shape: tuple[int, ...], predicted: Predictions) -> list[OutputReport]:
    """A report per output from what a net predicts of images of shape (C, H, W)."""
    labels, images = predicted.labels, len(predicted.labels)
    measured = zip(net.depths, costs(net, image_shape), predicted.logits, predicted.wrong.sum(1).tolist(), strict=True)
    classes = predicted.logits.shape[2]
    sizes = labels.bincount(minlength=classes).tolist()
    rows = []
    for k, (depth, (params, macs), logits, wrong) in enumerate(measured, start=1):
        low, high = wilson(wrong, images)
        right = labels[logits.argmax(1) == labels].bincount(minlength=classes).tolist()
        by_class = [1 - r / n if n else None for r, n in zip(right, sizes, strict=True)]
        of_images = [error for error in by_class if error is not None]
        report = OutputReport(
            output=k,
            depth=depth,
            params=params,
            macs=macs,
            loss=log_loss(logits, labels),
            error=wrong / images,
            images=images,
            low=low,
            high=high,
            calibration_error=calibration_error(logits, labels),
            class_images=tuple(sizes),
            class_errors=tuple(by_class),
            balanced_error=sum(of_images) / len(of_images),
            top5_error=top_error(logits, labels, 5) if classes >= 10 else None,
            confusion=tuple(map(tuple, confusion(logits, labels).tolist())) if classes <= MOST_CLASSES else None,
        )
        rows.append(report)
    return rows


def image_shape_of(batches: Batches) -> tuple[tuple[int, ...], Batches]:
    """(C, H, W) of the images of batches, and all these batches again. Raises ValueError if there are none."""
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("there are no images to evaluate on")
    if not (isinstance(first, tuple | list) and len(first) == 2):
        got = type(first).__name__
        raise ValueError(f"batches must give (images, labels), got a {got}: one batch alone is [(images, labels)]")
    check_tensors(*first)
    return tuple(first[0].shape[1:]), chain([first], batches)


def evaluation_file(folder: Path, which: Which) -> Path:
    """The file of a run with what `evaluate` measured of its "last" or its "best" weights."""
    return folder / ("evaluation.json" if which == "last" else f"evaluation-{which}.json")


def evaluation_of(
    folder: Path, by_split: Mapping[str, list[OutputReport]], latency: list[Latency] | None, which: Which = "last"
) -> dict[str, Any]:
    """The content of `evaluation_file`: the cost of each output, and its measures on each split.

    If latency is not measured now, an earlier measurement of these weights is kept, with its device and threads.
    """
    first, weights = next(iter(by_split.values())), weights_sha256(folder, which)
    times = (
        _measured_before(evaluation_file(folder, which), weights)
        if latency is None
        else [asdict(each) for each in latency]
    )
    outputs = [
        {
            **report.costs,
            "latency": times[k] if len(times) == len(first) else None,
            **{split: _measures(reports[k]) for split, reports in by_split.items()},
        }
        for k, report in enumerate(first)
    ]
    return {"weights": which, "weights_sha256": weights, "outputs": outputs}


def unlike_summary(folder: Path, by_split: Mapping[str, list[OutputReport]], which: Which = "last") -> str | None:
    """A sentence saying which errors differ from those in the run's summary.json; None if none do.

    Raises RuntimeError if summary.json is damaged, FileNotFoundError if there is none.
    """
    found = []
    with summary_of(folder, "its table of outputs cannot be read") as summary:
        rows = [(row["output"], row["val_error"], row["test_error"]) for row in summary[which]]
        for (output, *then), val, test in zip(rows, by_split["val"], by_split["test"], strict=True):
            for split, error, now in zip(("validation", "test"), then, (val.error, test.error), strict=True):
                if error != now:
                    found.append(f"output {output} on {split} {per_cent(now)}, there {per_cent(error)}")
    why = "other images, or another device, version or number of threads"
    return f"errors differ from those of {folder / 'summary.json'} ({why}): {first_few(found)}" if found else None


def _measured_before(path: Path, weights: str) -> list[Any]:
    """The latency of each output that this file holds for weights with this SHA-256; [] if it holds none."""
    with suppress(FileNotFoundError, RuntimeError), parsing(f"{path} is damaged"):
        known = read_json(path)
        if known["weights_sha256"] == weights:
            return [row["latency"] for row in known["outputs"]]
    return []


def _measures(report: OutputReport) -> dict[str, Any]:
    return {key: value for key, value in asdict(report).items() if key not in COSTS}


@torch.no_grad()
def tally(net: AuxNet, batches: Batches) -> tuple[Tensor, Tensor]:
    """Each output's loss, summed over the images (float64 [K]), and how many it gets wrong (int64 [K]).

    In evaluation mode; the net is left in the mode it was in.
    """
    loss, wrong = torch.zeros(net.outputs, dtype=torch.float64), torch.zeros(net.outputs, dtype=torch.int64)
    with in_mode(net, training=False):
        for x, labels in batches:
            if not len(x):  # one of several processes may have none of a small batch
                continue
            outputs = net(x)  # all outputs first: one wait for the device, not one for each
            loss += torch.stack([F.cross_entropy(z.float(), labels, reduction="sum") for z in outputs]).cpu()
            wrong += torch.stack([(z.argmax(1) != labels).sum() for z in outputs]).cpu()
    return loss, wrong
