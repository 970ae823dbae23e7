"""What the training loop adds to the bare step: images/s of whole epochs, data and all, against steps on one batch.

    python benchmarks/loop.py [--method multiway] [--depth 20] [--outputs 3] [--images 5120] [--rounds 5] [--json FILE]

Epochs, as `auxnet train` runs them, and bare steps alternate; the limit is 0.97 of the bare step's images/s.
On a machine that others use too, the CPU seconds of the process say more (with --threads 1): they do not count waiting.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from auxnet.build import build, training_batches
from auxnet.data import DataSet, Split
from auxnet.distributed import Team
from auxnet.epochs import Training, train_epoch
from auxnet.machine import keep_freed_memory
from auxnet.recipe import Recipe
from auxnet.rundir import Standing, provenance


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--method", default="multiway")
    options.add_argument("--depth", type=int, default=20)
    options.add_argument("--outputs", type=int, default=3)
    options.add_argument("--images", type=int, default=1280)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()  # as `auxnet train` does

    recipe = replace(Recipe(), method=asked.method, depth=asked.depth, outputs=asked.outputs)
    dataset = _like_cifar(asked.images)
    device = torch.device("cpu")
    net, method = build(recipe, dataset, device)
    net.train()
    training = Training(recipe, dataset, net, method, Team(), Path(), math.inf, 1, lambda progress: None, begun=False)
    x, y = next(training_batches(recipe, dataset, device, epoch=1))
    steps = asked.images // recipe.batch_size

    loop, bare, cpu = [], [], []
    for i in track(range(asked.rounds + 1), "measuring", transient=True):
        began, began_cpu = time.perf_counter(), time.process_time()
        train_epoch(training, Standing(), noted=lambda: 0)
        middle, middle_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            method.step(x, y)
        if i:  # the first round warms up
            loop.append(middle - began)
            bare.append(time.perf_counter() - middle)
            cpu.append((time.process_time() - middle_cpu) / (middle_cpu - began_cpu))
    ratios = [b / a for a, b in zip(loop, bare, strict=True)]
    low, median, high = statistics.quantiles(ratios)
    by_cpu = statistics.quantiles(cpu)
    rate = asked.images / statistics.median(loop)
    Console().print(
        f"loop / bare step, images/s: {median:.3f} ({low:.3f} .. {high:.3f}); the loop: {rate:.0f} images/s; "
        f"by CPU seconds {by_cpu[1]:.3f} ({by_cpu[0]:.3f} .. {by_cpu[2]:.3f})"
    )
    if asked.json:
        settings = {k: v for k, v in vars(asked).items() if k != "json"}
        result = {
            "settings": settings,
            "loop/bare": [low, median, high],
            "by CPU seconds": by_cpu,
            "loop_seconds": loop,
            "bare_seconds": bare,
        }
        asked.json.write_text(json.dumps({**result, **provenance(device)}, indent=1) + "\n")


def _like_cifar(images: int) -> DataSet:
    split = Split(torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8), torch.randint(10, (images,)))
    classes = tuple("0123456789")
    return DataSet("random", classes, split, split, split, (125.0,) * 3, (63.0,) * 3, pad=4, flip=True)


if __name__ == "__main__":
    main()
