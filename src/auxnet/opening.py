"""A finished run, opened: its net on a device, and the data that it was trained on, or others to judge it on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch

from auxnet.batches import Batches
from auxnet.build import evaluation_batches
from auxnet.data import DataSet, load_others, part_to_judge_on
from auxnet.errors import warn
from auxnet.evaluation import OutputReport, measure
from auxnet.loading import load_net
from auxnet.machine import device_of, threads_set, to_device
from auxnet.network import AuxNet
from auxnet.precision import usual_defaults
from auxnet.reading.folders import split_homes
from auxnet.reading.sources import absolute_source
from auxnet.reading.splits import Labelled
from auxnet.recipe import Recipe, RunDir, read_run_recipe
from auxnet.run_data import data_of, data_section, seen_in_training, with_data_in
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
    """A run's best weights in words: the weights of epoch 12, the best by the mean validation error of the outputs.

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
    """A run directory's weights, "last" or "best", and its data; options that are not given are as in training.

    With `on`, other labelled images are the test set: a folder, a file or a name, as `Recipe.data` takes them, in
    `data_dir` if that is given. The run's own data, which may be gone, are then not looked at. The number of threads
    is set inside the block.

    Raises ValueError or FileNotFoundError for what cannot be asked for, RuntimeError if the run is damaged or its data
    have other classes now.
    """
    for name, place in (("on", on), ("data_dir", data_dir)):
        if not isinstance(place, str | os.PathLike | None):
            raise TypeError(f"{name} must be a path, got {place!r}")
    recipe = read_run_recipe(run)
    recipe = replace(recipe, device=device or recipe.device, threads=recipe.threads if threads is None else threads)
    with threads_set(recipe.threads):
        with usual_defaults():
            net, where = load_net(run, which), device_of(recipe.device)
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
    `on` and the arguments after it are as `opened` takes them. A net is left in the mode it was in.

    Raises what `opened` and `scores.predictions` raise, and ValueError for any of these beside batches.
    """
    if isinstance(model, AuxNet) or batches is not None:
        given = {"split": split, "on": on, "data_dir": data_dir, "device": device, "threads": threads, "which": which}
        for name, value in given.items():
            if value != {"split": "val", "which": "last"}.get(name):
                raise ValueError(f"{name}={value!r} is for a run, without batches: leave it out")
        if batches is None:
            raise ValueError("a net needs batches: evaluate(net, [(images, labels), ...])")
        return measure(cast("AuxNet", model), batches)  # which refuses what is no net
    as_asked = opened(model, data_dir=data_dir, device=device, threads=threads, which=which, on=on)
    with usual_defaults(), as_asked as run:
        return measure(run.net, run.batches(split if on is None else "test"))


def _others(run: RunDir, recipe: Recipe, on: str, data_dir: str | None) -> DataSet:
    """Other labelled images, to judge a run on. Raises as `load_others` does, ValueError if it was trained on them."""
    named, data = absolute_source(on, data_dir)[0], Path(recipe.data_dir or "", recipe.data)
    mend = "leave --on out, and it is judged on those that were set aside"
    refused = ValueError(f"{run} was trained on images of {on}: {mend}")
    if named == recipe.data or _lie_within([Path(named)], data):  # first: to list the folder may fail
        raise refused
    part = part_to_judge_on(on, data_dir)
    folders = () if part.holds_arrays else set(map(os.path.dirname, part.files))
    if _lie_within(map(Path, folders), data):
        raise refused
    others = load_others(on, part, *seen_in_training(run), run)
    if others.left_out:
        count = plural(len(others.left_out), "image")
        warn(f"{on}: left out {count} that cannot be read: {first_few(others.left_out)}")
    return others


def _lie_within(images: Iterable[Path], data: Path) -> bool:
    """Whether some of these paths exist and are a data set, its training split, or a part of that split."""
    if not data.exists():
        return False
    trained = data
    with suppress(ValueError, OSError):  # it is no folder, or holds parquet shards
        trained = split_homes(data)["train"]
    whole, home = data.resolve(), trained.resolve()
    places = [place for each in images if each.exists() for place in (each, each.resolve())]
    return whole in places or any(place.is_relative_to(home) for place in places)
