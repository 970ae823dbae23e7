"""Steps as graphs: what is recorded and replayed trains to the bits of steps one by one. The graph here is a CPU's."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import auxnet
from auxnet import Recipe, build
from auxnet.capturing import captured
from auxnet.losses import cross_entropy, taught
from test_methods import sgd

TAUGHT = partial(taught, loss=cross_entropy, share=0.3, temperature=2.0)
METHODS = {
    "joint": auxnet.joint,
    "joint, taught": partial(auxnet.joint, taught=TAUGHT),
    "pair-wise": auxnet.pairwise,
    "live": auxnet.multiway,
    "live, clipped": partial(auxnet.multiway, clip=0.1),
    "live, taught": partial(auxnet.multiway, taught=TAUGHT),
    "live, one momentum": partial(auxnet.multiway, state="shared"),
    "live, deep first": partial(auxnet.multiway, order="deep_first"),
    "frozen": partial(auxnet.multiway, mode="frozen"),
    "fused": partial(auxnet.multiway, mode="fused"),
}


class Graph(TorchDispatchMode):
    """As a CUDA graph does: every operator again, in the same memory, with the numbers of then."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


class Recorder:
    """Makes graphs, and counts them. A CUDA graph computes nothing while it is recorded; here that is undone."""

    def __init__(self, net, method):
        self.recorded, self.net, self.method = 0, net, method

    def __call__(self, step):
        self.recorded += 1
        touched = [*self.net.state_dict().values()]
        touched += [each for u in self.method.updates for each in tree_leaves([*u.optimizer.state.values()])]
        before = [each.clone() for each in touched]
        with Graph() as graph:
            losses = step()
        for each, value in zip(touched, before, strict=True):
            each.copy_(value)

        def replay():
            graph.replay()
            return losses

        return replay


class ConvNet:
    """A net with norms on images: BatchNorm's statistics and momenta are what a graph could lose."""

    lambdas = (0.5, 0.8, 1.0)

    def __new__(cls):
        torch.manual_seed(3)
        return auxnet.resnet(depth=8, outputs=3, num_classes=3)

    @staticmethod
    def batches(count, n=6):
        g = torch.Generator().manual_seed(4)
        return [(torch.randn(n, 3, 8, 8, generator=g), torch.randint(3, (n,), generator=g)) for _ in range(count)]


def everything(net, method):
    return [*net.state_dict().values(), *tree_leaves([u.optimizer.state_dict()["state"] for u in method.updates])]


def trained(make, record, happens):
    """What is left of a net after steps, and its losses: `happens` is done, by number, before a step."""
    net = ConvNet()
    method = make(net, sgd(), ConvNet.lambdas)
    recorder = Recorder(net, method)
    stepping = captured(method, recorder, nullcontext) if record else method
    losses = []
    for number, batch in enumerate(ConvNet.batches(12)):
        happens.get(number, lambda method: None)(stepping)
        losses.append(stepping.step(*batch))
    return recorder.recorded, everything(net, method), losses


def slower(method):
    method.set_lr(0.01)


def reweighed(method):
    method.set_weights([0.2, 0.0, 1.0])


def taken_back(method):
    method.load_state_dict(method.state_dict())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("happens", [{}, {5: slower}, {5: reweighed, 9: slower}, {6: taken_back}])
def test_replayed_steps_train_to_the_bits_of_steps_one_by_one(name, happens):
    _, by_itself, losses = trained(METHODS[name], False, happens)
    recorded, replayed, the_same = trained(METHODS[name], True, happens)
    assert recorded > 0
    assert len(by_itself) == len(replayed) > 20
    for a, b in zip([*by_itself, *losses], [*replayed, *the_same], strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_step_is_recorded_once_and_anew_only_when_something_it_decides_has_changed():
    def again(method):
        method.set_lr(0.3)
        method.set_weights(ConvNet.lambdas)

    assert trained(auxnet.multiway, True, {})[0] == 1
    assert trained(auxnet.multiway, True, {6: again, 9: again})[0] == 2  # once: no weights had been set before
    assert trained(auxnet.multiway, True, {6: slower})[0] == 2
    assert trained(auxnet.multiway, True, {6: taken_back})[0] == 2


def test_the_adaptive_rule_reads_losses_in_a_step_and_is_refused():
    with pytest.raises(ValueError, match="cuda_graph=True has no meaning beside step_scale='adaptive'"):
        Recipe(cuda_graph=True, step_scale="adaptive")


def test_a_batch_of_another_shape_is_a_step_by_itself():
    net, other = ConvNet(), ConvNet()
    method, bare = (auxnet.multiway(each, sgd(), ConvNet.lambdas) for each in (net, other))
    recorder = Recorder(net, method)
    stepping = captured(method, recorder, nullcontext)
    for batch in [*ConvNet.batches(6), *ConvNet.batches(1, n=4), *ConvNet.batches(2)]:
        assert torch.equal(stepping.step(*batch), bare.step(*batch))
    assert recorder.recorded == 1
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))


def test_a_recipe_with_graphs_trains_the_same_weights(monkeypatch, tmp_path):
    recorders = []

    def on_this_cpu(method, device):
        recorders.append(Recorder(*nets, method))
        return captured(method, recorders[-1], nullcontext)

    nets = []
    made = build.net_of
    monkeypatch.setattr(build, "on_cuda", on_this_cpu)
    monkeypatch.setattr(build, "net_of", lambda *given: nets.append(made(*given)) or nets[-1])
    recipe = Recipe(data="digits", depth=8, epochs=2, train_images=300, batch_size=64, threads=1, milestones=(0.5,))
    auxnet.fit(recipe, tmp_path / "one by one")
    nets.clear()
    auxnet.fit(replace(recipe, cuda_graph=True), tmp_path / "graphs")
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("one by one", "graphs")]
    assert weights[0] == weights[1]
    assert [each.recorded for each in recorders] == [2]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "cuda_graph needs a CUDA device, got device 'cpu': leave it out"),
        ({"aggregator": "UPGrad", "method": "joint"}, "aggregator='UPGrad' has no meaning beside cuda_graph=True"),
    ],
)
def test_what_a_graph_cannot_be_is_said(recipe, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        auxnet.fit(Recipe(data="digits", depth=8, device="cpu", cuda_graph=True, **recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()
