"""The run directory: what a training leaves behind, begun and continued without losing anything.

recipe.yaml, metrics.jsonl, checkpoints/, and at the end model.safetensors, config.json and summary.json.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from auxnet.documents import json_value, parsing, read_json
from auxnet.fetching import absolute_name, may_be_pin_of
from auxnet.files import claimed, unwritable, written_whole
from auxnet.reading import sources
from auxnet.recipe import SEAL, WHERE, Recipe, RunDir, nearest_run, read_recipe, read_run_recipe, write_recipe
from auxnet.tensorboard import event_files

RUN_FILES = (
    "metrics.jsonl",
    "diagnosis.jsonl",
    "diagnosis.json",
    "diagnosis.html",
    "summary.json",
    "evaluation.json",
    "evaluation-best.json",
    "exits.json",
    "exits-best.json",
    "report.html",
    "model.safetensors",
    "config.json",
    "checkpoints/best.safetensors",
)
Kinds = dict[str, type | tuple[type, ...]]
NUMBER = (int, float)
MEASURED: Kinds = {"epoch": int, "output": int, "depth": int, "loss": NUMBER, "lr": NUMBER, "seconds": NUMBER}
ROWS: dict[str | None, Kinds] = {
    "train": {**MEASURED, "error": type(None)},
    "val": {**MEASURED, "error": NUMBER},
    None: {"epoch": int, "output": (int, type(None)), "layer": int, "share": (*NUMBER, type(None))},
}
"""by their split: the keys of the rows of metrics.jsonl, and of diagnosis.jsonl, which have none, and their types"""
LOCK = ".lock"
PARTIAL = r"\..+\.[0-9a-f]+\.partial"  # what `files.written_whole` leaves if it is killed


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory for this process alone; it is made if need be, and removed again if nothing came of it.

    Raises FileExistsError if another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if (lock := claimed(folder / LOCK)) is None:
        raise FileExistsError(f"{folder}: another process is training in it; name another folder, or wait")
    names = ("recipe.yaml", "metrics.jsonl", "diagnosis.jsonl", "model.safetensors", "config.json", "summary.json")
    written = ("checkpoints/.*.partial", *(f".{name}.*.partial" for name in names))
    for partial in (path for pattern in written for path in folder.glob(pattern)):
        partial.unlink(missing_ok=True)  # what a killed training was writing
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may have vanished, or its disk be read-only
            for empty in folder.glob("checkpoints") if made else ():
                if not any(empty.iterdir()):
                    empty.rmdir()
            if made and not any(path.name != LOCK for path in folder.iterdir()):
                (folder / LOCK).unlink(missing_ok=True)
                for path in made:
                    path.rmdir()
        lock.release()


def check_run_folder(folder: Path, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Refuse, before anything is computed, what would lose something of the user's.

    Raises FileExistsError, FileNotFoundError, or ValueError if the run to resume has another recipe.
    """
    if resume and overwrite:
        raise ValueError("resume continues a run and overwrite replaces it: give one of the two")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder for the run")
    is_run = _is_run(folder)
    if resume:
        if not is_run:
            mend = "give --data or --config too, and it is begun there"
            raise FileNotFoundError(f"there is no run to resume in {folder}: {mend}{nearest_run(folder)}")
        _check_same(read_run_recipe(folder), recipe, folder)
    elif is_run and not overwrite:
        mend = "resume (--resume) continues it, overwrite (--overwrite) replaces it"
        raise FileExistsError(f"{folder} holds a run already: {mend}")
    elif is_run and (others := [path for path in left_in(folder) if path.is_dir() and not path.is_symlink()]):
        raise FileExistsError(f"{others[0]} is a folder, which no run has there: move it away, or name another")
    elif not is_run and folder.is_dir() and any(map(_is_foreign, folder.iterdir())):
        raise FileExistsError(f"{folder} holds other files: name a new folder for the run")
    if not resume:
        check_outside_data(folder, recipe.data, recipe.data_dir)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise FileExistsError(f"{folder} cannot be made: {nearest} is a file; name another folder")
    if why := unwritable(nearest):
        raise PermissionError(f"{folder} cannot be written to ({why})")


def check_outside_data(folder: Path, data: str, data_dir: str | None) -> None:
    """Raise ValueError for a folder to write to that is, or lies in, the folder of the data."""
    around = (folder.resolve(), *folder.resolve().parents)
    for place in [] if data in sources.NAMES else sources.candidate_paths(data, data_dir):
        if place.is_dir() and place.resolve() in around:
            raise ValueError(f"{folder} lies in the data, {place}, and would be taken for a part of it: name another")


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it holds a recipe that was written for one, or what one leaves beside it."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        return False
    with recipe.open("rb") as file:
        sealed = file.read(len(SEAL)) == SEAL
    return sealed or any((folder / name).exists() for name in ("checkpoints", "metrics.jsonl", "model.safetensors"))


def _is_foreign(path: Path) -> bool:
    """Whether something in a folder is other than what a training leaves that was killed while it began."""
    if path.name == "checkpoints" and path.is_dir():
        return any(map(_is_foreign, path.iterdir()))
    return path.name != LOCK and not re.fullmatch(PARTIAL, path.name)


def begin(folder: Path, recipe: Recipe) -> None:
    """Make the run directory, what an earlier run left in it removed, with the recipe saved.

    Killed anywhere in it, it leaves a recipe, by which the folder is known as a run, or nothing.
    """
    with written_whole(folder / "recipe.yaml") as partial:
        write_recipe(with_absolute_paths(recipe), partial, sealed=True)
        for path in left_in(folder):
            path.unlink(missing_ok=True)


