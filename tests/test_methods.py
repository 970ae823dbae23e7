"""The laws of the three methods, against backpropagation and SGD written out by hand in float64 (no autograd)."""

import copy
import inspect
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._pytree import tree_leaves

import auxnet
from auxnet.method import Method
from auxnet.methods import adaptive_scales, step_scales
from auxnet.update import Update
from auxnet.watching import PeakBytes

UNFIT = ("Optimizer", "SparseAdam", "LBFGS", "Muon", "Rprop", "ASGD", "Adafactor")
ETA, MOMENTUM, DECAY = 0.3, 0.9, 0.02
K, CLASSES, WIDTH, N = 4, 3, 5, 7
WEIGHTS = [0.9, 0.6, 0.7, 1.0]  # chosen so that the division by their sum acts in some passes and not in others


# ---- a net small enough to differentiate by hand: x_k = tanh(W_k x_{k-1}), logits_k = x_k V_k' + b_k -----------------


def hand_net():
    torch.manual_seed(1)
    segments = [nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh()) for _ in range(K)]
    heads = [nn.Linear(WIDTH, CLASSES) for _ in range(K)]
    with torch.no_grad():
        heads[0].bias += torch.tensor(
            [6.0, 0.0, -6.0]
        )  # a first loss more than twice the last, so that the adaptive rule acts there
    return auxnet.AuxNet(segments, heads, depths=[2, 3, 4, 5]).double()


def batches(count=4):
    g = torch.Generator().manual_seed(2)
    return [
        (torch.randn(N, WIDTH, generator=g, dtype=torch.float64), torch.randint(CLASSES, (N,), generator=g))
        for _ in range(count)
    ]


def weights_of(net):
    return (
        [segment[0].weight.detach().clone() for segment in net.segments],
        [head.weight.detach().clone() for head in net.heads],
        [head.bias.detach().clone() for head in net.heads],
    )


def hand_features(W, x):
    features = [x]
    for w in W:
        features.append(torch.tanh(features[-1] @ w.T))
    return features  # features[0] is the input, features[k] is x_k


def hand_head(V, b, x, y):
    """Loss, dL/dx, dL/dV, dL/db of the mean cross-entropy."""
    z = x @ V.T + b
    p = torch.exp(z - z.max(1, keepdim=True).values)
    p /= p.sum(1, keepdim=True)
    loss = -torch.log(p[torch.arange(N), y]).mean()
    dz = p.clone()
    dz[torch.arange(N), y] -= 1
    dz /= N
    return loss, dz @ V, dz.T @ x, dz.sum(0)


def hand_trunk(W, features, k, entering):
    """dL/dW_1..dW_k for a gradient that enters at x_k: features as given, weights as given."""
    gradients, g = {}, entering
    for s in range(k, 0, -1):
        dz = g * (1 - features[s] ** 2)
        gradients[s] = dz.T @ features[s - 1]
        g = dz @ W[s - 1]
    return gradients


class HandSGD:
    """Nesterov SGD with weight decay, one momentum buffer per key."""

    def __init__(self, decay):
        self.buffers, self.decay = {}, decay

    def step(self, key, parameter, gradient, eta, decay_factor=1.0):
        d = gradient + self.decay * decay_factor * parameter
        v = MOMENTUM * self.buffers[key] + d if key in self.buffers else d.clone()
        self.buffers[key] = v
        parameter -= eta * (d + MOMENTUM * v)


def division(rule, k, losses=None):
    """What the trunk's step is divided by in pass k = 1..K (METHOD.md section 3)."""
    if rule == "none":
        return 1.0
    if rule == "adaptive" and losses[k - 1] / losses[-1] > 2:
        return float(losses[k - 1] / losses[-1])
    return max(1.0, sum(WEIGHTS[k - 1 : K - 1]))


def hand_joint(net, data, rule, decay):
    W, V, b = weights_of(net)
    sgd = HandSGD(decay)
    for x, y in data:
        features = hand_features(W, x)
        trunk = {s: torch.zeros_like(W[s - 1]) for s in range(1, K + 1)}
        heads = []
        for k in range(1, K + 1):
            _, dx, dV, db = hand_head(V[k - 1], b[k - 1], features[k], y)
            heads.append((WEIGHTS[k - 1] * dV, WEIGHTS[k - 1] * db))
            for s, g in hand_trunk(W, features, k, WEIGHTS[k - 1] * dx).items():
                trunk[s] += g
        for s in range(1, K + 1):
            above = sum(WEIGHTS[k - 1] for k in range(s, K)) if rule == "sum" else 0.0
            sgd.step(("W", s), W[s - 1], trunk[s], ETA / max(1.0, above))
            sgd.step(("V", s), V[s - 1], heads[s - 1][0], ETA)
            sgd.step(("b", s), b[s - 1], heads[s - 1][1], ETA)
    return W, V, b


def hand_pairwise(net, data, rule, decay):
    W, V, b = weights_of(net)
    sgd = HandSGD(decay)
    for x, y in data:
        for k in range(1, K + 1):
            features = hand_features(W, x)  # new features from the new weights, for every output
            _, dx, dV, db = hand_head(V[k - 1], b[k - 1], features[k], y)
            for s, g in hand_trunk(W, features, k, WEIGHTS[k - 1] * dx).items():
                sgd.step((k, "W", s), W[s - 1], g, ETA / division(rule, k))
            sgd.step((k, "V"), V[k - 1], dV, ETA)
            sgd.step((k, "b"), b[k - 1], db, ETA)
    return W, V, b


def hand_multiway(net, data, rule, decay, live, shared=False, sequence=range(1, K + 1)):
    W, V, b = weights_of(net)
    sgd = HandSGD(decay)
    for x, y in data:
        features = hand_features(W, x)  # once
        old_W = [w.clone() for w in W]
        heads = [hand_head(V[k], b[k], features[k + 1], y) for k in range(K)]
        losses = [loss for loss, *_ in heads]
        for k in sequence:
            _, dx, dV, db = heads[k - 1]
            gradients = hand_trunk(W if live else old_W, features, k, WEIGHTS[k - 1] * dx)
            for s, g in gradients.items():
                sgd.step(("all" if shared else k, "W", s), W[s - 1], g, ETA / division(rule, k, losses))
            sgd.step((k, "V"), V[k - 1], dV, ETA)
            sgd.step((k, "b"), b[k - 1], db, ETA)
    return W, V, b


def sgd(decay=DECAY, **options):
    return partial(torch.optim.SGD, lr=ETA, momentum=MOMENTUM, nesterov=True, weight_decay=decay, **options)


def trained(make, data, decay=DECAY):
    net = hand_net()
    method = make(net, sgd(decay), WEIGHTS)
    for x, y in data:
        method.step(x, y)
    return weights_of(net)


