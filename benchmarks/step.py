"""What a training step of each method costs, in units of the plain trunk's: interleaved runs, medians, ratios first.

    python benchmarks/step.py [--depth 20] [--outputs 3] [--batch-size 128] [--rounds 15] [--threads N] [--json FILE]

The floor of live multi-way is put together from parts measured in the same rounds: one forward with all heads and
losses, and the K backwards one by one, each through the segments that its output reaches. Limits: joint <= 1.05 of
the plain trunk, fused <= 1.05 of joint, live <= 1.05 of its floor.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

import auxnet
from auxnet.gradients import gradients, parameters, supervise
from auxnet.machine import keep_freed_memory
from measured import METHODS, SGD, batch_of, options, peak_bytes, ratio, save, seconds, shown

RATIOS = (
    ("joint", "plain"),
    ("fused", "joint"),
    ("live", "floor of live"),
    ("live", "joint"),
    ("frozen", "joint"),
    ("deep first", "live"),
    ("pairwise", "joint"),
)


def main() -> None:
    asked = options(__doc__, depth=20, outputs=3, batch_size=128, image_size=32, rounds=15).parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as `auxnet train` does

    batch = batch_of(asked.batch_size, asked.image_size)
    steps = {"plain": _method(METHODS["joint"], asked.depth, 1)}
    variants = {"frozen": {"mode": "frozen"}, "deep first": {"order": "deep_first"}}
    makes = METHODS | {name: partial(auxnet.multiway, **options) for name, options in variants.items()}
    steps |= {name: _method(make, asked.depth, asked.outputs) for name, make in makes.items()}
    memory = {name: peak_bytes(method, *batch) for name, method in steps.items()}
    parts = LiveParts(asked.depth, asked.outputs)
    times: dict[str, list[float]] = {name: [] for name in (*steps, "floor of live")}
    for i in track(range(asked.rounds + 2), "measuring", transient=True):
        measured = {name: seconds(lambda method=method: method.step(*batch)) for name, method in steps.items()}
        measured["floor of live"] = parts.seconds(*batch)
        if i >= 2:  # warm by now
            for name, took in measured.items():
                times[name].append(took)

    ratios = {f"{a} / {b}": ratio(times[a], times[b]) for a, b in RATIOS}
    title = f"AuxNet-{asked.depth}-{asked.outputs}, batch {asked.batch_size}, {asked.threads} threads"
    table = Table("ratio", "median (quartiles)", title=title)
    for name, three in ratios.items():
        table.add_row(name, shown(three, 3))
    for name, took in times.items():
        low, median, high = (1e3 * value for value in statistics.quantiles(took))
        table.add_row(f"{name}, ms", shown((low, median, high), 0))
    for name, held in memory.items():
        table.add_row(f"peak memory of {name} / joint", f"{held / memory['joint']:.3f}")
    Console().print(table)
    save(asked, ratios=ratios, seconds=times, peak_bytes=memory)


def _method(make: Callable[..., auxnet.Method], depth: int, outputs: int) -> auxnet.Method:
    net = auxnet.resnet(depth, outputs).to(memory_format=torch.channels_last).train()
    return make(net, SGD, net.loss_weights())


class LiveParts:
    """One forward and K backwards, timed one by one and without any update."""

    def __init__(self, depth: int, outputs: int) -> None:
        self.net = auxnet.resnet(depth, outputs).to(memory_format=torch.channels_last).train()

    def seconds(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        features, entering = [], []

        def forward() -> None:
            features.extend(self.net.features(images))
            supervised = supervise(self.net.heads, enumerate(features, start=1), labels, F.cross_entropy)
            entering.extend(each.supervision for each in supervised)

        total = seconds(forward)
        for k, (x, gradient) in enumerate(zip(features, entering, strict=True), start=1):
            trunk = parameters(self.net.segments[:k])
            total += seconds(lambda x=x, g=gradient, t=trunk: gradients([x], t, [g], keep=True))
        return total


if __name__ == "__main__":
    main()
