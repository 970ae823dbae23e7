"""Folders of images: which folders are splits and which are classes, the files in them, and their images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from zlib import crc32

import numpy as np

from auxnet.errors import warn
from auxnet.reading.arrays import Arrays, Pixels
from auxnet.reading.encoded import Files
from auxnet.reading.parts import EncodedPart
from auxnet.reading.pictures import SOME, Frame, any_readable, decode, decoded_bytes, shapes_of, stack
from auxnet.words import first_few

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
IMAGE_SUFFIXES = frozenset({*_JPEG_SUFFIXES, ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
UNKNOWN_FORMS = frozenset(  # of pictures that are not decoded here, as cameras and phones write them
    {".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".tga"}
)
_BESIDE = frozenset(  # files that are usual beside images: notes, labels, what file managers leave
    {"", ".txt", ".md", ".rst", ".pdf", ".html", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml"}
    | {".db", ".ini", ".log", ".py", ".ipynb"}
)
SPLITS = {"train": "train", "test": "test", "val": "val", "validation": "val", "valid": "val"}
_LIKE_SPLIT = re.compile(  # seg_train, test2017, trainset, TestImages; but no strainer, no trainers
    r"(?<![a-z])(train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval(uation)?)(data)?(set|images?|imgs?)?(?![a-z])"
)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones, links to it, and links to a folder around it."""
    whole = folder.resolve()
    around = (whole, *whole.parents)
    below = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in below if not (path.is_symlink() and path.resolve() in around))


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Each file in a folder and below, hidden ones left out, with its suffix in lower case; listed lazily.

    Links are followed, but not to a folder that was searched already or is around this one. Raises OSError for a folder
    that may not be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    top, searched = os.path.realpath(folder), set[str]()
    for home, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(home)
        if real in searched or top.startswith(os.path.join(real, "")):
            below.clear()
            continue
        searched.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from ((os.path.join(home, n), os.path.splitext(n)[1].lower()) for n in names if not n.startswith("."))


