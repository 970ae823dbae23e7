"""Images and labels as NumPy arrays in one .npz file, under any of the usual names.

The names are those of MedMNIST (train_images, train_labels, val_images, ..., test_labels) or of Keras (x_train,
y_train, x_test, y_test), or only images and labels, which are then divided; `classes` may hold the names of the
classes. Nothing is unpickled.

Shapes: N images, H x W pixels, C channels (1 grey, 3 red-green-blue).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxnet.reading.arrays import Arrays, Pixels, check_unpacked, labels_of, reading, unlabelled
from auxnet.reading.folders import SPLITS
from auxnet.reading.parts import Part
from auxnet.reading.pictures import Frame, arrays_resized

KINDS = {"images": "images", "image": "images", "x": "images", "labels": "labels", "label": "labels", "y": "labels"}
RULE = "train_images and train_labels, x_train and y_train, or images and labels"


def npz_splits(file: Path, to_train: bool = True) -> dict[str, dict[str, str]]:
    """The splits in a file, each with the names of its arrays: {"train": {"images": "x_train", "labels": "y_train"}}.

    "train" is among them if the data are `to_train`; else any split will do. Raises RuntimeError for a damaged file,
    ValueError if it holds no images and labels, or only one of the two of a split.
    """
    with reading(file, ".npz file"), zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    found: dict[str, dict[str, str]] = {}
    for name in names:
        kind, split = _meaning(name)
        if kind and found.setdefault(split, {}).setdefault(kind, name) != name:
            raise ValueError(f"{file}: both {found[split][kind]} and {name} may be the {kind} of {split}: leave one")
    held = ", ".join(name if name.isprintable() else repr(name) for name in names) or "nothing"
    for split, arrays in found.items():
        if lacking := {"images", "labels"} - set(arrays):
            raise ValueError(f"{file}: {split} has no {min(lacking)}; it must hold {RULE}, and holds {held}")
    if not found or (to_train and "train" not in found):
        raise ValueError(f"{file} must hold {RULE}, and holds {held}")
    return found


def _meaning(name: str) -> tuple[str, str]:
    """By the name of an array, "images" or "labels" and the split; ("", "") if it is neither."""
    words = set(name.lower().split("_"))
    kinds = {KINDS[word] for word in words & KINDS.keys()}
    splits = {SPLITS[word] for word in words & SPLITS.keys()}
    if len(kinds) != 1 or len(words) != 1 + len(splits):
        return "", ""
    return kinds.pop(), splits.pop() if splits else "train"


def read(file: Path, arrays: dict[str, str]) -> Arrays:
    """One of the splits of `npz_splits`: images uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], labels [N] or [N, 1].

    Labels are whole numbers from 0, or strings; without `classes` the distinct labels, in order, name the classes.
    Raises RuntimeError for a file that is damaged or holds anything else.
    """
    with _opened(file) as archive:
        images, labels = (_array(archive, arrays[kind]) for kind in ("images", "labels"))
        classes = tuple(map(str, _values(_array(archive, "classes")))) if "classes" in archive.files else ()
        values = _values(labels)
    where = f"{file}: {arrays['images']}"
    pixels = _pixels(images, where)
    if labels.shape not in ((len(pixels),), (len(pixels), 1)):
        one_hot = labels.ndim == 2 and len(labels) == len(pixels)
        is_now = f"{[*labels.shape]}{': take its argmax(1), if it is one-hot' if one_hot else ''}"
        raise RuntimeError(f"{file}: {arrays['labels']} must be [{len(pixels)}], one class an image, is {is_now}")
    numbers, classes = labels_of(values, classes, f"{file}: {arrays['labels']}")
    return Arrays(pixels, numbers, classes)


class NpzPart(Part):
    """One of the splits of `npz_splits`."""

    holds_arrays = True

    def __init__(self, file: Path, split: str, arrays: dict[str, str]) -> None:
        self._file, self._arrays, self.form = file, arrays, f"npz {split}"

    @property
    def files(self) -> list[Path]:
        """The one file, which may hold other splits too."""
        return [self._file]

    def read_uncached(self, frame: Frame | None = None) -> Arrays:
        """The arrays as `read` gives them, brought to a frame if there is one."""
        return arrays_resized(read(self._file, self._arrays), frame)

    def no_labels(self) -> bool:
        """Whether none of the images is labelled (`arrays.unlabelled`)."""
        with _opened(self._file) as archive:
            values = _values(_array(archive, self._arrays["labels"]))
        return bool(values) and unlabelled(values)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An .npz file, to read from. Raises RuntimeError if it is damaged."""
    with reading(file, ".npz file"), np.load(file, allow_pickle=False) as archive:
        unpacked = sum(member.file_size for member in archive.zip.infolist())  # zipfile gives no more than that
        check_unpacked(unpacked, file.stat().st_size)
        yield archive


def _array(archive: Any, name: str) -> NDArray[Any]:
    """One of the arrays of a file. Raises ValueError if it holds objects, which would have to be unpickled."""
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise ValueError(f"{name} holds Python objects: make it numbers of one kind, or texts by astype(str)") from None


def _values(array: NDArray[Any]) -> list[Any]:
    """The values of an array as a flat list; bytes, which are NumPy's most compact strings, are decoded as UTF-8."""
    return [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]


def _pixels(images: NDArray[Any], where: str) -> Pixels:
    """Images as uint8 [N, H, W, C]."""
    if images.dtype != np.uint8:
        mend = "multiply by 255, if they lie in 0..1, and round" if images.dtype.kind == "f" else "convert them"
        raise RuntimeError(f"{where} must be uint8, 0..255, is {images.dtype}: {mend}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        rule = "[N, H, W], [N, H, W, 3] or [N, 3, H, W]"
        raise RuntimeError(f"{where} must be images {rule}, at least one, is {[*images.shape]}")
    return np.ascontiguousarray(images)
