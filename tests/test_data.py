"""Laws of the data sets: found in every form, split honestly, cached without a trace."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from auxnet import data, formats
from auxnet.data import DataSet, Split, load, stratified_split
from test_formats import CIFAR10, cifar_files, layout_of, tiny, write_cifar, write_folders, write_parquet

torch.set_num_threads(1)

REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_cache_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUXNET_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def same(a: Split, b: Split) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def rows(*splits: Split) -> list[bytes]:
    """The images of splits, sorted: what they hold, whatever the order."""
    return sorted(image.numpy().tobytes() for split in splits for image in split.images)


def folder_of(home: Path, n: int = 60, classes: str = "abc") -> Path:
    write_folders(home / "own", *tiny(n, len(classes), size=8), list(classes))
    return home / "own"


# ------------------------------------------------------------------------------------------- splitting


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


def test_a_class_with_a_single_image_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="class 1 has a single image"):
        stratified_split(torch.tensor([0, 0, 1]), 0.5, 0)


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
    images, _, _ = formats.digits()
    assert rows(digits.train, digits.val, digits.test) == sorted(image.tobytes() for image in images)
    assert (digits.num_classes, digits.channels, digits.image_size) == (10, 1, (8, 8))
    assert (digits.pad, digits.flip) == (0, False)
    assert abs(len(digits.test) / 1797 - 0.2) < 0.005
    assert load("digits", image_size=16).image_size == (16, 16)


def test_mean_and_std_are_those_of_the_training_split_alone() -> None:
    digits = load("digits", seed=2)
    pixels = digits.train.images.double()
    assert digits.mean == pytest.approx((pixels.mean().item(),))
    assert digits.std == pytest.approx((pixels.std(correction=0).item(),))


def test_mean_and_std_are_per_channel_and_a_constant_channel_is_left_alone() -> None:
    images = torch.randint(0, 256, (9, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[..., 1] = 7
    mean, std = data.statistics(images)
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


# --------------------------------------------------------------------------------------------- finding


def check(found: DataSet, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.array_equal(found.test.images.numpy(), test[0])
    assert np.array_equal(found.test.labels.numpy(), test[1])
    assert rows(found.train, found.val) == sorted(image.tobytes() for image in train[0])
    label_of = {image.tobytes(): label for image, label in zip(*train, strict=True)}
    for split in (found.train, found.val):
        assert [label_of[image.numpy().tobytes()] for image in split.images] == split.labels.tolist()


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize(("name", "source"), [(n, s) for n, forms in formats.CIFAR_FORMS.items() for s in forms])
def test_cifar_is_found_in_each_of_its_own_forms(name: str, source: str, below: bool, home: Path) -> None:
    count = 10 if name == "cifar10" else 100
    train, test = tiny(3 * count, count, seed=1), tiny(count, count, seed=2)
    write_cifar(home / name if below else home, source, cifar_files(layout_of(source), train, test))
    found = load(name, home)
    check(found, train, test)
    assert found.mean == (data._STATISTICS[name][0])
    assert (found.pad, found.flip) == (4, True)


@pytest.mark.parametrize("folder", ["", "cifar10", "cifar10/plain_text", "plain_text"])
def test_cifar_is_found_as_parquet_shards(folder: str, home: Path) -> None:
    train, test = tiny(30, 10, seed=1), tiny(10, 10, seed=2)
    write_parquet(home / folder / "train-00000-of-00001.parquet", *train, CIFAR10)
    write_parquet(home / folder / "test-00000-of-00001.parquet", *test, CIFAR10)
    check(load("cifar10", home), train, test)
    check(load("cifar10", home, seed=9), train, test)


def test_data_of_another_name_are_not_taken(home: Path) -> None:
    for part in ("train", "test"):
        write_parquet(home / "cifar10" / f"{part}.parquet", *tiny(30, 10), CIFAR10)
        write_parquet(home / "cifar100" / f"{part}.parquet", *tiny(30, 10), CIFAR10)
    with pytest.raises(FileNotFoundError, match="svhn was not found"):
        load("svhn", home)
    with pytest.raises(RuntimeError, match="cifar100 must have 100 classes, what was found has 10"):
        load("cifar100", home)


@pytest.mark.parametrize("extra", [False, True])
def test_svhn_is_trained_on_train_and_extra_where_it_is_there(extra: bool, home: Path) -> None:
    parts = {"train": tiny(30, 10, 1), "test": tiny(10, 10, 2), "extra": tiny(20, 10, 3)}
    for form in ("mat", "parquet"):
        folder = home / form / "svhn"
        folder.mkdir(parents=True)
        for part, (images, labels) in parts.items():
            if part == "extra" and not extra:
                continue
            if form == "mat":
                y = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
                savemat(folder / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": y})
            else:
                write_parquet(folder / "cropped_digits" / f"{part}.parquet", images, labels, list("0123456789"))
        found = load("svhn", home / form)
        train = (np.concatenate([parts["train"][n], parts["extra"][n]]) if extra else parts["train"][n] for n in (0, 1))
        check(found, tuple(train), parts["test"])
        assert (found.mean, found.std, found.pad, found.flip) == ((0.0,) * 3, (255.0,) * 3, 0, False)


def test_data_dir_may_come_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(home)
    monkeypatch.setenv("AUXNET_DATA", str(home))
    assert load("own").classes == ("a", "b", "c")


def test_missing_data_say_at_once_where_was_looked_and_what_to_give(home: Path) -> None:
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        load("cifar10", home)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    for part in (str(home / "cifar10"), "uoft-cs/cifar10", "offline", "cifar-10-python.tar.gz", "train-*.parquet"):
        assert part in message
    with pytest.raises(FileNotFoundError, match="looked in no folder"):
        load("svhn")
    with pytest.raises(FileNotFoundError, match="is not a folder: give the one that holds the data"):
        load("cifar10", home / "nowhere")
    with pytest.raises(FileNotFoundError, match="some/body could not be fetched"):
        load("hf:some/body")


def test_a_named_set_without_its_test_set_is_not_taken_for_whole(home: Path) -> None:
    write_parquet(home / "cifar10" / "train.parquet", *tiny(30, 10), CIFAR10)
    with pytest.raises(FileNotFoundError, match="cifar10 holds train but lacks test"):
        load("cifar10", home)


def test_a_data_set_in_the_hubs_own_cache_is_read_without_the_network(tmp_path: Path) -> None:
    store = tmp_path / "hub" / "datasets--some--body"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("0" * 40)
    train, test = tiny(30, 3, size=8), tiny(6, 3, seed=2, size=8)
    for part, (images, labels) in (("train", train), ("test", test)):
        write_parquet(store / "snapshots" / ("0" * 40) / "data" / f"{part}-00000-of-00001.parquet", images, labels)
    check(load("hf:some/body"), train, test)
    check(load("hf:some/body/data"), train, test)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar1O", {}, "did you mean 'cifar10'"),
        ("Digits", {}, "did you mean 'digits'"),
        ("", {}, "neither a known data set nor a folder"),
        ("hf:alone", {}, "given as hf:owner/name"),
        (__file__, {}, "is a file: give the folder"),
        ("digits", {"val_fraction": 0.0}, "val_fraction must be above 0 and at most 0.5, got 0.0"),
        ("digits", {"val_fraction": 0.6}, "val_fraction must be above 0"),
        ("digits", {"augment": "cutout"}, "augment must be one of default, none, crop, flip, crop.flip, got 'cutout'"),
        ("digits", {"image_size": 0}, "image_size must be 4 to 4096 pixels, got 0"),
    ],
)
def test_a_wrong_request_is_a_value_error(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, **options)


def test_a_path_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"'\./nowhere': there is no such folder"):
        load("./nowhere")


# --------------------------------------------------------------------------------------- class folders


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


def test_a_class_may_be_called_train(home: Path) -> None:
    write_folders(home, *tiny(30, 3, size=8), ["bus", "car", "train"])
    assert load(str(home)).classes == ("bus", "car", "train")


def test_folders_that_disagree_about_the_classes_are_refused(home: Path) -> None:
    write_folders(home / "train", *tiny(30, 3, size=8), ["a", "b", "c"])
    write_folders(home / "test", *tiny(9, 3, size=8), ["a", "b", "d"])
    with pytest.raises(RuntimeError, match="train and test must have the same classes, differ in c, d"):
        load(str(home))


def test_test_labels_that_training_lacks_are_refused_and_others_matched_by_name(home: Path) -> None:
    images, labels = tiny(30, 3, size=8)
    words = np.array(["ant", "bee", "cat"])
    write_parquet(home / "train.parquet", images, words[labels])
    write_parquet(home / "test.parquet", images[:4], ["cat", "bee", "cat", "bee"])
    assert load(str(home)).test.labels.tolist() == [2, 1, 2, 1]
    write_parquet(home / "test.parquet", images[:2], ["cat", "dog"])
    with pytest.raises(RuntimeError, match="test has classes that train lacks: dog"):
        load(str(home))


def test_one_class_alone_is_refused(home: Path) -> None:
    with pytest.raises(ValueError, match="has one class only, 'a': a classifier needs at least two"):
        load(str(folder_of(home, 6, "a")))


def test_an_empty_class_folder_is_refused(home: Path) -> None:
    own = folder_of(home)
    (own / "d").mkdir()
    with pytest.raises(ValueError, match="own/d holds no image"):
        load(str(own))


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
    with pytest.raises(ValueError, match="train has 8x8 and test 12x12: give --image-size 32"):
        load(str(home))
    assert load(str(home), image_size=10).test.images.shape[1:3] == (10, 10)


def test_a_grey_split_beside_a_coloured_one_becomes_coloured(home: Path) -> None:
    images, labels = tiny(30, 2, size=8)
    write_folders(home / "train", images, labels, ["a", "b"])
    write_folders(home / "test", images[..., :1], labels, ["a", "b"])
    found = load(str(home))
    assert found.test.images.shape[3] == found.channels == 3


# ----------------------------------------------------------------------------------------------- cache


def counting(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list that grows by each folder of class folders that is really read."""
    reads: list[Path] = []
    real = formats.class_folders

    def read(folder: Path, image_size: int | None = None) -> formats.Arrays:
        reads.append(folder)
        return real(folder, image_size)

    monkeypatch.setattr(formats, "class_folders", read)
    return reads


