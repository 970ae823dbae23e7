"""Laws of the data sets: split honestly, normalised by the training images alone, refused where that cannot be."""

from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pytest
import torch

from auxnet import data
from auxnet.data import load_others, part_to_judge_on
from auxnet.preprocessing import Preprocessing
from auxnet.reading import pictures, sources
from auxnet.reading.dividing import stratified_split
from auxnet.run_data import preprocessing_of
from auxnet.sections import LARGEST
from writers import folder_of, load, rows, same, tiny, write_folders, write_parquet

pytestmark = pytest.mark.usefixtures("own_cache_and_no_network")


def test_a_split_is_stratified_disjoint_complete_and_sorted() -> None:
    labels = torch.tensor([0] * 100 + [1] * 30 + [3] * 2 + [4] * 15)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    kept, held = stratified_split(labels, 0.1, seed=3)
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(len(labels)))
    assert torch.bincount(labels[held]).tolist() == [10, 3, 0, 1, 2]
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())


def test_a_split_follows_its_seed_and_nothing_else() -> None:
    labels = torch.arange(200) % 4
    torch.manual_seed(1)
    one = stratified_split(labels, 0.2, seed=7)
    torch.manual_seed(2)
    two = stratified_split(labels, 0.2, seed=7)
    other = stratified_split(labels, 0.2, seed=8)
    assert all(map(torch.equal, one, two))
    assert not torch.equal(one[1], other[1])


def test_every_image_of_a_class_may_be_held_out() -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    held = {int(n) for seed in range(100) for n in stratified_split(labels, 0.1, seed)[1]}
    assert held == set(range(10))


@pytest.mark.parametrize("name", ["", "caf\udce9"])  # of a text label; of a folder in Latin-1
def test_a_class_that_no_file_could_name_is_refused_before_it_is_trained_on(name: str, home: Path) -> None:
    images, labels = tiny(20, 2, size=8)
    np.savez(home / "own.npz", images=images, labels=labels, classes=[name or "a", "b"])
    if not name:
        np.savez(home / "own.npz", images=images, labels=np.array(["", "b"])[labels])
    with pytest.raises(ValueError, match=r"has a class named .*: a name must be UTF-8, and not empty"):
        load(str(home / "own.npz"))


def test_images_that_no_net_would_be_loaded_for_are_refused_before_they_are_trained_on(home: Path) -> None:
    for side, message in ((LARGEST, ""), (LARGEST + 1, f"{LARGEST + 1}x1 pixels, at most {LARGEST} a side")):
        np.savez(home / "own.npz", images=np.zeros((20, 1, side), np.uint8), labels=np.arange(20) % 2)
        if message:
            with pytest.raises(ValueError, match=f"{message}: give --image-size"):
                load(str(home / "own.npz"))
        else:
            seen = preprocessing_of(load(str(home / "own.npz")))
            assert Preprocessing.read(seen.content()) == seen
    assert load(str(home / "own.npz"), image_size=8).image_size == (8, 8)


def test_images_too_large_for_memory_are_refused_with_the_mend(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pictures, "all_resized", refuse)
    with pytest.raises(ValueError, match="1797 images of 4096x4096 do not fit in memory: give a smaller --image-size"):
        load("digits", image_size=4096)


def test_the_test_set_never_depends_on_the_seed_or_the_validation_fraction(home: Path) -> None:
    for name in ("digits", str(folder_of(home))):
        one, two, three = load(name), load(name, seed=1), load(name, val_fraction=0.4)
        assert same(one.test, two.test)
        assert same(one.test, three.test)
        assert not same(one.val, two.val)
        assert len(three.val) > len(one.val)
        assert rows(one.train, one.val) == rows(two.train, two.val) == rows(three.train, three.val)


def test_the_same_seed_gives_the_same_data_set() -> None:
    one, two = load("digits", seed=4), load("digits", seed=4)
    assert all(same(getattr(one, split), getattr(two, split)) for split in ("train", "val", "test"))
    assert (one.mean, one.std) == (two.mean, two.std)


def test_digits_are_split_into_all_there_are() -> None:
    digits = load("digits")
    images = sources.digits().images
    assert rows(digits.train, digits.val, digits.test) == sorted(image.tobytes() for image in images)
    assert (digits.num_classes, digits.channels, digits.image_size) == (10, 1, (8, 8))
    assert (digits.pad, digits.flip) == (0, False)
    assert abs(len(digits.test) / 1797 - 0.2) < 0.005
    assert load("digits", image_size=16).image_size == (16, 16)


def test_a_folder_with_train_test_and_val_is_taken_as_it_is(home: Path) -> None:
    parts = {"train": tiny(30, 3, 1, 8), "test": tiny(9, 3, 2, 8), "val": tiny(6, 3, 3, 8)}
    for part, (images, labels) in parts.items():
        order = np.argsort(labels, kind="stable")
        parts[part] = images[order], labels[order]
        write_folders(home / part, images, labels, ["x", "y", "z"])
    found = load(str(home))
    for part, (images, labels) in parts.items():
        split = getattr(found, part)
        assert np.array_equal(split.images.numpy(), images)
        assert np.array_equal(split.labels.numpy(), labels)
    assert found.brings_val
    assert not load("digits").brings_val


