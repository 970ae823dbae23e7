"""Small files that would become large, slow or code: made here, and read in a process of its own that is watched.

`python tests/bombs.py FOLDER` reads those that `write` made, under a limit on memory, and prints a line of JSON for
each: what came of it, how long it took, and by how many MB the process had grown at its largest.
"""

import gzip
import io
import json
import pickle
import resource
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from writers import CIFAR100, png, tiny

MB = 2**20
COUNT = 44


def write(home: Path, run: Path) -> None:
    """All of them, each in a folder below `home`; `run` is a run directory."""
    for name, content in _texts().items():
        _new(home / name).write_bytes(content)
    for name in ("recipe, 1 GB/recipe.yaml", "JSON, 1 GB/summary.json"):
        with _new(home / name).open("wb") as file:
            file.truncate(1000 * MB)  # takes no room on the disk
    for name, change in _networks().items():
        folder = _new(home / name / "config.json").parent
        config = json.loads((run / "config.json").read_text())
        config["network"] |= change
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    for name, header in (("declares", struct.pack("<Q", 2**60)), ("holds", struct.pack("<Q", 9 * MB) + b"[" * 9 * MB)):
        folder = _new(home / f"weights, the header {name} too much" / "config.json").parent
        (folder / "config.json").write_bytes((run / "config.json").read_bytes())
        (folder / "model.safetensors").write_bytes(header)
    for name, content in _images().items():
        _new(home / "image" / name).write_bytes(content)
    for name, content in _archives().items():
        _new(home / name / "cifar-10-binary.tar.gz").write_bytes(content)
    for name, content in _pickles().items():
        _new(home / name / "cifar-100-python" / "test").write_bytes(content)
        names = pickle.dumps({b"fine_label_names": [each.encode() for each in CIFAR100]}, 4)
        (home / name / "cifar-100-python" / "meta").write_bytes(names)
    for name, content in _mats().items():
        _new(home / name / "train_32x32.mat").write_bytes(content)
    _write_npz(home)
    _write_parquet(home)


def reader(path: Path) -> Callable[[], object]:
    """What reads the bomb in a folder or file."""
    from auxnet import documents, hub
    from auxnet.reading import cifar, npz, parquet, pictures, svhn
    from auxnet.recipe import read_recipe

    if path.parent.name == "image":
        return lambda: pictures.decode(path, str(path), pictures.Frame((32, 32)))
    if path.name == "cifar-100-python":
        return lambda: cifar.read(path, "cifar100", "test")
    if (path / "config.json").exists():
        return lambda: hub.load(path)
    return {
        ".yaml": lambda: read_recipe(path),
        ".json": lambda: documents.read_json(path),
        ".gz": lambda: cifar.read(path, "cifar10", "test"),
        ".mat": lambda: svhn.read(path),
        ".parquet": lambda: parquet.ShardsPart([path]).read_uncached(),
        ".npz": lambda: npz.read(path, npz.npz_splits(path)["train"]),
    }[path.suffix]


