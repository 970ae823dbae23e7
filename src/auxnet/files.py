"""Files that are whole or not there, locks that die with the process that holds them, and paths with ~."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from auxnet.errors import warn


def expanduser(path: Path | str) -> Path:
    """A path with the home folder in place of ~ or ~name at its beginning; as it is if that home is not known."""
    return Path(os.path.expanduser(path))


def whole_path(path: Path | str) -> Path:
    """The path by which this is found from any folder: links to folders are followed, a file keeps its own name.

    A link to a file may lead to a name that says nothing: git-annex, DVC and the hub's cache keep files by checksum.
    """
    path = Path(path)
    return path.resolve() if os.path.isdir(path) else path.parent.resolve() / path.name


def to_write(out: Path | str) -> Path:
    """The path of what is to be written. Raises ValueError for ~, which would become a folder of that name."""
    if not isinstance(out, str | os.PathLike):
        raise TypeError(f"out must be a path, got {out!r}")
    if (meant := expanduser(out)) != Path(out):
        raise ValueError(f"out must be a path with ~ written out, got {str(out)!r}: give {str(meant)!r}")
    return Path(out)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to, moved to `path` once it is complete and on the disk."""
    partial = path.with_name(f".{path.name}.{uuid4().hex[:12]}.partial")  # containers on one disk may share process ids
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, partial, str(partial)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error  # of the file that was asked for
    finally:
        with suppress(OSError):  # a read-only disk raises even if the file is not there
            partial.unlink(missing_ok=True)


def unwritable(folder: Path) -> str | None:
    """The system's reason why no file can be made in a folder; None if one can."""
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror
    return None


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk too, if the system can do that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def claimed(path: Path) -> FileLock | None:
    """The lock of this file, now held by this process; None if another holds it."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def is_held(path: Path) -> bool:
    """Whether some process holds the lock of this file."""
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except OSError as error:  # its disk may be read-only: then nobody holds it
        return isinstance(error, Timeout)


def json_text(content: Any) -> str:
    """JSON that people can read too: indented, but a list of numbers is one line."""
    text = json.dumps(content, indent=2)  # no string in it holds a newline
    return re.sub(r"\[\n((?:[\s\d.,e+-]|null)+)\]", lambda found: f"[{' '.join(found[1].split())}]", text)


def write_json(path: Path, content: Any) -> None:
    """Write `json_text`."""
    write_text(path, json_text(content) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text; a byte of a file name that is not UTF-8 becomes \\udc and its two hex digits, as in JSON."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV, by `write_text`."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def try_write_json(path: Path, content: Any) -> bool:
    """Write `json_text`, and return whether that succeeded: a disk that refuses it is warned of, not raised."""
    try:
        write_json(path, content)
    except OSError as error:
        warn(f"{path.name} is not written: {error.strerror or error}")
        return False
    return True
