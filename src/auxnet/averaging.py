"""The exponential moving average of a net's weights: if a recipe asks for it, the net that is validated and saved.

Weights are averaged, BatchNorm's statistics are not: the mean of many nets' statistics is not the statistics of the net
with the mean weights. They are measured again on training images, for the trunk and the head of every output. Other
buffers, whose meaning is not known here, are copied from the net itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from auxnet.modules import expanded

RECALIBRATION_BATCHES = 100  # on which norms are measured


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Move the average towards a net that has just made its step number `step` (1-based).

    a <- d a + (1 - d) w with d = min(decay, step / (9 + step)): early on, the average forgets the random start faster.
    """
    d = min(decay, step / (9 + step))
    averaged: list[Tensor] = list(average.parameters())
    weights: list[Tensor] = list(net.parameters())
    torch._foreach_lerp_(averaged, weights, 1 - d)


@torch.no_grad()
def copy_buffers(average: nn.Module, net: nn.Module) -> None:
    """Give the average the net's buffers: statistics of norms other than BatchNorm, counters, masks.

    In place, except for a buffer whose shape changed in training, such as a grid of positions for the image size.
    """
    for mine, own in zip(average.modules(), net.modules(), strict=True):
        for name, buffer in own._buffers.items():
            kept = mine._buffers[name]
            if buffer is None or kept is None or kept.shape != buffer.shape or expanded(kept):
                mine._buffers[name] = None if buffer is None else buffer.clone()
            else:
                kept.copy_(buffer)


@torch.no_grad()
def recalibrate_norms(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the statistics of every BatchNorm to the mean of those in these batches [N, C, H, W], weighted by images.

    (In a team, each process uses its own parts of the batches.) A BatchNorm that stays in evaluation mode after
    `net.train()` is frozen, and keeps its statistics. All other modules are in evaluation mode during the measurement,
    as they are when the statistics are used (in PyTorch's `update_bn` dropout is active); the net is left in that mode.
    """
    net.train()
    batch_norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in batch_norms if norm.training and norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        seen = 0
        for images in batches if norms else ():
            seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / seen
            net(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.eval()
