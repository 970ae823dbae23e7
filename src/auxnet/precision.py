"""Training in bfloat16: half the memory traffic, and on GPUs the matrix units, with live multi-way still live.

Autocast would cast each weight when a forward needs it, and autograd would keep the cast copy: a backward after an
update would still see the weight of before, and live would silently be frozen. Here convolutions and linear layers
*hold* bfloat16 weights, and autograd keeps those very tensors. Each has a float32 master that optimizers update
(`update.Update`) and that is rounded into it after every update. BatchNorm and losses stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from auxnet.network import AuxNet


def to_bfloat16(net: AuxNet) -> AuxNet:
    """The net itself, its convolutions and linear layers now in bfloat16, each weight with a float32 `master`.

    It takes images in bfloat16. Other weights may be loaded into it later, which come rounded: masters follow them. But
    build its method after this: `AuxNet.float()` ends the training and its masters, which a copy of the net does not
    have.
    """
    for module in net.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            for parameter in module.parameters(recurse=False):
                if parameter.dtype != torch.bfloat16:  # else it has its master: two modules may share a weight
                    parameter.master = parameter.data  # type: ignore[attr-defined]
                    parameter.data = parameter.data.bfloat16()
    return net


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Make tensors in float32 on the CPU, and cast none, for the block, whatever the caller's defaults and autocast."""
    with ExitStack() as stack:
        stack.enter_context(usual_in_thread())
        if (dtype := torch.get_default_dtype()) != torch.float32:  # which all threads of a process have in common
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def usual_in_thread() -> Iterator[None]:
    """`usual_defaults` but for the default dtype, which is not the thread's own: for blocks that name theirs."""
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
