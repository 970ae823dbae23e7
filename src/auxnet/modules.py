"""Leave modules as they were: by copies, or by restoring their modes and buffers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of an nn.Sequential in order, nested ones flattened; any other module is its own only leaf."""
    if type(module) is not nn.Sequential:
        yield module
        return
    for child in module:
        yield from leaves(child)


def copied(module: AnyModule) -> AnyModule:
    """A deep copy, also of modules that store computed tensors, as pruning, weight norm and kept attention maps do.

    (PyTorch does not deep-copy computed tensors: the copy gets them detached.)
    """
    kept = tree_leaves([vars(each) for each in module.modules()])
    computed = [x for x in kept if isinstance(x, Tensor) and not x.is_leaf]
    return copy.deepcopy(module, {id(x): x.detach().clone() for x in computed})


@contextmanager
def in_mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Put a net into training or evaluation mode for the block; then give each module its own mode back."""
    before = {module: module.training for module in net.modules()}
    net.train(training)
    try:
        yield
    finally:
        net.train(before[net])  # some modules do more in `train` than note the mode
        for module, mode in before.items():
            module.training = mode


def expanded(tensor: Tensor) -> bool:
    """Whether elements of a tensor share memory, as after `expand`: then nothing can be written into it in place."""
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@contextmanager
def statistics_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Leave running statistics unchanged by the block, in which norms in training mode still normalise by the batch.

    BatchNorm does not update its own in the block. The buffers of other modules are restored at its end, so a backward
    belongs inside the block too.
    """
    parts = [m for module in modules for m in module.modules()]
    norms = [m for m in parts if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    others = [m for m in parts if m.training and not isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = not norm.training and norm.track_running_stats
    try:
        with buffers_kept(others, recurse=False):
            yield
    finally:
        for norm, track in zip(norms, tracked, strict=True):
            norm.track_running_stats = track


@contextmanager
def buffers_kept(modules: Iterable[nn.Module], recurse: bool = True) -> Iterator[None]:
    """Restore the buffers of modules and their values after the block; with `recurse`, of their submodules too."""
    parts = [m for module in modules for m in (module.modules() if recurse else [module])]
    held = [(m, name, b) for m in parts for name, b in m._buffers.items() if b is not None]
    buffers = [(m, name, b, b if expanded(b) else b.clone()) for m, name, b in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                # Some modules replace a buffer instead of writing into it. (Its version counter cannot tell whether it
                # changed: BatchNorm's updates do not raise it.)
                module._buffers[name] = buffer if value is buffer else buffer.copy_(value)
