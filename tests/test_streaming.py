"""Laws of streaming: images left on disk give the same epochs as images in memory, bit for bit; damage is named."""

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import auxnet
from auxnet import data, machine
from auxnet.batches import batches
from auxnet.cli import main
from auxnet.data import DataSet, OnDisk, load_data
from auxnet.reading import survey
from auxnet.reading.cache import entry
from writers import CIFAR10, folder_of, load, png, tiny, write_folders, write_parquet

pytestmark = pytest.mark.usefixtures("own_cache_and_no_network")

PARTS = ("train", "val", "test")


def shards_of(home: Path, n: int = 60, size: int = 8) -> Path:
    """Two shards of training images, in two row groups each or more, and no test set."""
    images, labels = tiny(n, 3, size=size)
    half = n // 2 - 3
    write_parquet(home / "train-00000-of-00002.parquet", images[:half], labels[:half])
    write_parquet(home / "train-00001-of-00002.parquet", images[half:], labels[half:])
    return home


def epochs(found: DataSet, workers: int = 0, start: int = 0) -> list[torch.Tensor]:
    """All that a training sees in an epoch and two evaluations."""
    splits = [(found.train, (7, 1)), (found.val, None), (found.test, None)]
    options = {"pad": found.pad, "flip": found.flip, "workers": workers, "start": start}
    return [
        tensor
        for split, seed in splits
        for batch in batches(split, 7, found.mean, found.std, seed=seed, **options)
        for tensor in batch
    ]


def assert_same_epochs(one: list[torch.Tensor], two: list[torch.Tensor]) -> None:
    assert len(one) == len(two)
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("form", [folder_of, shards_of])
@pytest.mark.enough(3)
def test_a_streamed_epoch_equals_the_epoch_in_memory_bit_for_bit(form: Any, workers: int, home: Path) -> None:
    own = str(form(home))
    kept, streamed = load(own, stream="never"), load(own, stream="always", workers=workers)
    assert isinstance(streamed.train, OnDisk)
    assert (streamed.workers, kept.workers) == (workers, 0)
    for name in ("classes", "mean", "std", "pad", "flip", "image_size", "channels", "left_out"):
        assert getattr(kept, name) == getattr(streamed, name)
    assert_same_epochs(epochs(kept), epochs(streamed, workers))
    assert_same_epochs(epochs(kept, start=2), epochs(streamed, workers, start=2))


@pytest.mark.long
def test_a_training_on_streamed_images_ends_in_the_same_weights(home: Path) -> None:
    recipe = auxnet.Recipe(data=str(folder_of(home)), depth=8, outputs=2, epochs=2, batch_size=16, threads=1)
    for stream in ("never", "always"):
        auxnet.fit(replace(recipe, stream=stream, workers=2), home / stream)
    never, always = ((home / stream / "model.safetensors").read_bytes() for stream in ("never", "always"))
    assert never == always


def test_images_brought_to_one_size_are_streamed_as_they_are_read(home: Path) -> None:
    write_folders(home / "train", *tiny(12, 2, size=20), ["a", "b"])
    write_folders(home / "test", *tiny(6, 2, size=9), ["a", "b"])
    kept, streamed = (load(str(home), stream=stream, image_size=8, workers=0) for stream in ("never", "always"))
    assert_same_epochs(epochs(kept), epochs(streamed))


@pytest.mark.parametrize("grey", [("train",), ("test",), ("train", "test")])
def test_grey_images_are_streamed_as_they_are_read(grey: tuple[str, ...], home: Path) -> None:
    for n, part in enumerate(("train", "test")):
        images, labels = tiny(12, 2, n, size=8)
        write_folders(home / part, images[..., :1] if part in grey else images, labels, ["a", "b"])
    kept, streamed = (load(str(home), stream=stream, workers=0) for stream in ("never", "always"))
    assert kept.channels == streamed.channels == (1 if len(grey) == 2 else 3)
    assert (kept.mean, kept.std) == (streamed.mean, streamed.std)
    assert_same_epochs(epochs(kept), epochs(streamed))


def test_a_named_set_in_parquet_shards_is_streamed(home: Path) -> None:
    for n, part in enumerate(("train", "test")):
        write_parquet(home / "cifar10" / f"{part}.parquet", *tiny(30, 10, n), CIFAR10)
    kept, streamed = (load("cifar10", home, stream=stream, workers=2) for stream in ("never", "always"))
    assert_same_epochs(epochs(kept), epochs(streamed, 2))


