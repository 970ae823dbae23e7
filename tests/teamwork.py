"""What each process of a team does for test_distributed: `teamwork.py FOLDER [PORT]`, started as torchrun does.

It leaves what it saw in FOLDER/rank-R.pt. Given a port, the team of three then loses a process that is killed, and
the two that are left form a team anew (there), in which one stops answering. `started` starts such a team by forking
this process, whose modules need not be imported anew.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import auxnet
from auxnet.distributed import team
from auxnet.synchronised import synchronise_norms

METHODS = {
    "joint": auxnet.joint,
    "pairwise": auxnet.pairwise,
    "live": auxnet.multiway,
    "frozen": partial(auxnet.multiway, mode="frozen"),
    "fused": partial(auxnet.multiway, mode="fused"),
    "adaptive": partial(auxnet.multiway, step_scale="adaptive"),
}
NORMS = ["synchronised", "per process"]
SCENARIOS = [(method, None, norms) for method in METHODS for norms in NORMS]
SCENARIOS += [
    (method, 0.5, NORMS[n % 2]) for n, method in enumerate(METHODS)
]  # gradients are clipped whatever the norms
WEIGHTS = [0.9, 0.7, 1.0]
SGD = partial(torch.optim.SGD, lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.02)
SIZES = [8, 5, 2]  # of the whole batches: parts are unequal, and the last is smaller than a team of three


def small_net():
    """Three segments with BatchNorm; a first loss more than twice the last, so that the adaptive rule acts."""
    torch.manual_seed(1)
    channels = [2, 4, 3, 4]
    segments = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
        for a, b in pairwise(channels)
    ]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 3)) for c in channels[1:]]
    with torch.no_grad():
        heads[0][-1].bias += torch.tensor([6.0, 0.0, -6.0])
    net = auxnet.AuxNet(segments, heads, depths=[2, 3, 4]).double()
    return net.to(memory_format=torch.channels_last).train()


def small_resnet():
    torch.manual_seed(1)
    net = auxnet.resnet(depth=8, outputs=3, block="preact", in_channels=2, num_classes=3).double()
    return net.to(memory_format=torch.channels_last).train()


def batches():
    g = torch.Generator().manual_seed(2)
    for n in SIZES:
        images = torch.randn(n, 2, 4, 4, generator=g, dtype=torch.float64) + 0.5
        yield images.to(memory_format=torch.channels_last), torch.randint(3, (n,), generator=g)


def norms_and_inputs():
    """Kinds of BatchNorm, inputs [5, 4, ...] and weights of their outputs in a loss; the last input is 1000 +- 1."""
    g = torch.Generator().manual_seed(3)
    for norm, shape in [
        (nn.BatchNorm1d(4), ()),
        (nn.BatchNorm1d(4, affine=False), (3,)),
        (nn.BatchNorm2d(4, momentum=None), (2, 3)),
        (nn.BatchNorm2d(4, track_running_stats=False), (2, 3)),
        (nn.BatchNorm3d(4), (2, 1, 3)),
    ]:
        x, t = torch.randn(2, 5, 4, *shape, generator=g, dtype=torch.float64)
        yield norm.double(), x, t
    x, t = torch.randn(2, 5, 4, 8, 8, generator=g)
    yield nn.BatchNorm2d(4), x + 1000, t


def trained(net, make, share=lambda *batch: batch, **options):
    """Losses [steps, K] of the method, and the parameters it leaves in the net."""
    method = make(net, SGD, WEIGHTS, **options)
    losses = torch.stack([method.step(*share(*batch)) for batch in batches()])
    return losses, {name: p.detach().clone() for name, p in net.named_parameters()}


def shared(t, *batch):
    """A process's part of each tensor of a batch, to be averaged over."""
    t.weigh(len(batch[0]))
    return tuple(tensor[t.part(len(tensor))] for tensor in batch)


