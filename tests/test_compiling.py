"""A compiled step is the step it was, live stays live, and what is outside of steps is untouched."""

import os
import shutil
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call

import auxnet
from auxnet import signals
from auxnet.compiling import compiled
from auxnet.plan import plan
from auxnet.recipe import Recipe

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    pytest.mark.enough(1),
]
METHODS = {
    "joint": auxnet.joint,
    "pairwise": auxnet.pairwise,
    "live": auxnet.multiway,
    "frozen": partial(auxnet.multiway, mode="frozen"),
    "fused": partial(auxnet.multiway, mode="fused"),
}
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
TINY = Recipe(data="digits", depth=8, epochs=2, train_images=200, batch_size=64, threads=1, milestones=(0.5,))


class Noisy(nn.Module):
    """Draws numbers in training, as dropout does, and counts in a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.seen = self.seen + 1
        return x * torch.rand_like(x)


def net_of():
    torch.manual_seed(0)
    parts = [(3, 4), (4, 5)]
    segments = [nn.Sequential(nn.Conv2d(a, b, 3, bias=False), nn.BatchNorm2d(b), Noisy(), nn.ReLU()) for a, b in parts]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, 4)) for _, b in parts]
    return auxnet.AuxNet(segments, heads, [2, 3]).double().to(memory_format=torch.channels_last).train()


def batch_of(n=6):
    images = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(n) % 4


def compiled_as(name, method, images):
    return compiled(method, images, live=name == "live", pairwise=name == "pairwise")


def trained(name, wrap):
    """The state of a net after two steps with a whole batch and one with a smaller one, and their losses."""
    net = net_of()
    method = wrap(name, METHODS[name](net, SGD, [0.5, 1.0]), batch_of()[0])
    torch.manual_seed(1)
    losses = [method.step(*batch_of(n)) for n in (6, 4, 6)]
    return torch.cat([*(x.flatten().double() for x in net.state_dict().values()), *losses])


@pytest.fixture
def all_is_compiled(monkeypatch):
    """Fail where a compiled forward meets what it was not compiled for, in place of running it as it was."""
    usual = torch.compiler.set_stance
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: usual("fail_on_recompile"))


def test_a_compiled_step_is_the_step_it_was(all_is_compiled):
    """In float64, with random numbers, buffers and a smaller batch; live is far enough from frozen to be told."""
    plain = {name: trained(name, lambda name, method, images: method) for name in METHODS}
    for name, expected in plain.items():
        found = trained(name, compiled_as)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14), name
    assert (plain["live"] - plain["frozen"]).norm() > 1e-6


def test_nothing_is_moved_by_compiling():
    net, (images, labels) = net_of().eval(), batch_of()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    state = torch.get_rng_state()
    method = compiled(auxnet.multiway(net, SGD), images, live=True)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    net.train()
    method.step(images, labels)
    assert not any("forward" in vars(segment) for segment in net.segments)


def frozen(forward, dynamic):
    """A compiled forward that keeps products with weights for its backward, as torch.compile may."""
    segment = forward.__self__
    return lambda x: functional_call(segment, {name: p * 1 for name, p in segment.named_parameters()}, x)


def test_live_refuses_a_compiled_segment_that_would_freeze_it(monkeypatch):
    monkeypatch.setattr(torch, "compile", frozen)
    net, (images, _) = net_of(), batch_of()
    with pytest.raises(RuntimeError, match=r"segment 1, compiled, keeps something else .*: live would be frozen"):
        compiled(auxnet.multiway(net, SGD), images, live=True)
    compiled(auxnet.multiway(net, SGD, mode="frozen"), images)


def test_what_cannot_be_compiled_is_an_error_of_one_line(monkeypatch):
    def fails(forward, dynamic):
        def run(x):
            raise ValueError("no C++ compiler\nTraceback ...")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    message = r"^segment 1 cannot be compiled here \(no C\+\+ compiler\): leave compile out$"
    with pytest.raises(RuntimeError, match=message):
        compiled(auxnet.joint(net_of(), SGD), batch_of()[0])


@pytest.mark.parametrize("fields", [{}, {"method": "pairwise", "ema": 0.9}], ids=str)
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
    planned = plan(replace(TINY, compile=True))
    assert planned.measured_steps == 4
    assert "the time of compiling, once in a training, is not counted" in planned.notes


def test_norms_that_many_processes_share_are_not_compiled():
    with pytest.raises(ValueError, match="sync_batchnorm=True has no meaning beside compile=True"):
        Recipe(compile=True, sync_batchnorm=True)
