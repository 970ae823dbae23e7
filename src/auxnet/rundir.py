"""The run directory: the files of a training, and how it is begun, resumed and replaced without losing anything.

It holds recipe.yaml, metrics.jsonl, checkpoints/, and at the end model.safetensors, config.json and summary.json.
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
"""keys and types of the rows of metrics.jsonl, by split, and of diagnosis.jsonl, whose rows have no split (None)"""
LOCK = ".lock"
PARTIAL = r"\..+\.[0-9a-f]+\.partial"  # what `files.written_whole` leaves if it is killed


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory for this process alone; it is made if needed, and removed again if it stays empty.

    Raises FileExistsError if another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if (lock := claimed(folder / LOCK)) is None:
        raise FileExistsError(f"{folder}: another process is training in it; name another folder, or wait")
    names = ("recipe.yaml", "metrics.jsonl", "diagnosis.jsonl", "model.safetensors", "config.json", "summary.json")
    written = ("checkpoints/.*.partial", *(f".{name}.*.partial" for name in names))
    for partial in (path for pattern in written for path in folder.glob(pattern)):
        partial.unlink(missing_ok=True)  # left by a training that was killed while writing
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
    """Refuse, before anything is computed, a folder in which training would destroy something of the user's.

    Raises FileExistsError, FileNotFoundError or PermissionError; ValueError for a folder within the data, or if the run
    to resume has another recipe.
    """
    if resume and overwrite:
        raise ValueError("resume continues a run and overwrite replaces it: give one of the two")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder for the run")
    is_run = _is_run(folder)
    if resume:
        if not is_run:
            mend = "give --data or --config too to begin one there"
            raise FileNotFoundError(f"there is no run to resume in {folder}: {mend}{nearest_run(folder)}")
        _check_same(read_run_recipe(folder), recipe, folder)
    elif is_run and not overwrite:
        mend = "resume (--resume) continues it, overwrite (--overwrite) replaces it"
        raise FileExistsError(f"{folder} holds a run already: {mend}")
    elif is_run and (others := [path for path in left_in(folder) if path.is_dir() and not path.is_symlink()]):
        raise FileExistsError(f"{others[0]} is a folder, where a run has a file: move it away, or name another")
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
    """Raise ValueError if the folder to write to is the folder of the data, or lies in it."""
    around = (folder.resolve(), *folder.resolve().parents)
    for place in [] if data in sources.NAMES else sources.candidate_paths(data, data_dir):
        if place.is_dir() and place.resolve() in around:
            raise ValueError(f"{folder} lies in the data, {place}, and would be taken for a part of it: name another")


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's: its recipe.yaml is sealed, or other files of a run lie beside it."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        return False
    with recipe.open("rb") as file:
        sealed = file.read(len(SEAL)) == SEAL
    return sealed or any((folder / name).exists() for name in ("checkpoints", "metrics.jsonl", "model.safetensors"))


def _is_foreign(path: Path) -> bool:
    """Whether a path is none of those that a training leaves if it is killed while it begins."""
    if path.name == "checkpoints" and path.is_dir():
        return any(map(_is_foreign, path.iterdir()))
    return path.name != LOCK and not re.fullmatch(PARTIAL, path.name)


def begin(folder: Path, recipe: Recipe) -> None:
    """Begin a run in its directory: remove what an earlier run left there, and save the recipe.

    If it is killed in between, the folder holds a recipe, and so counts as a run, or nothing at all.
    """
    with written_whole(folder / "recipe.yaml") as partial:
        write_recipe(with_absolute_paths(recipe), partial, sealed=True)
        for path in left_in(folder):
            path.unlink(missing_ok=True)


def left_in(folder: Path) -> list[Path]:
    """The files of a run in its folder, except the recipe: those removed when another run replaces it."""
    damaged = (folder / "checkpoints").glob("*.damaged")
    paths = (*checkpoints(folder), *damaged, *event_files(folder), *(folder / name for name in RUN_FILES))
    return [path for path in paths if os.path.lexists(path)]


def to_resume(folder: Path) -> tuple[bool, bool]:
    """(resume, overwrite) for `fit(resume=None)`: continue the run in the folder, or replace a lost training.

    (False, False) for a folder without a run, where one is begun. A training is lost if it left nothing to continue
    from. But a run whose checkpoints were damaged, or removed, is not replaced, and neither is a finished run without
    its weights: resuming it fails, and its owner must decide, since its best weights, curves and figures would be lost.
    """
    places = folder / "checkpoints"
    kept = is_finished(folder) or any(places.glob("*.damaged")) or (places / "best.safetensors").is_file()
    lost = is_lost(folder) and not kept
    return _is_run(folder) and not lost, lost


def record_max_corrupt(folder: Path, max_corrupt: int) -> None:
    """Save `max_corrupt` in a run's recipe, so that whoever opens the run leaves out the same unreadable images."""
    if read_run_recipe(folder).max_corrupt != max_corrupt:  # reading it checks that the recipe is whole
        recorded = read_recipe(folder / "recipe.yaml")  # with the place the data had, even if they moved
        with written_whole(folder / "recipe.yaml") as partial:
            write_recipe(replace(recorded, max_corrupt=max_corrupt), partial, sealed=True)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished training: its summary is written last."""
    return (folder / "summary.json").is_file()


@contextmanager
def summary_of(run: RunDir, more: str) -> Iterator[Any]:
    """The content of a run's summary.json; if reading it fails inside the block, the error says "damaged", and `more`.

    Raises FileNotFoundError without a summary, RuntimeError if it is damaged.
    """
    path = Path(run) / "summary.json"
    with parsing(f"{path} is damaged: {more}"):
        yield read_json(path)


def is_lost(folder: Path) -> bool:
    """Whether a training was begun here that left nothing: no checkpoint to continue from, and no final weights."""
    return _is_run(folder) and not checkpoints(folder) and not (folder / "model.safetensors").is_file()


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of its data and weights, valid from any folder and without AUXNET_DATA."""
    data, data_dir = sources.absolute_source(recipe.data, recipe.data_dir)
    pretrained = None if recipe.pretrained is None else absolute_name(recipe.pretrained)
    return replace(recipe, data=data, data_dir=data_dir, pretrained=pretrained)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first: by the epoch and step in their names, not by their time."""
    paths = (folder / "checkpoints").glob("*.ckpt")
    named = {path: match for path in paths if (match := re.fullmatch(r"(\d{5,})-(\d{7,})", path.stem))}
    return sorted(named, key=lambda path: (int(named[path][1]), int(named[path][2])), reverse=True)


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to metrics.jsonl or diagnosis.jsonl, and wait until they are on the disk."""
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

    A line that is not a valid row is left out: a damaged one, or the last one, torn by a crash.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError, TypeError, KeyError):  # no text, no JSON, no row, a number that is not finite
            row = dict(json_value(line.decode()))
            if all(isinstance(row[key], kind) for key, kind in ROWS[row.get("split")].items()) and lines([row]):
                rows.append(row)
    return rows


