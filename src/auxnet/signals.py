"""SIGTERM and Ctrl-C, held back until the work at hand is done and saved, or modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Somebody asked the program to stop, and it did in good order."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.status = 128 + number
        """exit status by custom: 130 for Ctrl-C, 143 for SIGTERM"""


@contextmanager
def after_imports() -> Iterator[None]:
    """Within, Ctrl-C in the middle of an import waits for its end; a second ends the process at once.

    A KeyboardInterrupt there leaves half a module behind, or is swallowed: torch takes whatever numpy's import raises
    for numpy's absence. Outside the main thread, and where another handler than Python's is set, nothing changes.
    """
    waiting = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if not _importing(frame):
            waiting = False
            raise KeyboardInterrupt
        if waiting and number == signal.SIGINT:
            os._exit(130)
        waiting = True
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # which asks again

    main = threading.current_thread() is threading.main_thread()
    if not (main and hasattr(signal, "setitimer") and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextmanager
def held() -> Iterator[Callable[[], int]]:
    """Within, SIGTERM and Ctrl-C are only noted: the function given says which, 0 if none. A second acts at once.

    Outside the main thread, where Python delivers no signals, none is held.
    """
    noted = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise Stopped(number, "stopped at once, in the middle of a step")
        noted = number

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield lambda: noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
