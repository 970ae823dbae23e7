"""What a training step of each method costs, in units of the plain trunk's: interleaved runs, medians, ratios first.

    python benchmarks/step.py [--depth 20] [--outputs 3] [--batch-size 128] [--rounds 15] [--threads N] [--json FILE]

The floor of live multi-way is put together from parts measured in the same rounds: one forward with all heads and
losses, and the K backwards one by one, each through the segments that its output reaches. Limits: joint <= 1.05 of
the plain trunk, fused <= 1.05 of joint, live <= 1.05 of its floor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

import auxnet
from auxnet.gradients import gradients, parameters, supervise
from auxnet.machine import keep_freed_memory
from auxnet.rundir import provenance


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--depth", type=int, default=20)
    options.add_argument("--outputs", type=int, default=3)
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--image-size", type=int, default=32)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as `auxnet train` does

    images = torch.randn(asked.batch_size, 3, asked.image_size, asked.image_size)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(10, (asked.batch_size,))
    steps = {
        "plain": _step(auxnet.joint, asked.depth, 1),
        "joint": _step(auxnet.joint, asked.depth, asked.outputs),
        "fused": _step(partial(auxnet.multiway, mode="fused"), asked.depth, asked.outputs),
        "live": _step(partial(auxnet.multiway, mode="live"), asked.depth, asked.outputs),
        "frozen": _step(partial(auxnet.multiway, mode="frozen"), asked.depth, asked.outputs),
        "pairwise": _step(auxnet.pairwise, asked.depth, asked.outputs),
    }
    parts = LiveParts(asked.depth, asked.outputs)
    times: dict[str, list[float]] = {name: [] for name in (*steps, "floor of live")}
    for i in track(range(asked.rounds + 2), "measuring", transient=True):
        measured = {name: _seconds(lambda step=step: step(images, labels)) for name, step in steps.items()}
        measured["floor of live"] = parts.seconds(images, labels)
        if i >= 2:  # warm by now
            for name, seconds in measured.items():
                times[name].append(seconds)

    ratios = {
        "joint / plain": _ratio(times["joint"], times["plain"]),
        "fused / joint": _ratio(times["fused"], times["joint"]),
        "live / floor of live": _ratio(times["live"], times["floor of live"]),
        "live / joint": _ratio(times["live"], times["joint"]),
        "frozen / joint": _ratio(times["frozen"], times["joint"]),
        "pairwise / joint": _ratio(times["pairwise"], times["joint"]),
    }
    table = Table(title=f"AuxNet-{asked.depth}-{asked.outputs}, batch {asked.batch_size}, {asked.threads} threads")
    for column in ("ratio", "median", "quartiles"):
        table.add_column(column, justify="left" if column == "ratio" else "right")
    for name, (low, median, high) in ratios.items():
        table.add_row(name, f"{median:.3f}", f"{low:.3f} .. {high:.3f}")
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds)
        table.add_row(f"{name}, ms", f"{1e3 * median:.0f}", f"{1e3 * low:.0f} .. {1e3 * high:.0f}")
    Console().print(table)
    if asked.json:
        settings = {k: v for k, v in vars(asked).items() if k != "json"}
        result = {"settings": settings, "ratios": ratios, "seconds": times, **provenance(torch.device("cpu"))}
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


def _step(make: Callable[..., auxnet.Method], depth: int, outputs: int) -> Callable[..., torch.Tensor]:
    net = auxnet.resnet(depth, outputs).to(memory_format=torch.channels_last).train()
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    return make(net, sgd, net.loss_weights()).step


class LiveParts:
    """One forward and K backwards, timed one by one and without any update."""

    def __init__(self, depth: int, outputs: int) -> None:
        self.net = auxnet.resnet(depth, outputs).to(memory_format=torch.channels_last).train()

    def seconds(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        began = time.perf_counter()
        features = self.net.features(images)
        entering = [
            each.supervision for each in supervise(self.net.heads, enumerate(features), labels, F.cross_entropy)
        ]
        total = time.perf_counter() - began
        for k, (x, gradient) in enumerate(zip(features, entering, strict=True), start=1):
            trunk = parameters(self.net.segments[:k])
            total += _seconds(lambda x=x, g=gradient, t=trunk: gradients([x], t, [g], keep=True))
        return total


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _ratio(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios, round by round."""
    low, median, high = statistics.quantiles([x / y for x, y in zip(a, b, strict=True)])
    return low, median, high


if __name__ == "__main__":
    main()
