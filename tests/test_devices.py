"""Training as on a GPU, where there is none: the device is "meta", whose tensors have shapes and no values.

To read one, which would be to wait for the device, is an error there, and so is to mix it with another device.
"""

from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch

from auxnet import Recipe, build
from auxnet.averaging import follow
from auxnet.data import DataSet, Split
from auxnet.mixing import mixed
from auxnet.schedules import lambdas_at

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


def epoch_on(device, recipe):
    """The losses of an epoch as `epochs.train_epoch` has them, before they are read."""
    dataset = data_on(device)
    net, method = build.build(recipe, dataset, device)
    average, _ = build.build(recipe, dataset, device)
    method.set_weights(lambdas_at(recipe, net.depths))
    method.set_lr(0.1)
    losses = []
    for step, (x, labels) in enumerate(build.training_batches(recipe, dataset, device, 1), start=1):
        if recipe.mixup or recipe.cutmix:
            x, labels = mixed(x, labels, dataset.num_classes, recipe.mixup, recipe.cutmix, Random(step))
        losses.append(method.step(x, labels))
        if recipe.ema:
            follow(average, net, recipe.ema, step)
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
    losses = epoch_on(META, replace(TINY, **fields))
    assert [(each.shape, each.device) for each in losses] == [((3,), META)] * 3


def test_what_waits_or_mixes_devices_is_noticed(monkeypatch):
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        epoch_on(META, replace(TINY, step_scale="adaptive"))
    monkeypatch.setattr(build, "balanced", lambda labels, classes: OnTheCpu(torch.ones(classes)))
    with pytest.raises(RuntimeError, match="on device cpu is not on the expected device meta"):
        epoch_on(META, replace(TINY, class_weights="balanced"))


class OnTheCpu:
    """A tensor that does not move."""

    def __init__(self, tensor):
        self.tensor = tensor

    def to(self, device):
        return self.tensor
