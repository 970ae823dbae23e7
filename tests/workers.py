"""What workers of `processes.work_together` do in the tests: a module that a process of its own imports soon."""

import time
from pathlib import Path


def wait(where, watch):
    """Say that it is at work, wait until it is stopped, and put back what it had in hand."""
    try:
        Path(where["folder"], "begun").touch()
        time.sleep(600)
    finally:
        Path(where["folder"], "put back").touch()


def end(where, watch):
    """Find nothing left to do."""
    Path(where["folder"], "ended").touch()
