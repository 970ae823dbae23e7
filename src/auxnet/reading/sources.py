"""Where the files of a data set are: in a folder of the user's, or fetched from the Hugging Face hub.

Each split that is found is a `Part`, of the class that reads its form.
"""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from auxnet.errors import first_line, warn
from auxnet.fetching import on_hub
from auxnet.files import expanduser, whole_path
from auxnet.reading import cifar, svhn
from auxnet.reading.arrays import Arrays
from auxnet.reading.encoded import Files
from auxnet.reading.folders import FolderPart, folder_files, holds_images, loose, passed_over, split_homes, subfolders
from auxnet.reading.npz import NpzPart, npz_splits
from auxnet.reading.parquet import ShardsPart, only_shard, shards_of
from auxnet.reading.parts import ArraysPart, Part
from auxnet.words import first_few, nearest, plural

NAMES = ("digits", "cifar10", "cifar100", "svhn")
_HUB = {
    "cifar10": "uoft-cs/cifar10/plain_text",
    "cifar100": "uoft-cs/cifar100/cifar100",
    "svhn": "ufldl-stanford/svhn/cropped_digits",
}
_ADDRESS = r"([\w.-]+/[\w.-]+)/*(.*?)/*"  # owner/name[/config]


def absolute_source(name: str, data_dir: str | None) -> tuple[str, str | None]:
    """Name and data_dir by which the same data set is found from any folder, whatever AUXNET_DATA is then."""
    root = _root(data_dir)
    if name == "digits" or (on_hub(name) and not ((copy := _copy(name, root)) and copy.is_dir())):
        return name, data_dir
    whole = str(root.resolve()) if root else None
    found = None if name in NAMES or on_hub(name) else existing_path(name, data_dir)
    if found is None:
        return name, whole
    unasked = not data_dir and found == expanduser(name)  # it is found without AUXNET_DATA
    return str(whole_path(found)), None if unasked else whole


def find(name: str, data_dir: str | None, to_train: bool = True) -> dict[str, Part]:
    """The splits of the data set `name` on disk, fetched from the hub if need be.

    "train" is among them; of a folder or a file that is not `to_train` on, any split will do. Raises ValueError for a
    name that cannot be, FileNotFoundError for data that does not exist.
    """
    root, from_hub = _root(data_dir), on_hub(name)
    here = name not in NAMES and expanduser(name).exists()
    needed = data_dir or not (name == "digits" or from_hub or here)
    if root is not None and needed and not root.is_dir():
        what = "data_dir" if data_dir else "AUXNET_DATA"
        raise FileNotFoundError(f"{what} {root} is not a folder: give the one that holds the data")
    if from_hub:
        return _of_the_hub(name, root)
    if name == "digits":
        if Path(name).is_dir():
            warn("digits: the embedded set is taken; the folder here of that name is ./digits")
        return {"train": ArraysPart([], "digits", digits)}
    return _named_set(name, root) if name in NAMES else _path(name, root, to_train)


