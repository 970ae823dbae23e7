"""Supervision measured: against nets whose answer is known, and against gradients taken one by one in float64."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import auxnet
from auxnet.backbones.attaching import attach
from auxnet.diagnosis import diagnose, layers_of, supervision
from auxnet.losses import distilled
from auxnet.network import AuxNet
from auxnet.residual import Classifier, PreActivationBlock

METHODS = ("joint", "pairwise", "multiway")


def batch(n=6, channels=3, size=8, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, size, size, generator=g, dtype=torch.float64)
    return images, torch.randint(classes, (n,), generator=g)


def identity_net():
    """One stage of pre-activation blocks whose residual branches are zero: every block passes on what it is given."""
    blocks = [PreActivationBlock(5, 5, 1) for _ in range(6)]
    for block in blocks:
        nn.init.zeros_(block.conv2.weight)
    stem = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    segments = [nn.Sequential(stem, *blocks[:2]), nn.Sequential(*blocks[2:3]), nn.Sequential(*blocks[3:])]
    return AuxNet(segments, [Classifier(5, 4, True) for _ in segments], (5, 7, 14)).double()


def scalar_net(scales, ends):
    """Convolutions that each multiply by a number; outputs after the layers `ends`."""
    convolutions = [nn.Conv2d(1, 1, 1, bias=False) for _ in scales]
    for convolution, scale in zip(convolutions, scales, strict=True):
        nn.init.constant_(convolution.weight, scale)
    segments = [nn.Sequential(*convolutions[a:b]) for a, b in itertools.pairwise((0, *ends))]
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(64, 4)) for _ in ends]
    return AuxNet(segments, heads, (*ends[:-1], ends[-1] + 1)).double()


def smooth_net(norms):
    """Three segments of two shapes; with BatchNorm, which couples the images of a batch, or without."""
    torch.manual_seed(3)

    def layer(a, b, stride=1):
        return nn.Sequential(
            nn.Conv2d(a, b, 3, stride, padding=1), nn.BatchNorm2d(b) if norms else nn.Identity(), nn.Tanh()
        )

    segments = [
        nn.Sequential(layer(3, 4), layer(4, 4)),
        nn.Sequential(layer(4, 4)),
        nn.Sequential(layer(4, 6, 2), layer(6, 6)),
    ]
    return AuxNet(segments, [Classifier(c, 4, False) for c in (4, 4, 6)], (2, 3, 6)).double()


def gradients_by_restarts(net, images, labels, loss=lambda k, logits, labels: F.cross_entropy(logits, labels)):
    """{(k, l): dL_k/dx_l of the mean loss}, each by a forward that starts from x_l as a leaf of its own; l from 1."""
    chain = [(layer, k) for k, segment in enumerate(net.segments, 1) for layer in segment]
    found, x = {}, images
    for place, (layer, _) in enumerate(chain, start=1):
        x = layer(x).detach()
        for k in range(1, net.outputs + 1):
            rest = [module for module, segment in chain[place:] if segment <= k]
            if chain[place - 1][1] <= k:
                leaf = x.clone().requires_grad_()
                loss(k, net.heads[k - 1](nn.Sequential(*rest)(leaf)), labels).backward()
                found[k, place] = leaf.grad
    return found


# ---- nets whose answer is known --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_where_blocks_are_identities_all_that_arrives_is_supervision(method):
    shares = supervision(identity_net(), *batch(), method=method)
    assert len(shares) == (7 if method == "joint" else 3 + 4 + 7)
    assert [s.share for s in shares] == pytest.approx([1.0] * len(shares), rel=1e-12)


def test_in_a_chain_of_scalars_the_share_is_one_over_their_product():
    scales, ends = [2.0, -0.5, 3.0, 0.25, -1.5, 0.75], (2, 3, 6)
    shares = supervision(scalar_net(scales, ends), *batch(channels=1))
    assert [(s.output, s.layer) for s in shares] == [
        (k, lyr) for k, end in enumerate(ends, 1) for lyr in range(1, end + 1)
    ]
    for s in shares:
        passed = math.prod(scales[s.layer : ends[s.output - 1]])
        assert s.share == pytest.approx(1 / abs(passed), rel=1e-9)


class Halving(nn.Module):
    """It writes over its images."""

    def forward(self, x):
        return x.mul_(0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_trunk_that_writes_over_its_images_is_measured_as_on_a_copy(method):
    net, (images, labels) = scalar_net([2.0, -0.5, 3.0], (1, 3)), batch(channels=1)
    expected = supervision(net, images / 2, labels, method)
    net.segments[0].insert(0, Halving())
    before = images.clone()
    assert supervision(net, images, labels, method) == expected
    assert torch.equal(images, before)


def test_joints_gradient_in_a_chain_of_scalars_is_known_too():
    """g_l = sum_k lambda_k (product of the scalars between) s_k, where s_k is the supervision at output k."""
    scales, ends, weights = [2.0, -0.5, 3.0, 0.25, -1.5, 0.75], (2, 3, 6), (0.3, 0.6, 1.0)
    net, (images, labels) = scalar_net(scales, ends), batch(channels=1)
    s = {}
    for k, end in enumerate(ends, start=1):
        x = (images * math.prod(scales[:end])).requires_grad_()
        (s[k],) = torch.autograd.grad(F.cross_entropy(net.heads[k - 1](x), labels, reduction="sum"), x)

    def norm(x):
        return x.flatten(1).norm(dim=1).mean().item()

    for share in supervision(net, images, labels, "joint", weights):
        above = [k for k in s if ends[k - 1] >= share.layer]
        passed = {k: math.prod(scales[share.layer : ends[k - 1]]) for k in above}
        assert share.output is None
        assert share.supervision == pytest.approx(norm(sum(weights[k - 1] * s[k] for k in above)), rel=1e-9)
        assert share.gradient == pytest.approx(norm(sum(weights[k - 1] * passed[k] * s[k] for k in above)), rel=1e-9)


# ---- against other ways to compute it --------------------------------------------------------------------------


def test_norms_are_those_of_images_taken_one_by_one():
    net, (images, labels) = smooth_net(norms=False), batch()
    alone = [gradients_by_restarts(net, images[n : n + 1], labels[n : n + 1]) for n in range(len(images))]
    for s in supervision(net, images, labels):
        norms = [gradients[s.output, s.layer].norm().item() for gradients in alone]
        at_output = [gradients[s.output, (2, 3, 5)[s.output - 1]].norm().item() for gradients in alone]
        assert s.gradient == pytest.approx(sum(norms) / 6, rel=1e-9)
        assert s.share == pytest.approx(sum(at_output) / sum(norms), rel=1e-9)


def test_with_distillation_the_final_output_teaches_and_is_not_taught():
    net, (images, labels) = smooth_net(norms=True).train(), batch()
    teacher = (net(images)[-1].detach() / 3).softmax(1)

    def by_hand(k, logits, labels):
        plain = -logits.log_softmax(1)[torch.arange(6), labels].mean()
        divergence = (teacher * (teacher.log() - (logits / 3).log_softmax(1))).sum(1).mean()
        return plain if k == 3 else 0.4 * plain + 0.6 * 9 * divergence

    g = gradients_by_restarts(net, images, labels, by_hand)
    distill = partial(distilled, loss=F.cross_entropy, share=0.6, temperature=3.0)
    for s in supervision(net, images, labels, distill=distill):
        arrives, given = (g[s.output, at].flatten(1).norm(dim=1).sum() for at in (s.layer, (2, 3, 5)[s.output - 1]))
        assert s.gradient == pytest.approx(arrives.item(), rel=1e-9)
        assert s.supervision == pytest.approx(given.item(), rel=1e-9)


def test_batchnorm_normalises_by_the_batch_and_joint_adds_up_what_has_one_shape():
    net, (images, labels), weights = smooth_net(norms=True).train(), batch(), (0.2, 0.7, 1.0)
    g = gradients_by_restarts(net, images, labels)
    net.eval()
    shares = supervision(net, images, labels, "joint", weights)
    assert [s.layer for s in shares] == [1, 2, 3, 4, 5]
    s1, s2, s3 = (w * g[k, at].flatten(1) for w, k, at in zip(weights, (1, 2, 3), (2, 3, 5), strict=True))
    numerators = [(s1 + s2, s3), (s1 + s2, s3), (s2, s3), (s3,), (s3,)]  # s3 has the shape of another stage
    for share, parts in zip(shares, numerators, strict=True):
        whole = sum(w * g[k, share.layer] for k, w in enumerate(weights, 1) if (k, share.layer) in g)
        above = torch.cat(parts, 1).norm(dim=1).mean().item()
        assert share.supervision == pytest.approx(6 * above, rel=1e-9)
        assert share.share == pytest.approx(above / whole.flatten(1).norm(dim=1).mean().item(), rel=1e-9)


def test_norms_and_cosines_are_those_of_gradients_taken_by_torch_func():
    net, (images, labels) = smooth_net(norms=False), batch()
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights, k):
        return F.cross_entropy(torch.func.functional_call(net, weights, (images,))[k - 1], labels)

    def vector(k, segments):
        gradient = torch.func.grad(loss)(weights, k)
        names = [name for j in segments for name in weights if name.startswith(f"segments.{j - 1}.")]
        return torch.cat([gradient[name].flatten() for name in names])

    found = diagnose(net, [(images, labels)])
    assert [(n.output, n.segment) for n in found.norms] == [(k, j) for k in (1, 2, 3) for j in range(1, k + 1)]
    for n in found.norms:
        assert n.norm == pytest.approx(vector(n.output, [n.segment]).norm().item(), rel=1e-9)
    shared = [(a, b, j) for a, b in ((1, 2), (1, 3), (2, 3)) for j in (None, *range(1, a + 1))]
    assert [(c.output, c.other, c.segment) for c in found.agreements] == shared
    for c in found.agreements:
        segments = range(1, c.output + 1) if c.segment is None else [c.segment]
        cosine = F.cosine_similarity(vector(c.output, segments), vector(c.other, segments), dim=0)
        assert c.cosine == pytest.approx(cosine.item(), abs=1e-9)


def test_shares_and_cosines_do_not_hang_on_how_small_gradients_are():
    net, seen = (
        smooth_net(norms=False).float(),
        [tuple(tensor.float() if tensor.ndim > 1 else tensor for tensor in batch())],
    )
    usual, small = (
        diagnose(net, seen, loss=lambda logits, labels, by=by: by * F.cross_entropy(logits, labels))
        for by in (1.0, 1e-22)
    )
    assert [s.share for s in small.shares] == pytest.approx([s.share for s in usual.shares], rel=1e-4)
    assert [c.cosine for c in small.agreements] == pytest.approx([c.cosine for c in usual.agreements], abs=1e-4)


def test_two_outputs_of_equal_heads_at_one_place_agree_wholly():
    head = Classifier(4, 4, False)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh())
    net = AuxNet([trunk, nn.Identity()], [head, copy.deepcopy(head)], (1, 2)).double()
    found = diagnose(net, [batch()])
    assert [c.cosine for c in found.agreements] == pytest.approx([1.0, 1.0])
    assert [(n.output, n.segment) for n in found.norms if n.norm == 0] == [(2, 2)]  # nothing there has weights


def test_batches_count_by_their_images():
    net = smooth_net(norms=True)
    one, other = batch(6), batch(3, seed=1)
    both, alone = diagnose(net, [one, other]), [diagnose(net, [each]) for each in (one, other)]
    assert both.images == 9
    for mean, a, b in zip(both.shares, *(d.shares for d in alone), strict=True):
        assert mean.gradient == pytest.approx((6 * a.gradient + 3 * b.gradient) / 9)
        assert mean.share == pytest.approx(mean.supervision / mean.gradient)


def test_with_one_output_all_methods_are_resnets():
    net = auxnet.resnet(8, 1, num_classes=4).double()
    ways = [{s.layer: s.share for s in supervision(net, *batch(), method=method)} for method in METHODS]
    assert ways[1] == pytest.approx(ways[0])
    assert ways[2] == pytest.approx(ways[0])
    assert [*ways[0]] == [1, 3, 5, 7]
    assert ways[0][7] == 1.0


# ---- what it does to the net, and which nets -------------------------------------------------------------------


def test_measuring_changes_nothing():
    net = auxnet.resnet(8, 3, num_classes=4).double().train()
    net.segments[0].eval()  # a part that its owner keeps in another mode
    net.segments[1][0].conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes, random = [m.training for m in net.modules()], torch.get_rng_state()
    images, labels = batch()
    for method in METHODS:
        diagnose(net, [(images, labels)], method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in net.parameters())
    assert not images.requires_grad


@pytest.mark.parametrize("block", ["plain", "original", "preact"])
def test_the_layers_of_a_resnet_are_counted_as_in_the_paper(block):
    layers = layers_of(auxnet.resnet(56, 5, block=block), (3, 32, 32))
    assert [at.layer for at in layers] == list(range(1, 56, 2))
    ends = [max(at.layer for at in layers if at.segment == k) for k in range(1, 6)]
    assert ends == [15, 25, 35, 45, 55]


def test_of_segments_that_are_no_chain_the_ends_are_seen():
    backbone = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 3)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)),
    )
    traced = attach(backbone, at=("0",), example=torch.zeros(1, 3, 8, 8))
    assert [(at.layer, at.segment) for at in layers_of(traced, (3, 8, 8))] == [(2, 1), (4, 2)]
    assert {s.layer for s in supervision(traced.double(), *batch())} == {2, 4}

    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)))
    in_place = AuxNet([chain], [Classifier(4, 4, False)], (3,))
    assert [at.layer for at in layers_of(in_place, (3, 8, 8))] == [1, 2]  # a chain in a chain is one chain


def test_a_layer_that_the_next_changes_in_place_is_not_shown():
    class Destroys(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.conv(x.relu_())

    net = AuxNet([nn.Sequential(nn.Conv2d(3, 4, 3), Destroys())], [Classifier(4, 4, False)], (3,)).double()
    assert [at.layer for at in layers_of(net, (3, 8, 8))] == [2]
    assert [s.share for s in supervision(net, *batch())] == [1.0]


def test_a_gradient_that_vanishes_has_no_share():
    net = scalar_net([1.0, 0.0], (1, 2))
    shares = {(s.output, s.layer): s.share for s in supervision(net, *batch(channels=1))}
    assert shares == {(1, 1): 1.0, (2, 1): None, (2, 2): pytest.approx(1.0)}
    agreement = diagnose(net, [batch(channels=1)]).agreements
    assert [c.cosine for c in agreement] == [None, None]


def test_a_frozen_trunk_is_measured_too():
    net = smooth_net(norms=True)
    shares = supervision(net, *batch())
    assert supervision(net.requires_grad_(False), *batch()) == shares


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"method": "jiont"}, "method must be one of joint, pairwise, multiway, got 'jiont'"),
        ({"weights": [1.0]}, r"weights must be 3 finite numbers >= 0, one per output, got \[1.0\]"),
        ({"weights": [1.0, float("nan"), 1.0]}, "weights must be 3 finite numbers"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        supervision(smooth_net(norms=False), *batch(), **options)


def test_one_image_alone_and_what_is_no_net_are_told():
    net, images, labels = auxnet.resnet(depth=8, outputs=2), torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"images \[N, C, H, W\], got .*: one image is images\[None\]"):
        supervision(net, images[0], labels[0])
    with pytest.raises(TypeError, match="net must be an AuxNet, got Sequential"):
        supervision(net.truncate(2), images, labels)
    with pytest.raises(ValueError, match="labels must be classes of this net, counted from 0: Target 99"):
        supervision(net, images, labels + 99)
    with pytest.raises(TypeError, match="got the class CrossEntropyLoss"):
        supervision(net, images, labels, loss=torch.nn.CrossEntropyLoss)
    for off in (torch.no_grad, torch.inference_mode):
        with off(), pytest.raises(RuntimeError, match=r"gradients, which are disabled here: call it outside no_grad"):
            supervision(net, images, labels)


def test_without_images_there_is_nothing_to_measure():
    with pytest.raises(ValueError, match="no images"):
        diagnose(smooth_net(norms=False), [])