def assert_same(a, b, tolerance=1e-12):
    for group_a, group_b in zip(a, b, strict=True):
        for x, y in zip(group_a, group_b, strict=True):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def distance(a, b):
    return max(float((x - y).abs().max()) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("rule", ["none", "sum"])
def test_joint_equals_the_hand_written_computation(rule):
    made = trained(partial(auxnet.joint, step_scale=rule), batches())
    assert_same(made, hand_joint(hand_net(), batches(), rule, DECAY))


@pytest.mark.parametrize("rule", ["none", "cumulative"])
def test_pairwise_equals_the_hand_written_computation(rule):
    made = trained(partial(auxnet.pairwise, step_scale=rule), batches())
    assert_same(made, hand_pairwise(hand_net(), batches(), rule, DECAY))


def test_the_adaptive_rule_acts_on_some_outputs_of_the_hand_net_and_not_on_others():
    net = hand_net()
    W, V, b = weights_of(net)
    x, y = batches(1)[0]
    losses = [hand_head(V[k], b[k], hand_features(W, x)[k + 1], y)[0] for k in range(K)]
    above = [bool(loss > 2 * losses[-1]) for loss in losses]
    assert above[0]
    assert not all(above[:-1])


@pytest.mark.parametrize("rule", ["none", "cumulative", "adaptive"])
@pytest.mark.parametrize("mode", ["live", "frozen"])
def test_multiway_equals_the_hand_written_computation(mode, rule):
    made = trained(partial(auxnet.multiway, mode=mode, step_scale=rule), batches())
    assert_same(made, hand_multiway(hand_net(), batches(), rule, DECAY, live=mode == "live"))


@pytest.mark.parametrize("rule", ["cumulative", "adaptive"])
@pytest.mark.parametrize("mode", ["live", "frozen"])
@pytest.mark.parametrize(
    ("state", "order"), [("shared", "shallow_first"), ("per_output", "deep_first"), ("shared", "deep_first")]
)
def test_multiway_with_shared_state_or_the_other_order_equals_the_hand_written_computation(state, order, mode, rule):
    made = trained(partial(auxnet.multiway, mode=mode, step_scale=rule, state=state, order=order), batches())
    sequence = range(1, K + 1) if order == "shallow_first" else range(K, 0, -1)
    assert_same(made, hand_multiway(hand_net(), batches(), rule, DECAY, mode == "live", state == "shared", sequence))
    assert distance(made, trained(partial(auxnet.multiway, mode=mode, step_scale=rule), batches())) > 1e-4


def test_the_readings_of_multiway_are_different_algorithms():
    live = trained(partial(auxnet.multiway, mode="live"), batches())
    frozen = trained(partial(auxnet.multiway, mode="frozen"), batches())
    refreshed = trained(partial(auxnet.pairwise, step_scale="cumulative"), batches())
    assert min(distance(live, frozen), distance(live, refreshed), distance(frozen, refreshed)) > 1e-3


@pytest.mark.parametrize("rule", ["none", "cumulative"])
def test_fused_equals_frozen_without_decay(rule):
    frozen = trained(partial(auxnet.multiway, mode="frozen", step_scale=rule), batches(6), decay=0.0)
    fused = trained(partial(auxnet.multiway, mode="fused", step_scale=rule), batches(6), decay=0.0)
    assert_same(fused, frozen)
    assert_same(fused, hand_multiway(hand_net(), batches(6), rule, 0.0, live=False))


def test_fused_differs_from_frozen_by_the_order_of_step_times_decay():
    def gap(decay):
        frozen = trained(partial(auxnet.multiway, mode="frozen"), batches(3), decay)
        return distance(frozen, trained(partial(auxnet.multiway, mode="fused"), batches(3), decay))

    coarse, fine = gap(1e-3), gap(1e-4)
    assert 0 < fine < ETA * 1e-4 * 10
    assert coarse / fine == pytest.approx(10, rel=0.1)  # linear in the decay


def test_fused_decays_a_segment_once_for_every_output_that_reaches_it():
    net = hand_net()
    before, *_ = weights_of(net)
    method = auxnet.multiway(net, partial(torch.optim.SGD, lr=ETA, weight_decay=DECAY), [1e-300] * K, "fused", "none")
    method.step(*batches(1)[0])
    for k, w in enumerate(before, start=1):
        torch.testing.assert_close(net.segments[k - 1][0].weight.data, w * (1 - ETA * DECAY * (K - k + 1)))


# ---- laws that hold on real networks ---------------------------------------------------------------------------------

METHODS = {
    "joint": auxnet.joint,
    "pairwise": auxnet.pairwise,
    "live": partial(auxnet.multiway, mode="live"),
    "frozen": partial(auxnet.multiway, mode="frozen"),
    "fused": partial(auxnet.multiway, mode="fused"),
    "shared": partial(auxnet.multiway, state="shared"),
    "deep_first": partial(auxnet.multiway, order="deep_first"),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())


def small(outputs=3, **options):
    torch.manual_seed(3)
    net = auxnet.resnet(depth=8, outputs=outputs, **options).to(memory_format=torch.channels_last)
    return net.train()


def images(n=6, size=8):
    g = torch.Generator().manual_seed(4)
    x = torch.randn(n, 3, size, size, generator=g).to(memory_format=torch.channels_last)
    return x, torch.randint(10, (n,), generator=g)


@every_method
@pytest.mark.parametrize("fused_kernel", [False, True])
@pytest.mark.parametrize("block", ["preact", "original", "plain"])
@pytest.mark.enough(21)
def test_with_one_output_every_method_is_ordinary_sgd_to_the_bit(make, fused_kernel, block):
    optimizer = sgd(1e-4, fused=fused_kernel)
    ours, ordinary = small(1, block=block), small(1, block=block)
    method = make(ours, optimizer, [1.0])
    plain = optimizer(ordinary.parameters())
    for _ in range(3):
        x, y = images()
        losses = method.step(x, y)
        loss = nn.functional.cross_entropy(ordinary(x)[0], y)
        plain.zero_grad()
        loss.backward()
        plain.step()
        assert torch.equal(losses, loss.detach()[None])
    for a, b in zip(ours.state_dict().values(), ordinary.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["pairwise", "live", "frozen"])
def test_an_update_leaves_deeper_segments_and_other_heads_untouched(name, monkeypatch):
    net = small()
    seen = []
    apply = Update.__call__

    def spy(update, gradients):
        before = [[p.clone() for p in module.parameters()] for module in (*net.segments, *net.heads)]
        apply(update, gradients)
        after = [list(module.parameters()) for module in (*net.segments, *net.heads)]
        seen.append([not all(map(torch.equal, b, a)) for b, a in zip(before, after, strict=True)])

    monkeypatch.setattr(Update, "__call__", spy)
    METHODS[name](net, sgd(), net.loss_weights()).step(*images())
    assert seen == [
        [True, False, False, True, False, False],
        [True, True, False, False, True, False],
        [True, True, True, False, False, True],
    ]


@every_method
def test_batchnorm_statistics_move_exactly_once_per_batch(make):
    net, same = small(), small()
    make(net, sgd(), net.loss_weights()).step(*images())
    same(images()[0])  # one forward in training mode, with the weights of before
    norms = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(m.num_batches_tracked == 1 and m.track_running_stats for m in norms.values())
    expected = dict(same.named_modules())
    if make is auxnet.pairwise:  # deeper segments see features of updated weights
        norms = {name: m for name, m in norms.items() if name.startswith("segments.0.")}
    assert len(norms) >= 2
    for name, norm in norms.items():
        assert torch.equal(norm.running_mean, expected[name].running_mean)
        assert torch.equal(norm.running_var, expected[name].running_var)


@every_method
@pytest.mark.parametrize("norm", [partial(nn.InstanceNorm2d, track_running_stats=True), nn.BatchNorm2d])
def test_running_statistics_of_any_norm_move_once_per_batch(make, norm):
    """With a step size of 0 they are those of one forward, at every depth."""
    torch.manual_seed(0)
    segments = [nn.Sequential(nn.Conv2d(c, 4, 3), norm(4), nn.ReLU()) for c in (3, 4, 4)]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)) for _ in segments]
    net = auxnet.AuxNet(segments, heads, [2, 3, 4]).train()
    same = copy.deepcopy(net)
    make(net, partial(torch.optim.SGD, lr=0.0), [0.9, 0.8, 1.0]).step(*images())
    same(images()[0])
    for a, b in zip(net.buffers(), same.buffers(), strict=True):
        torch.testing.assert_close(a, b)


class Normalising(nn.Module):
    """It writes over its images."""

    def forward(self, x):
        return x.sub_(0.5).div_(0.25)


@every_method
def test_a_trunk_that_writes_over_its_images_trains_as_on_a_copy_and_leaves_the_batch_as_it_was(make):
    net, same, (x, y) = hand_net(), hand_net(), batches(1)[0]
    net.segments[0] = nn.Sequential(Normalising(), *net.segments[0])
    method, other, before = make(net, sgd(), WEIGHTS), make(same, sgd(), WEIGHTS), x.clone()
    for _ in range(2):  # live looks at its first step more closely
        torch.testing.assert_close(method.step(x, y), other.step((x - 0.5) / 0.25, y))
        assert torch.equal(x, before)
    for a, b in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@every_method
