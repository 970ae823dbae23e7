"""Error text in one line, this package's exceptions, and checks of arguments that many functions share."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from numbers import Real
from operator import index
from types import FrameType
from typing import Any, SupportsIndex, get_args


def one_line(error: object) -> str:
    """All of an error's text, or its type if it has none: for the errors of this program, which are short."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters, as in a file's name, become escapes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type if it has none: for libraries' errors, which can fill pages.

    (With the next line too, if it ends in a colon.)
    """
    line, *more = str(error).strip().splitlines() or [type(error).__name__]
    if line.endswith(":") and more:
        line = f"{line} {more[0].strip()}"
    return line.rstrip(".")


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's first line: for libraries' errors that continue with advice."""
    return first_line(error).split(". ")[0]


def check_choice(name: str, value: object, kind: object) -> None:
    """Raise ValueError unless a value is one of a Literal's values."""
    if value not in get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")


def whole_number(name: str, value: SupportsIndex, least: int | None = None) -> int:
    """A whole number of any type, such as NumPy's, as an int. Raises ValueError if it is none, or below `least`."""
    with suppress(TypeError):
        if not isinstance(value, bool) and (least is None or index(value) >= least):
            return index(value)
    raise ValueError(f"{name} must be a whole number{f', {least} or more' if least else ''}, got {value!r}")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless a value is a difference of errors, as a fraction: 0.5 or more was meant in points."""
    if not (is_number(value) and 0 <= value < 0.5):
        raise ValueError(
            f"{name} must be a share of images below 0.5 (0.005 is half a percentage point), got {value!r}"
        )


def check_limit(name: str, value: float) -> None:
    """Raise ValueError for a limit on a cost that nothing could meet."""
    if not (is_number(value) and 0 < value < float("inf")):
        raise ValueError(f"{name} must be above 0 and finite, got {value!r}; leave it out for no limit")


def is_number(value: object) -> bool:
    """Whether a value is a number of any kind, such as NumPy's, but no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


@contextmanager
def error_prefix(what: str) -> Iterator[None]:
    """Begin a ValueError of the block with what it is about: a file, a variant of a study, a backbone."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


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
        if name == "auxnet" or (name == "contextlib" and within == level - 1):  # contextlib calls the body of `opened`
            within = level
    warnings.warn(message, stacklevel=within + 1)


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Show each different warning of the block once: Python forgets which it showed (`catch_warnings`)."""
    show, shown = warnings.showwarning, set()

    def show_once(message: Warning | str, *where: Any, **more: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            show(message, *where, **more)

    warnings.showwarning = show_once
    try:
        yield
    finally:
        warnings.showwarning = show


def not_finite(part: str, gives: str) -> RuntimeError:
    """The error for a net, part of which gives values (logits, ...) that are not finite."""
    return RuntimeError(f"{part} gives {gives} that are not finite: has it diverged?")


class TooLittleMemoryError(ValueError):
    """This machine lacks the memory that a training needs; another may have it."""


class MisfitError(ValueError):
    """A part of a net gives or does something that an AuxNet cannot use."""


class DivergedError(RuntimeError):
    """A loss or a weight stopped being finite: the recipe's fault, not the machine's, so it would happen again."""
