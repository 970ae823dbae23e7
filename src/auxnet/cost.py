"""What a model costs for one image, counted and not timed: its parameters and its multiply-adds (MACs)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from auxnet.backbones.dryrun import plain_attention
from auxnet.network import AuxNet, copied


def count_parameters(module: nn.Module) -> int:
    """Trainable and frozen parameters; buffers (running statistics) are not parameters."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds_by_part(net: AuxNet, image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """Multiply-adds of each segment, and of the head at its end, for one image of shape (C, H, W).

    Those of convolutions and products of matrices, as PyTorch counts them (not of a matrix and a vector, nor of
    `nn.Bilinear`), counted exactly in copies on "meta", where shapes alone are computed.
    What looks at the values of a tensor does not run there, and is run for real. Raises ValueError for images that are
    not for this net.
    """
    net.check_images((1, *image_shape))
    pairs = nn.ModuleList(nn.ModuleList(pair) for pair in zip(net.segments, net.heads, strict=True))
    like = next(pairs.parameters())
    image = torch.zeros(1, *image_shape, dtype=like.dtype, device=like.device)
    twins = _still(pairs).to("meta")
    for each in twins.modules():
        if type(each) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):  # no multiply-adds, and slow on "meta"
            each.forward = lambda x: x
    try:
        return _run(twins, image.to("meta"))
    except Exception:
        return _run(_still(pairs), image)


def costs(net: AuxNet, image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """(parameters, multiply-adds) of each output as a model of its own, for images of shape (C, H, W).

    Raises ValueError for images that are not for this net.
    """
    rows, trunk = [], 0
    for k, (segment, head) in enumerate(multiply_adds_by_part(net, image_shape), start=1):
        trunk += segment
        rows.append((count_parameters(nn.ModuleList([*net.segments[:k], net.heads[k - 1]])), trunk + head))
    return rows


def _still(pairs: nn.ModuleList) -> nn.ModuleList:
    """A copy in evaluation mode, without gradients: the counter trips over views of parameters."""
    return copied(pairs).eval().requires_grad_(False)


def _run(pairs: Iterable[Any], x: Tensor) -> list[tuple[int, int]]:
    parts = []
    with torch.no_grad(), plain_attention(), FlopCounterMode(display=False) as counter:
        for segment, head in pairs:
            before = counter.get_total_flops()
            x = segment(x)
            between = counter.get_total_flops()
            head(x)
            parts.append(((between - before) // 2, (counter.get_total_flops() - between) // 2))
    return parts
