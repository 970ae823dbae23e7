"""What a model costs for one image, counted and not timed: its parameters and its multiply-adds (MACs)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from auxnet.network import AuxNet


def count_parameters(module: nn.Module) -> int:
    """Trainable and frozen parameters; buffers (running statistics) are not parameters."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds(module: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-adds of convolutions and matrix products for one image of shape (C, H, W), counted exactly."""
    twin = copy.deepcopy(module).to("meta").eval().requires_grad_(False)  # the counter trips over views of parameters
    image = torch.empty(1, *image_shape, device="meta", dtype=next(twin.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(image)
    return int(counter.get_total_flops()) // 2


def costs(net: AuxNet, image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """(parameters, multiply-adds) of each output as a model of its own, for images of shape (C, H, W).

    Raises ValueError for images that are not for this net.
    """
    net.check_images((1, *image_shape))
    alone = (net.truncate(k) for k in range(1, net.outputs + 1))
    return [(count_parameters(model), multiply_adds(model, image_shape)) for model in alone]
