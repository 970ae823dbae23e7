"""A cache of what is made from a data set's files: it is made again only if the files change.

An entry is a folder with one .npz file (arrays, and JSON about them, under zip's checksums) and with files that are too
large for memory. It holds no pickles, is there whole or not at all, is made by one process at a time, and is made again
if it is damaged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from auxnet.files import expanduser
from auxnet.reading.arrays import VERSION, Arrays

KEPT_DAYS, _DAY = 30, 24 * 3600  # since an entry was last used; seconds
_FILE, _ABOUT = "entry.npz", "about"
_ENTRY = r"([0-9a-f]{32})(-\w+)?"  # with a suffix: half made, as when the process is killed


class Entry(NamedTuple):
    """What the cache holds for some files: arrays by name, facts, and the folder of the larger files."""

    folder: Path
    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]


Content = tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]
"""what an entry is made from: arrays by name, and facts that JSON can hold"""


def cached(
    files: Sequence[Path | str],
    key: str,
    read: Callable[[], Arrays],
    stale: Callable[[Sequence[str]], bool] = lambda left_out: False,
    hold_arrays: bool = False,
) -> Arrays:
    """The arrays that `read` makes from the files: from the cache if the files have not changed, else read and stored.

    `key` says what the arrays depend on besides the files, `stale` whether an image that was left out can be read now.
    With `hold_arrays` the files hold the arrays already: they are cached only if a frame changed their size.
    """

    def make(folder: Path) -> Content:
        images, labels, classes, left_out, size = read()
        return {"images": images, "labels": labels}, {"classes": classes, "left_out": left_out, "size": size}

    def keep(made: Content) -> bool:
        return not hold_arrays or made[1]["size"] != made[0]["images"].shape[1:3]

    _, arrays, facts = entry(files, key, make, stale=lambda known: stale(known.facts["left_out"]), keep=keep)
    classes, left_out = tuple(facts["classes"]), tuple(facts["left_out"])
    size = facts.get("size")  # old entries do not have it
    return Arrays(arrays["images"], arrays["labels"], classes, left_out, size and (size[0], size[1]))


def entry(
    files: Sequence[Path | str],
    key: str,
    make: Callable[[Path], Content],
    large: bool = False,
    stale: Callable[[Entry], bool] = lambda known: False,
    keep: Callable[[Content], bool] = lambda made: True,
) -> Entry:
    """The entry of these files and this key: from the cache, or made by `make` if there is none or a `stale` one.

    What `make` returns is stored if `keep` says so.

    A `large` entry also has files, which `make` writes into the folder that it is given. If the cache cannot be
    written, a large entry raises OSError; any other is returned without being stored. The cache is $AUXNET_CACHE, or
    else ~/.cache/auxnet. Whenever an entry is added, entries not used for `KEPT_DAYS` are removed. Raises
    FileNotFoundError for a file that is gone.
    """
    home = expanduser(os.environ.get("AUXNET_CACHE") or "~/.cache/auxnet")
    if home.parts[:1] == ("~",):  # the user has no home folder, as in containers
        if large:
            raise OSError("there is no home folder to keep a cache in: name another by AUXNET_CACHE")
        return Entry(home, *map(dict, make(home)))
    place = home / _digest(files, key)
    with suppress(Exception):  # missing, or damaged in whatever way: made again
        return _recalled(place, stale)
    with _alone(place):
        with suppress(Exception):  # another process made it while this one waited
            return _recalled(place, stale)
        if large:
            return _kept(place, make)
        arrays, facts = made = make(place)
        with suppress(OSError):
            if keep(made):
                return _kept(place, lambda _: made)
        return Entry(place, dict(arrays), dict(facts))


def _digest(files: Sequence[Path | str], key: str) -> str:
    digest = sha256(json.dumps([VERSION, key]).encode())
    found = {path: _stat(path) for path in sorted(map(os.path.abspath, files))}
    alike = Counter((each.st_size, each.st_mtime_ns) for each in found.values())
    for path, each in found.items():
        seen = f"{each.st_size}\0{each.st_mtime_ns}"
        # Files of one size and time may have swapped names, and a single file may have been replaced by one of its
        # size and time (tar and cp -a set the modification time): the change time shows both.
        if alike[each.st_size, each.st_mtime_ns] > 1 or len(found) == 1:
            seen += f"\0{each.st_ctime_ns}"
        digest.update(os.fsencode(path) + f"\0{seen}\n".encode())
    return digest.hexdigest()[:32]


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is a link to nothing, or was removed: fetch it, or remove it") from None


def _recalled(place: Path, stale: Callable[[Entry], bool]) -> Entry:
    used(place)  # first, so that no other process prunes it while it is read
    arrays = _read(place / _FILE)
    about = json.loads(arrays.pop(_ABOUT).tobytes())
    if about["sizes"] != {name: (place / name).stat().st_size for name in about["sizes"]}:
        raise ValueError(f"{place} is damaged")
    known = Entry(place, arrays, about["facts"])
    if stale(known):
        raise ValueError(f"{place} is stale")
    return known


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file. Raises ValueError or BadZipFile if any byte of one has changed.

    Each is read to the end of its zip member, where zip checks the checksum: NumPy's own reader stops where a damaged
    header says that the array ends.
    """
    arrays = {}
    with ZipFile(path) as file:
        for name in file.namelist():
            with file.open(name) as member:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
                if member.read(1):
                    raise ValueError(f"{name} in {path} is longer than its header says")
    return arrays


def _kept(place: Path, make: Callable[[Path], Content]) -> Entry:
    """Store a new entry, whole or not at all. One process at a time may call this: it removes half-made entries."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for half_done in place.parent.glob(f"{place.name}-*"):
        shutil.rmtree(half_done, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{place.name}-", dir=place.parent, ignore_cleanup_errors=True) as room:
        half = Path(room) / "entry"
        half.mkdir()
        arrays, facts = make(half)
        sizes = {file.name: file.stat().st_size for file in half.iterdir()}
        about = np.frombuffer(json.dumps({"facts": facts, "sizes": sizes}).encode(), np.uint8)
        content: dict[str, Any] = {**arrays, _ABOUT: about}
        np.savez(half / _FILE, **content)
        shutil.rmtree(place, ignore_errors=True)  # a damaged one, if any
        os.replace(half, place)
    _prune(place.parent)
    return Entry(place, dict(arrays), dict(facts))


def used(place: Path) -> None:
    """Note, at most once a day, that an entry is in use, so that it is not pruned."""
    with suppress(OSError):  # missing, or the cache is read-only
        if place.stat().st_mtime < time.time() - _DAY:
            os.utime(place)


def _prune(home: Path) -> None:
    """Remove the entries not used for `KEPT_DAYS`, except those that a process is making."""
    long_ago = time.time() - KEPT_DAYS * _DAY
    for place in home.iterdir():
        with suppress(OSError, Timeout):  # another process is removing or making it
            if (known := re.fullmatch(_ENTRY, place.name)) and _is_entry(place) and place.stat().st_mtime < long_ago:
                with FileLock(home / f"{known[1]}.lock", timeout=0):
                    if place.stat().st_mtime < long_ago:
                        shutil.rmtree(place, ignore_errors=True)


def _is_entry(place: Path) -> bool:
    """Whether a folder is an entry, whole or half made: $AUXNET_CACHE may hold folders of other programs."""
    names = {path.name for path in place.iterdir()}
    return _FILE in names or names <= {"entry"}


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep other processes from making this entry during the block; without a lock if the cache cannot be written."""
    lock = FileLock(f"{place}.lock")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
