"""Training by recipe: `fit` makes a run directory out of a Recipe.

The test set is read once, after the last epoch, and nothing is chosen on it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from auxnet import __version__, distributed, rundir
from auxnet.advice import doubts_of, precision_doubts, unreadable
from auxnet.answers import Rebuilt
from auxnet.backbones.weights import file_of
from auxnet.build import build, evaluation_batches, network_options, normalised_for, rebuilt, resident
from auxnet.data import DataSet, load_data
from auxnet.distributed import Team
from auxnet.documents import read_json
from auxnet.epochs import Training, run_epochs
from auxnet.errors import DamagedError, is_number, warn, whole_number
from auxnet.evaluation import measure
from auxnet.feasible import check_enough_images, check_last_batch, check_memory, check_recipe
from auxnet.fetching import pinned
from auxnet.files import sha256_of, to_write, write_json
from auxnet.hub import with_run
from auxnet.lineage import Earlier, earlier_runs, in_doubt, may_be_seen_by
from auxnet.loading import load_net
from auxnet.machine import crowded, device_of, fast_convolutions, random_kept, threads_set, to_device
from auxnet.method import Method
from auxnet.modules import copied
from auxnet.network import AuxNet
from auxnet.precision import usual_defaults
from auxnet.preprocessing import Preprocessing
from auxnet.progress import Progress
from auxnet.provenance import provenance
from auxnet.recipe import Recipe, data_name, method_name
from auxnet.resuming import Checkpointer, TrainingState, load_checkpoint, newest_checkpoint, roll_back
from auxnet.run_data import (
    check_classes,
    check_drawn,
    found_data,
    normalised_as,
    others_since,
    preprocessing_of,
    recipe_to_resume,
)
from auxnet.scores import guessing
from auxnet.tensorboard import event_files, event_writer, installed
from auxnet.tensors import read_tensors, save_tensors, tensors_sha256
from auxnet.words import command, plural, val_errors

_TRAINING = threading.Lock()


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training: its folder, its net (of the last epoch, or its moving average), and its summary.json.

    The net is as `auxnet.load` gives it, on the device of the training: it knows its classes and prepares images.
    A Run can be given wherever a run directory is expected, as in `auxnet.select(run)`.
    """

    folder: Path
    net: AuxNet
    summary: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.folder)

    __str__ = __fspath__

    def __repr__(self) -> str:
        rows = self.summary.get("last", ())  # only one of torchrun's processes has the summary
        worth = f": {plural(len(rows), 'output')}, {val_errors([row['val_error'] for row in rows])}" if rows else ""
        return f"Run({str(self)!r}{worth})"


