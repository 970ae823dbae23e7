"""The encoded images of parquet shards, copied once into the cache as one flat file.

Parquet gives no cheap access to a single row: a row group is read and unpacked as a whole. The copy costs as much
disk as the images in the shards, and is written row by row, whatever their number.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxnet.reading.arrays import labels_of
from auxnet.reading.cache import Made, entry
from auxnet.reading.encoded import Rows
from auxnet.reading.formats import cells, table_of


def copied(files: Sequence[Path]) -> Rows:
    """The rows of parquet shards within reach by their number.

    Raises as `formats.parquet` does, and OSError where the cache has no room for the copy.
    """
    table = table_of(files)

    def make(folder: Path) -> Made:
        ends, checksums, labels = [0], [], []
        with open(folder / "images.bin", "wb") as copy:
            for _, data, label in cells(files, table.columns):
                copy.write(data or b"")
                ends.append(copy.tell())
                checksums.append(zlib.crc32(data or b""))
                labels.append(label)
        numbers, classes = labels_of(labels, table.classes, table.where)
        arrays: dict[str, NDArray[Any]] = {
            "offsets": np.array(ends, np.int64),
            "crc32": np.array(checksums, np.uint32),
            "labels": numbers,
        }
        return arrays, {"classes": classes}

    try:
        folder, arrays, facts = entry(files, "rows", make, large=True)
    except OSError as error:
        raise OSError(
            f"no copy of the images of {files[0].parent} can be kept in the cache ({error}): "
            "set AUXNET_CACHE to a folder with room, or give --stream never"
        ) from error
    shards = [str(file) for file in files]
    return Rows(
        folder / "images.bin",
        arrays["offsets"],
        arrays["crc32"],
        arrays["labels"],
        tuple(facts["classes"]),
        shards,
        table.first_rows,
    )
