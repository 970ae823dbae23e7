"""SIGTERM, Ctrl-C and a hangup, held back until the work at hand is done and saved, or modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

HANGUP = getattr(signal, "SIGHUP", 0)  # which not every system has; a terminal that closes may send it twice


class Stopped(KeyboardInterrupt):
    """Somebody asked the program to stop, and it did in good order."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.status = 128 + number
        """exit status by custom: 130 for Ctrl-C, 143 for SIGTERM, 129 for a hangup"""


@contextmanager
def after_imports() -> Iterator[None]:
    """Within, Ctrl-C, SIGTERM and a hangup are a KeyboardInterrupt, so that what was begun is cleared away.

    In the middle of an import they wait for its end; a second one ends the process at once. (A KeyboardInterrupt there
    leaves half a module behind, or is swallowed: torch takes whatever numpy's import raises for numpy's absence.)
    Outside the main thread, and where another handler than Python's is set, nothing changes; what is ignored (Ctrl-C in
    a shell's background, hangups under nohup) stays so.
    """
    waiting = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        again = number == signal.SIGALRM  # asked by the timer below
        if number == HANGUP:
            signal.signal(HANGUP, signal.SIG_IGN)
        if waiting and not again:
            os._exit(128 + number)
        waiting = waiting if again else number
        if _importing(frame):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            return
        asked, waiting = waiting, 0
        raise KeyboardInterrupt if asked == signal.SIGINT else Stopped(asked, "stopped")

    settable = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    usual: dict[int, Any] = dict.fromkeys((signal.SIGTERM, signal.SIGALRM, *_hangup()), signal.SIG_DFL)
    usual[signal.SIGINT] = signal.default_int_handler
    if not (settable and all(signal.getsignal(number) in (usual[number], signal.SIG_IGN) for number in usual)):
        yield
        return
    handled = [number for number in usual if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _hangup() -> list[int]:
    """A hangup, where there is such a signal and it is not ignored, as under nohup."""
    return [HANGUP] if HANGUP and signal.getsignal(HANGUP) != signal.SIG_IGN else []


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextmanager
def held() -> Iterator[Callable[[], int]]:
    """Within, SIGTERM, Ctrl-C and a hangup are only noted: the function given says which, 0 if none.

    A second one acts at once, unless it is a hangup. Outside the main thread, where Python delivers no signals, none is
    held.
    """
    noted = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted and number == HANGUP:
            return
        if noted:
            raise Stopped(number, "stopped at once, in the middle of a step")
        noted = number

    in_main = threading.current_thread() is threading.main_thread()
    asking = (signal.SIGINT, signal.SIGTERM, *_hangup()) if in_main else ()
    before = {number: signal.signal(number, note) for number in asking}
    try:
        yield lambda: noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
