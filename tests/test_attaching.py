"""Outputs for any backbone: attached nets against the backbones that they are made of, and against `resnet`."""

import copy
import pickle
import random
import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import auxnet
from auxnet.backbones.attaching import TokenClassifier
from auxnet.backbones.cuts import even_cuts
from auxnet.backbones.dryrun import features
from auxnet.blocks import Classifier, PostActivationBlock, PreActivationBlock
from auxnet.loading import load_weights
from auxnet.tensors import save_tensors
from conftest import multiply_adds

EXAMPLE = torch.zeros(1, 3, 16, 16)
attach = partial(auxnet.attach, example=EXAMPLE)
sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
METHODS = {
    "joint": auxnet.joint,
    "pairwise": auxnet.pairwise,
    "live": partial(auxnet.multiway, mode="live"),
    "frozen": partial(auxnet.multiway, mode="frozen"),
    "fused": partial(auxnet.multiway, mode="fused"),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())


# ---- backbones as people write them ----------------------------------------------------------------------------


class Residual(nn.Module):
    """ResNet-8 as one module, pre-activation: stem, three layers, a classifier."""

    def __init__(self, block=PreActivationBlock):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(block(16, 16, 1))
        self.layer2 = nn.Sequential(block(16, 32, 2))
        self.layer3 = nn.Sequential(block(32, 64, 2))
        self.head = Classifier(64, 10, activate=block is PreActivationBlock)

    def forward(self, x):
        return self.head(self.layer3(self.layer2(self.layer1(self.stem(x)))))


