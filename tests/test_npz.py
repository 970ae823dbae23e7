"""Laws of .npz files: the arrays that people keep, by the names that they give them, and words where that cannot be."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auxnet.reading import npz
from auxnet.reading.sources import absolute_source
from writers import load, tiny

pytestmark = pytest.mark.usefixtures("own_cache_and_no_network")

TRAIN, VAL, TEST = tiny(30, 3, seed=1, size=8), tiny(9, 3, seed=2, size=8), tiny(6, 3, seed=3, size=8)


def saved(home: Path, **arrays: Any) -> Path:
    np.savez(home / "own.npz", **arrays)
    return home / "own.npz"


def test_a_pipe_is_no_file_to_wait_for(home: Path) -> None:
    os.mkfifo(home / "own.npz")
    with pytest.raises(ValueError, match=r"own\.npz' is a pipe: give a folder or an \.npz file"):
        load(home / "own.npz")


def test_medmnist_keeps_its_three_splits(home: Path) -> None:
    arrays = {}
    for split, (images, labels) in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
    found = load(str(saved(home, **arrays)))
    for split, (images, labels) in ((found.train, TRAIN), (found.val, VAL), (found.test, TEST)):
        assert np.array_equal(split.images.numpy(), images)
        assert split.labels.tolist() == labels.tolist()
    assert found.classes == ("0", "1", "2")


def test_keras_brings_a_test_set_and_grey_images_without_channels(home: Path) -> None:
    file = saved(home, x_train=TRAIN[0][..., 0], y_train=TRAIN[1], x_test=TEST[0][..., 0], y_test=TEST[1])
    found = load("own.npz", home)
    assert found.channels == 1
    assert np.array_equal(found.test.images.numpy(), TEST[0][..., :1])
    assert len(found.train) + len(found.val) == 30
    assert npz.npz_splits(file)["test"] == {"images": "x_test", "labels": "y_test"}


def test_images_and_labels_alone_are_divided(home: Path) -> None:
    found = load(str(saved(home, images=TRAIN[0], labels=np.array(["cat", "dog", "eel"])[TRAIN[1]])))
    assert found.classes == ("cat", "dog", "eel")
    assert len(found.train) + len(found.val) + len(found.test) == 30
    assert found.drawn


def test_classes_are_named_and_channels_may_come_first(home: Path) -> None:
    file = saved(home, X=TRAIN[0].transpose(0, 3, 1, 2), y=TRAIN[1], classes=["cat", "dog", "eel"])
    images, labels, classes, *_ = npz.read(file, npz.npz_splits(file)["train"])
    assert np.array_equal(images, TRAIN[0])
    assert (labels.tolist(), classes) == (TRAIN[1].tolist(), ("cat", "dog", "eel"))


def test_a_compressed_file_says_the_same_and_is_resized_like_any(home: Path) -> None:
    np.savez_compressed(home / "own.npz", images=TRAIN[0], labels=TRAIN[1])
    assert load("own.npz", home, image_size=16).image_size == (16, 16)


def test_a_runs_recipe_finds_the_file_from_any_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(home, images=TRAIN[0], labels=TRAIN[1])
    monkeypatch.chdir(home)
    assert absolute_source("own.npz", None) == (str(file.resolve()), None)
    # From elsewhere "." would be another folder.
    assert absolute_source("own.npz", ".") == (str(file.resolve()), str(home))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": TRAIN[0] / 255, "labels": TRAIN[1]}, r"images must be uint8, 0\.\.255, is float64: multiply"),
        ({"images": TRAIN[0], "labels": TRAIN[1][:-1]}, r"labels must be \[30\], one class an image, is \[29\]"),
        ({"images": TRAIN[0], "labels": np.eye(3)[TRAIN[1]]}, r"labels must be \[30\], one class an image, is \[30, 3"),
        ({"images": TRAIN[0], "labels": TRAIN[1] - 1}, r"labels: label -1 in row \d+ must be a whole number"),
        ({"images": TRAIN[0], "labels": TRAIN[1], "classes": ["cat"]}, r"labels: label \d in row \d+ must be"),
        ({"images": TRAIN[0][:, :, :, :2], "labels": TRAIN[1]}, r"must be images \[N, H, W\], .* is \[30, 8, 8, 2\]"),
        ({"images": TRAIN[0][:0], "labels": TRAIN[1][:0]}, r"at least one, is \[0, 8, 8, 3\]"),
        ({"images": TRAIN[0], "labels": np.array([{}] * 30)}, "not a readable .npz file .labels holds Python objects"),
    ],
)
def test_arrays_that_are_no_images_or_labels_are_named(arrays: dict[str, Any], words: str, home: Path) -> None:
    file = saved(home, **arrays)
    with pytest.raises(RuntimeError, match=rf"own\.npz: .*{words}"):
        npz.read(file, npz.npz_splits(file)["train"])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": TRAIN[0], "b": TRAIN[1]}, r"must hold train_images and train_labels, x_train .* and holds a, b"),
        ({"train_images": TRAIN[0]}, r"train has no labels; it must hold .*, and holds train_images"),
        ({"x_train": TRAIN[0], "y_train": TRAIN[1], "images": TRAIN[0]}, "both x_train and images may be the images"),
        ({"test_images": TEST[0], "test_labels": TEST[1]}, "must hold train_images"),
    ],
)
def test_a_file_without_images_and_labels_says_what_it_holds(arrays: dict[str, Any], words: str, home: Path) -> None:
    with pytest.raises(ValueError, match=words):
        npz.npz_splits(saved(home, **arrays))


def test_other_files_are_not_taken_for_data(home: Path) -> None:
    (home / "own.npz").write_bytes(b"no archive")
    with pytest.raises(RuntimeError, match=r"own\.npz: not a readable \.npz file"):
        load("own.npz", home)
    (home / "own.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"own\.npy' is a file, but no \.npz"):
        load("own.npy", home)


def test_two_classes_of_one_name_are_refused_and_names_may_be_bytes(home: Path) -> None:
    file = saved(home, images=TRAIN[0], labels=TRAIN[1], classes=["a", "a", "b"])
    with pytest.raises(RuntimeError, match="two classes are named 'a': give each a name of its own"):
        load(str(file))
    file = saved(home, images=TRAIN[0], labels=TRAIN[1], classes=np.array([b"cat", b"dog", b"eel"]))
    assert load(str(file)).classes == ("cat", "dog", "eel")


def test_labels_may_be_texts_or_bytes_alike(home: Path) -> None:
    names = np.array(["cat", "dog", "eel"])[TRAIN[1]]
    one, other = (load(str(saved(home, images=TRAIN[0], labels=labels))) for labels in (names, np.char.encode(names)))
    assert one.classes == other.classes == ("cat", "dog", "eel")
    assert one.train.labels.tolist() == other.train.labels.tolist()


def test_arrays_that_need_one_more_step_are_told_which(home: Path) -> None:
    images, labels = TRAIN
    for changed, words in (
        ({"labels": labels.astype(object)}, r"labels holds Python objects: make it numbers of one kind, or texts by"),
        ({"images": np.array([*images, None], object)}, r"images holds Python objects"),
        ({"classes": np.array(["a", "b", "c"], object)}, r"classes holds Python objects"),
        (
            {"labels": np.eye(3)[labels]},
            r"labels must be \[30\], .*, is \[30, 3\]: take its argmax\(1\), if it is one-",
        ),
        ({"labels": labels - 1}, r"label -1 in row \d+ .*: number the classes from 0, and leave out images without a"),
    ):
        with pytest.raises(RuntimeError, match=words):
            load(str(saved(home, **{"images": images, "labels": labels} | changed)))
