"""Many processes that train one net: their ranks, the part of a batch that each takes, and sums over all of them.

torchrun starts the processes and tells each its rank; `team` joins them. Every process draws the same batches
and takes its part of each; gradients are averaged over all images (`average` of `auxnet.methods`), so that every
process makes the same updates: those of one process with the whole batch. Only norms differ between processes:
BatchNorm normalises by the images of its own process, unless norms are synchronised (`synchronised`).
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from auxnet.errors import first_sentence
from auxnet.modules import expanded

T = TypeVar("T")
_numbers = itertools.count()  # of the process groups that this process has joined


@contextmanager
def team(device: str | torch.device = "cpu", timeout: float = 1800.0, joining: float = 60.0) -> Iterator[Team]:
    """Inside the block, this process trains together with the others that torchrun started; outside torchrun, alone.

    On the CPU they communicate by gloo; with device "cuda" by nccl, each on the GPU of its own number (LOCAL_RANK).

    If a process is killed, the next operation of the others fails at once (under nccl, torchrun ends them); if a
    process hangs, that operation fails after `timeout` seconds. Raises ValueError if torchrun's environment is
    incomplete or there is no such device for this process; RuntimeError if the others are not all found within
    `joining` seconds. (For a second team in one process, within `timeout`: some may still evaluate what the first team
    trained.)
    """
    device, size, number = torch.device(device), int(os.environ.get("WORLD_SIZE", 1)), next(_numbers)
    if size == 1:
        yield Team(device=device)
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE says {size} processes, but {', '.join(missing)} is not set: start them with torchrun, "
            "or unset WORLD_SIZE"
        )
    rank, device = int(os.environ["RANK"]), _own_device(device)
    _import_before_the_group()
    try:
        # torchrun keeps one store for all its restarts, with the addresses of dead processes in it
        store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=joining)))
        name = f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}, group {number}"
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(name, store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout if number else joining),  # process 0 may still be evaluating
            device_id=device if device.type == "cuda" else None,
        )
        _set_pg_timeout(timedelta(seconds=timeout))
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RuntimeError(
            f"process {rank} (of {size}, from 0) did not find the others at {where} ({_reason(error)})"
        ) from error
    try:
        yield Team(rank, size, device)
    finally:
        if device.type == "cpu" or sys.exc_info()[0] is None:  # after an error, nccl would wait for the others
            dist.destroy_process_group()


def _import_before_the_group() -> None:
    """Import, before there is a group, a module that would take the group as a default argument and keep it alive.

    (PyTorch's optimizers import that module.) A group that is kept alive has gloo threads, which may need the
    interpreter while it is being shut down, and then abort the process.
    """
    import_module("torch.distributed.nn.functional")


def _own_device(device: torch.device) -> torch.device:
    if device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise ValueError(f"many processes train on device 'cpu' or 'cuda' (each on a GPU of its own), got '{device}'")
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if own >= there:
        raise ValueError(f"no GPU is left for process {own} of this machine: torchrun --nproc-per-node {there}")
    device = torch.device("cuda", own)
    torch.cuda.set_device(device)
    return device


class Team:
    """The processes that train together, seen from one of them.

    In a team of one every operation returns what it was given. All processes must call the team's operations in the
    same order. An operation raises RuntimeError if another process is lost.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = device or torch.device("cpu")
        """of this process; messages to the others are sent from it"""
        self.images = 0
        """number of images in the whole batch, over which `average` is taken (`weigh`)"""
        self.weight = 1.0 / size
        """this process's share of those images; all shares add up to 1"""

    def __deepcopy__(self, memo: dict[int, Any]) -> Team:
        return self  # the norms of a copied net stay in the team

    @property
    def leads(self) -> bool:
        """Whether this is process 0, the one that writes."""
        return self.rank == 0

    def own(self, n: int) -> slice:
        """This process's part of n items: consecutive, in no other part, and as large as the others or one more."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def part(self, n: int) -> slice:
        """Like `own`, but every process takes the whole of a batch that is smaller than the team."""
        return self.own(n) if n >= self.size else slice(n)

    def weigh(self, n: int) -> None:
        """From now on `average` is the mean over a batch of n images, of which each process has its `part`."""
        part = self.part(n)
        self.images = n
        self.weight = (part.stop - (part.start or 0)) / n if n >= self.size else 1.0 / self.size

    def average(self, tensor: Tensor) -> Tensor:
        """A tensor's mean over the processes, each weighted by its part of the images; the same to the bit in all."""
        return tensor if self.size == 1 else self.sum(tensor * self.weight)

    def sum(self, tensor: Tensor) -> Tensor:
        """A tensor's sum over the processes; exact for integers."""
        return self._collective(dist.all_reduce, tensor)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return bool(self.sum(torch.tensor(int(flag))))

    def wait(self) -> None:
        """Return once every process has called this."""
        self.any(False)

    def broadcast(self, net: nn.Module) -> None:
        """Give a net's parameters and buffers the values that they have in process 0."""
        for tensor in net.state_dict().values():
            if not expanded(tensor):
                tensor.copy_(self.tensor_from_leader(tensor))

    def tensor_from_leader(self, tensor: Tensor) -> Tensor:
        """Process 0's tensor, returned in every process; each must give a tensor of its shape and dtype."""
        return self._collective(dist.broadcast, tensor, src=0)

    def from_leader(self, work: Callable[[], T]) -> T:
        """Do `work` in process 0 alone, and return its result in every process."""
        box: list[Any] = [work() if self.leads else None]
        if self.size > 1:
            with self._failure_explained():
                dist.broadcast_object_list(box, src=0, device=self.device)
        found: T = box[0]
        return found

    def average_buffers(self, net: nn.Module) -> None:
        """Give a net's buffers, BatchNorm's running statistics, their plain mean over the processes.

        Buffers of integers, BatchNorm's count of batches, take the values of process 0. The mean of the variances
        of parts is not the variance of the whole: it leaves out how far the means of the parts lie apart.
        """
        for buffer in (each for each in net.buffers() if self.size > 1 and not expanded(each)):
            if buffer.is_floating_point():
                buffer.copy_(self.sum(buffer) / self.size)
            else:
                buffer.copy_(self.tensor_from_leader(buffer))

    def _collective(self, operation: Callable[..., Any], tensor: Tensor, **options: Any) -> Tensor:
        """The result of an operation of torch.distributed on a tensor, which itself is not changed."""
        if self.size == 1:
            return tensor
        result = tensor.detach().to(self.device, memory_format=torch.contiguous_format, copy=True)
        with self._failure_explained():
            operation(result, **options)
        return result.to(tensor.device)

    @contextmanager
    def _failure_explained(self) -> Iterator[None]:
        """If an operation of torch.distributed fails inside, say which process lost the others, and how to continue."""
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} (of {self.size}, from 0) lost the others: {_reason(error)}; "
                "a run goes on from its last checkpoint with --resume"
            ) from error


def _reason(error: Exception) -> str:
    """The message of an error of torch.distributed, without its place in the C++ source and its advice."""
    return re.sub(r"^\[\S+\] ", "", first_sentence(error))
