"""The data of a run: where they are now, and whether they are the data that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from auxnet.data import DataSet, load_data
from auxnet.errors import warn
from auxnet.fetching import on_hub
from auxnet.files import expanduser, whole_path
from auxnet.lineage import in_doubt
from auxnet.loading import read_config
from auxnet.preprocessing import Preprocessing, read_preprocessing
from auxnet.reading.folders import subfolders
from auxnet.reading.parquet import only_shard, shards_of
from auxnet.reading.sources import NAMES, existing_path, is_found_in
from auxnet.recipe import Recipe, RunDir, name_of_data, read_recipe, read_run_recipe
from auxnet.resuming import newest_checkpoint
from auxnet.rundir import summary_of
from auxnet.words import first_few


def data_dirs(runs: Sequence[RunDir], data_dir: str | None) -> list[str | None]:
    """For each run `data_dir`, or None if there are several runs and the data of this run are not there.

    Raises as `read_run_recipe` does.
    """
    return [data_dir if not data_dir or len(runs) == 1 or _holds(data_dir, run) else None for run in runs]


def _holds(data_dir: str, run: RunDir) -> bool:
    """Whether the data of a run are in a folder."""
    recipe = read_run_recipe(run)
    try:
        there = with_data_in(data_dir, run, recipe)
        return there.data not in NAMES or is_found_in(there.data, expanduser(data_dir))
    except FileNotFoundError:
        return False


def recipe_to_resume(run: RunDir, recipe: Recipe) -> Recipe:
    """The recipe to resume a run with: data that are gone are looked for in its data_dir, under any name.

    Raises as `with_data_in` and `newest_checkpoint` do.
    """
    root, data = recipe.data_dir, recipe.data
    if root is None or data in NAMES or existing_path(data, root):
        return recipe
    classes = newest_checkpoint(Path(run)).get("standing", {}).get("classes")
    return with_data_in(root, run, recipe, classes) if classes else recipe


def with_data_in(data_dir: str | None, run: RunDir, recipe: Recipe, classes: Sequence[str] = ()) -> Recipe:
    """A run's recipe with its data taken from `data_dir` alone; unchanged if `data_dir` is None.

    The data are `data_dir` itself if it holds a folder for each of the run's classes; else the folder or file in it
    that has the data's name; else `data_dir` itself if it holds a train/ or parquet shards. Raises FileNotFoundError
    otherwise. `classes` are by default those of the run's config.json, which only a finished run has.
    """
    if not data_dir:
        return recipe
    root, there = expanduser(data_dir), replace(recipe, data_dir=data_dir)
    if recipe.data in NAMES or on_hub(recipe.data) or not root.is_dir():  # `find` says so
        return there
    classes = classes or read_config(Path(run)).get("classes")
    below = {each.name for each in subfolders(root)}
    itself = [root] if classes and below.issuperset(map(str, classes)) else []
    names = (Path(recipe.data), name_of_data(recipe), Path(Path(recipe.data).name))
    within = [root / name for name in names if not name.is_absolute()]
    splits = [root] if "train" in map(str.lower, below) or _holds_shards(root) else []
    for place in (*itself, *within, *splits):
        if place.exists():
            return replace(there, data=str(whole_path(place)))
    raise FileNotFoundError(
        f"{root} holds neither {Path(recipe.data).name} nor folders of all the classes of {run}, and "
        f"{_recorded(run, recipe)}, on which it was trained, is not looked at because data_dir is given: "
        "give the folder that holds the data, or none"
    )


def _holds_shards(folder: Path) -> bool:
    """Whether a folder holds parquet shards of one data set to train on."""
    try:
        return "train" in shards_of(folder) or bool(only_shard(folder))
    except FileNotFoundError:  # some are missing: whoever reads them says so
        return True
    except ValueError:
        return False


def found_data(run: RunDir, recipe: Recipe, seen: Preprocessing | None = None) -> DataSet:
    """`load_data`; if nothing is found, the error also says where the data were in training."""
    try:
        return load_data(recipe, seen)
    except FileNotFoundError as error:
        if (then := _recorded(run, recipe)) == recipe.data:
            raise
        raise FileNotFoundError(f"{error}; in training they were in {then}") from error


def _recorded(run: RunDir, recipe: Recipe) -> str:
    """Where a run's data were in training, by its recipe file (`recipe` may name another place by now)."""
    file = Path(run) / "recipe.yaml"
    return read_recipe(file).data if file.is_file() else recipe.data


def data_of(run: RunDir, recipe: Recipe, judging: bool = True) -> DataSet:
    """The data of a run's recipe, normalised as the run was trained.

    Raises as `load_data` does, and RuntimeError if the data have other classes, channels or sizes than in training.

    If the data are used for `judging`, also raises RuntimeError if other images than in training are drawn from them
    for validation and test, and FileNotFoundError if there is no summary, which says what was drawn. Warns if the data
    bring validation or test images that have changed since, or if the run may have been trained on some of these
    (`lineage.in_doubt`).
    """
    classes, seen = seen_in_training(run)
    dataset = found_data(run, recipe, seen)
    check_classes(dataset, classes, run)
    normalised = normalised_as(dataset, seen, run)
    if judging:
        about = data_section(run)
        check_drawn(dataset, about.get("drawn"), run, about.get("left_out", ()))
        if changed := changed_since(dataset, about):
            warn(f"{run}: {changed}")
        if doubt := in_doubt(about.get("may_be_seen_by", {})):
            warn(f"{run}: {doubt}")
    return normalised


