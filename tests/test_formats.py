"""Laws of the readers: what was written is read, whatever the form; damage is named."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat
from sklearn.datasets import load_digits

from auxnet.reading import folders, parquet, sources, svhn
from writers import png, tiny, write_parquet


def test_svhn_is_read_with_ten_as_the_digit_zero(tmp_path: Path) -> None:
    images, labels = tiny(20, 10)
    stored = {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]}
    savemat(tmp_path / "train_32x32.mat", stored)
    got = svhn.read(tmp_path / "train_32x32.mat")
    assert np.array_equal(got.images, images)
    assert np.array_equal(got.labels, labels)
    assert got.classes == tuple("0123456789")


def test_digits_fill_the_range_of_a_byte() -> None:
    images, labels, classes, *_ = sources.digits()
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    assert (images.min(), images.max(), len(np.unique(images))) == (0, 255, 17)
    assert len(classes) == labels.max() + 1 == 10


def test_digits_are_those_that_scikit_learn_gives() -> None:
    images, labels, *_ = sources.digits()
    theirs = load_digits()
    assert np.array_equal(images[..., 0], np.rint(theirs.images * 255 / 16))
    assert np.array_equal(labels, theirs.target)


def test_shards_are_read_one_after_the_other(tmp_path: Path) -> None:
    images, labels = tiny(20, 4, size=8)
    for n, rows in enumerate((slice(0, 9), slice(9, 20))):
        write_parquet(tmp_path / f"train-{n:05d}-of-00002.parquet", images[rows], labels[rows])
    shards = parquet.shards_of(tmp_path)["train"]
    got = parquet.ShardsPart(shards).read_uncached()
    assert np.array_equal(got.images, images)
    assert np.array_equal(got.labels, labels)


@pytest.mark.parametrize("below", ["", "data", "plain_text"])
def test_shards_are_found_in_a_folder_and_one_below(below: str, tmp_path: Path) -> None:
    images, labels = tiny(4, 2, size=8)
    for name in ("train-00000-of-00001", "test", "validation-00000-of-00001", "training_notes", "testid", "trainid-2"):
        write_parquet(tmp_path / below / f"{name}.parquet", images, labels)
    found = parquet.shards_of(tmp_path)
    assert {split: len(files) for split, files in found.items()} == {"train": 1, "test": 1, "val": 1}


def test_a_plain_binary_column_and_labels_in_words_are_read(tmp_path: Path) -> None:
    images, labels = tiny(6, 3, size=8)
    words = np.array(["cat", "ant", "bee"])[labels]
    table = pa.table({"picture": [png(image) for image in images], "kind": words, "width": [8] * 6})
    pq.write_table(table.select(["picture", "kind"]), tmp_path / "train.parquet")
    got = parquet.ShardsPart([tmp_path / "train.parquet"]).read_uncached()
    assert got.classes == ("ant", "bee", "cat")
    assert [got.classes[n] for n in got.labels] == words.tolist()
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(
        ValueError, match=r"cannot tell the label column \(whole numbers or words\) among picture, kind, width"
    ):
        parquet.ShardsPart([tmp_path / "train.parquet"]).read_uncached()


@pytest.mark.parametrize(("labels", "kind"), [([[1]] * 6, "list<.*int64>"), ([Decimal(1)] * 6, r"decimal128\(1, 0\)")])
def test_a_label_column_of_another_type_is_told_so(labels: list[Any], kind: str, tmp_path: Path) -> None:
    cells = [png(image) for image in tiny(6, 3, size=8)[0]]
    pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=f"the label column, label, must be whole numbers or words, is {kind}"):
        parquet.ShardsPart([tmp_path / "train.parquet"]).read_uncached()


def test_fine_labels_are_taken_before_coarse_ones(tmp_path: Path) -> None:
    images, labels = tiny(6, 3, size=8)
    columns = {"img": [png(image) for image in images], "coarse_label": [0] * 6, "fine_label": labels}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    assert np.array_equal(parquet.ShardsPart([tmp_path / "train.parquet"]).read_uncached().labels, labels)


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("bad", [-1, 2, 0.5, float("nan"), float("inf"), None])
def test_a_label_that_is_none_is_named_with_its_row(bad: Any, tmp_path: Path) -> None:
    images, _ = tiny(4, 2, size=8)
    write_parquet(tmp_path / "train.parquet", images, [0, 1, bad, 0], ["a", "b"])
    with pytest.raises(RuntimeError, match=rf"train\.parquet: label {bad}(\.0)? in row 2"):
        parquet.ShardsPart([tmp_path / "train.parquet"]).read_uncached()


def test_a_word_missing_among_the_labels_is_named(tmp_path: Path) -> None:
    for labels in (["a", "b", None], [None, "a", "b"]):
        write_parquet(tmp_path / "train.parquet", tiny(3, 2, size=8)[0], labels)
        says = f"label None in row {labels.index(None)} must be a text, as the others are: leave out images without"
        with pytest.raises(RuntimeError, match=says):
            parquet.ShardsPart([tmp_path / "train.parquet"]).read_uncached()


def test_labels_of_two_classes_may_be_truth_values(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", tiny(3, 2, size=8)[0], [True, False, True])
    got = parquet.ShardsPart([tmp_path / "train.parquet"]).read_uncached()
    assert (got.labels.tolist(), got.classes) == ([1, 0, 1], ("0", "1"))
    columns = {"image": [png(image) for image in tiny(2, 2, size=8)[0]], "species": ["cat", "dog"]}
    pq.write_table(pa.table({**columns, "flipped": [True, False]}), tmp_path / "train.parquet")
    assert parquet.ShardsPart([tmp_path / "train.parquet"]).read_uncached().classes == ("cat", "dog")


def test_svhn_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "test_32x32.mat"
    images, labels = tiny(4, 3)
    savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})
    with pytest.raises(RuntimeError, match=r"test_32x32\.mat: label 0 in row \d must be a whole number in 1\.\.10"):
        svhn.read(file)
    savemat(file, {"X": images, "y": labels[:, None] + 1})
    with pytest.raises(RuntimeError, match=r"test_32x32\.mat: X must be uint8 \[32, 32, 3, 4\]"):
        svhn.read(file)
    savemat(file, {"X": images})
    with pytest.raises(RuntimeError, match=r"test_32x32\.mat: not a readable MATLAB file"):
        svhn.read(file)
    savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None] + 1})
    data = file.read_bytes()
    for keep in (0, 3, 130, 1000, len(data) - 5):
        file.write_bytes(data[:keep])
        with pytest.raises(RuntimeError, match=r"test_32x32\.mat: not a readable MATLAB file"):
            svhn.read(file)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    images, labels = tiny(8, 2, size=8)
    write_parquet(file, [png(images[0]), png(images[1])[:60], None, png(images[3])], labels[:4])
    got = parquet.ShardsPart([file]).read_uncached()
    assert np.array_equal(got.images, images[[0, 3]])
    assert got.labels.tolist() == labels[[0, 3]].tolist()
    assert [each.partition(" (")[0] for each in got.left_out] == [
        f"{file} row 1: not a readable image",
        f"{file} row 2: holds no image",
    ]
    for table in (pa.table({"image": pa.array([], pa.float64())}), None):  # as pandas writes a column of nothing
        write_parquet(file, [], np.array([], np.int64))
        if table is not None:
            pq.write_table(table, file)
        with pytest.raises(RuntimeError, match=r"train\.parquet: holds no images"):
            parquet.ShardsPart([file]).read_uncached()
    write_parquet(file, images, labels)
    data = file.read_bytes()
    for damage in (b"", data[:100], data[:-10], data[:100] + bytes(len(data) - 800) + data[-700:]):
        file.write_bytes(damage)
        with pytest.raises(RuntimeError, match=r"train\.parquet"):
            parquet.ShardsPart([file]).read_uncached()


def test_a_missing_shard_and_several_data_sets_are_refused(tmp_path: Path) -> None:
    images, labels = tiny(2, 2, size=8)
    write_parquet(tmp_path / "a" / "train-00000-of-00002.parquet", images, labels)
    with pytest.raises(FileNotFoundError, match="only some of the numbered shards: train-00000-of-00002"):
        parquet.shards_of(tmp_path)
    write_parquet(tmp_path / "b" / "train.parquet", images, labels)
    with pytest.raises(ValueError, match="holds several data sets, give one of them"):
        parquet.shards_of(tmp_path)


def test_columns_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"cannot tell the image column .* among text, label; name it 'image'"):
        parquet.ShardsPart([tmp_path / "train.parquet"]).read_uncached()


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no images in folders named by class"):
        folders.FolderPart(folders.folder_files(tmp_path)).read_uncached()
    (tmp_path / "1.png").write_bytes(png(tiny(1, 1, size=8)[0][0]))
    with pytest.raises(
        FileNotFoundError, match=r"but pictures in .*/ itself: if that is a class, give the folder above"
    ):
        folders.folder_files(tmp_path)


def test_the_metadata_of_shards_are_read_once_however_often_a_split_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = tiny(6, 2, size=8)
    write_parquet(tmp_path / "train.parquet", images, labels)
    calls, real = [], parquet._table_of
    monkeypatch.setattr(parquet, "_table_of", lambda files: calls.append(files) or real(files))
    part = parquet.ShardsPart([tmp_path / "train.parquet"])
    assert (part.no_labels(), part.shapes(), part.decoded_bytes(None)) == (False, 6 * [(8, 8)], images.size)
    assert len(part.read_uncached().labels) == 6
    assert len(calls) == 1
