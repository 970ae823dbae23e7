"""The run directory: what a training leaves behind, begun, continued and closed without losing anything.

recipe.yaml, metrics.jsonl, checkpoints/, and at the end model.safetensors, config.json and summary.json.
"""

from __future__ import annotations

import copy
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from auxnet.checkpoint import load_state, load_weights, save_state, save_weights
from auxnet.documents import json_value
from auxnet.errors import DamagedError, DivergedError, first_line
from auxnet.files import whole
from auxnet.network import AuxNet
from auxnet.reading import sources
from auxnet.recipe import SEAL, WHERE, Recipe, read_run_recipe, write_recipe
from auxnet.tensorboard import event_files
from auxnet.tensors import read_about
from auxnet.update import Method

OURS = (
    "metrics.jsonl",
    "diagnosis.jsonl",
    "diagnosis.json",
    "diagnosis.html",
    "summary.json",
    "evaluation.json",
    "exits.json",
    "report.html",
    "model.safetensors",
    "config.json",
    "checkpoints/best.safetensors",
)
LOCK = ".lock"
PARTIAL = r"\..+\.[0-9a-f]+\.partial"  # what `files.whole` leaves if it is killed


@dataclass(frozen=True)
class Standing:
    """How far a training has come, and what it has seen."""

    epoch: int = 0
    """epochs done"""
    step: int = 0
    """steps done in the epoch after those"""
    losses: tuple[float, ...] = ()
    """the training losses of those steps, one per output, summed over their images"""
    seconds: float = 0.0
    """spent in all"""
    epoch_seconds: float = 0.0
    """spent in those steps"""
    best_epoch: int = 0
    best_error: float = float("inf")
    """mean over the outputs (those that train to the end) of their validation errors, in the best epoch"""
    history: tuple[dict[str, Any], ...] = ()
    """the rows of metrics.jsonl"""
    drawn: str | None = None
    """`DataSet.drawn`; None in runs of earlier versions"""
    preprocessing: dict[str, list[Any]] | None = None
    """`Preprocessing.content()`, which stays as it was at the beginning; None in runs of earlier versions"""

    def within(self, step: int, losses: Iterable[float], seconds: float) -> Standing:
        """The standing in the middle of an epoch, `seconds` after this one."""
        total, of_epoch = self.seconds + seconds, self.epoch_seconds + seconds
        return replace(self, step=step, losses=tuple(losses), seconds=total, epoch_seconds=of_epoch)

    def after(self, val_errors: list[float], rows: Iterable[dict[str, Any]], seconds: float) -> Standing:
        """The standing once the epoch is done; on a tie the earlier epoch stays the best."""
        epoch, error = self.epoch + 1, sum(val_errors) / len(val_errors)
        best = (epoch, error) if error < self.best_error else (self.best_epoch, self.best_error)
        begun_with = (self.drawn, self.preprocessing)
        return Standing(epoch, 0, (), self.seconds + seconds, 0.0, *best, (*self.history, *rows), *begun_with)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a run directory for this process alone; it is made if need be, and removed again if nothing came of it.

    Raises FileExistsError if another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(f"{folder}: another process is training in it; name another folder, or wait") from None
    written = ("checkpoints/", ".recipe.yaml", ".metrics.jsonl", ".model.safetensors", ".config.json", ".summary.json")
    for half in (path for name in written for path in folder.glob(f"{name}.*.partial")):
        half.unlink(missing_ok=True)  # what a killed training was writing
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may have vanished, or its disk be read-only
            if made and not any(path.name != LOCK for path in folder.iterdir()):
                (folder / LOCK).unlink(missing_ok=True)
                for path in made:
                    path.rmdir()
        lock.release()


