"""Optuna, and its journal in a file: under a lock that dies with its process, repaired if one died while writing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from auxnet.errors import first_line

try:
    import optuna
except ModuleNotFoundError:
    raise RuntimeError("sweeps need Optuna, which is not installed: pip install optuna") from None
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

__all__ = ["BaseStorage", "database_errors", "journal", "optuna"]


def journal(path: Path) -> JournalStorage:
    """The storage in this file, made if need be."""
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_Lock(path)))


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn the failure of a database, inside the block, into a RuntimeError that says why in a line."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        why = first_line(error.__cause__ or error)
        raise RuntimeError(f"the database fails ({why}): the same command again goes on with the sweep") from error


class _Lock(JournalFileOpenLock):
    """The right to write. Optuna's own lock outlives a process that is killed, and holds up all others for 30 s."""

    def __init__(self, path: Path) -> None:
        self._journal, self._lock = path, FileLock(path.with_suffix(".lock"))

    def acquire(self) -> bool:
        """Wait for the lock, and cut off an unfinished last line, left by a process that died while writing it."""
        self._lock.acquire()
        with self._journal.open("rb+") as file:
            content_ends = file.seek(0, os.SEEK_END)
            file.seek(max(content_ends - 1, 0))
            if file.read(1) not in (b"\n", b""):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let others write."""
        self._lock.release()
