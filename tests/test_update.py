"""Optimizers that are handed their gradients: fused ones too, whatever lies where in memory, and whenever it comes."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import auxnet
from test_methods import every_method, images, small


def weights_after(make, optimizer, net, n=2, steps=2, weights=None):
    """All weights after some steps on images in channels_last."""
    method = make(net, optimizer, weights)
    for _ in range(steps):
        x = torch.randn(n, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        method.step(x, torch.arange(n))
    return torch.cat([p.detach().flatten() for p in net.parameters()])


class Placed(nn.Module):
    """A position table, whose gradient autograd expands where there is one image alone."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 8, 4, 4))

    def forward(self, x):
        return x + self.table


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(torch.optim.AdamW, lr=0.01)])
@every_method
def test_fused_optimizers_step_as_others_do_whatever_the_layout_of_gradients(make, kind, n):
    """Their kernels walk along weights and gradients side by side."""
    ends = []
    for fused in (False, True):
        torch.manual_seed(1)
        segments = [nn.Sequential(nn.Conv2d(3, 8, 2, 2), Placed()), nn.Conv2d(8, 8, 3, padding=1)]
        heads = [nn.Sequential(nn.Flatten(), nn.Linear(128, 3)) for _ in segments]
        ends.append(weights_after(make, partial(kind, fused=fused), auxnet.AuxNet(segments, heads, [1, 2]), n))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [auxnet.joint, partial(auxnet.multiway, state="shared")])
@pytest.mark.parametrize("settings", [{}, {"dampening": 0.5, "weight_decay": 0.1, "maximize": True}])
def test_a_parameter_that_gets_its_first_gradient_late_is_no_matter_to_fused_sgd(make, settings):
    ends = []
    for fused in (False, True):
        net = small()
        method = make(net, partial(torch.optim.SGD, lr=0.01, momentum=0.9, fused=fused, **settings), [0.0, 0.8, 1.0])
        method.step(*images())
        method.set_weights([0.5, 0.8, 1.0])
        for _ in range(2):
            method.step(*images())
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_sparse_gradients_reach_an_optimizer_that_takes_them():
    ends = []
    for sparse in (False, True):
        torch.manual_seed(1)
        table = nn.Embedding(7, 4, sparse=sparse)
        heads = [nn.Sequential(nn.Flatten(), nn.Linear(20, 3)) for _ in range(2)]
        net = auxnet.AuxNet([table, nn.Linear(4, 4)], heads, [1, 2])
        auxnet.joint(net, partial(torch.optim.SGD, lr=0.1)).step(torch.randint(7, (6, 5)), torch.arange(6) % 3)
        ends.append(table.weight.detach())
    torch.testing.assert_close(*ends)


class Summed(nn.Linear):
    """Its own bias and another: autograd gives both one gradient, and `autograd.grad` one and the same tensor."""

    def __init__(self):
        super().__init__(4, 4)
        self.other = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias + self.other).tanh()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("implementation", ["foreach", "fused", "for loop"])
@every_method
def test_parameters_whose_gradients_are_one_tensor_step_as_under_backward(make, implementation, clip):
    """Clipping and Nesterov's momentum work in place: that tensor must not be worked on once for each of them."""
    torch.manual_seed(1)
    net = auxnet.AuxNet([Summed()], [nn.Linear(4, 3)], [1]).double()
    twin = copy.deepcopy(net)
    options = {} if implementation == "for loop" else {implementation: True}
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, **options)
    method, by_torch = make(net, sgd, clip=clip), sgd(twin.parameters())
    for _ in range(2):
        x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))
        method.step(x, y)
        by_torch.zero_grad()
        nn.functional.cross_entropy(twin(x)[0], y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(twin.parameters(), clip)
        by_torch.step()
    torch.testing.assert_close([*net.parameters()], [*twin.parameters()], rtol=0, atol=1e-12)


def test_a_batch_of_no_image_is_refused():
    x, y = images()
    with pytest.raises(ValueError, match="needs one image or more"):
        auxnet.joint(small(), torch.optim.SGD).step(x[:0], y[:0])


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_state_goes_on_in_a_net_of_another_layout(fused):
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net, optimizer = small(), partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=fused)
        method = auxnet.multiway(net, optimizer)
        method.step(*images())
        state, net = method.state_dict(), net.to(memory_format=layout)
        method = auxnet.multiway(net, optimizer)
        method.load_state_dict(state)
        method.step(*images())
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


def test_counts_of_steps_lie_where_the_method_runs_whether_it_was_captured_before_or_not():
    """With `capturable` on the device, which is "meta" here, without it on the CPU; a checkpoint is read on the CPU."""
    for before in (False, True):
        saved = auxnet.joint(small(), partial(torch.optim.RMSprop, lr=0.01, capturable=before))
        for alias in saved.updates[0].aliases:
            saved.updates[0].optimizer.state[alias] = {"step": torch.tensor(3.0)}
        method = auxnet.joint(small().to("meta"), partial(torch.optim.RMSprop, lr=0.01, capturable=not before))
        method.load_state_dict(saved.state_dict())
        optimizer = method.updates[0].optimizer
        assert {group["capturable"] for group in optimizer.param_groups} == {not before}
        assert {v["step"].device.type for v in optimizer.state.values()} == {"cpu" if before else "meta"}


def test_a_function_that_gives_no_optimizer_is_refused():
    for made, kind in ((3, "int"), (None, "NoneType")):
        with pytest.raises(
            TypeError, match=rf"^optimizer must be .*, that gives a torch\.optim\.Optimizer: it gave {kind}"
        ):
            auxnet.multiway(small(), lambda parameters, made=made: made)
