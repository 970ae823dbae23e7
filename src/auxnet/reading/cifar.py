"""CIFAR-10 and CIFAR-100 as their makers publish them: python pickles and binary records, archived or not.

Nothing here trusts what it reads: pickles may hold numbers and strings only, archives are never unpacked to disk,
nothing grows far beyond the size of the real files, and damaged content is a RuntimeError that names the file.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import numpy as np

from auxnet.reading.arrays import Arrays, labels_of, reading
from auxnet.reading.pickles import text, unpickle

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Layout(NamedTuple):
    """The names of the files in one form of CIFAR, and at which byte a binary record has its label."""

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

    CIFAR-100 is read with its fine labels. Raises FileNotFoundError if a file of the folder or archive is
    missing, RuntimeError if one is damaged or is a pickle that asks for anything but numbers.
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
            with reading(where, "CIFAR pickle"):
                batch = unpickle(contents[member])
                pixels.append(batch["data"].pixels().reshape(-1, 3072))
                labels.extend(batch["labels" if name == "cifar10" else "fine_labels"])
        if len(labels) != sum(len(rows) for rows in pixels):
            raise RuntimeError(f"{where}: does not hold one label for each image")
    if layout.names in contents:
        where = f"{source}/{layout.names}"
        with reading(where, "list of class names"):
            if layout.names.endswith(".txt"):
                names = contents[layout.names].decode().split()
            else:
                meta = unpickle(contents[layout.names])
                names = [text(each) for each in meta["label_names" if name == "cifar10" else "fine_label_names"]]
        if len(names) != len(classes):
            raise RuntimeError(f"{where}: must name {len(classes)} classes, names {len(names)}")
        classes = tuple(names)
    images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    if not len(images):
        raise RuntimeError(f"{source}: holds no images in {', '.join(wanted)}")
    return Arrays(np.ascontiguousarray(images), *labels_of(labels, classes, source))


_LARGEST = 2**28  # bytes, of a file and of an archive's whole content; the largest real ones have 155 and 186 MB


def _contents(source: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of those of `names` that a folder or a tar.gz archive holds, read in memory."""
    contents = {}
    if source.is_dir():
        for path in (source / name for name in names):
            if path.is_file():
                with reading(path, "file"), path.open("rb") as file:
                    contents[path.name] = _whole(file)
        return contents
    with reading(source, "tar.gz archive"):
        with gzip.open(source) as packed:
            unpacked = io.BytesIO(_whole(packed))
        with tarfile.open(fileobj=unpacked, mode="r:", tarinfo=_Member) as archive:
            for member in archive:
                _check(member)
                name = Path(member.name).name
                if name in names and member.isfile() and (inside := archive.extractfile(member)):
                    contents[name] = inside.read()
    return contents


def _whole(file: BinaryIO | gzip.GzipFile) -> bytes:
    data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it holds more than {_LARGEST:,} bytes, which nothing of CIFAR does")
    return data


class _Member(tarfile.TarInfo):
    """The header of a member of an archive, checked before anything is done with it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        _check(member)
        return member


def _check(member: tarfile.TarInfo) -> None:
    """Raise ValueError if tarfile would read backwards for ever, a long name for hours, or zeros without end."""
    if not 0 <= member.size <= (_LARGEST if member.isfile() else 2**16) or member.issparse():
        raise ValueError(f"a member of {member.size} bytes, which CIFAR does not have")
