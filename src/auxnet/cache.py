"""The cache of decoded arrays: what was read once is not read again while its files stay the same.

It holds no pickles, an entry is there whole or not at all, and a damaged one is made anew.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from auxnet.arrays import VERSION, Arrays


def cached(files: Sequence[Path], key: str, read: Callable[[], Arrays]) -> Arrays:
    """What `read` makes of the files: from the cache if they have not changed since, else read and put there.

    `key` says what, beside the files, the arrays depend on. The cache is $AUXNET_CACHE, or else ~/.cache/auxnet.
    """
    found = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = sha256(json.dumps([VERSION, key, sorted(found)]).encode()).hexdigest()
    entry = Path(os.environ.get("AUXNET_CACHE") or "~/.cache/auxnet").expanduser() / digest[:32]
    try:
        about = json.loads((entry / "about.json").read_text())
        images = np.load(entry / "images.npy", allow_pickle=False)
        labels = np.load(entry / "labels.npy", allow_pickle=False)
        if about["crc32"] == [zlib.crc32(images), zlib.crc32(labels)]:
            return Arrays(images, labels, tuple(about["classes"]))
    except Exception:  # not there, or damaged in whatever way: made anew
        pass
    arrays = read()
    _remember(entry, arrays)
    return arrays


def _remember(entry: Path, arrays: Arrays) -> None:
    """Put arrays into the cache, whole or not at all; a cache that cannot be written is done without."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, ignore_cleanup_errors=True) as folder:
            half = Path(folder) / "entry"
            half.mkdir()
            np.save(half / "images.npy", arrays.images, allow_pickle=False)
            np.save(half / "labels.npy", arrays.labels, allow_pickle=False)
            crc32 = [zlib.crc32(arrays.images.data), zlib.crc32(arrays.labels.data)]
            (half / "about.json").write_text(json.dumps({"crc32": crc32, "classes": arrays.classes}))
            shutil.rmtree(entry, ignore_errors=True)  # a damaged one, if any
            os.replace(half, entry)
    except OSError:  # no room, no permission, or another process was first
        pass
