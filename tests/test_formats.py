"""Laws of the readers: all forms of one data set agree byte for byte; damage is named; nothing foreign runs."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from auxnet import formats

CIFAR10 = list(formats.CIFAR10_CLASSES)
CIFAR100 = [f"thing_{n:02d}" for n in range(100)]


def tiny(n: int, classes: int, seed: int = 0, size: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Random colour images and labels in which every class occurs equally often."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return images, random.permutation(np.arange(n) % classes)


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def write_parquet(
    file: Path, images: Any, labels: Any, names: list[str] | None = None, image: str = "img", label: str = "label"
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": data if isinstance(data, bytes | None) else png(data), "path": None} for data in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(cells, kind), label: pa.array(labels)})
    if names:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, file, row_group_size=7)


def write_folders(folder: Path, images: Any, labels: Any, names: list[str]) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / names[label] / f"{n:04d}.png").write_bytes(png(image))


def cifar_files(form: str, train: tuple[Any, Any], test: tuple[Any, Any], protocol: int = 2) -> dict[str, bytes]:
    """The files of one of CIFAR's four layouts: "cifar-10-python", "cifar-10-binary", "cifar-100-python", ..."""
    ten, python = "cifar-10-" in form, "python" in form
    names = CIFAR10 if ten else CIFAR100

    def content(images: Any, labels: Any) -> bytes:
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        if python:
            fine = {"labels" if ten else "fine_labels": [int(n) for n in labels]}
            return pickle.dumps({"data": rows, **fine, "filenames": ["a.png"] * len(rows)}, protocol)
        heads = [labels] if ten else [np.zeros_like(labels), labels]
        return np.concatenate([*(h[:, None].astype(np.uint8) for h in heads), rows], axis=1).tobytes()

    end = "" if python else ".bin"
    if ten:
        parts = zip(np.array_split(train[0], 5), np.array_split(train[1], 5), strict=True)
        files = {f"data_batch_{n}{end}": content(*part) for n, part in enumerate(parts, 1)}
        files[f"test_batch{end}"] = content(*test)
    else:
        files = {f"train{end}": content(*train), f"test{end}": content(*test)}
    if python:
        key = "label_names" if ten else "fine_label_names"
        meta = pickle.dumps({key.encode(): [name.encode() for name in names]}, protocol)
        files["batches.meta" if ten else "meta"] = meta
    else:
        files["batches.meta.txt" if ten else "fine_label_names.txt"] = ("\n".join(names) + "\n\n").encode()
    return files


def write_cifar(folder: Path, source: str, files: dict[str, bytes]) -> Path:
    """The files in the folder or the archive `source` of formats.CIFAR_FORMS."""
    folder.mkdir(parents=True, exist_ok=True)
    if source.endswith(".tar.gz"):
        write_tar(folder / source, {f"inside/{name}": content for name, content in files.items()})
    else:
        (folder / source).mkdir()
        for name, content in files.items():
            (folder / source / name).write_bytes(content)
    return folder / source


def write_tar(file: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


SOURCES = [(name, source) for name, forms in formats.CIFAR_FORMS.items() for source in forms]


def layout_of(source: str) -> str:
    hundred = "cifar-100-" if "100" in source else "cifar-10-"
    return hundred + ("python" if "py" in source else "binary")


# ------------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_all_forms_of_cifar_agree_byte_for_byte_with_parquet_and_folders(
    name: str, source: str, tmp_path: Path
) -> None:
    names = CIFAR10 if name == "cifar10" else CIFAR100
    train, test = tiny(len(names) * 2, len(names), seed=1), tiny(len(names), len(names), seed=2)
    archive = write_cifar(tmp_path, source, cifar_files(layout_of(source), train, test))
    for part, (images, labels) in (("train", train), ("test", test)):
        write_parquet(tmp_path / f"{part}.parquet", images, labels, names)
        by_archive = formats.cifar(archive, name, part)
        by_parquet = formats.parquet([tmp_path / f"{part}.parquet"])
        for got in (by_archive, by_parquet):
            assert got.images.dtype == np.uint8
            assert got.labels.dtype == np.int64
            assert np.array_equal(got.images, images)
            assert np.array_equal(got.labels, labels)
            assert got.classes == tuple(names)
        if name == "cifar100":  # a hundred folders take long
            continue
        write_folders(tmp_path / part, images, labels, names)
        by_folders = formats.class_folders(tmp_path / part)
        grouped = np.argsort(labels, kind="stable")
        assert np.array_equal(by_folders.images, images[grouped])
        assert np.array_equal(by_folders.labels, labels[grouped])
        assert by_folders.classes == tuple(names)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_pickles_of_every_protocol_python_2_and_3_could_write_are_read(protocol: int, tmp_path: Path) -> None:
    train, test = tiny(10, 10), tiny(10, 10)
    files = cifar_files("cifar-10-python", train, test, protocol)
    source = write_cifar(tmp_path, "cifar-10-batches-py", files)
    assert np.array_equal(formats.cifar(source, "cifar10", "train").images, train[0])


