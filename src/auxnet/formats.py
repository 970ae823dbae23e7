"""Every on-disk form of a data set, read into arrays: parquet, CIFAR's archives, SVHN's .mat, class folders.

Nothing here trusts what it reads: pickles may hold numbers only, archives are never unpacked to disk, and
damaged content is a RuntimeError that names the file.

Shapes: N images, H x W pixels, C channels (1 grey, 3 red-green-blue).
"""

from __future__ import annotations

import io
import json
import pickle
import re
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

VERSION = 1  # of what the readers return: raise it when they change, and no cache of older arrays is used

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no others: fewer to trust, and much faster


class Arrays(NamedTuple):
    """Images, uint8 [N, H, W, C]; labels, int64 [N] in 0..len(classes)-1; the names of the classes."""

    images: Pixels
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


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
        with _reading(file, "parquet file"), ParquetFile(file) as shard:
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
                yield (where := f"{file} row {row}"), _decode(io.BytesIO(data), where, image_size)

    images = _stack(decoded(), count, files[0])
    where = files[0] if len(files) == 1 else f"{files[0]} and the shards after it"
    return Arrays(images, *_labels(labels, columns[0][2], where))


def _rows(file: Path, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a parquet file as Python values, a few hundred in memory at a time."""
    from pyarrow.parquet import ParquetFile

    with _reading(file, "parquet file"), ParquetFile(file) as shard:
        batches = shard.iter_batches(batch_size=256, columns=list(columns))
        while True:
            with _reading(file, "parquet file"):
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

    def choose(what: str, found: list[str], usual: Sequence[str]) -> str:
        known = [name for name in usual if name in found]
        if known or len(found) == 1:
            return (known or found)[0]
        names = ", ".join(schema.names)
        raise ValueError(f"{file}: cannot tell the {what} column among {names}; name it {usual[0]!r}")

    image = choose("image", [f.name for f in schema if is_image(f.type)], ("image", "img"))
    usual = ("label", "fine_label", "labels", "class", "category", "target", "y")
    label = choose("label", [f.name for f in schema if is_label(f.type)], usual)
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


# ------------------------------------------------------------------------------------------------ CIFAR


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

CIFAR_FORMS: Mapping[str, Mapping[str, _Layout]] = {
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


def cifar(source: Path, name: str, part: str) -> Arrays:
    """The part "train" or "test" of "cifar10" or "cifar100", from a folder or an archive in `CIFAR_FORMS`.

    CIFAR-100 is read with its fine labels. Raises FileNotFoundError where a file of the folder or archive is
    missing, RuntimeError where one is damaged or, being a pickle, asks for anything but numbers.
    """
    layout = CIFAR_FORMS[name][source.name]
    wanted = layout.train if part == "train" else layout.test
    contents = _contents(source, (*wanted, layout.names))
    classes = CIFAR10_CLASSES if name == "cifar10" else tuple(str(n) for n in range(100))
    pixels, labels = [], []
    for member in wanted:
        where = f"{source}/{member}"
        if member not in contents:
            raise FileNotFoundError(f"{source} lacks {member}: fetch it again")
        if member.endswith(".bin"):
            with _reading(where, f"file of {layout.header}+3072 byte records"):
                records = np.frombuffer(contents[member], np.uint8).reshape(-1, layout.header + 3072)
            pixels.append(records[:, layout.header :])
            labels.extend(records[:, layout.label].tolist())
        else:
            batch = _unpickle(contents[member], where)
            with _reading(where, "CIFAR batch"):
                pixels.append(np.asarray(batch["data"], np.uint8).reshape(-1, 3072))
                labels.extend(batch["labels" if name == "cifar10" else "fine_labels"])
        if len(labels) != sum(len(rows) for rows in pixels):
            raise RuntimeError(f"{where}: does not hold one label for each image")
    if layout.names in contents:
        where = f"{source}/{layout.names}"
        with _reading(where, "list of class names"):
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
    return Arrays(np.ascontiguousarray(images), *_labels(labels, classes, source))


_LARGEST = 2**28  # bytes; the largest real one, CIFAR-100's training batch, has 155 MB


def _contents(source: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of those of `names` that a folder or a tar archive holds, read in memory."""
    if source.is_dir():
        with _reading(source, "folder"):
            return {name: (source / name).read_bytes() for name in names if (source / name).is_file()}
    contents = {}
    with _reading(source, "tar archive"), tarfile.open(source) as archive:
        for member in archive:
            name = Path(member.name).name
            if name in names and member.isfile() and (file := archive.extractfile(member)):
                if member.size > _LARGEST:
                    raise ValueError(f"{member.name} is larger than any file of CIFAR")
                contents[name] = file.read()
    return contents


def _unpickle(data: bytes, where: str) -> dict[str, Any]:
    """A pickled dictionary of numbers, texts and uint8 arrays, its keys made str."""
    with _reading(where, "CIFAR pickle"), io.BytesIO(data) as file:
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


# ------------------------------------------------------------------------------------------- SVHN, folders


def svhn(file: Path) -> Arrays:
    """SVHN's cropped digits from `*_32x32.mat`: X [32, 32, 3, N], y [N, 1] in 1..10, where 10 is the digit 0."""
    from scipy.io import loadmat

    with _reading(file, "MATLAB file"):
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
    decoded = ((str(file), _decode(file, str(file), image_size)) for file, _ in files)
    labels = np.array([label for _, label in files], np.int64)
    return Arrays(_stack(decoded, len(files), folder), labels, tuple(home.name for home in homes))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below, sorted, hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


# ------------------------------------------------------------------------------------- what they all need


def resize(images: Pixels, image_size: int) -> Pixels:
    """Images [N, H, W, C] brought to [N, image_size, image_size, C] as in `class_folders`."""
    from PIL import Image

    if images.shape[1:3] == (image_size, image_size):
        return images
    drawn = (Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images)
    fitted = (("", _pixels(_fit(image, image_size))) for image in drawn)
    return _stack(fitted, len(images), "")


def _decode(file: Path | io.BytesIO, where: str, image_size: int | None) -> Pixels:
    """An encoded image as [H, W, C], upright, C = 1 where it is grey and else 3."""
    from PIL import Image, ImageOps

    with _reading(where, "image"), Image.open(file, formats=_DECODERS) as image:
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            raise ValueError(f"mode {image.mode!r} has no known range: save it with 8 bits per channel")
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits: keep the upper 8
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        mode = "L" if upright.mode in ("1", "L", "LA", "La") else "RGB"
        upright = upright if upright.mode == mode else upright.convert(mode)
        return _pixels(upright if image_size is None else _fit(upright, image_size))


def _fit(image: Any, image_size: int) -> Any:
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)