def test_a_grey_split_beside_a_coloured_one_becomes_coloured(home: Path) -> None:
    images, labels = tiny(30, 2, size=8)
    write_folders(home / "train", images, labels, ["a", "b"])
    write_folders(home / "test", images[..., :1], labels, ["a", "b"])
    found = load(str(home))
    assert found.test.images.shape[3] == found.channels == 3


# ------------------------------------------------------------------------------------- normalisation and augmentation


def test_mean_and_std_are_those_of_the_training_split_alone() -> None:
    digits = load("digits", seed=2)
    pixels = digits.train.images.double()
    assert digits.mean == pytest.approx((pixels.mean().item(),))
    assert digits.std == pytest.approx((pixels.std(correction=0).item(),))


def test_mean_and_std_are_per_channel_and_a_constant_channel_is_left_alone() -> None:
    images = torch.randint(0, 256, (9, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[..., 1] = 7
    mean, std = data.channel_mean_std(data.Split(images, torch.zeros(9, dtype=torch.int64)))
    assert mean == pytest.approx(images.double().mean((0, 1, 2)).tolist())
    expected = images.double().std((0, 1, 2), correction=0).tolist()
    assert std == pytest.approx((expected[0], 1.0, expected[2]))


@pytest.mark.parametrize(
    ("augment", "pad", "flip"), [("none", 0, False), ("crop", 1, False), ("flip", 0, True), ("crop+flip", 1, True)]
)
def test_augmentation_is_as_asked(augment: str, pad: int, flip: bool, home: Path) -> None:
    digits = load("digits", augment=augment)
    assert (digits.pad, digits.flip) == (pad, flip)
    own = load(str(folder_of(home)))
    assert (own.pad, own.flip) == (1, True)
    assert digits.augmentation is own.augmentation is None


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar1O", "perhaps you meant 'cifar10'"),
        ("CIFAR10", "perhaps you meant 'cifar10'"),
        ("Digits", "perhaps you meant 'digits'"),
        ("", "neither a known data set nor a folder"),
        ("hf:alone", "given as hf:owner/name"),
        (__file__, "is a file, but no .npz: give the folder"),
    ],
)
def test_a_wrong_request_is_a_value_error(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name)


def test_a_mistyped_folder_is_told_the_one_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match="'shapess' is neither a known data set nor a folder; perhaps you meant 'shapes'"
    ):
        load("shapess")


def test_test_labels_that_training_lacks_are_refused_and_others_matched_by_name(home: Path) -> None:
    images, labels = tiny(30, 3, size=8)
    words = np.array(["ant", "bee", "cat"])
    write_parquet(home / "train.parquet", images, words[labels])
    write_parquet(home / "test.parquet", images[:4], ["cat", "bee", "cat", "bee"])
    assert load(str(home)).test.labels.tolist() == [2, 1, 2, 1]
    write_parquet(home / "test.parquet", images[:2], ["cat", "dog"])
    with pytest.raises(RuntimeError, match="test has classes that train lacks: dog; rename or remove"):
        load(str(home))


@pytest.mark.parametrize("form", ["-1", "null", "npz"])
def test_test_images_without_any_label_are_passed_over_and_others_drawn(form: str, home: Path) -> None:
    images, labels = tiny(60, 3, size=8)
    none = [None if form == "null" else -1] * 60

    def write(test: list[Any]) -> str:
        if form == "npz":
            np.savez(home / "a.npz", x_train=images, y_train=labels, x_test=255 - images, y_test=test)
            return str(home / "a.npz")
        write_parquet(home / "own" / "train.parquet", images, labels, ["a", "b", "c"])
        write_parquet(home / "own" / "test.parquet", 255 - images, pa.array(test, pa.int64()), ["a", "b", "c"])
        return str(home / "own")

    own = write(none)
    with pytest.warns(UserWarning, match="passed over") as told:
        found = load(own)
    words = "passed over its test images, none of which has a label: others are drawn from train"
    assert [str(each.message) for each in told] == [f"{own}: {words}"]
    assert rows(found.train, found.val, found.test) == sorted(image.tobytes() for image in images)
    with pytest.raises(RuntimeError, match=r"label (-1|None) in row 1 must be a whole number"):
        load(write([0, *none[1:]]))


def test_one_class_alone_is_refused(home: Path) -> None:
    with pytest.raises(ValueError, match="has one class only, 'a': a classifier needs at least two"):
        load(str(folder_of(home, 6, "a")))


def test_a_class_with_too_few_images_is_named(home: Path) -> None:
    images, labels = tiny(20, 2, size=8)
    labels[labels == 1] = 0
    labels[0] = 1
    write_folders(home, images, labels, ["many", "few"])
    with pytest.raises(ValueError, match="class 'few' has too few images"):
        load(str(home))