def test_cifar_10_without_its_list_of_names_has_the_known_names(tmp_path: Path) -> None:
    files = cifar_files("cifar-10-binary", tiny(10, 10), tiny(10, 10))
    del files["batches.meta.txt"]
    source = write_cifar(tmp_path, "cifar-10-batches-bin", files)
    assert formats.cifar(source, "cifar10", "test").classes == formats.CIFAR10_CLASSES


def test_svhn_is_read_with_ten_as_the_digit_zero(tmp_path: Path) -> None:
    images, labels = tiny(20, 10)
    stored = {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]}
    savemat(tmp_path / "train_32x32.mat", stored)
    got = formats.svhn(tmp_path / "train_32x32.mat")
    assert np.array_equal(got.images, images)
    assert np.array_equal(got.labels, labels)
    assert got.classes == tuple("0123456789")


def test_digits_fill_the_range_of_a_byte() -> None:
    images, labels, classes = formats.digits()
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    assert (images.min(), images.max(), len(np.unique(images))) == (0, 255, 17)
    assert len(classes) == labels.max() + 1 == 10


def test_shards_are_read_one_after_the_other(tmp_path: Path) -> None:
    images, labels = tiny(20, 4, size=8)
    for n, rows in enumerate((slice(0, 9), slice(9, 20))):
        write_parquet(tmp_path / f"train-{n:05d}-of-00002.parquet", images[rows], labels[rows])
    shards = formats.parquet_splits(tmp_path)["train"]
    got = formats.parquet(shards)
    assert np.array_equal(got.images, images)
    assert np.array_equal(got.labels, labels)


@pytest.mark.parametrize("below", ["", "data", "plain_text"])
def test_shards_are_found_in_a_folder_and_one_below(below: str, tmp_path: Path) -> None:
    images, labels = tiny(4, 2, size=8)
    for name in ("train-00000-of-00001", "test", "validation-00000-of-00001", "training_notes"):
        write_parquet(tmp_path / below / f"{name}.parquet", images, labels)
    found = formats.parquet_splits(tmp_path)
    assert {split: len(files) for split, files in found.items()} == {"train": 1, "test": 1, "val": 1}


def test_a_plain_binary_column_and_labels_in_words_are_read(tmp_path: Path) -> None:
    images, labels = tiny(6, 3, size=8)
    words = np.array(["cat", "ant", "bee"])[labels]
    table = pa.table({"picture": [png(image) for image in images], "kind": words, "width": [8] * 6})
    pq.write_table(table.select(["picture", "kind"]), tmp_path / "train.parquet")
    got = formats.parquet([tmp_path / "train.parquet"])
    assert got.classes == ("ant", "bee", "cat")
    assert [got.classes[n] for n in got.labels] == words.tolist()
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(
        ValueError, match=r"cannot tell the label column \(whole numbers or words\) among picture, kind, width"
    ):
        formats.parquet([tmp_path / "train.parquet"])


