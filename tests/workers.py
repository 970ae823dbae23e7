"""What workers of `processes.work_together` do in the tests: a module that a process of its own imports soon."""

import time
import warnings
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


def warn_twice(where, watch):
    """A worker that warns of what the others warn of too, and of itself, and then fails."""
    for said in ("of the data", f"of {where['threads']}"):
        warnings.warn(said, stacklevel=1)
    warnings.warn("of a library", FutureWarning, stacklevel=1)
    raise RuntimeError("failed")