def test_losses_are_those_of_the_net_before_the_step(make):
    net = small()
    x, y = images()
    expected = [nn.functional.cross_entropy(logits, y).item() for logits in small()(x)]
    losses = make(net, sgd(), net.loss_weights()).step(x, y)
    assert losses.shape == (3,)
    assert not losses.requires_grad
    if make is not auxnet.pairwise:  # there, later outputs see weights that earlier ones have updated
        assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert losses[0].item() == pytest.approx(expected[0], rel=1e-5)


@every_method
def test_a_state_taken_up_goes_on_to_the_bit(make):
    whole, net = small(), small()
    method = make(whole, sgd(), whole.loss_weights())
    for _ in range(4):
        method.set_lr(0.05)
        method.step(*images())
    first = make(net, sgd(), net.loss_weights())
    first.set_lr(0.05)
    first.step(*images())
    first.step(*images())
    second_net = small()
    second_net.load_state_dict(net.state_dict())
    second = make(second_net, sgd(), net.loss_weights())
    second.load_state_dict(first.state_dict())
    second.step(*images())
    second.step(*images())
    for a, b in zip(whole.state_dict().values(), second_net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@every_method
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam])
@pytest.mark.enough(14)
def test_any_optimizer_serves(make, kind):
    net = small()
    method = make(net, partial(kind, lr=1e-3), net.loss_weights())
    first = method.step(*images())
    for _ in range(5):
        last = method.step(*images())
    assert last.isfinite().all()
    assert last.sum() < first.sum()


@every_method
def test_clip_bounds_the_gradient_of_every_update(make):
    net, norms = small(), []
    method = make(net, partial(torch.optim.SGD, lr=1.0), net.loss_weights(), clip=1e-3)
    for update in method.updates:
        handed = update.aliases
        update.optimizer.register_step_pre_hook(
            lambda *_, handed=handed: norms.append(
                torch.cat([a.grad.flatten() for a in handed if a.grad is not None]).norm()
            )
        )
    method.step(*images())
    assert norms
    assert all(0 < float(norm) <= 1e-3 * 1.0001 for norm in norms)
    assert all(alias.grad is None for update in method.updates for alias in update.aliases)  # let go


@pytest.mark.parametrize("make", [auxnet.joint, auxnet.pairwise, auxnet.multiway])
@pytest.mark.parametrize("of_head", [False, True])
def test_parts_that_share_a_weight_are_refused(make, of_head):
    """An update of output 1 would move what output 2 is made of."""
    net = hand_net()
    if of_head:
        net.heads[0].weight = net.segments[1][0].weight
    else:
        net.segments[1][0].weight = net.segments[0][0].weight
    there = "'0.weight' of segment 2 and 'weight' of head 1" if of_head else "'0.weight' of segment 1 and '0.weight' of"
    with pytest.raises(ValueError, match=f"{there}.* are one tensor: cut so that both come to lie in one segment"):
        make(net, sgd(), WEIGHTS)
    with pytest.raises(ValueError, match=f"{there}.* are one tensor"):
        auxnet.network.AuxNet(net.segments, net.heads, net.depths)


class Scaled(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight * 0.5, self.bias)


class Product(Scaled):
    def forward(self, x):
        return torch.einsum("nchw,wd->nchd", x, self.weight * 0.5)


class FromTheLeft(nn.Linear):
    """What is computed from the weight times the feature, by each of PyTorch's products."""

    def __init__(self, product):
        super().__init__(8, 8, bias=False)
        self.product = product

    def forward(self, x):
        half, n = self.weight * 0.5, len(x) * 3
        columns = x.reshape(n, 8, 8)
        if self.product == "bmm":
            return torch.bmm(half.expand(n, 8, 8), columns).view_as(x)
        if self.product == "baddbmm":
            return torch.baddbmm(columns, half.expand(n, 8, 8), columns).view_as(x)
        wide = columns.transpose(0, 1).reshape(8, n * 8)
        wide = torch.mm(half, wide) if self.product == "mm" else torch.addmm(wide, half, wide)
        return wide.view(8, n, 8).transpose(0, 1).reshape_as(x)


class Scoring(nn.Linear):
    """A score for each position: a matrix times a vector that is computed from the weight."""

    def forward(self, x):
        score = torch.addmv if self.bias is not None else torch.mv
        terms = [self.bias.expand(len(x) * 24)] if self.bias is not None else []
        return x + score(*terms, x.reshape(-1, 8), self.weight[0] * 0.5).view(len(x), 3, 8, 1)


class Plus1(nn.Module):
    def forward(self, weight):
        return weight + 1


def plus_1(norm):
    """The norm with a weight that is one more than its parameter."""
    parametrize.register_parametrization(norm, "weight", Plus1())
    return norm


class Generated(nn.Linear):
    """A kernel that a linear layer makes of a constant."""

    def forward(self, x):
        return nn.functional.conv2d(x, super().forward(torch.ones(1, 2)).view(3, 3, 1, 1))


class Attention(nn.Module):
    """By hand, of images that need no gradient: whole numbers, or the work of a stem that takes none."""

    def __init__(self, stem):
        super().__init__()
        self.stem, self.queries, self.keys, self.values = stem, *(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        with torch.no_grad():
            x = self.stem(x)
        x = x.flatten(0, 1)
        return (self.queries(x) @ self.keys(x).transpose(1, 2)).softmax(-1) @ self.values(x)


class Related(nn.Linear):
    """The images of a batch, each by its likeness to the others."""

    def forward(self, x):
        f = super().forward(x.mean((1, 2)))
        return x + (torch.mm(f, f.T).softmax(1) @ f)[:, None, None]


class Filtering(nn.Linear):
    """By filters that are made of the feature itself."""

    def forward(self, x):
        return nn.functional.conv2d(x, super().forward(x).mean(0)[:, None, :3, :3], groups=3, padding=1)


class Turned(nn.Conv2d):
    """The weight through views alone, channels last."""

    def forward(self, x):
        weight = self.weight.flatten(2).transpose(0, 1).view(3, 3, 3, 3).transpose(0, 1)
        return nn.functional.conv2d(x, weight, self.bias, padding=1)


def ending_in(layer):
    torch.manual_seed(0)
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(192, 10)) for _ in range(2)]
    return auxnet.AuxNet([nn.Conv2d(3, 3, 3, padding=1), layer], heads, [2, 3]).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (Scaled(8, 8, bias=False), "segments.1.weight"),
        (Scaled(8, 8), "segments.1.weight"),
        (Product(8, 8), "segments.1.weight"),
        *((FromTheLeft(product), "segments.1.weight") for product in ("mm", "addmm", "bmm", "baddbmm")),
        *((Scoring(8, 1, bias=bias), "segments.1.weight") for bias in (False, True)),
        *(
            (plus_1(norm), "segments.1.parametrizations.weight.original")
            for norm in (nn.BatchNorm2d(3), nn.LayerNorm([3, 8, 8]), nn.GroupNorm(1, 3))
        ),
        (Generated(2, 9), "segments.1.weight"),
        (weight_norm(nn.Conv2d(3, 3, 1)), r"segments.1.parametrizations.weight.original\d"),
        (spectral_norm(nn.Conv2d(3, 3, 1)), "segments.1.parametrizations.weight.original"),
        (nn.InstanceNorm2d(3, affine=True), "segments.1.weight"),
    ],
)
def test_live_is_refused_where_autograd_holds_what_was_computed_from_a_weight(layer, name):
    """There it would be frozen, or a mixture; the other modes are what they are."""
    x, y = torch.randn(3, 3, 8, 8), torch.randint(10, (3,))  # as many as spectral norm's vectors are long
    for mode in ("live", "frozen", "fused"):
        method = auxnet.multiway(ending_in(copy.deepcopy(layer)), sgd(), [0.5, 1.0], mode)
        if mode == "live":
            with pytest.raises(ValueError, match=f"one takes what is computed from '{name}', .*'frozen' or 'fused'"):
                method.step(x, y)
        else:
            method.step(x, y)


