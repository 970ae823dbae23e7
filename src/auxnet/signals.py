"""SIGTERM and Ctrl-C, held back until the work at hand is done and saved."""

from __future__ import annotations

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
