"""Laws of the cache: without a trace in what is loaded, made anew whenever it should, never trusted."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from auxnet.reading import cache, parts, pictures, survey
from auxnet.reading.arrays import Arrays
from auxnet.reading.folders import FolderPart
from auxnet.reading.pictures import Frame
from writers import folder_of, load, rows, same, tiny, write_parquet

pytestmark = pytest.mark.usefixtures("own_cache_and_no_network")


def counting(monkeypatch: pytest.MonkeyPatch) -> list[FolderPart]:
    """A list that grows by the split in class folders each time that one is really read."""
    reads: list[FolderPart] = []
    real = FolderPart.read_uncached

    def read(part: FolderPart, frame: Frame | None = None) -> Arrays:
        reads.append(part)
        return real(part, frame)

    monkeypatch.setattr(FolderPart, "read_uncached", read)
    return reads


def test_the_cache_gives_the_same_bytes_without_reading_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, own = counting(monkeypatch), folder_of(home, 12)
    first, second = load(str(own)), load(str(own))
    assert len(reads) == 1
    assert first.classes == second.classes
    assert all(same(getattr(first, split), getattr(second, split)) for split in ("train", "val", "test"))
    load(str(own), image_size=4)
    assert len(reads) == 2


def test_arrays_are_brought_to_a_frame_once_and_an_npz_file_is_copied_in_no_other_case(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = tiny(40, 2, size=6)
    np.savez(home / "own.npz", images=images[:, :5], labels=labels)
    calls, real = [], pictures.all_resized
    monkeypatch.setattr(pictures, "all_resized", lambda *args: calls.append(args) or real(*args))
    assert load("own.npz", home).shapes() == [(5, 6)]
    assert not (tmp_path / "cache").exists()
    first, second = (load("own.npz", home, image_size=4) for _ in range(2))
    assert (len(calls), len(entries(tmp_path))) == (1, 1)
    assert all(same(getattr(first, split), getattr(second, split)) for split in ("train", "val", "test"))
    assert first.shapes() == second.shapes() == [(5, 6)]  # as they lie in the file
    load("own.npz", home, image_size=4, fit="pad")
    assert len(calls) == 2
    np.savez(home / "other.npz", images=255 - images[:, :5], labels=labels)
    for path in ("own.npz", "other.npz"):
        os.utime(home / path, (1e9, 1e9))
    older = load("own.npz", home, image_size=4)
    shutil.copy2(home / "other.npz", home / "own.npz")  # of one size and time, as archives set it
    assert not same(load("own.npz", home, image_size=4).train, older.train)


def test_arrays_that_a_frame_leaves_as_they_are_are_not_copied(home: Path, tmp_path: Path) -> None:
    images, labels = tiny(40, 2, size=6)
    np.savez(home / "own.npz", images=images, labels=labels)
    assert load("own.npz", home, image_size=6).train.image_shape[:2] == (6, 6)
    assert not entries(tmp_path)


def test_a_file_that_was_removed_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet is a link to nothing, or was removed: fetch it"):
        cache.entry([tmp_path / "gone.parquet"], "", lambda _: ({}, {}))


def test_the_cache_is_rebuilt_when_a_source_changes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, own = counting(monkeypatch), folder_of(home, 12)
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


@pytest.mark.parametrize("stream", ["never", "always"])
def test_pictures_of_one_size_and_time_that_change_places_are_read_again(
    stream: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, aside = folder_of(home, 12), home / "aside"
    pair = [own / "a" / "x.bmp", own / "b" / "x.bmp"]
    for path, level in zip(pair, (0, 255), strict=True):
        Image.new("RGB", (8, 8), (level,) * 3).save(path)
        os.utime(path, ns=(1, 1))

    def seen() -> tuple[Any, ...]:
        found = load(str(own), stream=stream, workers=0)
        return found.mean, found.drawn, found.test_sha256()

    before = seen()
    for source, target in ((pair[0], aside), (pair[1], pair[0]), (aside, pair[1])):
        os.rename(source, target)
    after = seen()
    monkeypatch.setenv("AUXNET_CACHE", str(tmp_path / "another"))
    assert after == seen() != before


def test_the_classes_of_a_folder_given_one_too_high_are_not_taken_for_its_own(home: Path) -> None:
    own = folder_of(home / "all", 12)
    with pytest.raises(ValueError, match="has one class only, 'own'"):
        load(str(home / "all"))
    assert load(str(own)).classes == ("a", "b", "c")


@pytest.mark.parametrize("stream", ["never", "always"])
def test_what_pillow_could_not_read_is_tried_again_by_another_pillow(
    stream: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = folder_of(home, 12)
    Image.new("RGB", (8, 8)).save(own / "a" / "other.webp")
    with monkeypatch.context() as lacking:
        lacking.setattr(pictures, "_DECODERS", ("PNG",))
        assert len(load(str(own), stream=stream, workers=0, max_corrupt=1).left_out) == 1
    for module in (parts, survey):
        monkeypatch.setattr(module, "DECODER", "another")
    assert load(str(own), stream=stream, workers=0).left_out == ()


@pytest.mark.parametrize("stream", ["never", "always"])
def test_what_cannot_be_read_has_one_name_from_wherever_it_is_read_first(
    stream: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = folder_of(home, 12)
    (own / "a" / "torn.png").write_bytes(b"no picture")
    (home / "link").symlink_to(own)
    monkeypatch.chdir(own.parent)
    for data in (own.name, str(home / "link"), str(own)):
        (left_out,) = load(data, stream=stream, workers=0, max_corrupt=1).left_out
        assert left_out.startswith(f"{own.resolve() / 'a' / 'torn.png'}: ")


@pytest.mark.parametrize("stream", ["never", "always"])
def test_to_run_out_of_memory_is_no_damage_of_an_image(
    stream: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls, real = folder_of(home, 12), [], pictures._plain

    def plain(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 5:
            raise MemoryError("Unable to allocate 1 GiB")
        return real(*given)

    monkeypatch.setattr(pictures, "_plain", plain)
    with pytest.raises(RuntimeError, match=r"\.png: not a readable image \(Unable to allocate 1 GiB"):
        load(str(own), stream=stream, workers=0, max_corrupt=12)
    assert load(str(own), stream=stream, workers=0).left_out == ()


def shards_of(home: Path, count: int) -> Path:
    write_parquet(home / "shards" / "train.parquet", *tiny(count, 3, size=8))
    return home / "shards"


@pytest.mark.parametrize(("form", "stream"), [(folder_of, "never"), (folder_of, "always"), (shards_of, "always")])
def test_a_picture_is_not_damaged_for_good_by_a_decoder_that_once_failed(
    stream: str, form: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libjpeg without memory is to Pillow what a broken picture is."""
    own, calls, real = str(form(home, 24)), [], pictures._plain
    failing = {5, 7}

    def plain(*given: Any) -> Any:
        calls.append(given)
        if len(calls) in failing:
            raise OSError("broken data stream when reading image file")
        return real(*given)

    monkeypatch.setattr(pictures, "_plain", plain)
    assert len(load(own, stream=stream, workers=0, max_corrupt=2).left_out) == 2
    calls.clear()
    failing = {1, 2}  # still: nothing but these is decoded again
    assert len(load(own, stream=stream, workers=0, max_corrupt=2).left_out) == len(calls) == 2
    failing = {0}
    assert load(own, stream=stream, workers=0).left_out == ()
    calls.clear()
    assert load(own, stream=stream, workers=0).left_out == ()
    assert calls == []


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_a_damaged_cache_is_rebuilt(damage: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, own = counting(monkeypatch), folder_of(home, 12)
    before = load(str(own))
    file = next((tmp_path / "cache").glob("*/entry.npz"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # in an image
    made = {"missing": None, "empty": b"", "truncated": bytes(content)[:-9], "flipped": bytes(content)}[damage]
    if made is None:
        file.unlink()
    else:
        file.write_bytes(made)
    for _ in range(2):
        after = load(str(own))
        assert all(same(getattr(before, split), getattr(after, split)) for split in ("train", "val", "test"))
    assert len(reads) == 2
    assert sum(path.is_dir() for path in (tmp_path / "cache").iterdir()) == 1


@pytest.mark.long
def test_a_damaged_header_in_the_cache_is_found(home: Path, tmp_path: Path) -> None:
    """numpy stops reading where the header of an array says that it ends, and zip's checksum stands after that."""
    own = folder_of(home, 12)
    before = load(str(own))
    file = next((tmp_path / "cache").glob("*/entry.npz"))
    content = file.read_bytes()
    headers = [found.start() for found in re.finditer(rb"\x93NUMPY", content)]
    for place in (at + offset for at in headers for offset in range(128)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises((ValueError, BadZipFile, EOFError, KeyError, MemoryError)):
                cache._read(file)
    assert same(load(str(own)).train, before.train)


def test_a_pickle_in_the_cache_is_not_loaded(home: Path, tmp_path: Path) -> None:
    own = folder_of(home)
    before = load(str(own))
    file = next((tmp_path / "cache").glob("*/entry.npz"))
    with np.load(file) as entry:
        np.savez(file, **{**entry, "images": np.array([{"an": "object"}], object)})
    assert same(load(str(own)).train, before.train)


def test_a_cache_that_cannot_be_written_is_done_without(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("in the way")
    monkeypatch.setenv("AUXNET_CACHE", str(home / "file" / "cache"))
    assert len(load(str(folder_of(home))).classes) == 3


def entries(home: Path) -> set[Path]:
    return {path for path in (home / "cache").iterdir() if path.is_dir()}


def make_old(path: Path, days: float) -> None:
    long_ago = time.time() - days * 24 * 3600
    os.utime(path, (long_ago, long_ago))


def test_what_was_not_used_for_a_month_goes_when_an_entry_is_made(home: Path, tmp_path: Path) -> None:
    own = str(folder_of(home, 12))
    load(own)
    (first,) = entries(tmp_path)
    load(own, image_size=4)
    (second,) = entries(tmp_path) - {first}
    foreign, left = tmp_path / "cache" / ("f" * 32), tmp_path / "cache" / f"{'0' * 32}-killed"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()  # the folder is shared with others, who name theirs by digests too
    left.mkdir()
    for path in (first, second, foreign, left):
        make_old(path, 31)
    load(own)  # recalled: used again
    assert entries(tmp_path) == {first, second, foreign, left}
    load(own, image_size=5)
    assert entries(tmp_path) >= {first, foreign}
    assert not entries(tmp_path) & {second, left}


def test_an_entry_in_use_stays(home: Path, tmp_path: Path) -> None:
    own = str(folder_of(home, 12))
    load(own)
    (made,) = entries(tmp_path)
    make_old(made, 31)
    with FileLock(f"{made}.lock"):
        load(own, image_size=4)
        assert made in entries(tmp_path)
    write_parquet(home / "shards" / "train.parquet", *tiny(12, 2, size=8))
    streamed = load(str(home / "shards"), stream="always", workers=0)
    copy = next((tmp_path / "cache").glob("*/images.bin")).parent
    make_old(copy, 31)
    streamed.train.read(torch.arange(2))
    load(own, image_size=5)
    assert copy in entries(tmp_path)
    assert made not in entries(tmp_path)


def homeless(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As in a container whose user has neither HOME nor an entry in /etc/passwd; this is the current folder."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.chdir(folder)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("AUXNET_CACHE")
    monkeypatch.setattr("pwd.getpwuid", nobody)


def test_where_nobody_knows_the_users_home_nothing_is_cached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(home, 12).rename(home / "~old")  # a name that begins as if it were a user's
    homeless(monkeypatch, home)
    reads = counting(monkeypatch)
    first, second = load("~old"), load("~old")
    with pytest.raises(FileNotFoundError, match="data_dir ~ is not a folder"):
        load("~old", data_dir="~")
    assert len(reads) == 2
    assert all(same(getattr(first, split), getattr(second, split)) for split in ("train", "val", "test"))
    assert [path.name for path in home.iterdir()] == ["~old"]
    write_parquet(home / "shards" / "train.parquet", *tiny(12, 2, size=8))
    with pytest.raises(OSError, match=r"there is no home folder to keep a cache in: name another by AUXNET_CACHE"):
        load("shards", stream="always", workers=0)
    assert {path.name for path in home.iterdir()} == {"~old", "shards"}
