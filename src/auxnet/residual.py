"""The residual networks of the paper in their CIFAR form, cut into an AuxNet.

Depth D = 6n + 2: a 3x3 stem (layer 1), three stages of n two-convolution blocks with 16, 32 and 64 channels
(times `width`), and a linear classifier (layer D). Block b ends at layer 2b + 1 and is where an output may sit.

    x_{l+1} = f(h(x_l) + F(x_l, W_l))      plain: h = 0;  original: f = ReLU, h = identity;  preact: f = identity
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxnet.network import AuxNet

MOST_PARAMETERS = 2**29  # of a network that is built: ten times the widest ResNets for such images

Block = Literal["plain", "original", "preact"]
Head = Literal["default", "bn_relu", "linear"]


class PostActivationBlock(nn.Module):
    """f = ReLU. `skip=False` is the plain network; `skip=True` the original ResNet with option-A shortcuts.

    Option A has no parameters: the shortcut is subsampled and its missing channels are zeros (He et al. 2015).
    """

    def __init__(self, channels_in: int, channels: int, stride: int, skip: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.skip, self.stride, self.padding = skip, stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] -> [N, channels, H / stride, W / stride]."""
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        if self.skip:
            shortcut = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
            if self.padding:
                shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.padding))
            residual = residual + shortcut
        return F.relu(residual, inplace=True)


class PreActivationBlock(nn.Module):
    """f = identity: BN and ReLU come before each convolution; a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = _conv3x3(channels_in, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        same = stride == 1 and channels_in == channels
        self.project = None if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] -> [N, channels, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.project is None else self.project(activated)
        residual = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        return cast(Tensor, self.conv2(residual)) + shortcut


class Classifier(nn.Module):
    """Head (b): global average pooling and a linear layer. Head (a), `activate=True`: BN and ReLU before it."""

    def __init__(self, channels: int, num_classes: int, activate: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels) if activate else None
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [N, channels, H, W] -> logits [N, classes]; x itself is left as it was."""
        if self.bn is not None:
            x = F.relu(self.bn(x), inplace=True)
        # As x.mean((2, 3)), but backward it neither writes a whole map nor changes the memory format.
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        pooled = pixels.sum(1) / pixels.shape[1]
        return cast(Tensor, self.fc(pooled))


def resnet(
    depth: int = 20,
    outputs: int | None = None,
    *,
    at: Sequence[int] | None = None,
    block: Block = "preact",
    width: int = 1,
    num_classes: int = 10,
    in_channels: int = 3,
    head: Head = "default",
) -> AuxNet:
    """AuxNet-`depth`-`outputs` with random weights, for images [N, in_channels, 8..64, 8..64].

    Outputs are placed by the paper's rule (`placement`), or auxiliary outputs explicitly `at` these layers;
    with neither, there is the final output alone. `width` multiplies the channels of the stages (Wide ResNet;
    the stem keeps 16). `head` is the form of the auxiliary heads: "bn_relu" (a), "linear" (b), or that of
    the final head, which is (a) for pre-activation blocks and (b) for the others.

    Weights: He et al.'s normal initialisation; the classifiers' biases start at zero. Raises ValueError.
    """
    blocks = _blocks_of(depth)
    if block not in get_args(Block):
        raise ValueError(f"block must be one of {', '.join(get_args(Block))}, got {block!r}")
    if head not in get_args(Head):
        raise ValueError(f"head must be one of {', '.join(get_args(Head))}, got {head!r}")
    for name, value, least in (
        ("width", width, 1),
        ("num_classes", num_classes, 2),
        ("in_channels", in_channels, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be {least} or more, got {value!r}")
    # Two 3x3 convolutions a block, a third of the blocks with each number of channels; the stem; one classifier.
    parameters = blocks * 6 * (16 * width) ** 2 * (1 + 4 + 16) + 144 * in_channels + 64 * width * num_classes
    if not parameters <= MOST_PARAMETERS:
        raise ValueError(
            f"a network of depth={depth}, width={width}, in_channels={in_channels}, num_classes={num_classes} has "
            f"more than {MOST_PARAMETERS:,} parameters, and is not built: give less"
        )
    if at is not None and outputs not in (None, len(at) + 1):
        raise ValueError(f"at={tuple(at)} makes {len(at) + 1} outputs, but outputs={outputs}; give one of the two")
    layers = placement(depth, 1 if outputs is None else outputs) if at is None else _checked(depth, at)

    preact = block == "preact"
    stem = _conv3x3(in_channels, 16)
    parts: list[nn.Module] = [stem] if preact else [stem, nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    segments, heads = [], []
    channels_in = 16
    for b in range(1, blocks + 1):
        stage = (b - 1) // (blocks // 3)
        channels = 16 * 2**stage * width
        stride = 2 if stage > 0 and (b - 1) % (blocks // 3) == 0 else 1
        parts.append(
            PreActivationBlock(channels_in, channels, stride)
            if preact
            else PostActivationBlock(channels_in, channels, stride, skip=block == "original")
        )
        channels_in = channels
        if 2 * b + 1 in layers or b == blocks:
            activate = preact if head == "default" or b == blocks else head == "bn_relu"
            segments.append(nn.Sequential(*parts))
            heads.append(Classifier(channels, num_classes, activate))
            parts = []
    net = AuxNet(segments, heads, (*layers, depth))
    _initialise(net)
    return net


def placement(depth: int, outputs: int) -> tuple[int, ...]:
    """Layers of the auxiliary outputs of AuxNet-`depth`-`outputs`: few and even, counted from the top.

    With B blocks and s = floor(B / K), auxiliary output i sits after block B - s (K - i). AuxNet-56-5:
    15, 25, 35, 45. Raises ValueError if there are more outputs than blocks.
    """
    blocks = _blocks_of(depth)
    if not 1 <= outputs <= blocks:
        raise ValueError(f"outputs must lie in 1..{blocks} (one per block) at depth {depth}, got {outputs}")
    step = blocks // outputs
    return tuple(2 * (blocks - step * (outputs - i)) + 1 for i in range(1, outputs))


def _checked(depth: int, at: Sequence[int]) -> tuple[int, ...]:
    layers = tuple(at)
    increasing = all(a < b for a, b in pairwise(layers))
    if not increasing or any(not 3 <= layer <= depth - 3 or layer % 2 == 0 for layer in layers):
        raise ValueError(
            f"at must be increasing layers in 3..{depth - 3}, each the end of a block (3, 5, 7, ...), got {layers}"
        )
    return layers


def _blocks_of(depth: int) -> int:
    """3n blocks of a network of 6n + 2 layers."""
    if not isinstance(depth, int):
        raise ValueError(f"depth must be a whole number, 6n + 2, got {depth!r}")
    if depth < 8 or (depth - 2) % 6:
        below = max(8, depth - (depth - 2) % 6)
        wide = " (Wide ResNets count their projections: WRN-28-10 is depth 26, width 10 here)"
        raise ValueError(
            f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got {depth}; the nearest are {below} and "
            f"{below + 6}{wide if depth > 8 and depth % 6 == 4 else ''}"
        )
    return (depth - 2) // 2


def _conv3x3(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            torch.nn.init.zeros_(module.bias)
