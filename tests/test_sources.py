"""Laws of finding: each data set in each of its forms, no other in its place, and words where there is none."""

import io
import os
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from auxnet import data
from auxnet.data import DataSet
from auxnet.reading import parquet
from auxnet.reading.sources import absolute_source, find
from writers import (
    CIFAR10,
    SOURCES,
    cifar_files,
    folder_of,
    layout_of,
    load,
    rows,
    tiny,
    write_cifar,
    write_folders,
    write_parquet,
)

pytestmark = pytest.mark.usefixtures("own_cache_and_no_network")

REAL = Path(__file__).parents[2] / "shared" / "data"


def check(found: DataSet, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.array_equal(found.test.images.numpy(), test[0])
    assert np.array_equal(found.test.labels.numpy(), test[1])
    assert rows(found.train, found.val) == sorted(image.tobytes() for image in train[0])
    label_of = {image.tobytes(): label for image, label in zip(*train, strict=True)}
    for split in (found.train, found.val):
        assert [label_of[image.numpy().tobytes()] for image in split.images] == split.labels.tolist()


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize(("name", "source"), SOURCES)
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
        with warnings.catch_warnings(record=True) as told:
            found = load("svhn", home / form)
        assert [str(each.message).split(":")[1] for each in told] == [" there is no extra_32x32.mat"] * (not extra)
        train = (np.concatenate([parts["train"][n], parts["extra"][n]]) if extra else parts["train"][n] for n in (0, 1))
        check(found, tuple(train), parts["test"])
        assert (found.mean, found.std, found.pad, found.flip) == ((0.0,) * 3, (255.0,) * 3, 0, False)


def test_data_dir_may_come_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(home)
    monkeypatch.setenv("AUXNET_DATA", str(home))
    assert load("own").classes == ("a", "b", "c")
    monkeypatch.setenv("AUXNET_DATA", "/nowhere")
    assert len(load("digits").classes) == 10
    assert load(str(home / "own")).classes == ("a", "b", "c")
    with pytest.raises(FileNotFoundError, match="AUXNET_DATA /nowhere is not a folder"):
        load("own")


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
    with pytest.raises(FileNotFoundError, match=rf"looked in {home}/some/body/data, then") as caught:
        load("hf:some/body/data", home)
    fetch = "`hf download --repo-type dataset some/body --local-dir DIR` fetches it, and --data DIR takes it"
    assert str(caught.value).endswith(fetch)
    assert "\n" not in str(caught.value)


def test_a_copy_of_what_lies_on_the_hub_is_looked_for_first(home: Path, monkeypatch: Any) -> None:
    train, test = tiny(30, 3, size=8), tiny(6, 3, seed=2, size=8)
    for part, images in (("train", train), ("test", test)):
        write_parquet(home / "some/body/data" / f"{part}-00000-of-00001.parquet", *images)
    write_parquet(home / "body" / "train.parquet", *test)  # of that name, and other data
    for name in ("hf:some/body", "hf:some/body/data"):
        check(load(name, home), train, test)
    monkeypatch.chdir(home)
    assert absolute_source("hf:some/body", ".") == ("hf:some/body", str(home))
    assert absolute_source("hf:else/where", ".") == ("hf:else/where", ".")
    monkeypatch.setenv("AUXNET_DATA", str(home))
    assert absolute_source("hf:some/body", None) == ("hf:some/body", str(home))
    check(load("hf:some/body"), train, test)


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
    for name in ("hf:some/body", "hf:some/body/data"):
        with pytest.warns(UserWarning, match=r"test, train as in the hub's cache, which may lack others: .*offline"):
            check(load(name), train, test)


def test_what_the_hub_has_is_not_taken_for_what_its_cache_holds(tmp_path: Path, monkeypatch: Any) -> None:
    """A download that was cut short, or of one of several data sets alone, leaves a part of it there."""
    train, test = tiny(30, 3, size=8), tiny(6, 3, seed=2, size=8)
    asked, held = [], ["data/train.parquet", "data/test.parquet"]
    write_parquet(tmp_path / "cached" / "data" / "train.parquet", *train)
    for split, part in (("train", train), ("test", test)):
        write_parquet(tmp_path / "fetched" / "data" / f"{split}.parquet", *part)

    def download(*_: Any, local_files_only: bool, **__: Any) -> str:
        asked.append(local_files_only)
        return str(tmp_path / ("cached" if local_files_only else "fetched"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    siblings = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in held])
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: siblings)
    check(load("hf:some/body"), train, test)
    siblings.siblings.append(SimpleNamespace(rfilename="other/train.parquet"))
    with pytest.raises(ValueError, match="holds several data sets, give one of them: hf:some/body/data, hf:"):
        load("hf:some/body")
    assert asked == [False]


