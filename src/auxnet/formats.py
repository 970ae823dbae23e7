"""The forms in which a data set of any kind lies on disk: parquet, class folders, SVHN's .mat; and the digits.

Damaged content is a RuntimeError that names the file.

Shapes: N images, H x W pixels, C channels (1 grey, 3 red-green-blue).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from auxnet.arrays import Arrays, Pixels, labels_of, reading
from auxnet.pictures import decode, image_files, stack

DIGITS = tuple("0123456789")


def digits() -> Arrays:
    """The 1797 handwritten digits that come with scikit-learn, [1797, 8, 8, 1]; 0..16 made 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return Arrays(images, bunch.target.astype(np.int64), DIGITS)


# ---------------------------------------------------------------------------------------------- parquet


def parquet_splits(folder: Path, below: bool = True) -> dict[str, list[Path]]:
    """The shards of each split ("train", "val", "test", "extra") in a folder, or in one just `below` it.

    A shard is known by how its name begins: `train-00000-of-00002.parquet`, `validation.parquet`; {} if there
    is none. Raises ValueError where several folders hold a data set, FileNotFoundError where a numbered shard
    is missing.
    """
    homes: dict[Path, dict[str, list[Path]]] = {}
    for file in sorted([*folder.glob("*.parquet"), *(folder.glob("*/*.parquet") if below else ())]):
        match = re.match(r"(train|test|val|extra)(idation|id)?(?![a-zA-Z])", file.name)
        if match:
            homes.setdefault(file.parent, {}).setdefault(match[1], []).append(file)
    if len(homes) > 1:
        names = ", ".join(str(home) for home in homes)
        raise ValueError(f"{folder} holds several data sets, give one of them: {names}")
    for shards in (shards for home in homes.values() for shards in home.values()):
        numbered = [match for shard in shards if (match := re.search(r"-(\d+)-of-(\d+)\.", shard.name))]
        numbers, totals = {int(match[1]) for match in numbered}, {int(match[2]) for match in numbered}
        if len(totals) > 1 or (numbers and numbers != set(range(max(totals)))):
            names = ", ".join(shard.name for shard in shards)
            raise FileNotFoundError(f"{shards[0].parent} holds only some of the numbered shards: {names}")
    return next(iter(homes.values()), {})


def parquet(files: Sequence[Path], image_size: int | None = None) -> Arrays:
    """The rows of parquet shards with a column of encoded images and a column of labels.

    Class names are those of the Hugging Face metadata, or else the distinct labels in order. Images as in
    `class_folders`. Raises ValueError where the columns cannot be told, RuntimeError for damaged content.
    """
    from pyarrow.parquet import ParquetFile

    count, columns = 0, []
    for file in files:
        with reading(file, "parquet file"), ParquetFile(file) as shard:
            count, schema = count + shard.metadata.num_rows, shard.schema_arrow
        columns.append(_columns(file, schema))
    if len({names for _, _, names in columns}) > 1:
        raise RuntimeError(f"{files[0].parent}: the shards disagree about the names of the classes")
    labels: list[Any] = []

    def decoded() -> Iterator[tuple[str, Pixels]]:
        for file, (image, label, _) in zip(files, columns, strict=True):
            for row, (cell, value) in enumerate(_rows(file, image, label)):
                data = cell["bytes"] if isinstance(cell, dict) else cell
                if data is None:
                    raise RuntimeError(f"{file} row {row}: holds no image in column {image!r}")
                labels.append(value)
                yield (where := f"{file} row {row}"), decode(io.BytesIO(data), where, image_size)

    images = stack(decoded(), count, files[0])
    where = files[0] if len(files) == 1 else f"{files[0]} and the shards after it"
    return Arrays(images, *labels_of(labels, columns[0][2], where))


def _rows(file: Path, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a parquet file as Python values, a few hundred in memory at a time."""
    from pyarrow.parquet import ParquetFile

    with reading(file, "parquet file"), ParquetFile(file) as shard:
        batches = shard.iter_batches(batch_size=256, columns=list(columns))
        while True:
            with reading(file, "parquet file"):
                batch = next(batches, None)
                if batch is None:
                    return
                cells = [batch.column(name).to_pylist() for name in columns]
            yield from zip(*cells, strict=True)


def _columns(file: Path, schema: Any) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the label column, and the class names ("" where not given) of one shard."""
    import pyarrow.types as kinds

    def is_image(kind: Any) -> bool:
        if kinds.is_struct(kind):
            index = kind.get_field_index("bytes")
            return index >= 0 and is_image(kind.field(index).type)
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

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
        names = ", ".join(schema.names)
        raise ValueError(f"{file}: cannot tell the {what} column ({kind}) among {names}; name it {usual[0]!r}")

    found = [field.name for field in schema if is_image(field.type)]
    image = choose("image", "encoded files", found, ("image", "img"))
    found = [field.name for field in schema if is_label(field.type)]
    usual = ("label", "fine_label", "labels", "class", "category", "target", "y")
    label = choose("label", "whole numbers or words", found, usual)
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = tuple(str(name) for name in features[label]["names"])
    except (
        KeyError,
        TypeError,
        ValueError,
    ):  # no metadata, or not in this shape: the labels speak for themselves
        names = ()
    return image, label, names


# ------------------------------------------------------------------------------------------- SVHN, folders


def svhn(file: Path) -> Arrays:
    """SVHN's cropped digits from `*_32x32.mat`: X [32, 32, 3, N], y [N, 1] in 1..10, where 10 is the digit 0."""
    from scipy.io import loadmat

    with reading(file, "MATLAB file"):
        content = loadmat(file, variable_names=("X", "y"))
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).ravel()
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)) or not len(labels):
        raise RuntimeError(f"{file}: X must be uint8 [32, 32, 3, {len(labels)}], is {images.dtype} {images.shape}")
    wrong = np.flatnonzero(~np.isin(labels, np.arange(1, 11)))
    if len(wrong):
        raise RuntimeError(f"{file}: label {labels[wrong[0]]} in row {wrong[0]} must be a whole number in 1..10")
    return Arrays(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(np.int64) % 10, DIGITS)


def class_folders(folder: Path, image_size: int | None = None) -> Arrays:
    """The images of a folder that holds one folder per class; classes and files in sorted order.

    Images are turned upright by their EXIF tag and made red-green-blue, transparency dropped; where every
    image is grey they stay grey (C = 1). With `image_size` the shorter side is brought to that many pixels
    and the middle square cut out; without, all images must have one size. Hidden files are ignored.

    Raises FileNotFoundError where there are no images, ValueError for images of different sizes,
    RuntimeError for an image that cannot be read.
    """
    homes = subfolders(folder)
    files = [(file, label) for label, home in enumerate(homes) for file in image_files(home)]
    if not files:
        raise FileNotFoundError(f"{folder}: no images in folders named by class, as in {folder}/cat/1.png")
    decoded = ((str(file), decode(file, str(file), image_size)) for file, _ in files)
    labels = np.array([label for _, label in files], np.int64)
    return Arrays(stack(decoded, len(files), folder), labels, tuple(home.name for home in homes))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
