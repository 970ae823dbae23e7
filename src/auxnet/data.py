"""A data set by name, in memory: its three splits, and the normalisation and augmentation that suit it.

The test set never depends on a seed of the caller's: where the data bring none it is carved out once and for
all, and the validation set, which does follow the seed, is carved out of the training set alone.

Shapes: N images, H x W pixels, C channels; images are uint8 [N, H, W, C] throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from auxnet.arrays import Arrays
from auxnet.cache import cached
from auxnet.formats import digits
from auxnet.pictures import resize
from auxnet.sources import find

AUGMENTATIONS = ("default", "none", "crop", "flip", "crop+flip")

TEST_FRACTION, TEST_SEED = 0.2, 0  # of the test set, where the data bring none: fixed, so that it never changes

# Channel means and standard deviations in 0..255 (METHOD.md, section 6); SVHN's bring the pixels to [0, 1].
_STATISTICS = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "svhn": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}
_CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10}


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, H, W, C], and their labels, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """Three splits, the names of the classes, and the normalisation and augmentation that suit the images."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    """per channel, in 0..255"""
    std: tuple[float, ...]
    """per channel, in 0..255"""
    pad: int
    """pixels of padding for the random crop; 0: no crop"""
    flip: bool
    """mirror at random"""

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """C: 1 for grey images, 3 for colour."""
        return int(self.train.images.shape[3])

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.train.images.shape[1]), int(self.train.images.shape[2])


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    augment: str = "default",
) -> DataSet:
    """The data set `name`, in memory.

    `name` is one of `sources.NAMES`, a folder of class folders (in train/ and test/, or to be split), a folder of
    parquet shards, or `hf:owner/name[/config]` on the Hugging Face hub. `data_dir` (else $AUXNET_DATA) is where
    the named sets are looked for first; those that are not there come from the hub. With `image_size` all
    images are brought to a square of that many pixels. `val_fraction` of each class of the training set becomes
    the validation set, drawn by `seed`, unless the data bring a validation set. `augment` is one of
    `AUGMENTATIONS`; the default is crop+flip, and none for digits and svhn.

    Raises ValueError for a request that cannot be met, FileNotFoundError for data that is not there,
    RuntimeError for data that is damaged.
    """
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)}, got {augment!r}")
    if not 0 < val_fraction <= 0.5:
        raise ValueError(f"val_fraction must be above 0 and at most 0.5, got {val_fraction}")
    if image_size is not None and not 4 <= image_size <= 4096:
        raise ValueError(f"image_size must be 4 to 4096 pixels, got {image_size}")

    arrays = _read(name, data_dir, image_size)
    classes = arrays["train"].classes
    if len(classes) != _CLASSES.get(name, len(classes)):
        raise RuntimeError(f"{name} must have {_CLASSES[name]} classes, what was found has {len(classes)}")
    if len(classes) < 2:
        raise ValueError(f"{name} has one class only, {classes[0]!r}: a classifier needs at least two")
    train, val, test = _split(_aligned(name, arrays), val_fraction, seed)

    mean, std = _STATISTICS.get(name) or statistics(train.images)
    if augment == "default":
        augment = "none" if name in ("digits", "svhn") else "crop+flip"
    pad = max(1, min(train.images.shape[1:3]) // 8) if "crop" in augment else 0
    return DataSet(name, classes, train, val, test, mean, std, pad, "flip" in augment)


def _read(name: str, data_dir: str | Path | None, image_size: int | None) -> dict[str, Arrays]:
    """The splits of a data set as the data bring them, "train" at least, each image at its final size."""
    if name == "digits":
        arrays = {"train": digits()}
    else:
        parts = find(name, data_dir, image_size)
        arrays = {split: cached(part.files, part.key, part.read) for split, part in parts.items()}
        if name == "svhn" and (extra := arrays.get("extra")):
            pair = arrays["train"], extra
            images, labels = (np.concatenate([part[field] for part in pair]) for field in (0, 1))
            arrays["train"] = Arrays(images, labels, pair[0].classes)
        arrays.pop("extra", None)
    if image_size is not None:
        arrays = {split: part._replace(images=resize(part.images, image_size)) for split, part in arrays.items()}
    return arrays


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices kept and held out, each sorted: `fraction` of every class, rounded, is held out.

    At least one image of each class is on each side. Labels int64 [N]. Raises ValueError for a class with a
    single image.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    kept, held, start = [], [], 0
    for label, count in enumerate(torch.bincount(labels).tolist()):
        if count == 1:
            raise ValueError(f"class {label} has a single image, and at least two are needed to split it")
        number = min(max(int(fraction * count + 0.5), 1), count - 1) if count else 0
        held.append(by_class[start : start + number])
        kept.append(by_class[start + number : start + count])
        start += count
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def _split(arrays: Mapping[str, Arrays], val_fraction: float, seed: int) -> tuple[Split, Split, Split]:
    """Train, validation and test: those that the data bring, the others carved from train, test first."""
    splits = {
        name: Split(torch.from_numpy(part.images), torch.from_numpy(part.labels)) for name, part in arrays.items()
    }
    for name, fraction, split_seed in (("test", TEST_FRACTION, TEST_SEED), ("val", val_fraction, seed)):
        if name not in splits:
            images, labels = splits["train"].images, splits["train"].labels
            try:
                kept, held = stratified_split(labels, fraction, split_seed)
            except ValueError:
                counts = torch.bincount(labels).tolist()
                few = next(repr(c) for c, n in zip(arrays["train"].classes, counts, strict=False) if n == 1)
                raise ValueError(
                    f"class {few} has too few images to carve a {name} split from: give three or more of each class"
                ) from None
            splits["train"] = Split(images[kept], labels[kept])
            splits[name] = Split(images[held], labels[held])
    return splits["train"], splits["val"], splits["test"]


def _aligned(name: str, arrays: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """All splits with the labels, the image size and the channels of the training split."""
    train = arrays["train"]
    channels = max(part.images.shape[3] for part in arrays.values())
    aligned = {}
    for split, part in arrays.items():
        if foreign := sorted(set(part.classes) - set(train.classes)):
            raise RuntimeError(f"{name}: {split} has classes that train lacks: {', '.join(foreign)}")
        if part.images.shape[1:3] != train.images.shape[1:3]:
            (h, w), (H, W) = part.images.shape[1:3], train.images.shape[1:3]
            raise ValueError(
                f"{name}: images must have one size, train has {W}x{H} and {split} {w}x{h}: "
                "give --image-size 32 to resize them all"
            )
        images = part.images if part.images.shape[3] == channels else np.repeat(part.images, channels, axis=3)
        labels = np.array([train.classes.index(c) for c in part.classes], np.int64)[part.labels]
        aligned[split] = Arrays(images, labels, train.classes)
    return aligned


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images [N, H, W, C], in 0..255; 1 in place of a std of 0."""
    levels = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in range(images.shape[3]):
        counts = torch.bincount(images[..., channel].flatten(), minlength=256).double()
        mean = (counts @ levels / counts.sum()).item()
        std = (counts @ (levels - mean).square() / counts.sum()).sqrt().item()
        means.append(mean)
        stds.append(std or 1.0)
    return tuple(means), tuple(stds)
