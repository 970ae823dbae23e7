"""Photographs of unequal sizes in class folders, from files to predictions; what is seen is the same everywhere."""

import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

import auxnet
from auxnet import build, signals
from auxnet.cli import main
from auxnet.data import DataSet, OnDisk, load_data
from auxnet.exporting import export
from auxnet.hub import load as load_net
from auxnet.policy import Policy
from auxnet.prediction import predict
from writers import folder_of, load, tiny, write_folders

SIZE, KEPT = 32, 37  # pixels a side: seen, and kept


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows of unequal sizes, as JPEG, of the two photographs that come with scikit-learn, one class each."""
    home, draw = tmp_path_factory.mktemp("photographs"), random.Random(0)
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        photograph = Image.fromarray(pixels)
        for part, count in (("train", 12), ("test", 4)):
            (home / part / name).mkdir(parents=True)
            for n in range(count):
                w, h = draw.randint(45, 125), draw.randint(45, 125)
                left, top = draw.randint(0, photograph.width - w), draw.randint(0, photograph.height - h)
                photograph.crop((left, top, left + w, top + h)).save(home / part / name / f"{n}.jpg", quality=90)
    return home


@pytest.fixture(scope="module")
def recipe(photographs: Path) -> auxnet.Recipe:
    return auxnet.Recipe(
        data=str(photographs),
        image_size=SIZE,
        augment="rrc+flip+trivial",
        val_fraction=0.25,
        stream="always",
        workers=2,
        form="imagenet",
        depth=18,
        outputs=3,
        epochs=1,
        batch_size=5,
        lr=0.02,
        threads=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def run(recipe: auxnet.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return auxnet.fit(recipe, tmp_path_factory.mktemp("runs") / "a").folder


def by_hand(file: Path) -> np.ndarray:
    """The pixels of a file as a net that is evaluated sees them: the shorter side to 37, the middle 32 x 32."""
    image = ImageOps.fit(Image.open(file).convert("RGB"), (KEPT, KEPT), Image.Resampling.BILINEAR)
    edge = (KEPT - SIZE) // 2
    return np.asarray(image.crop((edge, edge, edge + SIZE, edge + SIZE)))


def files_of(photographs: Path) -> list[Path]:
    return sorted((photographs / "test").rglob("*.jpg"))


def epoch(dataset: DataSet, recipe: auxnet.Recipe) -> list[torch.Tensor]:
    device = torch.device("cpu")
    seen = [build.training_batches(recipe, dataset, device, 1), *evaluations(dataset)]
    return [each for batches in seen for batch in batches for each in batch]


def evaluations(dataset: DataSet) -> list:
    return [build.evaluation_batches(split, dataset, torch.device("cpu")) for split in (dataset.val, dataset.test)]


# -------------------------------------------------------------------------------------------------- what is seen


def test_training_sees_parts_of_a_larger_square_and_evaluation_its_middle(photographs: Path) -> None:
    for stream in ("never", "always"):
        found = load(str(photographs), image_size=SIZE, augment="rrc+flip", stream=stream, workers=0)
        assert isinstance(found.test, OnDisk) == (stream == "always")
        assert (found.image_size, found.resize) == ((SIZE, SIZE), (KEPT, KEPT))
        assert found.train.image_shape == (KEPT, KEPT, 3)
        images = found.test.read(torch.arange(8)).numpy()
        assert np.array_equal(images, np.stack([by_hand(file) for file in files_of(photographs)]))


def test_streamed_or_in_memory_and_by_any_number_of_processes_an_epoch_is_the_same(recipe: auxnet.Recipe) -> None:
    first, *others = [
        epoch(load_data(replace(recipe, stream=stream, workers=workers)), recipe)
        for stream, workers in (("never", 0), ("never", 2), ("always", 0), ("always", 3))
    ]
    assert first[0].shape == (5, 3, SIZE, SIZE)
    for other in others:
        assert len(first) == len(other)
        assert all(map(torch.equal, first, other))


def test_a_split_evaluated_is_its_middle_whichever_it_is(recipe: auxnet.Recipe) -> None:
    found = load_data(recipe)
    images, _ = next(build.evaluation_batches(found.train, found, torch.device("cpu")))
    assert images.shape[2:] == (SIZE, SIZE)


@pytest.mark.parametrize(
    ("size", "augment", "seen", "kept", "flip", "pad"),
    [
        (96, "default", 96, 110, True, 0),
        (95, "default", 95, 95, True, 11),
        (96, "crop+flip", 96, 96, True, 12),
        (96, "none", 96, 96, False, 0),
        (224, "rrc+flip+trivial", 224, 256, True, 0),
        (32, "crop+flip+trivial", 32, 32, True, 4),
    ],
)
def test_large_images_are_cropped_as_photographs_unless_told(
    photographs: Path, size: int, augment: str, seen: int, kept: int, flip: bool, pad: int
) -> None:
    found = load(str(photographs), image_size=size, augment=augment, stream="never")
    assert (found.image_size, found.resize) == ((seen, seen), (kept, kept))
    assert (found.flip, found.pad) == (flip, pad)
    words = (found.augmentation.resized_crop, found.augmentation.trivial) if found.augmentation else (False, False)
    assert words == (kept > seen, "trivial" in augment)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_photographs_that_are_kept_whole_are_seen_whole(photographs: Path, recipe: auxnet.Recipe, fit: str) -> None:
    whole = replace(recipe, fit=fit)
    for stream in ("never", "always"):
        found = load_data(replace(whole, stream=stream, workers=0))
        assert (found.image_size, found.resize, found.fit) == ((SIZE, SIZE), (SIZE, SIZE), fit)
        images = found.test.read(torch.arange(8)).numpy()
        for image, file in zip(images, files_of(photographs), strict=True):
            picture, size = Image.open(file).convert("RGB"), (SIZE, SIZE)
            by_hand = picture.resize(size, Image.Resampling.BILINEAR)
            if fit == "pad":
                by_hand = ImageOps.pad(picture, size, Image.Resampling.BILINEAR)
            assert np.array_equal(image, np.asarray(by_hand))


def test_images_of_one_large_size_are_kept_as_they_are(home: Path) -> None:
    write_folders(home / "own", *tiny(12, 2, size=96), ["a", "b"])
    found = load(str(home / "own"), workers=0)
    assert found.image_size == found.resize == (96, 96)
    assert found.augmentation is not None
    assert found.augmentation.size == (96, 96)


# ------------------------------------------------------------------------------------------ from files to a prediction


def test_predictions_are_what_evaluation_saw(run: Path, recipe: auxnet.Recipe, photographs: Path) -> None:
    net, found = load_net(run), load_data(recipe)
    assert json.loads((run / "config.json").read_text())["preprocessing"]["resize"] == [KEPT, KEPT]
    with torch.inference_mode():
        logits = torch.cat([net(images)[-1] for images, _ in evaluations(found)[1]])
    answers = list(predict(run, [photographs / "test"], top=2))
    assert [Path(answer.image) for answer in answers] == files_of(photographs)
    for answer, expected in zip(answers, logits.softmax(1).tolist(), strict=True):
        told = dict(zip(answer.classes, answer.probabilities, strict=True))
        assert [told["china"], told["flower"]] == pytest.approx(expected, abs=1e-6)


def test_the_run_is_a_ladder_of_an_imagenet_form_resnet(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert [row["depth"] for row in summary["last"]] == [9, 13, 18]
    net = auxnet.load(run)
    assert net.config["network"]["form"] == "imagenet"
    assert net.numbers == (1, 2, 3)
    assert auxnet.select(run, max_params=1_000_000).output == 1  # of 0.7, 2.8 and 11.2 million
    with pytest.raises(ValueError, match="images must have 32x32 pixels or more"):
        net(torch.zeros(2, 3, 16, 16))


@pytest.mark.long
@pytest.mark.usefixtures("onnx_tables")
def test_every_export_predicts_the_files_as_the_run_does(run: Path, photographs: Path, tmp_path: Path) -> None:
    policy = Policy((1e-6,), "top", (1.0, 1.0))  # all leave at output 1
    forms = {
        2: [export(run, 2, "safetensors", tmp_path / "two").path],
        1: [
            export(run, 1, "onnx", tmp_path / "one.onnx").path,
            export(run, 2, "onnx-early-exit", tmp_path / "early.onnx", policy=policy).path,
        ],
    }
    assert export(run, 1, "torch", tmp_path / "one.pt2").difference < 1e-3
    for output, exported in forms.items():
        expected = list(predict(run, [photographs / "test"], output=output))
        for form in exported:
            for a, b in zip(expected, predict(form, [photographs / "test"]), strict=True):
                assert (a.image, a.output, a.classes, a.resized_from) == (b.image, b.output, b.classes, b.resized_from)
                np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)


@pytest.mark.long
def test_a_training_stopped_inside_an_epoch_and_resumed_ends_in_the_same_weights(
    run: Path, recipe: auxnet.Recipe, tmp_path: Path
) -> None:
    def stop(progress) -> None:
        if (progress.epoch, progress.step) == (1, 2) and not progress.done:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(signals.Stopped):
        auxnet.fit(recipe, tmp_path / "a", watch=stop)
    auxnet.fit(recipe, tmp_path / "a", resume=True)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--form", "imagenet", "--depth", "18"],
            "takes images of 32x32 pixels or more, got 8x8: give --image-size 32 or more, or --form cifar",
        ),
        (
            ["--form", "imagenet", "--depth", "20", "--image-size", "64"],
            "depth must be one of 18, 34, 50, 101, 152 in the imagenet form, got 20; the nearest is 18",
        ),
        (["--depth", "18"], "depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got 18"),
        (["--backbone", "torchvision:resnet18", "--form", "imagenet"], "form='imagenet' is the built-in ResNets'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    command: str, words: list[str], line: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(home)
    assert main([command, "--data", str(folder_of(home)), *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not (home / "runs").exists()


@pytest.mark.parametrize("resize", [[31, 37], [9000, 9000], ["a", 2], 3, [73]])
@pytest.mark.enough(2)
def test_a_config_with_an_impossible_resize_is_damaged(resize: object, run: Path, tmp_path: Path) -> None:
    load_net(run).save_pretrained(tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["preprocessing"]["resize"] = resize
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="is damaged"):
        load_net(tmp_path / "copy")
