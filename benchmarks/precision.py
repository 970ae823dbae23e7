"""What training in bfloat16 brings on this CPU: a matrix product, and steps, in bfloat16 over the same in float32.

    python benchmarks/precision.py [--depth 20] [--outputs 3] [--batch-size 128] [--rounds 15] [--threads N] [--json F]

Where the CPU has units for it (AMX of Intel's Xeons), bfloat16 is faster; on others it is emulated, and slow.
"""

from __future__ import annotations

import statistics

import torch
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.machine import keep_freed_memory
from auxnet.precision import in_float32, to_bfloat16
from measured import METHODS, SGD, Task, batch_of, in_turns, operations, options, ratio, save, shown

SIDE = 2048  # of the matrices
FLOAT32, BFLOAT16 = "float32", "bfloat16"


def main() -> None:
    asked = options(__doc__, depth=20, outputs=3, batch_size=128, rounds=15).parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as `auxnet train` does
    batch = batch_of(asked.batch_size)

    a, b = torch.randn(2, SIDE, SIDE)
    short_a, short_b = a.bfloat16(), b.bfloat16()
    tasks: dict[str, Task] = {
        f"matrix product, {FLOAT32}": lambda: a @ b,
        f"matrix product, {BFLOAT16}": lambda: short_a @ short_b,
    }
    nets = {"plain": ("joint", 1), **{method: (method, asked.outputs) for method in METHODS}}
    for name, (method, outputs) in nets.items():
        for precision in (FLOAT32, BFLOAT16):
            tasks[f"{name}, {precision}"] = _step(method, asked.depth, outputs, batch, precision)
    times = in_turns(tasks, asked.rounds, warm_up=2)

    names = ["matrix product", *nets]
    ratios = {name: ratio(times[f"{name}, {BFLOAT16}"], times[f"{name}, {FLOAT32}"]) for name in names}
    work = operations(tasks[f"plain, {FLOAT32}"]) / (2 * SIDE**3)
    shares = {
        precision: ratio(times[f"matrix product, {precision}"], times[f"plain, {precision}"], work)
        for precision in (FLOAT32, BFLOAT16)
    }
    title = f"AuxNet-{asked.depth}-{asked.outputs}, batch {asked.batch_size}, {asked.threads} threads"
    table = Table("time of", "bfloat16 / float32", "images/s, float32", "bfloat16", title=title)
    for name, three in ratios.items():
        rates = [asked.batch_size / statistics.median(times[f"{name}, {each}"]) for each in (FLOAT32, BFLOAT16)]
        table.add_row(name, shown(three), *(["", ""] if name not in nets else [f"{rate:.0f}" for rate in rates]))
    Console(width=120).print(table)
    for precision, share in shares.items():
        print(f"the plain step's share of the rate of a matrix product in {precision}: {shown(share, 3)}")
    save(asked, ratios=ratios, shares=shares, seconds=times)


def _step(method: str, depth: int, outputs: int, batch: tuple[torch.Tensor, torch.Tensor], precision: str) -> Task:
    net, (images, labels) = auxnet.resnet(depth, outputs).to(memory_format=torch.channels_last).train(), batch
    if precision == BFLOAT16:
        net, images = to_bfloat16(net), images.bfloat16()
    made = METHODS[method](net, SGD, net.loss_weights(), loss=in_float32(torch.nn.functional.cross_entropy))
    return lambda: made.step(images, labels)


if __name__ == "__main__":
    main()