@pytest.mark.parametrize(
    "layer",
    [
        Turned(3, 3, 3),
        nn.Conv2d(3, 3, 1, groups=3),
        nn.BatchNorm2d(3),
        nn.InstanceNorm2d(3),
        nn.LayerNorm([3, 8, 8]),
        nn.LayerNorm(8, elementwise_affine=False),
        nn.GroupNorm(1, 3),
        nn.GroupNorm(3, 3, affine=False),
        nn.TransformerEncoderLayer(8, 2, 8),
        Related(8, 8),
        Filtering(8, 8),
    ],
)
def test_live_takes_weights_that_are_looked_at_another_way_and_products_of_features(layer):
    x, y = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    tokens = isinstance(layer, nn.TransformerEncoderLayer)
    net = ending_in(nn.Sequential(nn.Flatten(1, 2), layer) if tokens else layer)
    method = auxnet.multiway(net, sgd(), [0.5, 1.0])
    for _ in range(2):
        assert method.step(x, y).isfinite().all()


@pytest.mark.parametrize("stem", [lambda x: x.float() / 255, nn.Conv2d(3, 3, 1)])
def test_live_takes_products_of_features_that_were_made_without_gradients(stem):
    heads = [nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (4, 192)), nn.Linear(192, 10)) for _ in range(2)]
    net = auxnet.AuxNet([Attention(stem), nn.Linear(8, 8)], heads, [2, 3])
    x = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    x = x / 255 if isinstance(stem, nn.Module) else x
    assert auxnet.multiway(net, sgd(), [0.5, 1.0]).step(x, torch.arange(4)).isfinite().all()


def writing_over():
    """A net whose second segment writes over its input, which the first head has read."""
    net = hand_net()
    net.segments[0] = nn.Sequential(net.segments[0][0])  # a linear layer, which does not look at what it gave
    net.segments[1] = nn.Sequential(nn.ReLU(inplace=True), *net.segments[1])
    return net


@pytest.mark.parametrize("mode", ["live", "frozen", "fused"])
def test_a_segment_that_writes_over_what_a_head_has_read_is_refused(mode):
    method = auxnet.multiway(writing_over(), sgd(), WEIGHTS, mode=mode)
    with pytest.raises(RuntimeError, match="segment 2 changes its input in place, which head 1 has read"):
        method.step(*batches(1)[0])


def test_each_output_is_what_it_is_standing_alone_also_where_a_segment_writes_over_its_input():
    net, (x, y) = writing_over(), batches(1)[0]
    for k, logits in enumerate(net(x), start=1):
        assert torch.equal(logits, net.truncate(k)(x))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # autograd's own words
        auxnet.joint(net, sgd(), WEIGHTS).step(x, y)


@pytest.mark.parametrize("view", [nn.Identity(), nn.Unflatten(1, (-1, 1))])
@every_method
def test_a_head_that_changes_its_feature_is_refused(make, view):
    net, (x, y) = hand_net(), batches(1)[0]
    net.heads[1] = nn.Sequential(view, nn.ReLU(inplace=True), nn.Flatten(), net.heads[1])
    method = make(net, sgd(), WEIGHTS)
    with pytest.raises(ValueError, match=r"head 2 changes its feature in place, .* needs too: inplace=False there"):
        method.step(x, y)
    net.heads[1][1].inplace = False
    method.step(x, y)


@every_method
def test_the_final_head_may_change_its_feature_and_trains_as_one_that_does_not(make):
    ends = []
    for inplace in (False, True):
        net = hand_net()
        net.heads[-1] = nn.Sequential(nn.ReLU(inplace=inplace), net.heads[-1])
        method = make(net, sgd(), WEIGHTS)
        losses = [method.step(x, y) for x, y in batches(2)]
        ends.append([*losses, *(p.detach() for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Clamped(nn.Linear):
    """It changes a weight of its own in place, which autograd does not let it do."""

    def forward(self, x):
        self.weight.clamp_(-1, 1)
        return super().forward(x)


@every_method
def test_a_head_that_changes_its_own_weight_is_not_said_to_change_its_feature(make):
    net, (x, y) = hand_net(), batches(1)[0]
    net.heads[0] = Clamped(WIDTH, CLASSES).double()
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):  # torch's own words
        make(net, sgd(), WEIGHTS).step(x, y)


@pytest.mark.parametrize("make", [auxnet.joint, auxnet.pairwise, partial(auxnet.multiway, mode="fused")])
def test_autocast_never_trains_on_weights_of_before(make):
    """Its cache of casts outlives an update within one context: the same as without a cache, step by step."""
    ends = []
    for cached in (True, False):
        torch.manual_seed(0)
        net = auxnet.resnet(8, 2, num_classes=3).train()
        method = make(net, partial(torch.optim.SGD, lr=0.5), [1.0, 1.0])
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            for x, y in (images(8, 8), images(8, 8), images(8, 8)):
                method.step(x, y % 3)
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_live_refuses_what_autograd_keeps_in_place_of_features():
    """Activation checkpointing in the trunk; in a head it computes by weights that are still the same."""

    class Checkpointed(torch.nn.Sequential):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    x, y = batches(1)[0]
    for mode in ("live", "frozen", "fused"):
        expected, net, deep = hand_net(), hand_net(), hand_net()
        net.heads[1] = Checkpointed(net.heads[1])
        deep.segments[1] = Checkpointed(*deep.segments[1])
        for one in (expected, net):
            auxnet.multiway(one, sgd(), WEIGHTS, mode).step(x, y)
        assert all(map(torch.equal, expected.parameters(), net.parameters()))
        method = auxnet.multiway(deep, sgd(), WEIGHTS, mode)
        if mode == "live":
            with pytest.raises(RuntimeError, match=r"checkpointing recomputes features .*use mode='fused' there"):
                method.step(x, y)
        else:
            method.step(x, y)
            assert all(map(torch.equal, expected.parameters(), deep.parameters()))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.optim.SparseAdam, "SparseAdam takes sparse gradients"),
        (torch.optim.LBFGS, "LBFGS asks for losses within a step"),
        (torch.optim.Muon, "Muon takes matrices alone"),
        (torch.optim.Rprop, "Rprop keeps its step sizes to itself"),
        (torch.optim.ASGD, "ASGD keeps its step sizes to itself"),
        (torch.optim.Adafactor, r"Adafactor steps by 1 / sqrt\(steps so far\) once"),
    ],
)
def test_optimizers_that_cannot_serve_are_refused_before_a_step(kind, words):
    with pytest.raises(ValueError, match=words):
        auxnet.joint(hand_net(), partial(kind, lr=0.1), WEIGHTS)


SERVING = [kind for name, kind in vars(torch.optim).items() if name[0].isupper() and name not in UNFIT]


@pytest.mark.parametrize("kind", SERVING, ids=lambda kind: kind.__name__)
def test_a_step_size_acts_on_every_optimizer_that_is_taken(kind):
    """A millionth of the step moves weights a thousandth as far at most, however many steps were before."""
    moved = []
    for lr in (1e-2, 1e-8):
        net = small()
        method = auxnet.joint(net, partial(kind, lr=1e-2), [1.0, 1.0, 1.0])
        method.step(*images())
        for state in method.updates[0].optimizer.state.values():
            if "step" in state:
                state["step"] += 10**18
        method.set_lr(lr)
        before = copy.deepcopy(net)
        method.step(*images())
        moved.append(
            max(float((a - b).detach().abs().max()) for a, b in zip(net.parameters(), before.parameters(), strict=True))
        )
    assert moved[1] < 1e-3 * moved[0]


@pytest.mark.parametrize(("outputs", "most"), [(2, 1.016), (3, 0.987), (9, 1.06)])
def test_live_holds_hardly_more_memory_than_joint(outputs, most):
    """Counted, so that one map held longer than it is used shows."""

    def peak(make):
        net, (x, y) = auxnet.resnet(20, outputs).to(memory_format=torch.channels_last).train(), images(32, 16)
        method = make(net, sgd(), net.loss_weights())
        method.step(x, y)
        with PeakBytes() as held:
            held.hold([x, y, *net.parameters()])
            held.hold([v for u in method.updates for state in u.optimizer.state.values() for v in state.values()])
            method.step(x, y)
        return held.peak

    assert peak(auxnet.multiway) <= most * peak(auxnet.joint)