def _pixels(image: Any) -> Pixels:
    pixels: Pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _stack(decoded: Iterable[tuple[str, Pixels]], count: int, source: str | Path) -> Pixels:
    """`count` images, each with the place it came from, as one array [N, H, W, C]: C = 1 if all are grey."""
    from PIL.Image import DecompressionBombWarning

    images, first = np.empty((0, 0, 0, 1), np.uint8), ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", DecompressionBombWarning)  # PIL itself raises only at twice its limit
        for index, (where, pixels) in enumerate(decoded):
            if index == 0:
                try:
                    first, images = where, np.empty((count, *pixels.shape), np.uint8)
                except MemoryError:
                    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                    raise ValueError(f"{count} images of {size} do not fit in memory: give --image-size") from None
            if pixels.shape[:2] != images.shape[1:3]:
                (H, W), (h, w) = images.shape[1:3], pixels.shape[:2]
                raise ValueError(
                    f"images must have one size, {first} is {W}x{H} and {where} is {w}x{h}: "
                    "give --image-size 32 to resize them all"
                )
            if pixels.shape[2] > images.shape[3]:
                images = np.repeat(images, 3, axis=3)
            images[index] = pixels
    if not count:
        raise RuntimeError(f"{source}: holds no images")
    return images


def _labels(
    values: Sequence[Any], classes: tuple[str, ...], where: str | Path
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as int64, and the names of the classes: those given, or else the distinct labels, sorted.

    Raises RuntimeError for the first label that has no class, or is neither a text nor a whole number from 0.
    """
    texts = isinstance(values[0], str) and not classes
    highest = len(classes) - 1 if classes else 2**31
    for row, value in enumerate(values):
        number = isinstance(value, int | float) and value % 1 == 0 and 0 <= value <= highest
        if not (isinstance(value, str) if texts else number):
            rule = "a text, as the others are" if texts else f"a whole number in 0..{highest}"
            raise RuntimeError(f"{where}: label {value!r} in row {row} must be {rule}")
    if classes:
        return np.array(values, np.int64), classes
    names, labels = np.unique(np.array(values, None if texts else np.int64), return_inverse=True)
    return labels.astype(np.int64), tuple(str(name) for name in names)


@contextmanager
def _reading(where: str | Path, what: str) -> Iterator[None]:
    """Whatever goes wrong while reading foreign bytes is one error: RuntimeError, naming the file."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RuntimeError(f"{where}: not a readable {what} ({reason})") from error
