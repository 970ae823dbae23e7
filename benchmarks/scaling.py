"""What many processes gain over one: images/s, interleaved; the share of messages in it; and what bounds it on GPUs.

    python benchmarks/scaling.py [--processes 2] [--method multiway] [--norms synchronised] [--rounds 8] [--json FILE]

Each process has one thread. "Same batch" divides the batch of one process among all; "a batch each" gives all a batch
as large as that. 1 is the aim of both ratios; what is missing is the waiting for messages (measured), and what the
processes take from each other in cores, caches and memory (the rest).

The bound is arithmetic: every message of a step, as it was counted here, takes 2 log2(P) latencies and moves
2 (P - 1) / P of its bytes. None overlaps with computing: live multi-way needs each before it goes on. What is stated
and not measured: --latency, --bandwidth, and the images/s of one GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.distributed import Team, team
from auxnet.machine import keep_freed_memory
from auxnet.provenance import provenance
from auxnet.synchronised import synchronise_norms
from measured import at_least_two

METHODS = {
    "joint": auxnet.joint,
    "pairwise": auxnet.pairwise,
    "multiway": auxnet.multiway,
    "frozen": partial(auxnet.multiway, mode="frozen"),
    "fused": partial(auxnet.multiway, mode="fused"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--method", choices=METHODS, default="multiway")
    options.add_argument("--norms", choices=["per process", "synchronised"], default="per process")
    options.add_argument("--depth", type=int, default=20)
    options.add_argument("--outputs", type=int, default=3)
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--rounds", type=at_least_two, default=8)
    options.add_argument("--latency", type=float, default=1e-5, help="seconds from one GPU to another")
    options.add_argument("--bandwidth", type=float, default=25e9, help="bytes/s of each GPU's link")
    options.add_argument("--gpu-images", type=float, default=20e3, help="images/s of one GPU training alone")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1])}
    os.environ["WORLD_SIZE"] = str(asked.processes)
    torch.multiprocessing.spawn(_process, (asked,), asked.processes)


def _process(rank: int, asked: argparse.Namespace) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    keep_freed_memory()  # as `auxnet train` does
    with team("cpu") as t:
        measured = _measure(t, asked)
    if rank == 0:
        _report(measured, asked)


# ---- measured ----------------------------------------------------------------------------------------------------


class Messages:
    """A team's `average`, with the bytes of every message and the seconds it took, waiting for the others included."""

    def __init__(self, t: Team) -> None:
        self.average, self.bytes, self.seconds = t.average, [], 0.0
        t.average = self  # what synchronised norms send passes here too

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        result = self.average(tensor)
        self.seconds += time.perf_counter() - began
        self.bytes.append(tensor.numel() * tensor.element_size())
        return result


def _measure(t: Team, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each round, as process 0 saw them."""
    messages = Messages(t)
    alone, together = _method(asked), _method(asked, t, messages)
    one, many = _batch(asked.batch_size), _batch(asked.batch_size * t.size)
    seconds: dict[str, list[float]] = {"alone": [], "same batch": [], "a batch each": []}
    in_messages: dict[str, list[float]] = {"same batch": [], "a batch each": []}
    for i in range(asked.rounds + 2):
        took = {"alone": _seconds(t, lambda: alone.step(*one) if t.leads else None)}
        waited = {}
        for name, batch in {"same batch": one, "a batch each": many}.items():
            t.weigh(len(batch[0]))
            part = [tensor[t.part(len(tensor))] for tensor in batch]
            messages.seconds, messages.bytes = 0.0, []
            took[name] = _seconds(t, lambda part=part: together.step(*part))
            waited[name] = messages.seconds
        if i >= 2:  # warm by now
            for name, value in took.items():
                seconds[name].append(value)
            for name, value in waited.items():
                in_messages[name].append(value)
    return {"seconds": seconds, "seconds_in_messages": in_messages, "bytes_of_messages": messages.bytes}


def _method(
    asked: argparse.Namespace, t: Team | None = None, average: Callable[..., Any] | None = None
) -> auxnet.Method:
    torch.manual_seed(0)
    net = auxnet.resnet(asked.depth, asked.outputs).to(memory_format=torch.channels_last).train()
    if t is not None and asked.norms == "synchronised":
        synchronise_norms(net, t)
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    options = {} if average is None else {"average": average}
    return METHODS[asked.method](net, sgd, net.loss_weights(), **options)


def _batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 32, 32).to(memory_format=torch.channels_last), torch.randint(10, (n,))


def _seconds(t: Team, work: Callable[[], object]) -> float:
    """From when all processes are ready until the work of this one is done."""
    t.any(False)  # all are here
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# ---- said --------------------------------------------------------------------------------------------------------


def _report(measured: dict[str, Any], asked: argparse.Namespace) -> None:
    seconds, waited = measured["seconds"], measured["seconds_in_messages"]
    P, sent = asked.processes, measured["bytes_of_messages"]
    ratios = {
        "same batch: images/s, P processes / (P x one)": _quartiles(seconds["alone"], seconds["same batch"], 1 / P),
        "a batch each: images/s, P processes / (P x one)": _quartiles(seconds["alone"], seconds["a batch each"]),
        "same batch: share of the step in messages": _quartiles(waited["same batch"], seconds["same batch"]),
        "a batch each: share of the step in messages": _quartiles(waited["a batch each"], seconds["a batch each"]),
    }
    name = f"AuxNet-{asked.depth}-{asked.outputs}, {asked.method}, norms {asked.norms}, batch {asked.batch_size}"
    table = Table("ratio", "median", "quartiles", title=f"{name}, {P} processes of 1 thread")
    for what, (low, median, high) in ratios.items():
        table.add_row(what, f"{median:.3f}", f"{low:.3f} .. {high:.3f}")
    for what, values in seconds.items():
        low, median, high = statistics.quantiles(values)
        table.add_row(f"{what}, ms a step", f"{1e3 * median:.0f}", f"{1e3 * low:.0f} .. {1e3 * high:.0f}")
    Console().print(table)

    bounds = [_bound(gpus, sent, asked) for gpus in (8, 64, 512)]
    title = (
        f"the bound: {len(sent)} messages of {sum(sent):,} bytes a step, {1e6 * asked.latency:g} us, "
        f"{asked.bandwidth / 1e9:g} GB/s, {asked.gpu_images:,.0f} images/s a GPU, {asked.batch_size} images each"
    )
    table = Table(*bounds[0], title=title)
    for row in bounds:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    Console().print(table)
    if asked.json:
        settings = {key: value for key, value in vars(asked).items() if key != "json"}
        result = {
            "settings": settings,
            "ratios": ratios,
            "bounds": bounds,
            **measured,
            **provenance(torch.device("cpu")),
        }
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


def _bound(gpus: int, sent: list[int], asked: argparse.Namespace) -> dict[str, float]:
    """Of a step with a batch for each GPU: the parts of its time, and the share of the GPUs that is left."""
    step = asked.batch_size / asked.gpu_images
    latency = len(sent) * 2 * math.log2(gpus) * asked.latency
    moving = sum(sent) * 2 * (gpus - 1) / gpus / asked.bandwidth
    return {
        "GPUs": gpus,
        "computing, ms": 1e3 * step,
        "latency, ms": 1e3 * latency,
        "moving, ms": 1e3 * moving,
        "efficiency": step / (step + latency + moving),
    }


def _quartiles(a: list[float], b: list[float], factor: float = 1.0) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios, round by round."""
    low, median, high = statistics.quantiles([factor * x / y for x, y in zip(a, b, strict=True)])
    return low, median, high


if __name__ == "__main__":
    main()
