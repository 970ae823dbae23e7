"""What residual networks are made of: blocks, and the classifiers that sit on their features.

    x_{l+1} = f(h(x_l) + F(x_l, W_l))      plain: h = 0;  original: f = ReLU, h = identity;  preact: f = identity

F is two 3x3 convolutions, or a bottleneck of three: 1x1, 3x3 (which has the stride), 1x1. If the shape changes, h is
a subsampling padded with zeros (option A), or a 1x1 convolution (option B).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PostActivationBlock(nn.Module):
    """f = ReLU. `skip=False` is the plain network; `skip=True` the original ResNet with option-A shortcuts.

    Option A has no parameters: the shortcut is subsampled and its missing channels are zeros (He et al. 2015).
    """

    def __init__(self, channels_in: int, channels: int, stride: int, skip: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
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


class ProjectedBlock(nn.Module):
    """f = ReLU with option B: if the shape changes, h is a 1x1 convolution and BN. `skip=False` is plain.

    F is two 3x3 convolutions, the first with `inner` channels, or a bottleneck around `inner` channels; a BN follows
    each convolution, a ReLU all but the last.
    """

    def __init__(
        self, channels_in: int, inner: int, channels: int, stride: int, *, bottleneck: bool, skip: bool
    ) -> None:
        super().__init__()
        convolutions = (
            (conv1x1(channels_in, inner), conv3x3(inner, inner, stride), conv1x1(inner, channels))
            if bottleneck
            else (conv3x3(channels_in, inner, stride), conv3x3(inner, channels))
        )
        layers = [
            layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))
        ]
        self.residual = nn.Sequential(*layers[:-1])
        self.skip, same = skip, stride == 1 and channels_in == channels
        self.project = (
            nn.Sequential(conv1x1(channels_in, channels, stride), nn.BatchNorm2d(channels))
            if skip and not same
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] -> [N, channels, H / stride, W / stride]."""
        residual = self.residual(x)
        if self.skip:
            residual = residual + (x if self.project is None else self.project(x))
        return F.relu(residual, inplace=True)


class PreActivationBlock(nn.Module):
    """f = identity: BN and ReLU come before each convolution; h is a 1x1 convolution if the shape changes.

    F is two 3x3 convolutions, or a bottleneck around `inner` channels.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, inner: int | None = None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels, stride) if inner is None else conv1x1(channels_in, inner)
        self.bn2 = nn.BatchNorm2d(channels if inner is None else inner)
        self.conv2 = conv3x3(channels, channels) if inner is None else conv3x3(inner, inner, stride)
        self.bn3 = None if inner is None else nn.BatchNorm2d(inner)
        self.conv3 = None if inner is None else conv1x1(inner, channels)
        same = stride == 1 and channels_in == channels
        self.project = None if same else conv1x1(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] -> [N, channels, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.project is None else self.project(activated)
        residual: Tensor = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        residual = self.conv2(residual)
        if self.bn3 is not None and self.conv3 is not None:
            residual = self.conv3(F.relu(self.bn3(residual), inplace=True))
        return residual + shortcut


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
        # x.mean((2, 3)), but its backward neither writes a whole map nor changes the memory format.
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        pooled = pixels.sum(1) / pixels.shape[1]
        logits: Tensor = self.fc(pooled)
        return logits


def conv3x3(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution, padded to keep the size (but for its stride); no bias, since BN would cancel it."""
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)


def conv1x1(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(channels_in, channels, 1, stride, bias=False)