def check(folder: Path, recipe: Recipe, resume: bool, overwrite: bool) -> None:
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
            raise FileNotFoundError(f"there is no run to resume in {folder}")
        _check_same(read_run_recipe(folder), recipe, folder)
    elif is_run and not overwrite:
        mend = "resume (--resume) continues it, overwrite (--overwrite) replaces it"
        raise FileExistsError(f"{folder} holds a run already: {mend}")
    elif not is_run and folder.is_dir() and any(map(_is_foreign, folder.iterdir())):
        raise FileExistsError(f"{folder} holds other files: name a new folder for the run")
    of_folders = recipe.data not in sources.NAMES and Path(recipe.data).is_dir()
    if not resume and of_folders and Path(recipe.data).resolve() in folder.resolve().parents:
        raise ValueError(f"{folder} lies in the data, {recipe.data}, and would be taken for a part of it: name another")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{folder} cannot be made: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to")


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it holds a recipe that was written for one, or what one leaves beside it."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        return False
    with recipe.open("rb") as file:
        sealed = file.read(len(SEAL)) == SEAL
    return sealed or any((folder / name).exists() for name in ("checkpoints", "metrics.jsonl", "model.safetensors"))


def _is_foreign(path: Path) -> bool:
    """Whether something in a folder was left by anything else than a training killed while it began."""
    return path.name != LOCK and not re.fullmatch(PARTIAL, path.name)


def begin(folder: Path, recipe: Recipe) -> None:
    """Make the run directory, what an earlier run left in it removed, with the recipe saved.

    Killed anywhere in it, it leaves a recipe, by which the folder is known as a run, or nothing.
    """
    for path in (*_checkpoints(folder), *event_files(folder), *(folder / name for name in OURS)):
        path.unlink(missing_ok=True)
    with whole(folder / "recipe.yaml") as partial:
        write_recipe(located(recipe), partial, sealed=True)
    (folder / "checkpoints").mkdir(exist_ok=True)


def is_lost(folder: Path) -> bool:
    """Whether a training was begun here that left nothing: no checkpoint to go on from, and no weights at its end."""
    return _is_run(folder) and not _checkpoints(folder) and not (folder / "model.safetensors").is_file()


def located(recipe: Recipe) -> Recipe:
    """The recipe with its data and weights named so that they are found from any folder, and without AUXNET_DATA."""
    data, data_dir = sources.located(recipe.data, recipe.data_dir)
    pretrained = None if recipe.pretrained is None else str(Path(recipe.pretrained).resolve())
    return replace(recipe, data=data, data_dir=data_dir, pretrained=pretrained)


def check_finite(net: AuxNet) -> None:
    """Raise DivergedError for weights that nobody wants to go on from: before they replace better ones."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DivergedError(f"{name} holds values that are not finite; it is not saved, and the run stops there")


def save(
    folder: Path,
    standing: Standing,
    net: AuxNet,
    method: Method,
    keep: int,
    average: AuxNet | None = None,
    diagnosed: Sequence[dict[str, Any]] = (),
) -> None:
    """A checkpoint of where a training stands, the newest `keep` of them kept; at the end of an epoch its metrics,
    and what was diagnosed, are logged before, and its weights (their moving average, if there is one) kept after if it
    is the best so far.

    Raises RuntimeError if it cannot be written.
    """
    state = {"standing": asdict(standing), "net": net.state_dict(), "method": method.state_dict()}
    if average is not None:
        state["average"] = average.state_dict()
    try:
        if standing.step == 0:
            _append(folder / "metrics.jsonl", [row for row in standing.history if row["epoch"] == standing.epoch])
            if diagnosed:
                _append(folder / "diagnosis.jsonl", diagnosed)
        save_state(folder / "checkpoints" / f"{standing.epoch:05}-{standing.step:07}.ckpt", state)
        if standing.step == 0 and standing.best_epoch == standing.epoch:
            _save_best(folder, standing, net if average is None else average)
        for old in _checkpoints(folder)[keep:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        if not folder.is_dir():
            raise RuntimeError(f"{folder} has vanished, and what was saved of the run with it") from error
        saved = "what was saved before is whole: put that right, then go on with --resume"
        if not _checkpoints(folder):
            saved = "nothing was saved before: put that right, then begin again with --overwrite"
        raise RuntimeError(f"{folder} cannot be written to ({error.strerror}); {saved}") from error


def resume(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run that is not damaged; a damaged one is put aside, with a warning.

    Raises FileNotFoundError if there is none, DamagedError if all are damaged, RuntimeError if the newest is of another
    version of this program.
    """
    found = _checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"{folder} holds no checkpoint to resume from; --overwrite begins again")
    for path in found:
        try:
            return load_state(path)
        except DamagedError as error:
            path.replace(path.with_suffix(".damaged"))
            warnings.warn(f"{error}; the one before it is taken", stacklevel=2)
    raise DamagedError(f"{folder}: every checkpoint is damaged ({len(found)}); --overwrite begins again")