@every_method
def test_images_that_are_not_for_the_net_are_refused_before_anything_moves(make):
    net = small()
    method, before = make(net, sgd(), net.loss_weights()), copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="images must have 3 channels, got 1"):
        method.step(images()[0][:, :1], images()[1])
    of_bytes = r"this net takes images of torch\.float32, got torch\.uint8: images\.float\(\), normalised"
    with pytest.raises(ValueError, match=of_bytes):
        method.step(images()[0].to(torch.uint8), images()[1])
    for other in (torch.float64, torch.bfloat16):
        rule = rf"this net takes images of torch\.float32, got {other}: images\.to\(torch\.float32\)"
        with pytest.raises(ValueError, match=rule):
            method.step(images()[0].to(other), images()[1])
    assert all(map(torch.equal, before.values(), net.state_dict().values()))


@every_method
def test_frozen_parameters_stay_as_they_are(make):
    net = small()
    for p in net.segments[0].parameters():
        p.requires_grad_(False)
    before = [p.clone() for p in net.segments[0].parameters()]
    make(net, sgd(), net.loss_weights()).step(*images())
    assert all(map(torch.equal, before, net.segments[0].parameters()))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.double(),
        lambda net: net.load_state_dict(small().state_dict(), assign=True),
        lambda net: net.heads.__setitem__(0, copy.deepcopy(net.heads[0])),
        lambda net: net.segments[1].to(memory_format=torch.contiguous_format),
        lambda net: net.heads[2].requires_grad_(False),
    ],
    ids=["moved", "assigned", "replaced", "in another format", "frozen"],
)
@every_method
def test_a_net_changed_after_its_method_was_built_is_noticed(make, change):
    net = small()
    method = make(net, sgd(), net.loss_weights())
    change(net)
    with pytest.raises(RuntimeError, match="build the method after that"):
        method.step(*images())


def test_a_copy_of_a_method_which_would_train_the_same_net_is_refused():
    with pytest.raises(TypeError, match="build one on a copy of the net"):
        copy.deepcopy(auxnet.joint(auxnet.resnet(8, 2), torch.optim.SGD))


def test_a_method_is_not_pickled():
    for write in (pickle.dumps, lambda method: torch.save(method, io.BytesIO())):
        with pytest.raises(TypeError, match=r"^a method holds .* cannot be pickled: save its state_dict\(\)$"):
            write(auxnet.joint(auxnet.resnet(8, 2), torch.optim.SGD))


def test_the_state_of_another_method_is_refused_and_one_that_names_none_is_taken():
    for ours, theirs in ((auxnet.multiway, auxnet.pairwise), (partial(auxnet.multiway, mode="fused"), auxnet.joint)):
        method, state = ours(auxnet.resnet(8), sgd()), theirs(auxnet.resnet(8), sgd()).state_dict()
        with pytest.raises(ValueError, match=f"^this method is {method.way}, the state is of {state['way']}: build"):
            method.load_state_dict(state)
        del state["way"]  # as before there was one
        method.load_state_dict(state)
    frozen = auxnet.multiway(auxnet.resnet(8), sgd(), mode="frozen")
    frozen.load_state_dict(auxnet.multiway(auxnet.resnet(8), sgd(), mode="live").state_dict())  # a mode may change


@every_method
def test_a_graph_of_before_a_step_is_not_taken_for_one_of_after_it(make):
    """As torch's own optimizers have it: without that its gradients would be of neither."""
    net, (x, y) = small(), images()
    method = make(net, sgd())
    before = net(x)[-1].square().sum()
    method.step(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()


@every_method
def test_what_is_no_loss_is_refused(make):
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, logits, labels):
            return torch.nn.functional.cross_entropy(logits / self.temperature, labels)

    with pytest.raises(TypeError, match=r"got the class CrossEntropyLoss: CrossEntropyLoss\(\) makes one"):
        make(small(), sgd(), loss=nn.CrossEntropyLoss)
    with pytest.raises(TypeError, match="loss must be a function of logits and labels, got None"):
        make(small(), sgd(), loss=None)
    for loss in (Tempered(), partial(Tempered())):
        with pytest.raises(
            ValueError, match=r"Tempered has parameters, .*: requires_grad_\(False\), or make them part"
        ):
            make(small(), sgd(), loss=loss)
    make(small(), sgd(), loss=Tempered().requires_grad_(False)).step(*images())
    with pytest.raises(ValueError, match="loss must give a tensor that autograd can differentiate, got float"):
        make(small(), sgd(), loss=lambda logits, labels: 1.0).step(*images())


@every_method
def test_a_net_with_a_forward_of_its_own_is_refused(make):
    class Mine(auxnet.AuxNet):
        def forward(self, x):
            return super().forward(x / 255)

    net = small()
    mine = Mine([*net.segments], [*net.heads], net.depths)
    with pytest.raises(
        TypeError, match=r"Mine has a forward of its own, which .* pass over: put what it does into the first"
    ):
        make(mine, sgd())


@every_method
def test_a_step_size_in_a_tensor_is_kept_as_the_number_it_is(make):
    """A scheduler would change it in place, unseen."""
    method = make(small(), partial(torch.optim.SGD, lr=torch.tensor(0.1)))
    schedule = torch.optim.lr_scheduler.StepLR(method.updates[-1].optimizer, 1)
    method.step(*images())
    schedule.step()
    with pytest.raises(RuntimeError, match=r"as torch's schedulers do: use method\.set_lr"):
        method.step(*images())


def test_a_method_equals_itself_alone():
    net = small()
    one, other = (auxnet.joint(net, sgd()) for _ in range(2))
    assert len({one, one, other}) == 2


