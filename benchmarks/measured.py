"""What the benchmarks share: tasks that take turns, quartiles of their ratios round by round, JSON with provenance."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import auxnet
from auxnet.provenance import provenance
from auxnet.watching import MultiplyAddCounter, PeakBytes

Task = Callable[[], object]
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
METHODS: dict[str, Callable[..., auxnet.Method]] = {
    "joint": auxnet.joint,
    "fused": partial(auxnet.multiway, mode="fused"),
    "live": partial(auxnet.multiway, mode="live"),
    "pairwise": auxnet.pairwise,
}


def options(about: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with an option for each default, with --rounds, --threads and --json among them."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    for name, default in {"rounds": 7, "threads": torch.get_num_threads(), **defaults}.items():
        kind = at_least_two if name == "rounds" else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    parser.add_argument("--json", type=Path)
    return parser


def at_least_two(text: str) -> int:
    """Rounds: quartiles of one would fail after all is measured."""
    if int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be 2 or more, for quartiles, got {text}")
    return int(text)


def batch_of(images: int, size: int = 32, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Random images in channels_last and labels."""
    x = torch.randn(images, 3, size, size).contiguous(memory_format=torch.channels_last)
    return x.to(device), torch.randint(10, (images,)).to(device)


def seconds(task: Task, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one run of a task, until the device has done it."""
    began = clock()
    task()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def operations(task: Task) -> int:
    """Floating-point operations of one run of a task: two for each multiply-add of products and convolutions."""
    with MultiplyAddCounter() as counter:
        task()
    return 2 * counter.multiply_adds


def peak_bytes(method: auxnet.Method, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Most bytes of tensors held in a step: weights, states, images, features, gradients."""
    method.step(images, labels)  # makes the optimizers' states
    weights = [tensor for update in method.updates for tensor in update.parameters]
    states = [
        value
        for update in method.updates
        for state in update.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    with PeakBytes() as held:
        held.hold([*weights, *states, images, labels])
        method.step(images, labels)
    return held.peak


def in_turns(
    tasks: Mapping[str, Task], rounds: int, warm_up: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each task in each round; in a round every task has its turn."""
    rows = [{name: seconds(task, clock) for name, task in tasks.items()} for _ in range(warm_up + rounds)]
    return {name: [row[name] for row in rows[warm_up:]] for name in tasks}


def ratio(a: list[float], b: list[float], factor: float = 1.0) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of factor a / b, round by round."""
    low, median, high = statistics.quantiles([factor * x / y for x, y in zip(a, b, strict=True)], method="inclusive")
    return low, median, high


def shown(three: tuple[float, float, float], digits: int = 2) -> str:
    """A median and its quartiles, as text."""
    low, median, high = (f"{value:.{digits}f}" for value in three)
    return f"{median} ({low} .. {high})"


def save(asked: argparse.Namespace, device: torch.device | str = "cpu", **figures: Any) -> None:
    """Write the figures where --json says, with the settings and where they come from."""
    if asked.json:
        settings = {name: value for name, value in vars(asked).items() if name != "json"}
        result = {"settings": settings, **figures, **provenance(torch.device(device))}
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
