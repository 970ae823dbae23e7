"""A finished run, opened: its net on a device, and the data that it was trained on, or others to judge it on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from auxnet.batches import Batches
from auxnet.build import evaluation_batches
from auxnet.data import DataSet, load_data, load_others, part_to_judge_on
from auxnet.documents import parsing
from auxnet.errors import warn
from auxnet.evaluation import OutputReport, measure
from auxnet.fetching import on_hub
from auxnet.files import expanduser
from auxnet.lineage import in_doubt
from auxnet.loading import load_net, read_config
from auxnet.machine import device_of, threads_set, to_device
from auxnet.network import AuxNet
from auxnet.preprocessing import Preprocessing
from auxnet.reading.folders import split_homes, subfolders
from auxnet.reading.parquet import shards_of
from auxnet.reading.sources import NAMES, lies_in, located, places
from auxnet.reading.splits import Labelled
from auxnet.recipe import Recipe, RunDir, read_recipe, read_run_recipe
from auxnet.resuming import newest_checkpoint
from auxnet.rundir import is_finished, summary_of
from auxnet.sections import Which
from auxnet.words import first_few, plural


@dataclass(frozen=True)
class Opened:
    """The net of a run, and its data."""

    recipe: Recipe
    net: AuxNet = field(repr=False)
    """in evaluation mode"""
    dataset: DataSet = field(repr=False)
    device: torch.device
    may_be_seen_by: Mapping[str, list[str]]
    """by split, "val" and "test", the earlier runs of its weights that may have been trained on its images"""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.dataset.channels, *self.dataset.image_size)

    def batches(self, split: str) -> Batches:
        """The images of "val" or "test", once through. Raises ValueError for any other split."""
        if split not in ("val", "test"):
            raise ValueError(f'split must be "val" or "test", got {split!r}')
        images: Labelled = getattr(self.dataset, split)
        return evaluation_batches(images, self.dataset, self.device)


def best_weights_in_words(run: RunDir) -> str:
    """Which a run's best weights are: the weights of epoch 12, the best by the mean validation error of the outputs.

    Raises RuntimeError if its summary.json is damaged; a run that is not finished has none yet.
    """
    if not is_finished(Path(run)):
        return "the weights of the best epoch so far, by the mean validation error of the outputs"
    with summary_of(run, "it does not say which epoch is the best") as summary:
        epochs = summary["epochs"]
        best, too = epochs["best"], ", and the last" if epochs["best"] == epochs["last"] else ""
    return f"the weights of epoch {best}, the best by the mean validation error of the outputs{too}"


@contextmanager
def opened(
    run: RunDir,
    *,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    which: Which = "last",
    on: str | os.PathLike[str] | None = None,
) -> Iterator[Opened]:
    """A run directory's weights, "last" or "best", and its data; the rest is as in training where it is not given.

    With `on` other labelled images are its test set, and its data, which may be gone, are not looked at: a folder, a
    file or a name as `Recipe.data` takes them, in `data_dir` if that is given. Within, its threads are set.

    Raises ValueError or FileNotFoundError for what cannot be asked for, RuntimeError if the run is damaged or its data
    have other classes by now.
    """
    for name, place in (("on", on), ("data_dir", data_dir)):
        if not isinstance(place, str | os.PathLike | None):
            raise TypeError(f"{name} must be a path, got {place!r}")
    recipe = read_run_recipe(run)
    recipe = replace(recipe, device=device or recipe.device, threads=recipe.threads if threads is None else threads)
    with threads_set(recipe.threads):
        net, where = load_net(run, which), device_of(recipe)
        if on is None:
            recipe = with_data_in(data_dir, run, recipe)
            dataset, seen_by = data_of(run, recipe), data_section(run).get("may_be_seen_by", {})
        else:
            dataset, seen_by = _others(run, recipe, os.fspath(on), data_dir), {}
        yield Opened(recipe, to_device(net, where), dataset, where, seen_by)


def evaluate(
    model: AuxNet | RunDir,
    batches: Batches | None = None,
    *,
    split: str = "val",
    on: str | os.PathLike[str] | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    which: Which = "last",
) -> list[OutputReport]:
    """A report per output, shallow to deep, of a net over batches of (images [N, C, H, W], labels [N]), or of a run.

    A run directory's weights are evaluated on the "val" or "test" `split` of its data, or `on` other labelled images;
    these and all that follows are as `opened` takes them. A net is left in the mode it was in.

    Raises what `opened` and `scores.predictions` raise, and ValueError for any of these beside batches.
    """
    if isinstance(model, AuxNet) or batches is not None:
        given = {"split": split, "on": on, "data_dir": data_dir, "device": device, "threads": threads, "which": which}
        for name, value in given.items():
            if value != {"split": "val", "which": "last"}.get(name):
                raise ValueError(f"{name}={value!r} is for a run, without batches: leave it out")
        if batches is None:
            raise ValueError("a net needs batches: evaluate(net, [(images, labels), ...])")
        return measure(cast("AuxNet", model), batches)  # which refuses what is none
    with opened(model, data_dir=data_dir, device=device, threads=threads, which=which, on=on) as run:
        return measure(run.net, run.batches(split if on is None else "test"))


def data_dirs(runs: Sequence[RunDir], data_dir: str | None) -> list[str | None]:
    """For each run `data_dir`, or None if there are several runs and the data of this one do not lie there.

    Raises as `read_run_recipe` does.
    """
    return [data_dir if not data_dir or len(runs) == 1 or _holds(data_dir, run) else None for run in runs]


def _holds(data_dir: str, run: RunDir) -> bool:
    """Whether the data of a run lie in a folder."""
    recipe = read_run_recipe(run)
    try:
        there = with_data_in(data_dir, run, recipe)
        return there.data not in NAMES or lies_in(there.data, expanduser(data_dir))
    except FileNotFoundError:
        return False


def to_go_on_with(run: RunDir, recipe: Recipe) -> Recipe:
    """The recipe to resume a run by: data that are gone from where they lay are those in its data_dir, by any name.

    Raises as `with_data_in` and `newest_checkpoint` do.
    """
    root, data = recipe.data_dir, recipe.data
    if root is None or data in NAMES or any(place.exists() for place in places(data, root)):
        return recipe
    classes = newest_checkpoint(Path(run)).get("standing", {}).get("classes")
    return with_data_in(root, run, recipe, classes) if classes else recipe


def with_data_in(data_dir: str | None, run: RunDir, recipe: Recipe, classes: Sequence[str] = ()) -> Recipe:
    """A run's recipe with its data taken from `data_dir` alone; unchanged if `data_dir` is None.

    The run's `classes` are by default those of its config.json, which it has once it is finished.

    `data_dir` is the data itself where it holds a folder for each of the run's classes; else a folder or file is looked
    for there by its name; else it is the data if it holds a train/ or shards. Raises FileNotFoundError otherwise.
    """
    if not data_dir:
        return recipe
    root, there = expanduser(data_dir), replace(recipe, data_dir=data_dir)
    if recipe.data in NAMES or on_hub(recipe.data) or not root.is_dir():  # which `find` has to say
        return there
    classes = classes or read_config(Path(run)).get("classes")
    below = {each.name for each in subfolders(root)}
    itself = [root] if classes and below.issuperset(map(str, classes)) else []
    within = [root / path for path in (recipe.data, Path(recipe.data).name) if not Path(path).is_absolute()]
    splits = [root] if "train" in map(str.lower, below) or _holds_shards(root) else []
    for place in (*itself, *within, *splits):
        if place.exists():
            return replace(there, data=str(place.resolve()))
    raise FileNotFoundError(
        f"{root} holds neither {Path(recipe.data).name} nor folders of all the classes of {run}, and "
        f"{_recorded(run, recipe)}, on which it was trained, is not looked at where data_dir is given: "
        "give the folder that holds the data, or none"
    )


def _holds_shards(folder: Path) -> bool:
    """Whether a folder holds parquet shards of one data set to train on."""
    try:
        return "train" in shards_of(folder)
    except FileNotFoundError:  # some of them, as is said once they are read
        return True
    except ValueError:
        return False


def data_of(run: RunDir, recipe: Recipe, judging: bool = True) -> DataSet:
    """The data of a run's recipe, normalised as the run was trained.

    Raises as `load_data` does, and RuntimeError if they have other classes, channels or sizes by now. Where they are
    used for `judging`, RuntimeError too if other images are drawn from them for validation and test than in training,
    FileNotFoundError if there is no summary that tells; and warns if the data bring validation or test images of their
    own that are others by now, or if the run may have been trained on some (`lineage.in_doubt`).
    """
    dataset, (trained_on, seen) = found_data(run, recipe), _trained_on(run)
    check_classes(dataset, trained_on, run)
    normalised = normalised_as(dataset, seen, run)
    if judging:
        about = data_section(run)
        dataset.check_drawn(about.get("drawn"), run, about.get("left_out", ()))
        if changed := changed_since(dataset, about):
            warn(f"{run}: {changed}")
        if doubt := in_doubt(about.get("may_be_seen_by", {})):
            warn(f"{run}: {doubt}")
    return normalised


def _trained_on(run: RunDir) -> tuple[list[str], Preprocessing]:
    """The classes that a run knows, in their order, and what was done to its images. Raises RuntimeError if damaged."""
    config = read_config(Path(run))
    classes = config.get("classes")
    if not isinstance(classes, list):
        raise RuntimeError(f"{Path(run) / 'config.json'} is damaged: it names no classes")
    with parsing(f"{Path(run) / 'config.json'} is damaged: its preprocessing cannot be read"):
        return classes, Preprocessing.read(config["preprocessing"])


def _others(run: RunDir, recipe: Recipe, on: str, data_dir: str | None) -> DataSet:
    """Other labelled images, to judge a run on. Raises as `load_others` does, ValueError if it was trained on them."""
    named, data = located(on, data_dir)[0], Path(recipe.data_dir or "", recipe.data)
    mend = "leave --on out, and it is judged on those that were set aside"
    refused = ValueError(f"{run} was trained on images of {on}: {mend}")
    if named == recipe.data or _lie_within([Path(named)], data):
        raise refused
    part = part_to_judge_on(on, data_dir)
    if _lie_within(map(Path, set(map(os.path.dirname, part.files))), data):
        raise refused
    others = load_others(on, part, *_trained_on(run), run)
    if others.left_out:
        count = plural(len(others.left_out), "image")
        warn(f"{on}: left out {count} that cannot be read: {first_few(others.left_out)}")
    return others


def _lie_within(images: Iterable[Path], data: Path) -> bool:
    """Whether some of these are a data set, its training split, or a part of that; those not there are none."""
    if not data.exists():
        return False
    trained = data
    with suppress(ValueError, OSError):  # of what is no folder, or holds parquet shards
        trained = split_homes(data)["train"]
    whole, home = data.resolve(), trained.resolve()
    places = [place for each in images if each.exists() for place in (each, each.resolve())]
    return whole in places or any(place.is_relative_to(home) for place in places)


def data_section(run: RunDir) -> dict[str, Any]:
    """The section "data" of a run's summary.json: without it nobody knows which images the run was not trained on.

    Raises FileNotFoundError without a summary, RuntimeError if it is damaged.
    """
    with summary_of(run, "it does not say on what data") as summary:
        return dict(summary["data"])


def found_data(run: RunDir, recipe: Recipe) -> DataSet:
    """`load_data`; if nothing is found, the error also says where the data lay in training."""
    try:
        return load_data(recipe)
    except FileNotFoundError as error:
        if (then := _recorded(run, recipe)) == recipe.data:
            raise
        raise FileNotFoundError(f"{error}; in training they lay in {then}") from error


def _recorded(run: RunDir, recipe: Recipe) -> str:
    """Where a run's data lay in training, by its recipe file (`recipe` may have been pointed elsewhere since)."""
    file = Path(run) / "recipe.yaml"
    return read_recipe(file).data if file.is_file() else recipe.data


def changed_since(dataset: DataSet, about: Mapping[str, Any]) -> str | None:
    """A sentence saying which validation or test images changed since training; None if none did.

    `about` is what the run's summary.json says under "data".
    (Nothing is known of runs that are not finished.)
    """
    keys, now = {"validation": "val_sha256", "test": "test_sha256"}, dataset.judged_on
    others = [name for name, key in keys.items() if about.get(key) and about[key] != now[key]]
    if not others:
        return None
    return f"its {' and '.join(others)} images have changed since it was trained, and errors are of those there are now"


def check_classes(dataset: DataSet, trained_on: Sequence[str], run: RunDir) -> None:
    """Raise RuntimeError if the classes of a data set are not the very ones, in their order, of a run's training."""
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

    (Its own are those of the training images that there are by now, which may be more.) Raises RuntimeError if its
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