def paths_and_others(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> tuple[list[str], Counter[str]]:
    """The image files of `_files`, sorted, as strings, which take a tenth of the memory of Path objects.

    Also returns, by suffix, how many files may be pictures in unknown formats. A link to an image that does not exist
    is among the image files: whoever reads it reports it.
    """
    found, others = [], Counter[str]()
    for path, suffix in _files(folder):
        if suffix not in suffixes:
            others[suffix] += suffix not in _BESIDE
        elif os.path.isfile(path) or os.path.islink(path):
            found.append(path)
    return sorted(found, key=lambda path: path.split(os.sep)), +others


def holds_images(folder: Path) -> bool:
    """Whether there is an image among `_files`: searched no further than the first."""
    return any(suffix in IMAGE_SUFFIXES for _, suffix in _files(folder))


def leads_nowhere(path: str) -> bool:
    """Whether a path is a link to nothing; False if that cannot be told (no permission, links in a circle)."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return os.path.islink(path)
    except OSError:
        pass
    return False


def passed_over(others: Counter[str]) -> str:
    """In words: passed over 12 files that are no pictures known here: .heic (12)."""
    count = others.total()
    suffixes = [f"{suffix if suffix.isprintable() else repr(suffix)} ({n:,})" for suffix, n in others.most_common(5)]
    files = "1 file that is no picture" if count == 1 else f"{count:,} files that are no pictures"
    return f"passed over {files} known here: {', '.join(suffixes)}" + (", ..." if len(others) > 5 else "")


def loose(folder: Path) -> int:
    """How many images are directly in a folder, and so in no class folder."""
    return sum(path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in folder.glob("[!.]*"))


def split_homes(folder: Path, to_train: bool = True) -> dict[str, Path]:
    """The folder of each split in a folder, whatever the case of its name; {"train": folder} if it holds classes.

    "train" is among them, unless the data are not `to_train` and the folder holds other splits and nothing else.
    Raises ValueError if splits and classes cannot be told apart.
    """
    below = subfolders(folder)
    named = {home: split for home in below if (split := SPLITS.get(home.name.lower()))}
    homes = {split: home for home, split in named.items()}
    no_others = bool(below) and below == [*named] and all(map(subfolders, named))
    if (to_train or not no_others) and ("train" not in homes or not subfolders(homes["train"])):
        _refuse_splits_as_classes(folder, below)
        return {"train": folder}
    if len(homes) < len(named):
        names = ", ".join(f"{home.name}/" for home in named)
        raise ValueError(f"{folder} holds {names}: two of them are the same split, leave one")
    if (lacking := {"test", "val"} - homes.keys()) and not no_others:
        used = {home.resolve() for home in named}  # by a link too, as latest -> train
        others = [home for home in below if home.resolve() not in used and holds_images(home)]
        _refuse_split_left_out(folder, homes, lacking, others)
    return homes


def _refuse_split_left_out(folder: Path, homes: Mapping[str, Path], lacking: set[str], others: Sequence[Path]) -> None:
    """Raise ValueError for a folder of images that may be a split or a class; others are passed over with a warning."""
    classes = _names_below(homes["train"])
    if odd := [home for home in others if len(homes) == 1 or classes & _names_below(home)]:
        raise ValueError(
            f"{folder} holds {homes['train'].name}/ with folders in it, as for splits, and images in {odd[0].name}/, "
            f"which is no split: rename it {' or '.join(sorted(lacking))}, or move it elsewhere; if both are classes, "
            "rename the class train"
        )
    if others:
        names = first_few([f"{home.name}/" for home in others])
        warn(f"{folder}: passed over {names}: no folders of train, val or test")


def _refuse_splits_as_classes(folder: Path, below: Sequence[Path]) -> None:
    """Raise ValueError if folders that would be classes look like splits, or if the only one holds splits.

    Folders look like splits if all have names like a split's, and one name is exactly a split's or contains "train".
    They also do if two folders with such names have a subfolder of the same name, or if one with such a name and any
    other folder have two subfolders of the same names.
    """
    if len(below) == 1 and any(_like_split(each) for each in subfolders(below[0])):
        raise ValueError(f"{folder} holds one folder only, and the splits lie in that: give {below[0]}")
    alike = [home for home in below if _like_split(home)]
    called = [home.name.lower() for home in alike]
    all_splits = len(alike) == len(below) and any(name in SPLITS or "train" in name for name in called)
    for home in alike:
        names = _names_below(home)
        for other in below:
            shared = names and names & _names_below(other)  # listed only if need be: it may be large
            enough = 1 if other in alike else 2
            if other != home and (all_splits or len(shared) >= enough):
                raise ValueError(
                    f"{folder}: {home.name}/ and {other.name}/ look like splits: name them train, and test or val, "
                    "with a folder for each class right in them; if they are classes, give them other names"
                )


def _like_split(home: Path) -> bool:
    """Whether the name of a folder is, or holds, a word for a split."""
    return bool(_LIKE_SPLIT.search(re.sub("(?<=[a-z])(?=[A-Z])", " ", home.name).lower()))


def _names_below(home: Path) -> set[str]:
    """The names of the folders in a folder; if it holds only one, also of those in that: set/training_set/cat."""
    below = subfolders(home)
    deeper = subfolders(below[0]) if len(below) == 1 else []
    return {each.name for each in (*below, *deeper)}


# ---- read ------------------------------------------------------------------------------------------------------


def folder_files(folder: Path) -> Files:
    """The image files of a folder that holds one folder per class; classes and files in sorted order.

    Hidden files are ignored, links to nothing left out. Raises FileNotFoundError if there are no images.
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
        if not homes and loose(folder):
            but = f", but pictures in {folder.name}/ itself: if that is a class, give the folder above"
        raise FileNotFoundError(f"{folder}: no images in folders named by class, as in {folder}/cat/1.png{but}")
    classes = tuple(home.name for home in homes)
    return Files(np.array(paths), np.array(labels, np.int64), classes, others, tuple(left_out))


class FolderPart(EncodedPart):
    """A split in class folders (`folder_files`)."""

    def __init__(self, images: Files) -> None:
        self._images, self.left_out = images, images.left_out
        # With the labels: the same files, given one folder higher, are of other classes.
        self.form = f"folders {images.classes} {crc32(images.labels.tobytes())}"

    @property
    def files(self) -> list[str]:
        """The paths of the images, as strings; made when they are asked for, because a million take much memory."""
        return [*self._names()]

    def read_uncached(self, frame: Frame | None = None) -> Arrays:
        """The images and their labels.

        Images are turned upright by their EXIF tag and made red-green-blue, transparency dropped; if every
        image is grey they stay grey (C = 1). They are brought to a frame; without one all must have one size. Images
        that cannot be read are left out.

        Raises ValueError for images of different sizes, RuntimeError if no image can be read.
        """
        files = self._images
        images, kept, left_out = stack(self._pictures(frame), len(files.paths), files.name(0))
        return Arrays(images, files.labels[kept], files.classes, left_out)

    def is_stale(self, frame: Frame | None, left_out: Sequence[str]) -> bool:
        """Whether one of the images that could not be read can be read now."""
        return bool(left_out) and any_readable(self._pictures(frame), left_out)

    def encoded(self) -> Files:
        """The image files, each of which can be read by its number."""
        return self._images

    def decoded_bytes(self, frame: Frame | None) -> int:
        """The memory that the images would take (`pictures.decoded_bytes`)."""
        pictures = (picture for _, picture in self._pictures(frame))
        return decoded_bytes(len(self._images.paths), pictures, frame)

    def shapes(self) -> list[tuple[int, int]]:
        """(H, W) of images spread evenly over the files (`pictures.shapes_of`)."""
        return shapes_of(islice(self._names(), 0, None, max(1, len(self._images.paths) // SOME)))

    def _names(self) -> Iterator[str]:
        return map(self._images.name, range(len(self._images.paths)))

    def _pictures(self, frame: Frame | None) -> Iterator[tuple[str, Callable[[], Pixels]]]:
        """The images, each with its name, to be decoded one by one."""
        return ((name, partial(decode, name, name, frame)) for name in self._names())
