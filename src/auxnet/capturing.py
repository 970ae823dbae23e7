"""A training step as one CUDA graph, recorded once and replayed with one launch: in small nets launches cost most.

A graph does again, kernel by kernel and in the same memory, what was recorded. What Python decided then, step sizes,
loss weights, which outputs are discarded, stays decided: when any of it changes, the step is recorded anew. Recording
computes nothing, so no batch is trained on twice, and the weights are those of steps one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from auxnet.errors import first_line
from auxnet.method import Method

WARM_UP = 3  # steps one by one before a recording: they make the optimizers' states, and what libraries make once

Step = Callable[[], Tensor]
Record = Callable[[Step], Step]
Aside = Callable[[], AbstractContextManager[None]]


class Recording(NamedTuple):
    """A step that can be replayed: it reads its batch from `images` and `labels`, and gives its losses [K]."""

    images: Tensor
    labels: Tensor
    replay: Step


class Decided(NamedTuple):
    """The Python-side settings that a recording has frozen in."""

    lambdas: list[float]
    groups: list[dict[str, Any]]
    """the settings of every optimizer"""
    states: list[Any]
    """the state of every optimizer, compared by identity: `load_state_dict` makes new ones"""

    def same(self, other: Decided) -> bool:
        """Whether the settings are the same, so that a recording made with the others still holds."""
        return self[:2] == other[:2] and all(map(is_, self.states, other.states))


def as_cuda_graph(method: Method, device: torch.device) -> Method:
    """The same method, each of its steps one CUDA graph on this device; BatchNorm stays in the mode it was recorded in.

    Raises ValueError for optimizers that a graph cannot hold; RuntimeError, in the first steps, for a method that does
    what a graph cannot; torch.OutOfMemoryError where there is no memory for it. (One whose steps decide by what they
    read from the device, `step_scale="adaptive"`, gains nothing.)
    """
    check_optimizers(method)
    for update in method.updates:  # or torch warns of the steps that are not recorded
        update.optimizer._warned_capturable_if_run_uncaptured = True
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return captured(method, lambda step: _recorded(step, stream), lambda: _on(stream))


def check_optimizers(method: Method) -> None:
    """Raise ValueError for an optimizer that counts its steps where a graph cannot."""
    for optimizer in (update.optimizer for update in method.updates):
        held = all(group.get("capturable") for group in optimizer.param_groups)
        if not (held or isinstance(optimizer, torch.optim.SGD)):
            name = type(optimizer).__name__
            raise ValueError(f"cuda_graph=True cannot hold {name}: take SGD or an optimizer with capturable, as AdamW")


def captured(method: Method, record: Record, aside: Aside) -> Method:
    """The same method, its steps recorded once and then replayed: bit for bit the training of ordinary steps.

    `record` turns a step into a function that replays it, without running it; the steps before that run within `aside`.
    Batches of the largest size are recorded; one of another shape, such as the last of an epoch, is an ordinary step.
    """
    recording: Recording | None = None
    warm, largest, known = 0, 0, Decided([], [], [])

    def step(images: Tensor, labels: Tensor) -> Tensor:
        nonlocal recording, warm, largest, known
        largest, now = max(largest, len(images)), _decided(method)
        if not now.same(known) or (recording is not None and len(recording.images) < largest):
            recording, warm, known = None, 0, now
        if warm < WARM_UP:
            warm += 1
            with aside():
                return method.one_step(images, labels)
        if recording is None and len(images) == largest:
            x, y = images.clone(), labels.clone()
            recording = Recording(x, y, record(lambda: method.one_step(x, y)))
        if recording is None or _kind(images, labels) != _kind(recording.images, recording.labels):
            return method.one_step(images, labels)
        recording.images.copy_(images)
        recording.labels.copy_(labels)
        return recording.replay().clone()

    return replace(method, one_step=step)


def _decided(method: Method) -> Decided:
    optimizers = [update.optimizer for update in method.updates]
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]
    return Decided([*method.lambdas], groups, [optimizer.state for optimizer in optimizers])


def _kind(images: Tensor, labels: Tensor) -> tuple[Any, ...]:
    return images.shape, images.dtype, labels.shape, labels.dtype


def _recorded(step: Step, stream: torch.cuda.Stream) -> Step:
    graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream(stream.device)
    try:
        with torch.cuda.device(stream.device), torch.cuda.graph(graph, stream=stream):
            losses = step()
    except Exception as error:
        torch.cuda.set_stream(usual)  # the end of a recording that failed raises too, and leaves its stream behind
        cause = error
        while isinstance(cause.__context__, Exception):  # what is said at the end is only that it failed before
            cause = cause.__context__
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        raise RuntimeError(f"this step cannot be a CUDA graph ({first_line(cause)}): leave cuda_graph out") from error

    def replay() -> Tensor:
        graph.replay()
        return losses

    return replay


@contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run on a side stream, as PyTorch requires of the steps before a recording."""
    with torch.cuda.device(stream.device):
        usual = torch.cuda.current_stream()
        stream.wait_stream(usual)
        with torch.cuda.stream(stream):
            yield
        usual.wait_stream(stream)
