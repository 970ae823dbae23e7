"""SIGTERM, Ctrl-C and a hangup: raised, or held back until the work at hand is done and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", 0)  # which not every system has; a terminal that closes may send it twice


class Stopped(KeyboardInterrupt):
    """Somebody asked the program to stop, and it did in good order."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.status = 128 + number
        """exit status by convention: 130 for Ctrl-C, 143 for SIGTERM, 129 for a hangup"""


@contextmanager
def raised() -> Iterator[None]:
    """Within, SIGTERM and a hangup raise Stopped, as Ctrl-C raises KeyboardInterrupt: what was begun is cleared away.

    Outside the main thread, and where another handler than Python's is set, nothing changes; what is ignored (hangups
    under nohup) stays so.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if number == HANGUP:
            signal.signal(HANGUP, signal.SIG_IGN)
        raise Stopped(number, "stopped")

    in_main = threading.current_thread() is threading.main_thread()
    asking = (signal.SIGTERM, HANGUP) if in_main else ()
    usual = [number for number in asking if number and signal.getsignal(number) == signal.SIG_DFL]
    for number in usual:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in usual:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def held() -> Iterator[Callable[[], int]]:
    """Within, SIGTERM, Ctrl-C and a hangup are only noted: the function given says which, 0 if none.

    A second one acts at once, unless it is a hangup. What is ignored (hangups under nohup, Ctrl-C in the background of
    a script) stays so. Outside the main thread, where Python delivers no signals, none is held.
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
    asking = (signal.SIGINT, signal.SIGTERM, HANGUP) if in_main else ()
    heard = [number for number in asking if number and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield lambda: noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
