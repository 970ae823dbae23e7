"""A look at every image of a set on disk, once, before the set is streamed: damage, size, brightness.

A training then meets no damage halfway, and the mean and the standard deviation of any part of the set are known
exactly. The survey takes as long as an epoch without a net, and is kept in the cache.

Shapes: N images, H x W pixels, C channels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auxnet.reading.ahead import ahead
from auxnet.reading.arrays import Pixels
from auxnet.reading.cache import Content, Entry, entry
from auxnet.reading.encoded import Encoded
from auxnet.reading.pictures import DECODER, Frame, check_size, damage_or_raise, decode

PIECE = 64  # images looked at by one process at a time
PAUSE = 60.0  # seconds between two log lines that say how far the survey is


class Survey(NamedTuple):
    """What is known of a set of N images."""

    image_shape: tuple[int, int, int]
    """(H, W, C); C = 1 if all are grey"""
    kept: NDArray[np.int64]
    """the positions of the n images that can be read, int64 [n]"""
    sums: NDArray[np.int64]
    """for each of these images the sums of its pixels and of their squares, int64 [n, 2, C]"""
    left_out: tuple[str, ...]
    """the images that cannot be read, each as "where: why" """


class _Look(NamedTuple):
    """What is known of a few images, in order."""

    shapes: list[tuple[int, ...] | None]
    sums: NDArray[np.int64]
    left_out: list[str]


def survey(encoded: Encoded, files: Sequence[Path | str], frame: Frame | None, workers: int) -> Survey:
    """The survey of all images: from the cache if it knows these `files`, else made by `workers` processes.

    Raises ValueError for images of different sizes, RuntimeError if none can be read or a process died.
    """

    def stale(known: Entry) -> bool:
        lost = np.setdiff1d(np.arange(len(encoded.labels)), known.arrays["kept"]).tolist()
        return any(_look(encoded, frame, lost).shapes)  # the cause may have been too little memory

    key = f"survey {frame} {DECODER}"
    _, arrays, facts = entry(files, key, lambda _: _look_at_all(encoded, frame, workers), stale=stale)
    H, W, C = facts["image_shape"]
    return Survey((H, W, C), arrays["kept"], arrays["sums"], tuple(facts["left_out"]))


def _look_at_all(encoded: Encoded, frame: Frame | None, workers: int) -> Content:
    count, left_out = len(encoded.labels), []
    kept, sums, colour = np.zeros(count, bool), np.zeros((count, 2, 3), np.int64), False
    wanted: tuple[int, ...] = ()
    first = ""
    told = time.monotonic()
    pieces = [range(start, min(start + PIECE, count)) for start in range(0, count, PIECE)]
    with closing(ahead(partial(_look, encoded, frame), pieces, workers, 4 * workers + 1)) as looks:
        for piece, look in zip(pieces, looks, strict=True):
            if time.monotonic() - told >= PAUSE:
                told = time.monotonic()
                logging.getLogger(__name__).info("looked at %s of %s images", f"{piece.stop:,}", f"{count:,}")
            left_out += look.left_out
            sums[piece.start : piece.stop] = look.sums
            for index, shape in zip(piece, look.shapes, strict=True):
                if shape is not None:
                    if not first:
                        wanted, first = shape[:2], encoded.name(index)
                    check_size(shape, encoded.name(index), wanted, first)
                    kept[index], colour = True, colour or shape[2] == 3
    if not kept.any():
        raise RuntimeError(left_out[0])
    channels = 3 if colour else 1
    facts = {"image_shape": (*wanted, channels), "left_out": left_out}
    return {"kept": np.flatnonzero(kept), "sums": sums[kept, :, :channels]}, facts


def _look(encoded: Encoded, frame: Frame | None, piece: Sequence[int]) -> _Look:
    shapes: list[tuple[int, ...] | None] = []
    sums, left_out = np.zeros((len(piece), 2, 3), np.int64), []
    for place, index in enumerate(piece):
        try:
            pixels = decode(encoded.open(index), encoded.name(index), frame)
        except RuntimeError as error:
            shapes.append(None)
            left_out.append(damage_or_raise(error))
        else:
            shapes.append(pixels.shape)
            sums[place] = sums_of(pixels)
    return _Look(shapes, sums, left_out)


def sums_of(pixels: Pixels) -> NDArray[np.int64]:
    """The sums of pixels [..., C] and of their squares, over all but the channels: int64 [2, C]; exact."""
    counts = [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(pixels.shape[-1])]
    levels = np.arange(256)
    return np.stack([levels, levels * levels]) @ np.array(counts).T
