"""The machine that a training runs on: its device, its cores and threads, its memory and how that is reused."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from auxnet.errors import first_sentence
from auxnet.modules import AnyModule


def to_device(net: AnyModule, device: torch.device) -> AnyModule:
    """The net itself on its device, in channels_last."""
    return in_channels_last(net.to(device))


def in_channels_last(net: AnyModule) -> AnyModule:
    """The net itself in channels_last, the memory format that convolutions are fastest in.

    (`net.to(memory_format=torch.channels_last)` refuses a net with parameters of five dimensions.)
    """
    for x in chain(net.parameters(), net.buffers()):
        if x.ndim == 4:
            x.data = x.data.to(memory_format=torch.channels_last)
    return net


def device_of(name: str) -> torch.device:
    """The device of this name; auto: cuda, or else cpu. Raises ValueError if it cannot be used here."""
    if name == "auto":  # mps, which was never tested, only by its own name
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:NUMBER or mps, got {name!r}") from None
    try:
        if name == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():  # not all on GPU 0
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({first_sentence(error)}); try 'cpu'") from None
    return device


def seed_random(seed: int, device: torch.device) -> None:
    """Seed what draws random numbers: Python, NumPy, and PyTorch on the CPU and on this device, and on no other.

    (`torch.manual_seed` seeds all devices.)
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def random_kept(device: torch.device) -> Iterator[None]:
    """Restore the random state of Python, of NumPy, and of PyTorch on the CPU and on this device after the block."""
    python, of_numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type in ("cuda", "mps") else []
    try:
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)


def thread_count(threads: int | None) -> int:
    """The CPU threads given; if None, PyTorch's own number, but at most one per core. Raises ValueError."""
    if threads is not None and not 1 <= threads < 2**31:
        raise ValueError(f"threads must be {'1 or more' if threads < 1 else 'below 2**31'}, got {threads}")
    return threads or min(torch.get_num_threads(), cores())


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """Within the block PyTorch uses `thread_count(threads)` CPU threads."""
    before, number = torch.get_num_threads(), thread_count(threads)
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def fast_convolutions(device: torch.device) -> Iterator[None]:
    """Within the block cuDNN tries its algorithms on each new shape and takes the fastest, where this is a GPU."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def keep_freed_memory() -> None:
    """Have this process reuse the memory of freed tensors instead of giving it back to the system.

    Every step, and in evaluation every layer, frees memory that the next one needs again; the system would hand it out
    page by page, each zeroed. (glibc only; elsewhere nothing happens. It holds for the whole process: the commands call
    it.)
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


def available_memory() -> int:
    """Bytes of memory that this process may still use: the least of what the system and the container's limits leave.

    If the system does not say (it is not Linux), half of all memory.
    """
    left = [*_memory_of_group(Path("/sys/fs/cgroup")), *_memory_of_system("MemAvailable")]
    return max(0, min(left)) if left else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def most_memory(device: torch.device) -> int | None:
    """Bytes of memory that a process can have at most; None if the system does not say.

    That is the memory of a CUDA device, or else of this machine (with swap) or container, divided by the number of
    processes that torchrun started here.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    found = [*_memory_of_system("MemTotal", "SwapTotal")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not there, or "max"
            found.append(int(Path(path).read_text()))
    return min(found) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if found else None


def free_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device's memory, those that PyTorch keeps for reuse included; 0 for any other device."""
    if device.type != "cuda":
        return 0
    ready = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + ready


def cores() -> int:
    """CPU cores that this process may use, by its affinity and its container's limits.

    Divided by the number of processes that torchrun started here.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, _quota(Path("/sys/fs/cgroup")))) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _memory_of_system(*names: str) -> Iterator[int]:
    """The sum of these entries of Linux' /proc/meminfo, in bytes; nothing if one is missing."""
    with suppress(OSError, ValueError, KeyError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        yield sum(int(fields[name].split()[0]) for name in names) * 1024


def _memory_of_group(group: Path) -> Iterator[int]:
    """Bytes that control groups, version 2 or 1, still leave this container, if they limit it.

    What they count as used includes cached files, whose memory is given up on demand: that is free.
    """
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, KeyError):  # not there, or "max"
            facts = dict(line.split() for line in (group / stat).read_text().splitlines())
            yield int((group / limit).read_text()) - int((group / used).read_text()) + int(facts[cache])


def _quota(group: Path) -> float:
    """CPU cores' worth of time that control groups, version 2 or 1, leave this container; infinite without a limit."""
    with suppress(OSError, ValueError):  # not there, or "max"
        limit, period = (group / "cpu.max").read_text().split()
        return int(limit) / int(period)
    with suppress(OSError, ValueError):
        limit, period = ((group / f"cpu/cpu.cfs_{each}_us").read_text() for each in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 else math.inf
    return math.inf


def crowded(threads: int) -> str | None:
    """A warning, with the remedy, if these threads exceed the free CPU cores; else None.

    (The system tells how many cores were busy in the last minute; what this process may have used is subtracted, and
    what has ended since does not count.)
    """
    allowed, present = cores(), os.cpu_count() or 1
    if threads > allowed:
        return f"{threads} threads for {allowed} CPU cores wait for each other: --threads {allowed} is faster"
    busy = max(0.0, os.getloadavg()[0] - time.process_time() / 60) if hasattr(os, "getloadavg") else 0.0
    busy = min(busy, _others_running())
    free = max(1, round(present - busy))
    if free < threads:
        load = f"other programs use {min(busy, present):.0f} of {present} CPU cores"
        return f"{load}: {threads} threads may be slower than --threads {free}"
    return None


def _others_running() -> float:
    """How many threads beside this one run, or wait for a core, at the moment; infinite if unknown."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1
    return math.inf


def bfloat16_pays() -> bool | None:
    """Whether this CPU computes faster in bfloat16: True with AMX; False on an x86 CPU without units for it, where it
    is slower.

    None if that is unknown: on other CPUs than x86, or with AVX512-BF16 alone.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    known = platform.machine() in ("x86_64", "AMD64")
    return False if known and not torch.cpu._is_avx512_bf16_supported() else None