def digits() -> Arrays:
    """The 1797 handwritten digits that come with scikit-learn, [1797, 8, 8, 1]; 0..16 made 0..255.

    Read from scikit-learn's file, because to import scikit-learn takes longer than an epoch on them. Raises
    FileNotFoundError if it is not installed.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise FileNotFoundError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int64)  # 64 pixels and the class
    images = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return Arrays(images, rows[:, -1].copy(), tuple("0123456789"))


def _root(data_dir: str | Path | None) -> Path | None:
    """The folder in which data sets are looked for, if any: `data_dir`, or else AUXNET_DATA."""
    given = data_dir or os.environ.get("AUXNET_DATA")
    return expanduser(given) if given else None


def candidate_paths(name: str, data_dir: str | Path | None) -> list[Path]:
    """Where data of this name are looked for, if it is a path: in this folder, then in `data_dir` or AUXNET_DATA."""
    root = _root(data_dir)
    return [expanduser(name), *([root / name] if root else [])] if name.strip() else []


def existing_path(name: str, data_dir: str | Path | None) -> Path | None:
    """The first of the `candidate_paths` that exists; None if there is none."""
    return next((path for path in candidate_paths(name, data_dir) if path.exists()), None)


def source_id(name: str, data_dir: str | None) -> str:
    """Where a data set is, in the same words however it is named."""
    found = None if name in NAMES else existing_path(name, data_dir)
    return repr(absolute_source(name, data_dir) if found is None else str(whole_path(found)))


def _path(name: str, root: Path | None, to_train: bool) -> dict[str, Part]:
    """The splits of a folder or an .npz file, in this folder or below `root`."""
    for place in candidate_paths(name, root):
        if place.is_dir():
            return _in_folder(place, to_train)
        if place.is_fifo():  # reading it would wait for a writer
            raise ValueError(f"data {name!r} is a pipe: give a folder or an .npz file")
        if place.suffix == ".npz" and place.exists():
            return {split: NpzPart(place, split, arrays) for split, arrays in npz_splits(place, to_train).items()}
        if place.exists():
            raise ValueError(
                f"data {name!r} is a file, but no .npz: give the folder that holds it, or one of {', '.join(NAMES)}"
            )
    raise _not_found(name, root)


def _not_found(name: str, root: Path | None) -> Exception:
    """The error for a name that matches no data set and no path."""
    places = " or ".join(map(str, [Path.cwd(), *([root] if root else [])]))
    where = (
        "" if expanduser(name).is_absolute() else f" in {places} (data_dir, --data-dir, names the folder that holds it)"
    )
    if os.sep in name or name.startswith((".", "~")):
        return FileNotFoundError(f"data {name!r}: there is no such folder or file{where}")
    beside = [each.name for place in (Path(), root) if place and place.is_dir() for each in subfolders(place)]
    hint = (
        nearest(name, [*NAMES, *beside])
        or f"{where}: give one of {', '.join(NAMES)}, a folder, an .npz file, or hf:owner/name"
    )
    return ValueError(f"data {name!r} is neither a known data set nor a folder{hint}")


def _named_set(name: str, root: Path | None) -> dict[str, Part]:
    """The splits of a named set, below `root` or else from the hub."""
    folders = [root / name, root] if root else []
    found = (_named(name, folder, folder != root) for folder in folders)
    parts = next(filter(None, found), {})
    try:
        parts = parts or _hub(name, _HUB[name])
    except FileNotFoundError as error:
        looked = " and ".join(map(str, folders)) or "no folder (data_dir and AUXNET_DATA are not set)"
        forms = ", ".join([*cifar.FORMS.get(name, ["train_32x32.mat"]), "train-*.parquet"])
        raise FileNotFoundError(
            f"{name} was not found: looked in {looked}, then {error}; give a data_dir that holds one of {forms}"
        ) from error
    if name == "svhn" and not any("extra" in Path(file).name for file in parts["train"].files):
        warn("svhn: there is no extra_32x32.mat: the training images are train_32x32.mat's alone")
    return parts


def _of_the_hub(name: str, root: Path | None) -> dict[str, Part]:
    """The splits of hf:owner/name[/config], below `root` or else from the hub."""
    copy = _copy(name, root)
    if copy is not None and copy.is_dir():
        return _in_folder(copy)
    try:
        return _hub(name, name.removeprefix("hf:"))
    except FileNotFoundError as error:
        looked = f"looked in {copy}, then " if copy is not None else ""
        repo = "/".join(name.removeprefix("hf:").split("/")[:2])
        fetch = f"hf download --repo-type dataset {repo} --local-dir DIR"
        mend = f"where the hub can be reached, `{fetch}` fetches it, and --data DIR takes it"
        raise FileNotFoundError(f"{name} was not found: {looked}{error}; {mend}") from error


def _copy(name: str, root: Path | None) -> Path | None:
    """Where a copy of hf:owner/name[/config] would be: root/owner/name[/config], for root/name may be other data."""
    if root is None or not (match := re.fullmatch(f"hf:{_ADDRESS}", name)):
        return None
    return root / match[1] / match[2]


def _named(name: str, folder: Path, below: bool) -> dict[str, Part]:
    """The splits of a named set in any of its own forms in `folder`; {} if there is none.

    Only a folder of its own is searched one folder `below`: elsewhere that may be another data set.
    """
    if not folder.is_dir():
        return {}
    for home, deeper in ((folder / _HUB[name].split("/")[2], False), (folder, below)):
        if parts := _complete(folder, _parquet_parts(home, deeper, extra=name == "svhn")):
            return parts
    for form in cifar.FORMS.get(name, ()):
        source = folder / form
        if source.exists():
            files = [path for path in source.iterdir() if path.is_file()] if source.is_dir() else [source]
            return {
                part: ArraysPart(files, f"{name} {part}", partial(cifar.read, source, name, part))
                for part in ("train", "test")
            }
    parts = {}
    for part, names in {"train": ("train", "extra"), "test": ("test",)}.items() if name == "svhn" else ():
        mats = [mat for each in names if (mat := folder / f"{each}_32x32.mat").is_file()]
        if mats and mats[0].name.startswith(part):  # extra_32x32.mat by itself is not the training set
            parts[part] = ArraysPart(mats, "mat", partial(svhn.read, *mats))
    return _complete(folder, parts)


def is_found_in(name: str, root: Path) -> bool:
    """Whether a named set is found in a folder, in any of its own forms."""
    return name == "digits" or any(_named(name, folder, folder != root) for folder in (root / name, root))


def _complete(folder: Path, parts: dict[str, Part]) -> dict[str, Part]:
    """The parts of a named set, which must bring its own test set."""
    missing = {"train", "test"} - set(parts)
    if parts and missing:
        raise FileNotFoundError(f"{folder} holds {', '.join(sorted(parts))} but lacks {', '.join(sorted(missing))}")
    return parts


def _in_folder(folder: Path, to_train: bool = True) -> dict[str, Part]:
    """The splits of a folder of parquet shards or of class folders, with a warning if it passes over other files."""
    whole = folder.resolve()  # so that images have one name, which the cache keeps, from wherever they are read
    parts = _parquet_parts(whole)
    if not parts and (only := only_shard(whole)):
        parts = {"train": ShardsPart(only)}
    shards_alone = not subfolders(folder) and any(folder.glob("*.parquet"))
    if "train" not in parts and (shards_alone if not parts else to_train):
        wanted = "train" if to_train else "test"
        mend = f"name the shards to take {wanted}-1.parquet, {wanted}-2.parquet, ..."
        raise FileNotFoundError(f"{folder} has parquet shards, but none named {wanted}-*.parquet: {mend}")
    if parts:
        if len(beside := [f"{home.name}/" for home in subfolders(folder) if holds_images(home)]) > 1:
            warn(f"{folder}: passed over the pictures in {first_few(beside)}: its parquet shards are the data")
        return parts
    homes = split_homes(whole, to_train)
    found = {split: folder_files(home) for split, home in homes.items()}
    if others := sum((files.others for files in found.values()), Counter[str]()):
        warn(f"{folder}: {passed_over(others)}")
    if count := sum(map(loose, {whole, *homes.values()})):
        warn(f"{folder}: passed over {plural(count, 'picture')} in no class folder: move what counts into one")
    if to_train:
        _check_none_empty(homes["train"], found["train"])
    return {split: FolderPart(files) for split, files in found.items()}


def _check_none_empty(home: Path, files: Files) -> None:
    """Raise ValueError for a class folder, among those to train on, without an image."""
    counts = np.bincount(files.labels, minlength=len(files.classes))
    if empty := [name for name, count in zip(files.classes, counts, strict=True) if not count]:
        but = " but links to nothing" if files.left_out else ""
        raise ValueError(f"{home / empty[0]} holds no image{but}: put some in, or remove the folder")


def _parquet_parts(folder: Path, below: bool = True, extra: bool = False) -> dict[str, Part]:
    """The splits that a folder holds as parquet shards; with `extra`, shards of that name are for training too."""
    shards = shards_of(folder, below)
    if (more := shards.pop("extra", None)) and extra and "train" in shards:
        shards["train"] = [*shards["train"], *more]
    used = {file for files in shards.values() for file in files}
    if others := sorted({other for file in used for other in file.parent.glob("*.parquet")} - used):
        names = first_few([other.name for other in others])
        warn(f"{others[0].parent}: passed over {names}: no shards of train, val or test")
    return {split: ShardsPart(files) for split, files in shards.items()}


def _hub(name: str, address: str) -> dict[str, Part]:
    """The parquet shards of "owner/name[/config]": as the hub has them, or else from the hub's own cache.

    The cache does not say what it lacks: it is used alone only if the hub does not answer, with a warning.
    """
    match = re.fullmatch(_ADDRESS, address)
    if not match:
        raise ValueError(f"data {name!r}: a data set on the hub is given as hf:owner/name")
    repo, config, reason = match[1], match[2], ""
    try:
        folders = _hub_folders(repo)  # first: it answers or fails within seconds
    except Exception as error:  # whatever the network throws
        folders, reason = [], first_line(error)
    if len(folders) > 1 and not config:
        choices = ", ".join(f"hf:{repo}/{each}" for each in folders)
        raise ValueError(f"{repo} holds several data sets, give one of them: {choices}")
    pattern = f"{config}/*.parquet" if config else "*.parquet"
    try:
        snapshot = _snapshot(repo, pattern, cached=bool(reason))
        parts = _parquet_parts(snapshot / config, extra=name == "svhn")
    except FileNotFoundError as error:  # or some of the shards only
        parts, reason = {}, reason or first_line(error)
    if "train" not in parts or not ("test" in parts or on_hub(name)):
        raise FileNotFoundError(f"{repo} could not be fetched from the hub: {reason or 'it has no train-*.parquet'}")
    if reason:
        held = ", ".join(sorted(parts))
        warn(f"{repo}: {held} as in the hub's cache, which may lack others: {reason}")
    return parts


def _snapshot(repo: str, pattern: str, cached: bool) -> Path:
    """The folder of a data set on the hub. Raises FileNotFoundError if it cannot be fetched."""
    from huggingface_hub import snapshot_download

    fetch = partial(snapshot_download, repo, repo_type="dataset", allow_patterns=pattern, etag_timeout=5)
    try:
        return Path(str(fetch(local_files_only=cached)))
    except Exception as error:  # whatever the network throws
        raise FileNotFoundError(first_line(error)) from error


def _hub_folders(repo: str) -> list[str]:
    """The folders of a data set on the hub that hold parquet files."""
    from huggingface_hub import HfApi

    files = [file.rfilename for file in HfApi().dataset_info(repo, timeout=5).siblings or ()]
    return sorted({file.rpartition("/")[0] for file in files if file.endswith(".parquet")})
