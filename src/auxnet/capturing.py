"""A training step as a CUDA graph, recorded once and replayed with one launch: in small nets launches cost most.

A step whose pieces may run at the same time (`wavefront`) is recorded as one graph per piece.

A graph repeats, kernel by kernel and in the same memory, what was recorded. What Python decided during the recording
(step sizes, loss weights, which outputs are discarded) is fixed in it: when any of this changes, the step is recorded
again. Recording computes nothing, so no batch is trained on twice, and the weights equal those of ordinary steps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from auxnet.errors import first_line, warn
from auxnet.method import Method, Piece
from auxnet.words import gigabytes

NUMBERS = ("lr", "eta", "scale", "weight_decay")  # settings of an optimizer on which none of its state depends
WARM_UP = 3  # ordinary steps before a recording: they create the optimizers' states, and what libraries create once

Step = Callable[[], Tensor]
Record = Callable[[list[Piece]], Step]
SideStream = Callable[[], AbstractContextManager[None]]


class Recording(NamedTuple):
    """A step that can be replayed: `replay` reads the batch from `images` and `labels`, and returns the losses [K]."""

    images: Tensor
    labels: Tensor
    replay: Step


class Settings(NamedTuple):
    """The settings in Python that are fixed in a recording."""

    lambdas: list[float]
    groups: list[dict[str, Any]]
    """the parameter groups of every optimizer, without the parameters"""
    states: list[Any]
    """the state of every optimizer, compared by identity: `load_state_dict` makes new ones"""

    def equals(self, other: Settings) -> bool:
        """Whether the settings are the same, so that a recording made with the `other` ones is still valid."""
        return self[:2] == other[:2] and all(map(is_, self.states, other.states))

    def differs_in_numbers_only(self, other: Settings) -> bool:
        """Whether at most numbers differ, so that whatever a first step creates exists already."""
        return self._without_numbers() == other._without_numbers() and all(map(is_, self.states, other.states))

    def _without_numbers(self) -> tuple[list[bool], list[dict[str, Any]]]:
        """Which outputs are discarded, and the settings other than `NUMBERS`."""
        settings = [{name: value for name, value in group.items() if name not in NUMBERS} for group in self.groups]
        return [w == 0 for w in self.lambdas], settings


def as_cuda_graph(method: Method, device: torch.device) -> Method:
    """The same method with its steps as CUDA graphs on this device; BatchNorm stays in the mode it was recorded in.

    If memory does not suffice, a warning says so, and steps stay ordinary ones. Raises ValueError for optimizers that a
    graph cannot hold. The first steps raise RuntimeError for a method that does what a graph cannot, such as deciding
    by values read from the device (`step_scale="adaptive"`). Other decisions that a net or a loss makes in Python are
    not noticed: they stay as they were when the step was recorded.
    """
    if not can_be_graphs(method):
        raise ValueError("a CUDA graph holds SGD, and optimizers with capturable=True, as AdamW: take one of these")
    for update in method.updates:  # or torch warns about the steps that are not recorded
        update.optimizer._warned_capturable_if_run_uncaptured = True
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return captured(method, lambda pieces: _recorded(pieces, stream), lambda: _on(stream))


def can_be_graphs(method: Method) -> bool:
    """Whether a graph can hold all of a method's optimizers: SGD, or those that count steps on the device."""
    optimizers = [update.optimizer for update in method.updates]
    return all(isinstance(o, torch.optim.SGD) or all(g.get("capturable") for g in o.param_groups) for o in optimizers)


def captured(method: Method, record: Record, side_stream: SideStream) -> Method:
    """The same method, its steps recorded once and then replayed: bit for bit the training of ordinary steps.

    `record` turns the pieces of a step into a function that replays it, without running it. The `WARM_UP` steps before
    the recording run within `side_stream`. Only batches of the largest size are recorded; a batch of another shape,
    such as the last of an epoch, is an ordinary step.
    """
    return replace(method, one_step=Captured(method, record, side_stream), pieces=None)


