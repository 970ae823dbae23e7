"""Images read ahead by other processes, a bounded number of them, while this one computes; in order, bit for bit.

The processes are forked: they share what the reader holds without copying it, and the pixels come back through
pages that they share with this process, not through a pipe. If none can be forked, this process reads.

Shapes: N images, H x W pixels, C channels.
"""

from __future__ import annotations

import gc
import math
import mmap
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

P = TypeVar("P")
R = TypeVar("R")

PIECE = 32  # images read at a time: few enough for the first batch to come soon


def _can_fork() -> bool:
    """Whether this process may fork others: not on a system without fork, nor in a worker of a Pool."""
    return "fork" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon


def read_ahead(
    read: Callable[[Tensor], Tensor], image_shape: tuple[int, ...], batches: Sequence[Tensor], workers: int
) -> Iterator[Tensor]:
    """The images of each batch of indices, int64 [n, ...], as uint8 [n, H, W, C]: what `read` makes of the indices.

    The processes read at most one batch, and two pieces each, ahead. Raises what `read` raises, and RuntimeError for
    a process that died.
    """
    if workers == 0 or not _can_fork():
        yield from map(read, batches)
        return
    pieces = [piece for batch in batches for piece in torch.split(batch, PIECE)]
    most = 2 * workers + max((math.ceil(len(batch) / PIECE) for batch in batches), default=0)
    slot_shape = (most, PIECE, *image_shape)
    slots = np.frombuffer(mmap.mmap(-1, max(1, int(np.prod(slot_shape)))), np.uint8).reshape(slot_shape)

    def fill(number: int) -> None:
        slots[number % most, : len(pieces[number])] = read(pieces[number]).numpy()

    with closing(ahead(fill, range(len(pieces)), workers, most)) as filled:
        number = 0
        for batch in batches:
            images = torch.empty(len(batch), *image_shape, dtype=torch.uint8)
            for part in torch.split(images, PIECE):
                next(filled)
                part.copy_(torch.from_numpy(slots[number % most, : len(part)]))
                number += 1
            yield images


def ahead(work: Callable[[P], R], pieces: Iterable[P], workers: int, most: int) -> Generator[R]:
    """What `work` makes of each piece, in order, made by forked processes (0: by this one), at most `most` ahead.

    Pieces and results are pickled, `work` is not. Raises what `work` raises, and RuntimeError for a process that died.
    """
    if workers == 0 or not _can_fork():
        yield from map(work, pieces)
        return
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, fork, _begin, (work, os.getpid()))
    waiting: deque[Future[R]] = deque()
    try:
        for piece in pieces:
            waiting.append(pool.submit(_do, piece))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a process that reads images died (killed, or out of memory?): fewer processes need less memory (--workers)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any]  # of a forked process


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    os.setpgrp()  # a signal to the whole group, as Ctrl-C, is for the parent, which still needs these images
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # the threads of the parent are not there after a fork
    gc.freeze()  # a collection would touch, and so copy, every page of the parent's
    threading.Thread(target=_outlive_nobody, args=(parent,), daemon=True).start()


def _outlive_nobody(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do(piece: Any) -> Any:
    return _work(piece)