def test_the_cache_gives_the_same_bytes_without_reading_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, own = counting(monkeypatch), folder_of(home)
    first, second = load(str(own)), load(str(own))
    assert len(reads) == 1
    assert first.classes == second.classes
    assert all(same(getattr(first, split), getattr(second, split)) for split in ("train", "val", "test"))
    load(str(own), image_size=4)
    assert len(reads) == 2


def test_the_cache_is_rebuilt_when_a_source_changes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, own = counting(monkeypatch), folder_of(home)
    before = load(str(own))
    file = own / "a" / "0001.png" if (own / "a" / "0001.png").exists() else next((own / "a").iterdir())
    file.write_bytes(next((own / "b").iterdir()).read_bytes())
    os.utime(file, ns=(1, 1))
    after = load(str(own))
    assert len(reads) == 2
    assert rows(after.train, after.val, after.test) != rows(before.train, before.val, before.test)
    next((own / "c").iterdir()).unlink()
    load(str(own))
    assert len(reads) == 3


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "about.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_a_damaged_cache_is_rebuilt(
    name: str, damage: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, own = counting(monkeypatch), folder_of(home)
    before = load(str(own))
    file = next((tmp_path / "cache").glob(f"*/{name}"))
    content = bytearray(file.read_bytes())
    content[-20 if name != "about.json" else 12] ^= 1
    made = {"missing": None, "empty": b"", "truncated": bytes(content)[:-9], "flipped": bytes(content)}[damage]
    if made is None:
        file.unlink()
    else:
        file.write_bytes(made)
    for _ in range(2):
        after = load(str(own))
        assert all(same(getattr(before, split), getattr(after, split)) for split in ("train", "val", "test"))
    assert len(reads) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_pickle_in_the_cache_is_not_loaded(home: Path, tmp_path: Path) -> None:
    own = folder_of(home)
    before = load(str(own))
    file = next((tmp_path / "cache").glob("*/images.npy"))
    np.save(file, np.array([{"an": "object"}], object), allow_pickle=True)
    assert same(load(str(own)).train, before.train)


def test_a_cache_that_cannot_be_written_is_done_without(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("in the way")
    monkeypatch.setenv("AUXNET_CACHE", str(home / "file" / "cache"))
    assert len(load(str(folder_of(home))).classes) == 3


# ------------------------------------------------------------------------------------------------ real


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="the real CIFAR-10 is not here")
def test_the_real_cifar_10_is_what_its_parquet_says(tmp_path: Path) -> None:
    shards = formats.parquet_splits(REAL / "cifar10")
    assert [len(shards[split]) for split in ("train", "test")] == [2, 1]
    table = pq.read_table(shards["test"][0]).slice(4000, 200)
    pq.write_table(table, tmp_path / "test.parquet")
    got = formats.parquet([tmp_path / "test.parquet"])
    cells = table.column("img").to_pylist()
    expected = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in cells]
    assert np.array_equal(got.images, expected)
    assert got.labels.tolist() == table.column("label").to_pylist()
    assert got.classes == tuple(CIFAR10)