class Dropping(nn.Module):
    """Dropout as a function and as a module, ReLUs in place, a layer under two names, an unused module."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(8, 12, 3, 2))
        self.unused = nn.Conv2d(8, 8, 1)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 10)

    def forward(self, x, scale=None):
        x = self.relu(self.bn1(self.conv1(x)))
        x = F.dropout(x, 0.3, self.training) if scale is None else x * scale
        self.unused(x)
        x = F.dropout(self.blocks(x), p=0.3, training=self.training)
        return self.fc(torch.flatten(self.pool(x), 1))


class Mixing(nn.Module):
    """A block of tokens; by the size of its input it does something else, which torch.fx cannot follow."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(channels), nn.MultiheadAttention(channels, 2, batch_first=True)

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Tokens(nn.Module):
    """A vision transformer: patches, a class token, positions, blocks, the class token's logits."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8))
        self.blocks = nn.ModuleList(Mixing(8) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class ChannelsLast(nn.Module):
    """Maps [N, H, W, C], as a Swin has them; a table of numbers that two blocks look at."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.table = nn.Buffer(torch.rand(8))
        self.first, self.second = (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        x = self.first(x) * self.table
        x = self.second(x) * self.table
        return self.head(x.mean((1, 2)))


BACKBONES = {
    "residual": (Residual, ("layer1", "layer2")),
    "dropping": (Dropping, ("relu", "blocks.1")),
    "tokens": (Tokens, ("blocks.0", "blocks.1")),
    "channels last": (ChannelsLast, ("first", "second.0")),
}
every_backbone = pytest.mark.parametrize(("kind", "at"), BACKBONES.values(), ids=BACKBONES.keys())


def build(kind, seed=1):
    torch.manual_seed(seed)
    return kind()


def images(n=5):
    g = torch.Generator().manual_seed(2)
    return torch.randn(n, 3, 16, 16, generator=g), torch.randint(10, (n,), generator=g)


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- the laws --------------------------------------------------------------------------------------------------


@every_backbone
@pytest.mark.parametrize("training", [True, False])
def test_segments_compose_to_the_backbone_bit_for_bit(kind, at, training):
    backbone = build(kind).train(training)
    untouched = copy.deepcopy(backbone)
    net = attach(backbone, at)
    assert net.outputs == 3
    assert [m.training for m in net.modules()] == [training] * len(list(net.modules()))
    x, _ = images()
    for mode in (training, not training):
        net.train(mode)
        untouched.train(mode)
        torch.manual_seed(7)  # dropout
        expected = untouched(x)
        torch.manual_seed(7)
        assert torch.equal(net.heads[-1]([*net.features(x)][-1]), expected)
    same(backbone.state_dict(), untouched.state_dict())  # BatchNorm's statistics too


@every_backbone
def test_attaching_leaves_the_backbone_as_it_was(kind, at):
    backbone = build(kind).train()
    backbone.get_submodule(at[0]).eval()
    before, attributes = copy.deepcopy(backbone), set(vars(backbone))
    net = attach(backbone, at)
    assert set(vars(backbone)) == attributes
    same(backbone.state_dict(), before.state_dict())
    assert [m.training for m in backbone.modules()] == [m.training for m in before.modules()]
    assert all(p.requires_grad for p in backbone.parameters())
    own = {id(p) for p in backbone.parameters()}
    assert {id(p) for p in [*net.segments.parameters(), *net.heads[-1].parameters()]} <= own


@every_method
@pytest.mark.parametrize("block", ["preact", "original", "plain"])
@pytest.mark.enough(6)
def test_the_same_net_built_by_resnet_and_by_attach_trains_to_the_same_weights(make, block):
    built = auxnet.resnet(8, 3, block=block)
    if block == "preact":
        backbone = Residual()
    else:
        backbone = Residual(partial(PostActivationBlock, skip=block == "original"))
        backbone.stem = nn.Sequential(backbone.stem, nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    attached = attach(backbone, ("layer1", "layer2"))
    assert attached.depths == built.depths == (3, 5, 8)
    assert [type(head) for head in attached.heads[:-1]] == [Classifier] * 2
    with torch.no_grad():
        for mine, theirs in zip(attached.state_dict().values(), built.state_dict().values(), strict=True):
            mine.copy_(theirs)
    for net in (built.train(), attached.train()):
        method = make(net, sgd, net.loss_weights())
        for _ in range(3):
            method.step(*images())
    for mine, theirs in zip(attached.state_dict().values(), built.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@every_backbone
def test_a_truncated_output_uses_every_parameter_that_it_has(kind, at):
    net = attach(build(kind), at).eval()
    x, _ = images()
    for k, expected in enumerate(net(x), start=1):
        alone = net.truncate(k)
        said = alone(x)
        assert torch.equal(said, expected)
        unused = torch.autograd.grad(said.sum(), list(alone.parameters()), allow_unused=True)
        assert all(gradient is not None for gradient in unused)


@pytest.mark.enough(10)
@every_method
@every_backbone
def test_every_method_trains_all_of_it_and_nothing_else(make, kind, at):
    backbone = build(kind)
    frozen = next(backbone.get_submodule(at[-1].split(".")[0]).parameters())
    frozen.requires_grad_(False)
    net = attach(backbone, at).train()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    ours = {id(p) for p in net.parameters()}
    others = [(p, p.detach().clone()) for p in backbone.parameters() if id(p) not in ours]
    make(net, sgd, net.loss_weights()).step(*images())
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) == (p is frozen), name
    assert all(torch.equal(p, copied) for p, copied in others)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 1 for norm in norms)


@every_backbone
def test_early_exit_skips_and_keeps_the_order(kind, at):
    net = attach(build(kind), at).eval()
    x, _ = images(9)
    with torch.no_grad():
        logits = net(x)
        sure = logits[0].softmax(1).amax(1)
        threshold = float(sure.sort().values[3:5].mean())
        said, output = auxnet.EarlyExit(net, [threshold, 2.0], "top")(x)
    assert output.tolist() == [1 if s >= threshold else 3 for s in sure]
    expected = torch.where((output == 1)[:, None], logits[0], logits[2])
    torch.testing.assert_close(said, expected)


@pytest.mark.parametrize(("kind", "at"), [BACKBONES["dropping"], BACKBONES["residual"]], ids=["dropping", "residual"])
@pytest.mark.enough(1)
def test_an_exported_output_equals_its_source(kind, at, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from auxnet.export_graphs import OneOutput, write_onnx, write_torch

    net = attach(build(kind), at).eval()
    graph = OneOutput(net.truncate(2), [120.0] * 3, [60.0] * 3)
    pixels = torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8)
    write_onnx(graph, pixels[:2], tmp_path / "two.onnx", {})
    write_torch(graph, pixels[:2], tmp_path / "two.pt2", {})
    with torch.no_grad():
        expected = graph(pixels)[0]
        exported = torch.export.load(tmp_path / "two.pt2").module()(pixels)[0]
    session = onnxruntime.InferenceSession(tmp_path / "two.onnx", providers=["CPUExecutionProvider"])
    [said] = session.run(["logits"], {"images": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(said), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exported, expected, atol=1e-6, rtol=1e-6)


@every_backbone
def test_its_weights_are_saved_and_read_back_into_one_attached_anew(kind, at, tmp_path):
    net, anew = attach(build(kind), at).eval(), attach(build(kind, seed=9), at).eval()
    save_tensors(tmp_path / "model.safetensors", net.state_dict())
    load_weights(tmp_path / "model.safetensors", anew)
    x, _ = images()
    assert all(map(torch.equal, net(x), anew(x)))
    pickled = pickle.loads(pickle.dumps(net))
    assert all(map(torch.equal, net(x), pickled(x)))  # dropout is off in evaluation there too
    torch.manual_seed(7)
    expected = net.train()(x)
    torch.manual_seed(7)
    assert all(map(torch.equal, expected, pickled.train()(x)))


@pytest.mark.parametrize("how", ["pre-hook", "hook", "forward", "call"])
def test_what_is_done_around_a_backbones_forward_belongs_to_it(how):
    class Called(Residual):
        def __call__(self, x):
            return 2 * super().__call__((x - 0.5) / 0.2)

    backbone = (Called if how == "call" else Residual)().train()
    if how == "pre-hook":
        backbone.register_forward_pre_hook(lambda module, given: ((given[0] - 0.5) / 0.2,))
    if how == "hook":
        backbone.register_forward_hook(lambda module, given, logits: 3 * logits)
    if how == "forward":
        forward = backbone.forward
        backbone.forward = lambda x: forward((x - 0.5) / 0.2)
    before = copy.deepcopy(backbone.state_dict())
    net = attach(backbone, ("layer1", "layer2"))
    same(backbone.state_dict(), before)
    assert torch.equal(net.eval()(images()[0])[-1], backbone.eval()(images()[0]))


def pruned():
    backbone = Residual()
    prune.l1_unstructured(backbone.stem, "weight", 0.3)
    return backbone


def keeping():
    backbone = Residual()
    backbone.stem.register_forward_hook(lambda stem, x, y: setattr(stem, "maps", [y]))
    return backbone


class Counting(nn.Module):
    """A forward that counts by a buffer's shape, keeps what it computes, and ends in a layer with weight norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))
        self.register_buffer("filters", torch.tensor([0.5, 2.0, 3.0]))
        self.attention = None

    def forward(self, x):
        x = self.stem(x)
        for each in self.filters:
            x = x * each
        if len(self.filters) == self.filters.numel() == 3:
            x = x + self.filters.size(0)
        self.attention = x
        return self.fc(self.mid(x.relu()).mean((2, 3)))


def test_a_forward_may_count_by_a_buffer_and_keep_what_it_computes():
    backbone = Counting().eval()
    net, other = attach(backbone, ("stem",)), attach(backbone, ("stem",), 5)
    assert backbone.attention is None
    x, _ = images()
    assert torch.equal(net(x)[-1], backbone(x))
    assert [logits.shape[1] for logits in other(x)] == [5, 5]


def test_a_norm_after_an_activation_leaves_a_feature_that_is_not_activated():
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    net = attach([stem, nn.Conv2d(4, 4, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))])
    assert isinstance(net.heads[0].bn, nn.BatchNorm2d)


@pytest.mark.parametrize("kind", [pruned, keeping])
@pytest.mark.long
def test_modules_that_keep_computed_tensors_are_copied_without_their_graphs(kind):
    backbone = build(kind)
    backbone(EXAMPLE)
    net = attach(backbone, ("layer1",), num_classes=4).eval()
    x, _ = images()
    assert torch.equal(net.truncate(1)(x), net(x)[0])
    assert multiply_adds(net, (3, 16, 16)) == multiply_adds(attach(Residual(), ("layer1",), 4), (3, 16, 16))


def test_what_looks_at_values_is_counted_as_what_does_not():
    class Looking(Residual):
        def forward(self, x):
            return super().forward(x) if x.abs().sum() < 1e9 else x

    attention = nn.TransformerEncoderLayer(16, 2, 8, batch_first=True)  # torch fuses it, but not on "meta"
    tokens = nn.Flatten(1, 2), attention, nn.Unflatten(1, (3, 16))
    looking, plain = (multiply_adds(nn.Sequential(*tokens, kind()), (3, 16, 16)) for kind in (Looking, Residual))
    assert looking == plain


# ---- depths, heads, cuts ---------------------------------------------------------------------------------------


class Branching(nn.Module):
    """A convolution, and a squeeze-and-excitation branch of two more; its shortcut has one."""

    def __init__(self, channels_in, channels):
        super().__init__()
        self.conv, self.squeeze, self.excite = (
            nn.Conv2d(a, b, 1) for a, b in ((channels_in, channels), (channels, 2), (2, channels))
        )
        self.shortcut = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x):
        y = self.conv(x)
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return F.relu(y + self.shortcut(x))


def test_the_depth_of_an_output_counts_the_layers_of_its_longest_path():
    trunk = [nn.Conv2d(3, 4, 3), Branching(4, 6), nn.Sequential(Branching(6, 6), nn.MaxPool2d(2)), nn.Flatten()]
    net = attach(nn.Sequential(*trunk, nn.Linear(6 * 7 * 7, 5)), ("0", "1"))
    assert net.depths == (1, 1 + 3, 1 + 3 + 3 + 1)
    # patches; per block the projection into queries, keys, values and the one out of them; the classifier
    assert attach(Tokens(), ("blocks.0", "blocks.1")).depths == (1 + 2, 1 + 4, 1 + 6 + 1)


class Writing(nn.Module):
    """A convolution whose result is written into a part of a tensor: of its input, of zeros of its kind, of zeros."""

    def __init__(self, into):
        super().__init__()
        self.into, self.conv = into, nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x):
        y = self.into(x)
        y[:, :2] = self.conv(x)
        return y


@pytest.mark.parametrize(
    "into",
    [torch.clone, lambda x: x.new_zeros(2, 4, 16, 16), lambda x: torch.zeros(2, 4, 16, 16, device=x.device)],
    ids=["input", "zeros of its kind", "zeros"],
)
def test_what_is_written_into_a_part_of_a_tensor_is_part_of_its_path(into):
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), Writing(into), nn.Conv2d(4, 5, 1))
    found = features(trunk, (3, 16, 16))
    assert [(each.depth, each.activated) for each in found] == [(1, False), (1, True), (2, False), (3, False)]


class Transposed(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return x.transpose(self.a, self.b)


def flat(trunk, classes=6):
    """A classifier of all that a trunk gives."""
    return nn.Sequential(nn.Flatten(), nn.Linear(trunk(EXAMPLE).numel(), classes))


@pytest.mark.parametrize(
    ("layers", "form"),
    [
        ([nn.Conv2d(3, 4, 1)], "normalise and pool"),
        ([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)], "normalise and pool"),
        ([nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)], "pool"),
        ([nn.Conv2d(3, 4, 1), nn.SiLU(), nn.MaxPool2d(2), nn.Dropout()], "pool"),
        ([Branching(3, 4)], "pool"),
        ([nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Flatten(2, 3)], "tokens"),
        ([nn.Conv2d(3, 4, 4, 4), nn.Flatten(2, 3), nn.Unflatten(2, (4, 4))], "normalise and pool"),
        ([nn.Unflatten(3, (2, 8)), nn.Flatten(1, 3)], "tokens"),
    ],
)
def test_a_head_normalises_unless_the_feature_is_activated_already(layers, form):
    trunk = nn.Sequential(*layers)
    head = attach([trunk, nn.Identity(), flat(trunk)]).heads[0]
    forms = {"normalise and pool": (True, False), "pool": (False, False), "tokens": (False, True)}
    assert (getattr(head, "bn", None) is not None, hasattr(head, "norm")) == forms[form]
    assert torch.equal(head.fc.bias, torch.zeros(6))


def test_channels_are_found_where_they_are():
    def channels(shape, image=(3, 16, 16)):
        made = []

        class Shape(nn.Module):
            def forward(self, x):
                return x.new_zeros(len(x), *shape) + x.mean((1, 2, 3)).view(-1, *[1] * len(shape))

        example = torch.zeros(1, *image)
        trunk = Shape()

        def classifier(channels):
            made.append(channels)
            return nn.Sequential(nn.Flatten(), nn.Linear(trunk(example).numel(), 6))

        auxnet.attach([trunk, nn.Identity(), classifier(0)], example=example, heads=classifier)
        return made[1]

    assert channels((24, 7, 7)) == 24
    assert channels((7, 7, 24)) == 24
    assert channels((10, 5, 24), image=(3, 64, 32)) == 24
    assert channels((24, 4, 6), image=(3, 100, 160)) == 24
    assert channels((50, 24)) == 24
    assert channels((24,)) == 24


@pytest.mark.parametrize(
    ("layers", "channels"),
    [
        ([nn.Conv2d(3, 24, 3, (1, 4), 1)], 24),  # [24, 16, 4], shaped unlike the image
        ([nn.Conv2d(3, 24, 3, (1, 4), 1), nn.ReLU(), nn.MaxPool2d((1, 2)), nn.BatchNorm2d(24)], 24),
        ([nn.Flatten(2), nn.Conv1d(3, 24, 3), nn.ReLU()], 24),  # [24, 254]
        ([nn.Conv2d(3, 24, 4, 4), nn.Flatten(2)], 24),  # [24, 16]
        ([Branching(3, 24), Transposed(1, 3)], 24),  # [16, 16, 24]
        ([nn.Linear(16, 24), nn.GELU()], 24),  # [3, 16, 24]: as the layer has it, whatever they mean
        ([nn.Flatten(2), Transposed(1, 2), nn.Linear(3, 7), nn.LayerNorm(7), nn.Unflatten(1, (16, 16))], 7),
    ],
)
def test_channels_are_where_the_last_layer_with_weights_has_them(layers, channels):
    made = []

    def head(channels):
        made.append(channels)
        return flat(trunk)

    trunk = nn.Sequential(*layers)
    attach([trunk, nn.Identity(), flat(trunk)], heads=head)
    assert made == [channels]
    assert attach([trunk, nn.Identity(), flat(trunk)])(torch.randn(2, 3, 16, 16))[0].shape == (2, 6)


class TokenMixing(nn.Module):
    """As in an MLP-Mixer: a layer over the 16 tokens of [N, 16, C], and a sum in either order."""

    def __init__(self, skip_first):
        super().__init__()
        self.skip_first, self.layer = skip_first, nn.Conv1d(16, 16, 1)

    def forward(self, x):
        y = self.layer(x)
        return x + y if self.skip_first else y + x


@pytest.mark.parametrize("skip_first", [True, False])
def test_the_channels_of_a_sum_are_where_its_skip_path_has_them(skip_first):
    layers = [nn.Conv2d(3, 12, 4, 4), nn.Flatten(2), Transposed(1, 2), TokenMixing(skip_first), nn.LayerNorm(12)]
    assert [each.channels for each in features(layers, (3, 16, 16))] == [0, 0, 1, 1, 1]


def test_an_output_takes_the_callers_head():
    net = attach(Residual(), ("layer1", "layer2"), heads=lambda channels: Classifier(channels, 10, activate=False))
    assert [head.bn for head in net.heads[:2]] == [None, None]
    assert [head.fc.in_features for head in net.heads[:2]] == [16, 32]
    with pytest.raises(ValueError, match="output 1 gives 7 classes in place of 10: its head, of `heads`, must give"):
        attach(Residual(), ("layer1",), heads=lambda channels: Classifier(channels, 7, activate=False))


@every_backbone
def test_another_number_of_classes_replaces_the_last_layer_and_nothing_else(kind, at):
    backbone = build(kind).eval()
    before = copy.deepcopy(backbone)
    net = attach(backbone, at, num_classes=4)
    x, _ = images()
    assert [logits.shape for logits in net(x)] == [(5, 4)] * 3
    assert torch.equal(backbone(x), before(x))  # it keeps its classifier
    trained = {id(p) for p in net.parameters()}
    assert sum(id(p) not in trained for p in backbone.parameters()) <= 4  # the classifier's, in one case its norm's too
    kept = attach(before, at, num_classes=10)
    assert torch.equal(kept(x)[-1], backbone(x))


class Backwards(nn.Module):
    """A classifier whose last layer is registered first."""

    def __init__(self):
        super().__init__()
        self.last, self.hidden = nn.Linear(6, 10), nn.Linear(4, 6)

    def forward(self, x):
        return self.last(self.hidden(x.mean((2, 3))).relu())


def test_the_layer_for_other_classes_is_the_one_that_is_called_last():
    net = attach(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), Backwards()), ("0",), num_classes=4)
    layers = dict(net.heads[-1].named_modules())
    assert (layers["2.last"].out_features, layers["2.hidden"].out_features) == (4, 6)
    assert [logits.shape for logits in net(images()[0])] == [(5, 4)] * 2


@pytest.mark.parametrize(
    "end",
    [
        [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 8, 1), nn.Hardswish(), nn.Flatten()],  # MobileNetV3
        [nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8), nn.ReLU()],  # VGG
    ],
)
def test_a_backbone_without_a_classifier_keeps_its_layers(end):
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), *end)
    with pytest.raises(ValueError, match=r"has no classifier .*: nn\.Sequential\(backbone, nn\.Linear\(8, 10\)\) adds"):
        attach(backbone, ("0",), num_classes=10)
    net = attach(nn.Sequential(backbone, nn.Linear(8, 10)), ("0.0",))
    assert {*map(id, backbone.parameters())} <= {*map(id, net.parameters())}


def test_the_logits_of_a_squeezenet_may_be_activated():
    end = [nn.Conv2d(4, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    assert attach(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), *end), ("0",), num_classes=4).outputs == 2


class Frozen(nn.Module):
    """A part that its author keeps in evaluation mode, with dropout as a function."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def train(self, mode=True):
        return super().train(False)

    def forward(self, x):
        return F.dropout(self.conv(x), 0.5, self.training)


def test_a_part_that_its_author_froze_stays_frozen():
    backbone = nn.Sequential(
        Frozen(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    ).train()
    net = attach(backbone, ("0.conv",)).train()
    assert torch.equal(net(images()[0])[-1], backbone(images()[0]))


class Asking(nn.Module):
    """It asks for the number of images at its beginning, and uses it at its end."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.stem, self.body, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        if self.how == "unpacked":
            n, _, _, _ = x.shape
        else:
            n = {"shape": x.shape[0], "size": x.size(0), "sizes": x.size()[0]}[self.how]
        x = self.body(self.stem(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).view(n, -1))


@pytest.mark.parametrize("how", ["shape", "size", "sizes", "unpacked"])
def test_the_number_of_images_may_be_asked_for_before_a_cut(how):
    backbone = build(partial(Asking, how))
    net = attach(backbone, ("stem",))
    for n in (1, 5):
        x, _ = images(n)
        assert torch.equal(net(x)[-1], backbone(x))


def test_an_attached_net_refuses_images_that_are_not_for_it():
    net = attach(Residual(), ("layer1",))
    for shape, words in (
        ((3, 16, 16), r"one image is images\[None\]"),
        ((2, 1, 16, 16), "must have 3 channels, got 1"),
    ):
        with pytest.raises(ValueError, match=words):
            net(torch.zeros(shape))


def test_an_attached_net_can_be_traced():
    net, x = attach(Residual(), ("layer1", "layer2")).eval(), images(2)[0]
    assert all(map(torch.equal, torch.fx.symbolic_trace(net)(x), net(x)))


def activated_first(*inplace):
    """Three blocks; all but the first begin with a ReLU, in place or not."""
    first, second = (nn.ReLU(inplace=each) for each in inplace)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(first, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
    )


@pytest.mark.parametrize("at", [("0",), 1])
def test_a_place_that_an_operation_in_place_rules_out_is_told_as_such(at):
    assert attach(activated_first(False, False), at).outputs == 2
    with pytest.raises(ValueError, match=r"no trunk before its classifier, '2' \(no cut after '0' or '1', whose .*"):
        attach(activated_first(True, True), at)
    with pytest.raises(ValueError, match=r"\(no cut after '1', whose result is changed in place: inplace=False"):
        attach(activated_first(False, True), at)
    if at == ("0",):
        with pytest.raises(ValueError, match=r"what '0' gives is changed in place afterwards \(inplace=False there"):
            attach(activated_first(True, False), at)


class Forgetting(nn.Module):
    """Dropout between two convolutions, as a function, or what is given in place of it."""

    def __init__(self, instead=None, inplace=True):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.instead, self.inplace = instead, inplace
        self.last, self.fc = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU()), nn.Linear(8, 10)

    def forward(self, x):
        x = self.norm(self.first(x))
        x = F.dropout(x, 0.5, self.training, self.inplace) if self.instead is None else self.instead(x)
        return self.fc(self.last(x).mean((2, 3)))


class FailingInTraining(nn.Module):
    def forward(self, x):
        if self.training:
            raise RuntimeError("too few images")
        return x * 2


def test_a_place_whose_result_is_changed_in_place_in_training_alone_is_refused():
    dropping = nn.Sequential(nn.Dropout(inplace=True), nn.Conv2d(8, 8, 1))
    for instead in (None, dropping):
        with pytest.raises(ValueError, match=r"what 'norm' gives is changed in place afterwards \(inplace=False there"):
            attach(Forgetting(instead), ("norm",))
    parts = [nn.Conv2d(3, 8, 1), dropping, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))]
    with pytest.raises(ValueError, match="segment 2 changes in place what segment 1 gives, which head 1 needs too"):
        attach(parts)
    assert attach(Forgetting(inplace=False), ("norm",)).outputs == 2
    assert attach(Forgetting(FailingInTraining()), ("norm",)).outputs == 2


class Drawing(nn.Module):
    """Looks at a number, and draws from every generator in training."""

    def forward(self, x):
        noise = torch.rand(()) + random.random() + np.random.rand() if self.training else 0
        return x + noise if x.sum() < 1e9 else x


def test_looking_for_places_draws_no_random_numbers_and_moves_no_statistics():
    backbone = Forgetting(Drawing())
    before = copy.deepcopy(backbone.state_dict())
    generators = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    assert even_cuts(backbone, 1, (3, 16, 16)) == ("instead",)
    features([backbone.first, nn.Sequential(backbone.norm, backbone.instead)], (3, 16, 16))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), repr(np.random.get_state())) == generators[1:]
    assert all(map(torch.equal, backbone.state_dict().values(), before.values()))
    assert backbone.norm.training


class WithWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x, words):
        return self.fc(self.conv(x).mean((2, 3))) + words


def test_images_are_not_blamed_for_what_is_not_about_them():
    with pytest.raises(ValueError, match=r"does not take images alone \(.*missing 1 required.*'words'\): wrap it"):
        attach(WithWords(), ("conv",))
    with pytest.raises(ValueError, match="a head does not take its feature: mat1 and mat2 shapes cannot be multiplied"):
        attach(Residual(), ("layer1",), heads=lambda channels: nn.Linear(3, 10))


def test_even_cuts_share_the_cost_and_are_always_the_same():
    torch.manual_seed(5)
    widths = [3, 8, 8, 16, 4, 12, 8, 8]
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
    blocks = [nn.Sequential(conv, nn.ReLU(inplace=True)) for conv in layers]
    backbone = nn.Sequential(nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    macs = [16 * 16 * 9 * a * b for a, b in pairwise(widths)]
    sums = [sum(macs[: i + 1]) for i in range(len(macs))]
    total = sums[-1] + 80
    for cuts in (1, 2, 3):
        names = even_cuts(backbone, cuts, (3, 16, 16))
        nearest = [
            min(range(len(sums) - 1), key=lambda i: abs(sums[i] - total * (c + 1) / (cuts + 1))) for c in range(cuts)
        ]
        assert names == tuple(f"0.{i}" for i in nearest)
        assert even_cuts(copy.deepcopy(backbone), cuts, (3, 16, 16)) == names
        net = attach(backbone, cuts)
        assert net.depths == attach(backbone, names).depths == (*(i + 1 for i in nearest), 8)
        assert sum(multiply_adds(s, f) for s, f in _with_inputs(net)) == sums[-1]


def _with_inputs(net):
    shapes = [(3, 16, 16), *(f.shape[1:] for f in net.features(EXAMPLE))]
    return zip(net.segments, shapes, strict=False)


def test_only_what_leads_to_a_cut_is_looked_into():
    net = attach(Tokens(), ("blocks.0", "blocks.1"))
    assert isinstance(net.segments[1].get_submodule("blocks.1"), Mixing)  # its forward cannot be traced, and is not
    assert attach(Tokens(), 2).outputs == 3


def test_a_list_of_segments_needs_no_tracing():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x) if x.mean() < 9 else self.conv(2 * x)

    first, second = nn.Conv2d(3, 3, 3), Deciding()
    net = attach([first, second, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))])
    assert list(net.segments) == [first, second]
    assert net.depths == (1, 3)
    x, _ = images()
    assert [logits.shape for logits in net(x)] == [(5, 7)] * 2


# ---- what cannot be --------------------------------------------------------------------------------------------


class Doubled(nn.Conv2d):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Odd(nn.Module):
    """A stem and one thing that cannot be cut, traced or run, by name."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.stem, self.left, self.right = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.parts = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        self.fc = nn.Linear(4, 10)
        self.scale, self.count = nn.Parameter(torch.ones(4, 1, 1)), nn.Buffer(torch.zeros(()))
        if what == "called":
            self.body[0] = Doubled(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        if self.what == "control flow" and x.mean() > 0:
            x = -x
        if self.what == "random" and random.random() < 2:
            x = -x
        if self.what == "noise":
            x = x + torch.randn(4, 1, 1)
        if self.what == "clone":
            scale = self.scale.clone()
            scale.clamp_(min=0)
            x = x * scale
        if self.what == "count":
            self.count.add_(1)
        if self.what == "training" and self.training:
            x = self.left(x) + self.right(x)
        if self.what == "tied":
            x = F.conv2d(self.body(self.left(x)), self.left.weight)
        if self.what == "twice":
            x = self.right(self.right(x))
        if self.what == "sizes":
            n, c = x.shape[0], x.shape[1]
            x = self.body(x)
            x = x.reshape(n, c, -1)[..., None]
        x = self.body(self.left(x) + self.right(x))
        x = self.parts[1](self.parts[0](x))
        x = self.fc(x.mean((2, 3)))
        return {"tuple": (x, x), "map": x[..., None], "dict": {"logits": x}}.get(self.what, x)


def test_one_name_is_one_cut():
    assert attach(Residual(), "layer1").depths == attach(Residual(), ["layer1"]).depths == (3, 8)
    assert attach(Residual(), iter(["layer1"])).depths == (3, 8)


@pytest.mark.parametrize(
    ("what", "at", "words"),
    [
        ("", ("bodi",), "no module 'bodi'; perhaps you meant 'body'"),
        ("", ("body.7",), "no module 'body.7'; perhaps you meant 'body"),
        ("", ("body", "stem"), "'stem' does not lie behind 'body'"),
        ("", ("body", "body"), "'body' does not lie behind 'body'"),
        ("", ("left",), r"2 values cross the cut after 'left' \(.*\), one must; cut after 'stem' or 'body'"),
        ("", ("body.1",), "what 'body.1' gives is changed in place afterwards.*cut after 'body"),
        ("", ("fc",), "at 'fc' the trunk is at its end"),
        ("", ("parts.1",), "at 'parts.1' the trunk is at its end.*cut after 'parts.0'"),
        ("", ("parts",), "'parts' is not called by itself.*cut after 'stem'"),
        ("", 0, "at must be 1 cut or more"),
        ("", 5, "at=5 evenly placed cuts cannot be.* only after 'stem', 'body', 'parts.0'.*: ask for fewer"),
        ("", None, "at must name the modules"),
        ("", 2.0, "at must name modules or be a whole number, got 2.0"),
        ("random", ("body",), "it draws random numbers, which would be drawn once for all"),
        ("noise", ("body",), "it draws random numbers, which would be drawn once for all"),
        ("clone", ("body",), "own forward changes 'clone' in place, by clamp_, which a cut would lose"),
        ("count", ("body",), "own forward changes 'count' in place, by add_, which a cut would lose"),
        ("called", ("body.1",), r"forward of 'body\.0' cannot be traced .*its __call__ is its own and would act twice"),
        ("dict", ("body",), "it is a dict: wrap it so that its forward returns them alone"),
        (
            "control flow",
            ("body",),
            "own forward cannot be traced.*test_attaching.py line .*give the segments themselves",
        ),
        ("training", ("body",), "does other things in training than in evaluation.*aux_logits=False"),
        ("tied", ("body.1",), "is called 2 times"),
        ("twice", ("right",), "'right' is called 3 times"),
        ("sizes", ("left",), "values cross"),
        ("tuple", ("body",), "the backbone gives a tuple of 2"),
        ("map", ("body",), r"output 1 must be logits \[2, classes\]"),
    ],
)
def test_what_cannot_be_cut_says_where_and_what_to_do(what, at, words):
    backbone = Odd(what)
    with pytest.raises(ValueError, match=words) as caught:
        attach(backbone, at)
    assert backbone.count == 0
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [[nn.Flatten()], [nn.Flatten(), nn.Linear(768, 10)]])
def test_a_backbone_without_a_trunk_is_refused(layers):
    with pytest.raises(ValueError, match=r"one tensor alone crosses nowhere|no trunk before its classifier"):
        attach(nn.Sequential(*layers), 1)


def test_more_cuts_than_there_are_modules_are_refused_at_once():
    with pytest.raises(ValueError, match="at=10000000 evenly placed cuts cannot be, the backbone has 5 modules"):
        attach(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 10)), 10**7)


def test_weights_shared_between_segments_are_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
            self.two.weight = self.one.weight
            self.fc = nn.Linear(3, 10)

        def forward(self, x):
            return self.fc(self.two(self.one(x)).mean((2, 3)))

    with pytest.raises(ValueError, match=r"'one\.weight' of segment 1 and 'two.weight' of segment 2 are one tensor"):
        attach(Tied(), ("one",))


class NormingTwice(nn.Module):
    """BatchNorm as a function, twice, with the same statistics, and a mask that nothing changes."""

    def __init__(self, moving):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 10)
        self.mean, self.var = nn.Buffer(torch.zeros(4)), nn.Buffer(torch.ones(4))
        self.mask, self.moving = nn.Buffer(torch.tensor([1, 1, float("nan"), 1])), moving

    def normed(self, x):
        x = F.batch_norm(x, self.mean, self.var, training=self.training and self.moving)
        return x + self.mask[:, None, None].nan_to_num()

    def forward(self, x):
        return self.fc(self.three(self.normed(self.two(self.normed(self.one(x))))).mean((2, 3)))