def test_a_path_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"'\./nowhere': there is no such folder or file in .*data_dir"):
        load("./nowhere")


def test_a_class_may_be_called_train(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the images of the others are not listed once more for that."""
    write_folders(home, *tiny(40, 4, size=8), ["bus", "car", "test tube", "train"])
    listed, real = set[str](), Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: listed.add(folder.name) or real(folder))
    assert load(str(home)).classes == ("bus", "car", "test tube", "train")
    assert not listed & {"bus", "car"}


def test_a_class_called_train_is_not_taken_for_a_split_beside_other_classes(home: Path) -> None:
    write_folders(home, *tiny(20, 2, size=8), ["bus", "car"])
    write_folders(home / "train", *tiny(20, 2, size=8), ["freight", "passenger"])
    with pytest.raises(ValueError, match=r"images in bus/, which is no split: .* rename the class train"):
        load(str(home))


def test_a_split_of_links_is_not_passed_over(home: Path) -> None:
    for split in ("own/train", "elsewhere"):
        write_folders(home / split, *tiny(9, 3, size=8), ["a", "b", "c"])
    (home / "own" / "holdout").mkdir()
    for name in "abc":
        (home / "own" / "holdout" / name).symlink_to(home / "elsewhere" / name)
    with pytest.raises(ValueError, match="images in holdout/, which is no split: rename it test or val"):
        load(str(home / "own"))


def test_folders_that_bring_no_class_of_train_are_passed_over_beside_splits_with_a_warning(home: Path) -> None:
    for split in ("train", "val"):
        write_folders(home / split, *tiny(30, 3, size=8), ["a", "b", "c"])
    (home / "latest").symlink_to("train")  # a folder that is used already is not told of
    write_folders(home, *tiny(4, 2, size=8), ["figures", "unlabeled"])
    with pytest.warns(UserWarning, match="passed over") as told:
        assert load(str(home)).classes == ("a", "b", "c")
    assert [str(each.message) for each in told] == [
        f"{home}: passed over figures/; unlabeled/: no folders of train, val or test"
    ]


def test_images_beside_all_three_splits_are_left_aside(home: Path) -> None:
    for split in ("train", "val", "test"):
        write_folders(home / split, *tiny(30, 3, size=8), ["a", "b", "c"])
    write_folders(home, *tiny(4, 1, size=8), ["preview"])
    assert load(str(home)).classes == ("a", "b", "c")


def test_the_splits_of_folders_and_of_shards_are_known_in_either_case(home: Path) -> None:
    train, test = tiny(30, 3, size=8), tiny(6, 3, seed=2, size=8)
    for split, part in (("Train", train), ("TEST", test)):
        write_folders(home / "folders" / split, *part, ["a", "b", "c"])
        write_parquet(home / "shards" / f"{split}-00000-of-00001.parquet", *part, ["a", "b", "c"])
    for form in ("folders", "shards"):
        found = load(str(home / form))
        assert found.classes == ("a", "b", "c")
        assert rows(found.test) == sorted(image.tobytes() for image in test[0])


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train", "test", "dev"), "images in dev/, which is no split: rename it val, or move it elsewhere"),
        (("train", "val", "testing"), "images in testing/, which is no split: rename it test, or"),
        (("train", "val", "Valid"), "holds Valid/, train/, val/: two of them are the same split, leave one"),
        (("training", "testing"), "testing/ and training/ look like splits: name them train, and test or val, with"),
        (("training_set/x", "test_set/x"), "test_set/ and training_set/ look like splits"),
        (("seg_train/seg_train", "seg_test/seg_test", "pred/pred"), "seg_test/ and pred/ look like splits"),
        (("test", "val"), "test/ and val/ look like splits"),
        (("trainset", "testset"), "testset/ and trainset/ look like splits"),
        (("TrainingImages", "TestImages"), "TestImages/ and TrainingImages/ look like splits"),
        (("traindata", "holdout"), "traindata/ and holdout/ look like splits"),
        (("train_data", "held_out", "more"), "train_data/ and held_out/ look like splits"),
        (("sets/train", "sets/test"), "holds one folder only, and the splits lie in that: give .*/sets"),
    ],
)
def test_folders_that_look_like_splits_of_other_names_are_refused(
    splits: tuple[str, ...], message: str, home: Path
) -> None:
    for split in splits:
        write_folders(home / split, *tiny(9, 3, size=8), ["a", "b", "c"])
    with pytest.raises(ValueError, match=message):
        load(str(home))


@pytest.mark.parametrize("names", [["negative_test", "positive_test"], ["post test", "pre test"]])
def test_classes_may_all_be_called_like_splits_where_none_is_sure_to_be_one(names: list[str], home: Path) -> None:
    write_folders(home, *tiny(8, 2, size=8), names)
    assert load(str(home)).classes == tuple(names)


@pytest.mark.parametrize(
    "names", [["train", "test1"], ["test", "train", "val"], ["test", "val"], ["TestImages", "TrainImages"]]
)
def test_images_in_folders_that_are_all_called_like_splits_are_not_their_classes(names: list[str], home: Path) -> None:
    write_folders(home, *tiny(3 * len(names), len(names), size=8), names)
    with pytest.raises(ValueError, match=r"look like splits: .*; if they are classes, give them other names"):
        load(str(home))


def test_classes_may_lie_in_folders_of_the_same_names(home: Path) -> None:
    """As a film's do by scene, and those of Tiny ImageNet; a train may be among the latter."""
    for names, below in (
        (("bus", "strainer", "trainers"), ["day", "night"]),
        (("bus", "ladle", "train (steam)"), ["images"]),
    ):
        for name in names:
            write_folders(home / below[0] / name, *tiny(8, len(below), size=8), below)
        assert load(str(home / below[0])).classes == names


def test_shards_of_no_split_are_passed_over_with_a_warning(home: Path) -> None:
    for split in ("train", "dev", "extra"):
        write_parquet(home / "own" / f"{split}.parquet", *tiny(30, 3, size=8))
    with pytest.warns(UserWarning, match=r"own: passed over dev.parquet; extra.parquet: no shards of train, val or"):
        load(str(home / "own"))
    (home / "own" / "train.parquet").rename(home / "own" / "training.parquet")
    (home / "own" / "extra.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"none named train-\*.parquet: name the shards to take train-1"):
        load(str(home / "own"))
    (home / "own" / "dev.parquet").unlink()
    assert len(load(str(home / "own")).train) < 30  # one file alone is the data, whatever its name


def test_a_folder_called_digits_is_told_of_where_the_embedded_set_is_taken(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.warns(UserWarning, match=r"the embedded set is taken; the folder here of that name is \./digits"):
        find("digits", None)


def test_a_folder_without_images_beside_the_splits_is_no_matter(home: Path) -> None:
    write_folders(home / "train", *tiny(30, 3, size=8), ["a", "b", "c"])
    (home / "annotations").mkdir()
    (home / "annotations" / "all.xml").write_text("<xml/>")
    (home / "annotations" / "up").symlink_to("..")  # and this leads in a circle, not to images
    assert load(str(home)).classes == ("a", "b", "c")


def test_folders_may_lack_a_class_that_train_has_but_bring_none(home: Path) -> None:
    """As parquet may: a rare class need not be in a small test set."""
    write_folders(home / "train", *tiny(30, 3, size=8), ["a", "b", "c"])
    write_folders(home / "test", *tiny(8, 2, size=8), ["a", "c"])
    for stream in ("never", "always"):
        found = load(str(home), stream=stream, workers=0)
        assert found.classes == ("a", "b", "c")
        assert found.test.labels.tolist() == [0] * 4 + [2] * 4
    (home / "test" / "a").rename(home / "test" / "d")
    with pytest.raises(RuntimeError, match="test has classes that train lacks: d"):
        load(str(home))


@pytest.mark.parametrize("splits", [[], ["train", "test"]])
def test_pictures_in_no_class_folder_are_passed_over_with_one_warning(splits: list[str], home: Path) -> None:
    images, labels = tiny(40, 2, size=8)
    for split in splits or ["."]:
        write_folders(home / split, images, labels, ["a", "b"])
    for place in (*splits, "."):
        Image.fromarray(images[0]).save(home / place / "loose.png")
        (home / place / ".hidden.png").touch()
        (home / place / "notes.txt").touch()
    with pytest.warns(UserWarning, match="passed over") as told:
        found = find(str(home), None)
    count = "3 pictures" if splits else "1 picture"
    words = f"{home}: passed over {count} in no class folder: move what counts into one"
    assert [str(each.message) for each in told] == [words]
    assert [len(part.files) for part in found.values()] == [40] * len(found)


@pytest.mark.parametrize(("splits", "taken"), [(["test"], "test"), (["Valid"], "Valid"), (["test", "val"], "test")])
def test_to_judge_on_folders_of_any_split_will_do(splits: list[str], taken: str, home: Path) -> None:
    for split in splits:
        write_folders(home / split, *tiny(6, 3, size=8), ["a", "b", "c"])
    part = data.part_to_judge_on(str(home), None)
    assert sorted(map(str, part.files)) == sorted(map(str, (home / taken).rglob("*.png")))
    assert part.read(None).classes == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"look like splits|one class only|one folder only"):
        load(str(home))


def test_a_folder_is_walked_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, walked, real = folder_of(home), [], os.walk
    monkeypatch.setattr(os, "walk", lambda top, *a, **o: walked.append(top) or real(top, *a, **o))
    load(str(own), stream="always", workers=0)
    assert sorted(walked) == [own / name for name in "abc"]


def test_files_that_may_be_pictures_in_other_forms_are_passed_over_with_one_warning(home: Path) -> None:
    own = folder_of(home)
    for n in range(3):
        (own / "a" / f"{n}.HEIC").touch()
    for name in ("a/1.avif", "README", "a/README", "a/notes.txt", "b/labels.csv", "b/Thumbs.db", "b/.hidden.heic"):
        (own / name).touch()
    with pytest.warns(UserWarning, match="passed over") as told:
        load(str(own), stream="always", workers=2)
    wanted = f"{own}: passed over 4 files that are no pictures known here: .heic (3), .avif (1)"
    assert [str(each.message) for each in told if each.category is UserWarning] == [wanted]  # Python warns of forks
    (own / "d").mkdir()
    (own / "d" / "1.heic").touch()
    with pytest.warns(UserWarning, match=r"heic \(4\)"), pytest.raises(ValueError, match="own/d holds no image"):
        load(str(own))
    write_folders(home / "other", [], [], ["a"])
    (home / "other" / "a" / "1.heic").touch()
    with pytest.raises(FileNotFoundError, match=r"passed over 1 file that is no picture known here: \.heic \(1\)"):
        load(str(home / "other"))


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG"])
def test_a_jpeg_is_known_by_all_its_suffixes(suffix: str, home: Path) -> None:
    own = folder_of(home, 12)
    Image.new("RGB", (8, 8)).save(own / "a" / "one.jpg")
    (own / "a" / "one.jpg").rename(own / "a" / f"one.{suffix}")
    found = load(str(own))
    assert sum(len(split) for split in (found.train, found.val, found.test)) == 13


def test_an_empty_class_folder_is_refused(home: Path) -> None:
    own = folder_of(home)
    (own / "d").mkdir()
    with pytest.raises(ValueError, match="own/d holds no image"):
        load(str(own))


# --------------------------------------------------------------------------------------------------------------- real


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="the real CIFAR-10 is not here")
def test_the_real_cifar_10_is_what_its_parquet_says(tmp_path: Path) -> None:
    shards = parquet.shards_of(REAL / "cifar10")
    assert [len(shards[split]) for split in ("train", "test")] == [2, 1]
    table = pq.read_table(shards["test"][0]).slice(4000, 200)
    pq.write_table(table, tmp_path / "test.parquet")
    got = parquet.ShardsPart([tmp_path / "test.parquet"]).read_uncached()
    cells = table.column("img").to_pylist()
    expected = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in cells]
    assert np.array_equal(got.images, expected)
    assert got.labels.tolist() == table.column("label").to_pylist()
    assert got.classes == tuple(CIFAR10)


def test_pictures_in_folders_beside_parquet_shards_are_passed_over_in_words(home: Path) -> None:
    write_parquet(home / "train.parquet", *tiny(12, 2, size=8))
    write_folders(home, *tiny(4, 1, size=8), ["figures"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one folder of pictures is an illustration of a data set's card
        find(str(home), None)
    write_folders(home, *tiny(4, 2, size=8), ["cat", "dog"])
    words = f"{home}: passed over the pictures in cat/; dog/; figures/: its parquet shards are the data"
    with pytest.warns(UserWarning, match=f"^{words}$"):
        find(str(home), None)
