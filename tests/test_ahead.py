"""Laws of reading ahead: the same bits in the same order, never far ahead, and no process outlives its use."""

import mmap
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from auxnet.reading.ahead import PIECE, ahead, read_ahead

SHAPE = (3, 4, 1)


def number_of_this_process() -> Tensor:
    return torch.tensor([*os.getpid().to_bytes(4, "big")], dtype=torch.uint8)


def pixels(indices: Tensor) -> Tensor:
    """Images that tell their index, and in the first row the process that read them."""
    images = (indices[:, None, None, None] % 251).expand(-1, *SHAPE).to(torch.uint8).clone()
    images[:, 0, :, 0] = number_of_this_process()
    return images


def batches_of(*sizes: int) -> list[Tensor]:
    return list(torch.split(torch.randperm(sum(sizes)), list(sizes)))


def children() -> set[int]:
    """The processes that this one has started and that have not ended."""
    states = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            states[int(entry.name)] = state, int(parent)
    return {pid for pid, (state, parent) in states.items() if parent == os.getpid() and state != "Z"}


@contextmanager
def leaving_no_process() -> Iterator[None]:
    before = children()
    yield
    assert children() == before


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_batches_come_whole_and_in_order_however_many_processes_read(workers: int) -> None:
    batches = batches_of(1, 32, 33, 64, 100, 7)
    with leaving_no_process():
        for indices, images in zip(batches, read_ahead(pixels, SHAPE, batches, workers), strict=True):
            assert torch.equal(images[:, 1:], pixels(indices)[:, 1:])
            read_here = (images[:, 0, :, 0] == number_of_this_process()).all(1)
            assert read_here.any() == read_here.all() == (workers == 0)


def test_no_batches_need_no_process() -> None:
    assert list(read_ahead(pixels, SHAPE, [], 2)) == []


def test_reading_is_never_further_ahead_than_a_batch_and_two_pieces_each() -> None:
    begun = mmap.mmap(-1, 100)  # shared with the processes: a byte per piece

    def read(indices: Tensor) -> Tensor:
        begun[int(indices[0]) // PIECE] = 1
        return pixels(indices)

    batches = list(torch.arange(100 * PIECE).split(2 * PIECE))
    with leaving_no_process():
        reading = read_ahead(read, SHAPE, batches, 2)
        for taken in range(1, 6):
            next(reading)
            time.sleep(0.1)
            assert 2 * taken <= sum(begun[:]) <= 2 * taken + 2 + 2 * 2
        del reading  # in the middle of an epoch


def test_an_error_of_the_reader_is_raised_as_it_is() -> None:
    def read(indices: Tensor) -> Tensor:
        if 40 in indices:
            raise RuntimeError("cat.png: not a readable image (truncated)")
        return pixels(indices)

    with leaving_no_process():
        reading = read_ahead(read, SHAPE, list(torch.arange(100).split(10)), 2)
        for _ in range(4):
            next(reading)
        with pytest.raises(RuntimeError, match=r"^cat\.png: not a readable image \(truncated\)$"):
            next(reading)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_is_an_error_within_seconds_and_ends_the_others(number: signal.Signals) -> None:
    def slow(indices: Tensor) -> Tensor:
        time.sleep(0.05)
        return pixels(indices)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as a training that first saves: not for its processes
    try:
        with leaving_no_process():
            others = children()
            reading = read_ahead(slow, SHAPE, batches_of(*[64] * 50), 3)
            next(reading)
            os.kill((children() - others).pop(), number)
            began = time.monotonic()
            with pytest.raises(RuntimeError, match=r"^a process that reads images died [^\n]*$"):
                list(reading)
            assert time.monotonic() - began < 3
    finally:
        signal.signal(signal.SIGTERM, before)


def ignores(pid: int, number: int) -> bool:
    (ignored,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(ignored, 16) >> (number - 1) & 1)


def test_ctrl_c_is_left_to_the_parent() -> None:
    batches = batches_of(*[64] * 10)
    others = children()
    reading = read_ahead(pixels, SHAPE, batches, 2)
    images = [next(reading)]
    for pid in children() - others:
        while not ignores(pid, signal.SIGINT):  # it may have been forked just now
            time.sleep(0.01)
        os.kill(pid, signal.SIGINT)
    images += reading
    assert torch.equal(torch.cat(images)[:, 1:], pixels(torch.cat(batches))[:, 1:])


@pytest.mark.long
def test_no_process_outlives_a_parent_that_is_killed() -> None:
    program = (
        "import os, time; from auxnet.reading.ahead import ahead\n"
        "def work(n): time.sleep(0.2); return os.getpid()\n"
        "for pid in ahead(work, range(10**6), 2, 8): print(pid, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = {int(parent.stdout.readline()) for _ in range(8)}
        parent.kill()
    assert pids
    end = time.monotonic() + 5
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left


def test_results_of_any_kind_come_in_order() -> None:
    with leaving_no_process():
        assert list(ahead(lambda n: {"square": n * n}, range(50), 2, 3)) == [{"square": n * n} for n in range(50)]


def _doubled(number):
    return list(ahead(lambda piece: 2 * piece, range(number), 2, 4))


def test_a_worker_of_a_pool_which_may_have_no_children_does_the_work_itself():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_doubled, (5,)) == [0, 2, 4, 6, 8]