def test_statistics_that_two_segments_move_are_refused_and_constants_that_both_read_are_not():
    backbone = NormingTwice(moving=True)
    with pytest.raises(ValueError, match="'mean' of segment 1 and of segment 2 are one tensor, which training changes"):
        attach(backbone, ("two",))
    assert not backbone.mean.any()
    assert attach(backbone, ("one",)).outputs == 2
    assert attach(NormingTwice(moving=False), ("two",)).outputs == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"example": torch.zeros(1, 1, 16, 16)}, r"does not take images of shape \(1, 16, 16\): .*give an `example`"),
        ({"example": torch.zeros(1, 3, 20, 20)}, r"does not take images of shape \(3, 20, 20\)"),
        ({"example": torch.zeros(3, 16, 16)}, r"example must be an image \[1, C, H, W\], got \[3, 16, 16\]"),
        ({"example": (3, 16, 16)}, r"got \(3, 16, 16\): torch.zeros\(1, 3, 224, 224\) is one"),
        (
            {"heads": lambda C: nn.Sequential(nn.ReLU(inplace=True), TokenClassifier(C, 5)), "num_classes": 5},
            "head 1 changes its feature in place, which the trunk needs too: inplace=False there",
        ),
        ({"heads": nn.Linear(8, 5)}, "heads must be a function of channels that makes a head, got a Linear"),
        ({"num_classes": 1}, "num_classes must be a whole number, 2 or more, got 1"),
        ({"num_classes": 5.0}, r"num_classes must be a whole number, 2 or more, got 5\.0"),
        ({"at": True}, "at must name modules or be a whole number, got True"),
    ],
)
def test_images_and_classes_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        attach(Tokens(), **{"at": ("blocks.0",)} | arguments)