def seen_by(t):
    """What a process of the team saw."""
    saw = {"rank": t.rank, "size": t.size, "leads": t.leads, "scenarios": {}, "norms": []}
    for name, clip, norms in SCENARIOS:
        net = small_net()
        if norms == "synchronised":
            synchronise_norms(net, t)
        losses, weights = trained(net, METHODS[name], partial(shared, t), clip=clip, average=t.average)
        own = {key: b.clone() for key, b in net.named_buffers()}
        t.average_buffers(net)
        averaged = {key: b.clone() for key, b in net.named_buffers()}
        saw["scenarios"][name, clip, norms] = losses, weights, own, averaged
    net = small_resnet()
    synchronise_norms(net, t)
    saw["resnet"] = (
        *trained(net, auxnet.multiway, partial(shared, t), average=t.average),
        net.eval()(torch.ones(1, 2, 4, 4).double()),
    )
    for norm, x, weight in norms_and_inputs():
        synchronise_norms(norm, t)
        part, weight = (piece.clone() for piece in shared(t, x, weight))
        y = norm(part.requires_grad_())
        gradients = torch.autograd.grad((y * weight).sum() / len(part), [part, *norm.parameters()])
        gradients = [gradients[0] * t.weight, *map(t.average, gradients[1:])]
        saw["norms"].append((y.detach(), gradients, norm.state_dict()))
    torch.manual_seed(t.rank)
    net = auxnet.resnet(depth=8, outputs=2).to(memory_format=torch.channels_last)
    net(torch.randn(2, 3, 8, 8))
    saw["before"] = {key: value.clone() for key, value in net.state_dict().items()}
    t.broadcast(net)
    saw["after"] = net.state_dict()
    state = {"rank": t.rank, "weights": [torch.randn(3)], "name": "x" * t.rank}
    saw["mine"], saw["handed out"] = state, t.from_leader(lambda: state)
    saw["slices"] = [list(range(n)[t.own(n)]) for n in range(10)]
    saw["shares"] = [(shared(t, torch.arange(n), torch.arange(n) + 0.5), t.weight) for n in range(1, 10)]
    saw["sum"] = t.sum(torch.tensor([2**60 + t.rank, -1, t.rank]))
    strided = torch.arange(6.0).view(2, 3).T
    saw["strided sum"] = t.sum(strided)
    saw["untouched"] = strided
    saw["any"] = [t.any(False), t.any(t.rank == 1), t.any(True)]
    return saw


def lost(t, end):
    """The error and the seconds it took when one process of a team meets its end while the others add up."""
    t.any(False)  # all are here
    began = time.monotonic()
    if t.rank == t.size - 1:
        os.kill(os.getpid(), end)
    while True:
        try:
            t.average(torch.ones(1000))
        except RuntimeError as error:
            return str(error), time.monotonic() - began


def started(size, work, *arguments):
    """Processes that each do `work` in the place in a team that torchrun would give them, and end with its status."""
    (port,) = free_ports(1)

    def take_part(rank):
        os.environ.update(WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        sys.exit(work(*arguments))

    processes = [multiprocessing.get_context("fork").Process(target=take_part, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def free_ports(count):
    with ExitStack() as held:
        places = [held.enter_context(socket.socket()) for _ in range(count)]
        for place in places:
            place.bind(("127.0.0.1", 0))
        return [str(place.getsockname()[1]) for place in places]


def main(folder, port=None):
    torch.set_num_threads(1)
    with team("cpu") as t:
        saw = seen_by(t)
        path = Path(folder) / f"rank-{t.rank}.pt"
        torch.save(saw, path)
        if port is not None:
            saw["killed"] = lost(t, signal.SIGKILL)
    saw["threads left"] = sorted((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir())
    torch.save(saw, path)
    if port is None:
        return
    os.environ.update(WORLD_SIZE="2", MASTER_PORT=port)
    with team("cpu", timeout=2.0) as t:
        saw["stopped"] = lost(t, signal.SIGSTOP)
        torch.save(saw, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
