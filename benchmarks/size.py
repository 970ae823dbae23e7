"""How cost grows: images/s, time and peak memory of a training step against depth, outputs, width, batch, image size.

    python benchmarks/size.py [--rounds 5] [--threads N] [--batch 64] [--only depth outputs ...] [--gpu] [--json FILE]

One number changes at a time, around AuxNet-20-3 in batches (--batch) of 32x32; all steps take turns, and times are
in units of the joint step at that centre. Memory is counted: the most bytes of tensors held at any moment of a step.
With --gpu in bfloat16, as CUDA graphs (whose own memory is not counted), ten steps at a time.
"""

from __future__ import annotations

import statistics
import warnings
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.capturing import WARM_UP, as_cuda_graph
from auxnet.machine import fast_convolutions, keep_freed_memory, to_device
from auxnet.precision import to_bfloat16
from measured import METHODS, SGD, batch_of, options, peak_bytes, ratio, save, seconds, shown

CENTRE = {"depth": 20, "outputs": 3, "width": 1, "image": 32}
GRID = {
    "depth": (20, 56, 110, 164),
    "outputs": (1, 2, 3, 5, 7, 9),
    "width": (1, 2, 4),
    "batch": (16, 64, 128, 256),
    "image": (16, 32, 64),
}
SAID = ("joint", "fused", "live")


def main() -> None:
    parser = options(__doc__, rounds=5, batch=64)
    parser.add_argument("--only", nargs="*", choices=GRID, default=list(GRID))
    parser.add_argument("--gpu", action="store_true", help="on a GPU")
    asked = parser.parse_args()
    device = torch.device("cuda" if asked.gpu else "cpu")
    warnings.filterwarnings("error", "steps are not CUDA graphs")
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as `auxnet train` does
    middle = {**CENTRE, "batch": asked.batch}
    places = [middle] + [{**middle, what: v} for what in asked.only for v in GRID[what] if v != middle[what]]
    with fast_convolutions(device):
        measure(asked, device, middle, places)


def measure(asked, device, middle, places):
    steps = [{name: _step(name, place, device) for name in SAID} for place in places]
    memory = [{name: peak_bytes(*step) for name, step in each.items()} for each in steps]  # warms up, too
    repeats = 10 if device.type == "cuda" else 1
    if device.type == "cuda":
        for each in steps:
            for name, (method, *batch) in each.items():
                each[name] = (as_cuda_graph(method, device), *batch)
                _repeat(*each[name], WARM_UP + 1)
    times = [{name: [] for name in SAID} for _ in places]
    for _ in range(asked.rounds):
        for each, took in zip(steps, times, strict=True):
            for name, (method, images, labels) in each.items():
                step = partial(_repeat, method, images, labels, repeats)
                took[name].append(seconds(step) / repeats)

    centre = times[0]["joint"]
    rows = [
        {
            **place,
            "time / centre": {name: ratio(took[name], centre) for name in SAID},
            "live / joint": ratio(took["live"], took["joint"]),
            "images_per_second": {name: place["batch"] / statistics.median(took[name]) for name in SAID},
            "peak_bytes": peak,
            "memory, live / joint": peak["live"] / peak["joint"],
        }
        for place, took, peak in zip(places, times, memory, strict=True)
    ]
    for what in asked.only:
        table = Table(
            what, "time, joint", "time, live", "live / joint", "images/s, joint", "fused", "live", "MB, joint"
        )
        table.add_column("memory, live / joint")
        for value in GRID[what]:
            row = next(row for row in rows if all(row[k] == v for k, v in {**middle, what: value}.items()))
            time, rate = row["time / centre"], row["images_per_second"]
            table.add_row(
                str(value),
                *(shown(time[name]) for name in ("joint", "live")),
                shown(row["live / joint"]),
                *(f"{rate[name]:.0f}" for name in SAID),
                f"{row['peak_bytes']['joint'] / 1e6:.0f}",
                f"{row['memory, live / joint']:.2f}",
            )
        Console(width=140).print(table)
    save(asked, device, centre=middle, rows=rows)


def _repeat(method, images, labels, times):
    for _ in range(times):
        method.step(images, labels)


def _step(name, place, device):
    net = to_device(auxnet.resnet(place["depth"], place["outputs"], width=place["width"]), device).train()
    images, labels = batch_of(place["batch"], place["image"], device)
    if device.type == "cuda":
        net, images = to_bfloat16(net), images.bfloat16()
    method = METHODS[name](net, SGD, net.loss_weights())
    return method, images, labels


if __name__ == "__main__":
    main()
