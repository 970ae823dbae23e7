"""Labelled images that are encoded on disk, each of which can be read by its number: streaming reads from these.

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
    """Image files; their paths are one array of bytes, because a million Path objects take much memory."""

    paths: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    others: Counter[str] = field(default_factory=Counter)
    """by suffix, how many other files there are that may be pictures in unknown formats"""
    left_out: tuple[str, ...] = ()
    """the links to nothing, each as "where: why" """

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
        """The bytes of a row. Raises RuntimeError for a row without an image, OSError for a damaged copy."""
        used(self.copy.parent)  # a training may last longer than unused entries are kept
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        if start == end:
            raise RuntimeError(f"{self.name(index)}: holds no image")
        file = os.open(self.copy, os.O_RDONLY)
        try:
            data = os.pread(file, end - start, start)
        finally:
            os.close(file)
        if zlib.crc32(data) != self.crc32[index]:
            raise OSError(f"{self.copy.parent} is damaged ({self.name(index)}): remove it, and it is made again")
        return io.BytesIO(data)


Encoded = Files | Rows
"""`name(i)` says where an image comes from, `open(i)` gives what `pictures.decode` takes; labels int64 [N]"""