@every_method
def test_a_net_in_evaluation_mode_is_not_trained(make):
    net = small().eval()
    method, before = make(net, sgd(), net.loss_weights()), copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"the net is in evaluation mode, as load gives it: net\.train\(\) first"):
        method.step(*images())
    assert all(map(torch.equal, before.values(), net.state_dict().values()))
    again = auxnet.AuxNet(net.segments, net.heads, net.depths)  # a new net, in training mode, of the same modules
    with pytest.raises(RuntimeError, match="the net is in evaluation mode"):
        make(again, sgd(), net.loss_weights()).step(*images())
    net.heads.train()  # a trunk that is frozen by hand
    method.step(*images())
    for norm in (module for module in net.train().modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eval()
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    method.step(*images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.named_buffers())


@every_method
def test_a_step_where_no_gradient_can_be_taken_is_refused(make):
    net = small()
    method = make(net, sgd())
    with torch.no_grad(), pytest.raises(RuntimeError, match="call it outside no_grad"):
        method.step(*images())
    for loss, words in (
        (partial(nn.functional.cross_entropy, reduction="none"), r"loss must give one number, .* got the shape \[6\]"),
        (lambda z, y: nn.functional.cross_entropy(z.detach(), y), "loss must depend on the logits"),
    ):
        method, before = make(net, sgd(), loss=loss), copy.deepcopy(net.segments.state_dict())
        with pytest.raises(ValueError, match=words):
            method.step(*images())
        for name, parameter in net.segments.named_parameters():
            assert torch.equal(parameter, before[name])


@every_method
def test_without_weights_they_are_the_papers(make):
    nets = [small(), small()]
    for net, weights in zip(nets, (None, nets[1].loss_weights()), strict=True):
        make(net, sgd(), weights).step(*images())
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


# ---- optimizers ------------------------------------------------------------------------------------------------------


SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
as_one = partial(torch.optim.SGD, **SETTINGS)


def in_reverse(parameters):
    return as_one([*parameters][::-1])


def by_shape(parameters):
    few, many = ([p for p in parameters if (p.ndim > 1) == more] for more in (False, True))
    return torch.optim.SGD([SETTINGS | {"params": few}, SETTINGS | {"params": many}])


@every_method
@pytest.mark.parametrize("made", [in_reverse, by_shape])
@pytest.mark.enough(7)
def test_however_an_optimizer_groups_its_parameters_each_takes_its_own_steps(make, made):
    nets = [small(), small()]
    for net, optimizer in zip(nets, (as_one, made), strict=True):
        method = make(net, optimizer, [0.9, 0.8, 1.0])
        method.step(*images())
        method.set_lr(0.05)
        method.set_weights([0.7, 0.9, 1.0])
        method.step(*images())
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


@every_method
@pytest.mark.parametrize("kind", [as_one, torch.optim.Adagrad])
def test_an_optimizer_may_look_at_its_parameters_also_where_an_output_has_none_to_train(make, kind):
    nets = [hand_net(), hand_net()]
    for net, optimizer in zip(nets, (kind, lambda parameters: kind([p for p in parameters if p.ndim])), strict=True):
        nn.ModuleList([net.segments[0], net.heads[0]]).requires_grad_(False)
        method = make(net, optimizer, WEIGHTS)
        method.step(*batches(1)[0])
        method.load_state_dict(method.state_dict())
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


def test_groups_without_decay_or_with_a_step_size_of_their_own_keep_it():
    def optimizer(parameters):
        flat = {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0, "lr": 0.01}
        return torch.optim.SGD([flat, {"params": [p for p in parameters if p.ndim > 1]}], lr=0.1, weight_decay=0.5)

    method = auxnet.joint(small(), optimizer, [0.9, 0.8, 1.0], "sum")
    method.set_lr(1.0)
    (update,) = method.updates
    found = {(g["lr"] / g["scale"], g["weight_decay"]) for g in update.optimizer.param_groups}
    assert {(round(lr, 9), decay) for lr, decay in found} == {(1.0, 0.5), (0.1, 0.0)}
    scales = sorted(g["scale"] for g in update.optimizer.param_groups)
    assert scales == pytest.approx([1 / 1.7] * 2 + [1.0] * 6)  # segment 1; segments 2 and 3, and the heads


@pytest.mark.parametrize("order", [1, -1])
def test_a_group_has_the_same_step_size_at_every_output(order):
    """Also at one that has no parameters in the group that the others go by."""

    def optimizer(parameters):
        flat, deep = ([p for p in parameters if (p.ndim == 1) == is_flat] for is_flat in (True, False))
        groups = [{"params": flat, "lr": 0.01}, {"params": deep, "lr": 0.1}][::order]
        return torch.optim.SGD([group for group in groups if group["params"]])

    net = hand_net()
    nn.ModuleList([net.segments[0], net.heads[0]]).requires_grad_(False)
    net.heads[0].bias.requires_grad_(True)
    method = auxnet.pairwise(net, optimizer, WEIGHTS)
    method.set_lr(1.0)
    groups = [group for update in method.updates for group in update.optimizer.param_groups if group["params"]]
    assert len({group["params"][0].ndim for group in groups}) == 2
    assert all(group["lr"] == pytest.approx({1: 0.1, 2: 1.0}[group["params"][0].ndim]) for group in groups)


def test_an_optimizer_that_leaves_parameters_out_is_refused():
    with pytest.raises(ValueError, match=r"must hold the .* parameters that its function was given"):
        auxnet.joint(small(), lambda parameters: torch.optim.SGD(parameters[1:], lr=0.1))


def test_a_step_size_set_behind_the_method_is_refused():
    net = small()
    method = auxnet.multiway(net, sgd())
    schedule = torch.optim.lr_scheduler.LambdaLR(method.updates[0].optimizer, lambda epoch: 0.5**epoch)
    method.step(*images())
    schedule.step()
    with pytest.raises(RuntimeError, match=r"as torch's schedulers do: use method\.set_lr"):
        method.step(*images())
    method.set_lr(0.05)
    method.step(*images())


@every_method
def test_a_state_holds_the_weights_and_is_refused_by_another_optimizer(make):
    nets = [small(), small()]
    first = make(nets[0], sgd(), [0.9, 0.8, 1.0])
    first.step(*images())
    nets[1].load_state_dict(nets[0].state_dict())
    second = make(nets[1], sgd())
    second.load_state_dict(first.state_dict())
    for method in (first, second):  # one after the other: each has a momentum of its own
        for _ in range(2):
            method.step(*images())
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
    with pytest.raises(ValueError, match=r"has optimizers AdamW.*, the state is of SGD"):
        make(small(), torch.optim.AdamW).load_state_dict(first.state_dict())


@every_method
def test_a_state_of_another_net_or_of_other_groups_is_refused_before_anything_is_taken(make):
    def flat_apart(given):
        return torch.optim.AdamW([{"params": [p for p in given if (p.ndim == 1) == flat]} for flat in (True, False)])

    state = {}
    for classes in (7, 10):
        method = make(small(num_classes=classes), torch.optim.AdamW)
        x, y = images()
        method.step(x, y % 7)
        state[classes] = method.state_dict()
    other = make(small(), flat_apart)
    with pytest.raises(ValueError, match=r"another net: it has a parameter \[7, \d+\], where this one has \[10, \d+\]"):
        method.load_state_dict(state[7])
    with pytest.raises(ValueError, match="other groups of parameters: build this method as the saved one"):
        other.load_state_dict(state[10])
    broken = state[10] | {"optimizers": [*state[10]["optimizers"][:-1], {}]}
    with pytest.raises(ValueError, match="no param_groups"):
        method.load_state_dict(broken)
    for now, before in zip(tree_leaves(method.state_dict()), tree_leaves(state[10]), strict=True):
        assert torch.equal(now, before) if isinstance(now, torch.Tensor) else now == before


@every_method
def test_groups_of_the_nets_own_objects_come_out_empty_and_are_warned_of(make):
    """An optimizer works on aliases, which are no objects of the net; but they ask for gradients, as these do."""
    net = small()
    norms = {id(p) for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}

    def grouped(given, of_norm):
        given = [p for p in given if p.requires_grad]
        groups = [[p for p in given if of_norm(p)], [p for p in given if not of_norm(p)]]
        return torch.optim.SGD([{"params": groups[0], "weight_decay": 0.0}, {"params": groups[1]}], lr=0.1)

    with pytest.warns(UserWarning, match="made a group without parameters: it is given aliases"):
        make(net, partial(grouped, of_norm=lambda p: id(p) in norms))
    method = make(net, partial(grouped, of_norm=lambda p: p.ndim == 1))
    assert not any(alias.requires_grad for update in method.updates for alias in update.aliases)


def test_step_scales_divide_by_the_weights_of_the_auxiliaries_above():
    assert step_scales([0.5, 0.8, 0.4, 1.0], "cumulative") == pytest.approx([1 / 1.7, 1 / 1.2, 1.0, 1.0])
    assert step_scales([0.5, 0.8, 0.4, 1.0], "none") == [1.0] * 4
    scales = adaptive_scales(torch.tensor([6.0, 3.0, 1.5]), [0.5, 0.6, 1.0])
    assert scales == pytest.approx([1.5 / 6, 0.6, 1.0])
    for losses in ([1.0, 0.3, -1.0], [1.0, 0.0, -1.0]):  # of a loss that may go below 0
        assert adaptive_scales(torch.tensor(losses), [0.5, 0.6, 1.0]) == [0.5, 0.6, 1.0]


def test_set_lr_keeps_each_groups_share():
    net = hand_net()
    method = auxnet.multiway(net, sgd(), WEIGHTS)
    method.set_lr(0.01)
    shares = [[group["lr"] for group in update.optimizer.param_groups] for update in method.updates]
    assert shares == [pytest.approx([0.01 * c, 0.01]) for c in step_scales(WEIGHTS, "cumulative")]


# ---- weights that change ---------------------------------------------------------------------------------------------


def without_the_first_output(net):
    """The same weights and statistics with one output fewer: segments 1 and 2 are one, and the first head is gone."""
    first, second, *rest = copy.deepcopy(net.segments)
    heads = copy.deepcopy(net.heads)
    return auxnet.AuxNet([nn.Sequential(first, second), *rest], heads[1:], net.depths[1:])


def hand_over(method, net, other_method, other_net):
    """Each optimizer's state of a parameter, from a method to that of `without_the_first_output`."""
    lacking = len(method.updates) - len(other_method.updates)  # 1 where the discarded output had its own
    names = {id(p): name for name, p in net.named_parameters()}
    for mine, other in zip(method.updates[lacking:], other_method.updates, strict=True):
        state = {names[id(p)]: mine.optimizer.state[a] for p, a in zip(mine.parameters, mine.aliases, strict=True)}
        kept = [s for name, s in state.items() if not name.startswith("heads.0.")]
        for alias, s in zip(other.aliases, kept, strict=True):
            other.optimizer.state[alias] = {key: v.clone() if torch.is_tensor(v) else v for key, v in s.items()}


@every_method
@pytest.mark.parametrize(
    "optimizer", [sgd(), partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)], ids=["SGD", "AdamW"]
)
@pytest.mark.enough(7)
def test_a_discarded_loss_has_exactly_no_effect_from_then_on(make, optimizer):
    """The net goes on to the bit as one from which the output is taken away, optimizer states and all."""
    net = small(block="original").double()
    method = make(net, optimizer, [0.9, 0.6, 1.0])
    x, y = images()
    for _ in range(2):
        method.step(x.double(), y)
    other = without_the_first_output(net)
    other_method = make(other, optimizer, [0.6, 1.0])
    hand_over(method, net, other_method, other)
    head = [p.clone() for p in net.heads[0].parameters()]
    method.set_weights([0.0, 0.6, 1.0])
    for _ in range(3):
        losses = method.step(x.double(), y)
        assert torch.equal(losses[1:], other_method.step(x.double(), y))
    assert losses[0].isfinite()
    for a, b in zip(without_the_first_output(net).state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert all(map(torch.equal, head, net.heads[0].parameters()))  # no decay, no momentum


@every_method
def test_before_it_is_discarded_an_output_has_an_effect(make):
    net, other = small(), small()
    make(net, sgd(), [0.5, 0.5, 1.0]).step(*images())
    method = make(other, sgd(), [0.5, 0.5, 1.0])
    method.set_weights([0.0, 0.5, 1.0])
    method.step(*images())
    weights = [next(each.segments[0].parameters()) for each in (net, other)]
    assert not torch.equal(*weights)


def test_what_a_method_can_do_stands_in_its_help():
    for name in ("step", "set_weights", "set_lr", "state_dict", "load_state_dict"):
        assert inspect.getdoc(getattr(Method, name)), name


@every_method
def test_weights_that_are_set_are_those_of_a_method_built_with_them(make):
    net, other = small(), small()
    method, other_method = make(net, sgd(), [0.3, 0.1, 1.0]), make(other, sgd(), [0.9, 0.8, 1.0])
    other_method.set_weights([0.3, 0.1, 1.0])
    for _ in range(2):
        method.step(*images())
        other_method.step(*images())
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))


