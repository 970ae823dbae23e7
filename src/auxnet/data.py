"""A data set by name, in memory or left on disk: its three splits, and the normalisation and augmentation that suit it.

Shapes: N images, H x W pixels, C channels; images are uint8 [N, H, W, C] throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from auxnet.augmentation import Augmentation
from auxnet.errors import warn
from auxnet.machine import available_memory, cores
from auxnet.precision import usual_defaults
from auxnet.preprocessing import Preprocessing
from auxnet.reading.arrays import is_name
from auxnet.reading.dividing import subsampled, with_all_splits, without_images
from auxnet.reading.parts import EncodedPart, Part
from auxnet.reading.pictures import Frame, all_resized, check_size
from auxnet.reading.sources import find, source_id
from auxnet.reading.splits import Labelled, channel_mean_std, fingerprint, on_disk, selection_fingerprint
from auxnet.reading.splits import OnDisk as OnDisk
from auxnet.reading.splits import Split as Split
from auxnet.reading.survey import survey
from auxnet.recipe import Recipe, RunDir
from auxnet.sections import LARGEST, Fit
from auxnet.words import first_few, nearest, plural, same_but_for_form

LARGE = 96  # pixels a side: images of this size or more are cropped as photographs are
ENLARGEMENT = 8 / 7  # photographs are kept larger than what the net sees: 256 pixels a side for 224, as is usual

# Channel means and standard deviations in 0..255 (METHOD.md, section 6); SVHN's bring the pixels to [0, 1].
_STATISTICS = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "svhn": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}
_CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10}


@dataclass(frozen=True, eq=False)
class DataSet:
    """Three splits, the names of the classes, and the normalisation and augmentation that suit the images."""

    name: str
    classes: tuple[str, ...]
    train: Labelled
    val: Labelled
    test: Labelled
    mean: tuple[float, ...]
    """per channel, in 0..255"""
    std: tuple[float, ...]
    """per channel, in 0..255"""
    pad: int
    """pixels of padding for the random crop; 0: no crop"""
    flip: bool
    """mirror at random"""
    workers: int = 0
    """processes that decode and augment, for `batches`; 0 if the images are in memory and need no `augmentation`"""
    augmentation: Augmentation | None = None
    """of training images, before the random crop and mirroring"""
    left_out: tuple[str, ...] = ()
    """the images that could not be read, each as "where: why" """
    drawn: str = ""
    """a fingerprint of the validation and test images that were drawn from the training images"""
    brings_val: bool = False
    """whether the validation images are the data's own, and not drawn from the training images"""
    test_sha256: Callable[[], str] = field(default=lambda: "", repr=False)
    """a fingerprint of the test images and their labels, whether the data bring them or not; "" if it is not known"""
    val_sha256: Callable[[], str] = field(default=lambda: "", repr=False)
    """the same of the validation images"""
    val_pictures: Callable[[], str] = field(default=lambda: "", repr=False)
    """a fingerprint of which images of the data the validation images are, whatever size they are brought to"""
    fit: Fit = "crop"
    """how images of another shape were brought to `resize`"""
    shapes: Callable[[], list[tuple[int, int]]] = field(default=list, repr=False)
    """(H, W) of some training images, before they are brought to `resize`"""

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """C: 1 for grey images, 3 for colour."""
        return self.train.image_shape[2]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels: what a net sees."""
        return self.val.image_shape[:2]

    @property
    def resize(self) -> tuple[int, int]:
        """(H, W) that images are brought to; evaluation sees the center, of `image_size`, training any part."""
        return self.train.image_shape[:2]

    @property
    def judged_on(self) -> dict[str, Any]:
        """Which images nets are judged on, and what these were brought to: as in summary.json, under "data"."""
        return {
            "test_sha256": self.test_sha256(),
            "val_sha256": self.val_sha256(),
            "resize": list(self.resize),
            "fit": self.fit,
        }


@usual_defaults()
def load_data(recipe: Recipe, seen: Preprocessing | None = None) -> DataSet:
    """The data set of a recipe, split for it.

    `data` is one of `sources.NAMES`, a folder of class folders (in train/ and test/, or to be split), a folder of
    parquet shards, an .npz file (`reading.npz`), or `hf:owner/name[/config]` on the Hugging Face hub. `data_dir` (else
    $AUXNET_DATA) is where the named sets, and copies of the hub's, are looked for first; what is not there comes from
    the hub. With `image_size` all images are brought to a square of that many pixels, as `fit` says. `val_fraction` of
    each class of the training set becomes the validation set, drawn by `seed`, unless the data bring a validation set;
    of the rest, `train_images` are kept if that is given, drawn by `seed` too, of each class its share. Where the data
    bring no test images, or none with a label, these are drawn from the training set too.

    Of `augment`, crop stands for a random crop after zero padding, rrc for a random resized crop, flip for mirroring,
    trivial for TrivialAugment. The default is none for digits and svhn, crop+flip for CIFAR and for other images of
    less than `LARGE` pixels a side, and rrc+flip for larger ones. With rrc and an `image_size`, unless `fit` keeps
    images whole, the square is made larger by `ENLARGEMENT`: training crops come from all of it, validation and test
    images are its center.

    `stream` says whether images of folders and parquet stay on disk and are decoded, by `workers` processes (default:
    one per core), when they are wanted; auto: if in memory they would take more than half of what is available. It
    changes no image, no order and no statistic. Up to `max_corrupt` images that cannot be read are left out, and
    listed in `DataSet.left_out`.

    The mean and standard deviation are those that a net has `seen` in training, if it saw as many channels, else the
    usual ones of CIFAR and SVHN, else those of the training images.

    Raises ValueError for a request that cannot be met, FileNotFoundError for data that is not there,
    RuntimeError for data that is damaged, OSError for files that cannot be read or copied.
    """
    name, seed, frame = recipe.data, recipe.seed, _frame(recipe)
    workers = cores() if recipe.workers is None else recipe.workers
    parts = _labelled_parts(recipe)
    streamed = _streamed(name, parts, recipe.stream, frame)
    read = {split: _read(part, frame, workers, streamed) for split, part in parts.items()}
    left_out = tuple(each for split in parts for each in (*parts[split].left_out, *read[split].left_out))
    if len(left_out) > recipe.max_corrupt:
        raise RuntimeError(_too_many_left_out(left_out, recipe.max_corrupt))
    classes = _checked_classes(name, read["train"].classes)
    H, W, _ = read["train"].split.image_shape
    if max(H, W) > LARGEST and frame is None:
        raise ValueError(f"{name}: images of {W}x{H} pixels, at most {LARGEST} a side: give --image-size")
    train, val, test = with_all_splits(_with_train_labels(name, read), classes, recipe.val_fraction, seed)
    _warn_of_unjudged(name, classes, {"validation": val, "test": test})
    train = train if recipe.train_images is None else subsampled(train, recipe.train_images, seed)

    known = seen is not None and seen.channels == train.image_shape[2] and (seen.mean, seen.std)
    mean, std = known or _STATISTICS.get(name) or channel_mean_std(train)
    # Which picture a position means depends on the source, on the pictures left out (which keep their positions on
    # disk, but not in memory), and on whether the data bring validation pictures.
    numbering = f"{source_id(name, recipe.data_dir)} {left_out} {streamed and bool(left_out)} {'val' in read}"
    size = (H, W) if recipe.image_size is None else (recipe.image_size, recipe.image_size)
    words = suited(name, recipe.augment, min(size)).split("+")
    random_crop, trivial = "rrc" in words, "trivial" in words
    augmentation = Augmentation(size, random_crop, trivial) if random_crop or trivial else None
    return DataSet(
        name=name,
        classes=classes,
        train=train,
        val=val.center_crop(size),
        test=test.center_crop(size),
        mean=mean,
        std=std,
        pad=max(1, min(size) // 8) if "crop" in words else 0,
        flip="flip" in words,
        workers=workers if streamed or augmentation else 0,
        augmentation=augmentation,
        left_out=left_out,
        # Fingerprints cover all pixels of a split, not only its center.
        drawn=fingerprint(split for which, split in (("val", val), ("test", test)) if which not in read),
        brings_val="val" in read,
        test_sha256=partial(fingerprint, [test]),
        val_sha256=partial(fingerprint, [val]),
        val_pictures=partial(selection_fingerprint, numbering, val),
        fit=recipe.fit,
        shapes=read["train"].shapes,
    )


def part_to_judge_on(data: str, data_dir: str | None) -> Part:
    """The test split of data found as by `load_data`, or their only split.

    Raises ValueError for several splits without a test set; for all else what `load_data` raises.
    """
    parts = find(data, data_dir, to_train=False)
    if "test" not in parts and len(parts) > 1:
        raise ValueError(f"{data} holds {' and '.join(parts)}, and no test images: give what holds one of them alone")
    return parts.get("test") or next(iter(parts.values()))


@usual_defaults()
def load_others(data: str, part: Part, classes: Sequence[str], seen: Preprocessing, run: RunDir) -> DataSet:
    """Other labelled images, to judge a run of these classes on, as the test set of a data set with no other images.

    The images are a `part` of `data`. Their labels are matched with `classes` by name, and the images are brought to
    what the net has `seen` in training. Images that cannot be read are in `left_out`.

    Raises ValueError for a class that the run does not know; for all else what `load_data` raises.
    """
    streamed = _streamed(data, {"test": part}, "auto", seen.frame)
    read = _read(part, seen.frame, cores(), streamed)
    if unknown := sorted(set(read.classes) - set(classes)):
        known = f"{run}, which knows {first_few(classes)}"
        mend = f"rename or remove them{same_but_for_form(unknown, classes) or nearest(unknown[0], classes)}"
        raise ValueError(f"{data}: {first_few(unknown)} are no classes of {known}: {mend}")
    images = _numbered(read, classes)
    if unjudged := without_images(images, classes):
        warn(f"{data}: no image of {first_few(unjudged)}: these errors say nothing about that")
    if isinstance(images, Split):
        images = replace(images, held=torch.from_numpy(all_resized(images.held.numpy(), seen.frame, seen.channels)))
    elif images.image_shape[2] > seen.channels:
        raise ValueError(f"{data}: too many images to make grey in memory, as {run} saw its own: make them grey first")
    images = images.with_channels(seen.channels)
    none = images.part(torch.arange(0))
    return DataSet(
        name=data,
        classes=tuple(classes),
        train=none,
        val=none.center_crop(seen.image_size),
        test=images.center_crop(seen.image_size),
        mean=seen.mean,
        std=seen.std,
        fit=seen.fit,
        pad=0,
        flip=False,
        workers=cores(),
        left_out=(*part.left_out, *read.left_out),
    )


def suited(name: str, augment: str, side: int) -> str:
    """What `augment` stands for, for images of this data set with `side` pixels a side."""
    if augment != "default":
        return augment
    if name in ("digits", "svhn"):
        return "none"
    return "rrc+flip" if name not in _CLASSES and side >= LARGE else "crop+flip"


class _Read(NamedTuple):
    """One of the splits that the data bring, with class names of its own."""

    split: Labelled
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    shapes: Callable[[], list[tuple[int, int]]]
    """(H, W) of some of its images, before they were brought to a frame"""


def _frame(recipe: Recipe) -> Frame | None:
    """What all images are brought to: larger than what a net sees if random resized crops are cut from it."""
    if recipe.image_size is None:
        return None
    larger = recipe.fit == "crop" and "rrc" in suited(recipe.data, recipe.augment, recipe.image_size)
    side = round(ENLARGEMENT * recipe.image_size) if larger else recipe.image_size
    return Frame((side, side), recipe.fit)


def _labelled_parts(recipe: Recipe) -> dict[str, Part]:
    """The splits that the data bring, without a test split that has no labels, as challenges have them."""
    parts = find(recipe.data, recipe.data_dir)
    if recipe.data not in _CLASSES and "test" in parts and parts["test"].no_labels():
        warn(f"{recipe.data}: passed over its test images, none of which has a label: others are drawn from train")
        del parts["test"]
    return parts


def _checked_classes(name: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the classes. Raises RuntimeError or ValueError for too few, and for a name that cannot be one."""
    if len(classes) != _CLASSES.get(name, len(classes)):
        raise RuntimeError(f"{name} must have {_CLASSES[name]} classes, what was found has {len(classes)}")
    if len(classes) < 2:
        raise ValueError(f"{name} has one class only, {classes[0]!r}: a classifier needs at least two")
    if unfit := [each for each in classes if not is_name(each)]:
        raise ValueError(
            f"{name} has a class named {unfit[0]!r}: a name must be UTF-8, and not empty; rename the class"
        )
    return classes


