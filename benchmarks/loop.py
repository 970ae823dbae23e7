"""What the training loop adds to the bare step: images/s of whole epochs, data and all, against steps on one batch.

    python benchmarks/loop.py [--method multiway] [--depth 20] [--outputs 3] [--images 1280] [--rounds 5] [--json FILE]

Epochs, as `auxnet train` runs them, and bare steps alternate; the limit is 0.97 of the bare step's images/s. On a
machine that others use too, the share of an epoch's own time that its steps take says more, for nothing lies between
the two; so do the CPU seconds of the process (with --threads 1), which do not count waiting.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from auxnet.build import build, resident, training_batches
from auxnet.data import DataSet, Split
from auxnet.distributed import Team
from auxnet.epochs import Training, train_epoch
from auxnet.machine import fast_convolutions, keep_freed_memory
from auxnet.recipe import Recipe
from auxnet.resuming import Checkpointer, TrainingState
from measured import options, ratio, save, seconds, shown


def main() -> None:
    parser = options(__doc__, method="multiway", depth=20, outputs=3, images=1280, rounds=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--gpu", action="store_true", help="on a GPU, where steps are not timed one by one")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()  # as `auxnet train` does

    how = {"precision": asked.precision, "compile": asked.compile}
    recipe = replace(Recipe(), method=asked.method, depth=asked.depth, outputs=asked.outputs, **how)
    device = torch.device("cuda" if asked.gpu else "cpu")
    with fast_convolutions(device):
        whole = asked.images - asked.images % recipe.batch_size  # the bare step has no smaller batch
        measure(asked, recipe, resident(_like_cifar(whole), device), device)


def measure(asked: argparse.Namespace, recipe: Recipe, dataset: DataSet, device: torch.device) -> None:
    net, method = build(recipe, dataset, device)
    net.train()
    within: list[float] = []  # seconds in the steps of each epoch

    def timed(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses: list[torch.Tensor] = []
        within[-1] += seconds(lambda: losses.append(method.one_step(images, labels)))
        return losses[0]

    watched = method if asked.gpu else replace(method, one_step=timed)
    training = Training(recipe, dataset, net, watched, Team(), Checkpointer(Path(), recipe))
    x, y = next(training_batches(recipe, dataset, device, epoch=1))
    steps = len(dataset.train) // recipe.batch_size

    loop, bare, loop_cpu, bare_cpu = [], [], [], []
    for i in track(range(asked.rounds + 1), "measuring", transient=True):
        within.append(0.0)
        began, began_cpu = time.perf_counter(), time.process_time()
        train_epoch(training, TrainingState())  # ends with reading the losses
        middle, middle_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            losses = method.step(x, y)
        losses.cpu()
        if i:  # the first round warms up
            loop.append(middle - began)
            bare.append(time.perf_counter() - middle)
            loop_cpu.append(middle_cpu - began_cpu)
            bare_cpu.append(time.process_time() - middle_cpu)
    shares, by_cpu = ratio(bare, loop), ratio(bare_cpu, loop_cpu)
    rate = len(dataset.train) / statistics.median(loop)
    said = f"loop / bare step, {rate:.0f} images/s: {shown(shares, 3)}; by CPU seconds {shown(by_cpu, 3)}"
    figures = {"loop/bare": shares, "by CPU seconds": by_cpu, "loop_seconds": loop, "bare_seconds": bare}
    if not asked.gpu:
        of_steps = ratio(within[1:], loop)
        said += f"; steps take {shown(of_steps, 3)} of the loop's own time"
        figures |= {"share of steps": of_steps, "seconds_in_steps": within[1:]}
    Console().print(said)
    save(asked, device, **figures)


def _like_cifar(images: int) -> DataSet:
    split = Split(torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8), torch.randint(10, (images,)))
    classes = tuple("0123456789")
    return DataSet("random", classes, split, split, split, (125.0,) * 3, (63.0,) * 3, pad=4, flip=True)


if __name__ == "__main__":
    main()
