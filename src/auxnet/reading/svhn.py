"""SVHN's cropped digits, in MATLAB's .mat files of versions 5 to 7: arrays of numbers are read from them, by name.

SciPy is not used: its reader, in C, ends the process without an error on some damaged files and on deeply nested cells.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxnet.reading.arrays import Arrays, reading

DIGITS = tuple("0123456789")
MOST_BYTES = 2**31  # of an array; SVHN's largest has 1.6e9
HEADER = 128  # bytes; the last two are IM if the file is little-endian, MI if it is big-endian
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


def read(*files: Path) -> Arrays:
    """SVHN's cropped digits from `*_32x32.mat`: X [32, 32, 3, N], y [N, 1] in 1..10, where 10 is the digit 0."""
    parts = [_read(file) for file in files]
    images, labels = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
    return Arrays(images, labels, DIGITS)


def _read(file: Path) -> Arrays:
    with reading(file, "MATLAB file"):
        content = _arrays(file, ("X", "y"))
        images, labels = content["X"], content["y"].ravel()
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)) or not len(labels):
        raise RuntimeError(f"{file}: X must be uint8 [32, 32, 3, {len(labels)}], is {images.dtype} {images.shape}")
    wrong = np.flatnonzero(~np.isin(labels, np.arange(1, 11)))
    if len(wrong):
        raise RuntimeError(f"{file}: label {labels[wrong[0]]} in row {wrong[0]} must be a whole number in 1..10")
    return Arrays(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(np.int64) % 10, DIGITS)


def _arrays(file: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names that a file holds, in the file's shapes and types.

    Raises an error of any kind for a file that is damaged or of another form: call it within `reading`.
    """
    content = np.memmap(file, np.uint8, "r").data
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[HEADER - 2 : HEADER]))
    if order is None:
        raise ValueError("it is of no version from 5 to 7")
    found = {}
    for kind, data in _elements(content[HEADER:], order):
        if kind == COMPRESSED:
            ((kind, data),) = _elements(_decompressed(data), order)
        if kind == MATRIX:
            _, (_, shape), (_, name), *values = _elements(data, order)
            if (text := bytes(name).decode("latin1")) in names:
                ((kind, data),) = values
                numbers = np.frombuffer(data, order + NUMBERS[kind])
                found[text] = numbers.reshape(np.frombuffer(shape, order + "i4"), order="F")
    return found


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The elements of a run of bytes: for each its kind (MATRIX, one of NUMBERS, ...) and its bytes."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        small = kind >> 16  # the size of an element of at most 4 bytes, which are in the header
        start, size = (at + 4, small) if small else (at + 8, size)
        if size > len(data) - start:
            raise ValueError(f"it ends within {size} bytes")
        yield kind & 0xFFFF, data[start : start + size]
        at = start + size
        if kind != COMPRESSED:
            at += -at % 8


def _decompressed(data: memoryview) -> memoryview:
    unpack, content = zlib.decompressobj(), bytearray()
    for start in range(0, len(data), 2**16):
        content += unpack.decompress(data[start : start + 2**16])
        if len(content) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
    if not unpack.eof:
        raise ValueError("it ends within compressed data")
    return memoryview(content)