def left_in(folder: Path) -> list[Path]:
    """What a run left in its folder, but its recipe: what goes when another replaces it."""
    damaged = (folder / "checkpoints").glob("*.damaged")
    paths = (*checkpoints(folder), *damaged, *event_files(folder), *(folder / name for name in RUN_FILES))
    return [path for path in paths if os.path.lexists(path)]


def to_resume(folder: Path) -> tuple[bool, bool]:
    """(resume, overwrite) for `fit(resume=None)`: go on with the run in the folder, or replace a lost training.

    (False, False) for a folder without a run, which is begun; a training is lost that left nothing to go on from. One
    whose checkpoints were damaged, or removed, counts as a run, and so does a finished one without its weights. It
    cannot go on without a word from its owner: its best weights, its curves, its figures are not to be lost.
    """
    places = folder / "checkpoints"
    kept = is_finished(folder) or any(places.glob("*.damaged")) or (places / "best.safetensors").is_file()
    lost = is_lost(folder) and not kept
    return _is_run(folder) and not lost, lost


def leave_out(folder: Path, max_corrupt: int) -> None:
    """Save `max_corrupt` in a run's recipe, so that whoever opens the run leaves out the same unreadable images."""
    if read_run_recipe(folder).max_corrupt != max_corrupt:  # it says, too, whether the recipe is whole
        recorded = read_recipe(folder / "recipe.yaml")  # where the data lay, though they may have moved
        with written_whole(folder / "recipe.yaml") as partial:
            write_recipe(replace(recorded, max_corrupt=max_corrupt), partial, sealed=True)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a training that came to its end: its summary is written last."""
    return (folder / "summary.json").is_file()


@contextmanager
def summary_of(run: RunDir, more: str) -> Iterator[Any]:
    """What a run's summary.json holds, to be read inside the block, where an error says that it is damaged, and `more`.

    Raises FileNotFoundError without a summary, RuntimeError if it is damaged.
    """
    path = Path(run) / "summary.json"
    with parsing(f"{path} is damaged: {more}"):
        yield read_json(path)


def is_lost(folder: Path) -> bool:
    """Whether a training was begun here that left nothing: no checkpoint to go on from, and no weights at its end."""
    return _is_run(folder) and not checkpoints(folder) and not (folder / "model.safetensors").is_file()


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with its data and weights named so that they are found from any folder, and without AUXNET_DATA."""
    data, data_dir = sources.absolute_source(recipe.data, recipe.data_dir)
    pretrained = None if recipe.pretrained is None else absolute_name(recipe.pretrained)
    return replace(recipe, data=data, data_dir=data_dir, pretrained=pretrained)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first: by the epoch and step in their names, not by their time."""
    paths = (folder / "checkpoints").glob("*.ckpt")
    named = {path: match for path in paths if (match := re.fullmatch(r"(\d{5,})-(\d{7,})", path.stem))}
    return sorted(named, key=lambda path: (int(named[path][1]), int(named[path][2])), reverse=True)


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to metrics.jsonl or diagnosis.jsonl; they are on the disk then."""
    with path.open("a", encoding="utf-8") as file:
        file.write(lines(rows))
        file.flush()
        os.fsync(file.fileno())


def lines(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as text, one a line. Raises ValueError for a number that is not finite."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return read_rows(folder / "metrics.jsonl")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl or diagnosis.jsonl, one a line, each with all its keys; none if there is no file.

    A line that is no row any more is left out: damaged, or the last one, torn by a crash.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError, TypeError, KeyError):  # no text, no JSON, no row, a number that is not finite
            row = dict(json_value(line.decode()))
            if all(isinstance(row[key], kind) for key, kind in ROWS[row.get("split")].items()) and lines([row]):
                rows.append(row)
    return rows


def whole_epochs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of epochs of which all are there, two for each output.

    (A file that is being written, or that a crash has cut, ends anywhere; a line of it may be damaged.)
    """
    outputs = max((row["output"] for row in rows), default=0)
    logged = Counter(row["epoch"] for row in rows)
    return [row for row in rows if logged[row["epoch"]] >= 2 * outputs]


def _check_same(saved: Recipe, recipe: Recipe, folder: Path) -> None:
    """Raise ValueError for a recipe other than the run's, but in where it runs and how many bad images are left out."""
    free = {key: getattr(recipe, key) for key in (*WHERE, "max_corrupt")}
    saved, recipe = with_absolute_paths(replace(saved, **free)), with_absolute_paths(recipe)
    if not Path(saved.data).exists() and Path(saved.data).name == Path(recipe.data).name:
        saved = replace(saved, data=recipe.data)  # it has moved
    if may_be_pin_of(saved.pretrained, recipe.pretrained):
        saved = replace(saved, pretrained=recipe.pretrained)
    for key, value in asdict(saved).items():
        if value != getattr(recipe, key):
            asked = getattr(recipe, key)
            own = f"leave the flag out (in Python give auxnet.recipe.read_run_recipe({str(folder)!r}))"
            mend = f"{own}, or train another run with --out"
            if key == "data":
                value = read_recipe(folder / "recipe.yaml").data  # where they lay
                mend += "; data that have moved are found by data_dir (--data-dir), the folder that holds them"
            if key == "epochs" and (folder / "model.safetensors").is_file():
                mend += f", from these weights by --pretrained {folder}"
            raise ValueError(f"{folder} was begun with {key}={value!r}, and cannot go on with {asked!r}: {mend}")