def fit(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool | None = False,
    overwrite: bool = False,
    save_every: float | None = None,
    keep: int | None = None,
    diagnose: bool = False,
    tensorboard: bool = False,
    watch: Callable[[Progress], object] | None = None,
) -> Run:
    """Train by `recipe` into the run directory `out`, and evaluate it.

    The same recipe gives the same weights, byte for byte, on a CPU with the same number of threads, however often
    it was stopped and resumed. With `resume` None the run in `out` is resumed if there is one, and begun otherwise.

    A checkpoint is made after every epoch and, within one, every `save_every` seconds (300); the newest `keep` (2)
    stay. With `diagnose`, supervision is measured after every epoch and its shares are added to diagnosis.jsonl (a line
    per output and layer), which changes no weight. With `tensorboard`, the learning curves are written for it too,
    after every epoch, into tensorboard/. A resumed run continues all of this by itself.

    `watch` is told where the training stands, after every step on a CPU and now and then on a GPU, and once more when
    an epoch is saved (`Progress.done`). Under torchrun the processes train together: process 0 writes and has the
    summary.

    Raises ValueError for a recipe that cannot be trained, FileExistsError if `out` holds something (a run is continued
    with `resume` or replaced with `overwrite`, anything else is never touched) or another process trains in it,
    RuntimeError if a loss stops being finite, `out` cannot be written to or tensorboard is not installed,
    signals.Stopped (a KeyboardInterrupt) after Ctrl-C, SIGTERM or a hangup, once the step at hand is done and saved.
    """
    if not isinstance(recipe, Recipe):
        mend = "auxnet.recipe has recipe_from for a dict, read_recipe for a file"
        raise TypeError(f"recipe must be an auxnet.Recipe, got {type(recipe).__name__}: {mend}")
    folder, asked = to_write(out), _saving(save_every, keep)
    if not (watch is None or callable(watch)):
        raise TypeError(f"watch must be a function of Progress, got {watch!r}")
    began = time.perf_counter()
    with _set_up(recipe) as team, ExitStack() as stack:
        by_folder = not (resume or overwrite)  # its content decides, and must not change before it is locked
        if resume is None and not overwrite:  # one process decides: others may not see its files yet
            resume, overwrite = team.from_leader(lambda: rundir.to_resume(folder))
        resume = resume is None or bool(resume)  # None with overwrite is refused, as True with it is
        if team.leads:
            rundir.check_run_folder(folder, recipe, resume, overwrite)
        check_recipe(recipe, begins=not resume)
        if diagnose and recipe.freeze == "trunk":
            raise ValueError("diagnose is of what supervises the trunk, and freeze='trunk' lets nothing: leave one out")
        earlier: tuple[Earlier, ...] = ()
        if recipe.pretrained is not None and not resume:
            weights = pinned(recipe.pretrained)
            recipe, earlier = replace(recipe, pretrained=weights), earlier_runs(weights)
        if team.leads:
            stack.enter_context(rundir.locked(folder))
            if by_folder and rundir.to_resume(folder) != (resume, overwrite):
                raise FileExistsError(
                    f"{folder}: another process has trained there just now: --resume goes on with its run"
                )
        if resume:  # what the run was begun with continues
            diagnose = diagnose or (folder / "diagnosis.jsonl").is_file()
            tensorboard = tensorboard or (any(event_files(folder)) and installed())
        saving = {"every": 300.0, **asked}
        write_events = stack.enter_context(event_writer(folder)) if tensorboard and team.leads else None
        if resume:
            recipe = team.from_leader(partial(recipe_to_resume, folder, recipe))
        dataset, net, method = _prepare(recipe, team, folder if resume else None)
        training = Training(
            recipe,
            dataset,
            net,
            method,
            team,
            Checkpointer(
                folder,
                recipe,
                team.leads,
                **saving,
                begun=resume,
                replaces=overwrite,
                rebuilt=rebuilt(recipe, dataset) if team.leads else None,
            ),
            average=None if recipe.ema is None else copied(net),
            diagnose=diagnose and team.leads,
            began=began,
            watch=watch,
            write_events=write_events,
        )
        state = _resume(training, asked) if resume else _first_state(training, earlier)
        if resume and team.leads:
            rundir.record_max_corrupt(folder, recipe.max_corrupt)
        if write_events is not None and state.history:
            write_events(state.history)
        finished = state.epoch == recipe.epochs  # by an earlier session
        state = run_epochs(training, state)
        net.float()  # the saved and returned net takes float32 images, whatever the precision of training
        if not team.leads:
            return Run(folder, training.judged.eval(), {})
        try:
            summary = _finish(training, state, _trained_in(folder) if finished else {})
        except KeyboardInterrupt as stop:
            stop.args = (f"stopped after the last epoch; the run is saved in {folder}, --resume evaluates it",)
            raise
        return Run(folder, with_run(training.judged, folder), summary)


@contextmanager
def _set_up(recipe: Recipe) -> Iterator[Team]:
    """Inside the block: PyTorch set as the recipe says, the team of processes, and no other training in this process.

    (It would draw from the same random numbers.) Raises RuntimeError if one is under way, and what `team` raises.
    """
    if not _TRAINING.acquire(blocking=False):
        raise RuntimeError("another fit is under way in this process: train after it, or in a process of its own")
    try:
        with (
            usual_defaults(),
            distributed.team(device_of(recipe.device)) as team,
            threads_set(recipe.threads),
            random_kept(team.device),
            fast_convolutions(team.device),
        ):
            yield team
    finally:
        _TRAINING.release()


def _saving(save_every: float | None, keep: int | None) -> dict[str, Any]:
    """The options of the `Checkpointer` that the caller gave. Raises ValueError for values that cannot be.

    They become Python's own numbers: checkpoints hold them, and are read without NumPy's types.
    """
    asked: dict[str, Any] = {}
    if save_every is not None:
        if not (is_number(save_every) and save_every >= 0):
            raise ValueError(f"save_every must be 0 seconds or more, got {save_every!r}")
        asked["every"] = float(save_every)
    if keep is not None:
        asked["keep"] = whole_number("keep", keep, 1)
    return asked


