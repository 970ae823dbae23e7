"""Training in bfloat16: half the memory traffic, and on GPUs the matrix units, with live multi-way still live.

Autocast would cast each weight when a forward needs it, and autograd would keep the cast copy: a backward after an
update would still see the old weight, and live would silently be frozen. Here convolutions and linear layers
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

    The net then takes images in bfloat16. Weights that are loaded into it later come rounded, and masters follow them.
    Build its method after this. `AuxNet.float()` ends the training and the masters; a copy of the net has no masters.
    """
    for module in net.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            for parameter in module.parameters(recurse=False):
                if parameter.dtype != torch.bfloat16:  # else it has a master already: two modules may share a weight
                    parameter.master = parameter.data  # type: ignore[attr-defined]
                    parameter.data = parameter.data.bfloat16()
    return net


@contextmanager
def usual_defaults() -> Iterator[None]:
    """For the block, make tensors in float32 on the CPU and autocast none, whatever the caller's defaults."""
    with ExitStack() as stack:
        stack.enter_context(usual_in_thread())
        if (dtype := torch.get_default_dtype()) != torch.float32:  # all threads of a process share it
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def usual_in_thread() -> Iterator[None]:
    """`usual_defaults` without the default dtype, which all threads share: for blocks that name their dtypes."""
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
