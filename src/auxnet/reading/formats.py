"""The forms in which a data set of any kind lies on disk: parquet, class folders, SVHN's .mat; and the digits.

Damaged content is a RuntimeError that names the file.

Shapes: N images, H x W pixels, C channels (1 grey, 3 red-green-blue).
"""

from __future__ import annotations

import gzip
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from auxnet.documents import json_value
from auxnet.reading.arrays import Arrays, Pixels, check_unpacked, labels_of, reading
from auxnet.reading.encoded import Files
from auxnet.reading.folders import leads_nowhere, passed_over, paths_and_others, subfolders
from auxnet.reading.matlab import read_arrays
from auxnet.reading.pictures import decode, decoded_bytes, stack

DIGITS = tuple("0123456789")
LONGEST_NAME = 1000  # characters of a class


def digits() -> Arrays:
    """The 1797 handwritten digits that come with scikit-learn, [1797, 8, 8, 1]; 0..16 made 0..255.

    From its file, without itself: to import scikit-learn takes longer than to train an epoch on them. Raises
    FileNotFoundError where there is none.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise FileNotFoundError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int64)  # 64 pixels and the class
    images = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return Arrays(images, rows[:, -1].copy(), DIGITS)


# ---------------------------------------------------------------------------------------------- parquet


def parquet_splits(folder: Path, below: bool = True) -> dict[str, list[Path]]:
    """The shards of each split ("train", "val", "test", "extra") in a folder, or in one just `below` it.

    A shard is known by how its name begins, in either case: `train-00000-of-00002.parquet`, `validation.parquet`; {} if
    there is none. Raises ValueError where several folders hold a data set, FileNotFoundError where a numbered shard
    is missing.
    """
    homes: dict[Path, dict[str, list[Path]]] = {}
    for file in sorted([*folder.glob("*.parquet"), *(folder.glob("*/*.parquet") if below else ())]):
        match = re.match(r"(train|test|val|extra)(idation|id)?(?![a-zA-Z])", file.name.lower())
        if match:
            homes.setdefault(file.parent, {}).setdefault(match[1], []).append(file)
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


class Table(NamedTuple):
    """What parquet shards say before they are read."""

    where: str
    """their name in errors"""
    columns: Sequence[tuple[str, str]]
    """of images and of labels, in each shard"""
    classes: tuple[str, ...]
    """empty where the labels speak for themselves"""
    first_rows: Sequence[int]
    """for each shard, the number of its first row"""
    rows: int


def table_of(files: Sequence[Path]) -> Table:
    """The columns and the rows of parquet shards.

    Raises ValueError where the columns cannot be told, RuntimeError for shards that are damaged or disagree.
    """
    from pyarrow.parquet import ParquetFile

    columns, names, first_rows, count = [], [], [], 0
    for file in files:
        with reading(file, "parquet file"), ParquetFile(file) as shard:
            _check_sizes(file, shard.metadata)
            number, schema = shard.metadata.num_rows, shard.schema_arrow
        image, label, classes = _columns(file, schema)
        columns.append((image, label))
        names.append(classes)
        first_rows.append(count)
        count += number
    if len(set(names)) > 1:
        raise RuntimeError(f"{files[0].parent}: the shards disagree about the names of the classes")
    if not count:
        raise RuntimeError(f"{files[0]}: holds no images")
    where = f"{files[0]}" if len(files) == 1 else f"{files[0]} and the shards after it"
    return Table(where, columns, names[0], first_rows, count)


def parquet(files: Sequence[Path], image_size: int | None = None) -> Arrays:
    """The rows of parquet shards with a column of encoded images and a column of labels.

    Class names are those of the Hugging Face metadata, or else the distinct labels in order. Images as in
    `class_folders`. Raises ValueError where the columns cannot be told, RuntimeError for damaged shards and labels.
    """
    table = table_of(files)
    labels: list[Any] = []

    def pictures() -> Iterator[tuple[str, Callable[[], Pixels]]]:
        for where, data, label in cells(files, table.columns):
            labels.append(label)
            yield where, partial(_decode_cell, data, where, image_size)

    images, kept, left_out = stack(pictures(), table.rows, files[0])
    numbers, classes = labels_of(labels, table.classes, table.where)
    return Arrays(images, numbers[kept], classes, left_out)


def parquet_bytes(files: Sequence[Path], image_size: int | None) -> int:
    """The memory that the images of parquet shards would take, if all are coloured; 0 if none can be read."""
    table = table_of(files)
    pictures = (partial(_decode_cell, data, where, image_size) for where, data, _ in cells(files, table.columns))
    return decoded_bytes(table.rows, pictures, image_size)


def cells(files: Sequence[Path], columns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, bytes | None, Any]]:
    """Each row of parquet shards: where it lies, the bytes of its image, its label."""
    for file, (image, label) in zip(files, columns, strict=True):
        for row, (cell, value) in enumerate(_rows(file, image, label)):
            if isinstance(value, str) and len(value) > LONGEST_NAME:
                raise RuntimeError(
                    f"{file} row {row}: a label of {len(value)} characters, at most {LONGEST_NAME} may be"
                )
            yield f"{file} row {row}", cell["bytes"] if isinstance(cell, dict) else cell, value


def _decode_cell(data: bytes | None, where: str, image_size: int | None) -> Pixels:
    if not data:
        raise RuntimeError(f"{where}: holds no image")
    return decode(io.BytesIO(data), where, image_size)


def _rows(file: Path, image: str, label: str) -> Iterator[tuple[Any, Any]]:
    """The rows of two columns of a parquet file as Python values, one after the other.

    What the file says once, for many rows, is held once: else a few bytes could stand for any number of gigabytes.
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
    """The image column, the label column, and the class names ("" where not given) of one shard."""
    import pyarrow.types as kinds

    def is_image(kind: Any) -> bool:
        index = kind.get_field_index("bytes") if kinds.is_struct(kind) else -1
        inner = kind.field(index).type if index >= 0 else kind
        return bool(kinds.is_binary(inner) or kinds.is_large_binary(inner))

    def is_label(kind: Any) -> bool:
        tests = (
            kinds.is_integer,
            kinds.is_floating,
            kinds.is_string,
            kinds.is_large_string,
            kinds.is_dictionary,
        )
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
    found = [field.name for field in schema if is_label(field.type)]
    usual = ("label", "fine_label", "labels", "class", "category", "target", "y")
    label = choose("label", "whole numbers or words", found, usual)
    try:
        features = json_value((schema.metadata or {})[b"huggingface"].decode())["info"]["features"]
        names = tuple(str(name) for name in features[label]["names"])
    except (
        KeyError,
        TypeError,
        ValueError,
    ):  # no metadata, or not in this shape: the labels speak for themselves
        names = ()
    return image, label, names