def _prepare(recipe: Recipe, team: Team, resume: Path | None) -> tuple[DataSet, AuxNet, Method]:
    """The data, the net and its method, as `build` makes them, with a warning for what looks unwise.

    `resume` is the run to continue, if any.

    Raises ValueError for a recipe that does not fit its data.
    """
    dataset = resident(found_data(resume, recipe) if resume else load_data(recipe), team.device)
    if resume:
        recipe = replace(recipe, pretrained=None)  # its weights are in the checkpoint
    else:
        check_enough_images(recipe, dataset)
    net, method = build(recipe, dataset, team.device, team)
    dataset = normalised_for(recipe, dataset)
    check_last_batch(recipe, dataset, net, team.size)
    check_memory(recipe, dataset, net, team.size)
    if team.leads:
        again = [*unreadable(dataset), *precision_doubts(recipe)]
        doubts = again if resume else doubts_of(recipe, net.depths, dataset)
        slow = crowded(torch.get_num_threads()) if team.device.type == "cpu" else None
        for doubt in [*doubts, *([slow] if slow else [])]:
            warn(doubt)
    return dataset, net, method


def _first_state(training: Training, earlier: tuple[Earlier, ...]) -> TrainingState:
    """The state of a new training; warns if images that judge it may have trained its pretrained weights."""
    dataset, weights = training.dataset, training.recipe.pretrained
    doubt = None
    if earlier and training.team.leads:
        doubt = in_doubt(may_be_seen_by(dataset.classes, dataset.judged_on, earlier))
    if doubt:
        warn(
            f"{training.checkpointer.folder}: {doubt}. The same data, size, fit, seed and val_fraction hold out the "
            "same images, and so do val/ and test/ folders of their own; or train from the beginning"
        )
    return TrainingState(
        drawn=dataset.drawn,
        left_out=dataset.left_out,
        train_images=len(dataset.train),
        judged_on=dataset.judged_on,
        preprocessing=preprocessing_of(dataset).content(),
        classes=dataset.classes,
        earlier_runs=earlier,
        pretrained_sha256=sha256_of(file_of(weights)) if weights is not None and training.team.leads else None,
    )


def _resume(training: Training, asked: dict[str, Any]) -> TrainingState:
    """Take a training, and its run directory, back to the newest checkpoint; it is saved as before, or as asked now.

    Raises what `resuming` does, and RuntimeError for data other than those it began with, or, if nothing is left to
    train, for validation or test images other than those of its figures.
    """
    team, folder = training.team, training.checkpointer.folder
    checkpoint = team.from_leader(lambda: newest_checkpoint(folder))
    known = checkpoint.get("standing", {})
    if known.get("classes") is not None:  # first of all: a net for other classes may not fit, or worse, fit
        check_classes(training.dataset, known["classes"], folder)
    state = load_checkpoint(checkpoint, training.net, training.method, folder, training.average)
    if state.epoch > training.recipe.epochs:  # its recipe file was edited
        done = plural(state.epoch, "epoch")
        raise ValueError(f"{folder} has trained {done}, its recipe says epochs={training.recipe.epochs}: correct that")
    training.checkpointer = replace(training.checkpointer, **{**checkpoint.get("saving", {}), **asked})
    check_drawn(training.dataset, state.drawn, folder, state.left_out)
    dataset, judged_on = training.dataset, training.dataset.judged_on
    others = others_since(judged_on, state.judged_on or {})
    if others and team.from_leader(lambda: rundir.is_finished(folder)):
        mend = f"put them back, or judge it on those there are now by `{command('evaluate', folder)}`"
        raise RuntimeError(f"{folder} is finished, and {others}: {mend}")
    if team.leads and others:
        warn(f"{folder}: {others}, and it goes on with those there are now")
    state = replace(state, judged_on=judged_on)
    if state.epoch < training.recipe.epochs:
        if team.leads and state.train_images not in (None, now := len(dataset.train)):
            warn(f"{folder} was trained on {state.train_images:,} training images, and goes on with {now:,}")
        state = replace(state, train_images=len(dataset.train))
    if state.preprocessing is not None:
        training.dataset = normalised_as(dataset, Preprocessing.read(state.preprocessing), folder)
    if team.leads:
        state = roll_back(folder, training.recipe, state, training.judged, training.checkpointer.rebuilt)
    return state


