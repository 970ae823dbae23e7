"""A data set by name: where it is looked for, how it is split, and its cache of decoded arrays.

The test set never depends on a seed of the caller's: where the data bring none it is carved out once and for
all, and the validation set, which does follow the seed, is carved out of the training set alone.

Shapes: N images, H x W pixels, C channels; images are uint8 [N, H, W, C] throughout.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from auxnet import formats
from auxnet.formats import Arrays

NAMES = ("digits", "cifar10", "cifar100", "svhn")
AUGMENTATIONS = ("default", "none", "crop", "flip", "crop+flip")

TEST_FRACTION, TEST_SEED = 0.2, 0  # of the test set, where the data bring none: fixed, so that it never changes

# Channel means and standard deviations in 0..255 (METHOD.md, section 6); SVHN's bring the pixels to [0, 1].
_STATISTICS = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "svhn": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}
_CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10}
_HUB = {
    "cifar10": "uoft-cs/cifar10/plain_text",
    "cifar100": "uoft-cs/cifar100/cifar100",
    "svhn": "ufldl-stanford/svhn/cropped_digits",
}


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, H, W, C], and their labels, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """Three splits, the names of the classes, and the normalisation and augmentation that suit the images."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    """per channel, in 0..255"""
    std: tuple[float, ...]
    """per channel, in 0..255"""
    pad: int
    """pixels of padding for the random crop; 0: no crop"""
    flip: bool
    """mirror at random"""

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """C: 1 for grey images, 3 for colour."""
        return int(self.train.images.shape[3])

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.train.images.shape[1]), int(self.train.images.shape[2])


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    augment: str = "default",
) -> DataSet:
    """The data set `name`, in memory.

    `name` is one of `NAMES`, a folder of class folders (in train/ and test/, or to be split), a folder of
    parquet shards, or `hf:owner/name[/config]` on the Hugging Face hub. `data_dir` (else $AUXNET_DATA) is where
    the named sets are looked for first; those that are not there come from the hub. With `image_size` all
    images are brought to a square of that many pixels. `val_fraction` of each class of the training set becomes
    the validation set, drawn by `seed`, unless the data bring a validation set. `augment` is one of
    `AUGMENTATIONS`; the default is crop+flip, and none for digits and svhn.

    Raises ValueError for a request that cannot be met, FileNotFoundError for data that is not there,
    RuntimeError for data that is damaged.
    """
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)}, got {augment!r}")
    if not 0 < val_fraction <= 0.5:
        raise ValueError(f"val_fraction must be above 0 and at most 0.5, got {val_fraction}")
    if image_size is not None and not 4 <= image_size <= 4096:
        raise ValueError(f"image_size must be 4 to 4096 pixels, got {image_size}")

    arrays = _read(name, data_dir, image_size)
    classes = arrays["train"].classes
    if len(classes) != _CLASSES.get(name, len(classes)):
        raise RuntimeError(f"{name} must have {_CLASSES[name]} classes, what was found has {len(classes)}")
    if len(classes) < 2:
        raise ValueError(f"{name} has one class only, {classes[0]!r}: a classifier needs at least two")
    train, val, test = _split(_aligned(name, arrays), val_fraction, seed)

    mean, std = _STATISTICS.get(name) or statistics(train.images)
    if augment == "default":
        augment = "none" if name in ("digits", "svhn") else "crop+flip"
    pad = max(1, min(train.images.shape[1:3]) // 8) if "crop" in augment else 0
    return DataSet(name, classes, train, val, test, mean, std, pad, "flip" in augment)


# --------------------------------------------------------------------------------------------- splitting


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices kept and held out, each sorted: `fraction` of every class, rounded, is held out.

    At least one image of each class is on each side. Labels int64 [N]. Raises ValueError for a class with a
    single image.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    kept, held, start = [], [], 0
    for label, count in enumerate(torch.bincount(labels).tolist()):
        if count == 1:
            raise ValueError(f"class {label} has a single image, and at least two are needed to split it")
        number = min(max(int(fraction * count + 0.5), 1), count - 1) if count else 0
        held.append(by_class[start : start + number])
        kept.append(by_class[start + number : start + count])
        start += count
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def _split(arrays: Mapping[str, Arrays], val_fraction: float, seed: int) -> tuple[Split, Split, Split]:
    """Train, validation and test: those that the data bring, the others carved from train, test first."""
    splits = {
        name: Split(torch.from_numpy(part.images), torch.from_numpy(part.labels)) for name, part in arrays.items()
    }
    for name, fraction, split_seed in (("test", TEST_FRACTION, TEST_SEED), ("val", val_fraction, seed)):
        if name not in splits:
            images, labels = splits["train"].images, splits["train"].labels
            try:
                kept, held = stratified_split(labels, fraction, split_seed)
            except ValueError:
                counts = torch.bincount(labels).tolist()
                few = next(repr(c) for c, n in zip(arrays["train"].classes, counts, strict=False) if n == 1)
                raise ValueError(
                    f"class {few} has too few images to carve a {name} split from: give three or more of each class"
                ) from None
            splits["train"] = Split(images[kept], labels[kept])
            splits[name] = Split(images[held], labels[held])
    return splits["train"], splits["val"], splits["test"]


def _aligned(name: str, arrays: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """All splits with the labels, the image size and the channels of the training split."""
    train = arrays["train"]
    channels = max(part.images.shape[3] for part in arrays.values())
    aligned = {}
    for split, part in arrays.items():
        if foreign := sorted(set(part.classes) - set(train.classes)):
            raise RuntimeError(f"{name}: {split} has classes that train lacks: {', '.join(foreign)}")
        if part.images.shape[1:3] != train.images.shape[1:3]:
            (h, w), (H, W) = part.images.shape[1:3], train.images.shape[1:3]
            raise ValueError(
                f"{name}: images must have one size, train has {W}x{H} and {split} {w}x{h}: "
                "give --image-size 32 to resize them all"
            )
        images = part.images if part.images.shape[3] == channels else np.repeat(part.images, channels, axis=3)
        labels = np.array([train.classes.index(c) for c in part.classes], np.int64)[part.labels]
        aligned[split] = Arrays(images, labels, train.classes)
    return aligned


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images [N, H, W, C], in 0..255; 1 in place of a std of 0."""
    levels = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in range(images.shape[3]):
        counts = torch.bincount(images[..., channel].flatten(), minlength=256).double()
        mean = (counts @ levels / counts.sum()).item()
        std = (counts @ (levels - mean).square() / counts.sum()).sqrt().item()
        means.append(mean)
        stds.append(std or 1.0)
    return tuple(means), tuple(stds)