def _streamed(name: str, parts: Mapping[str, Part], stream: str, frame: Frame | None) -> bool:
    """Whether the images stay on disk. Raises ValueError if they should but cannot."""
    encoded = [part for part in parts.values() if isinstance(part, EncodedPart)]
    can = len(encoded) == len(parts)
    if stream == "always" and not can:
        raise ValueError(f"stream must be auto or never for {name}: only folders and parquet can stay on disk")
    if stream == "auto" and can:
        return sum(part.decoded_bytes(frame) for part in encoded) > available_memory() / 2
    return stream == "always"


def _read(part: Part, frame: Frame | None, workers: int, streamed: bool) -> _Read:
    """A split, in memory or `streamed`: left on disk."""
    if streamed:
        assert isinstance(part, EncodedPart)  # by `_streamed`
        encoded = part.encoded()
        known = survey(encoded, part.files, frame, workers)
        return _Read(on_disk(encoded, known, frame), encoded.classes, known.left_out, part.shapes)
    images, labels, classes, left_out, size = part.read(frame)
    own = [size or images.shape[1:3]]
    shapes = part.shapes if isinstance(part, EncodedPart) else lambda: own
    return _Read(Split(torch.from_numpy(images), torch.from_numpy(labels)), classes, left_out, shapes)