def seen_in_training(run: RunDir) -> tuple[list[str], Preprocessing]:
    """The classes that a run knows, in their order, and what was done to its images. Raises RuntimeError if damaged."""
    config = read_config(Path(run))
    classes = config.get("classes")
    if not isinstance(classes, list):
        raise RuntimeError(f"{Path(run) / 'config.json'} is damaged: it names no classes")
    return classes, read_preprocessing(config, Path(run) / "config.json")


def data_section(run: RunDir) -> dict[str, Any]:
    """The section "data" of a run's summary.json: without it nobody knows which images the run was not trained on.

    Raises FileNotFoundError without a summary, RuntimeError if it is damaged.
    """
    with summary_of(run, "it does not say on what data") as summary:
        return dict(summary["data"])


def changed_since(dataset: DataSet, about: Mapping[str, Any]) -> str | None:
    """A sentence saying which validation or test images changed since training; None if none did.

    `about` is what the run's summary.json says under "data".
    """
    others = others_since(dataset.judged_on, about)
    return others and f"{others}, and errors are of those there are now"


def others_since(now: Mapping[str, Any], then: Mapping[str, Any]) -> str | None:
    """A sentence saying which images, validation or test, differ by two `DataSet.judged_on`; None if none do."""
    keys = {"validation": "val_sha256", "test": "test_sha256"}
    others = [name for name, key in keys.items() if then.get(key) and then[key] != now[key]]
    return f"its {' and '.join(others)} images have changed since it was trained" if others else None


def tested_alike(data: Iterable[Mapping[str, Any]]) -> bool:
    """Whether trainings were tested on the same images, by what their summary.json says under "data".

    True if this cannot be seen: if nothing is known (unfinished runs, ledgers in results/), or if the images were
    brought to different frames.
    """
    known: dict[tuple[Any, ...], set[str]] = {}
    for each in data:
        if each.get("test_sha256"):
            known.setdefault(_frame_of(each), set()).add(each["test_sha256"])
    return all(len(found) == 1 for found in known.values())


def validated_alike(data: Iterable[Mapping[str, Any]]) -> bool | None:
    """Whether trainings were validated on the same images; None if this cannot be seen.

    Compared are the pixels if all images were brought to one frame, else which pictures they are ("val_pictures", which
    a summary does not have).
    """
    data = [*data]
    pixels, pictures = ([each.get(key) for each in data] for key in ("val_sha256", "val_pictures"))
    if all(pixels) and (len({*pixels}) == 1 or len({*map(_frame_of, data)}) == 1):
        return len({*pixels}) == 1
    return len({*pictures}) == 1 if all(pictures) else None


def _frame_of(data: Mapping[str, Any]) -> tuple[Any, ...]:
    """What images were brought to, by a summary's section "data"; old ones without `fit` were cropped."""
    return (*data.get("resize", ()), data.get("fit", "crop"))


def check_drawn(dataset: DataSet, then: str | None, run: RunDir, left_out: Sequence[str] = ()) -> None:
    """Raise RuntimeError if other images are drawn now than in training: the run may have seen them.

    The error names images that were `left_out` in training and are not now.
    """
    if then is not None and then != dataset.drawn:
        still = [*map(_file_of, dataset.left_out)]
        whole = first_few([each.partition(": ")[0] for each in left_out if _file_of(each) not in still])
        named = f" (left out then, and not now: {whole})" if whole else ""
        raise RuntimeError(
            f"the data of {run} have changed since it was begun, or this version decodes them otherwise: other "
            "images are drawn for validation or test, and it may have been trained on those. Put the data back"
            f"{named}, judge it --on other labelled images, or train again (a test/ and a val/ folder of their own "
            "stay as they are while train/ grows)"
        )


def _file_of(left_out: str) -> tuple[str, ...]:
    """The class folder and the file of an image that was left out, wherever the data are."""
    return Path(left_out.partition(": ")[0]).parts[-2:]


def check_classes(dataset: DataSet, trained_on: Sequence[str], run: RunDir) -> None:
    """Raise RuntimeError unless the classes of a data set are those of a run's training, in the same order."""
    if list(dataset.classes) != list(trained_on):
        lack = [repr(name) for name in trained_on if name not in dataset.classes]
        have = [repr(name) for name in dataset.classes if name not in trained_on]
        verbs = {"lack": lack, "have" if lack else "also have": have}
        others = [f"{verb} {first_few(names)}" for verb, names in verbs.items() if names]
        raise RuntimeError(
            f"{run} was trained on other classes: its data {' and '.join(others) or 'hold them in another order'}; "
            "put the classes back as they were, name other data with --data-dir, or train again"
        )


def preprocessing_of(dataset: DataSet) -> Preprocessing:
    """What is done to the images of a data set before a net sees them."""
    return Preprocessing(dataset.image_size, dataset.resize, dataset.mean, dataset.std, dataset.fit)


def normalised_as(dataset: DataSet, seen: Preprocessing, run: RunDir) -> DataSet:
    """The data set with the mean and standard deviation that a run was begun with.

    (The data set's own are of the training images that there are now, which may be more.) Raises RuntimeError if its
    images have other channels, sizes or fit than the run's.
    """
    own = preprocessing_of(dataset)
    if _form(own) != _form(seen):
        by_now = f"its data are {_form(own)} by now"
        raise RuntimeError(f"{run} was trained on {_form(seen)}, and {by_now}: put the data back, or train again")
    return replace(dataset, mean=seen.mean, std=seen.std)


def _form(seen: Preprocessing) -> str:
    """Channels, sizes and fit of images, in words."""
    (H, W), (height, width) = seen.image_size, seen.resize
    within = "" if seen.image_size == seen.resize else f" out of {width}x{height}"
    how = "" if seen.fit == "crop" else f" (fit {seen.fit})"
    return f"{'grey' if seen.channels == 1 else 'coloured'} images of {W}x{H}{within} pixels{how}"