# ---------------------------------------------------------------------------------------------- finding


@dataclass(frozen=True)
class _Part:
    """One split as it lies on disk: its files, and how to read them."""

    files: Sequence[Path]
    read: Callable[[], Arrays]
    key: str
    """what, beside the files, the arrays depend on"""


def _read(name: str, data_dir: str | Path | None, image_size: int | None) -> dict[str, Arrays]:
    """The splits of a data set as the data bring them, "train" at least, each image at its final size."""
    if name == "digits":
        arrays = {"train": formats.digits()}
    else:
        parts = _find(name, data_dir, image_size)
        arrays = {split: _cached(part) for split, part in parts.items()}
        if name == "svhn" and (extra := arrays.get("extra")):
            pair = arrays["train"], extra
            images, labels = (np.concatenate([part[field] for part in pair]) for field in (0, 1))
            arrays["train"] = Arrays(images, labels, pair[0].classes)
        arrays.pop("extra", None)
    if image_size is not None:
        arrays = {
            split: part._replace(images=formats.resize(part.images, image_size)) for split, part in arrays.items()
        }
    return arrays


def _find(name: str, data_dir: str | Path | None, image_size: int | None) -> dict[str, _Part]:
    """The splits of the data set `name` on disk, fetched from the hub if need be."""
    root = Path(data_dir or os.environ.get("AUXNET_DATA") or "").expanduser()
    given = bool(data_dir or os.environ.get("AUXNET_DATA"))
    if given and not root.is_dir():
        raise FileNotFoundError(f"data_dir {root} is not a folder: give the one that holds the data")
    if name.startswith("hf:"):
        return _from_hub(name, name.removeprefix("hf:"), image_size)
    if name in NAMES:
        folders = [root / name, root] if given else []
        for folder in folders:
            if parts := _named(name, folder, folder != root, image_size):
                return parts
        looked = " and ".join(str(folder) for folder in folders) or "no folder (data_dir and AUXNET_DATA are not set)"
        try:
            return _from_hub(name, _HUB[name], image_size)
        except FileNotFoundError as error:
            forms = ", ".join([*formats.CIFAR_FORMS.get(name, ["train_32x32.mat"]), "train-*.parquet"])
            raise FileNotFoundError(
                f"{name} was not found: looked in {looked}, then {error}; give a data_dir that holds one of {forms}"
            ) from error
    for folder in (Path(name).expanduser(), root / name) if name.strip() else ():
        if folder.is_dir():
            return _in_folder(folder, image_size)
        if folder.exists():
            raise ValueError(f"data {name!r} is a file: give the folder that holds it, or one of {', '.join(NAMES)}")
    if os.sep in name or name.startswith((".", "~")):
        raise FileNotFoundError(f"data {name!r}: there is no such folder")
    close = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(NAMES)}, a folder, or hf:owner/name"
    raise ValueError(f"data {name!r} is neither a known data set nor a folder: {hint}")


