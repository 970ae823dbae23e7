"""A split of a data set: labelled images, in memory or left on disk; both are read, divided and measured alike.

Shapes: N images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auxnet.reading.encoded import Encoded
from auxnet.reading.pictures import Frame, center_crop, decode
from auxnet.reading.survey import Survey, sums_of
from auxnet.words import plural

PIECE = 64  # images copied and summed at a time


@dataclass(frozen=True, eq=False, repr=False)  # == of tensors is no single bool, and their repr is long
class Split:
    """N images, uint8 [H, W, C], and their labels, int64 [N]; the splits of a set share one array without a copy."""

    held: Tensor
    """uint8 [M, H, W, C]: these images, perhaps among others"""
    labels: Tensor
    positions: Tensor | None = None
    """of these images in `held`, int64 [N]; None: `held` has these images alone, in order"""

    def __repr__(self) -> str:
        return _shown(self)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        H, W, C = self.held.shape[1:]
        return H, W, C

    @property
    def images(self) -> Tensor:
        """All images of the split, uint8 [N, H, W, C]: a copy if `held` has others too."""
        return self.held if self.positions is None else self.read(torch.arange(len(self)))

    @property
    def nbytes(self) -> int:
        """The memory that these images take by themselves."""
        return len(self) * prod(self.image_shape)

    def read(self, indices: Tensor) -> Tensor:
        """The images of these indices, int64 [n], as uint8 [n, H, W, C]."""
        chosen = indices if self.positions is None else self.positions.index_select(0, indices)
        return self.held.index_select(0, chosen.to(self.held.device, non_blocking=True))

    def on(self, device: torch.device) -> Split:
        """The split with its images alone in the memory of a device, where batches are then made; labels stay."""
        held = torch.empty(len(self), *self.image_shape, dtype=torch.uint8, device=device)
        for some, place in zip(self._pieces(), torch.split(held, PIECE), strict=True):
            place.copy_(some)
        return Split(held, self.labels)

    def part(self, indices: Tensor) -> Split:
        """The split of these images alone."""
        chosen = indices if self.positions is None else self.positions[indices]
        return Split(self.held, self.labels[indices], chosen)

    def with_channels(self, channels: int) -> Split:
        """Grey images with that many equal channels; coloured ones as they are."""
        if self.held.shape[3] == channels:
            return self
        return replace(self, held=self.held.repeat(1, 1, 1, channels))

    def center_crop(self, size: tuple[int, int]) -> Split:
        """The split with the center, of this size (H, W), of every image."""
        return replace(self, held=center_crop(self.held, size))

    def sums_by_image(self) -> NDArray[np.int64]:
        """The sums of the pixels of each image, int64 [N, C]."""
        rows = (some.numpy().sum(1, dtype=np.uint32) for some in self._pieces())
        return np.concatenate([some.sum(1, dtype=np.int64) for some in rows])  # an axis at a time: ten times as fast

    def sums(self) -> NDArray[np.int64]:
        """The sums of the pixels and of their squares, int64 [2, C]."""
        total = np.zeros((2, self.image_shape[2]), np.int64)
        for some in self._pieces():
            total += sums_of(some.numpy())
        return total

    def hashes(self) -> Iterator[int]:
        """A 64-bit hash of each image's pixels, different in each process; copies have equal hashes."""
        return (hash(image.tobytes()) for some in self._pieces() for image in some.cpu().numpy())

    def _pieces(self) -> Iterator[Tensor]:
        """The images, some at a time."""
        return map(self.read, torch.split(torch.arange(len(self)), PIECE))


