"""Trunk, segments, heads: structure, check values of the literature, truncation, loss weights."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import auxnet
from auxnet import cost
from auxnet.cost import costs, count_parameters
from auxnet.modules import statistics_kept
from auxnet.residual import placement
from conftest import multiply_adds


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_the_published_ones(depth, millions):
    net = auxnet.resnet(depth, block="original")
    assert round(count_parameters(net) / 1e6, 1 if depth == 110 else 2) == millions


def test_multiply_adds_of_resnet_20_are_the_hand_count():
    def hand(projections):
        conv = 32 * 32 * 9 * 3 * 16  # stem
        for stage, side in enumerate((32, 16, 8)):
            c = 16 * 2**stage
            first = 9 * (c if stage == 0 else c // 2) * c
            conv += side * side * (first + 5 * 9 * c * c)
            conv += side * side * (c // 2) * c if projections and stage else 0
        return conv + 64 * 10

    assert multiply_adds(auxnet.resnet(20, block="original"), (3, 32, 32)) == hand(projections=False)
    assert multiply_adds(auxnet.resnet(20, block="preact"), (3, 32, 32)) == hand(projections=True)
    assert round(hand(projections=True) / 1e6, 1) == 40.8  # the published 40.8M


def test_outputs_of_auxnet_56_5_are_the_papers():
    net = auxnet.resnet(56, 5, block="original")
    assert net.depths == (15, 25, 35, 45, 56)
    truncated = [params for params, _ in costs(net, (3, 32, 32))]
    assert [int(p / 1e4) / 100 for p in truncated] == [0.03, 0.09, 0.18, 0.48, 0.85]
    assert auxnet.resnet(56, at=(15, 25, 35, 45)).depths == net.depths


@given(n=st.integers(1, 30), k=st.integers(1, 40))
def test_placement_is_even_from_the_top(n, k):
    depth, blocks = 6 * n + 2, 3 * n
    if k > blocks:
        with pytest.raises(ValueError, match="outputs must lie in"):
            placement(depth, k)
        return
    layers = placement(depth, k)
    assert len(layers) == k - 1
    ends = [(layer - 1) // 2 for layer in layers] + [blocks]
    assert {b - a for a, b in pairwise(ends)} <= {blocks // k}
    assert all(layer >= 3 for layer in layers)


@pytest.mark.parametrize("block", ["plain", "original", "preact"])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("size", [8, 9, 32, 64])
@pytest.mark.enough(10)
def test_every_form_takes_every_size_and_truncates_exactly(block, width, size):
    net = auxnet.resnet(8, 3, block=block, width=width, num_classes=4, in_channels=1).eval()
    x = torch.randn(2, 1, size, size)
    with torch.no_grad():
        logits = net(x)
        for k, expected in enumerate(logits, start=1):
            alone = net.truncate(k)
            assert torch.equal(alone(x), expected)
            used = {name for name, _ in alone.named_parameters()}
            assert sum(p.numel() for p in alone.parameters()) == costs(net, (1, size, size))[k - 1][0]
            assert len(used) == len([*net.segments[:k].parameters(), *net.heads[k - 1].parameters()])
    assert all(z.shape == (2, 4) for z in logits)


@pytest.mark.parametrize("depth", [8, 50])
@pytest.mark.parametrize("block", ["plain", "original", "preact"])
@pytest.mark.enough(2)
def test_a_truncated_model_can_be_a_script(block, depth):
    form = "cifar" if depth == 8 else "imagenet"
    alone = auxnet.resnet(depth, 2, block=block, form=form).truncate(2).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(torch.jit.script(alone)(x), alone(x))


def test_a_truncated_model_is_a_copy():
    net = auxnet.resnet(8, 2)
    alone = net.truncate(1)
    with torch.no_grad():
        next(alone.parameters()).zero_()
    assert next(net.parameters()).abs().sum() > 0


def test_a_plain_network_has_no_shortcut_and_an_original_one_has():
    plain = auxnet.resnet(8, block="plain").eval().segments[0]
    original = auxnet.resnet(8, block="original").eval().segments[0]
    for block in (plain[3], original[3], plain[4], original[4]):
        nn.init.zeros_(block.conv2.weight)  # F = 0: what is left is f(h(x))
    x = torch.randn(2, 16, 6, 6).relu()
    assert torch.equal(plain[3](x), torch.zeros_like(x))
    assert torch.equal(original[3](x), x)
    subsampled = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 3, 3)], 1)
    assert torch.equal(original[4](x), subsampled)  # option A: no parameters, zeros for the missing channels


def test_preactivation_blocks_leave_the_identity_untouched():
    segment = auxnet.resnet(8).eval().segments[0]
    nn.init.zeros_(segment[1].conv2.weight)
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(segment[1](x), x)


@pytest.mark.parametrize(
    ("block", "head", "forms"),
    [
        ("preact", "default", [True, True, True]),
        ("original", "default", [False, False, False]),
        ("preact", "linear", [False, False, True]),
        ("original", "bn_relu", [True, True, False]),
    ],
)
def test_auxiliary_heads_take_the_form_of_the_final_one_unless_told(block, head, forms):
    net = auxnet.resnet(8, 3, block=block, head=head)
    assert [h.bn is not None for h in net.heads] == forms
    assert all(torch.equal(h.fc.bias, torch.zeros(10)) for h in net.heads)


def test_a_head_leaves_the_trunks_feature_as_it_was():
    net = auxnet.resnet(8, 3)
    features = net.features(torch.randn(2, 3, 8, 8))
    for head, x in zip(net.heads, features, strict=True):
        before = x.clone()
        head(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: auxnet.EarlyExit(net, [0.5, 0.5])])
def test_a_head_that_changes_the_trunks_feature_is_refused(wrap):
    """The outputs above it would be others than those that `truncate` takes away."""
    net, x = auxnet.resnet(8, 3).eval(), torch.randn(2, 3, 8, 8)
    net.heads[0] = nn.Sequential(nn.ReLU(inplace=True), net.heads[0])
    with pytest.raises(ValueError, match="head 1 changes its feature in place, which the trunk needs too: inplace=F"):
        wrap(net)(x)
    net.heads[0][0].inplace = False
    assert torch.equal(net(x)[2], net.truncate(3)(x))


def test_the_final_head_may_change_its_feature_for_nothing_above_reads_it():
    net, x = auxnet.resnet(8, 3).eval(), torch.randn(2, 3, 8, 8)
    net.heads[2] = nn.Sequential(nn.ReLU(inplace=True), net.heads[2])
    assert torch.equal(net.alone(3)(x)[0], net.truncate(3)(x))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.equal(net(x)[2], net.truncate(3)(x))
            assert torch.equal(auxnet.EarlyExit(net, [2.0, 2.0])(x).logits, net(x)[2])


@pytest.mark.enough(1)
@pytest.mark.parametrize("strict", [True, False])
def test_a_whole_net_can_still_be_exported(strict):
    net, x = auxnet.resnet(8, 2).eval(), torch.randn(2, 3, 8, 8)
    exported = torch.export.export(net, (x,), strict=strict).module()
    with torch.inference_mode():
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(exported(x), net(x), strict=True))


def test_bytes_are_refused_in_a_line_unless_the_trunk_takes_them():
    net, x = auxnet.resnet(8, 2).eval(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for use in (net, net.alone(1), auxnet.EarlyExit(net, [0.5])):
        with pytest.raises(ValueError, match=r"^this net takes images of torch\.float32, .* or net\.prepare\(\.\.\.\)"):
            use(x)

    class Normalised(nn.Module):
        def forward(self, x):
            return x.float() / 255

    net.segments[0].insert(0, Normalised())
    assert torch.equal(auxnet.EarlyExit(net, [2.0])(x).logits, net(x)[1])


def test_loss_weights_are_the_papers_and_the_authors():
    net = auxnet.resnet(56, 5)
    assert net.loss_weights().tolist() == pytest.approx(
        [(15 / 56) ** 2, (25 / 56) ** 2, (35 / 56) ** 2, (45 / 56) ** 2, 1]
    )
    authors = net.loss_weights(relative_to="last_auxiliary").tolist()
    assert authors == pytest.approx([0.111, 0.309, 0.605, 1, 1], abs=1e-3)
    assert net.loss_weights(gamma=0).tolist() == [1] * 5
    assert net.loss_weights(gamma=1).tolist() == pytest.approx([15 / 56, 25 / 56, 35 / 56, 45 / 56, 1])
    assert net.loss_weights(gamma=20, floor=0.03).tolist()[:3] == [0.03] * 3
    assert auxnet.resnet(8).loss_weights(relative_to="last_auxiliary").tolist() == [1]
    assert auxnet.network.loss_weights([0, 3], relative_to="last_auxiliary").tolist() == [0.01, 1]


def test_outputs_cost_what_their_models_do_and_counting_leaves_the_net_as_it_was():
    net = auxnet.resnet(8, 2).train()
    before = copy.deepcopy(net.state_dict())
    counted = costs(net, (3, 8, 8))
    alone = [net.truncate(k) for k in (1, 2)]
    assert counted == [(count_parameters(model), multiply_adds(model, (3, 8, 8))) for model in alone]
    assert net.training
    assert all(map(torch.equal, before.values(), net.state_dict().values()))


@pytest.mark.parametrize(
    "net", [{"outputs": 3}, {"block": "original"}, {"block": "plain"}, {"form": "imagenet"}], ids=str
)
def test_counting_for_real_and_on_meta_are_the_same_and_pytorchs(net, monkeypatch):
    def run(pairs, x, run=cost._run):
        places.append(x.device.type)
        return run(pairs, x)

    places = []
    monkeypatch.setattr(cost, "_run", run)
    made = auxnet.resnet(50 if "form" in net else 8, **net)
    counted = costs(made, (3, 32, 32))
    monkeypatch.setattr(cost, "SMALL_IMAGE", 0)
    assert costs(made, (3, 32, 32)) == counted
    assert places == ["cpu", "meta"]
    with FlopCounterMode(display=False) as operations, torch.no_grad():
        made.eval().truncate(1)(torch.zeros(1, 3, 32, 32))
    assert counted[0][1] == operations.get_total_flops() // 2


@pytest.mark.parametrize("looks", [False, True])
def test_multiply_adds_of_recurrent_nets_are_counted(looks):
    """Run for real they are one operator, of which PyTorch counts nothing; what looks at values is run for real."""

    class Net(nn.LSTM):
        def forward(self, x):
            if looks and float(x.abs().max()) > 1e9:
                raise ValueError
            return super().forward(x.flatten(2).transpose(1, 2))[0]

    assert multiply_adds(Net(3, 16, bidirectional=True), (3, 4, 4)) == 16 * 2 * 4 * 16 * (3 + 16)


def test_multiply_adds_are_counted_where_a_parameter_enters_a_module():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.fc = nn.Parameter(torch.zeros(1, 5)), nn.Linear(5, 2)

        def forward(self, x):
            return self.fc(self.token.expand(len(x), -1)) + x.mean()

    assert multiply_adds(Token(), (3, 4, 4)) == 10


def test_kept_statistics_still_normalise_by_the_batch():
    norm = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5) * 7 + 3
    with statistics_kept([norm]):
        y = norm(x)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True))
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))
    norm.eval()
    with statistics_kept([norm]):
        torch.testing.assert_close(norm(x), x / (1 + norm.eps) ** 0.5)
    assert norm.track_running_stats


class Counted(nn.Module):
    """BatchNorm as a function, over buffers of its own; and a count that is put anew in place of the old one."""

    def __init__(self, channels):
        super().__init__()
        self.mean, self.var = nn.Buffer(torch.zeros(channels)), nn.Buffer(torch.ones(channels))
        self.seen = nn.Buffer(torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.seen = self.seen + 1
        return F.batch_norm(x, self.mean, self.var, training=self.training)


def test_statistics_of_norms_that_are_no_batchnorm_are_put_back_and_they_can_be_differentiated():
    norms = nn.Sequential(Counted(3), nn.InstanceNorm2d(3, track_running_stats=True))
    before = copy.deepcopy(norms.state_dict())
    x = (torch.randn(4, 3, 5, 5) * 7 + 3).requires_grad_()
    with statistics_kept([norms]):
        norms(x).square().sum().backward()
        assert not torch.equal(norms[1].running_mean, before["1.running_mean"])
    assert before.keys() == norms.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in norms.state_dict().items())
    norms(x)
    assert norms[0].seen == 1


def test_buffers_that_cannot_be_written_to_are_kept_as_they_are():
    module = nn.Identity()
    module.register_buffer("filters", filters := torch.ones(1, 1, 3, 3).expand(4, 1, 3, 3))
    with statistics_kept([module]):
        module.filters = torch.zeros(1)
    assert module.filters is filters


@settings(deadline=None)
@given(depth=st.integers(-3, 200))
def test_depths_other_than_6n_plus_2_are_refused_with_the_nearest(depth):
    if depth >= 8 and depth % 6 == 2:
        return
    with pytest.raises(ValueError, match=f"depth must be 6n \\+ 2 .*got {depth}; the nearest are"):
        placement(depth, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 28, "width": 10}, "WRN-28-10 is depth 26"),
        ({"at": (7, 5)}, "at must be increasing layers in 3..17"),
        ({"at": (1, 5)}, "at must be increasing"),
        ({"at": 15}, r"at must be layers, such as at=\(15,\), got the number 15"),
        ({"at": (4,)}, "each the end of a block"),
        ({"at": (19,)}, "at must be increasing layers in 3..17"),
        ({"at": (5, 9), "outputs": 2}, "makes 3 outputs, but outputs=2"),
        ({"outputs": 10}, "outputs must lie in 1..9"),
        ({"outputs": 0}, "outputs must lie in 1..9"),
        ({"block": "bottleneck"}, "block must be one of plain, original, preact"),
        ({"head": "mlp"}, "head must be one of"),
        ({"width": 0}, "width must be a whole number, 1 or more"),
        ({"num_classes": 1}, "num_classes must be a whole number, 2 or more"),
        ({"in_channels": 0}, "in_channels must be a whole number, 1 or more"),
        ({"depth": 20.0}, r"depth must be a whole number, got 20\.0"),
        ({"outputs": 2.0}, r"outputs must be a whole number, got 2\.0"),
        ({"num_classes": 3.0}, r"num_classes must be a whole number, 2 or more, got 3\.0"),
        ({"at": (3.0,)}, r"each layer of at must be a whole number, got 3\.0"),
    ],
)
def test_impossible_networks_say_why(options, words):
    with pytest.raises(ValueError, match=words):
        auxnet.resnet(**{"depth": 20, **options})


def test_whole_numbers_of_numpy_are_whole_numbers():
    eight, two, one = np.int64(8), np.int32(2), np.uint8(1)
    net = auxnet.resnet(depth=eight, outputs=two, width=one, num_classes=two, in_channels=one)
    assert net.depths == auxnet.resnet(depth=eight, at=np.array([5])).depths == (5, 8)
    assert all(type(depth) is int for depth in net.depths)
    assert net.heads[0].fc.out_features == 2


def test_there_is_no_output_zero():
    with pytest.raises(ValueError, match=r"output must be one of 1\.\.2"):
        auxnet.resnet(8, 2).truncate(0)
    with pytest.raises(ValueError, match="gamma must be 0"):
        auxnet.resnet(8, 2).loss_weights(gamma=-1)
    with pytest.raises(ValueError, match=r"gamma must be 0 .* got 'a'"):
        auxnet.resnet(8, 2).loss_weights(gamma="a")
    for floor in (2, "a"):
        with pytest.raises(ValueError, match=rf"floor must lie in 0\.\.1, got {floor!r}"):
            auxnet.resnet(8, 2).loss_weights(floor=floor)
    with pytest.raises(ValueError, match="relative_to must be"):
        auxnet.resnet(8, 2).loss_weights(relative_to="middle")
    with pytest.raises(ValueError, match="one head and one depth to each segment"):
        auxnet.AuxNet([nn.Identity()], [], [3])


def test_an_output_alone_shares_its_modules_and_gives_its_logits():
    net, x = auxnet.resnet(20, 3).eval(), torch.randn(2, 3, 16, 16)
    for k in (1, 2, 3):
        alone = net.alone(k)
        assert torch.equal(alone(x)[0], net(x)[k - 1])
        assert alone.depths == net.depths[k - 1 : k]
        assert sum(p.numel() for p in alone.parameters()) == sum(p.numel() for p in net.truncate(k).parameters())
    assert alone.heads[0] is net.heads[2]
    with pytest.raises(ValueError, match=r"output must be one of 1\.\.3"):
        net.alone(4)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_made_of_a_net_is_in_its_mode(training):
    net = auxnet.resnet(depth=8, outputs=3).train(training)
    net.segments[0].train(not training)  # and what is in another mode stays so
    for made in (net.truncate(2), net.alone(2), net.up_to(2), auxnet.EarlyExit(net, [0.5, 0.5])):
        assert made.training == training
        modes = {name: module.training for name, module in made.named_modules()}
        assert set(modes.values()) == {True, False}
        assert {mode for name, mode in modes.items() if name.startswith(("head", "net.head"))} == {training}


@pytest.mark.parametrize("output", [None, "2", 1.0, 0, 4])
def test_what_is_no_output_is_refused(output):
    net = auxnet.resnet(depth=8, outputs=3)
    with pytest.raises(ValueError, match=r"output must be one of 1\.\.3 \(shallow to deep\), got"):
        net.truncate(output)