def test_mean_and_std_are_those_of_the_pixels(home: Path) -> None:
    own = str(folder_of(home))
    pixels = load(own, stream="never").train.images.double()  # type: ignore[union-attr]
    streamed = load(own, stream="always", workers=0)
    assert streamed.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), rel=1e-12)
    assert streamed.std == pytest.approx(pixels.std((0, 1, 2), correction=0).tolist(), rel=1e-12)


# ------------------------------------------------------------------------------------------------- memory, the cache


def test_images_stay_on_disk_where_they_would_take_more_than_half_of_the_memory(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for own in (folder_of(home), shards_of(home / "shards")):
        for left, streamed in ((2 * 60 * 8 * 8 * 3, False), (2 * 60 * 8 * 8 * 3 - 1, True)):
            monkeypatch.setattr(data, "available_memory", lambda left=left: left)
            assert isinstance(load(str(own), workers=0).train, OnDisk) == streamed
        assert isinstance(load(str(own), workers=0, image_size=4).train, OnDisk) is False
    assert not isinstance(load("digits").train, OnDisk)


def test_what_is_available_is_less_than_there_is_and_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < machine.available_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    alone = machine.cores()
    assert alone == len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(alone))
    assert machine.cores() == 1


@pytest.mark.parametrize("form", [folder_of, shards_of])
def test_a_set_is_looked_at_and_copied_once(
    form: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, looks = form(home), []
    real = survey.decode
    monkeypatch.setattr(survey, "decode", lambda *args: looks.append(args[1]) or real(*args))
    one = load(str(own), stream="always", workers=0)
    copies = [path.stat().st_ino for path in (tmp_path / "cache").glob("*/images.bin")]
    two = load(str(own), stream="always", workers=0, seed=3)
    assert len(looks) == len(set(looks)) == 60
    assert [path.stat().st_ino for path in (tmp_path / "cache").glob("*/images.bin")] == copies
    assert len(copies) == (form is shards_of)
    assert sum(map(len, (one.train, one.val, one.test))) == sum(map(len, (two.train, two.val, two.test))) == 60


def test_a_copy_is_made_anew_when_it_is_cut_short_or_its_source_changes(home: Path, tmp_path: Path) -> None:
    own = str(shards_of(home))
    expected = epochs(load(own, stream="never"))
    assert_same_epochs(expected, epochs(load(own, stream="always", workers=0)))
    (copy,) = (tmp_path / "cache").glob("*/images.bin")
    os.truncate(copy, 100)
    assert_same_epochs(expected, epochs(load(own, stream="always", workers=0)))
    images, labels = tiny(30, 3, seed=9, size=8)
    write_parquet(home / "train-00000-of-00002.parquet", images, labels)
    assert_same_epochs(epochs(load(own, stream="never")), epochs(load(own, stream="always", workers=0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_copy_is_noticed_and_named(workers: int, home: Path, tmp_path: Path) -> None:
    found = load(str(shards_of(home)), stream="always", workers=workers)
    (copy,) = (tmp_path / "cache").glob("*/images.bin")
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(OSError, match=r"is damaged \(.*train-0000.-of-00002\.parquet row \d+\): remove it"):
        epochs(found, workers)


def test_a_copy_that_cannot_be_kept_is_an_error_with_the_mend(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = shards_of(home)
    (home / "file").touch()
    monkeypatch.setenv("AUXNET_CACHE", str(home / "file" / "cache"))
    with pytest.raises(
        OSError, match=r"no copy of the images of .* can be kept in the cache .*AUXNET_CACHE to a folder"
    ):
        load(str(own), stream="always", workers=0)
    load(str(own), stream="never")
    load(str(folder_of(home)), stream="always", workers=0)  # needs no copy


def test_what_a_killed_process_left_half_done_is_removed(home: Path, tmp_path: Path) -> None:
    own = str(shards_of(home))
    load(own, stream="always", workers=0)
    (made,) = (path.parent for path in (tmp_path / "cache").glob("*/images.bin"))
    half_done = made.with_name(f"{made.name}-x1y2")
    half_done.mkdir()
    (half_done / "images.bin").write_bytes(bytes(1000))
    (made / "entry.npz").unlink()
    load(own, stream="always", workers=0)
    assert not half_done.exists()
    assert made.is_dir()


def test_an_entry_that_several_want_at_once_is_made_once(home: Path) -> None:
    (home / "source").touch()
    made, got = [], []

    def make(folder: Path) -> Any:
        made.append(folder)
        time.sleep(0.2)
        return {"numbers": np.arange(3)}, {"words": ["x"]}

    threads = [threading.Thread(target=lambda: got.append(entry([home / "source"], "k", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert [each.arrays["numbers"].tolist() for each in got] == [[0, 1, 2]] * 4
    assert [each.facts for each in got] == [{"words": ["x"]}] * 4


# ------------------------------------------------------------------------------------------------------------- damage


def damaged(form: Any, home: Path) -> tuple[str, list[str]]:
    """A set with two damaged images of sixty, and their names in order."""
    images, labels = tiny(60, 3, size=8)
    if form is folder_of:
        own = folder_of(home)
        files = [sorted((own / "a").iterdir())[4], sorted((own / "c").iterdir())[0]]
        files[0].write_bytes(files[0].read_bytes()[:50])
        files[1].write_bytes(b"")
        return str(own), [str(file) for file in files]
    cells: list[bytes | None] = [png(image) for image in images]
    cells[5], cells[40] = cells[5][:50], None  # type: ignore[index]
    write_parquet(home / "train-00000-of-00002.parquet", cells[:33], labels[:33])
    write_parquet(home / "train-00001-of-00002.parquet", cells[33:], labels[33:])
    names = ["train-00000-of-00002.parquet row 5", "train-00001-of-00002.parquet row 7"]
    return str(home), [f"{home / name}" for name in names]


def test_a_long_first_look_tells_how_far_it_has_come(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, _ = damaged(folder_of, home)
    monkeypatch.setattr(survey, "PAUSE", 0.0)
    monkeypatch.setattr("auxnet.plan.plan", lambda recipe: load_data(recipe) and sys.exit(0))
    assert main(["plan", "--data", own, "--stream", "always", "--max-corrupt", "2", "--workers", "0"]) == 0
    assert capsys.readouterr().err.endswith("auxnet: looked at 60 of 60 images\n")


@pytest.mark.parametrize("form", [folder_of, shards_of])
@pytest.mark.enough(1)
def test_damaged_images_are_left_out_up_to_the_limit_each_by_name(form: Any, home: Path) -> None:
    own, names = damaged(form, home)
    kept, streamed = (load(own, stream=stream, workers=2, max_corrupt=2) for stream in ("never", "always"))
    assert kept.left_out == streamed.left_out
    assert [each.partition(": ")[0] for each in kept.left_out] == names
    assert sum(len(getattr(streamed, part)) for part in PARTS) == 58
    assert_same_epochs(epochs(kept), epochs(streamed, 2))
    for stream in ("never", "always") * 2:  # also from the cache
        with pytest.raises(RuntimeError) as caught:
            load(own, stream=stream, workers=0, max_corrupt=1)
        assert str(caught.value).startswith("2 images cannot be read, at most 1 may be left out: ")
        assert all(name in str(caught.value) for name in names)
        assert "or train with --max-corrupt 2" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_of_many_damaged_images_the_first_are_named(home: Path) -> None:
    own = folder_of(home)
    for file in (own / "b").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(
        RuntimeError, match=r"^20 images cannot be read.*/b/[^;]*; [^;]*; [^;]*; \.\.\.; repair"
    ) as caught:
        load(str(own), stream="always", workers=0)
    assert str(caught.value).count("/b/") == 3


@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_set_of_which_no_image_can_be_read_is_refused(stream: str, home: Path) -> None:
    own = folder_of(home, 12)
    for file in own.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"a/\d+\.png: not a readable image"):
        load(str(own), stream=stream, workers=0, max_corrupt=100)


@pytest.mark.parametrize("stream", ["never", "always"])
def test_unequal_sizes_are_refused_with_the_mend(stream: str, home: Path) -> None:
    own = folder_of(home)
    odd = sorted((own / "b").iterdir())[3]
    odd.write_bytes(png(tiny(1, 1, size=9)[0][0]))
    with pytest.raises(ValueError, match=rf"a/\d+\.png is 8x8 and {odd} is 9x9: give --image-size 8"):
        load(str(own), stream=stream, workers=2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.enough(1)
def test_an_image_that_changed_since_it_was_looked_at_is_an_error_that_names_it(workers: int, home: Path) -> None:
    own = folder_of(home)
    found = load(str(own), stream="always", workers=workers)
    odd = sorted((own / "b").iterdir())[3]
    odd.write_bytes(png(tiny(1, 1, size=9)[0][0]))
    with pytest.raises(RuntimeError, match=rf"^{odd}: has changed since it was looked at"):
        epochs(found, workers)
    odd.unlink()
    with pytest.raises(RuntimeError, match=rf"^{odd}: not a readable image \(.*No such file"):
        epochs(found, workers)


def test_digits_cannot_stay_on_disk() -> None:
    with pytest.raises(ValueError, match="stream must be auto or never for digits"):
        load("digits", stream="always")
