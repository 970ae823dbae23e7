"""What an error says, in a line; those that are told apart; and two that many functions raise."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from operator import index
from types import FrameType
from typing import SupportsIndex, get_args


def one_line(error: object) -> str:
    """All of its text, or its kind where it has none: for the errors of this program, which are short."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of its text, or its kind where it has none: for those of libraries, which go on for pages.

    (With the next one, where it ends in a colon.)
    """
    line, *more = str(error).strip().splitlines() or [type(error).__name__]
    if line.endswith(":") and more:
        line = f"{line} {more[0].strip()}"
    return line.rstrip(".")


def first_sentence(error: BaseException) -> str:
    """The first sentence of its first line: for those of libraries that go on with advice."""
    return first_line(error).split(". ")[0]


def check_choice(name: str, value: object, kind: object) -> None:
    """Raise ValueError unless a value is one of those of a Literal."""
    if value not in get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")


def whole_number(name: str, value: SupportsIndex, least: int | None = None) -> int:
    """A whole number of any kind, such as NumPy's, as Python's. Raises ValueError for what is none, or too small."""
    with suppress(TypeError):
        if not isinstance(value, bool) and (least is None or index(value) >= least):
            return index(value)
    raise ValueError(f"{name} must be a whole number{f', {least} or more' if least else ''}, got {value!r}")


class ExclusionError(ValueError):
    """Two fields of a recipe that exclude each other: `names`."""

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names


class DamagedError(RuntimeError):
    """A file is not as it was written: it stays unreadable, while other errors may pass."""


def warn(message: str) -> None:
    """Warn (UserWarning) at the line, outside of this package, that called into it."""
    frame: FrameType | None = sys._getframe()
    level = within = 0
    while frame is not None:
        level += 1
        name, frame = frame.f_globals.get("__name__", "").partition(".")[0], frame.f_back
        if name == "auxnet" or (name == "contextlib" and within == level - 1):  # which calls the body of `opened`
            within = level
    warnings.warn(message, stacklevel=within + 1)


class MisfitError(ValueError):
    """A part of a net gives or does something that an AuxNet cannot use."""


class DivergedError(RuntimeError):
    """A loss or a weight stopped being finite: the recipe's fault, not the machine's, so that it would come again."""