def test_inference_mode_in_which_changes_in_place_are_not_seen_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="hides: call it outside of that"):
        attach(Tokens(), at=("blocks.0",))


def test_lists_that_do_not_fit_are_refused():
    conv, classifier = nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    with pytest.raises(ValueError, match="cut already: 2 modules or more, without `at`"):
        attach([conv, classifier], ("0",))
    for wrong in ("timm:resnet18", nn.Linear, [conv, "classifier"]):
        with pytest.raises(ValueError, match=r"the backbone must be a torch\.nn\.Module, or a list of them, got"):
            attach(wrong)
    for few in ([], [classifier]):
        with pytest.raises(ValueError, match="2 modules or more"):
            attach(few)
    with pytest.raises(ValueError, match="segment 2 changes in place what segment 1 gives"):
        attach([conv, nn.ReLU(inplace=True), classifier])
    with pytest.raises(ValueError, match="'weight' of segment 1 and 'weight' of segment 2 are one tensor"):
        attach([same := nn.Conv2d(3, 3, 1), same, conv, classifier])
    with pytest.raises(ValueError, match=r"segment 1 must give a tensor of 2 rows .* gives a tensor \[6"):
        attach([nn.Flatten(0, 1), nn.Unflatten(0, (-1, 3)), conv, classifier])


def test_modules_are_named_in_words():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    backbone(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"at must name modules \(such as '0'\) or be a number, got \(1,\)"):
        auxnet.attach(backbone, at=(1,), example=torch.zeros(1, 3, 8, 8))


class _KeepsItsNorm(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize(("at", "told"), [("0.1", 1), ("0", 0)])
def test_a_train_of_its_own_that_is_called_no_more_is_told(at, told):
    trunk = _KeepsItsNorm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    backbone = nn.Sequential(trunk, nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        net = auxnet.attach(backbone, at=(at,), example=torch.zeros(1, 3, 8, 8))
    assert ["train() of _KeepsItsNorm" in str(each.message) for each in found] == [True] * told
    assert any(m.training for m in net.train().modules() if isinstance(m, nn.BatchNorm2d) and m is trunk[1]) == told
