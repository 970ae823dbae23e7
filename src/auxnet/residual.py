"""The residual networks of the paper, in their CIFAR and their ImageNet form, cut into an AuxNet.

A stem (layer 1), stages of blocks, a linear classifier (layer D); each stage but the first halves the size of the maps
and doubles the channels. A block of c convolutions is c layers: block b ends at layer c b + 1, where an output may sit.

- "cifar", D = 6n + 2: a 3x3 stem of 16 channels, three stages of n blocks, for images of about 32x32.
- "imagenet", D = 18 to 152: a 7x7 stem of 64 channels and a max pooling (a quarter of the size), four stages, from
  D = 50 on of bottlenecks, for images of about 224x224. Shortcuts that change the shape are option B. Bottlenecks have
  their stride in the 3x3 convolution, as is usual (in the paper of 2015 it was in the first 1x1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from auxnet.blocks import Classifier, PostActivationBlock, PreActivationBlock, ProjectedBlock, conv3x3
from auxnet.errors import check_choice, whole_number
from auxnet.network import AuxNet
from auxnet.recipe import check_outputs
from auxnet.sections import Block, Form, Head

MOST_PARAMETERS = 2**29  # of a network that is built: three times those of the widest ResNets in use

MIN_SIZE: dict[Form, int] = {"cifar": 4, "imagenet": 32}  # pixels a side: with fewer, the last maps would have none
STEM: dict[Form, int] = {"cifar": 16, "imagenet": 64}  # channels
IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4  # of the channels after a bottleneck


class Layout(NamedTuple):
    """The blocks of a network of some depth and form."""

    stages: tuple[int, ...]
    """the number of blocks of each"""
    convolutions: int
    """of a block: 2, or 3 for a bottleneck"""

    @property
    def blocks(self) -> int:
        """B, the number of blocks."""
        return sum(self.stages)

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """The layers at which all stages but the last end."""
        return tuple(self.convolutions * sum(self.stages[:n]) + 1 for n in range(1, len(self.stages)))

    @property
    def ends(self) -> range:
        """The layers at which all blocks but the last end: where an auxiliary output may sit."""
        return range(1 + self.convolutions, 1 + self.convolutions * self.blocks, self.convolutions)

    def widths(self, form: Form, width: int) -> list[tuple[int, int]]:
        """For each stage the channels in the middle of a block and after it."""
        planes = [STEM[form] * 2**stage for stage in range(len(self.stages))]
        if self.convolutions == 3:
            return [(each * width, each * EXPANSION) for each in planes]
        return [(each * width, each * width) for each in planes]


def resnet(
    depth: int = 20,
    outputs: int | None = None,
    *,
    at: Sequence[int] | None = None,
    form: Form = "cifar",
    block: Block = "preact",
    width: int = 1,
    num_classes: int = 10,
    in_channels: int = 3,
    head: Head = "default",
) -> AuxNet:
    """AuxNet-`depth`-`outputs` with random weights, for images [N, in_channels, H, W].

    `form` "cifar" is for 8..64 pixels a side (4 at least), "imagenet" for about 96..512 (32 at least). Outputs are
    placed by the paper's rule (`placement`), or auxiliary outputs explicitly `at` these layers; with neither, there
    is the final output alone. `width` multiplies the channels of the stages (Wide ResNet; the stem keeps its own),
    those of bottlenecks in their middle only. `head` is the form of the auxiliary heads: "bn_relu" (a), "linear"
    (b), or "default", that of the final head: (a) for pre-activation blocks, (b) for the others.

    Weights: He et al.'s normal initialisation; the classifiers' biases start at zero. Raises ValueError for options
    that describe no network.
    """
    depth, outputs = whole_number("depth", depth), None if outputs is None else whole_number("outputs", outputs)
    width, num_classes = whole_number("width", width, 1), whole_number("num_classes", num_classes, 2)
    in_channels, plan = whole_number("in_channels", in_channels, 1), layout(depth, form)
    check_choice("block", block, Block)
    check_choice("head", head, Head)
    if not _parameters(plan, form, width, num_classes, in_channels) <= MOST_PARAMETERS:
        raise ValueError(
            f"a network of depth={depth}, width={width}, in_channels={in_channels}, num_classes={num_classes} has "
            f"more than {MOST_PARAMETERS:,} parameters, and is not built: give less"
        )
    layers = placement(depth, 1 if outputs is None else outputs, form) if at is None else _checked(plan, at)
    check_outputs(outputs, None if at is None else layers)

    preact = block == "preact"
    parts = [*_stem(form, in_channels, preact)]
    segments, heads = [], []
    for layer, channels, made in _blocks(plan, form, block, width):
        parts.append(made)
        last = layer == depth - 1
        if layer in layers or last:
            activate = preact if head == "default" or last else head == "bn_relu"
            segments.append(nn.Sequential(*parts))
            heads.append(Classifier(channels, num_classes, activate))
            parts = []
    net = AuxNet(segments, heads, (*layers, depth), (in_channels, MIN_SIZE[form], MIN_SIZE[form]))
    _initialise(net)
    return net


def placement(depth: int, outputs: int, form: Form = "cifar") -> tuple[int, ...]:
    """Layers of the auxiliary outputs of AuxNet-`depth`-`outputs`: few and even, counted from the top.

    With B blocks and s = floor(B / K), auxiliary output i sits after block B - s (K - i). AuxNet-56-5:
    15, 25, 35, 45. Raises ValueError if there are more outputs than blocks.
    """
    plan, outputs = layout(depth, form), whole_number("outputs", outputs)
    if not 1 <= outputs <= plan.blocks:
        raise ValueError(f"outputs must lie in 1..{plan.blocks} (one per block) at depth {depth}, got {outputs}")
    step = plan.blocks // outputs
    return tuple(plan.convolutions * (plan.blocks - step * (outputs - i)) + 1 for i in range(1, outputs))


def layout(depth: int, form: Form) -> Layout:
    """The blocks of a network of that depth and form. Raises ValueError, with the depths that there are."""
    check_choice("form", form, Form)
    depth = whole_number("depth", depth)
    if form == "cifar":
        return Layout((_blocks_of_a_stage(depth),) * 3, 2)
    if depth not in IMAGENET:
        known = ", ".join(map(str, IMAGENET))
        near = min(IMAGENET, key=lambda each: abs(each - depth))
        raise ValueError(
            f"depth must be one of {known} in the imagenet form, got {depth!r}; the nearest is {near} "
            "(form cifar takes 6n + 2)"
        )
    return Layout(IMAGENET[depth], 2 if depth < 50 else 3)


def _blocks_of_a_stage(depth: int) -> int:
    """n of a network of 6n + 2 layers."""
    if depth < 8 or (depth - 2) % 6:
        below = max(8, depth - (depth - 2) % 6)
        wide = " (Wide ResNets count their projections: WRN-28-10 is depth 26, width 10 here)"
        hint = wide if depth > 8 and depth % 6 == 4 else " (form imagenet has it)" if depth in IMAGENET else ""
        raise ValueError(
            f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got {depth}; the nearest are {below} and "
            f"{below + 6}{hint}"
        )
    return (depth - 2) // 6


def _checked(plan: Layout, at: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(at, Iterable):
        raise ValueError(f"at must be layers, such as at=({at},), got the number {at}")
    layers, ends = tuple(whole_number("each layer of at", layer) for layer in at), plan.ends
    increasing = all(a < b for a, b in pairwise(layers))
    if not increasing or any(layer not in ends for layer in layers):
        raise ValueError(
            f"at must be increasing layers in {ends[0]}..{ends[-1]}, each the end of a block "
            f"({', '.join(map(str, ends[:3]))}, ...), got {' '.join(map(str, layers))}"
        )
    return layers


def _parameters(plan: Layout, form: Form, width: int, num_classes: int, in_channels: int) -> int:
    """About how many parameters: stem, convolutions (as if all blocks of a stage were alike), one classifier."""
    widths = plan.widths(form, width)
    of_block = [9 * i * i + 2 * i * o if plan.convolutions == 3 else 9 * (i + o) * o for i, o in widths]
    stem = (9 if form == "cifar" else 49) * STEM[form] * in_channels
    return sum(n * p for n, p in zip(plan.stages, of_block, strict=True)) + stem + widths[-1][1] * num_classes


def _stem(form: Form, in_channels: int, preact: bool) -> Iterator[nn.Module]:
    """The layers before the blocks; pre-activation blocks bring the BN and the ReLU themselves."""
    channels = STEM[form]
    yield conv3x3(in_channels, channels) if form == "cifar" else nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
    if not preact:
        yield nn.BatchNorm2d(channels)
        yield nn.ReLU(inplace=True)
    if form == "imagenet":
        yield nn.MaxPool2d(3, 2, padding=1)


def _blocks(plan: Layout, form: Form, block: Block, width: int) -> Iterator[tuple[int, int, nn.Module]]:
    """Each block, built on demand, after the layer that it ends at and its channels."""
    layer, channels_in = 1, STEM[form]
    for stage, (count, (inner, channels)) in enumerate(zip(plan.stages, plan.widths(form, width), strict=True)):
        for b in range(count):
            stride, bottleneck = 2 if stage > 0 and b == 0 else 1, plan.convolutions == 3
            made: nn.Module
            if block == "preact":
                made = PreActivationBlock(channels_in, channels, stride, inner if bottleneck else None)
            elif form == "imagenet":
                made = ProjectedBlock(
                    channels_in, inner, channels, stride, bottleneck=bottleneck, skip=block == "original"
                )
            else:
                made = PostActivationBlock(channels_in, channels, stride, skip=block == "original")
            layer, channels_in = layer + plan.convolutions, channels
            yield layer, channels, made


def _initialise(net: nn.Module) -> None:
    if next(net.parameters()).is_meta:  # there are no values on meta, and drawing them takes long
        return
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            torch.nn.init.zeros_(module.bias)