def test_fine_labels_are_taken_before_coarse_ones(tmp_path: Path) -> None:
    images, labels = tiny(6, 3, size=8)
    columns = {"img": [png(image) for image in images], "coarse_label": [0] * 6, "fine_label": labels}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    assert np.array_equal(formats.parquet([tmp_path / "train.parquet"]).labels, labels)


# -------------------------------------------------------------------------------- every kind of image


def save_all(folder: Path, **images: Image.Image) -> None:
    for name, image in images.items():
        (folder / "a").mkdir(parents=True, exist_ok=True)
        image.save(folder / "a" / f"{name}.{'tif' if image.mode in ('CMYK', 'F') else 'png'}")


def test_grey_images_stay_grey_until_one_has_colour(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    save_all(tmp_path, a=grey, b=grey.convert("LA"), c=grey.convert("1"))
    assert formats.class_folders(tmp_path).images.shape == (3, 4, 4, 1)
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    save_all(tmp_path, d=red, e=grey)
    images = formats.class_folders(tmp_path).images
    assert images.shape == (5, 4, 4, 3)
    assert np.array_equal(images[0], np.asarray(grey.convert("RGB")))
    assert np.array_equal(images[3], np.asarray(red))
    assert np.array_equal(images[4], np.asarray(grey.convert("RGB")))


def test_palette_transparent_and_cmyk_images_become_colour(tmp_path: Path) -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    save_all(tmp_path, a=red.convert("P"), b=rgba, c=red.convert("CMYK"))
    assert (formats.class_folders(tmp_path).images == np.array([255, 0, 0])).all()


def test_images_of_16_bits_keep_their_upper_8(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    save_all(tmp_path, a=Image.fromarray(values))
    assert np.array_equal(formats.class_folders(tmp_path).images[0, ..., 0], values >> 8)


def test_images_of_floats_are_refused(tmp_path: Path) -> None:
    save_all(tmp_path, a=Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(RuntimeError, match=r"a\.tif: not a readable image \(mode 'F' has no known range"):
        formats.class_folders(tmp_path)


def test_a_rotated_photograph_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png", exif=exif)
    image = formats.class_folders(tmp_path).images[0]
    assert np.array_equal(image, np.rot90(pixels, -1))


def test_hidden_and_other_files_are_ignored_and_the_rest_sorted(tmp_path: Path) -> None:
    images, _ = tiny(3, 2, size=8)
    for path, image in zip(["b/2.png", "b/1.PNG", "a/deep/9.png"], images, strict=True):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(png(image))
    (tmp_path / ".hidden").mkdir()
    for path in ("b/.1.png", ".hidden/1.png", "a/Thumbs.db", "readme.md"):
        (tmp_path / path).write_bytes(b"nothing")
    got = formats.class_folders(tmp_path)
    assert got.classes == ("a", "b")
    assert np.array_equal(got.images, images[[2, 1, 0]])
    assert got.labels.tolist() == [0, 1, 1]


def test_unequal_sizes_are_refused_with_both_files_and_the_mend(tmp_path: Path) -> None:
    save_all(tmp_path, a=Image.new("RGB", (8, 4)), b=Image.new("RGB", (6, 4)))
    with pytest.raises(ValueError, match=r"a\.png is 8x4 and .*b\.png is 6x4: give --image-size 32"):
        formats.class_folders(tmp_path)


def test_image_size_resizes_the_shorter_side_and_cuts_out_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 12:28] = 200  # the middle square
    save_all(tmp_path, a=Image.fromarray(pixels), b=Image.new("RGB", (8, 30), (200, 200, 200)))
    images = formats.class_folders(tmp_path, image_size=8).images
    assert images.shape == (2, 8, 8, 3)
    assert (images[:, 1:-1, 1:-1] == 200).all()  # what touches the cut is smoothed across it
    whole = np.repeat(np.repeat(tiny(2, 2, size=4)[0], 8, 1), 8, 2)
    assert np.abs(formats.resize(whole, 16).astype(int) - whole[:, ::2, ::2]).mean() < 15
    assert formats.resize(whole[..., :1], 16).shape == (2, 16, 16, 1)


# --------------------------------------------------------------------------------------------- damage


class Payload:
    """Unpickled freely, this makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_does_not_run(protocol: int, tmp_path: Path) -> None:
    files = cifar_files("cifar-10-python", tiny(10, 10), tiny(10, 10))
    files["data_batch_3"] = pickle.dumps({"data": Payload(tmp_path / "ran"), "labels": [0]}, protocol)
    source = write_cifar(tmp_path, "cifar-10-python.tar.gz", files)
    with pytest.raises(RuntimeError, match=r"data_batch_3: not a readable CIFAR pickle .*asks for \w+\.mkdir"):
        formats.cifar(source, "cifar10", "train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("module", ["builtins eval", "numpy load", "numpy.core.multiarray fromfile", "os system"])
def test_no_other_name_can_be_unpickled(module: str, tmp_path: Path) -> None:
    owner, name = module.split()
    files = cifar_files("cifar-10-python", tiny(10, 10), tiny(10, 10))
    files["test_batch"] = f"c{owner}\n{name}\n(S'1'\ntR.".encode()
    source = write_cifar(tmp_path, "cifar-10-batches-py", files)
    with pytest.raises(RuntimeError, match="test_batch: not a readable CIFAR pickle"):
        formats.cifar(source, "cifar10", "test")


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    files = cifar_files("cifar-10-python", tiny(10, 10), tiny(10, 10))
    files["test_batch"] = pickle.dumps({"data": np.array([None] * 3072, object), "labels": [1]}, 2)
    source = write_cifar(tmp_path, "cifar-10-batches-py", files)
    with pytest.raises(RuntimeError, match="an array of O8 where CIFAR has u1"):
        formats.cifar(source, "cifar10", "test")


def test_nothing_of_an_archive_is_written_to_disk(tmp_path: Path) -> None:
    files = cifar_files("cifar-10-binary", tiny(10, 10), tiny(10, 10))
    inside = {f"../../{name}": content for name, content in files.items()}
    home = tmp_path / "deep" / "deeper"
    home.mkdir(parents=True)
    write_tar(home / "cifar-10-binary.tar.gz", inside | {"/tmp/../evil": b"x"})
    before = sorted(tmp_path.rglob("*"))
    assert len(formats.cifar(home / "cifar-10-binary.tar.gz", "cifar10", "train").labels) == 10
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("name", "source"), [each for each in SOURCES if each[1].endswith(".gz")])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.98])
def test_a_truncated_archive_is_named(name: str, source: str, keep: float, tmp_path: Path) -> None:
    count = 10 if name == "cifar10" else 100
    file = write_cifar(tmp_path, source, cifar_files(layout_of(source), tiny(count, count), tiny(count, count)))
    data = file.read_bytes()
    file.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(RuntimeError, match=source.replace(".", r"\.")):
        formats.cifar(file, name, "train")


@pytest.mark.parametrize("source", ["cifar-10-batches-py", "cifar-10-batches-bin"])
def test_a_truncated_batch_is_named(source: str, tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, source, cifar_files(layout_of(source), tiny(20, 10), tiny(10, 10)))
    batch = next(folder.glob("data_batch_4*"))
    batch.write_bytes(batch.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="data_batch_4"):
        formats.cifar(folder, "cifar10", "train")
    batch.unlink()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_4"):
        formats.cifar(folder, "cifar10", "train")


def test_a_label_out_of_range_is_named_with_its_row(tmp_path: Path) -> None:
    images, labels = tiny(10, 10)
    labels[3] = 10
    files = cifar_files("cifar-10-binary", tiny(10, 10), (images, labels))
    source = write_cifar(tmp_path, "cifar-10-batches-bin", files)
    with pytest.raises(RuntimeError, match=r"label 10 in row 3 must be a whole number in 0\.\.9"):
        formats.cifar(source, "cifar10", "test")


@pytest.mark.parametrize("bad", [-1, 2, 0.5, float("nan"), float("inf"), None])
def test_a_label_that_is_none_is_named_with_its_row(bad: Any, tmp_path: Path) -> None:
    images, _ = tiny(4, 2, size=8)
    write_parquet(tmp_path / "train.parquet", images, [0, 1, bad, 0], ["a", "b"])
    with pytest.raises(RuntimeError, match=rf"train\.parquet: label {bad}(\.0)? in row 2"):
        formats.parquet([tmp_path / "train.parquet"])


def test_a_word_missing_among_the_labels_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", tiny(3, 2, size=8)[0], ["a", "b", None])
    with pytest.raises(RuntimeError, match="label None in row 2 must be a text"):
        formats.parquet([tmp_path / "train.parquet"])


def test_svhn_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "test_32x32.mat"
    images, labels = tiny(4, 3)
    savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})
    with pytest.raises(RuntimeError, match=r"test_32x32\.mat: label 0 in row \d must be a whole number in 1\.\.10"):
        formats.svhn(file)
    savemat(file, {"X": images, "y": labels[:, None] + 1})
    with pytest.raises(RuntimeError, match=r"test_32x32\.mat: X must be uint8 \[32, 32, 3, 4\]"):
        formats.svhn(file)
    savemat(file, {"X": images})
    with pytest.raises(RuntimeError, match=r"test_32x32\.mat: not a readable MATLAB file"):
        formats.svhn(file)
    savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None] + 1})
    data = file.read_bytes()
    for keep in (0, 3, 130, 1000, len(data) - 5):
        file.write_bytes(data[:keep])
        with pytest.raises(RuntimeError, match=r"test_32x32\.mat: not a readable MATLAB file"):
            formats.svhn(file)


def test_a_truncated_or_false_image_is_named(tmp_path: Path) -> None:
    images, _ = tiny(2, 2, size=16)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png(images[0]))
    for damage in (b"", b"no image", png(images[1])[:200], png(images[1])[:20]):
        (tmp_path / "a" / "2.png").write_bytes(damage)
        with pytest.raises(RuntimeError, match=r"a/2\.png: not a readable image"):
            formats.class_folders(tmp_path)


def test_an_image_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    save_all(tmp_path, a=Image.new("L", (11, 11)))  # over the limit, where PIL alone only warns
    with pytest.raises(RuntimeError, match=r"a\.png: not a readable image .*bomb"):
        formats.class_folders(tmp_path)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    images, labels = tiny(8, 2, size=8)
    write_parquet(file, [png(images[0]), png(images[1])[:60]], labels[:2])
    with pytest.raises(RuntimeError, match=r"train\.parquet row 1: not a readable image"):
        formats.parquet([file])
    write_parquet(file, [png(images[0]), None], labels[:2])
    with pytest.raises(RuntimeError, match=r"train\.parquet row 1: holds no image in column 'img'"):
        formats.parquet([file])
    write_parquet(file, [], np.array([], np.int64))
    with pytest.raises(RuntimeError, match=r"train\.parquet: holds no images"):
        formats.parquet([file])
    write_parquet(file, images, labels)
    data = file.read_bytes()
    for damage in (b"", data[:100], data[:-10], data[:100] + bytes(len(data) - 800) + data[-700:]):
        file.write_bytes(damage)
        with pytest.raises(RuntimeError, match=r"train\.parquet"):
            formats.parquet([file])


def test_a_missing_shard_and_several_data_sets_are_refused(tmp_path: Path) -> None:
    images, labels = tiny(2, 2, size=8)
    write_parquet(tmp_path / "a" / "train-00000-of-00002.parquet", images, labels)
    with pytest.raises(FileNotFoundError, match="only some of the numbered shards: train-00000-of-00002"):
        formats.parquet_splits(tmp_path)
    write_parquet(tmp_path / "b" / "train.parquet", images, labels)
    with pytest.raises(ValueError, match="holds several data sets, give one of them"):
        formats.parquet_splits(tmp_path)


def test_columns_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"cannot tell the image column .* among text, label; name it 'image'"):
        formats.parquet([tmp_path / "train.parquet"])


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no images in folders named by class"):
        formats.class_folders(tmp_path)
