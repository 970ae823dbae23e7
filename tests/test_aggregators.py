"""Conflict-averse combination of the outputs' gradients: torchjd's aggregators in joint training."""

import sys
from dataclasses import replace
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import nn

import auxnet
from auxnet import build, by_name
from auxnet.distributed import Team, team
from auxnet.recipe import Recipe
from auxnet.synchronised import synchronise_norms
from teamwork import batches, shared, small_net, started

TINY = Recipe(depth=8, outputs=3, epochs=1, batch_size=256, threads=1, device="cpu", method="joint", lr=0.01)
CLASSES, N = 3, 6


def quarrelling_net():
    """Two outputs on one segment that are asked for opposite things: their gradients there conflict."""
    torch.manual_seed(0)
    net = auxnet.AuxNet([nn.Linear(4, 4), nn.Identity()], [nn.Linear(4, CLASSES) for _ in range(2)], (2, 3)).double()
    with torch.no_grad():
        net.heads[1].weight.copy_(-1.5 * net.heads[0].weight + 0.2 * torch.randn(CLASSES, 4, dtype=torch.float64))
    return net


def gradients_in_the_segment(net, x, y, weights):
    rows = []
    for z, w in zip(net(x), weights, strict=True):
        parts = torch.autograd.grad(
            w * nn.functional.cross_entropy(z, y), list(net.segments.parameters()), retain_graph=True
        )
        rows.append(torch.cat([p.flatten() for p in parts]))
    return rows


def step_in_the_segment(weights, **options):
    """(gradients of each output in the segment, the way that the segment went)."""
    net = quarrelling_net()
    x, y = torch.randn(N, 4, dtype=torch.float64), torch.arange(N) % CLASSES
    rows = gradients_in_the_segment(net, x, y, weights)
    before = torch.cat([p.detach().flatten().clone() for p in net.segments.parameters()])
    auxnet.joint(net, partial(torch.optim.SGD, lr=1.0), weights, "none", **options).step(x, y)
    return rows, before - torch.cat([p.detach().flatten() for p in net.segments.parameters()])


def test_upgrad_makes_no_output_worse_where_the_sum_does():
    pytest.importorskip("torchjd")
    weights = [0.3, 1.0]
    rows, by_sum = step_in_the_segment(weights)
    assert min(float(row @ by_sum) for row in rows) < 0
    rows, by_upgrad = step_in_the_segment(weights, aggregate=by_name.aggregator_of("UPGrad"))
    assert min(float(row @ by_upgrad) for row in rows) >= -1e-9 * float(by_upgrad.norm())


def test_the_mean_of_torchjd_is_joint():
    pytest.importorskip("torchjd")
    _, by_sum = step_in_the_segment([0.3, 1.0])
    _, by_mean = step_in_the_segment([0.3, 1.0], aggregate=by_name.aggregator_of("Mean"))
    torch.testing.assert_close(by_mean, by_sum)


@pytest.mark.parametrize("name", ["Sum", "PCGrad", "GradDrop", "ConFIG", "MGDA", "UPGrad"])
def test_of_equal_gradients_every_aggregator_makes_their_sum_and_draws_nothing(name):
    pytest.importorskip("torchjd")
    state = torch.get_rng_state()
    aggregate = by_name.aggregator_of(name)
    assert torch.equal(torch.get_rng_state(), state)
    row = torch.tensor([1.0, -2.0, 0.5])
    torch.testing.assert_close(aggregate(row.expand(3, 3)), row, atol=1e-3, rtol=1e-3)


def test_pcgrad_is_that_of_its_paper():
    """Each gradient is projected onto the plane normal to those it conflicts with; their sum is used (algorithm 1)."""
    pytest.importorskip("torchjd")
    weights = [0.3, 1.0]
    (a, b), went = step_in_the_segment(weights, aggregate=by_name.aggregator_of("PCGrad"))
    assert a @ b < 0
    torch.testing.assert_close(went, (a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a))


