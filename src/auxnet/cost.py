"""What a model costs for one image, counted and not timed: its parameters and its multiply-adds (MACs)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from auxnet.network import AuxNet

Made = TypeVar("Made", bound=nn.Module)


def count_parameters(module: nn.Module) -> int:
    """Trainable and frozen parameters; buffers (running statistics) are not parameters."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds(module: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-adds of convolutions and matrix products for one image of shape (C, H, W), counted exactly."""
    twin, image = _on_meta(module, image_shape)
    return _counted(twin, image)[0]


def multiply_adds_by_part(net: AuxNet, image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """Multiply-adds of each segment, and of the head at its end, for one image of shape (C, H, W).

    Raises ValueError for images that are not for this net.
    """
    net.check_images((1, *image_shape))
    twin, x = _on_meta(net, image_shape)
    parts = []
    for segment, head in zip(twin.segments, twin.heads, strict=True):
        macs, x = _counted(segment, x)
        parts.append((macs, _counted(head, x)[0]))
    return parts


def costs(net: AuxNet, image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """(parameters, multiply-adds) of each output as a model of its own, for images of shape (C, H, W).

    Raises ValueError for images that are not for this net.
    """
    rows, trunk = [], 0
    for k, (segment, head) in enumerate(multiply_adds_by_part(net, image_shape), start=1):
        trunk += segment
        rows.append((count_parameters(nn.ModuleList([*net.segments[:k], net.heads[k - 1]])), trunk + head))
    return rows


def _on_meta(module: Made, image_shape: Sequence[int]) -> tuple[Made, Tensor]:
    """A copy of a module that computes shapes alone, and an image for it."""
    twin = copy.deepcopy(module).to("meta").eval().requires_grad_(False)  # the counter trips over views of parameters
    for each in twin.modules():
        if type(each) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):  # no multiply-adds, and slow on "meta"
            each.forward = lambda x: x
    return twin, torch.empty(1, *image_shape, device="meta", dtype=next(twin.parameters()).dtype)


def _counted(module: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """The multiply-adds of a forward, and what it gives."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = module(x)
    return int(counter.get_total_flops()) // 2, result
