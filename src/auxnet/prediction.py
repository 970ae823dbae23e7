"""Predict the classes of images, in the order given; an image that cannot be read does not stop the rest.

Images are decoded as in training (upright by EXIF, transparency dropped, the first frame, the upper 8 of 16
bits), made grey or red-green-blue as the model was trained, and brought to its size as its `fit` says; if the model was
evaluated on the center of somewhat larger images, it sees the center here too.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from auxnet.errors import not_finite, one_line, warn, whole_number
from auxnet.hub import PretrainedAuxNet
from auxnet.machine import cores
from auxnet.preprocessing import Preprocessing
from auxnet.reading.ahead import ahead
from auxnet.reading.arrays import Pixels, reading
from auxnet.reading.folders import IMAGE_SUFFIXES, UNKNOWN_FORMS, passed_over, paths_and_others
from auxnet.reading.pictures import Picture, check_image, decode_for, pixels_of
from auxnet.recipe import RunDir
from auxnet.runtimes import Runnable, open_model, runnable
from auxnet.sections import Which

PIECE = 4  # images that a process reads at a time
FEW = 32  # images: of fewer, all are read before a process has started


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image."""

    image: str
    """its path; of an image that is no file #0, #1, ..., its place among the images given"""
    output: int
    """the output that answered, numbered from 1 as in the run"""
    classes: tuple[str, ...]
    """likeliest first"""
    probabilities: tuple[float, ...]
    resized_from: tuple[int, int] | None
    """(H, W) in pixels, if the image has another size than the model wants"""


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, and why."""

    image: str
    reason: str


def predict(
    model: RunDir | PretrainedAuxNet | Runnable,
    images: Picture | Iterable[Picture],
    *,
    output: int | None = None,
    exits: bool = False,
    top: int = 3,
    batch_size: int = 32,
    which: Which = "last",
    device: str | None = None,
    threads: int | None = None,
) -> Iterator[Prediction | Unreadable]:
    """One answer per image, in order: of one or several images; of a folder, the image files in and below it, sorted.

    `model`: a run, an exported folder, `hf:owner/name`, an ONNX file of this program, or what `load`, `runnable` or
    `open_for` gave; `output` as numbered in the run (default: its deepest). With `exits` each image leaves at
    an output of its own, by the exits.json of a run, and its probabilities are tempered as that file says. The model
    is asked on `device` (default: where the given net is, else the CPU) and that many CPU `threads` (default:
    PyTorch's own number, at most one per core; for an ONNX file one per core). Images are paths, PIL's, or
    pixels, as `PretrainedAuxNet.prepare` takes them; `threads` processes decode files ahead, about two batches at most.

    Raises, at once, ValueError for an option that cannot be or an empty list, TypeError for what is no image, and what
    `runtimes.open_model` raises. Once the model is asked, raises RuntimeError for logits that are not finite: they name
    no class.
    """
    batch_size, top = whole_number("batch_size", batch_size, 1), whole_number("top", top, 1)
    several = isinstance(images, Iterable) and not isinstance(images, str)
    if isinstance(images, np.ndarray):
        several = images.ndim == 4
    given: list[Picture] = list(images) if several else [images]  # type: ignore[arg-type, list-item]
    for image in given:
        check_image(image)
    if not given:
        raise ValueError("there are no images to predict: name files or folders")
    asked = open_for(given, model, output, which, device, threads, exits)
    return _answers(asked, _files(given, asked.preprocessing), top, batch_size)


def open_for(
    images: Sequence[Picture],
    model: RunDir | PretrainedAuxNet | Runnable,
    output: int | None = None,
    which: Which = "last",
    device: str | None = None,
    threads: int | None = None,
    exits: bool = False,
) -> Runnable:
    """The model that is to be asked about these images, opened. Raises what `predict` raises for it."""
    if threads is not None:
        whole_number("threads", threads)
    if which != "last" and isinstance(model, PretrainedAuxNet | Runnable):
        raise ValueError(f"which chooses the weights of a run, and this model has its own: leave {which!r} out")
    if exits and isinstance(model, PretrainedAuxNet | Runnable):
        raise ValueError(
            "exits are those of a run's exits.json: give the run's folder as the model, or leave exits out"
        )
    if isinstance(model, Runnable):
        for name, value in (("output", output), ("device", device), ("threads", threads)):
            if value is not None:
                raise ValueError(f"{name} is chosen where a model is opened, and this one is open: leave {value!r} out")
        return model
    if isinstance(model, PretrainedAuxNet):
        return runnable(model, output, device=device, threads=threads)
    try:
        return open_model(model, output, which, exits=exits, device=device, threads=threads)
    except (ValueError, FileNotFoundError) as error:
        first = Path(images[0]) if len(images) == 1 and isinstance(images[0], str | Path) else None
        if first is not None and (first.suffix == ".onnx" or (first / "config.json").is_file()):
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"the model comes first, then images: {first} {model} ({error})") from None
        raise


class _Readable(NamedTuple):
    """An image that waits for its batch."""

    image: str
    pixels: Pixels
    """as the model wants them"""
    resized_from: tuple[int, int] | None


_Given = Path | _Readable | Unreadable  # a file still to be read, or another picture, which was read or failed


def _files(given: Iterable[Picture], wanted: Preprocessing) -> Iterator[_Given]:
    """The files to read, pictures in unknown formats too: they are reported as unreadable, and not passed over.

    Pictures that are no files are read here: an image of PIL's, pickled for another process, would lose its format.
    """
    for place, image in enumerate(given):
        if not isinstance(image, str | Path):
            yield _read(image, f"#{place}", wanted)
            continue
        path = Path(image)
        try:
            found, others = paths_and_others(path, IMAGE_SUFFIXES | UNKNOWN_FORMS) if path.is_dir() else ([path], None)
        except OSError as error:  # a name that is too long, a folder that may not be read
            yield Unreadable(str(path), error.strerror or str(error))
            continue
        if others:
            warn(f"{path}: {passed_over(others)}")
        yield from map(Path, found)
        if not found:
            yield Unreadable(str(path), "the folder holds no images")


def _answers(model: Runnable, files: Iterator[_Given], top: int, batch_size: int) -> Iterator[Prediction | Unreadable]:
    waiting: list[_Readable | Unreadable] = []
    readable = 0
    with closing(_decoded(model, files, batch_size)) as decoded:
        for each in decoded:
            waiting.append(each)
            readable += isinstance(each, _Readable)
            if readable == batch_size:
                yield from _batch(model, waiting, top)
                waiting, readable = [], 0
    yield from _batch(model, waiting, top)


def _decoded(model: Runnable, files: Iterator[_Given], batch_size: int) -> Generator[_Readable | Unreadable]:
    """The images in order; other processes read the files if there are many files and more than one core."""

    def read(piece: list[_Given]) -> list[_Readable | Unreadable]:
        return [_read(each, str(each), model.preprocessing) if isinstance(each, Path) else each for each in piece]

    first = list(islice(files, FEW))
    pieces = _pieces(chain(first, files))
    many = len(first) == FEW and any(isinstance(each, Path) for each in first)
    workers = model.threads if many and cores() > 1 else 0
    with closing(ahead(read, pieces, workers, math.ceil(batch_size / PIECE) + 2 * workers)) as found:
        for piece in found:
            yield from piece


def _pieces(files: Iterator[_Given]) -> Iterator[list[_Given]]:
    while piece := list(islice(files, PIECE)):
        yield piece


def _batch(model: Runnable, waiting: list[_Readable | Unreadable], top: int) -> Iterator[Prediction | Unreadable]:
    pixels = [each.pixels for each in waiting if isinstance(each, _Readable)]
    answers = model.ask(np.stack(pixels)) if pixels else None
    if answers and not (finite := np.isfinite(answers.logits).all(1)).all():
        raise not_finite(f"output {answers.exits[finite.argmin()]}", "logits")
    rows = iter(zip(answers.probabilities, answers.exits, strict=True) if answers else ())
    for each in waiting:
        if isinstance(each, Unreadable):
            yield each
            continue
        probabilities, left = next(rows)
        best = np.argsort(-probabilities, kind="stable")[:top]
        classes, likely = (tuple(model.classes[c] for c in best), tuple(float(probabilities[c]) for c in best))
        yield Prediction(each.image, int(left), classes, likely, each.resized_from)


def _read(image: Path | Image.Image | Pixels, name: str, wanted: Preprocessing) -> _Readable | Unreadable:
    """An image as the model wants it, and its own size if that is another."""
    if isinstance(image, Path) and not image.exists():
        return Unreadable(name, "there is no such file")
    try:
        if isinstance(image, Path):
            pixels, size = decode_for(wanted.resize, image, name)
        else:
            with reading(name, "image"):
                pixels = pixels_of(image)
            size = (pixels.shape[0], pixels.shape[1])
    except (RuntimeError, OSError, MemoryError) as error:
        return Unreadable(name, one_line(error).removeprefix(f"{name}: "))
    return _Readable(name, wanted.seen(pixels), None if size == wanted.resize else size)