# ------------------------------------------------------------------------------------------- SVHN, folders


def svhn(*files: Path) -> Arrays:
    """SVHN's cropped digits from `*_32x32.mat`: X [32, 32, 3, N], y [N, 1] in 1..10, where 10 is the digit 0."""
    parts = [_svhn(file) for file in files]
    images, labels = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
    return Arrays(images, labels, DIGITS)


def _svhn(file: Path) -> Arrays:
    with reading(file, "MATLAB file"):
        content = read_arrays(file, ("X", "y"))
        images, labels = content["X"], content["y"].ravel()
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)) or not len(labels):
        raise RuntimeError(f"{file}: X must be uint8 [32, 32, 3, {len(labels)}], is {images.dtype} {images.shape}")
    wrong = np.flatnonzero(~np.isin(labels, np.arange(1, 11)))
    if len(wrong):
        raise RuntimeError(f"{file}: label {labels[wrong[0]]} in row {wrong[0]} must be a whole number in 1..10")
    return Arrays(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(np.int64) % 10, DIGITS)


def class_folders(files: Files, image_size: int | None = None) -> Arrays:
    """The images of class folders (`folder_files`).

    Images are turned upright by their EXIF tag and made red-green-blue, transparency dropped; where every
    image is grey they stay grey (C = 1). With `image_size` the shorter side is brought to that many pixels
    and the middle square cut out; without, all images must have one size. Images that cannot be read are left out.

    Raises ValueError for images of different sizes, RuntimeError if no image can be read.
    """
    images, kept, left_out = stack(_pictures(files, image_size), len(files.paths), files.name(0))
    return Arrays(images, files.labels[kept], files.classes, left_out)


def folder_bytes(files: Files, image_size: int | None) -> int:
    """The memory that the images of these files would take, if all are coloured; 0 if none can be read."""
    pictures = (picture for _, picture in _pictures(files, image_size))
    return decoded_bytes(len(files.paths), pictures, image_size)


def _pictures(files: Files, image_size: int | None) -> Iterator[tuple[str, Callable[[], Pixels]]]:
    names = (files.name(index) for index in range(len(files.paths)))
    return ((name, partial(decode, name, name, image_size)) for name in names)


def folder_files(folder: Path) -> Files:
    """The image files of a folder that holds one folder per class; classes and files in sorted order.

    Hidden files are ignored, links to nothing left out. Raises FileNotFoundError where there are no images.
    """
    homes, paths, labels, others = subfolders(folder), [], [], Counter[str]()
    left_out: list[str] = []
    for label, home in enumerate(homes):
        found, beside = paths_and_others(home)
        lost = set(filter(leads_nowhere, found))
        left_out += [f"{path}: a link to nothing, fetch it" for path in sorted(lost)]
        paths += [os.fsencode(path) for path in found if path not in lost]
        labels += [label] * (len(found) - len(lost))
        others += beside
    if not paths:
        but = f" ({left_out[0]})" if left_out else f" ({passed_over(others)})" if others else ""
        raise FileNotFoundError(f"{folder}: no images in folders named by class, as in {folder}/cat/1.png{but}")
    classes = tuple(home.name for home in homes)
    return Files(np.array(paths), np.array(labels, np.int64), classes, others, tuple(left_out))
