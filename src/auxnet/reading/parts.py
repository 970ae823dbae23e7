"""One split of a data set as it is on disk: its files, and how they are read. Each form of data has a class of its own.

Shapes: H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from auxnet.reading.arrays import Arrays
from auxnet.reading.cache import cached
from auxnet.reading.encoded import Encoded
from auxnet.reading.pictures import DECODER, Frame, arrays_resized


class Part(ABC):
    """One split as it is on disk."""

    form: str
    """what the arrays depend on besides the files, the frame and the decoder"""
    left_out: tuple[str, ...] = ()
    """the images that are not among the files, each as "where: why" """
    holds_arrays = False
    """whether the files hold the arrays themselves: the cache then keeps arrays only if a frame changed their size"""

    @property
    @abstractmethod
    def files(self) -> Sequence[Path | str]:
        """The files of the split; none for a data set that comes with a library."""

    @abstractmethod
    def read_uncached(self, frame: Frame | None = None) -> Arrays:
        """Read the arrays from the files, and bring them to a frame if there is one."""

    def read(self, frame: Frame | None) -> Arrays:
        """The arrays, brought to a frame if there is one: from the cache if they are in it."""
        files, read = self.files, partial(self.read_uncached, frame)
        if not files or (self.holds_arrays and not frame):
            return read()
        return cached(files, self.key(frame), read, partial(self.is_stale, frame), self.holds_arrays)

    def key(self, frame: Frame | None) -> str:
        """What the arrays depend on besides the files: their key in the cache."""
        return f"{self.form} {frame} {DECODER}" if frame else self.form

    def is_stale(self, frame: Frame | None, left_out: Sequence[str]) -> bool:
        """Whether an image that was left out of the arrays in the cache can be read now."""
        return False

    def no_labels(self) -> bool:
        """Whether none of the images is labelled."""
        return False


class ArraysPart(Part):
    """A split that `reader` reads as a whole: images of one size, which are not encoded one by one."""

    def __init__(self, files: Sequence[Path], form: str, reader: Callable[[], Arrays]) -> None:
        self._files, self.form, self._reader = files, form, reader

    @property
    def files(self) -> Sequence[Path]:
        """The files that `reader` reads."""
        return self._files

    def read_uncached(self, frame: Frame | None = None) -> Arrays:
        """The arrays of `reader`, brought to a frame if there is one."""
        return arrays_resized(self._reader(), frame)


class EncodedPart(Part):
    """A split of images that are encoded one by one, so that they can stay on disk until they are wanted."""

    def key(self, frame: Frame | None) -> str:
        """The key in the cache. It names the decoder even without a frame, because the pixels depend on it."""
        return f"{self.form} {frame} {DECODER}"

    @abstractmethod
    def encoded(self) -> Encoded:
        """The images on disk, each of which can be read by its number."""

    @abstractmethod
    def decoded_bytes(self, frame: Frame | None) -> int:
        """The memory that the images would take, brought to a frame, if all are coloured; 0 if none can be read."""

    @abstractmethod
    def shapes(self) -> list[tuple[int, int]]:
        """(H, W) of some of the images, as they are in their files."""
