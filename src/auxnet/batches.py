"""From uint8 images to float batches: order, augmentation, normalisation.

Images stay uint8 until the last moment, and every step works on a whole batch at once. What is random in an epoch
follows from its seed, and what is random in its batch s from (*seed, s): the same seed gives the same epoch again,
bit for bit, from whichever batch it starts and wherever the images are read from.

Shapes: N images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from auxnet.augmentation import Augmentation
from auxnet.reading.ahead import read_ahead
from auxnet.reading.splits import Labelled

Batches = Iterable[tuple[Tensor, Tensor]]
"""(images [N, C, H, W], labels [N])"""
BatchPart = Callable[[int], slice]
"""n -> the slice of a batch's n images that this process takes; the built-in `slice` takes all"""


def batches(
    split: Labelled,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: str | torch.device = "cpu",
    seed: Sequence[int] | None = None,
    start: int = 0,
    pad: int = 0,
    flip: bool = False,
    workers: int = 0,
    part: BatchPart = slice,
    dtype: torch.dtype = torch.float32,
    augmentation: Augmentation | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of (images [N, C, H, W] in channels_last, labels [N]) on `device`; the last batch may be smaller.

    With a seed, as (recipe.seed, epoch): shuffled, and augmented by `augmentation`, `pad` and `flip`, in this order.
    Without a seed: in order and never augmented, whatever these say. `start` is the first batch that is given: batches
    before it are not even read. `workers` is how many processes read and augment ahead (0: this process does both); it
    changes no bit of the epoch. `part` says which of the n images of a batch are read and given (default: all), each as
    it would be in the whole batch. `mean` and `std` are per channel, in 0..255.
    """
    where, reader = torch.device(device), Reader(split, None if seed is None else augmentation)
    count = len(split.labels)
    indices_N = torch.arange(count) if seed is None else torch.randperm(count, generator=_generator(*seed))
    whole = torch.split(indices_N, batch_size)[start:]
    asked = [
        reader.ask(indices, part(len(indices)), None if seed is None else (*seed, step, 1))
        for step, indices in enumerate(whole, start)
    ]
    mean_WC, std_WC = (_row(each, reader.image_shape[1], where) for each in (mean, std))
    read = read_ahead(reader.read, reader.image_shape, asked, workers)
    for step, (indices, images) in enumerate(zip(whole, read, strict=True), start):
        images_NHWC = to_device_async(images, where)
        labels_N = to_device_async(split.labels[indices[part(len(indices))]], where)
        if seed is not None:
            shifts = draw_crops_and_flips(len(indices), _generator(*seed, step), pad, flip)
            images_NHWC = cropped_and_flipped(images_NHWC, pad, *(each[part(len(indices))] for each in shifts))
        yield _normalise(images_NHWC, mean_WC, std_WC).to(dtype), labels_N


class Reader(NamedTuple):
    """Reads images and augments them: `ask` draws what is done to each, `read` does it, perhaps in another process."""

    split: Labelled
    augmentation: Augmentation | None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that it gives."""
        H, W, C = self.split.image_shape
        return (*self.augmentation.size, C) if self.augmentation else (H, W, C)

    def ask(self, indices: Tensor, part: slice, seed: Sequence[int] | None) -> Tensor:
        """Rows for `read`, of a part of a batch: int64 [n] indices, or [n, 1 + 6] with what was drawn for each image.

        The numbers are drawn by `seed` for the whole batch, so that an image is the same in whichever part it is.
        """
        if self.augmentation is None or seed is None:
            return indices[part]
        drawn = self.augmentation.draw(len(indices), self.split.image_shape, _generator(*seed))
        return torch.cat([indices[:, None], drawn], 1)[part]

    def read(self, asked: Tensor) -> Tensor:
        """The images asked for, as uint8 [n, H, W, C]."""
        if self.augmentation is None:
            return self.split.read(asked)
        return self.augmentation.apply(self.split.read(asked[:, 0]), asked[:, 1:])


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for it, so that the next step is queued while one is computed."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from unpinned memory only small copies do not wait
    return tensor.to(device, non_blocking=True)


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits, well mixed, from these numbers in their order: the same on every machine, in every version."""
    digest = sha256(",".join(str(int(number)) for number in numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _generator(*numbers: int) -> Generator:
    return Generator().manual_seed(seed_of(*numbers))


def draw_crops_and_flips(n: int, generator: Generator, pad: int, flip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Draw for each of n images the top and left of its crop, int64 [n] in 0..2 pad, and whether it is mirrored.

    Each of the (2 pad + 1)^2 crops is as likely as any other; with `flip`, so are the image and its mirror image.
    """
    where = generator.device
    top, left = torch.randint(2 * pad + 1, (2, n), generator=generator, device=where)
    mirrored = torch.randint(2, (n,), generator=generator, device=where) if flip else torch.zeros(n, device=where)
    return top, left, mirrored.bool()


def cropped_and_flipped(images_NHWC: Tensor, pad: int, top_N: Tensor, left_N: Tensor, mirrored_N: Tensor) -> Tensor:
    """Images [N, H, W, C] padded with black pixels, cropped and mirrored as drawn: a new tensor of the same shape.

    The images may be of any type and on any device.
    """
    if pad == 0 and not mirrored_N.any():
        return images_NHWC.clone()
    where = images_NHWC.device
    N, H, W, C = images_NHWC.shape
    padded_H, padded_W = H + 2 * pad, W + 2 * pad
    padded = images_NHWC.new_zeros(N, padded_H, padded_W, C)
    padded[:, pad : pad + H, pad : pad + W] = images_NHWC

    # One index per pixel into the flat list of padded pixels: one gather makes the whole batch. The numbers per image
    # are computed on the device where they were drawn, and go to the images' device in one copy.
    row_N = torch.arange(N, device=top_N.device) * padded_H + top_N  # of the crop's first row, among all padded rows
    right_N = 1 - 2 * mirrored_N.long()  # 1: columns are read to the right; -1: to the left
    numbers_3N = torch.stack([row_N, left_N + (W - 1) * mirrored_N, right_N])
    row_N, col_N, right_N = numbers_3N.to(where, non_blocking=True)
    rows_NH = row_N[:, None] + torch.arange(H, device=where)
    cols_NW = col_N[:, None] + right_N[:, None] * torch.arange(W, device=where)
    pixels_NHW = rows_NH[:, :, None] * padded_W + cols_NW[:, None, :]
    return padded.view(-1, C).index_select(0, pixels_NHW.flatten()).view(N, H, W, C)


def normalise(images_NHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images - mean) / std per channel: [N, H, W, C] in 0..255 -> float32 [N, C, H, W] in channels_last."""
    return _normalise(images_NHWC, *(_row(each, images_NHWC.shape[2], images_NHWC.device) for each in (mean, std)))


def _row(numbers: Sequence[float], W: int, device: torch.device) -> Tensor:
    """C numbers, one a channel, repeated for each of the W pixels of a row: float32 [W C]."""
    return torch.tensor(numbers, dtype=torch.float32).to(device, non_blocking=True).repeat(W)


def _normalise(images_NHWC: Tensor, mean_WC: Tensor, std_WC: Tensor) -> Tensor:
    """`normalise`, whole rows at a time: a broadcast over the last dimension alone (C = 3 numbers) is slow."""
    N, H, W, C = images_NHWC.shape
    rows = images_NHWC.to(torch.float32, copy=True, memory_format=torch.contiguous_format).view(N * H, W * C)
    images = rows.sub_(mean_WC).div_(std_WC).view(N, H, W, C).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)