def take_up(state: dict[str, Any], net: AuxNet, method: Method, where: Path, average: AuxNet | None = None) -> Standing:
    """Fill net, method and moving average from a checkpoint. Raises RuntimeError if it is of another recipe."""
    try:
        net.load_state_dict(state["net"])
        method.load_state_dict(state["method"])
        if average is not None:
            average.load_state_dict(state["average"])
        return Standing(**state["standing"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RuntimeError(f"{where}: the checkpoint does not fit the recipe: {first_line(error)}") from None


def restore(folder: Path, standing: Standing, net: AuxNet, epochs: int) -> Standing:
    """Bring the other files back to what they were at this standing: metrics to the line, the best weights.

    (And diagnosis.jsonl, where the run has one: its lines are on the disk before the checkpoint of their epoch is.)

    Where the best weights are gone (a later epoch that is lost had replaced them) or, with a warning, damaged, the
    best so far is forgotten: the epochs to come, of all `epochs`, decide, that one again among them. Raises
    DamagedError if none is to come.
    """
    with whole(folder / "metrics.jsonl") as partial:
        partial.write_text(_lines(standing.history), encoding="utf-8")
    if (folder / "diagnosis.jsonl").is_file():
        diagnosed = [row for row in read_rows(folder / "diagnosis.jsonl") if row["epoch"] <= standing.epoch]
        with whole(folder / "diagnosis.jsonl") as partial:
            partial.write_text(_lines(diagnosed), encoding="utf-8")
    if _epoch_of_best(folder, net) == str(standing.best_epoch):
        return standing
    if standing.step == 0 and standing.best_epoch == standing.epoch:
        _save_best(folder, standing, net)
        return standing
    if standing.epoch == epochs:
        raise DamagedError(f"{folder}: the best weights are gone from checkpoints/: --overwrite trains it again")
    return replace(standing, best_epoch=0, best_error=float("inf"))


def _epoch_of_best(folder: Path, net: AuxNet) -> str | None:
    """Of which epoch the best weights of a run are; None if there are none that its net can be filled with."""
    path = folder / "checkpoints" / "best.safetensors"
    try:
        load_weights(path, copy.deepcopy(net))
    except FileNotFoundError:
        return None
    except RuntimeError as error:
        warnings.warn(f"{error}; it is not used", stacklevel=2)
        return None
    return read_about(path).get("epoch")


def _save_best(folder: Path, standing: Standing, net: AuxNet) -> None:
    save_weights(folder / "checkpoints" / "best.safetensors", net, {"epoch": str(standing.epoch)})


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first: by the place that they hold in the training, not by their time."""
    found = (folder / "checkpoints").glob("*.ckpt")
    named = {path: match for path in found if (match := re.fullmatch(r"(\d{5,})-(\d{7,})", path.stem))}
    return sorted(named, key=lambda path: (int(named[path][1]), int(named[path][2])), reverse=True)


def _append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_lines(rows))
        file.flush()
        os.fsync(file.fileno())


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return read_rows(folder / "metrics.jsonl")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl or diagnosis.jsonl, one a line, each with its epoch; none if there is no file.

    A line that is no row any more is left out: damaged, or the last one, torn by a crash.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):  # no text, no JSON, or a number that is not finite
            row = json_value(line.decode())
            if isinstance(row, dict) and isinstance(row.get("epoch"), int) and _lines([row]):
                rows.append(row)
    return rows


def _check_same(saved: Recipe, recipe: Recipe, folder: Path) -> None:
    """A run goes on by its own recipe; only where it runs may change."""
    saved, recipe = located(replace(saved, **{key: getattr(recipe, key) for key in WHERE})), located(recipe)
    if not Path(saved.data).exists() and Path(saved.data).name == Path(recipe.data).name:
        saved = replace(saved, data=recipe.data)  # it has moved
    for key, value in asdict(saved).items():
        if value != getattr(recipe, key):
            asked = getattr(recipe, key)
            mend = "leave it out, or train another run with --out"
            raise ValueError(f"{folder} was begun with {key}={value!r}, and cannot go on with {asked!r}: {mend}")
