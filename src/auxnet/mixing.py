"""Mixed images: mixup blends the pictures of a batch, cutmix pastes a rectangle of one into another.

The partner of an image is the one at its place from the end of the batch (a shuffled one: a stranger), so that all
that is drawn is one share for the whole batch; it follows from the `Random` that is given.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed(
    images: Tensor, labels: Tensor, classes: int, mixup: float, cutmix: float, draw: Random
) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] mixed with their partners, and each one's share of every class [N, classes].

    The share that an image keeps of itself is drawn from Beta(a, a), a = `mixup` (Zhang et al. 2018) or `cutmix`
    (Yun et al. 2019), one of the two by the toss of a coin where both are above 0. With both 0 nothing changes but
    the form of the labels. Shares are float32, or float64 if images are: in bfloat16 they would not add up to 1.
    """
    H, W = images.shape[2:]
    target, share = F.one_hot(labels, classes).to(torch.promote_types(images.dtype, torch.float32)), 1.0
    if cutmix > 0 and (mixup == 0 or draw.random() < 0.5):
        top, left, h, w = rectangle(H, W, draw.betavariate(cutmix, cutmix), draw)
        images, partners = images.clone(), images.flip(0)
        images[:, :, top : top + h, left : left + w] = partners[:, :, top : top + h, left : left + w]
        share = 1 - h * w / (H * W)
    elif mixup > 0:
        share = draw.betavariate(mixup, mixup)
        images = images.lerp(images.flip(0), 1 - share)
    return images, target.lerp(target.flip(0), 1 - share)


def rectangle(H: int, W: int, share: float, draw: Random) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a rectangle of about 1 - `share` of H x W pixels, cut off where it sticks out."""
    side = (1 - share) ** 0.5
    h, w = int(H * side), int(W * side)
    y, x = draw.randrange(H), draw.randrange(W)  # its centre
    top, bottom = max(0, y - h // 2), min(H, y - h // 2 + h)
    left, right = max(0, x - w // 2), min(W, x - w // 2 + w)
    return top, left, bottom - top, right - left
