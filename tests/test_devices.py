"""Training as on a GPU, where there is none: the device is "meta", whose tensors have shapes and no values.

To read one, which would be to wait for the device, is an error there, and so is to mix it with another device.
"""

import copy
import os
import signal
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

import auxnet
from auxnet import Recipe, build, by_name, plan, rundir, signals
from auxnet.cli import main
from auxnet.data import DataSet, Split, load_data
from auxnet.distributed import Team
from auxnet.epochs import Training, train_epoch
from auxnet.machine import fast_convolutions
from auxnet.resuming import Checkpointer, TrainingState

META = torch.device("meta")
TINY = Recipe(depth=8, batch_size=4, precision="float32")


@pytest.fixture(autouse=True)
def meta_is_known(monkeypatch):
    """Autocast has never heard of it."""
    monkeypatch.setattr("torch.is_autocast_enabled", lambda device: False)


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
        losses.append(method.one_step(images, labels))
        return losses[-1]

    noting = replace(method, one_step=step)
    training = Training(recipe, dataset, net, noting, Team(), Checkpointer(Path(), recipe), average)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        train_epoch(training, TrainingState())
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
@pytest.mark.enough(4)
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


class Read(TorchFunctionMode):
    """What is read from the device is 1: so a whole run can be driven there, and only what is moved moves."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not args:
            return func(**(kwargs or {}))
        name, (first, *rest) = getattr(func, "__name__", ""), args
        of_device = isinstance(first, torch.Tensor) and first.is_meta
        if of_device and name in ("cpu", "item", "tolist", "__bool__", "__float__", "__int__"):
            first = torch.ones(first.shape, dtype=first.dtype)
        if of_device and name == "to" and rest and rest[0] in (torch.device("cpu"), "cpu"):
            return torch.ones(first.shape, dtype=first.dtype)
        if name == "copy_" and not of_device and rest[0].is_meta:
            return first.fill_(1)
        return func(first, *rest, **(kwargs or {}))


@pytest.fixture
def on_meta(monkeypatch):
    """A machine whose device has memory of its own, and room for the images."""
    monkeypatch.setattr("auxnet.build.free_memory", lambda device: 2**30 if device == META else 0)
    with Read():
        yield


@pytest.mark.parametrize(
    "fields",
    [
        {},
        pytest.param({"augment": "crop+flip+trivial"}, marks=pytest.mark.long),
        pytest.param({"method": "joint", "ema": 0.9}, marks=pytest.mark.long),
        pytest.param({"precision": "bfloat16"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_whole_run_is_made_and_looked_at_on_the_device(fields, on_meta, tmp_path):
    recipe = replace(TINY, device="meta", epochs=2, train_images=96, batch_size=32, outputs=2, **fields)
    moved = build.resident(load_data(recipe), META)
    assert moved.train.images.is_meta == ("augment" not in fields)
    stopped = []

    def stop(progress):
        if progress.epoch == 2 and not stopped:
            stopped.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(signals.Stopped):
        auxnet.fit(recipe, tmp_path / "run", watch=stop, save_every=0, diagnose=True)
    run = auxnet.fit(recipe, tmp_path / "run", resume=True, watch=lambda progress: None)
    assert [row["epoch"] for row in rundir.read_metrics(tmp_path / "run")[::4]] == [1, 2]
    assert {parameter.device for parameter in run.net.parameters()} == {META}
    reports = auxnet.evaluate(run.net, build.evaluation_batches(moved.val, moved, META))
    assert [report.images for report in reports] == [145] * 2


@pytest.mark.long
def test_every_command_that_looks_at_a_run_does_so_on_the_device(on_meta, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.accelerator.synchronize", lambda device: None)
    run = str(tmp_path / "run")
    auxnet.fit(replace(TINY, device="meta", epochs=1, batch_size=256, outputs=2), run)
    for words in (["evaluate"], ["select", "--max-latency", "1000"], ["exits", "--curve", "3"], ["report"]):
        assert main([words[0], run, *words[1:]]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "AdamW"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_an_optimizer_without_a_fused_kernel_on_a_device_steps_without(name, decay_norms):
    """As Adagrad's on a GPU, and all on "meta": some find it out in their first step."""
    make = by_name.optimizer_of(Recipe(optimizer=name, lr=0.5, decay_norms=decay_norms))
    for device, fused in (("cpu", True), (META, False)):
        parameters = [torch.ones(2, 2, device=device, requires_grad=True), torch.ones(2, device=device)]
        optimizer = make(parameters)
        parameters[0].grad = torch.ones_like(parameters[0])
        optimizer.step()
        assert [bool(group["fused"]) for group in optimizer.param_groups] == [fused] * (1 if decay_norms else 2)
        assert optimizer.defaults["lr"] == 0.5


def test_a_training_and_a_plan_are_within_that(monkeypatch, tmp_path):
    seen = []

    @contextmanager
    def noted(device):
        seen.append(device.type)
        yield
        seen.append("left")

    for module in ("train", "plan"):
        monkeypatch.setattr(f"auxnet.{module}.fast_convolutions", noted)
    recipe = Recipe(depth=8, outputs=2, epochs=1, train_images=50, batch_size=25, device="cpu")
    auxnet.fit(recipe, tmp_path / "run", watch=lambda progress: seen.append("works"))
    plan.plan(recipe)
    assert list(dict.fromkeys(seen)) == ["cpu", "works", "left"]
    assert seen.count("cpu") == seen.count("left") == 2


@pytest.mark.parametrize("before", [False, True])
def test_cudnn_takes_its_fastest_algorithms_on_a_gpu_for_as_long_as_is_asked(before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with fast_convolutions(torch.device("cpu")):
        assert torch.backends.cudnn.benchmark == before
    with suppress(KeyError), fast_convolutions(torch.device("cuda")):
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert torch.backends.cudnn.benchmark == before
