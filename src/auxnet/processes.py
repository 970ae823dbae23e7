"""Workers on one machine: processes that take up work until none is left, and end when their parent process ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from auxnet.errors import one_line, warn
from auxnet.machine import cores, keep_freed_memory, thread_count
from auxnet.signals import Stopped, held, raised

Work = Callable[[dict[str, Any], Callable[[], None]], None]
"""takes (where, watch): `where` is device, threads, ... of this worker; `watch` is to be called now and then"""


def check_count(count: int, of: str) -> None:
    """Raise ValueError if so many workers `of` a sweep or a study cannot be started here."""
    if count < 1:
        raise ValueError(f"processes must be 1 or more, got {count}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"torchrun's processes train one net together, {of}'s one each: start them with --processes")


def work_together(
    count: int,
    work: Work,
    where: Mapping[str, Any],
    watch: Callable[[], None],
    unfinished: Callable[[], bool],
    what: str,
) -> None:
    """Start `count` processes that do `work`, and wait until all have ended.

    `where` is divided among them. `watch` is called about once a second, here, where their warnings are given too.
    Raises RuntimeError if the work is `unfinished` at the end: it says what went wrong in the processes, and that the
    same command continues `what` they do (sweep, study). Raises signals.Stopped after Ctrl-C or SIGTERM, once each
    process has saved what it has in hand.
    """
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    telling: list[Connection] = []
    failures: list[str] = []

    def listen() -> None:
        for each in telling:
            with suppress(EOFError, OSError):
                while each.poll():
                    kind, said = each.recv()
                    (failures.append if kind == "failure" else warn)(said)

    with held() as noted:
        try:
            for own in _divided(where, count):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_process, args=(work, own, theirs))
                _start(process)
                theirs.close()
                processes.append(process)
                telling.append(ours)
            while running := [process.sentinel for process in processes if process.is_alive()]:
                wait(running, timeout=1.0)
                listen()
                watch()
                if noted():
                    raise Stopped(noted(), "stopped")
        finally:
            for process in processes:
                process.terminate()  # the worker saves what it trains, and ends
            while any(process.is_alive() for process in processes):
                wait([process.sentinel for process in processes if process.is_alive()], timeout=0.2)
                listen()  # else a worker with much to tell would wait for its reader, and not end
            for process in processes:
                process.join()
            listen()
    killed = [f"a worker was killed by signal {-p.exitcode}" for p in processes if p.exitcode and p.exitcode < 0]
    if unfinished():
        wrong = dict.fromkeys([*failures, *killed])
        raise RuntimeError("; ".join([*wrong, f"the same command again goes on with the {what}"]))


def _start(process: SpawnProcess) -> None:
    """Start a worker in which Ctrl-C stays blocked: a terminal sends it to all processes, even to one that just starts.

    In this process Ctrl-C is delivered once the worker has started.
    """
    if os.name != "posix":
        process.start()
        return
    resource_tracker.ensure_running()  # else the start would start it first, and that unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _divided(where: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """`where` for each of `count` workers: threads, decoding processes and GPUs divided among them."""
    parts = [dict(where) for _ in range(count)]
    gpus = torch.cuda.device_count()
    for n, part in enumerate(parts):
        if "threads" in where:
            part["threads"] = max(1, thread_count(where["threads"]) // count)
        if "workers" in where and where["workers"] != 0:
            part["workers"] = max(1, (where["workers"] or cores()) // count)
        if where.get("device") in ("auto", "cuda") and gpus > 1:
            part["device"] = f"cuda:{n % gpus}"
    return parts


def _process(work: Work, where: dict[str, Any], parents: Connection) -> None:
    """A worker in a process of its own, which ends when its parent does."""

    def tell(kind: str, said: str) -> None:
        with suppress(OSError):  # the parent has ended, and nobody can be told
            parents.send((kind, said))

    def pass_on(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
        if category is UserWarning:  # warnings of libraries are for developers
            tell("warning", str(message))

    warnings.showwarning = pass_on
    if os.name == "posix":
        os.setpgrp()  # a terminal's signals reach the parent alone, which passes them on once
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None and not parent.is_alive():
            raise Stopped(signal.SIGTERM, "the process that started this worker has ended")

    keep_freed_memory()
    try:
        with raised():  # a stop is raised at any line, so that work puts back what it has in hand
            work(where, end_with_parent)
    except KeyboardInterrupt as stop:
        sys.exit(getattr(stop, "status", 130))
    except Exception as error:
        tell("failure", one_line(error))
        sys.exit(1)