def _too_many_left_out(left_out: Sequence[str], max_corrupt: int) -> str:
    counted, them = plural(len(left_out), "image"), "it" if len(left_out) == 1 else "them"
    without = f", or train with --max-corrupt {len(left_out)}" if len(left_out) < 1000 else ""
    mend = f"repair or remove {them}{without}"
    return f"{counted} cannot be read, at most {max_corrupt} may be left out: {first_few(left_out)}; {mend}"


def _with_train_labels(name: str, read: Mapping[str, _Read]) -> dict[str, Labelled]:
    """All splits with the labels, the image size and the channels of the training split."""
    train, classes = read["train"].split, read["train"].classes
    channels = max(part.split.image_shape[2] for part in read.values())
    aligned: dict[str, Labelled] = {}
    for which, part in read.items():
        if foreign := sorted(set(part.classes) - set(classes)):
            mend = "rename or remove them, or put training images of them in"
            lacks = f"classes that train lacks: {first_few(foreign)}{same_but_for_form(foreign, classes)}"
            raise RuntimeError(f"{name}: {which} has {lacks}; {mend}")
        check_size(part.split.image_shape, which, train.image_shape[:2], f"train of {name}")
        aligned[which] = _numbered(part, classes).with_channels(channels)
    return aligned


def _numbered(part: _Read, classes: Sequence[str]) -> Labelled:
    """The split with labels that number `classes`, in which its own classes are found by name."""
    number = {name: label for label, name in enumerate(classes)}
    return replace(part.split, labels=torch.tensor([number[name] for name in part.classes])[part.split.labels])


def _warn_of_unjudged(name: str, classes: Sequence[str], splits: Mapping[str, Labelled]) -> None:
    """Warn of classes that have no image in a split that judges, as when one was added to train/ alone."""
    for split, images in splits.items():
        if unjudged := without_images(images, classes):
            warn(f"{name}: no {split} image of {first_few(unjudged)}: no {split} error says anything about it")