def _named(name: str, folder: Path, below: bool, image_size: int | None) -> dict[str, _Part]:
    """The splits of a named set in any of its own forms in `folder`; {} if there is none.

    Only a folder of its own is searched one folder `below`: elsewhere that may be another data set.
    """
    if not folder.is_dir():
        return {}
    for home, deeper in ((folder / _HUB[name].split("/")[2], False), (folder, below)):
        if parts := _complete(folder, _parquet_parts(home, image_size, deeper)):
            return parts
    for form in formats.CIFAR_FORMS.get(name, ()):
        source = folder / form
        if source.exists():
            files = [path for path in source.iterdir() if path.is_file()] if source.is_dir() else [source]
            return {
                part: _Part(files, partial(formats.cifar, source, name, part), f"{name} {part}")
                for part in ("train", "test")
            }
    mats = {part: folder / f"{part}_32x32.mat" for part in ("train", "test", "extra")} if name == "svhn" else {}
    found = {part: _Part([f], partial(formats.svhn, f), "mat") for part, f in mats.items() if f.is_file()}
    return _complete(folder, found)


def _complete(folder: Path, parts: dict[str, _Part]) -> dict[str, _Part]:
    """The parts of a named set, which must bring its own test set."""
    missing = {"train", "test"} - set(parts)
    if parts and missing:
        raise FileNotFoundError(f"{folder} holds {', '.join(sorted(parts))} but lacks {', '.join(sorted(missing))}")
    return parts


def _in_folder(folder: Path, image_size: int | None) -> dict[str, _Part]:
    """The splits of a folder of parquet shards or of class folders."""
    if parts := _parquet_parts(folder, image_size):
        if "train" not in parts:
            raise FileNotFoundError(f"{folder} has parquet shards, but none named train-*.parquet")
        return parts
    homes = {home.name: home for home in formats.subfolders(folder)}
    if "train" in homes and formats.subfolders(homes["train"]):
        named = {"train": "train", "test": "test", "val": "val", "validation": "val", "valid": "val"}
        homes = {split: homes[home] for home, split in named.items() if home in homes}
        classes = {split: {home.name for home in formats.subfolders(homes[split])} for split in homes}
        for split in homes:
            if odd := sorted(classes[split] ^ classes["train"]):
                raise RuntimeError(
                    f"{folder}: train and {split} must have the same classes, differ in {', '.join(odd)}"
                )
    else:
        homes = {"train": folder}
    parts = {}
    for split, home in homes.items():
        files = {each: formats.image_files(each) for each in formats.subfolders(home)}
        if split == "train" and (empty := [str(each) for each, found in files.items() if not found]):
            raise ValueError(f"{empty[0]} holds no image: put some in, or remove the folder")
        every = [file for found in files.values() for file in found]
        parts[split] = _Part(every, partial(formats.class_folders, home, image_size), f"folders {image_size}")
    return parts