def test_the_heads_train_alone_on_a_trunk_that_is_frozen():
    net = quarrelling_net()
    net.segments.requires_grad_(False)
    before = [head.weight.detach().clone() for head in net.heads]
    method = auxnet.joint(net, partial(torch.optim.SGD, lr=1.0), [0.3, 1.0], aggregate=lambda rows: rows.mean(0))
    method.step(torch.randn(N, 4, dtype=torch.float64), torch.arange(N) % CLASSES)
    assert not any(torch.equal(head.weight, old) for head, old in zip(net.heads, before, strict=True))


@pytest.mark.parametrize("name", ["UPGrad", "PCGrad", "MGDA", "IMTLG"])
@pytest.mark.enough(1)
def test_a_recipe_trains_with_an_aggregator(name, tmp_path):
    pytest.importorskip("torchjd")
    run = auxnet.fit(replace(TINY, aggregator=name), tmp_path / "a")
    assert run.summary["last"][-1]["val_error"] < 0.9
    first = (run.folder / "model.safetensors").read_bytes()
    auxnet.fit(replace(TINY, aggregator=name), tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == first


def test_an_aggregator_that_cannot_be_is_named():
    pytest.importorskip("torchjd")
    with pytest.raises(ValueError, match="torchjd has no aggregator 'UPGard'; perhaps you meant 'UPGrad'"):
        by_name.aggregator_of("UPGard")
    with pytest.raises(ValueError, match="torchjd's GradVac remembers steps"):
        by_name.aggregator_of("GradVac")
    with pytest.raises(ValueError, match="torchjd's CAGrad cannot be made from its name alone"):
        by_name.aggregator_of("CAGrad")


def test_without_torchjd_its_aggregators_name_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(ValueError, match="is torchjd's, which is not installed: pip install 'torchjd"):
        by_name.aggregator_of("UPGrad")


def test_only_aggregators_are_taken_from_torchjd(monkeypatch):
    """Against a stand-in of the library, so that it holds where that is not installed."""
    aggregation, torchjd = ModuleType("torchjd.aggregation"), ModuleType("torchjd")
    aggregation.Aggregator = type("Aggregator", (), {})
    aggregation.First = type("First", (aggregation.Aggregator,), {"__call__": lambda self, rows: rows[0]})
    aggregation.Helper = type("Helper", (), {})
    torchjd.aggregation = aggregation
    monkeypatch.setitem(sys.modules, "torchjd", torchjd)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", aggregation)
    rows, went = step_in_the_segment([0.3, 1.0], aggregate=by_name.aggregator_of("First"))
    torch.testing.assert_close(went, 2 * rows[0])
    with pytest.raises(ValueError, match="torchjd has no aggregator 'Helper'"):
        by_name.aggregator_of("Helper")


def test_an_aggregator_that_draws_random_numbers_draws_once_for_all_processes(tmp_path, monkeypatch):
    """Each process has random numbers of its own (dropout): the mean of several draws would be another algorithm."""
    recipe = replace(TINY, aggregator="Drawing", lr=0.5)
    monkeypatch.setattr(build, "aggregator_of", lambda name: lambda rows: torch.rand(len(rows)).to(rows) @ rows)

    def trained_by(t):
        torch.manual_seed(t.rank)
        net = small_net()
        synchronise_norms(net, t)
        torch.manual_seed(t.rank)
        method = build.build_method(recipe, net, nn.functional.cross_entropy, t)
        for batch in batches():
            method.step(*shared(t, *batch))
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    def work():
        with team() as t:
            torch.save(trained_by(t), tmp_path / f"{t.rank}")

    processes = started(2, work)
    for process in processes:
        process.join(60)
    one, two = (torch.load(tmp_path / f"{rank}") for rank in range(2))
    assert torch.equal(one, two)
    torch.testing.assert_close(one, trained_by(Team()), rtol=1e-9, atol=1e-9)
