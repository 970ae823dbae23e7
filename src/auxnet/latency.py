"""What a model costs in time and memory, measured: latency, throughput, and the most memory held at once.

Time is that of a forward in evaluation mode, in the model's precision and channels_last, BatchNorm not folded, on
random images that are on the device already. Models that are compared take turns, so that a slow moment of the
machine falls on all alike, and medians and quartiles are given.

Memory is counted, not sampled: the most bytes of tensors (weights and buffers, the images, and every
intermediate result) that one forward holds at any moment. It is the same on every machine; what an operator
uses inside itself (convolution workspaces), the allocator's rounding and the process itself are not in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from auxnet.errors import warn
from auxnet.machine import crowded, in_channels_last
from auxnet.modules import in_mode
from auxnet.network import AuxNet
from auxnet.watching import PeakBytes
from auxnet.words import plural

MOST_TURNS = 1000  # runs of a model that is timed
OF_PYTORCH = "latency is that of the PyTorch model; an ONNX file of it is usually faster (docs/performance.md)"


@dataclass(frozen=True)
class Timing:
    """One model at one batch size."""

    batch: int
    median_ms: float
    low_ms: float
    """first quartile"""
    high_ms: float
    """third quartile"""
    images_per_second: float
    """at the median"""
    runs: int

    def __str__(self) -> str:
        """The median and the quartiles, in ms: 0.42 (0.40 .. 0.45)."""
        return f"{self.median_ms:.2f} ({self.low_ms:.2f} .. {self.high_ms:.2f})"


@dataclass(frozen=True)
class Latency:
    """What one output costs as a model of its own."""

    output: int
    """1..K"""
    device: str
    threads: int
    """PyTorch's threads on the CPU"""
    timings: tuple[Timing, ...]
    """one per batch size"""
    peak_bytes: tuple[int, ...]
    """most bytes of tensors held at once, one per batch size"""

    @property
    def measured_on(self) -> str:
        """What it was measured on, in words."""
        return measured_on(self.device, self.threads)


def measured_on(device: object, threads: int) -> str:
    """The device and the number of threads, in words: cpu, 2 threads."""
    return f"{device}, {plural(threads, 'thread')}"


def latencies(
    net: AuxNet, image_shape: Sequence[int], batch_sizes: Sequence[int] = (1, 32), *, seconds: float = 2.0
) -> list[Latency]:
    """Each output as a model of its own (`AuxNet.truncate`), on the net's device, for images of shape (C, H, W).

    `seconds` is about how long each batch size is measured, over all outputs.
    """
    alone = [net.truncate(k) for k in range(1, net.outputs + 1)]
    device = next(net.parameters()).device
    timings = [time_in_turns(alone, image_shape, batch, seconds=seconds) for batch in batch_sizes]
    peaks = [tuple(peak_bytes(model, image_shape, batch) for batch in batch_sizes) for model in alone]
    return [
        Latency(k, str(device), torch.get_num_threads(), of_output, peak)
        for k, (of_output, peak) in enumerate(zip(zip(*timings, strict=True), peaks, strict=True), start=1)
    ]


def time_in_turns(
    models: Sequence[nn.Module], image_shape: Sequence[int], batch: int, *, seconds: float = 2.0, least: int = 7
) -> list[Timing]:
    """Time models that take turns on the same random images, `least` turns or more, after warming up.

    Warns if the CPU has fewer free cores than there are threads: threads that wait for each other take far longer.
    """
    images = example(image_shape, batch, next(models[0].parameters()))
    if images.device.type == "cpu" and (slow := crowded(torch.get_num_threads())):
        warn(f"the times measured may be too long: {slow}")
    prepared = [in_channels_last(model.eval()) for model in models]
    with torch.inference_mode():
        for model in prepared:  # to warm up
            _milliseconds(model, images)
        turn = sum(_milliseconds(model, images) for model in prepared) / 1000
        turns = min(max(least, round(seconds / turn)), MOST_TURNS)
        measured = [[_milliseconds(model, images) for model in prepared] for _ in range(turns)]
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, median, high = torch.tensor(measured, dtype=torch.float64).quantile(quartiles, dim=0).tolist()
    rows = zip(low, median, high, strict=True)
    return [Timing(batch, mid, first, third, 1000 * batch / mid, turns) for first, mid, third in rows]


def example(image_shape: Sequence[int], batch: int, like: Tensor) -> Tensor:
    """Random images [batch, C, H, W] in channels_last, the same every time, on the device and of the type of `like`."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *image_shape, generator=random)
    return images.to(like).contiguous(memory_format=torch.channels_last)


def peak_bytes(model: nn.Module, image_shape: Sequence[int], batch: int = 1) -> int:
    """Most bytes of tensors that a forward of `batch` images holds at once: weights, images, results."""
    images = example(image_shape, batch, next(model.parameters()))
    with in_mode(model, training=False), torch.inference_mode(), PeakBytes() as held:
        held.hold([*model.parameters(), *model.buffers(), images])
        model(images)
    return int(held.peak)


def _milliseconds(model: nn.Module, images: Tensor) -> float:
    _wait(images.device)
    began = time.perf_counter()
    model(images)
    _wait(images.device)
    return 1000 * (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
