"""ResNets in ImageNet form: check values, forwards written out by hand, torchvision's logits, outputs, refusals."""

import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import auxnet
from auxnet import build
from auxnet.advice import warnings_of
from auxnet.backbones.named import build_backbone
from auxnet.cost import costs
from auxnet.data import DataSet, Split
from auxnet.recipe import Recipe
from auxnet.residual import placement

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@pytest.mark.parametrize(
    ("depth", "width", "parameters", "giga"),
    [  # of 1000 classes at 224 x 224, as torchvision publishes them
        (18, 1, 11_689_512, 1.81),
        (34, 1, 21_797_672, 3.66),
        (50, 1, 25_557_032, 4.09),
        (101, 1, 44_549_160, 7.80),
        (152, 1, 60_192_808, 11.51),
        (50, 2, 68_883_240, 11.40),
        (101, 2, 126_886_696, 22.75),
    ],
)
@pytest.mark.enough(3)
def test_parameters_and_multiply_adds_are_the_published_ones(depth, width, parameters, giga):
    with torch.device("meta"):
        net = auxnet.resnet(depth, form="imagenet", block="original", width=width, num_classes=1000)
    ((params, macs),) = costs(net, (3, 224, 224))
    assert (params, round(macs / 1e9, 2)) == (parameters, giga)


def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    return (x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]


def by_hand(net: nn.Module, images: Tensor, depth: int, block: str) -> Tensor:
    """The final logits from the net's weights in their order and the papers' equations (He et al. 2015 and 2016)."""
    convs = iter([m for m in net.modules() if isinstance(m, nn.Conv2d)])
    norms = iter([m for m in net.modules() if isinstance(m, nn.BatchNorm2d)])
    preact, kernels = block == "preact", (1, 3, 1) if depth >= 50 else (3, 3)
    x = F.conv2d(images, next(convs).weight, stride=2, padding=3)
    x = x if preact else norm(x, next(norms)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(STAGES[depth]):
        for b in range(count):
            stride, strided = 2 if stage and not b else 1, kernels.index(3)
            changes = b == 0 and (stage > 0 or depth >= 50)
            begun = norm(x, next(norms)).relu() if preact else x
            y = begun
            for n, kernel in enumerate(kernels):
                if preact and n:
                    y = norm(y, next(norms)).relu()
                y = F.conv2d(y, next(convs).weight, stride=stride if n == strided else 1, padding=kernel // 2)
                if not preact:
                    y = norm(y, next(norms))
                    y = y.relu() if n + 1 < len(kernels) else y
            if block == "plain":
                x = y.relu()
            elif preact:
                x = y + (F.conv2d(begun, next(convs).weight, stride=stride) if changes else x)
            else:
                shortcut = norm(F.conv2d(x, next(convs).weight, stride=stride), next(norms)) if changes else x
                x = (y + shortcut).relu()
    x = norm(x, next(norms)).relu() if preact else x
    assert next(convs, None) is next(norms, None) is None
    (fc,) = (m for m in net.modules() if isinstance(m, nn.Linear))
    return F.linear(x.mean((2, 3)), fc.weight, fc.bias)


def settled(net: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and BN parameters that are none of the neutral ones."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, least, most in (
                (module.weight, 0.5, 1),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2),
            ):
                nn.init.uniform_(tensor, least, most)
    return net.eval()


@pytest.mark.parametrize("block", ["plain", "original", "preact"])
@pytest.mark.parametrize(("depth", "width"), [(18, 1), (34, 1), (50, 1), (50, 2)])
@pytest.mark.enough(2)
def test_the_logits_are_those_of_the_papers_equations(depth, width, block):
    net = settled(auxnet.resnet(depth, form="imagenet", block=block, width=width, num_classes=7).double())
    images = torch.randn(2, 3, 65, 50, dtype=torch.float64)
    with torch.no_grad():
        (logits,) = net(images)
        torch.testing.assert_close(logits, by_hand(net, images, depth, block), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_with_torchvisions_weights_the_logits_are_torchvisions(name):
    try:
        theirs = build_backbone(f"torchvision:{name}", 5)
    except RuntimeError:
        pytest.skip("torchvision cannot be imported here")
    width = 2 if "wide" in name else 1
    depth = 18 if name == "resnet18" else 50
    ours = auxnet.resnet(depth, form="imagenet", block="original", width=width, num_classes=5)
    values = settled(theirs).state_dict().values()  # in the same order: stem, then blocks with the projection last
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images)[0], theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", STAGES)
@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
def test_placement_is_the_papers_rule_in_this_form_too(depth, outputs):
    blocks, convolutions = sum(STAGES[depth]), 3 if depth >= 50 else 2
    assert 2 + convolutions * blocks == depth
    ends = [(layer - 1) / convolutions for layer in placement(depth, outputs, "imagenet")] + [blocks]
    assert {b - a for a, b in pairwise(ends)} <= {blocks // outputs}
    assert all(end % 1 == 0 and end >= 1 for end in ends)


@pytest.mark.parametrize("block", ["plain", "original", "preact"])
@pytest.mark.parametrize(("depth", "at"), [(18, (9, 13)), (50, (19, 34))])
@pytest.mark.enough(2)
def test_outputs_truncate_exactly_and_leave_at_the_ends_of_blocks(depth, at, block):
    net = auxnet.resnet(depth, 3, form="imagenet", block=block, num_classes=4, in_channels=1).eval()
    assert net.depths == (*at, depth) == auxnet.resnet(depth, at=at, form="imagenet").depths
    assert [head.bn is not None for head in net.heads] == [block == "preact"] * 3
    x = torch.randn(2, 1, 32, 40)
    with torch.no_grad():
        for k, (logits, (params, _)) in enumerate(zip(net(x), costs(net, (1, 32, 40)), strict=True), start=1):
            alone = net.truncate(k)
            assert torch.equal(alone(x), logits)
            kept = [*net.segments[:k].parameters(), *net.heads[k - 1].parameters()]
            assert params == sum(p.numel() for p in kept) == sum(p.numel() for p in alone.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 20}, r"depth must be one of 18, 34, 50, 101, 152 in the imagenet form, got 20; the nearest is 18"),
        ({"depth": 150}, "the nearest is 152"),
        ({"depth": "50"}, "depth must be a whole number, got '50'"),
        ({"form": "imgnet"}, "form must be one of cifar, imagenet, got 'imgnet'"),
        ({"form": "cifar", "depth": 18}, r"depth must be 6n \+ 2 .* got 18; .*form imagenet has it"),
        ({"at": (5, 7)}, r"at must be increasing layers in 4\.\.46, each the end of a block \(4, 7, 10, \.\.\.\), got"),
        ({"at": (49,)}, "at must be increasing layers"),
        ({"outputs": 17}, r"outputs must lie in 1\.\.16 \(one per block\) at depth 50"),
        ({"width": 40}, "more than 536,870,912 parameters"),
    ],
)
def test_impossible_networks_say_what_is_possible(options, words):
    with pytest.raises(ValueError, match=words):
        auxnet.resnet(**{"depth": 50, "form": "imagenet", **options})


