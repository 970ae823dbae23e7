"""The arrays that every reader of a data set returns, and the one error it raises for damaged content.

Shapes: N images, H x W pixels, C channels (1 grey, 3 red-green-blue).
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from auxnet.errors import first_line

Pixels = NDArray[np.uint8]

VERSION = 6  # raise it when the readers return other arrays than before: older entries of the cache are then not used


class Arrays(NamedTuple):
    """Images, uint8 [N, H, W, C]; labels, int64 [N] in 0..len(classes)-1; the names of the classes."""

    images: Pixels
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """the images that could not be read, each as "where: why" """
    size: tuple[int, int] | None = None
    """(H, W) that arrays had before they were brought to a frame"""


def check_unpacked(unpacked: int, size: int) -> None:
    """Raise ValueError for a file of `size` bytes that declares far more of content."""
    if unpacked > max(2**28, 100 * size):
        raise ValueError(f"it declares {unpacked:,} bytes of content in {size:,} bytes")


def labels_of(
    values: Sequence[Any], classes: tuple[str, ...], where: str | Path
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as int64, and the names of the classes: those given, or else the distinct labels, sorted.

    Raises RuntimeError for the first label that has no class, or is neither a string nor a whole number from 0.
    """
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise RuntimeError(f"{where}: two classes are named {_shown(twice)}: give each a name of its own")
    texts = isinstance(next((value for value in values if value is not None), None), str) and not classes
    highest = len(classes) - 1 if classes else 2**31
    for row, value in enumerate(values):
        number = isinstance(value, int | float) and value % 1 == 0 and 0 <= value <= highest
        if not (isinstance(value, str) if texts else number):
            negative = isinstance(value, int) and value < 0
            mend = ": number the classes from 0, and leave out images without a label" if negative else ""
            mend = ": leave out images without a label" if value is None or value != value else mend
            rule = "a text, as the others are" if texts else f"a whole number in 0..{highest}"
            raise RuntimeError(f"{where}: label {_shown(value)} in row {row} must be {rule}{mend}")
    if classes:
        return np.array(values, np.int64), classes
    names = sorted(set(values))
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[value] for value in values], np.int64)
    return labels, tuple(name if texts else str(int(name)) for name in names)


def unlabelled(values: Iterable[Any]) -> bool:
    """Whether no image has a label: all are -1 or null, as in test sets whose labels are withheld."""
    return all(value is None or value == -1 for value in values)


def is_name(value: object) -> bool:
    """Whether a class may have this name: a string, not empty, that UTF-8 can encode (no half characters)."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _shown(value: object) -> str:
    """A value as an error message shows it: in a few words, however large it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes out no number of more than 4300 digits
        return f"(a huge {type(value).__name__})"


@contextmanager
def reading(where: str | Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while reading foreign bytes into one error: RuntimeError, naming the file."""
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        raise RuntimeError(f"{where}: not a readable {what} ({reason})") from error
