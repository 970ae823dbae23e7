"""Training in bfloat16: live multi-way is live there too, against backpropagation written out by hand."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

import auxnet
from auxnet import Recipe, diagnosing
from auxnet.opening import opened
from auxnet.plan import plan
from auxnet.precision import to_bfloat16
from auxnet.update import Update
from test_attaching import Tokens, attach
from test_methods import CLASSES, METHODS, WEIGHTS, HandSGD, K, batches, division, every_method, hand_net, sgd

STEP = 6.0  # so large that live and frozen differ by far more than rounding


def data():
    return [(x.bfloat16(), y) for x, y in batches(1)]


def by_hand(live):
    """One multi-way step (METHOD.md, section 3): products in bfloat16, float32 masters, rounded after each update."""
    net = hand_net()
    W, V, b = ([p.float() for p in group] for group in zip(*_weights(net), strict=True))
    low = torch.bfloat16
    [(x, y)] = data()
    features = [x]
    for w in W:
        features.append(torch.tanh(features[-1] @ w.to(low).T))
    old, optimizer = [w.to(low) for w in W], HandSGD(0.0)
    entering, heads = [], []
    for k in range(K):
        z = (features[k + 1] @ V[k].to(low).T + b[k].to(low)).float()
        dz = (torch.softmax(z, 1) - torch.nn.functional.one_hot(y, CLASSES)) / len(y)
        dz = dz.to(low)
        heads.append((dz.T @ features[k + 1], dz.sum(0)))
        entering.append(WEIGHTS[k] * (dz @ V[k].to(low)))
    for k in range(1, K + 1):
        g = entering[k - 1]
        gradients = {}
        for s in range(k, 0, -1):
            dz = g * (1 - features[s] ** 2)
            gradients[s] = dz.T @ features[s - 1]
            g = dz @ (W[s - 1].to(low) if live else old[s - 1])
        for s, gradient in gradients.items():
            optimizer.step((k, s), W[s - 1], gradient.float(), STEP / division("cumulative", k))
        optimizer.step((k, "V"), V[k - 1], heads[k - 1][0].float(), STEP)
        optimizer.step((k, "b"), b[k - 1], heads[k - 1][1].float(), STEP)
    return W


def test_a_net_brought_back_to_float32_has_no_masters_any_more():
    net = to_bfloat16(auxnet.resnet(depth=8, outputs=2)).float()
    net.load_state_dict(auxnet.resnet(depth=8, outputs=2).state_dict())
    before = [p.detach().clone() for p in net.parameters()]
    method = auxnet.joint(net, partial(torch.optim.SGD, lr=0.0), [1.0, 1.0])
    method.step(torch.randn(4, 3, 8, 8), torch.randint(10, (4,)))
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    assert "masters" not in method.state_dict()


def test_every_weight_has_its_master_also_one_of_two_modules_and_of_a_net_made_so_twice():
    net = hand_net().float()
    net.segments[0].append(copy.deepcopy(net.segments[0][0]))
    net.segments[0][2].weight = net.segments[0][0].weight
    wanted = [p.detach().clone() for p in net.parameters()]
    net = to_bfloat16(to_bfloat16(net))
    assert all(torch.equal(p.master, w) for p, w in zip(net.parameters(), wanted, strict=True))


def test_weights_that_are_loaded_before_the_method_is_built_are_trained():
    net, other = to_bfloat16(hand_net().float()), hand_net().float()
    with torch.no_grad():
        for p in other.parameters():
            p += 0.5
    net.load_state_dict(other.state_dict())
    loaded = [p.detach().clone() for p in net.parameters()]
    method = auxnet.multiway(net, partial(torch.optim.SGD, lr=1e-9), WEIGHTS)
    method.step(*data()[0])
    assert all(map(torch.equal, loaded, net.parameters()))
    masters = {p.data_ptr(): master for update in method.updates for p, master in update.with_master}
    assert len(masters) == len(loaded)
    for p, was in zip(net.parameters(), loaded, strict=True):
        assert torch.allclose(masters[p.data_ptr()], was.float(), atol=1e-7)


@every_method
def test_so_are_those_that_are_loaded_after(make):
    net, best = to_bfloat16(hand_net().float()), hand_net().bfloat16()
    method = make(net, partial(torch.optim.SGD, lr=0.1), WEIGHTS)
    method.step(*data()[0])
    net.load_state_dict(best.state_dict())
    method.set_lr(0.0)
    method.step(*data()[0])
    assert all(map(torch.equal, net.parameters(), best.parameters()))


def test_a_weight_that_is_written_leaves_the_masters_of_the_others_as_they_are():
    """As a mask that prunes does after every step: rounded each time, the others would lose small steps."""
    net = to_bfloat16(hand_net().float())
    method = auxnet.joint(net, partial(torch.optim.SGD, lr=1e-4), WEIGHTS)
    x, y = data()[0]
    method.step(x, y)
    weight = net.segments[0][0].weight
    before, kept = weight.master.clone(), torch.ones_like(weight, dtype=torch.bool)
    kept[0, 0] = False
    with torch.no_grad():
        weight[0, 0] = 0.0
    method.set_lr(0.0)
    method.step(x, y)
    assert torch.equal(weight.master[kept], before[kept])
    assert weight.master[0, 0] == 0


@every_method
@pytest.mark.parametrize("loss", [torch.nn.functional.cross_entropy, torch.nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_losses_are_taken_in_float32(make, loss):
    net = to_bfloat16(hand_net().float())
    method = make(net, partial(torch.optim.SGD, lr=0.0), WEIGHTS, loss=loss)
    x, y = data()[0]
    with torch.no_grad():
        expected = torch.stack([loss(logits.float(), y) for logits in net(x)])
    losses = method.step(x, y)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, expected)


def test_a_copy_which_has_no_masters_is_given_them_or_warned_of():
    copied = copy.deepcopy(to_bfloat16(hand_net().float()))
    with pytest.warns(
        UserWarning, match=r"without float32 masters, .* lose small steps: auxnet\.precision\.to_bfloat16"
    ):
        auxnet.joint(copied, sgd(), WEIGHTS)
    method = auxnet.joint(to_bfloat16(copied.float()), sgd(), WEIGHTS)
    assert len(method.masters()) == 3 * K
    with pytest.raises(
        ValueError, match=f"has 0 float32 masters, the state has {3 * K}: build it on a net of the same"
    ):
        auxnet.joint(hand_net().float(), sgd(), WEIGHTS).load_state_dict(method.state_dict())


def _weights(net):
    return [
        (segment[0].weight.detach().clone(), head.weight.detach().clone(), head.bias.detach().clone())
        for segment, head in zip(net.segments, net.heads, strict=True)
    ]


def trained(mode):
    net = to_bfloat16(hand_net().float())
    method = auxnet.multiway(net, sgd(0.0), WEIGHTS, mode)
    method.set_lr(STEP)
    method.step(*data()[0])
    return net


def distance(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("mode", ["live", "frozen"])
def test_multiway_equals_the_hand_written_computation_in_bfloat16(mode):
    masters = [segment[0].weight.master for segment in trained(mode).segments]
    wanted, other = by_hand(live=mode == "live"), by_hand(live=mode != "live")
    assert distance(masters, wanted) < distance(masters, other) / 10
    assert distance(masters, wanted) < 1e-2  # of weights that move by more than 1: two roundings of bfloat16


def test_a_parameter_is_its_master_rounded():
    for p in trained("live").parameters():
        assert p.dtype == torch.bfloat16
        assert torch.equal(p, p.master.bfloat16())


def test_masters_are_updated_by_averages_that_were_not_rounded_to_bfloat16():
    weight = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
    weight.master = torch.zeros(2, 3)
    update = Update(partial(torch.optim.SGD, lr=1.0), [[weight]], average=lambda flat: flat * (1 + 2**-12))
    update([torch.ones_like(weight)])
    assert torch.equal(weight.master, torch.full((2, 3), -1 - 2**-12))


def test_autocast_which_would_make_live_frozen_is_refused():
    net = hand_net().float()
    method = auxnet.multiway(net, sgd(), WEIGHTS)
    [(x, y)] = batches(1)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="live would be frozen"):
        method.step(x.float(), y)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("block", ["preact", "original"])
@pytest.mark.enough(7)
def test_every_method_trains_a_resnet_in_bfloat16_much_as_in_float32(name, block):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(3)
        net = auxnet.resnet(depth=8, outputs=3, block=block).to(memory_format=torch.channels_last).train()
        x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        x = x.contiguous(memory_format=torch.channels_last).to(dtype)
        net = to_bfloat16(net) if dtype == torch.bfloat16 else net
        method = METHODS[name](net, sgd(1e-4), net.loss_weights())
        method.set_lr(0.02)
        losses.append(torch.stack([method.step(x, torch.arange(16) % 10) for _ in range(4)]))
        norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert all(m.weight.dtype == m.running_mean.dtype == torch.float32 for m in norms)
    torch.testing.assert_close(*losses, rtol=0.03, atol=0.03)


def test_a_run_in_bfloat16_resumes_bit_for_bit_and_hands_back_an_ordinary_net(tmp_path):
    small = {"depth": 8, "outputs": 2, "epochs": 2, "batch_size": 32, "train_images": 100, "threads": 1}
    recipe = Recipe(precision="bfloat16", device="cpu", **small)
    whole = auxnet.fit(recipe, tmp_path / "whole")
    with pytest.raises(_EnoughError):
        auxnet.fit(recipe, tmp_path / "torn", save_every=0, watch=_stop_in_the_second_epoch)
    auxnet.fit(recipe, tmp_path / "torn", resume=True)
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "torn")]
    assert weights[0] == weights[1]
    assert whole.net(torch.randn(1, 1, 8, 8))[0].dtype == torch.float32


class _EnoughError(Exception):
    pass


def _stop_in_the_second_epoch(progress):
    if progress.epoch == 2 and progress.step == 2:
        raise _EnoughError


def test_bfloat16_is_refused_where_it_was_not_shown_to_work():
    for field in (
        {"sync_batchnorm": True},
        {"ema": 0.9},
        {"distill": 0.5},
        {"aggregator": "UPGrad", "method": "joint"},
    ):
        with pytest.raises(
            ValueError, match=f"{next(iter(field))}=.* beside precision='bfloat16': leave one of them out"
        ):
            replace(Recipe(), precision="bfloat16", **field)
    with pytest.raises(ValueError, match="precision='bfloat16' is the built-in ResNets'"):
        Recipe(backbone="timm:resnet18", precision="bfloat16")


def test_images_are_blamed_unless_a_class_token_stays_in_float32():
    net = to_bfloat16(auxnet.resnet(depth=8, outputs=2))
    with pytest.raises(ValueError, match=r"takes images of torch\.bfloat16, got torch\.float32: images\.to"):
        auxnet.joint(net, sgd()).step(torch.zeros(2, 3, 8, 8), torch.arange(2))
    net = to_bfloat16(attach(Tokens(), ("blocks.0",)).train())
    with pytest.raises(RuntimeError, match="same dtype"):
        auxnet.joint(net, sgd()).step(torch.zeros(2, 3, 16, 16, dtype=torch.bfloat16), torch.arange(2))


@pytest.mark.long
def test_a_run_in_bfloat16_can_be_planned_and_diagnosed(tmp_path):
    recipe = replace(Recipe(), depth=8, precision="bfloat16", epochs=1, threads=1, train_images=200, device="cpu")
    assert plan(recipe).seconds_per_epoch > 0
    run = auxnet.fit(recipe, tmp_path / "a")
    with opened(run.folder) as again:
        facts = diagnosing.diagnosis_of_run(run.folder, "a", again, 128, None)
    assert all(0 < row["share"] < 10 for row in facts["shares"])
