"""Labelled images that lie on disk, encoded, each of them within reach by its number: what streaming reads from.

Shapes: N images.
"""

from __future__ import annotations

import io
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from auxnet.reading.cache import used


@dataclass(frozen=True)
class Files:
    """Image files; their paths as one array of bytes, which a million of them fit in."""

    paths: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    others: Counter[str] = field(default_factory=Counter)
    """how many files beside them may be pictures in forms that are not known here, by suffix"""
    left_out: tuple[str, ...] = ()
    """the links among them that lead to nothing, each as "where: why" """

    def name(self, index: int) -> str:
        """The path of a file."""
        return os.fsdecode(self.paths[index])

    open = name


@dataclass(frozen=True)
class Rows:
    """Rows of parquet shards, copied into one flat file, where row i is the bytes offsets[i] to offsets[i + 1]."""

    copy: Path
    offsets: NDArray[np.int64]
    crc32: NDArray[np.uint32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    shards: Sequence[str]
    first_rows: Sequence[int]
    """for each shard, the number of its first row"""

    def name(self, index: int) -> str:
        """The shard and the row that an image comes from."""
        shard = int(np.searchsorted(self.first_rows, index, "right")) - 1
        return f"{self.shards[shard]} row {index - self.first_rows[shard]}"

    def open(self, index: int) -> io.BytesIO:
        """The bytes of a row. Raises RuntimeError for a row without image, and for a copy that is damaged."""
        used(self.copy.parent)  # a training may last
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        if start == end:
            raise RuntimeError(f"{self.name(index)}: holds no image")
        file = os.open(self.copy, os.O_RDONLY)
        try:
            data = os.pread(file, end - start, start)
        finally:
            os.close(file)
        if zlib.crc32(data) != self.crc32[index]:
            raise OSError(f"{self.copy.parent} is damaged ({self.name(index)}): remove it, and it is made anew")
        return io.BytesIO(data)


Encoded = Files | Rows
"""`name(i)` says where an image comes from, `open(i)` gives what `pictures.decode` takes; labels int64 [N]"""
