"""Linear probes: how well a linear classifier tells the classes apart by the feature after each layer.

The feature is averaged over its positions, standardised, and given to multinomial logistic regression (scikit-learn's,
L2 penalty 1), trained on some images and judged on others. The net itself is in evaluation mode and learns nothing.

Shapes: N images, C channels; x_l is the feature after layer l, [N, C, H, W], tokens [N, T, C], or [N, C].
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auxnet.backbones.attaching import channels_first
from auxnet.batches import Batches
from auxnet.diagnosis import Layer, layers_of
from auxnet.errors import not_finite
from auxnet.modules import in_mode
from auxnet.network import AuxNet
from auxnet.scores import wilson

ITERATIONS = 300  # at most, of L-BFGS


@dataclass(frozen=True)
class Probe:
    """A linear classifier on the feature after a layer."""

    layer: int
    accuracy: float
    """fraction in [0, 1], on images that it was not trained on"""
    low: float
    """95 % interval of the accuracy, Wilson's"""
    high: float
    trained_on: int
    images: int
    """how many it was judged on"""


def probe(net: AuxNet, train: Batches, others: Batches) -> tuple[Probe, ...]:
    """A probe per layer, shallow to deep, trained on the images of `train` and judged on those of `others`.

    The net is left as it was. Raises ValueError without images, or if those to train on are all of one class,
    RuntimeError for features that are not finite.
    """
    features, labels = pooled_features(net, train)
    judged, truth = pooled_features(net, others)
    if len(set(labels.tolist())) < 2:
        raise ValueError(f"the {len(labels)} images to train probes on are of one class: take more")
    probes = []
    for (layer, x), y in zip(features.items(), judged.values(), strict=True):
        right = int((linear_answers(x, labels, y) == truth).sum())
        low, high = wilson(right, len(truth))
        probes.append(Probe(layer, right / len(truth), low, high, len(labels), len(truth)))
    return tuple(probes)


@torch.no_grad()
def pooled_features(net: AuxNet, batches: Batches) -> tuple[dict[int, Tensor], Tensor]:
    """{layer: feature averaged over its positions, float32 [N, C]} and the labels [N] of the images of batches."""
    layers: list[Layer] = []
    rows: list[list[Tensor]] = []
    labels: list[Tensor] = []
    with in_mode(net, training=False):
        for x, label in batches:
            layers = layers or layers_of(net, x.shape[1:])
            image_shape, row = x.shape[1:], []
            for layer in layers:
                x = layer.module(x)
                row.append(_pooled(x, image_shape).float().cpu())
            rows.append(row)
            labels.append(label.cpu())
    if not rows:
        raise ValueError("there are no images to probe with")
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    for at, column in zip(layers, columns, strict=True):
        if not column.isfinite().all():
            raise not_finite(f"layer {at.layer}", "features")
    return dict(zip((at.layer for at in layers), columns, strict=True)), torch.cat(labels)


def linear_answers(x: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """The classes, int64 [M], of features [M, C] by logistic regression trained on features [N, C] and labels [N]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # ITERATIONS bound the time
        classifier.fit(x.numpy(), labels.numpy())
    return torch.from_numpy(classifier.predict(others.numpy()))


def _pooled(x: Tensor, image_shape: Sequence[int]) -> Tensor:
    """[N, C, H, W], [N, H, W, C], [N, T, C] or [N, C] -> [N, C]."""
    if x.ndim == 2:
        return x
    return x.flatten(2).mean(2) if channels_first(x.shape[1:], image_shape) else x.flatten(1, -2).mean(1)