def _parquet_parts(folder: Path, image_size: int | None, below: bool = True) -> dict[str, _Part]:
    """The splits that lie in a folder as parquet shards."""
    return {
        split: _Part(files, partial(formats.parquet, files, image_size), f"parquet {image_size}")
        for split, files in formats.parquet_splits(folder, below).items()
    }


def _from_hub(name: str, address: str, image_size: int | None) -> dict[str, _Part]:
    """The parquet shards of "owner/name[/config]": those in the hub's own cache, or else fetched."""
    from huggingface_hub import snapshot_download

    match = re.fullmatch(r"([\w.-]+/[\w.-]+)/?(.*)", address)
    if not match:
        raise ValueError(f"data {name!r}: a data set on the hub is given as hf:owner/name")
    repo, config = match[1], match[2].strip("/")
    pattern = f"{config}/*.parquet" if config else "*.parquet"
    reason = "it has no train-*.parquet"
    for cached in (True, False):
        try:
            folders = [] if cached else _hub_folders(repo)  # first: it answers or fails within seconds
            several = len(folders) > 1 and not config
            if not several:
                fetch = partial(snapshot_download, repo, repo_type="dataset", allow_patterns=pattern)
                folder = Path(str(fetch(local_files_only=cached, etag_timeout=5)))
        except Exception as error:  # whatever the network throws
            reason = _first_line(error)
            continue
        if several:
            choices = ", ".join(f"hf:{repo}/{each}" for each in folders)
            raise ValueError(f"{repo} holds several data sets, give one of them: {choices}")
        try:
            parts = _parquet_parts(folder / config, image_size)
        except FileNotFoundError as error:  # some of the shards only
            reason = _first_line(error)
            continue
        if "train" in parts and ("test" in parts or name.startswith("hf:")):
            return parts
    raise FileNotFoundError(f"{repo} could not be fetched from the hub: {reason}")


def _hub_folders(repo: str) -> list[str]:
    """The folders of a data set on the hub that hold parquet files."""
    from huggingface_hub import HfApi

    files = [file.rfilename for file in HfApi().dataset_info(repo, timeout=5).siblings or ()]
    return sorted({file.rpartition("/")[0] for file in files if file.endswith(".parquet")})


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# ------------------------------------------------------------------------------------------------ cache


def _cached(part: _Part) -> Arrays:
    """The arrays of a part: from the cache if its files have not changed since, else read and put there."""
    found = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in part.files]
    digest = sha256(json.dumps([formats.VERSION, part.key, sorted(found)]).encode()).hexdigest()
    entry = Path(os.environ.get("AUXNET_CACHE") or "~/.cache/auxnet").expanduser() / digest[:32]
    try:
        about = json.loads((entry / "about.json").read_text())
        images = np.load(entry / "images.npy", allow_pickle=False)
        labels = np.load(entry / "labels.npy", allow_pickle=False)
        if about["crc32"] == [zlib.crc32(images), zlib.crc32(labels)]:
            return Arrays(images, labels, tuple(about["classes"]))
    except Exception:  # not there, or damaged in whatever way: made anew
        pass
    arrays = part.read()
    _remember(entry, arrays)
    return arrays


def _remember(entry: Path, arrays: Arrays) -> None:
    """Put arrays into the cache, whole or not at all; a cache that cannot be written is done without."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, ignore_cleanup_errors=True) as folder:
            half = Path(folder) / "entry"
            half.mkdir()
            np.save(half / "images.npy", arrays.images, allow_pickle=False)
            np.save(half / "labels.npy", arrays.labels, allow_pickle=False)
            crc32 = [zlib.crc32(arrays.images.data), zlib.crc32(arrays.labels.data)]
            (half / "about.json").write_text(json.dumps({"crc32": crc32, "classes": arrays.classes}))
            shutil.rmtree(entry, ignore_errors=True)  # a damaged one, if any
            os.replace(half, entry)
    except OSError:  # no room, no permission, or another process was first
        pass
