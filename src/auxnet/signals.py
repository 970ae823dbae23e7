"""SIGTERM, Ctrl-C and a hangup: raised, or held back until the work at hand is done and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", 0)  # which not every system has; a terminal that closes may send it twice
_left = 0  # a signal that `held` noted


class Stopped(KeyboardInterrupt):
    """The program was asked to stop, and stopped in good order."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.status = 128 + number
        """exit status by convention: 130 for Ctrl-C, 143 for SIGTERM, 129 for a hangup"""


@contextmanager
def raised() -> Iterator[None]:
    """Inside the block, SIGTERM and a hangup raise Stopped, as Ctrl-C raises KeyboardInterrupt, so that clean-up runs.

    Nothing changes outside the main thread, nor for a signal with a handler other than the system's default: ignored
    signals (hangups under nohup) stay ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if number == HANGUP:
            signal.signal(HANGUP, signal.SIG_IGN)
        raise Stopped(number, "stopped")

    with _handled(stop, *(n for n in (signal.SIGTERM, HANGUP) if n and signal.getsignal(n) == signal.SIG_DFL)):
        yield


@contextmanager
def held(at_once: Callable[[], str] = lambda: "stopped at once") -> Iterator[Callable[[], int]]:
    """Inside the block, SIGTERM, Ctrl-C and a hangup are only noted: the function yielded says which, 0 if none.

    A second signal, unless it is a hangup, raises Stopped, with the message of `at_once`. Ignored signals (hangups
    under nohup, Ctrl-C in the background of a script) stay ignored. Outside the main thread, where Python delivers no
    signals, none is held.
    """
    global _left
    noted = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted and number == HANGUP:
            return
        if noted:
            raise Stopped(number, at_once())
        noted = number

    asking = (signal.SIGINT, signal.SIGTERM, HANGUP)
    try:
        with _handled(note, *(n for n in asking if n and signal.getsignal(n) != signal.SIG_IGN)):
            yield lambda: noted
    finally:
        _left = _left or noted


@contextmanager
def raised_after() -> Iterator[None]:
    """After the block, raise Stopped for a signal that `held` noted inside but an error kept from being obeyed."""
    global _left
    if _in_main():
        _left = 0
    yield
    if _in_main() and _left:
        raise Stopped(_left, "stopped")


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Inside the block, these signals call the handler; outside the main thread, which gets none, nothing changes."""
    before = {number: signal.signal(number, handler) for number in numbers if _in_main()}
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def _in_main() -> bool:
    return threading.current_thread() is threading.main_thread()
