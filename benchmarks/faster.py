"""What makes a step faster on this CPU at the price of its rounding: bfloat16, compiled segments, and both.

    python benchmarks/faster.py [--depth 20] [--outputs 3] [--batch-size 128] [--rounds 15] [--threads N] [--json F]

Where the CPU has units for it (AMX of Intel's Xeons), bfloat16 is faster; on others it is emulated, and slow: where
auxnet would warn of it, it is left out.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.compiling import compiled
from auxnet.machine import bfloat16_pays, keep_freed_memory
from auxnet.precision import to_bfloat16
from measured import METHODS, SGD, Task, batch_of, in_turns, operations, options, ratio, save, shown

SIDE = 2048  # of the matrices
FLOAT32, BFLOAT16 = "float32", "bfloat16"
WAYS = {FLOAT32: (FLOAT32, False), BFLOAT16: (BFLOAT16, False), "compiled": (FLOAT32, True), "both": (BFLOAT16, True)}


def main() -> None:
    asked = options(__doc__, depth=20, outputs=3, batch_size=128, rounds=15).parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as `auxnet train` does
    batch = batch_of(asked.batch_size)
    ways = {way: asks for way, asks in WAYS.items() if asks[0] == FLOAT32 or bfloat16_pays() is not False}
    precisions = dict.fromkeys(precision for precision, _ in ways.values())

    tasks: dict[str, Task] = {}
    for precision in precisions:
        a, b = torch.randn(2, SIDE, SIDE, dtype=getattr(torch, precision))
        tasks[f"matrix product, {precision}"] = partial(torch.matmul, a, b)
    nets = {"plain": ("joint", 1), **{method: (method, asked.outputs) for method in METHODS}}
    compiling: dict[str, float] = {}
    for name, (method, outputs) in nets.items():
        for way, (precision, is_compiled) in ways.items():
            began = time.perf_counter()
            tasks[f"{name}, {way}"] = _step(method, asked.depth, outputs, batch, precision, is_compiled)
            if is_compiled:
                compiling[f"{name}, {way}"] = time.perf_counter() - began
    times = in_turns(tasks, asked.rounds, warm_up=2)

    ratios = {
        name: {way: ratio(times[f"{name}, {way}"], times[f"{name}, {FLOAT32}"]) for way in list(ways)[1:]}
        for name in nets
    }
    product = {each: times[f"matrix product, {each}"] for each in precisions}
    work = operations(tasks[f"plain, {FLOAT32}"]) / (2 * SIDE**3)
    shares = {way: ratio(product[each], times[f"plain, {way}"], work) for way, (each, _) in ways.items()}
    title = f"AuxNet-{asked.depth}-{asked.outputs}, batch {asked.batch_size}, {asked.threads} threads: time / {FLOAT32}"
    table = Table("", *list(ways)[1:], title=title)
    for name, of_each in ratios.items():
        table.add_row(name, *map(shown, of_each.values()))
    if BFLOAT16 in product:
        table.add_row("a matrix product", shown(ratio(product[BFLOAT16], product[FLOAT32])))
    Console(width=120).print(table)
    for way, share in shares.items():
        print(f"{way}: the plain step has {shown(share, 3)} of the rate of a matrix product in {WAYS[way][0]}")
    print(f"compiling took {min(compiling.values()):.0f} to {max(compiling.values()):.0f} s")
    save(asked, ratios=ratios, shares=shares, seconds=times, seconds_to_compile=compiling)


def _step(
    name: str, depth: int, outputs: int, batch: tuple[torch.Tensor, torch.Tensor], precision: str, is_compiled: bool
) -> Task:
    net, (images, labels) = auxnet.resnet(depth, outputs).to(memory_format=torch.channels_last).train(), batch
    if precision == BFLOAT16:
        net, images = to_bfloat16(net), images.bfloat16()
    method = METHODS[name](net, SGD, net.loss_weights())
    if is_compiled:
        method = compiled(method, images)
    return lambda: method.step(images, labels)


if __name__ == "__main__":
    main()
