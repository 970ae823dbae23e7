"""CIFAR-10 and CIFAR-100 as their makers publish them: python pickles and binary records, archived or not.

Nothing here trusts what it reads: pickles may hold numbers only, archives are never unpacked to disk, and
damaged content is a RuntimeError that names the file.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from auxnet.arrays import Arrays, Pixels, labels_of, reading

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Layout(NamedTuple):
    """The names inside one form of CIFAR, and where a binary record keeps its label."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label: int = 0
    header: int = 1


_BATCHES = tuple(f"data_batch_{n}" for n in range(1, 6))
_PYTHON10 = _Layout(_BATCHES, ("test_batch",), "batches.meta")
_BINARY10 = _Layout(tuple(f"{b}.bin" for b in _BATCHES), ("test_batch.bin",), "batches.meta.txt")
_PYTHON100 = _Layout(("train",), ("test",), "meta")
_BINARY100 = _Layout(("train.bin",), ("test.bin",), "fine_label_names.txt", label=1, header=2)  # coarse, fine

FORMS: Mapping[str, Mapping[str, _Layout]] = {
    "cifar10": {
        "cifar-10-batches-py": _PYTHON10,
        "cifar-10-python.tar.gz": _PYTHON10,
        "cifar-10-batches-bin": _BINARY10,
        "cifar-10-binary.tar.gz": _BINARY10,
    },
    "cifar100": {
        "cifar-100-python": _PYTHON100,
        "cifar-100-python.tar.gz": _PYTHON100,
        "cifar-100-binary": _BINARY100,
        "cifar-100-binary.tar.gz": _BINARY100,
    },
}


def read(source: Path, name: str, part: str) -> Arrays:
    """The part "train" or "test" of "cifar10" or "cifar100", from a folder or an archive in `FORMS`.

    CIFAR-100 is read with its fine labels. Raises FileNotFoundError where a file of the folder or archive is
    missing, RuntimeError where one is damaged or, being a pickle, asks for anything but numbers.
    """
    layout = FORMS[name][source.name]
    wanted = layout.train if part == "train" else layout.test
    contents = _contents(source, (*wanted, layout.names))
    classes = CIFAR10_CLASSES if name == "cifar10" else tuple(str(n) for n in range(100))
    pixels, labels = [], []
    for member in wanted:
        where = f"{source}/{member}"
        if member not in contents:
            raise FileNotFoundError(f"{source} lacks {member}: fetch it again")
        if member.endswith(".bin"):
            with reading(where, f"file of {layout.header}+3072 byte records"):
                records = np.frombuffer(contents[member], np.uint8).reshape(-1, layout.header + 3072)
            pixels.append(records[:, layout.header :])
            labels.extend(records[:, layout.label].tolist())
        else:
            batch = _unpickle(contents[member], where)
            with reading(where, "CIFAR batch"):
                pixels.append(np.asarray(batch["data"], np.uint8).reshape(-1, 3072))
                labels.extend(batch["labels" if name == "cifar10" else "fine_labels"])
        if len(labels) != sum(len(rows) for rows in pixels):
            raise RuntimeError(f"{where}: does not hold one label for each image")
    if layout.names in contents:
        where = f"{source}/{layout.names}"
        with reading(where, "list of class names"):
            if layout.names.endswith(".txt"):
                names = contents[layout.names].decode().split()
            else:
                meta = _unpickle(contents[layout.names], where)
                names = [str(n, "utf-8") for n in meta["label_names" if name == "cifar10" else "fine_label_names"]]
        if len(names) != len(classes):
            raise RuntimeError(f"{where}: must name {len(classes)} classes, names {len(names)}")
        classes = tuple(names)
    images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    if not len(images):
        raise RuntimeError(f"{source}: holds no images in {', '.join(wanted)}")
    return Arrays(np.ascontiguousarray(images), *labels_of(labels, classes, source))


_LARGEST = 2**28  # bytes; the largest real one, CIFAR-100's training batch, has 155 MB


def _contents(source: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of those of `names` that a folder or a tar archive holds, read in memory."""
    if source.is_dir():
        with reading(source, "folder"):
            return {name: (source / name).read_bytes() for name in names if (source / name).is_file()}
    contents = {}
    with reading(source, "tar archive"), tarfile.open(source) as archive:
        for member in archive:
            name = Path(member.name).name
            if name in names and member.isfile() and (file := archive.extractfile(member)):
                if member.size > _LARGEST:
                    raise ValueError(f"{member.name} is larger than any file of CIFAR")
                contents[name] = file.read()
    return contents


def _unpickle(data: bytes, where: str) -> dict[str, Any]:
    """A pickled dictionary of numbers, texts and uint8 arrays, its keys made str."""
    with reading(where, "CIFAR pickle"), io.BytesIO(data) as file:
        batch = _NumbersOnly(file, encoding="bytes").load()
        return {str(k, "utf-8") if isinstance(k, bytes) else str(k): v for k, v in batch.items()}


class _NumbersOnly(pickle.Unpickler):
    """Unpickles what CIFAR's files are made of, with stand-ins for numpy: no code of others runs."""

    def find_class(self, module: str, name: str) -> Any:
        """Stand-ins for the four names that a pickled uint8 array needs; any other name is refused."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _PickledArray()
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"
        if (module, name) == ("numpy", "dtype"):
            return _PickledType
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR's files do not need")


class _PickledType:
    """Stands for a numpy.dtype: its code alone."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code if isinstance(code, str) else code.decode()

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: nothing that a uint8 needs."""


class _PickledArray:
    """Stands for a numpy.ndarray of uint8: its shape and bytes."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _PickledType, bool, bytes]) -> None:
        _, shape, kind, fortran, data = state
        if kind.code != "u1":
            raise pickle.UnpicklingError(f"an array of {kind.code} where CIFAR has u1")
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        return self.array
