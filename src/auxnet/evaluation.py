"""What each output is worth and what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from auxnet.network import AuxNet, costs


@dataclass(frozen=True)
class OutputReport:
    """One output on one set of images, and its cost as a model of its own."""

    output: int
    """1..K, shallow to deep"""
    depth: int
    """layers, in the paper's count"""
    params: int
    macs: int
    """multiply-adds for one image"""
    loss: float
    """mean cross-entropy, in nats"""
    error: float
    """fraction in [0, 1]"""
    images: int
    """how many it was measured on"""


def evaluate(net: AuxNet, batches: Iterable[tuple[Tensor, Tensor]]) -> list[OutputReport]:
    """A report per output, shallow to deep, over batches of (images [N, C, H, W], labels [N]).

    The net is evaluated in evaluation mode and left in the mode it was in. Raises ValueError without images.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("there are no images to evaluate on")
    losses, errors, images = losses_and_errors(net, chain([first], batches))
    rows = zip(net.depths, costs(net, first[0].shape[1:]), losses, errors, strict=True)
    return [
        OutputReport(k, depth, params, macs, loss, error, images)
        for k, (depth, (params, macs), loss, error) in enumerate(rows, start=1)
    ]


@torch.no_grad()
def losses_and_errors(net: AuxNet, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[float], list[float], int]:
    """Mean loss and error of each output, and the number of images, in evaluation mode."""
    training = net.training
    net.eval()
    loss, wrong, images = torch.zeros(net.outputs, dtype=torch.float64), torch.zeros(net.outputs), 0
    for x, labels in batches:
        for k, logits in enumerate(net(x)):
            loss[k] += F.cross_entropy(logits, labels, reduction="sum").cpu()
            wrong[k] += (logits.argmax(1) != labels).sum().cpu()
        images += len(labels)
    net.train(training)
    return (loss / images).tolist(), (wrong.double() / images).tolist(), images