def fit_on(recipe: Recipe, folder: Path, watch: Callable[[Progress], object] | None = None) -> Run:
    """Train into a folder that nobody else uses, from the last checkpoint in it if there is one.

    A training that left nothing to continue from starts over: it was killed before its first checkpoint, or all its
    checkpoints are damaged. Raises what `fit` does: FileExistsError for a folder that holds anything else.
    """
    resume = bool(rundir.checkpoints(folder))
    with suppress(DamagedError):
        return fit(recipe, folder, resume=resume, overwrite=not resume and rundir.is_lost(folder), watch=watch)
    return fit(recipe, folder, overwrite=True, watch=watch)


def _trained_in(folder: Path) -> dict[str, Any]:
    """What a finished run's summary says of its training: how long it took, and where; {} without a summary."""
    with suppress(OSError, RuntimeError, TypeError):
        summary = read_json(folder / "summary.json")
        return {key: summary[key] for key in ("wall_seconds", "versions", "commit", "device") if key in summary}
    return {}


def _save_weights(path: Path, net: AuxNet, rebuilt: Rebuilt | None) -> None:
    """Save a trained net; a file that holds these weights already stays as it is, since others know its SHA-256."""
    state = net.state_dict()
    with suppress(OSError, DamagedError):
        if tensors_sha256(read_tensors(path)) == tensors_sha256(state):
            return
    save_tensors(path, state, answers=None if rebuilt is None else rebuilt.note(net))
    if rebuilt is not None and rebuilt.differs:
        warn(
            "the net, built again with its weights, answers otherwise than it was trained: it keeps more than weights "
            "(a buffer that is not saved, a counter, random numbers), and the errors are those of the net built again"
        )


def _finish(training: Training, state: TrainingState, known: dict[str, Any]) -> dict[str, Any]:
    """Save the net, read the test set for the first time, and write the summary, in which `known` keeps its values."""
    recipe, dataset, folder, device = training.recipe, training.dataset, training.checkpointer.folder, training.device
    config = {
        "model_type": "auxnet",
        "auxnet_version": __version__,
        "network": network_options(recipe, dataset),
        "classes": list(dataset.classes),
        "preprocessing": preprocessing_of(dataset).content(),
    }
    _save_weights(folder / "model.safetensors", training.judged, training.checkpointer.rebuilt)
    write_json(folder / "config.json", config)
    images: dict[str, Any] = {part: len(getattr(dataset, part)) for part in ("train", "val", "test")}
    images["train"] = state.train_images or images["train"]  # the data may have changed since
    if dataset.left_out:
        images["left_out"] = list(dataset.left_out)
    if state.earlier_runs:
        images["earlier_runs"] = list(state.earlier_runs)
        images["may_be_seen_by"] = may_be_seen_by(dataset.classes, dataset.judged_on, state.earlier_runs)
    summary = {
        "epochs": {"last": state.epoch, "best": state.best_epoch},
        **tables(folder, dataset, device, same=state.best_epoch == state.epoch),
        "method": method_name(recipe),
        "data": {
            "name": data_name(dataset.name),
            **images,
            "guessing": guessing(dataset.val.labels),
            "drawn": dataset.drawn,
            **dataset.judged_on,
        },
        "seed": recipe.seed,
        **({"pretrained_sha256": state.pretrained_sha256} if state.pretrained_sha256 else {}),
        "wall_seconds": round(training.seconds(state), 1),
        **provenance(device),
        **known,
    }
    write_json(folder / "summary.json", summary)
    return summary


def tables(folder: Path, dataset: DataSet, device: torch.device, same: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The tables of outputs of a run from the weights it saved: {"last": rows, "best": rows on validation}.

    `same` says that the last epoch is the best one, so that one table serves for both.
    """
    last = _table(load_net(folder, "last"), dataset, device)
    return {"last": last, "best": last if same else _table(load_net(folder, "best"), dataset, device)}


def _table(net: AuxNet, dataset: DataSet, device: torch.device) -> list[dict[str, Any]]:
    net = to_device(net, device)
    val, test = (measure(net, evaluation_batches(images, dataset, device)) for images in (dataset.val, dataset.test))
    return [
        {**v.costs, "val_loss": v.loss, "val_error": v.error, "test_loss": t.loss, "test_error": t.error}
        for v, t in zip(val, test, strict=True)
    ]
