"""Compiled segments (torch.compile) in a training step: norms, ReLUs and sums in one pass over memory.

What a compiled forward keeps for its backward is up to PyTorch. Were it a product with a weight in place of the weight,
live multi-way would silently be frozen: each compiled segment is asked what it keeps before anything is trained.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from auxnet.errors import first_line
from auxnet.features import nodes_below
from auxnet.gradients import gradients, parameters
from auxnet.machine import random_kept
from auxnet.method import Method
from auxnet.network import buffers_kept, in_mode, statistics_kept

MANY = 2**16  # graphs of modules that share their code, as all nn.Sequential's do: from 8 on, PyTorch gives up silently
Forward = Callable[[Tensor], Tensor]


def compiled(method: Method, images: Tensor, live: bool = False, pairwise: bool = False) -> Method:
    """The same method, its segments compiled for batches like `images` [N, C, H, W], whatever these show.

    A batch of another shape, such as the last of an epoch, is a step as it was; outside of steps, so is the net. Say
    whether the method is `live` (weights change between two backwards of one forward) or `pairwise` (segments run again
    on a batch, with statistics that do not move). Raises RuntimeError for a net that cannot be compiled here, or of
    which live would be frozen.
    """
    import torch._functorch.config as autograd
    import torch._inductor.config as inductor

    segments = method.net.segments
    autograd.donated_buffer = False  # a backward leaves what it has read to the next one
    inductor.fallback_random = True  # dropout and the like draw the numbers that they draw uncompiled
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MANY
    first, *others = (torch.compile(segment.forward, dynamic=False) for segment in segments)
    forwards = [lambda x: first(x.detach()), *others]  # no method asks for gradients of images
    with in_mode(method.net, True), buffers_kept(segments), random_kept(images.device):
        _compile(segments, forwards, images, live)
        if pairwise:
            with statistics_kept(segments):
                _compile(segments[:-1], forwards, images, live)

    def step(x: Tensor, labels: Tensor) -> Tensor:
        if x.shape != images.shape:
            return method.one_step(x, labels)
        with torch.compiler.set_stance("eager_on_recompile"), _given(segments, forwards):
            return method.one_step(x, labels)

    return replace(method, one_step=step)


def _compile(segments: nn.ModuleList, forwards: Sequence[Forward], images: Tensor, live: bool) -> None:
    """Run each forward and its backward once, which compiles them. Raises RuntimeError as `compiled` does."""
    x = images
    for k, (segment, forward) in enumerate(zip(segments, forwards, strict=False), start=1):
        try:
            y = forward(x)
            gradients([y], [*parameters(segment), *([x] if x.requires_grad else [])], [torch.randn_like(y)], keep=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"segment {k} cannot be compiled here ({first_line(error)}): leave compile out"
            ) from error
        if live and not _kept(segment(x), segment) <= _kept(y, segment):
            raise RuntimeError(
                f"segment {k}, compiled, keeps something else for its backward than its weights: live would be frozen; "
                "leave compile out, or use mode='frozen' or 'fused'"
            )
        x = y.detach().requires_grad_(y.requires_grad)


def _kept(y: Tensor, segment: nn.Module) -> set[int]:
    """Where the parameters lie that the backward from y will read, as they are by then."""
    own = {p.untyped_storage().data_ptr() for p in segment.parameters()}
    nodes = [*nodes_below(y.grad_fn, set())]
    kept = [getattr(node, name) for node in nodes for name in dir(node) if name.startswith("_saved_")]
    kept += [tensor for node in nodes for tensor in getattr(node, "saved_tensors", ())]
    return own & {tensor.untyped_storage().data_ptr() for tensor in kept if isinstance(tensor, Tensor)}


@contextmanager
def _given(segments: nn.ModuleList, forwards: Sequence[Forward]) -> Iterator[None]:
    """Give each segment another forward for the block."""
    for segment, forward in zip(segments, forwards, strict=True):
        segment.forward = forward
    try:
        yield
    finally:
        for segment in segments:
            del segment.forward