class Captured:
    """The steps of a method: `WARM_UP` run within `side_stream`, then one is recorded, and replayed from then on."""

    def __init__(self, method: Method, record: Record, side_stream: SideStream) -> None:
        self.method, self.record, self.side_stream = method, record, side_stream
        self.possible = True  # until memory does not suffice
        self.recording: Recording | None = None
        self.settings = Settings([], [], [])
        self.largest, self.shape = 0, ()  # of the batches that are recorded
        self.warm_ups = 0  # ordinary steps so far with these settings and this shape

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step on a batch: its losses [K]."""
        shape = _shape(images, labels)
        if self.possible:
            self._check_settings()
            self._check_shape(len(images), shape)
            if self.warm_ups < WARM_UP:
                self.warm_ups += shape == self.shape
                with self.side_stream():
                    return self.method.one_step(images, labels)
            if self.recording is None and shape == self.shape:
                self._record(images.clone(), labels.clone())
        if self.recording is None or shape != self.shape:
            return self.method.one_step(images, labels)
        self.recording.images.copy_(images)
        self.recording.labels.copy_(labels)
        return self.recording.replay().clone()

    def _check_settings(self) -> None:
        """Start over when settings changed; if only numbers did, one more step runs unrecorded first.

        (So numbers that change in every step do not cause a recording in every step.)
        """
        now, before = _settings_of(self.method), self.settings
        if not now.equals(before):
            self._forget()
            self.settings = now
            self.warm_ups = min(self.warm_ups, WARM_UP - 1) if now.differs_in_numbers_only(before) else 0

    def _check_shape(self, size: int, shape: tuple[Any, ...]) -> None:
        """Start over for larger batches, and, while nothing is recorded, for another shape of the largest size."""
        if size > self.largest or (self.recording is None and size == self.largest and shape != self.shape):
            self._forget()
            self.largest, self.shape, self.warm_ups = size, shape, 0

    def _record(self, images: Tensor, labels: Tensor) -> None:
        """Record the step on this batch, if memory suffices. Raises as `_check_memory` does."""
        try:
            self.recording = Recording(images, labels, self.record(self.method.in_pieces(images, labels)))
        except RuntimeError as error:
            _check_memory(error)
            self.possible = False

    def _forget(self) -> None:
        if self.recording is not None and self.recording.images.device.type == "cuda":
            torch.cuda.synchronize(self.recording.images.device)  # a replay may still use the memory that is freed
        self.recording = None


def _check_memory(error: BaseException) -> None:
    """Warn of a recording that failed for lack of memory.

    Raises RuntimeError for any other failure; PyTorch may then still take the device to be recording.
    """
    while isinstance(error.__context__, Exception):  # ending a failed recording raises an error of its own
        error = error.__context__
    if not isinstance(error, torch.OutOfMemoryError):
        mend = "train without, by --no-cuda-graph (cuda_graph=False)"
        raise RuntimeError(f"a step cannot be a CUDA graph ({first_line(error)}): {mend}") from error
    warn(f"steps are not CUDA graphs here, and take longer, for want of memory ({first_line(error)})")


def _settings_of(method: Method) -> Settings:
    optimizers = [update.optimizer for update in method.updates]
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]
    return Settings([*method.lambdas], groups, [optimizer.state for optimizer in optimizers])


def _shape(images: Tensor, labels: Tensor) -> tuple[Any, ...]:
    return images.shape, images.dtype, labels.shape, labels.dtype


def _recorded(pieces: list[Piece], stream: torch.cuda.Stream) -> Step:
    """Record each piece as a graph, replayed when the pieces it needs are done; lane 0 is the stream of the caller.

    The graphs of one lane share memory, since each begins after the one before has ended; two lanes share none.
    """
    numbers = {piece.lane for piece in pieces}
    lanes = {n: torch.cuda.Stream(stream.device) for n in numbers if n}  # type: ignore[no-untyped-call]
    pools = {n: torch.cuda.graph_pool_handle() for n in numbers}
    torch.cuda.synchronize(stream.device)
    gc.collect()  # what is freed during a recording would become part of it
    torch._C._cuda_clearCublasWorkspaces()
    steps_had = torch.cuda.memory_reserved(stream.device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(stream.device)
    with torch.cuda.device(stream.device), torch.cuda.stream(stream):
        made = [_graph_of(piece.run, pools[piece.lane]) for piece in pieces]
    taken = torch.cuda.memory_reserved(stream.device) - before
    if min(taken, steps_had - before) > torch.cuda.mem_get_info(stream.device)[0]:
        raise torch.OutOfMemoryError(f"a graph of {gigabytes(taken)} leaves no room for the steps that are none")
    losses = made[0][1]
    assert losses is not None
    done = [torch.cuda.Event() for _ in pieces]  # type: ignore[no-untyped-call]
    plan = [
        (graph, lanes.get(piece.lane), [done[number] for number in piece.after], event)
        for piece, (graph, _), event in zip(pieces, made, done, strict=True)
    ]

    def replay() -> Tensor:
        usual = torch.cuda.current_stream(stream.device)
        for graph, lane, needed, event in plan:
            on = lane or usual
            for each in needed:
                on.wait_event(each)
            with torch.cuda.stream(on):
                graph.replay()
            event.record(on)
        for event in done:
            usual.wait_event(event)
        return losses

    return replay


def _graph_of(run: Callable[[], Tensor | None], pool: Any) -> tuple[torch.cuda.CUDAGraph, Tensor | None]:
    """A piece recorded as a graph, and what the piece returned."""
    graph = torch.cuda.CUDAGraph()
    torch._C._cuda_clearCublasWorkspaces()  # or two lanes' graphs would write to one workspace at once
    graph.capture_begin(pool=pool)
    try:
        return graph, run()
    finally:
        graph.capture_end()


@contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run the block on a side stream, as PyTorch requires of the steps before a recording."""
    with torch.cuda.device(stream.device):
        usual = torch.cuda.current_stream()
        stream.wait_stream(usual)
        with torch.cuda.stream(stream):
            yield
        usual.wait_stream(stream)
