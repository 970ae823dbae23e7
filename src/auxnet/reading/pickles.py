"""Pickles of CIFAR's batches, read without trust: numbers, strings, lists, dictionaries, uint8 arrays, nothing else.

No foreign code runs, opcodes that these files do not need are refused, and small files take little memory: a pickle
could ask for memory that it does not fill, or turn few bytes into many by referring to them again.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from auxnet.reading.arrays import Pixels

MOST_STEPS = 2**20  # the largest real file, CIFAR-100's training batch, takes some 200,000


def unpickle(data: bytes) -> dict[str, Any]:
    """What a pickled dictionary holds: keys become str, arrays `PickledArray`, tuples lists.

    Raises an error of any kind if the pickle is damaged or asks for more: call it within `arrays.reading`.
    """
    return {text(key): value for key, value in _NumbersOnly(data).load().items()}


def text(value: str | bytes) -> str:
    """A key or a name as str. Raises ValueError if it is longer than any of CIFAR's."""
    if len(value) > 1000:
        raise ValueError(f"a name of {len(value)} characters")
    return _bytes(value).decode()


def _bytes(value: str | bytes) -> bytes:
    """Bytes, given as such or as the string that Python 3 writes for them in the protocols of Python 2."""
    return value if isinstance(value, bytes) else value.encode("latin1")


class _NumbersOnly(pickle._Unpickler):
    """The unpickler in Python: the one in C allocates what a number in the file asks for, before it reads on."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self.dispatch = _Steps()  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        """Stand-ins for the four names that a pickled uint8 array needs; any other name is refused."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: PickledArray()
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"
        if (module, name) == ("numpy", "dtype"):
            return lambda code, *_: _PickledType(code)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: text  # _bytes encodes it when it is used
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR's files do not need")


class _Steps(dict[int, Callable[[Any], None]]):
    """What each opcode that CIFAR's files are made of does, for a limited number of steps.

    Tuples are made lists, which no dictionary takes as a key: to hash tuples of tuples of tuples takes for ever.
    """

    OPCODES = (
        pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.POP + pickle.NONE + pickle.NEWTRUE
        + pickle.NEWFALSE + pickle.INT + pickle.BININT + pickle.BININT1 + pickle.BININT2 + pickle.LONG + pickle.LONG1
        + pickle.STRING + pickle.BINSTRING + pickle.SHORT_BINSTRING + pickle.BINBYTES + pickle.SHORT_BINBYTES
        + pickle.UNICODE + pickle.BINUNICODE + pickle.SHORT_BINUNICODE + pickle.EMPTY_LIST + pickle.LIST
        + pickle.APPEND + pickle.APPENDS + pickle.EMPTY_DICT + pickle.DICT + pickle.SETITEM + pickle.SETITEMS
        + pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE + pickle.GET + pickle.BINGET
        + pickle.LONG_BINGET + pickle.GLOBAL + pickle.STACK_GLOBAL + pickle.REDUCE + pickle.BUILD
    )  # fmt: skip

    def __init__(self) -> None:
        known = pickle._Unpickler.dispatch
        super().__init__((code, known[code]) for code in self.OPCODES)
        self[pickle.EMPTY_TUPLE[0]], self[pickle.TUPLE[0]] = known[pickle.EMPTY_LIST[0]], known[pickle.LIST[0]]
        for length, code in enumerate(pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3, start=1):
            self[code] = partial(_gather, length)
        self.left = MOST_STEPS

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it takes more than {MOST_STEPS:,} steps, which CIFAR's files do not")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise pickle.UnpicklingError(f"it has an opcode {bytes([code])!r}, which CIFAR's files do not need")


def _gather(length: int, unpickler: Any) -> None:
    """Make the upmost values of the stack one list."""
    if len(unpickler.stack) < length:
        raise pickle.UnpicklingError("its stack is empty")
    unpickler.stack[-length:] = [unpickler.stack[-length:]]


class _PickledType:
    """Stands in for a numpy.dtype: its code alone."""

    def __init__(self, code: str | bytes) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: nothing that a uint8 needs."""


class PickledArray:
    """Stands in for a numpy.ndarray of uint8. Its state is checked only when the pixels are asked for."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> Pixels:
        """The array. Raises an error of any kind if the pickle does not hold one."""
        _, shape, kind, fortran, data = self.state
        if text(kind.code) != "u1":
            raise pickle.UnpicklingError(f"an array of {text(kind.code)} where CIFAR has u1")
        return np.frombuffer(_bytes(data), np.uint8).reshape(shape, order="F" if fortran else "C")