def whole_epochs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of those epochs that are complete, with two rows for each output.

    (A file that is being written, or was cut off by a crash, may end anywhere; a line of it may be damaged.)
    """
    outputs = max((row["output"] for row in rows), default=0)
    logged = Counter(row["epoch"] for row in rows)
    return [row for row in rows if logged[row["epoch"]] >= 2 * outputs]


def _check_same(saved: Recipe, recipe: Recipe, folder: Path) -> None:
    """Raise ValueError if a recipe differs from the run's, except in where it runs (`WHERE`) and in max_corrupt."""
    free = {key: getattr(recipe, key) for key in (*WHERE, "max_corrupt")}
    saved, recipe = with_absolute_paths(replace(saved, **free)), with_absolute_paths(recipe)
    if not Path(saved.data).exists() and Path(saved.data).name == Path(recipe.data).name:
        saved = replace(saved, data=recipe.data)  # the data have moved
    if may_be_pin_of(saved.pretrained, recipe.pretrained):
        saved = replace(saved, pretrained=recipe.pretrained)
    for key, value in asdict(saved).items():
        if value != getattr(recipe, key):
            asked = getattr(recipe, key)
            own = f"leave the flag out (in Python give auxnet.recipe.read_run_recipe({str(folder)!r}))"
            mend = f"{own}, or train another run with --out"
            if key == "data":
                value = read_recipe(folder / "recipe.yaml").data  # the place they had
                mend += "; data that have moved are found by data_dir (--data-dir), the folder that holds them"
            if key == "epochs" and (folder / "model.safetensors").is_file():
                mend += f", from these weights by --pretrained {folder}"
            raise ValueError(f"{folder} was begun with {key}={value!r}, and cannot go on with {asked!r}: {mend}")