# ---- what others did: gradient equilibrium, self-distillation, one gradient out of many ------------------------------


def test_equilibrium_is_the_rescaling_of_gradients_at_every_cut():
    """IMTA's recursion by hand: at the cut of output i, 1 / (K-i+1) of its gradient, (K-i) / (K-i+1) from above."""
    net, data = hand_net(), batches()
    W, V, b = weights_of(net)
    optimizer = HandSGD(0.0)
    for x, y in data:
        features = hand_features(W, x)
        g = torch.zeros_like(features[K])
        for i in range(K, 0, -1):
            _, dx, dV, db = hand_head(V[i - 1], b[i - 1], features[i], y)
            g = WEIGHTS[i - 1] * dx / (K - i + 1) + g * (K - i) / (K - i + 1)
            dz = g * (1 - features[i] ** 2)
            g = dz @ W[i - 1]  # with the weights of before
            optimizer.step(("W", i), W[i - 1], dz.T @ features[i - 1], ETA)
            optimizer.step(("V", i), V[i - 1], WEIGHTS[i - 1] * dV, ETA)
            optimizer.step(("b", i), b[i - 1], WEIGHTS[i - 1] * db, ETA)
    assert_same(trained(partial(auxnet.joint, step_scale="equilibrium"), data, decay=0.0), (W, V, b))


TAUGHT = {"joint": auxnet.joint, "frozen": METHODS["frozen"], "fused": METHODS["fused"], "live": auxnet.multiway}


@pytest.mark.parametrize("make", TAUGHT.values(), ids=TAUGHT.keys())
def test_a_distilled_output_sees_what_the_final_one_says_as_it_is(make):
    """No gradient reaches the final output through what it teaches."""
    net, seen = small(), []

    def distill(z, y, final):
        assert not final.requires_grad
        seen.append(final)
        return nn.functional.mse_loss(z, final)

    method = make(net, sgd(), [0.5, 0.5, 1.0], distill=distill)
    expected = small()(images()[0])
    losses = method.step(*images())
    assert losses[0].item() == pytest.approx(nn.functional.mse_loss(expected[0], expected[-1]).item(), rel=1e-5)
    assert losses[2].item() == pytest.approx(nn.functional.cross_entropy(expected[2], images()[1]).item(), rel=1e-5)
    assert len(seen) == 2
    alone = small()
    make(alone, sgd(), [0.5, 0.5, 1.0]).step(*images())
    for a, b in zip(net.heads[-1].parameters(), alone.heads[-1].parameters(), strict=True):
        assert torch.equal(a, b)  # nor does its own head feel it


def test_joint_gradients_combined_by_their_mean_are_joint():
    combined = trained(partial(auxnet.joint, aggregate=lambda rows: rows.mean(0)), batches())
    assert_same(combined, hand_joint(hand_net(), batches(), "sum", DECAY))


def test_combined_gradients_leave_what_no_loss_reaches_as_it_is():
    ends = []
    for aggregate in (None, lambda rows: rows.mean(0)):
        net, (x, y) = hand_net(), batches(1)[0]
        method = auxnet.joint(net, sgd(), WEIGHTS, aggregate=aggregate)
        method.step(x, y)
        method.set_weights([*WEIGHTS[:-1], 0.0])
        before = net.segments[-1][0].weight.detach().clone()
        method.step(x, y)
        assert torch.equal(net.segments[-1][0].weight, before)  # no decay, no momentum
        ends.append(weights_of(net))
    assert_same(*ends)


