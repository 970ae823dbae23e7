"""A compiled step is the step it was, live stays live, and what is outside of steps is untouched."""

import copy
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from types import MethodType

import pytest
import torch
from torch import nn

import auxnet
from auxnet import signals
from auxnet.advice import time_notes
from auxnet.data import load_data
from auxnet.plan import plan
from auxnet.recipe import Recipe
from teamwork import METHODS

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    pytest.mark.enough(1),
]
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
TINY = Recipe(data="digits", depth=8, epochs=2, train_images=200, batch_size=64, threads=1, milestones=(0.5,))


class Noisy(nn.Module):
    """Draws numbers in training, as dropout does, and counts in a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.seen = self.seen + 1
        return x * torch.rand(len(x), 1, 1, 1, dtype=x.dtype)


def net_of(memory_format=torch.channels_last):
    """Of what torch.compile likes to compute anew in a backward: norms before SiLU, and a scale."""
    torch.manual_seed(0)
    segments = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), Noisy(), nn.Conv2d(4, 4, 3)),
        nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.SiLU()),
    ]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)) for channels in (4, 5)]
    return auxnet.AuxNet(segments, heads, [2, 3]).double().to(memory_format=memory_format).train()


def batch_of(n=6, memory_format=torch.channels_last):
    images = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return images.contiguous(memory_format=memory_format), torch.arange(n) % 4


def compiled(method, images):
    from auxnet.compiling import compiled  # PyTorch's compiler takes seconds to import: not in every worker

    return compiled(method, images)


def settings():
    """Those of torch that compiling depends on."""
    dynamo, inductor, autograd = torch._dynamo.config, torch._inductor.config, torch._functorch.config
    ours = autograd.donated_buffer, inductor.fallback_random, inductor.custom_partitioner_fn
    return *ours, inductor.layout_optimization, dynamo.recompile_limit


def trained(name, as_compiled, memory_format=torch.channels_last):
    """The state of a net after two steps with a whole batch and one with a smaller one, and their losses."""
    net = net_of(memory_format)
    method = METHODS[name](net, SGD, [0.5, 1.0])
    method = compiled(method, batch_of(6, memory_format)[0]) if as_compiled else method
    torch.manual_seed(1)
    losses = [method.step(*batch_of(n, memory_format)) for n in (6, 4, 6)]
    return torch.cat([*(x.flatten().double() for x in net.state_dict().values()), *losses])


@pytest.fixture
def all_is_compiled(monkeypatch):
    """Fail where a compiled forward meets what it was not compiled for, in place of running it as it was."""
    usual = torch.compiler.set_stance
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: usual("fail_on_recompile"))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.enough(3)  # joint, live and fused
def test_a_compiled_step_is_the_step_it_was(name, all_is_compiled):
    """In float64, with random numbers, buffers and a smaller batch; live is far enough from frozen to be told."""
    live, frozen, expected = (trained(each, as_compiled=False) for each in ("live", "frozen", name))
    assert torch.allclose(trained(name, as_compiled=True), expected, rtol=1e-12, atol=1e-14)
    assert (live - frozen).norm() > 1e-6


@pytest.mark.long
def test_live_stays_live_in_the_other_memory_format_too(all_is_compiled):
    """Where a compiled forward would rather have its convolutions in channels_last."""
    live, found = (trained("live", as_compiled, torch.contiguous_format) for as_compiled in (False, True))
    assert torch.allclose(found, live, rtol=1e-12, atol=1e-14)


def test_live_in_pieces_is_compiled_too(all_is_compiled):
    """As a graph records it; a smaller batch runs as it was."""
    net = net_of()
    method = compiled(auxnet.multiway(net, SGD, [0.5, 1.0]), batch_of()[0])
    before, state = copy.deepcopy(net.state_dict()), method.state_dict()
    found = []

    def in_pieces(*batch):
        losses, *_ = [piece.run() for piece in method.in_pieces(*batch)]
        return losses

    for step in (method.one_step, in_pieces):
        net.load_state_dict(before)
        method.load_state_dict(state)
        torch.manual_seed(1)
        losses = [step(*batch_of(n)) for n in (6, 4, 6)]
        found.append(torch.cat([*(x.flatten().double() for x in net.state_dict().values()), *losses]))
    assert torch.equal(*found)
    assert len(method.in_pieces(*batch_of())) == 4


def test_nothing_is_moved_by_compiling():
    net, (images, labels) = net_of().eval(), batch_of()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    state, known = torch.get_rng_state(), settings()
    method = compiled(auxnet.multiway(net, SGD), images)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    net.train()
    method.step(images, labels)
    assert not any("forward" in vars(segment) for segment in net.segments)
    assert known == settings()


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.norm(), None)


def test_live_refuses_computed_weights_in_compiled_segments_too():
    net, (images, _) = net_of(), batch_of()
    net.segments[1][2] = Standardised(4, 5, 1, bias=False).double()
    with pytest.raises(ValueError, match="mode='live' needs layers that take their weights as they are"):
        compiled(auxnet.multiway(net, SGD), images)


def test_a_forward_and_hooks_of_ones_own_stay():
    net, (images, labels), called = net_of(), batch_of(), []
    net.segments[0].forward = own = MethodType(nn.Sequential.forward, net.segments[0])
    method = compiled(auxnet.joint(net, SGD), images)
    net.segments[0][0].register_forward_hook(lambda *given: called.append(1))
    method.step(images, labels)
    assert net.segments[0].forward is own
    assert called == [1]


@pytest.mark.long
def test_a_later_net_of_the_same_make_is_compiled_by_itself(all_is_compiled):
    """Graphs are found by the code they were made of, which two nets share, with whatever settings they were made."""
    torch.compile(net_of().segments[0].forward)(batch_of()[0]).sum().backward()
    live, frozen = (trained(name, as_compiled=True) for name in ("live", "frozen"))
    assert (live - trained("live", as_compiled=False)).norm() < 1e-12 < (live - frozen).norm()


def test_where_compiling_is_switched_off_that_is_said():
    message = r"torch\.compile is disabled here, by TORCHDYNAMO_DISABLE: leave --compile out"
    with torch._dynamo.config.patch(disable=True), pytest.raises(RuntimeError, match=message):
        compiled(auxnet.joint(net_of(), SGD), batch_of()[0])


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("no C++ compiler\nTraceback ...", r"\(no C\+\+ compiler\): leave --compile out$"),
        (
            "a.so: file too short",
            r"\(a\.so: file too short\): a file in .*, where PyTorch .* broken: remove that folder$",
        ),
    ],
    ids=["compiler", "cache"],
)
def test_what_cannot_be_compiled_is_an_error_of_one_line(says, message, monkeypatch):
    def fails(forward, dynamic):
        def run(x):
            raise ImportError(says)

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(RuntimeError, match=f"^segment 1 cannot be compiled here {message}"):
        compiled(auxnet.joint(net_of(), SGD), batch_of()[0])


@pytest.mark.parametrize("fields", [{}, {"method": "pairwise", "ema": 0.9}], ids=str)
@pytest.mark.long
def test_a_compiled_run_goes_on_bit_for_bit(fields, all_is_compiled, tmp_path):
    recipe = replace(TINY, compile=True, **fields)
    auxnet.fit(recipe, tmp_path / "whole")

    def stop(progress):
        if (progress.epoch, progress.step) == (1, 3):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(signals.Stopped):
        auxnet.fit(recipe, tmp_path / "run", watch=stop)
    auxnet.fit(recipe, tmp_path / "run", resume=True)
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]


def test_a_plan_times_compiled_steps(all_is_compiled):
    recipe = replace(TINY, compile=True)
    planned = plan(recipe)
    assert planned.measured_steps == 4
    counted = "the time of compiling, once in a training, is not counted"
    assert f"{counted}; in a training this short it may take longer than it saves" in planned.notes
    assert [*time_notes(recipe, load_data(recipe), 1801)] == [counted]


def test_norms_that_many_processes_share_are_not_compiled():
    with pytest.raises(ValueError, match="sync_batchnorm=True has no meaning beside compile=True"):
        Recipe(compile=True, sync_batchnorm=True)
