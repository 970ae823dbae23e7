"""From uint8 images to float batches: order, augmentation, normalisation.

Images stay uint8 until the last moment, and every step works on a whole batch at once. All randomness comes
from the generator that is handed in: the same generator state gives the same epoch again, bit for bit.

Shapes: N images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor


class Labelled(Protocol):
    """Anything that holds images [N, H, W, C] (uint8) and their labels [N] (int64), on one device."""

    @property
    def images(self) -> Tensor:
        """Images, uint8 [N, H, W, C]."""

    @property
    def labels(self) -> Tensor:
        """Labels, int64 [N]."""


def batches(
    split: Labelled,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: str | torch.device = "cpu",
    generator: Generator | None = None,
    pad: int = 0,
    flip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of (images [N, C, H, W] in channels_last, labels [N]) on `device`; the last batch may be smaller.

    With a generator: shuffled, and augmented by `pad` and `flip`. Without: in order and never augmented,
    whatever `pad` and `flip` say. `mean` and `std` are per channel, in 0..255.

    Raises ValueError, at once, for a batch size below 1, a negative pad, or a mean or std that does not fit.
    """
    channels = split.images.shape[-1]
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if pad < 0:
        raise ValueError(f"pad must be 0 pixels or more, got {pad}")
    if not len(mean) == len(std) == channels:
        raise ValueError(f"one mean and one std per channel ({channels}), got {len(mean)} and {len(std)}")
    if min(std) <= 0:
        raise ValueError(f"std must be above 0 in every channel, got {tuple(std)}")
    return _epoch(split, batch_size, mean, std, torch.device(device), generator, pad, flip, dtype)


def _epoch(
    split: Labelled,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    generator: Generator | None,
    pad: int,
    flip: bool,
    dtype: torch.dtype,
) -> Iterator[tuple[Tensor, Tensor]]:
    count = len(split.labels)
    indices_N = torch.arange(count) if generator is None else order(count, generator)
    indices_N = indices_N.to(split.images.device)
    for start in range(0, count, batch_size):
        chosen = indices_N[start : start + batch_size]
        images_NHWC = split.images.index_select(0, chosen).to(device)
        labels_N = split.labels.index_select(0, chosen).to(device)
        if generator is not None:
            images_NHWC = augment(images_NHWC, generator, pad, flip)
        yield normalise(images_NHWC, mean, std).to(dtype), labels_N


def order(n: int, generator: Generator) -> Tensor:
    """A random permutation of 0..n-1, int64 [n]."""
    return torch.randperm(n, generator=generator, device=generator.device)


def augment(images_NHWC: Tensor, generator: Generator, pad: int, flip: bool) -> Tensor:
    """Each image padded with `pad` black pixels, cropped at random to its own size, and mirrored at random.

    Images [N, H, W, C] of any type on any device -> a new tensor of the same shape. Each of the
    (2 pad + 1)^2 crops is as likely as any other; with `flip`, so are the image and its mirror image.
    """
    if pad == 0 and not flip:
        return images_NHWC.clone()
    N, H, W, C = images_NHWC.shape
    padded_H, padded_W = H + 2 * pad, W + 2 * pad
    padded = images_NHWC.new_zeros(N, padded_H, padded_W, C)
    padded[:, pad : pad + H, pad : pad + W] = images_NHWC

    # The row and column in `padded` of every pixel of the result.
    where = generator.device
    top_N, left_N = torch.randint(2 * pad + 1, (2, N), generator=generator, device=where)
    rows_NH = torch.arange(H, device=where) + top_N[:, None]
    cols_NW = torch.arange(W, device=where).expand(N, W)
    if flip:
        mirrored_N = torch.randint(2, (N,), generator=generator, device=where).bool()
        cols_NW = torch.where(mirrored_N[:, None], W - 1 - cols_NW, cols_NW)
    cols_NW = cols_NW + left_N[:, None]

    # One index per pixel into the flat list of padded pixels: one gather makes the whole batch.
    first_row_N = torch.arange(N, device=where) * padded_H
    pixels_NHW = (first_row_N[:, None, None] + rows_NH[:, :, None]) * padded_W + cols_NW[:, None, :]
    pixels = pixels_NHW.flatten().to(images_NHWC.device)
    return padded.view(-1, C).index_select(0, pixels).view(N, H, W, C)


def normalise(images_NHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images - mean) / std per channel: [N, H, W, C] in 0..255 -> float32 [N, C, H, W] in channels_last."""
    N, H, W, C = images_NHWC.shape
    # Whole rows at a time: a broadcast over the last dimension alone (C = 3 numbers) is eight times slower.
    mean_WC = torch.tensor(mean, dtype=torch.float32, device=images_NHWC.device).repeat(W)
    std_WC = torch.tensor(std, dtype=torch.float32, device=images_NHWC.device).repeat(W)
    rows = images_NHWC.to(torch.float32, copy=True, memory_format=torch.contiguous_format).view(N * H, W * C)
    images = rows.sub_(mean_WC).div_(std_WC).view(N, H, W, C).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)
