"""What the tests of the data sets share: small data, writers of every form it may come in, what splits hold."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from auxnet.data import DataSet, Split, load_data
from auxnet.reading import cifar
from auxnet.recipe import Recipe

CIFAR10 = list(cifar.CIFAR10_CLASSES)
CIFAR100 = [f"thing_{n:02d}" for n in range(100)]
COMMIT = "0123456789" * 4
SOURCES = [(name, source) for name, forms in cifar.FORMS.items() for source in forms]


def load(data: str, data_dir: str | Path | None = None, **fields: Any) -> DataSet:
    """The data set of a recipe with these fields."""
    return load_data(Recipe(data=data, data_dir=None if data_dir is None else str(data_dir), **fields))


def tiny(n: int, classes: int, seed: int = 0, size: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Random colour images and labels in which every class occurs equally often."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return images, random.permutation(np.arange(n) % classes)


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def save_all(folder: Path, **images: Image.Image) -> None:
    """Images of any mode, each under its name, in the class folder `a`."""
    for name, image in images.items():
        (folder / "a").mkdir(parents=True, exist_ok=True)
        image.save(folder / "a" / f"{name}.{'tif' if image.mode in ('CMYK', 'F') else 'png'}")


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


def layout_of(source: str) -> str:
    hundred = "cifar-100-" if "100" in source else "cifar-10-"
    return hundred + ("python" if "py" in source else "binary")


def write_cifar(folder: Path, source: str, files: dict[str, bytes]) -> Path:
    """The files in the folder or the archive `source` of cifar.FORMS."""
    folder.mkdir(parents=True, exist_ok=True)
    if source.endswith(".tar.gz"):
        write_tar(folder / source, {f"inside/{name}": content for name, content in files.items()})
    else:
        (folder / source).mkdir()
        for name, content in files.items():
            (folder / source / name).write_bytes(content)
    return folder / source


def write_tar(file: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def folder_of(home: Path, n: int = 60, classes: str = "abc") -> Path:
    """Class folders of `n` small images in `home`/own."""
    write_folders(home / "own", *tiny(n, len(classes), size=8), list(classes))
    return home / "own"


def same(a: Split, b: Split) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def rows(*splits: Split) -> list[bytes]:
    """The images of splits, sorted: what they hold, whatever the order."""
    return sorted(image.numpy().tobytes() for split in splits for image in split.images)


def on_the_hub(folder: Path, repo: str, commit: str = COMMIT) -> Path:
    """A model as the hub's cache holds it, of a folder; the last commit is what its name stands for."""
    home = folder / "hub" / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    return home / "snapshots" / commit
