"""Training as on a GPU, where there is none: the device is "meta", whose tensors have shapes and no values.

To read one, which would be to wait for the device, is an error there, and so is to mix it with another device.
"""

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from auxnet import Recipe, build
from auxnet.data import DataSet, Split
from auxnet.distributed import Team
from auxnet.epochs import Training, train_epoch
from auxnet.rundir import Standing

META = torch.device("meta")
TINY = Recipe(depth=8, batch_size=4, precision="float32")


@pytest.fixture(autouse=True)
def meta_is_known(monkeypatch):
    """Parts of PyTorch have never heard of it: autocast, and fused optimizers."""
    named = build.optimizer_of
    monkeypatch.setattr("torch.is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(build, "optimizer_of", lambda recipe: partial(named(recipe), fused=False))


def data_on(device):
    images, labels = torch.randint(256, (10, 8, 8, 3), dtype=torch.uint8), torch.randint(3, (10,))
    split = Split(images, labels).on(device)
    return DataSet("random", tuple("abc"), split, split, split, (125.0,) * 3, (63.0,) * 3, pad=2, flip=True)


def losses_on(device, recipe):
    """The losses of the steps of an epoch until a value is read: they themselves are, at its end."""
    dataset, losses = data_on(device), []
    net, method = build.build(recipe, dataset, device)
    average = None if recipe.ema is None else copy.deepcopy(net)

    def step(images, labels):
        losses.append(method.step(images, labels))
        return losses[-1]

    noting = replace(method, step=step)
    training = Training(
        recipe, dataset, net, noting, Team(), Path(), math.inf, 1, lambda progress: None, begun=False, average=average
    )
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        train_epoch(training, Standing(), noted=lambda: 0)
    return losses


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"precision": "bfloat16"},
        {"method": "joint"},
        {"method": "pairwise"},
        {"mode": "fused"},
        {"mode": "frozen", "precision": "bfloat16"},
        {"state": "shared"},
        {"order": "deep_first"},
        {"clip": 1.0},
        {"class_weights": "balanced", "label_smoothing": 0.1},
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"distill": 0.5},
        {"ema": 0.9},
        {"optimizer": "AdamW"},
    ],
    ids=str,
)
def test_an_epoch_never_waits_for_the_device_nor_leaves_it(fields):
    losses = losses_on(META, replace(TINY, **fields))
    assert [(each.shape, each.device) for each in losses] == [((3,), META)] * 3


def test_what_waits_or_mixes_devices_is_noticed(monkeypatch):
    assert losses_on(META, replace(TINY, step_scale="adaptive")) == []
    monkeypatch.setattr(build, "balanced", lambda labels, classes: OnTheCpu(torch.ones(classes)))
    with pytest.raises(RuntimeError, match="on device cpu is not on the expected device meta"):
        losses_on(META, replace(TINY, class_weights="balanced"))


class OnTheCpu:
    """A tensor that does not move."""

    def __init__(self, tensor):
        self.tensor = tensor

    def to(self, device):
        return self.tensor