def test_splits_of_different_sizes_are_refused_unless_resized(home: Path) -> None:
    write_folders(home / "train", *tiny(30, 2, size=8), ["a", "b"])
    write_folders(home / "test", *tiny(6, 2, size=12), ["a", "b"])
    with pytest.raises(ValueError, match=r"train of .* is 8x8 and test is 12x12: give --image-size 8"):
        load(str(home))
    assert load(str(home), image_size=10).test.images.shape[1:3] == (10, 10)


def test_some_training_images_are_drawn_class_by_class_and_leave_validation_and_test_alone():
    whole, some = load("digits"), load("digits", train_images=500)
    assert len(some.train) == 500
    counts = torch.bincount(some.train.labels).double() / torch.bincount(whole.train.labels)
    assert float(counts.max() - counts.min()) < 0.01
    assert torch.equal(some.val.images, whole.val.images)
    assert torch.equal(some.test.images, whole.test.images)
    with pytest.raises(ValueError, match=r"train_images must be at most the 1,2\d\d training images there are, got"):
        load("digits", train_images=5000)


@pytest.mark.parametrize("asked", [7, 20, 25, 30, 111, 199, 200])
def test_as_many_training_images_are_drawn_as_are_asked_for(home: Path, asked: int) -> None:
    images, labels = np.zeros((240, 4, 4), np.uint8), np.arange(240) % 20
    splits = [(f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")]
    np.savez(home / "set.npz", **{name: a for names in splits for name, a in zip(names, (images, labels), strict=True)})
    counts = torch.bincount(load(str(home / "set.npz"), train_images=asked).train.labels, minlength=20)
    assert int(counts.sum()) == asked
    assert set(counts.tolist()) <= {asked // 20, asked // 20 + 1}  # the classes are all as large


def test_a_rare_class_keeps_a_training_image_where_some_are_drawn(home: Path) -> None:
    write_folders(home, *tiny(40, 2, size=8), ["many", "few"])
    for file in sorted((home / "few").iterdir())[3:]:
        file.unlink()
    assert sorted(torch.bincount(load(str(home), train_images=5).train.labels).tolist()) == [1, 4]


# --------------------------------------------------------------------------------------------------------------- memory


def test_the_splits_of_images_in_memory_are_no_copies() -> None:
    digits = load("digits", train_images=500)
    for split in (digits.train, digits.val, digits.test):
        assert isinstance(split, data.Split)
        assert split.held.data_ptr() == digits.train.held.data_ptr()  # type: ignore[union-attr]
        assert split.nbytes == split.images.nbytes < split.held.nbytes
        alone = split.on(torch.device("cpu"))
        assert alone.held.nbytes == split.nbytes
        assert same(alone, split)
        some = torch.tensor([3, 0, 3])
        assert torch.equal(split.read(some), split.images[some])
        assert torch.equal(alone.part(some).images, split.images[some])
        assert data.channel_mean_std(alone) == data.channel_mean_std(split)
        assert data.fingerprint([alone]) == data.fingerprint([split])


def test_a_class_that_no_image_judges_is_told(tmp_path):
    write_folders(tmp_path / "pics" / "train", *tiny(60, 3, size=8), ["cat", "cross", "dog"])
    write_folders(tmp_path / "pics" / "test", *tiny(8, 2, size=8), ["cat", "dog"])
    with pytest.warns(UserWarning, match="no test") as told:
        load(str(tmp_path / "pics"))
    assert [str(each.message) for each in told] == [
        f"{tmp_path}/pics: no test image of 'cross': no test error says anything about it"
    ]


@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_data_set_equals_itself_alone_and_is_shown_without_its_pixels(stream: str, home: Path) -> None:
    """Tensors have no equality of one word, and many of them no hash that is of any use."""
    one, other = (load(str(folder), stream=stream, workers=0) for folder in [folder_of(home)] * 2)
    assert one == one
    assert one.train == one.train
    assert one != other
    assert one.train != other.train
    assert len({one, other, one.train, other.train}) == 4
    assert f"train={'OnDisk' if stream == 'always' else 'Split'}(42 images of (8, 8, 3))" in repr(one)
    assert "array" not in repr(one)
    assert "tensor" not in repr(one)


def test_a_class_whose_name_differs_in_its_unicode_form_alone_is_told_apart_from_an_unknown_one(home: Path) -> None:
    names = [normalize(form, "café") for form in ("NFC", "NFD")]
    for split, name in zip(("train", "val", "test"), (names[0], names[1], names[0]), strict=True):
        write_folders(home / "own" / split, *tiny(8, 2, size=8), [name, "dog"])
    mend = r"\(the same name in other Unicode characters is known: rename it as there\)"
    with pytest.raises(RuntimeError, match=f"val has classes that train lacks: {names[1]} {mend}; rename or remove"):
        load(home / "own")
    part = part_to_judge_on(str(home / "own" / "val"), None)
    with pytest.raises(ValueError, match=f"{names[1]} are no classes of run, .*: rename or remove them {mend}$"):
        load_others("own", part, (names[0], "dog"), Preprocessing((8, 8), (8, 8), (0.0,), (1.0,)), "run")
