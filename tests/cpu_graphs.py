"""Graphs of a CPU's operators, in place of CUDA's; and its streams, at work in any order that events allow."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial
from random import Random
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from auxnet import capturing


class Graph(TorchDispatchMode):
    """As a CUDA graph does: every operator again, in the same memory, with the numbers of then."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def written(self):
        """The tensors that its operators write into."""
        for func, args, kwargs, _ in self.calls:
            for argument, place in zip(func._schema.arguments, range(len(func._schema.arguments)), strict=True):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    given = args[place] if place < len(args) else kwargs.get(argument.name)
                    yield from (each for each in tree_leaves(given) if isinstance(each, torch.Tensor))

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


class Recorder:
    """Makes graphs, and counts. A CUDA graph computes nothing while it is recorded; here that is undone."""

    def __init__(self, net, method):
        self.recorded, self.replayed, self.net, self.method = 0, 0, net, method
        self.random, self.orders = Random(0), set()

    def __call__(self, pieces):
        self.recorded += 1
        graphs, results = [], []
        with self.undone():
            for piece in pieces:
                with Graph() as graph:
                    results.append(piece.run())
                graphs.append(graph)

        def replay():
            self.replayed += 1
            for number in self.in_some_order(pieces):
                graphs[number].replay()
            return results[0]

        return replay

    @contextmanager
    def undone(self):
        """What is done within leaves net and optimizers as they were."""
        touched = [*self.net.state_dict().values(), *self.method.masters()]
        touched += [each for u in self.method.updates for each in tree_leaves([*u.optimizer.state.values()])]
        touched = [each.data for each in touched]  # autograd is not to see it
        before = [each.clone() for each in touched]
        try:
            yield
        finally:
            for each, value in zip(touched, before, strict=True):
                each.copy_(value)

    def in_some_order(self, pieces):
        """Drawn anew for every step, from all that the pieces allow."""
        left, order = list(range(len(pieces))), []
        while left:
            free = [n for n in left if set(pieces[n].after) <= set(order)]
            free = [n for n in free if not any(pieces[m].lane == pieces[n].lane for m in left if m < n)]
            order.append(self.random.choice(free))
            left.remove(order[-1])
        self.orders.add(tuple(order))
        return order


class Device(Recorder):
    """CUDA's streams, events and graphs as far as a replay needs them, at work in any order that they allow."""

    def __init__(self, monkeypatch, net, method):
        super().__init__(net, method)
        self.usual, self.streams, self.pools = Stream(), [], defaultdict(list)
        self.current, self.reserved, self.cached, self.free = self.usual, 0, 20, 100
        fakes = {
            "Stream": self.new_stream,
            "Event": Event,
            "CUDAGraph": partial(DeviceGraph, self),
            "graph_pool_handle": object,
            "current_stream": lambda device: self.current,
            "stream": self.within,
            "device": lambda device: nullcontext(),
            "synchronize": lambda device: None,
            "memory_reserved": lambda device: self.reserved + self.cached,
            "empty_cache": lambda: setattr(self, "cached", 0),
            "mem_get_info": lambda device: (self.free, self.free),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
        self.side = self.new_stream(None)

    def new_stream(self, device):
        self.streams.append(Stream())
        return self.streams[-1]

    @contextmanager
    def within(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def __call__(self, pieces):
        self.recorded += 1
        self.lanes = iter([piece.lane for piece in pieces])
        replay = capturing._recorded(pieces, self.side)

        def replay_and_work():
            self.replayed += 1
            losses = replay()
            self.work()
            return losses

        return replay_and_work

    def work(self):
        """Until the stream of whoever replays has nothing left to do; then no other has, either."""
        order = []
        while self.usual.queue:
            ready = [stream for stream in (self.usual, *self.streams) if stream.queue and stream.queue[0].ready()]
            order.append(self.random.choice(ready))
            order[-1].queue.pop(0).run()
        assert not any(stream.queue for stream in self.streams)
        self.orders.add(tuple(map(id, order)))


class Work(NamedTuple):
    run: Callable[[], object]
    ready: Callable[[], bool] = lambda: True


class Stream:
    device = None

    def __init__(self):
        self.queue = []

    def wait_event(self, event):
        number = event.recorded
        self.queue.append(Work(lambda: None, lambda: event.reached >= number))


class Event:
    def __init__(self):
        self.recorded = self.reached = 0

    def record(self, stream):
        self.recorded += 1
        number = self.recorded
        stream.queue.append(Work(lambda: setattr(self, "reached", number)))


class DeviceGraph:
    def __init__(self, device):
        self.device, self.graph = device, Graph()

    def capture_begin(self, pool):
        assert self.device.current is self.device.side  # which autograd keeps to
        self.device.pools[next(self.device.lanes)].append(pool)
        self.device.reserved += 10
        self.undone = self.device.undone()
        self.undone.__enter__()
        self.graph.__enter__()

    def capture_end(self):
        self.graph.__exit__(None, None, None)
        self.undone.__exit__(None, None, None)

    def replay(self):
        self.device.current.queue.append(Work(self.graph.replay))
