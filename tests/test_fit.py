"""Laws of `fit`: pictures that are no squares are seen alike in training and ever after, wherever the net goes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image, ImageOps

import auxnet
from auxnet.data import load_data
from auxnet.exporting import export
from auxnet.hub import load as load_net
from auxnet.prediction import predict
from auxnet.preprocessing import Preprocessing
from auxnet.recipe import read_run_recipe
from auxnet.run_data import normalised_as, preprocessing_of
from auxnet.sweeps.space import checked
from writers import write_folders, write_parquet

SIDE = 8
FITS = ("crop", "pad", "stretch")
NAMES = ["cat", "dog"]
pytestmark = pytest.mark.usefixtures("onnx_tables")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Pictures of 30 x 18 in folders, and the same as parquet."""
    home, draw = tmp_path_factory.mktemp("fit"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 8), ("test", 8)):
        labels = np.arange(count) % 2
        images = draw.integers(0, 256, (count, 18, 30, 3), np.uint8)
        images[labels == 1, :, :6] = 255  # which the middle square leaves out
        write_folders(home / "folders" / split, images, labels, NAMES)
        in_order = [image for label in (0, 1) for image in images[labels == label]]
        write_parquet(home / "parquet" / f"{split}.parquet", in_order, sorted(labels.tolist()), NAMES)
    return home


def recipe_of(home: Path, fit: str, **fields: object) -> auxnet.Recipe:
    small = {"depth": 8, "outputs": 2, "epochs": 1, "batch_size": 5, "threads": 1, "device": "cpu", "workers": 0}
    return auxnet.Recipe(**{"data": str(home / "folders"), "image_size": SIDE, "fit": fit, **small, **fields})


@pytest.fixture(scope="module", params=FITS)
def run(request, home, tmp_path_factory):
    return auxnet.fit(recipe_of(home, request.param), tmp_path_factory.mktemp(request.param) / "run").folder


@pytest.fixture(scope="module")
def onnx_file(run):
    return export(run, 2, "onnx", run.parent / "alone.onnx").path


def by_hand(file: Path, fit: str) -> np.ndarray:
    image, size = Image.open(file), (SIDE, SIDE)
    if fit == "stretch":
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return np.asarray((ImageOps.fit if fit == "crop" else ImageOps.pad)(image, size, Image.Resampling.BILINEAR))


def tests_of(home: Path) -> list[Path]:
    return sorted((home / "folders" / "test").rglob("*.png"))


@pytest.mark.parametrize("fit", FITS)
def test_the_images_are_the_same_from_folders_and_parquet_in_memory_and_on_disk(home, fit):
    expected = np.stack([by_hand(file, fit) for file in tests_of(home)])
    trained = np.stack([by_hand(file, fit) for file in sorted((home / "folders" / "train").rglob("*.png"))])
    for data in ("folders", "parquet"):
        for stream in ("never", "always"):
            found = load_data(recipe_of(home, fit, data=str(home / data), stream=stream))
            assert np.array_equal(found.test.read(torch.arange(8)).numpy(), expected)
            assert found.mean == pytest.approx(trained.mean((0, 1, 2)), rel=1e-12)
            assert found.std == pytest.approx(trained.std((0, 1, 2)), rel=1e-12)
            assert found.shapes() == [(18, 30)] * 20


@pytest.mark.enough(1)
def test_what_leaves_a_run_sees_pictures_as_its_training_did(run, onnx_file, home, tmp_path):
    fit, net, files = read_run_recipe(run).fit, load_net(run), tests_of(home)
    assert json.loads((run / "config.json").read_text())["preprocessing"]["fit"] == fit
    images = np.stack([by_hand(file, fit) for file in files])
    expected = (images - np.array(net.preprocessing.mean)) / net.preprocessing.std
    assert np.abs(net.prepare(*files).permute(0, 2, 3, 1).numpy() - expected).max() < 1e-5
    with torch.inference_mode():
        answers = net(net.prepare(*files))[-1].softmax(1).tolist()
    for model in (run, export(run, 2, "safetensors", tmp_path / "alone").path, onnx_file):
        for picture, answer in zip(predict(model, files, top=2), answers, strict=True):
            said = dict(zip(picture.classes, picture.probabilities, strict=True))
            assert [said[name] for name in NAMES] == pytest.approx(answer, abs=1e-5)


def test_other_images_are_judged_as_the_runs_own(run, home, monkeypatch):
    expected = auxnet.evaluate(run, split="test")
    for memory in (2**40, 0):  # the images in memory, and on disk
        monkeypatch.setattr("auxnet.data.available_memory", lambda memory=memory: memory)
        assert auxnet.evaluate(run, on=home / "folders" / "test") == expected


@pytest.mark.parametrize("fit", FITS)
def test_what_is_said_of_the_preparation_does_it(home, fit):
    said = Preprocessing((SIDE, SIDE), (SIDE, SIDE), (0.0,) * 3, (1.0,) * 3, fit).preparation
    (words,) = re.findall(r"image\.convert\('RGB'\), (.*), 'L' for 1 channel", said)
    for file in tests_of(home):
        known = {"image": Image.open(file), "resize": (SIDE, SIDE), "Image": Image, "ImageOps": ImageOps}
        assert np.array_equal(np.asarray(eval(words, known)), by_hand(file, fit))


@pytest.mark.enough(1)
def test_what_was_saved_before_there_was_a_choice_was_cropped(run, onnx_file, home, tmp_path):
    """`run` comes with each fit: it is the pictures of the crop that are seen once `fit` is gone from its files."""
    old = shutil.copytree(run, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    del config["preprocessing"]["fit"]
    (old / "config.json").write_text(json.dumps(config))
    model = onnx.load(onnx_file)
    del model.metadata_props[[each.key for each in model.metadata_props].index("fit")]
    onnx.save(model, tmp_path / "old.onnx")
    net, files = load_net(old), tests_of(home)
    assert net.preprocessing.fit == "crop"
    with torch.inference_mode():
        images = torch.from_numpy(np.stack([by_hand(file, "crop") for file in files])).permute(0, 3, 1, 2)
        mean, std = (torch.tensor(each)[:, None, None] for each in (net.preprocessing.mean, net.preprocessing.std))
        answers = net((images - mean) / std)[-1].softmax(1).tolist()
    for model in (old, tmp_path / "old.onnx"):
        for picture, answer in zip(predict(model, files, top=2), answers, strict=True):
            said = dict(zip(picture.classes, picture.probabilities, strict=True))
            assert [said[name] for name in NAMES] == pytest.approx(answer, abs=1e-5)


def test_data_that_are_fitted_otherwise_are_not_those_of_a_run(home):
    cropped, padded = (load_data(recipe_of(home, fit)) for fit in ("crop", "pad"))
    with pytest.raises(
        RuntimeError, match=r"coloured images of 8x8 pixels, and its data are .* of 8x8 pixels \(fit pad"
    ):
        normalised_as(padded, preprocessing_of(cropped), "runs/a")


def test_a_fit_that_is_none_is_refused_and_fits_can_be_swept():
    content = Preprocessing((SIDE, SIDE), (SIDE, SIDE), (0.0,), (1.0,)).content()
    assert Preprocessing.read(content).content() == content
    with pytest.raises(ValueError, match="fit must be one of crop, pad, stretch, got 'bend'"):
        Preprocessing.read({**content, "fit": "bend"})
    assert [checked("fit", fit) for fit in FITS] == [*FITS]
    with pytest.raises(ValueError, match="fit must be one of crop, pad, stretch, got 'bend'"):
        replace(auxnet.Recipe(image_size=SIDE), fit="bend")
