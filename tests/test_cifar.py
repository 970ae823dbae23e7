"""Laws of CIFAR's own forms: all agree byte for byte, damage is named, and nothing foreign runs."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auxnet.reading import cifar, folders, parquet
from writers import (
    CIFAR10,
    CIFAR100,
    SOURCES,
    cifar_files,
    layout_of,
    tiny,
    write_cifar,
    write_folders,
    write_parquet,
    write_tar,
)


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_all_forms_of_cifar_agree_byte_for_byte_with_parquet_and_folders(
    name: str, source: str, tmp_path: Path
) -> None:
    names = CIFAR10 if name == "cifar10" else CIFAR100
    train, test = tiny(len(names) * 2, len(names), seed=1), tiny(len(names), len(names), seed=2)
    archive = write_cifar(tmp_path, source, cifar_files(layout_of(source), train, test))
    for part, (images, labels) in (("train", train), ("test", test)):
        write_parquet(tmp_path / f"{part}.parquet", images, labels, names)
        by_archive = cifar.read(archive, name, part)
        by_parquet = parquet.ShardsPart([tmp_path / f"{part}.parquet"]).read_uncached()
        for got in (by_archive, by_parquet):
            assert got.images.dtype == np.uint8
            assert got.labels.dtype == np.int64
            assert np.array_equal(got.images, images)
            assert np.array_equal(got.labels, labels)
            assert got.classes == tuple(names)
        if name == "cifar100":  # a hundred folders take long
            continue
        write_folders(tmp_path / part, images, labels, names)
        by_folders = folders.FolderPart(folders.folder_files(tmp_path / part)).read_uncached()
        grouped = np.argsort(labels, kind="stable")
        assert np.array_equal(by_folders.images, images[grouped])
        assert np.array_equal(by_folders.labels, labels[grouped])
        assert by_folders.classes == tuple(names)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_pickles_of_every_protocol_python_2_and_3_could_write_are_read(protocol: int, tmp_path: Path) -> None:
    train, test = tiny(10, 10), tiny(10, 10)
    files = cifar_files("cifar-10-python", train, test, protocol)
    source = write_cifar(tmp_path, "cifar-10-batches-py", files)
    assert np.array_equal(cifar.read(source, "cifar10", "train").images, train[0])


def test_cifar_10_without_its_list_of_names_has_the_known_names(tmp_path: Path) -> None:
    files = cifar_files("cifar-10-binary", tiny(10, 10), tiny(10, 10))
    del files["batches.meta.txt"]
    source = write_cifar(tmp_path, "cifar-10-batches-bin", files)
    assert cifar.read(source, "cifar10", "test").classes == cifar.CIFAR10_CLASSES


# ---------------------------------------------------------------------------------------------------- what is foreign


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
        cifar.read(source, "cifar10", "train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("module", ["builtins eval", "numpy load", "numpy.core.multiarray fromfile", "os system"])
def test_no_other_name_can_be_unpickled(module: str, tmp_path: Path) -> None:
    owner, name = module.split()
    files = cifar_files("cifar-10-python", tiny(10, 10), tiny(10, 10))
    files["test_batch"] = f"c{owner}\n{name}\n(S'1'\ntR.".encode()
    source = write_cifar(tmp_path, "cifar-10-batches-py", files)
    with pytest.raises(RuntimeError, match="test_batch: not a readable CIFAR pickle"):
        cifar.read(source, "cifar10", "test")


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    files = cifar_files("cifar-10-python", tiny(10, 10), tiny(10, 10))
    files["test_batch"] = pickle.dumps({"data": np.array([None] * 3072, object), "labels": [1]}, 2)
    source = write_cifar(tmp_path, "cifar-10-batches-py", files)
    with pytest.raises(RuntimeError, match="an array of O8 where CIFAR has u1"):
        cifar.read(source, "cifar10", "test")


def test_nothing_of_an_archive_is_written_to_disk(tmp_path: Path) -> None:
    files = cifar_files("cifar-10-binary", tiny(10, 10), tiny(10, 10))
    inside = {f"../../{name}": content for name, content in files.items()}
    home = tmp_path / "deep" / "deeper"
    home.mkdir(parents=True)
    write_tar(home / "cifar-10-binary.tar.gz", inside | {"/tmp/../evil": b"x"})
    before = sorted(tmp_path.rglob("*"))
    assert len(cifar.read(home / "cifar-10-binary.tar.gz", "cifar10", "train").labels) == 10
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(("name", "source"), [each for each in SOURCES if each[1].endswith(".gz")])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.98])
def test_a_truncated_archive_is_named(name: str, source: str, keep: float, tmp_path: Path) -> None:
    count = 10 if name == "cifar10" else 100
    file = write_cifar(tmp_path, source, cifar_files(layout_of(source), tiny(count, count), tiny(count, count)))
    data = file.read_bytes()
    file.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(RuntimeError, match=source.replace(".", r"\.")):
        cifar.read(file, name, "train")


@pytest.mark.parametrize("source", ["cifar-10-batches-py", "cifar-10-batches-bin"])
def test_a_truncated_batch_is_named(source: str, tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, source, cifar_files(layout_of(source), tiny(20, 10), tiny(10, 10)))
    batch = next(folder.glob("data_batch_4*"))
    batch.write_bytes(batch.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="data_batch_4"):
        cifar.read(folder, "cifar10", "train")
    batch.unlink()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_4"):
        cifar.read(folder, "cifar10", "train")


def test_a_label_out_of_range_is_named_with_its_row(tmp_path: Path) -> None:
    images, labels = tiny(10, 10)
    labels[3] = 10
    files = cifar_files("cifar-10-binary", tiny(10, 10), (images, labels))
    source = write_cifar(tmp_path, "cifar-10-batches-bin", files)
    with pytest.raises(RuntimeError, match=r"label 10 in row 3 must be a whole number in 0\.\.9"):
        cifar.read(source, "cifar10", "test")