@pytest.mark.parametrize(
    ("form", "depth", "shape", "words"),
    [
        ("imagenet", 18, (2, 3, 31, 64), "images must have 32x32 pixels or more for this net, got 31x64: enlarge them"),
        ("cifar", 8, (2, 3, 3, 3), "images must have 4x4 pixels or more for this net, got 3x3"),
        ("imagenet", 18, (2, 1, 64, 64), "must have 3 channels, got 1 .*: build the net with in_channels=1"),
        ("cifar", 8, (2, 32, 32, 3), "must have 3 channels, got 32 .*channels come before pixels"),
        (
            "cifar",
            8,
            (3, 32, 32),
            r"images must be \[N, C, H, W\], got the shape \[3, 32, 32\]: one image is images\[None",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused_with_the_mend(form, depth, shape, words):
    net = auxnet.resnet(depth, 2, form=form)
    with pytest.raises(ValueError, match=words):
        net(torch.zeros(shape))
    if len(shape) == 4:
        with pytest.raises(ValueError, match=words):
            costs(net, shape[1:])


@pytest.mark.parametrize(
    ("recipe", "depths", "size", "words"),
    [
        (Recipe(depth=50, form="imagenet"), [19, 34, 50], 224, []),
        (Recipe(depth=18, form="imagenet"), [9, 13, 18], 224, ["3 outputs on 8 blocks"]),
        (Recipe(depth=50, form="imagenet"), [4, 50], 224, ["output 1 sits at layer 4 of 50"]),
        (Recipe(depth=50, form="imagenet"), [50], 32, ["leaves 1x1 pixels of 32x32 images: consider form cifar"]),
        (Recipe(depth=50), [50], 224, ["maps of 224x224 pixels .*: consider form imagenet"]),
        (Recipe(depth=50), [31, 50], 32, []),
    ],
)
def test_a_plan_warns_by_the_blocks_and_the_size_of_the_form(recipe, depths, size, words):
    warnings = warnings_of(recipe, depths, (size, size))
    assert len(warnings) == len(words)
    for warning, expected in zip(warnings, words, strict=True):
        assert re.search(expected, warning)


def test_an_output_after_every_stage_or_block_follows_the_form():
    def depths(**fields):
        split = Split(torch.zeros(20, 64, 64, 3, dtype=torch.uint8), torch.arange(20) % 2)
        dataset = DataSet("x", ("a", "b"), split, split, split, (0.0,) * 3, (1.0,) * 3, 0, False)
        return build.net_of(Recipe(form="imagenet", depth=50, **fields), dataset).depths

    assert depths(placement="stages") == (10, 22, 40, 50)  # 1 + 3 x (3, 3+4, 3+4+6) blocks
    assert depths(placement="blocks") == (*range(4, 49, 3), 50)
