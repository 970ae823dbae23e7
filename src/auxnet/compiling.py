"""Compiled segments (torch.compile) in a training step: norms, ReLUs and sums in one pass over memory.

PyTorch chooses what a compiled forward keeps for its backward, and what the backward recomputes. A feature map that is
recomputed after weights have changed is a different map, and live multi-way would be neither live nor frozen. So each
forward is told to keep what autograd would keep, and to keep the weights themselves, not copies in another memory
format.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch._dynamo.config as dynamo
import torch._functorch.config as autograd
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch._functorch.partitioners import default_partition
from torch._inductor.custom_graph_pass import CustomPartitionerFn
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.fx import GraphModule

from auxnet.errors import first_line
from auxnet.features import kept_features
from auxnet.gradients import gradients, parameters
from auxnet.machine import random_kept
from auxnet.method import Method, Piece
from auxnet.modules import buffers_kept, in_mode, statistics_kept

KEPT = autograd.patch(donated_buffer=False)  # a backward must not overwrite what the next one reads
Forward = Callable[[Tensor], Tensor]
Result = TypeVar("Result")


def compiled(method: Method, images: Tensor) -> Method:
    """The same method, its segments compiled for batches of the shape of `images` [N, C, H, W], whatever their values.

    With a batch of another shape, such as the last of an epoch, a step runs uncompiled; so does the net outside of
    steps.

    Raises RuntimeError for a net that cannot be compiled here, ValueError for one that live cannot train.
    """
    segments = method.net.segments
    if dynamo.disable:
        raise RuntimeError("torch.compile is disabled here, by TORCHDYNAMO_DISABLE: leave --compile out, or unset that")
    with in_mode(method.net, True), buffers_kept(segments), random_kept(images.device), _settings():
        if method.way == "live":  # these checks do not see into compiled segments
            for _ in kept_features(method.net, live=True)(images[:2]):
                pass
        first, *others = (torch.compile(_with_own_code(segment.forward), dynamic=False) for segment in segments)
        forwards = [lambda x: first(x.detach()), *others]  # no method asks for gradients of images
        _compile(segments, forwards, images)
        if method.way == "pairwise":  # runs segments again on a batch, without moving statistics
            with statistics_kept(segments):
                _compile(segments[:-1], forwards, images)

    def within(run: Callable[[], Result]) -> Result:
        with torch.compiler.set_stance("eager_on_recompile"), KEPT, _with_forwards(segments, forwards):
            return run()

    def step(x: Tensor, labels: Tensor) -> Tensor:
        one_step = partial(method.one_step, x, labels)
        return within(one_step) if x.shape == images.shape else one_step()

    def pieces(x: Tensor, labels: Tensor) -> list[Piece]:
        whole = method.in_pieces(x, labels)
        if x.shape != images.shape:
            return whole
        return [piece._replace(run=partial(within, piece.run)) for piece in whole]

    return replace(method, one_step=step, pieces=pieces)


class AsAutograd(CustomPartitionerFn):
    """Has a compiled forward keep what autograd would keep, so that its backward recomputes nothing."""

    def __call__(
        self, gm: GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[GraphModule, GraphModule]:
        """Split a joint graph into its forward and its backward."""
        kwargs.pop("compiler", None)
        return default_partition(gm, joint_inputs, **kwargs)

    def uuid(self) -> str:
        """The name of this partitioner in the keys of PyTorch's cache of compiled graphs."""
        return "auxnet.compiling.AsAutograd"


@contextmanager
def _settings() -> Iterator[None]:
    """Inside the block, PyTorch has the settings with which segments are compiled."""
    with (
        KEPT,
        dynamo.patch(skip_nnmodule_hook_guards=False),  # a segment that is given hooks runs uncompiled
        inductor.patch(custom_partitioner_fn=AsAutograd()),
        inductor.patch(layout_optimization=False),  # it would keep channels_last copies of weights
        inductor.patch(fallback_random=True),  # draw from the generators that are seeded before each step
    ):
        yield


def _with_own_code(forward: Forward) -> Forward:
    """A copy with its own code object: torch.compile caches graphs per code object, whatever the settings."""

    def run(x: Tensor) -> Tensor:
        return forward(x)

    return FunctionType(run.__code__.replace(), globals(), closure=run.__closure__)


def _compile(segments: nn.ModuleList, forwards: Sequence[Forward], images: Tensor) -> None:
    """Run each forward and its backward once, which compiles them. Raises RuntimeError if that fails."""
    x = images
    for k, (segment, forward) in enumerate(zip(segments, forwards, strict=False), start=1):
        try:
            y = forward(x)
            gradients([y], [*parameters(segment), *([x] if x.requires_grad else [])], [torch.randn_like(y)])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            mend = "leave --compile out"
            if "file too short" in str(error):  # a compiler was killed, and PyTorch does not check its files
                mend = f"a file in {cache_dir()}, where PyTorch keeps what it compiled, is broken: remove that folder"
            raise RuntimeError(f"segment {k} cannot be compiled here ({first_line(error)}): {mend}") from error
        x = y.detach().requires_grad_(y.requires_grad)


@contextmanager
def _with_forwards(segments: nn.ModuleList, forwards: Sequence[Forward]) -> Iterator[None]:
    """Inside the block, each segment has another forward."""
    before = [vars(segment).get("forward") for segment in segments]
    for segment, forward in zip(segments, forwards, strict=True):
        segment.forward = forward
    try:
        yield
    finally:
        for segment, own in zip(segments, before, strict=True):
            del segment.forward
            if own is not None:
                segment.forward = own
