"""Processes that are killed in the middle of what they do to a folder, at whichever change one likes."""

import itertools
import multiprocessing
import os
import sys

ACTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
WRITING = os.O_WRONLY | os.O_RDWR


def killed_at(act, folder, work):
    """Do `work` in a process that dies, in no good order, right before the act-th change to what lies in `folder`.

    Says whether it died: False if it came to its end.
    """

    def run():
        acts = itertools.count(1)

        def watch(event, arguments):
            changes = event in ACTS or (event == "open" and arguments[2] & WRITING)
            if changes and str(folder) in str(arguments[0]) and next(acts) == act:
                os._exit(66)

        sys.addaudithook(watch)
        work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, 66)
    return process.exitcode == 66


def contents(folder):
    """What every file below holds."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