@dataclass(frozen=True, eq=False, repr=False)
class OnDisk:
    """Images that are decoded when they are read, and their labels, int64 [N], in memory."""

    encoded: Encoded
    positions: Tensor
    """the numbers of this split's images among the encoded ones, int64 [N]"""
    labels: Tensor
    image_shape: tuple[int, int, int]
    """(H, W, C)"""
    frame: Frame | None
    """what the images are brought to, as by `pictures.decode`"""
    sums_of_each: Tensor
    """the sums of each image's pixels and of their squares, int64 [N, 2, C]"""
    decoded_size: tuple[int, int]
    """(H, W) of the decoded images, of which `read` gives the center"""

    def __repr__(self) -> str:
        return _shown(self)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor) -> Tensor:
        """The images of these indices, int64 [n], as uint8 [n, H, W, C].

        Raises RuntimeError for an image that is damaged or has another shape: it has changed since the survey.
        """
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        for place, position in zip(images, self.positions[indices].tolist(), strict=True):
            name = self.encoded.name(position)
            pixels = decode(self.encoded.open(position), name, self.frame)
            if pixels.shape[:2] != self.decoded_size or pixels.shape[2] not in (1, place.shape[2]):
                raise RuntimeError(f"{name}: has changed since it was looked at: start again")
            place[:] = center_crop(pixels, self.image_shape[:2])
        return torch.from_numpy(images)

    def part(self, indices: Tensor) -> OnDisk:
        """The split of these images alone."""
        return replace(
            self,
            positions=self.positions[indices],
            labels=self.labels[indices],
            sums_of_each=self.sums_of_each[indices],
        )

    def with_channels(self, channels: int) -> OnDisk:
        """Grey images with that many equal channels; coloured ones as they are."""
        return replace(
            self, image_shape=(*self.image_shape[:2], channels), sums_of_each=self.sums_of_each.expand(-1, -1, channels)
        )

    def center_crop(self, size: tuple[int, int]) -> OnDisk:
        """The split with the center, of this size (H, W), of every image."""
        return replace(self, image_shape=(*size, self.image_shape[2]))

    def sums_by_image(self) -> NDArray[np.int64]:
        """The sums of the pixels of each image, int64 [N, C]."""
        return np.ascontiguousarray(self.sums_of_each[:, 0].numpy())

    def sums(self) -> NDArray[np.int64]:
        """The sums of the pixels and of their squares, int64 [2, C]."""
        total: NDArray[np.int64] = self.sums_of_each.sum(0).numpy()
        return total


Labelled = Split | OnDisk
"""`read(indices)` gives images, uint8 [n, *image_shape]; labels int64 [N]"""


def _shown(split: Labelled) -> str:
    return f"{type(split).__name__}({plural(len(split), 'image')} of {split.image_shape})"


def on_disk(encoded: Encoded, known: Survey, frame: Frame | None) -> OnDisk:
    """The images of a set that can be read, as one split."""
    positions = torch.from_numpy(known.kept)
    labels = torch.from_numpy(encoded.labels)[positions]
    H, W, _ = known.image_shape
    return OnDisk(encoded, positions, labels, known.image_shape, frame, torch.from_numpy(known.sums), (H, W))


def fingerprint(splits: Iterable[Labelled]) -> str:
    """SHA-256 of what tells splits apart: the images in their order, by the sums of their pixels, and their labels.

    The same in memory and on disk.
    """
    digest = sha256()
    for split in splits:
        digest.update(split.labels.numpy().tobytes() + split.sums_by_image().tobytes())
    return digest.hexdigest()


def selection_fingerprint(source: str, split: Labelled) -> str:
    """SHA-256 of a source and of a split's positions in it and labels; resizing does not change it.

    (On disk unreadable images have positions too: if there are any, `source` must tell a split on disk from one in
    memory.)
    """
    digest = sha256(source.encode())
    positions = split.positions if split.positions is not None else torch.arange(len(split))
    digest.update(split.labels.numpy().tobytes() + positions.numpy().tobytes())
    return digest.hexdigest()


def channel_mean_std(split: Labelled) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of all images, in 0..255; 1 in place of a deviation of 0.

    From sums of whole numbers, so that they are the same to the last bit in memory and on disk.
    """
    pixels = len(split) * prod(split.image_shape[:2])
    means, stds = [], []
    for total, squares in split.sums().T.tolist():
        means.append(total / pixels)
        stds.append(sqrt((pixels * squares - total * total) / (pixels * pixels)) or 1.0)
    return tuple(means), tuple(stds)
