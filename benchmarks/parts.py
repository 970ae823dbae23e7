"""What bounds a training step: the machine's own matrix products, its operators, the updates of live multi-way.

    python benchmarks/parts.py [--batch-size 128] [--rounds 15] [--threads N] [--json FILE]

Floating-point operations are counted, not estimated. Aims: 0.70 of the rate of a large matrix product for the step of
a plain ResNet-20; updates whose share does not grow with the number of tensors.
"""

from __future__ import annotations

import statistics

import torch
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.machine import keep_freed_memory
from auxnet.update import Update
from measured import METHODS, SGD, Task, batch_of, in_turns, operations, options, ratio, save, seconds, shown

SIDE = 2048  # of the matrices


def main() -> None:
    asked = options(__doc__, rounds=15, batch_size=128).parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as `auxnet train` does
    batch, (a, b) = batch_of(asked.batch_size), torch.randn(2, SIDE, SIDE)

    tasks: dict[str, Task] = {"matrix product": lambda: a @ b}
    work = {"matrix product": 2 * SIDE**3}
    for block in ("preact", "original"):
        step = _step("joint", 20, 1, block)
        tasks[f"ResNet-20, {block}"] = lambda step=step: step(*batch)
        work[f"ResNet-20, {block}"] = operations(tasks[f"ResNet-20, {block}"])
    times = in_turns(tasks, asked.rounds, warm_up=2)
    product = times["matrix product"]
    shares = {n: ratio(product, took, work[n] / work["matrix product"]) for n, took in times.items()}

    table = Table("step", "share of the rate of a matrix product", "GFLOP a step", "GFLOP/s")
    for name, took in times.items():
        rate = work[name] / statistics.median(took) / 1e9
        table.add_row(name, shown(shares[name], 3), f"{work[name] / 1e9:.1f}", f"{rate:.0f}")
    Console(width=120).print(table)

    profiles = {"ResNet-20": _profile("joint", 1, batch), "AuxNet-20-3 live": _profile("live", 3, batch)}
    table = Table("share of a step's time", *profiles)
    for kind in (*KINDS, "all else"):
        table.add_row(kind, *(f"{shares[kind]:.3f}" for shares in profiles.values()))
    Console(width=120).print(table)

    updates = {
        f"AuxNet-{depth}-{outputs}{'' if fused else ', not fused'}": _updates(depth, outputs, fused, asked)
        for fused in (True, False)
        for depth, outputs in NETS
    }
    table = Table("live multi-way", "the K updates' share of the step", "tensors updated", "us a tensor")
    for name, row in updates.items():
        table.add_row(name, shown(row["share"], 4), str(row["tensors"]), f"{row['us_a_tensor']:.0f}")
    Console(width=120).print(table)
    save(asked, shares=shares, flops=work, seconds=times, profiles=profiles, updates=updates)


KINDS = {
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::thnn_conv2d", "aten::_slow_conv2d_forward"),
    "convolutions, backward": ("aten::convolution_backward",),
    "BatchNorm": ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
    "ReLU": ("aten::clamp_min_", "aten::threshold_backward"),
    "sums": ("aten::add", "aten::add_"),
    "optimizers": ("aten::_fused_sgd_", "Optimizer.step#SGD.step"),
}


def _profile(method: str, outputs: int, batch: tuple[torch.Tensor, torch.Tensor], steps: int = 5) -> dict[str, float]:
    """The share of each kind of operator in the time of a step, by torch.profiler."""
    step = _step(method, 20, outputs, "preact")
    step(*batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step(*batch)
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    shares = {kind: sum(spent.get(key, 0) for key in keys) / sum(spent.values()) for kind, keys in KINDS.items()}
    return shares | {"all else": 1 - sum(shares.values())}


NETS = ((20, 3), (56, 5), (110, 5))


def _updates(depth, outputs, fused, asked):
    """Update, timed inside the steps that it belongs to."""
    images, labels = batch_of(asked.batch_size)
    net = auxnet.resnet(depth, outputs).to(memory_format=torch.channels_last).train()
    method = METHODS["live"](net, lambda parameters: SGD(parameters, fused=fused), net.loss_weights())
    spent = [0.0]
    update = Update.__call__

    def timed(self, gradients):
        spent[-1] += seconds(lambda: update(self, gradients))

    Update.__call__ = timed
    steps = []
    for _ in range(max(3, asked.rounds // 3) + 1):
        spent.append(0.0)
        steps.append(seconds(lambda: method.step(images, labels)))
    Update.__call__ = update
    tensors = sum(len(each.parameters) for each in method.updates)
    return {
        "share": ratio(spent[2:], steps[1:]),
        "tensors": tensors,
        "us_a_tensor": 1e6 * statistics.median(spent[2:]) / tensors,
    }


def _step(method, depth, outputs, block):
    net = auxnet.resnet(depth, outputs, block=block).to(memory_format=torch.channels_last).train()
    return METHODS[method](net, SGD, net.loss_weights()).step


if __name__ == "__main__":
    main()
