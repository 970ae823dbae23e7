"""What steps and evaluation gain from memory that is kept when it is freed, and from huge pages.

    python benchmarks/memory.py [--batch-size 128] [--image-size 32] [--rounds 15] [--threads N] [--json FILE]

Both are settings of a whole process, so each has one of its own; they take turns, and no two work at once. "Ordinary"
is a process as Python starts it, "kept" one that gives no freed memory back, as the commands have it, and "huge" the
same in huge pages, for which PyTorch asks if THP_MEM_ALLOC_ENABLE is 1. Where Linux is set to huge pages for all
(/sys/kernel/mm/transparent_hugepage/enabled), the first two have them too; where it is set to never, none does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.build import PIXELS
from auxnet.evaluation import tally
from auxnet.machine import keep_freed_memory
from measured import METHODS, SGD, batch_of, in_turns, options, ratio, save, shown

NETS = {"ResNet-20": ("joint", 1), "AuxNet-20-3, joint": ("joint", 3), "AuxNet-20-3, live": ("live", 3)}
EVALUATION = "AuxNet-20-3, evaluation"
SETTINGS = ("ordinary", "kept", "huge")
Work = Callable[[], object]


def main() -> None:
    asked = options(__doc__, rounds=15, batch_size=128, image_size=32).parse_args()
    os.environ.pop("THP_MEM_ALLOC_ENABLE", None)
    spawn = multiprocessing.get_context("spawn")
    lines = {}
    for setting in SETTINGS:
        here, there = spawn.Pipe()
        spawn.Process(target=_process, args=(there, setting, asked), daemon=True).start()
        lines[setting] = here
    torch.set_num_threads(asked.threads)  # as the processes: it is saved
    work = ["matrix product", *NETS, EVALUATION]
    tasks = {(name, setting): _asks(line, name) for name in work for setting, line in lines.items()}
    times = in_turns(tasks, asked.rounds, warm_up=2)
    ratios = {
        name: {setting: ratio(times[name, setting], times[name, "ordinary"]) for setting in SETTINGS[1:]}
        for name in work
    }
    held = {setting: _answer(line, "held") for setting, line in lines.items()}
    faults = {
        setting: {name: _answer(line, f"faults of {name}") for name in work[1:]} for setting, line in lines.items()
    }
    for line in lines.values():
        line.send("")  # to its end

    table = Table("time / ordinary", *SETTINGS[1:])
    for name, row in ratios.items():
        table.add_row(name, *(shown(row[setting], 3) for setting in SETTINGS[1:]))
    Console(width=120).print(table)
    table = Table("", *SETTINGS)
    for name in work[1:]:
        table.add_row(f"pages fetched, {name}", *(f"{faults[setting][name]:,.0f}" for setting in SETTINGS))
    table.add_row("MB of memory at the end", *(f"{held[setting] / 1e6:,.0f}" for setting in SETTINGS))
    Console(width=120).print(table)
    seconds = {name: {setting: times[name, setting] for setting in SETTINGS} for name in work}
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    save(
        asked,
        ratios=ratios,
        pages_fetched=faults,
        resident_bytes=held,
        seconds=seconds,
        huge_pages=mode.read_text().strip() if mode.is_file() else None,
    )


def _asks(line: Connection, name: str) -> Work:
    return lambda: _answer(line, name)


def _answer(line: Connection, what: str) -> Any:
    line.send(what)
    return line.recv()


def _process(line: Connection, setting: str, asked: argparse.Namespace) -> None:
    """Does what it is told over the line, in memory of this setting."""
    torch.set_num_threads(asked.threads)
    if setting == "huge":
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # PyTorch looks at it when it makes its first tensor
    if setting != "ordinary":
        keep_freed_memory()
    torch.manual_seed(0)
    batch, (a, b) = batch_of(asked.batch_size, asked.image_size), torch.randn(2, 2048, 2048)
    work: dict[str, Work] = {"matrix product": lambda: a @ b}
    for name, (method, outputs) in NETS.items():
        net = auxnet.resnet(20, outputs).to(memory_format=torch.channels_last).train()
        step = METHODS[method](net, SGD, net.loss_weights()).step
        work[name] = lambda step=step: step(*batch)  # type: ignore[misc]
    net = auxnet.resnet(20, 3).to(memory_format=torch.channels_last)
    judged = batch_of(max(1, min(500, PIXELS // asked.image_size**2)), asked.image_size)  # as `evaluation_batches`
    work[EVALUATION] = torch.inference_mode()(lambda: tally(net, [judged]))
    while what := line.recv():
        if what == "held":
            line.send(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        elif what.startswith("faults of "):
            line.send(_faults(work[what.removeprefix("faults of ")]))
        else:
            work[what]()
            line.send(None)


def _faults(work: Work, times: int = 5) -> float:
    """Pages that the system had to find for one run of this, in the mean."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / times


if __name__ == "__main__":
    main()
