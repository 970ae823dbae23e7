"""Parquet shards with a column of encoded images and a column of labels: read whole, or copied row by row.

Parquet gives no cheap access to a single row, because a row group is read and unpacked as a whole: to be streamed, the
images are copied once into the cache, as one flat file that takes as much room as they do in the shards.

Damaged content is a RuntimeError that names the file.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from auxnet.documents import json_value
from auxnet.reading.arrays import Arrays, Pixels, check_unpacked, labels_of, reading, unlabelled
from auxnet.reading.cache import Content, entry
from auxnet.reading.encoded import Rows
from auxnet.reading.folders import SPLITS, subfolders
from auxnet.reading.parts import EncodedPart
from auxnet.reading.pictures import SOME, Frame, decode, decoded_bytes, shapes_of, stack

LONGEST_NAME = 1000  # characters of a class
_SPLITS = {**SPLITS, "extra": "extra"}


def shards_of(folder: Path, below: bool = True) -> dict[str, list[Path]]:
    """The shards of each split ("train", "val", "test", "extra") in a folder, or in one just `below` it.

    A shard is known by the beginning of its name, in upper or lower case: `train-00000-of-00002.parquet`,
    `validation.parquet`; {} if there is none. Raises ValueError if several folders hold a data set, FileNotFoundError
    if a numbered shard is missing.
    """
    homes: dict[Path, dict[str, list[Path]]] = {}
    for file in sorted([*folder.glob("*.parquet"), *(folder.glob("*/*.parquet") if below else ())]):
        if split := _SPLITS.get(re.split("[^a-z]", file.name.lower())[0]):
            homes.setdefault(file.parent, {}).setdefault(split, []).append(file)
    if len(homes) > 1:
        names = ", ".join(str(home) for home in homes)
        raise ValueError(f"{folder} holds several data sets, give one of them: {names}")
    for shards in (shards for home in homes.values() for shards in home.values()):
        numbered = [match for shard in shards if (match := re.search(r"-(\d+)-of-(\d+)\.", shard.name))]
        numbers, totals = {int(match[1]) for match in numbered}, {int(match[2]) for match in numbered}
        if len(totals) > 1 or (numbers and not len(numbers) == max(numbers) + 1 == max(totals)):
            names = ", ".join(shard.name for shard in shards)
            raise FileNotFoundError(f"{shards[0].parent} holds only some of the numbered shards: {names}")
    return next(iter(homes.values()), {})


def only_shard(folder: Path) -> list[Path]:
    """The parquet file of a folder that holds one, and no folders: it is the data, whatever its name; or else []."""
    files = [] if subfolders(folder) else [*folder.glob("*.parquet")]
    return files if len(files) == 1 else []


class _Table(NamedTuple):
    """What is known of parquet shards before their rows are read."""

    where: str
    """their name in errors"""
    columns: Sequence[tuple[str, str]]
    """for each shard, the names of its image column and its label column"""
    classes: tuple[str, ...]
    """empty if nothing but the labels names them"""
    first_rows: Sequence[int]
    """for each shard, the number of its first row"""
    rows: int


def _table_of(files: Sequence[Path]) -> _Table:
    """The columns and the rows of parquet shards.

    Raises ValueError if the columns cannot be told, RuntimeError for shards that are damaged or disagree.
    """
    from pyarrow.parquet import ParquetFile

    shards = []
    for file in files:
        with reading(file, "parquet file"), ParquetFile(file) as shard:
            _check_sizes(file, shard.metadata)
            shards.append((file, shard.metadata.num_rows, shard.schema_arrow))
    if not any(number for _, number, _ in shards):  # the columns of no rows say little
        raise RuntimeError(f"{files[0]}: holds no images")
    columns, names, first_rows, count = [], [], [], 0
    for file, number, schema in shards:
        image, label, classes = _columns(file, schema)
        columns.append((image, label))
        names.append(classes)
        first_rows.append(count)
        count += number
    if len(set(names)) > 1:
        raise RuntimeError(f"{files[0].parent}: the shards disagree about the names of the classes")
    where = f"{files[0]}" if len(files) == 1 else f"{files[0]} and the shards after it"
    return _Table(where, columns, names[0], first_rows, count)


class ShardsPart(EncodedPart):
    """A split in parquet shards with a column of encoded images and a column of labels.

    All that it is asked raises ValueError if the columns cannot be told, RuntimeError for damaged shards.
    """

    form = "parquet"

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = shards

    @property
    def files(self) -> Sequence[Path]:
        """The shards, in order."""
        return self._shards

    @cached_property
    def _table(self) -> _Table:
        return _table_of(self._shards)

    def read_uncached(self, frame: Frame | None = None) -> Arrays:
        """The images and their labels; images as those of `folders.FolderPart`.

        Class names are those of the Hugging Face metadata, or else the distinct labels in order. Raises RuntimeError
        for labels of no class too.
        """
        table = self._table
        labels: list[Any] = []

        def pictures() -> Iterator[tuple[str, Callable[[], Pixels]]]:
            for where, data, label in self._cells():
                labels.append(label)
                yield where, partial(_decode_cell, data, where, frame)

        images, kept, left_out = stack(pictures(), table.rows, self._shards[0])
        numbers, classes = labels_of(labels, table.classes, table.where)
        return Arrays(images, numbers[kept], classes, left_out)

    def no_labels(self) -> bool:
        """Whether no row is labelled (`arrays.unlabelled`): in most data sets the first row answers that."""
        shards = zip(self._shards, self._table.columns, strict=True)
        return all(unlabelled(value for _, value in _rows(file, label, label)) for file, (_, label) in shards)

    def decoded_bytes(self, frame: Frame | None) -> int:
        """The memory that the images would take (`pictures.decoded_bytes`)."""
        pictures = (partial(_decode_cell, data, where, frame) for where, data, _ in self._cells())
        return decoded_bytes(self._table.rows, pictures, frame)

    def shapes(self) -> list[tuple[int, int]]:
        """(H, W) of the first images (`pictures.shapes_of`)."""
        return shapes_of(io.BytesIO(data or b"") for _, data, _ in islice(self._cells(), SOME))

    def encoded(self) -> Rows:
        """The rows, copied into the cache, from which each can be read by its number.

        Raises as `read_uncached` does, and OSError if the cache has no room for the copy.
        """
        files, table = self._shards, self._table

        def make(folder: Path) -> Content:
            ends, checksums, labels = [0], [], []
            with open(folder / "images.bin", "wb") as copy:
                for _, data, label in self._cells():
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
        return Rows(
            folder / "images.bin",
            arrays["offsets"],
            arrays["crc32"],
            arrays["labels"],
            tuple(facts["classes"]),
            [str(file) for file in files],
            table.first_rows,
        )

    def _cells(self) -> Iterator[tuple[str, bytes | None, Any]]:
        """Each row: where it is, the bytes of its image, its label."""
        for file, (image, label) in zip(self._shards, self._table.columns, strict=True):
            for row, (cell, value) in enumerate(_rows(file, image, label)):
                if isinstance(value, str) and len(value) > LONGEST_NAME:
                    raise RuntimeError(
                        f"{file} row {row}: a label of {len(value)} characters, at most {LONGEST_NAME} are allowed"
                    )
                yield f"{file} row {row}", cell["bytes"] if isinstance(cell, dict) else cell, value


def _decode_cell(data: bytes | None, where: str, frame: Frame | None) -> Pixels:
    if not data:
        raise RuntimeError(f"{where}: holds no image")
    return decode(io.BytesIO(data), where, frame)


def _rows(file: Path, image: str, label: str) -> Iterator[tuple[Any, Any]]:
    """The rows of two columns of a parquet file as Python values, one after the other.

    A value that the file stores once for many rows is held once: else a few bytes could become any number of gigabytes.
    """
    from pyarrow.parquet import ParquetFile, read_metadata

    with reading(file, "parquet file"):
        metadata = read_metadata(file)
        leaves = [leaf for leaf in metadata.schema if leaf.path in (image, f"{image}.bytes", label)]
        once = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        with ParquetFile(file, metadata=metadata, read_dictionary=once) as shard:
            for group in range(metadata.num_row_groups):
                for batch in shard.iter_batches(256, [group], [leaf.path for leaf in leaves]):
                    for cell, value in zip(batch.column(image), batch.column(label), strict=True):
                        yield cell.as_py(), value.as_py()


def _check_sizes(file: Path, metadata: Any) -> None:
    """Raise ValueError for a shard that would unpack to far more than it is."""
    size = file.stat().st_size
    unpacked = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    if not 0 <= metadata.num_rows <= size:
        raise ValueError(f"it declares {metadata.num_rows:,} rows in {size:,} bytes")
    check_unpacked(unpacked, size)


def _columns(file: Path, schema: Any) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the label column, and the class names (() if not given) of one shard."""
    import pyarrow.types as kinds

    def is_image(kind: Any) -> bool:
        index = kind.get_field_index("bytes") if kinds.is_struct(kind) else -1
        inner = kind.field(index).type if index >= 0 else kind
        return bool(kinds.is_binary(inner) or kinds.is_large_binary(inner))

    def is_label(kind: Any) -> bool:
        tests = (kinds.is_integer, kinds.is_floating, kinds.is_string, kinds.is_large_string, kinds.is_dictionary)
        return any(test(kind) for test in tests)

    def choose(what: str, kind: str, found: list[str], usual: Sequence[str]) -> str:
        known = [name for name in usual if name in found]
        if known or len(found) == 1:
            return (known or found)[0]
        for field in (field for field in schema if field.name in usual):
            raise ValueError(f"{file}: the {what} column, {field.name}, must be {kind}, is {field.type}")
        names = ", ".join(name if name.isprintable() else repr(name) for name in schema.names)
        raise ValueError(f"{file}: cannot tell the {what} column ({kind}) among {names}; name it {usual[0]!r}")

    found = [field.name for field in schema if is_image(field.type)]
    image = choose("image", "encoded files", found, ("image", "img"))
    usual = ("label", "fine_label", "labels", "class", "category", "target", "y")
    truths = [field.name for field in schema if kinds.is_boolean(field.type)]  # labels by name, or if nothing else is
    found = [field.name for field in schema if is_label(field.type) or field.name in {*truths} & {*usual}] or truths
    label = choose("label", "whole numbers or words", found, usual)
    try:
        features = json_value((schema.metadata or {})[b"huggingface"].decode())["info"]["features"]
        names = tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):  # no metadata, or other metadata: then the labels name the classes
        names = ()
    return image, label, names
