"""What a GPU reaches: images/s of each method, the share of its own matrix rate, the time of the paper's schedule.

    python benchmarks/gpu.py [--batch-size 128] [--precision bfloat16] [--graph] [--compile] [--json FILE]
    python benchmarks/gpu.py --tiny          # a look that all of it runs, on any machine

Steps are timed many at a time, without waiting in between, as a training runs; nets take turns. `--graph` records the
whole step (forward, backwards, updates) as CUDA graphs, for the launches dominate at this size; `--compile` compiles
the segments; `--cudnn-benchmark` chooses convolutions as a training does.
"""

from __future__ import annotations

import re
import statistics
import time
import warnings
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.capturing import WARM_UP, as_cuda_graph
from auxnet.compiling import compiled
from auxnet.errors import first_line
from auxnet.machine import to_device
from auxnet.precision import to_bfloat16
from measured import METHODS, SGD, batch_of, operations, options, ratio, save, seconds, shown

SCHEDULE = 400 * 50_000  # images: the paper's epochs of CIFAR-10
PLAIN = {f"ResNet-{depth}": ("joint", depth, 1) for depth in (20, 56, 110)}
AUXILIARY = {f"AuxNet-56-5, {method}": (method, 56, 5) for method in METHODS}


def main() -> None:
    parser = options(__doc__, batch_size=128, steps=50)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--graph", action="store_true", help="steps as CUDA graphs")
    parser.add_argument("--in-turn", action="store_true", help="live's backwards one after the other in its graph")
    parser.add_argument("--compile", action="store_true", help="compiled segments")
    parser.add_argument(
        "--cudnn-benchmark", action="store_true", help="cuDNN tries its algorithms and takes the fastest"
    )
    parser.add_argument("--nets", default="", help="only those whose name this regular expression is found in")
    parser.add_argument("--profile", action="store_true", help="what the time of a step goes into, kernel by kernel")
    parser.add_argument("--tiny", action="store_true", help="small nets, few steps")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked.graph and device.type != "cuda":
        parser.error("--graph needs a CUDA device")
    warnings.filterwarnings("error", "steps are not CUDA graphs")
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, asked.precision)
    # PyTorch lets convolutions of float32 round to TF32 and matrix products not: a share is one of the same unit.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.benchmark = asked.cudnn_benchmark
    nets, side = {**PLAIN, **AUXILIARY}, 8192
    nets = {name: net for name, net in nets.items() if re.search(asked.nets, name)}
    if asked.tiny:
        nets, side = {name: (method, 8, min(K, 3)) for name, (method, _, K) in nets.items()}, 256
        asked.batch_size, asked.steps, asked.rounds = 8, 1, 2
    x, labels = batch_of(asked.batch_size, device=device)
    batch = (x.to(dtype), labels)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)

    steps, flops, failed, memory = {}, {}, {}, {}
    for name, (method, depth, outputs) in nets.items():
        try:
            made = _method(method, depth, outputs, device, dtype)
            flops[name] = operations(lambda made=made: made.step(*batch))
            if asked.compile:
                made = compiled(made, batch[0])
            if asked.in_turn:
                made = replace(made, pieces=None)
            step = (as_cuda_graph(made, device) if asked.graph else made).step
            held = reserved()
            for _ in range(WARM_UP + 1):  # a graph is recorded after so many
                step(*batch)
        except (RuntimeError, UserWarning) as error:  # the others are measured all the same
            failed[name] = first_line(error)
            continue
        steps[name], memory[name] = lambda step=step: step(*batch), reserved() - held

    profiles = {name: profile(step) for name, step in steps.items()} if asked.profile else {}
    host = {name: _until_queued(step, asked.steps) for name, step in steps.items()}
    times = {name: [] for name in ("matrix product", *steps)}
    for i in range(asked.rounds + 1):
        for name, step in {"matrix product": lambda: a @ b, **steps}.items():
            took = seconds(lambda step=step: _repeat(step, asked.steps)) / asked.steps
            if i:  # the first round warms up
                times[name].append(took)

    rows = {}
    table = Table("net", "images/s", "ms a step", "until queued", "share of matrix rate", "400 epochs, min", "MB")
    table.title = f"{device}, {asked.precision}"
    for name in steps:
        work = flops[name]
        rate = asked.batch_size / statistics.median(times[name])
        share = ratio(times["matrix product"], times[name], work / (2 * side**3))
        rows[name] = {"images_per_second": rate, "share": share, "minutes": SCHEDULE / rate / 60, "flops": work}
        rows[name]["bytes"] = memory[name]
        ms = f"{1e3 * asked.batch_size / rate:.2f}", f"{1e3 * host[name]:.2f}"
        times_and_memory = f"{SCHEDULE / rate / 60:.1f}", f"{memory[name] / 1e6:,.0f}"
        table.add_row(name, f"{rate:,.0f}", *ms, shown(share, 3), *times_and_memory)
    Console(width=120).print(table)
    for name, why in failed.items():
        print(f"{name} failed: {why}")
    tf32 = dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    product = 2 * side**3 / statistics.median(times["matrix product"]) / 1e12
    print(f"matrix product: {product:.0f} TFLOP/s")
    save(
        asked, device, rows=rows, seconds=times, seconds_until_queued=host, failed=failed, tf32=tf32, profiles=profiles
    )


def reserved():
    """Bytes of the GPU's memory that PyTorch has taken."""
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0


def _until_queued(step, times):
    """Seconds of a step until Python has asked for all of it, whatever the device has done by then."""
    torch.cuda.synchronize() if torch.cuda.is_available() else None
    began = time.perf_counter()
    _repeat(step, times)
    return (time.perf_counter() - began) / times


def profile(step, times=5):
    """Of each kernel of a step: its name, how many, their microseconds; how long the device was busy, and waited."""
    step()
    kinds = [torch.profiler.ProfilerActivity.CUDA if torch.cuda.is_available() else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profiler:
        took = seconds(lambda: _repeat(step, times))
    kernels = [e for e in profiler.key_averages() if e.self_device_time_total or not torch.cuda.is_available()]
    rows = [[e.key[:120], e.count / times, e.self_device_time_total / times] for e in kernels]
    rows.sort(key=lambda row: -row[2])
    return {"microseconds": 1e6 * took / times, "kernels": rows}


def _repeat(step, times):
    """One after the other; none of their results is held."""
    for _ in range(times):
        step()


def _method(name, depth, outputs, device, dtype):
    net = to_device(auxnet.resnet(depth, outputs), device).train()
    net = to_bfloat16(net) if dtype == torch.bfloat16 else net
    return METHODS[name](net, SGD, net.loss_weights())


if __name__ == "__main__":
    main()
