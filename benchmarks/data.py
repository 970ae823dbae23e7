"""Large data: images/s of decoding, of the first look, of a streamed epoch, and the memory that they take at most.

    python benchmarks/data.py [--images 50000] [--image-size 224] [--form folder|parquet] [--workers 1] [--json FILE]

The images are made anew, smooth noise as JPEG, and removed again. Memory is sampled 10 times a second: resident pages
of this process, of the largest of its workers, and of all together with shared pages counted once (PSS).
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from auxnet.batches import batches, cropped_and_flipped, draw_crops_and_flips, normalise
from auxnet.data import DataSet, load_data
from auxnet.provenance import provenance
from auxnet.recipe import Recipe

CLASSES, SHARD = 10, 100_000


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--images", type=int, default=50_000)
    options.add_argument("--image-size", type=int, default=224)
    options.add_argument("--form", choices=("folder", "parquet"), default="folder")
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUXNET_CACHE"] = f"{folder}/cache"
        home = Path(folder) / "images"
        write = {"folder": _write_folder, "parquet": _write_parquet}[asked.form]
        writer = multiprocessing.get_context("fork").Process(target=write, args=(home, asked.images, asked.image_size))
        writer.start()  # another process: what writing takes is not measured
        writer.join()
        if writer.exitcode:
            raise SystemExit("the images could not be written")
        steps = _measure(home, asked.workers, asked.batch_size)

    table = Table(title=f"{asked.images:,} images of {asked.image_size}x{asked.image_size}, {asked.form}")
    for column in ("", "images", "seconds", "images/s", "main, MB", "worker, MB", "all, MB"):
        table.add_column(column, justify="right" if column else "left")
    for name, step in steps.items():
        peaks = [f"{step['peak_mb'][who]:.0f}" for who in ("main", "worker", "all")]
        table.add_row(
            name, f"{step['images']:,}", f"{step['seconds']:.1f}", f"{step['images_per_second']:,.0f}", *peaks
        )
    Console().print(table)
    if asked.json:
        settings = {k: v for k, v in vars(asked).items() if k != "json"}
        result = {"settings": settings, "steps": steps, **provenance(torch.device("cpu"))}
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


def _measure(home: Path, workers: int, batch_size: int) -> dict[str, Any]:
    steps: dict[str, Any] = {}
    loads: list[DataSet] = []
    for name in ("first load: copy (parquet), look at every image", "load from the cache"):
        with _measuring(steps, name) as counted:
            loads.append(load_data(Recipe(data=str(home), stream="always", workers=workers)))
            counted["images"] = sum(map(len, (loads[-1].train, loads[-1].val, loads[-1].test)))
    found = loads[-1]
    some = torch.arange(min(2048, len(found.train)))
    with _measuring(steps, "decode, in this process") as counted:
        for chosen in torch.split(some, batch_size):
            images = found.train.read(chosen)
            counted["images"] += len(chosen)
    with _measuring(steps, "augment and normalise") as counted:
        for n in range(16):
            drawn = draw_crops_and_flips(len(images), torch.Generator().manual_seed(n), found.pad, found.flip)
            normalise(cropped_and_flipped(images, found.pad, *drawn), found.mean, found.std)
            counted["images"] += len(images)
    options = {"pad": found.pad, "flip": found.flip, "workers": workers}
    with _measuring(steps, f"streamed epoch, {workers} workers") as counted:
        for _, labels in batches(found.train, batch_size, found.mean, found.std, seed=(0, 1), **options):
            counted["images"] += len(labels)
    return steps


@contextmanager
def _measuring(steps: dict[str, Any], name: str) -> Iterator[dict[str, int]]:
    """Within, images are counted; afterwards their rate, and the memory at its highest, stand under the name."""
    counted, peak, done = {"images": 0}, dict.fromkeys(("main", "worker", "all"), 0.0), threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            main, workers = _memory(os.getpid()), [_memory(pid) for pid in _children()]
            peak["main"] = max(peak["main"], main[0])
            peak["worker"] = max([peak["worker"], *(rss for rss, _ in workers)])
            peak["all"] = max(peak["all"], main[1] + sum(pss for _, pss in workers))

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    try:
        yield counted
    finally:
        seconds = time.perf_counter() - began
        done.set()
        watching.join()
    rate = counted["images"] / seconds
    steps[name] = {**counted, "seconds": seconds, "images_per_second": rate, "peak_mb": peak}


def _memory(pid: int) -> tuple[float, float]:
    """Resident and proportional memory of a process, in MB; (0, 0) for one that is gone."""
    with suppress(OSError):
        lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        sizes = {words[0]: int(words[1]) / 1000 * 1.024 for words in lines}
        return sizes["Rss:"], sizes["Pss:"]
    return 0.0, 0.0


def _children() -> list[int]:
    return [int(n) for n in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


# ---- the images ------------------------------------------------------------------------------------------------


def _jpegs(count: int, size: int) -> Iterator[bytes]:
    """Smooth noise, each image another."""
    random = np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (max(4, size // 8), max(4, size // 8), 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((size, size), Image.Resampling.BILINEAR).save(file, "JPEG", quality=85)
        yield file.getvalue()


def _write_folder(home: Path, count: int, size: int) -> None:
    for n in range(CLASSES):
        (home / f"class{n}").mkdir(parents=True)
    for n, jpeg in enumerate(_jpegs(count, size)):
        (home / f"class{n % CLASSES}" / f"{n:07d}.jpg").write_bytes(jpeg)


def _write_parquet(home: Path, count: int, size: int) -> None:
    home.mkdir()
    jpegs, shards = _jpegs(count, size), -(-count // SHARD)
    for shard in range(shards):
        rows = [(next(jpegs), n % CLASSES) for n in range(shard * SHARD, min(count, (shard + 1) * SHARD))]
        cells, labels = zip(*rows, strict=True)
        name = f"train-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(pa.table({"image": cells, "label": labels}), home / name, row_group_size=1000)


if __name__ == "__main__":
    main()