def _new(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _texts() -> dict[str, bytes]:
    laughs = ["data: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    laughs += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return {
        "recipe, a billion laughs/recipe.yaml": "\n".join(laughs).encode(),
        "recipe, nested 60,000 deep/recipe.yaml": b"[" * 60_000,
        "recipe, one key of 60 kB/recipe.yaml": b"? " + b"{a: " * 15_000,
        "JSON, nested 100,000 deep/summary.json": b"[" * 100_000 + b"]" * 100_000,
        "JSON, objects nested 100,000 deep/summary.json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "JSON, nested 900 deep/summary.json": b"[" * 900 + b"]" * 900,
        "JSON, a number of a million digits/summary.json": b"9" * 1_000_000,
    }


def _networks() -> dict[str, dict[str, int]]:
    return {
        "network, 6e9 layers": {"depth": 6 * 10**9 + 2},
        "network, a million times as wide": {"width": 10**6},
        "network, wide beyond all numbers": {"width": 10**400},
        "network, 1e12 classes": {"num_classes": 10**12},
        "network, 6e9 layers and outputs": {"depth": 6 * 10**9 + 2, "outputs": 10**9},
    }


def _images() -> dict[str, bytes]:
    """Images that say, in a few hundred bytes, that they are 60,000 x 60,000; and one that is 10,000 x 10,000."""

    def small(form: str) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (0x1234, 1), (1, 2, 3)).save(file, form)
        return file.getvalue()

    size = 60_000
    bombs = {
        "a.gif": small("GIF").replace(struct.pack("<HH", 0x1234, 1), struct.pack("<HH", size, size)),
        "a.jpg": small("JPEG").replace(struct.pack(">HH", 1, 0x1234), struct.pack(">HH", size, size)),
        "a.bmp": small("BMP").replace(struct.pack("<ii", 0x1234, 1), struct.pack("<ii", size, size)),
        "a.ppm": small("PPM").replace(b"4660 1\n", b"60000 60000\n"),
    }
    tiff = small("TIFF")
    for tag, value in ((256, 0x1234), (257, 1)):  # the width and the height, as 2 or 4 bytes
        for kind in (3, 4):
            tiff = tiff.replace(struct.pack("<HHII", tag, kind, 1, value), struct.pack("<HHII", tag, kind, 1, size))
    bombs["a.tif"] = tiff
    bombs["a.png"] = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""), b"IEND"):
        bombs["a.png"] += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    canvas = struct.pack("<I", 16_383)[:3]  # less one; the largest there is
    frame = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas * 2
    body = b"WEBP" + frame + small("WEBP")[12:]
    bombs["a.webp"] = b"RIFF" + struct.pack("<I", len(body)) + body
    file = io.BytesIO()
    Image.new("L", (4000, 4000)).save(file, "JPEG", progressive=True)
    scan = file.getvalue()[file.getvalue().rfind(b"\xff\xda") : -2]
    bombs["10,000 scans.jpg"] = file.getvalue()[:-2] + scan * 10_000 + file.getvalue()[-2:]
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    bombs["true.png"] = file.getvalue()
    return bombs


