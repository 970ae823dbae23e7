"""What a model costs, counted and not timed: parameters, multiply-adds (MACs), the memory of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import Node, saved_tensors_hooks

from auxnet.backbones.dryrun import frozen_copy, plain_attention, without_norms
from auxnet.features import nodes_below
from auxnet.modules import copied
from auxnet.network import AuxNet
from auxnet.watching import MultiplyAddCounter

SMALL_IMAGE = 2**18  # values of an image: 295x295 pixels in colour


def count_parameters(module: nn.Module) -> int:
    """Trainable and frozen parameters; buffers (running statistics) are not parameters."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds_by_part(net: AuxNet, image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """Multiply-adds of each segment, and of the head at its end, for one image of shape (C, H, W).

    Counted are convolutions and matrix products, as PyTorch counts them (not matrix-vector products, nor
    `nn.Bilinear`), exactly, in copies on "meta", where only shapes are computed. Built-in nets run for real on small
    images, which takes less time than importing what "meta" needs; so do nets that read the values of a tensor.
    Raises ValueError for images that are not for this net.
    """
    net.check_images((1, *image_shape))
    pairs = nn.ModuleList(nn.ModuleList(pair) for pair in zip(net.segments, net.heads, strict=True))
    like = next(pairs.parameters())
    image = torch.zeros(1, *image_shape, dtype=like.dtype, device=like.device)
    if not image.is_meta and image.numel() <= SMALL_IMAGE and all(map(_is_built_in, pairs.modules())):
        return _run(frozen_copy(pairs), image)
    try:
        return _run(without_norms(frozen_copy(pairs).to("meta")), image.to("meta"))
    except Exception:
        with torch.backends.mkldnn.flags(enabled=False):  # its LSTM is one operator, of which nothing is counted
            return _run(frozen_copy(pairs), image)


def _is_built_in(module: nn.Module) -> bool:
    plain = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.Sequential, nn.ModuleList)
    return type(module) in plain or type(module).__module__ == "auxnet.blocks"


def _run(pairs: Any, x: Tensor) -> list[tuple[int, int]]:
    """Multiply-adds of each segment, and of the head at its end."""
    parts = []
    with torch.no_grad(), plain_attention(), MultiplyAddCounter() as counter:
        for segment, head in pairs:
            before = counter.multiply_adds
            x = segment(x)
            between = counter.multiply_adds
            head(x)
            parts.append((between - before, counter.multiply_adds - between))
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


def step_bytes(net: AuxNet, image_shape: Sequence[int], batch: int, dtype: torch.dtype) -> int | None:
    """Bytes that a training step on `batch` images of shape (C, H, W) saves for its backwards: nearly all it takes.

    Counted in a copy on "meta", which takes no memory. None for a net that reads the values of a tensor, or that has
    attention (a softmax), of which "meta" saves more than a device does.
    """
    twin = without_norms(copied(net).to("meta").train())
    weights = {p.untyped_storage()._cdata for p in twin.parameters()}
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # kept alive: otherwise another storage could get its address
        return tensor

    images = torch.empty(batch, *image_shape, dtype=dtype, device="meta")
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = twin(images.to(memory_format=torch.channels_last))
    except Exception:
        return None
    seen: set[Node] = set()
    names = {node.name() for z in logits for node in nodes_below(z.grad_fn, seen)}
    if not names.isdisjoint(("SoftmaxBackward0", "SafeSoftmaxBackward0")):
        return None
    return sum(storage.nbytes() for storage in kept.values())