def test_what_is_combined_is_the_gradient_of_every_weighted_loss_zero_where_an_output_does_not_reach():
    net, rows = hand_net(), []
    W, V, b = weights_of(net)
    x, y = batches(1)[0]

    def last(jacobian):
        rows.extend(jacobian)
        return jacobian[-1]

    method = auxnet.joint(net, partial(torch.optim.SGD, lr=ETA), WEIGHTS, "none", aggregate=last)
    method.step(x, y)
    features = hand_features(W, x)
    for k, row in enumerate(rows, start=1):
        _, dx, *_ = hand_head(V[k - 1], b[k - 1], features[k], y)
        by_hand = hand_trunk(W, features, k, WEIGHTS[k - 1] * dx)
        expected = [by_hand.get(s, torch.zeros(WIDTH, WIDTH, dtype=torch.float64)) for s in range(1, K + 1)]
        torch.testing.assert_close(row, torch.cat([g.flatten() for g in expected]), rtol=1e-12, atol=1e-12)
    for s in range(K):  # K times what came out of it
        torch.testing.assert_close(net.segments[s][0].weight.data, W[s] - ETA * K * rows[-1].view(K, WIDTH, WIDTH)[s])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda n: auxnet.joint(n, sgd(), [1.0]), "weights must be 4 finite numbers"),
        (lambda n: auxnet.joint(n, sgd(), 0.3), "weights must be 4 finite numbers >= 0, one per output, got 0.3"),
        (lambda n: auxnet.joint(n, sgd(), {1: 0.2, 2: 0.5, 3: 1.0, 4: 1.0}), "weights must be .*, got {1: 0.2, "),
        (lambda n: auxnet.joint(n.requires_grad_(False), sgd(), WEIGHTS), "nothing to train, .* requires_grad_"),
        (lambda n: auxnet.joint(n, sgd(), [1, 1, float("nan"), 1]), "weights must be 4 finite numbers"),
        (lambda n: auxnet.joint(n, sgd(), [1, 1, 1, "a"]), "weights must be 4 finite numbers"),
        (lambda n: auxnet.joint(n, sgd(), [0.0] * K), "weights must leave at least one output above 0"),
        (lambda n: auxnet.joint(n, sgd(), WEIGHTS).set_weights([1.0]), "weights must be 4 finite numbers"),
        (lambda n: auxnet.joint(n, sgd(), WEIGHTS, "cumulative"), "step_scale must be one of none, sum"),
        (lambda n: auxnet.pairwise(n, sgd(), WEIGHTS, "adaptive"), "step_scale must be one of none, cumulative"),
        (lambda n: auxnet.multiway(n, sgd(), WEIGHTS, "refreshed"), "mode must be one of live, frozen, fused"),
        (lambda n: auxnet.multiway(n, sgd(), WEIGHTS, "fused", "adaptive"), "needs steps in constant ratio"),
        (lambda n: auxnet.multiway(n, sgd(), WEIGHTS, "fused", state="shared"), "leave state and order out"),
        (lambda n: auxnet.multiway(n, sgd(), WEIGHTS, order="random"), "order must be one of shallow_first"),
        (lambda n: auxnet.multiway(n, sgd(), WEIGHTS, clip=0.0), "clip must be a gradient norm above 0"),
        (lambda n: auxnet.multiway(n, sgd(), WEIGHTS, clip="1"), "clip must be a gradient norm above 0, got '1'"),
        (
            lambda n: auxnet.joint(n, sgd(), WEIGHTS).set_lr(-0.5),
            "lr must be a number of 0 or more, and finite, got -0.5",
        ),
        (lambda n: auxnet.joint(n, sgd(), WEIGHTS, clip=True), "clip must be a gradient norm above 0, got True"),
        (lambda n: auxnet.joint(n, sgd(), WEIGHTS, clip=[1.0]), "clip must be a gradient norm above 0, got .1.0."),
        (lambda n: auxnet.joint(n, sgd(), WEIGHTS).set_lr(True), "lr must be a number of 0 or more, .*got True"),
        (lambda n: auxnet.joint(n, sgd(), WEIGHTS).set_lr(float("nan")), "lr must be a number of 0 or more"),
        (lambda n: auxnet.joint(n, sgd(), WEIGHTS).set_lr("0.1"), "lr must be a number of 0 or more, .*got '0.1'"),
        (lambda n: auxnet.joint(n, sgd(), WEIGHTS).set_lr(None), "lr must be a number of 0 or more, .*got None"),
        (lambda n: auxnet.joint(n, sgd(), WEIGHTS).load_state_dict({}), "has 1 optimizers, the state has 0"),
    ],
)
def test_impossible_methods_say_why(make, words):
    with pytest.raises(ValueError, match=words):
        make(hand_net())


@every_method
def test_what_is_no_net_and_what_are_no_tensors_are_refused(make):
    net, (x, y) = hand_net(), batches(1)[0]
    with pytest.raises(TypeError, match=r"net must be an AuxNet, got Sequential: .* net\.alone\(k\)"):
        make(net.truncate(2), sgd(), WEIGHTS)
    with pytest.raises(TypeError, match=r"got OptimizedModule: net\.compile\(\) compiles it as it is"):
        make(torch.compile(net), sgd(), WEIGHTS)
    wrapped = nn.Module.__new__(nn.parallel.DistributedDataParallel)  # without a group of processes
    nn.Module.__init__(wrapped)
    wrapped.module = net
    with pytest.raises(TypeError, match="give its `module`, and to the method average=, the mean"):
        make(wrapped, sgd(), WEIGHTS)
    with pytest.raises(TypeError, match="got DataParallel: its `module` is one"):
        make(torch.nn.DataParallel(net), sgd(), WEIGHTS)
    one_hot = torch.nn.functional.one_hot(y)
    for labels, mend in ((y[:, None], "long"), (y.int(), "long"), (one_hot, "argmax")):
        with pytest.raises(ValueError, match=rf"labels must be int64 \[N\], got torch\.int.*: labels\.{mend}\("):
            make(net, sgd(), WEIGHTS).step(x, labels)
    with pytest.raises(ValueError, match=r"labels must be int64 \[N\], got torch\.float32 \[7\]: labels\.long"):
        make(net, sgd(), WEIGHTS).step(x, y.float())
    for labels in (y[:-2], one_hot[:-2].double()):
        with pytest.raises(
            ValueError, match=r"one for each of the images .*, got labels \[5.*\] for images \[7, .* batch"
        ):
            make(net, sgd(), WEIGHTS).step(x, labels)
    with pytest.raises(
        ValueError, match="labels must be classes of this net, counted from 0: Target 99 is out of bounds"
    ):
        make(net, sgd(), WEIGHTS).step(x, torch.full_like(y, 99))
    for images, labels in ((x.numpy(), y.numpy()), (x, y.tolist())):
        with pytest.raises(TypeError, match=r"images and labels must be tensors, got .*: torch\.as_tensor"):
            make(net, sgd(), WEIGHTS).step(images, labels)


@every_method
def test_labels_that_pytorchs_losses_do_not_take_are_refused_in_a_line(make):
    net, (x, y) = small(), images()
    N, classes = net(x)[0].shape
    for loss in (nn.functional.cross_entropy, nn.CrossEntropyLoss()):
        for use in (make(net, sgd(), loss=loss).step, partial(auxnet.supervision, net, loss=loss)):
            for columns in (1, classes - 1):
                words = rf"^probabilities as labels must be \[{N}, {classes}\], .*, got \[{N}, {columns}\]: give "
                with pytest.raises(ValueError, match=words):
                    use(x, torch.ones(N, columns))
            with pytest.raises(ValueError, match=rf"^labels must be int64 \[N\], got torch.int32 \[{N}\]: labels.long"):
                use(x, y.int())


@every_method
def test_a_loss_of_ones_own_takes_labels_that_are_no_tensors(make):
    """As two labels of mixed images, and the share of the first."""

    def mixed(logits, labels):
        first, second, share = labels
        cross_entropy = torch.nn.functional.cross_entropy
        return share * cross_entropy(logits, first) + (1 - share) * cross_entropy(logits, second)

    x, y = batches(1)[0]
    losses = make(hand_net(), sgd(), WEIGHTS).step(x, y)
    assert torch.allclose(make(hand_net(), sgd(), WEIGHTS, loss=mixed).step(x, (y, y, 0.25)), losses)


def test_an_optimizer_that_is_made_already_is_refused():
    net = hand_net()
    with pytest.raises(TypeError, match="must be a function of parameters, such as functools"):
        auxnet.joint(net, torch.optim.AdamW(net.parameters()), WEIGHTS)


@pytest.mark.parametrize("name", ["live", "shared", "deep_first"])
def test_live_refuses_compiled_segments_whose_weights_change(name):
    """They may keep old weights, or recompute features with new ones: live would be neither live nor frozen."""

    def compile_one(net):
        net.segments[1].compile()

    def wrap_one(net):
        net.segments[1] = torch.compile(net.segments[1])

    for change in (compile_one, wrap_one):
        change(net := small())
        with pytest.raises(ValueError, match=r"compiled\(method, images\) of auxnet\.compiling compiles segments"):
            METHODS[name](net, sgd()).step(*images())
    method = METHODS[name](net := small(), sgd())
    compile_one(net)
    with pytest.raises(ValueError, match="compiled segments may recompute features"):
        method.step(*images())
    compile_one(frozen := small())
    frozen.segments.requires_grad_(False)
    with torch.compiler.set_stance("force_eager"):
        METHODS[name](frozen, sgd()).step(*images())


@every_method
def test_a_segment_without_parameters_keeps_its_group(make):
    """As in checkpoints of earlier versions."""
    torch.manual_seed(0)
    segments = [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)) for _ in segments]
    net = auxnet.AuxNet(segments, heads, [2, 3, 4])
    method = make(net, sgd(), [0.9, 0.8, 1.0])
    method.step(*images())
    groups = [len(update.optimizer.param_groups) for update in method.updates]
    own = {"joint": [4], "fused": [6], "shared": [2]}
    name = next(name for name, each in METHODS.items() if each is make)
    assert groups == own.get(name, [2, 2, 2])