def _archives() -> dict[str, bytes]:
    zeros = gzip.compress(bytes(16 * MB), 1)

    def tar(member: tarfile.TarInfo, content: bytes = b"") -> bytes:
        return gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + content + bytes(10_240), 1)

    def member(size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
        found = tarfile.TarInfo("test_batch.bin")
        found.size, found.type = size, kind
        return found

    return {
        "archive, 1.6 GB of zeros in 2 MB": zeros * 100,
        "archive, a file of less than no bytes": tar(member(-1024)),
        "archive, a file of 8 TB": tar(member(2**43)),
        "archive, a name of 10 MB": tar(member(10 * MB, tarfile.XHDTYPE), b"1" * 10 * MB),
    }


def _pickles() -> dict[str, bytes]:
    """What the unpickler in C, or one that admits tuples as keys, would do for hours or with gigabytes."""
    tuples = b"\x80\x02}K\x01K\x01\x86q\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(100)) + b"K\x01s."
    lists = b"\x80\x02}U\x04data](K\x01K\x01eq\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(100))
    encode = b"c_codecs\nencode\nq\x00X" + struct.pack("<I", MB) + b"a" * MB + b"q\x01X\x06\0\0\0latin1q\x02"
    texts = b"(" + b"h\x00h\x01h\x02\x86R" * 100_000 + b"l"
    return {
        "pickle, a key of tuples of tuples": tuples,
        "pickle, lists of lists": lists + b"sU\x0bfine_labelsh\x64s.",
        "pickle, a place in the memo beyond memory": b"\x80\x02}r\xff\xff\xff\x7f.",
        "pickle, a text of many copies": b"\x80\x02}U\x04data" + encode + b"0" * 3 + texts + b"s.",
        "pickle, bytes that are not there": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"B\xff\xff\xff\xff",
        "pickle, an array reserved": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        "pickle, 20 million empty lists": b"\x80\x02(" + b"]" * 20_000_000 + b"l.",
    }


def _mats() -> dict[str, bytes]:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    def head(name: bytes, kind: int, *shape: int) -> bytes:
        sizes = struct.pack(f"<{len(shape)}i", *shape)
        return element(6, struct.pack("<II", kind, 0)) + element(5, sizes) + element(1, name)

    file = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    cells, size, levels = [], 0, 100_000
    for level in range(levels):
        start = head(b"X" if level == levels - 1 else b"", 1, 1, 1)
        cells.append(struct.pack("<II", 14, len(start) + size) + start)
        size += len(start) + 8
    nested = zlib.compress(b"".join(reversed(cells)))
    pixels = head(b"X", 9, 32, 32, 3, 2**31 - 1) + struct.pack("<II", 2, 2**32 - 1)
    return {
        "mat, cells in cells": file + struct.pack("<II", 15, len(nested)) + nested,
        "mat, 2e9 images": file + struct.pack("<II", 14, len(pixels)) + pixels,
    }


def _write_npz(home: Path) -> None:
    """Archives of a few hundred kB: 300 MB of nothing, and an array that says that it is far larger than it is."""
    zeros = _new(home / "npz, 300 MB in 300 kB" / "own.npz")
    np.savez_compressed(zeros, images=np.zeros((300, 1024, 1024), np.uint8), labels=np.arange(300))
    images = io.BytesIO()
    np.save(images, np.zeros((10, 10, 10), np.uint8))
    shape = images.getvalue().replace(b"(10, 10, 10), }" + b" " * 8, b"(99999999, 99, 99), }")
    with zipfile.ZipFile(_new(home / "npz, 980 GB declared" / "own.npz"), "w") as archive:
        archive.writestr("images.npy", shape)
        archive.writestr("labels.npy", images.getvalue())


def _write_parquet(home: Path) -> None:
    """Shards of a few kB that say the same large cell many times."""
    indices = pa.array(np.zeros(150, np.int32))
    large = pa.DictionaryArray.from_arrays(indices, pa.array([bytes(8 * MB)], pa.binary()))
    small = pa.DictionaryArray.from_arrays(indices, pa.array([png(tiny(1, 1, size=8)[0][0])], pa.binary()))
    label = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * 8 * MB]))
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(500_000, np.int32)), small.dictionary)
    places = pa.py_buffer(np.arange(4, dtype=np.int32) * 100 * MB)
    apart = pa.Array.from_buffers(pa.binary(), 3, [None, places, pa.py_buffer(bytes(300 * MB))])
    for name, images, labels in (
        ("parquet, 1.2 GB of one image", large, [0] * 150),
        ("parquet, 1.2 GB of one label", small, label),
        ("parquet, 500,000 rows in 17 kB", many, pa.array(np.zeros(len(many), np.int64))),
        ("parquet, 300 MB in 30 kB", apart, [0] * 3),
    ):
        table = pa.table({"image": images, "label": labels})
        dictionary = ["image", "label"] if images is not apart else False
        file = _new(home / name / "train.parquet")
        how = {"use_dictionary": dictionary, "store_schema": False, "write_statistics": False}
        pq.write_table(table, file, compression="zstd", **how)


def main(home: Path) -> None:
    """Read every bomb below `home`."""
    files = [path for path in sorted(home.rglob("*")) if path.is_file()]
    folders = [path.parent for path in files if path.name in ("config.json", "meta")]
    beside = ("config.json", "model.safetensors", "meta", "test")
    read = {path: reader(path) for path in [*folders, *(path for path in files if path.name not in beside)]}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3000 * MB,) * 2)
    for path, bomb in read.items():
        print(json.dumps({"path": str(path)}), flush=True)  # known even if the process dies of it
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            bomb()
            found = ["read", ""]
        except BaseException as error:
            found = [type(error).__name__, str(error)]
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps({"outcome": found, "seconds": time.perf_counter() - start, "grown_mb": grown}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
