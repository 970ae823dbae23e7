"""The run directory: what a training leaves behind, begun, continued and closed without losing anything.

recipe.yaml, metrics.jsonl, checkpoints/, and at the end model.safetensors, config.json and summary.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from auxnet import __version__
from auxnet.checkpoint import load_state, save_state, save_weights, whole
from auxnet.network import AuxNet
from auxnet.recipe import Recipe, read_recipe, write_recipe
from auxnet.update import Method

OURS = (
    "metrics.jsonl",
    "summary.json",
    "evaluation.json",
    "exits.json",
    "report.html",
    "model.safetensors",
    "config.json",
    "checkpoints/last.pt",
    "checkpoints/best.safetensors",
    "recipe.yaml",  # last: what is left after a crash in between is still known as a run
)


@dataclass(frozen=True)
class Standing:
    """How far a training has come."""

    epoch: int = 0
    """the last one done; epochs count from 1"""
    best_epoch: int = 0
    best_error: float = float("inf")
    """mean over the outputs of their validation errors, in the best epoch"""
    seconds: float = 0.0
    """spent in all epochs"""

    def after(self, epoch: int, val_errors: list[float], seconds: float) -> Standing:
        """The standing once another epoch is done; on a tie the earlier epoch stays the best."""
        error = sum(val_errors) / len(val_errors)
        better = (epoch, error) if error < self.best_error else (self.best_epoch, self.best_error)
        return Standing(epoch, *better, self.seconds + seconds)


def check(folder: Path, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Refuse, before anything is computed, what would lose something of the user's.

    Raises FileExistsError, FileNotFoundError, or ValueError if the run to resume has another recipe.
    """
    if resume and overwrite:
        raise ValueError("resume continues a run and overwrite replaces it: give one of the two")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder for the run")
    is_run = (folder / "recipe.yaml").is_file()
    if resume:
        if not is_run:
            raise FileNotFoundError(f"there is no run to resume in {folder}")
        _check_same(read_recipe(folder / "recipe.yaml"), recipe, folder)
    elif is_run and not overwrite:
        raise FileExistsError(f"{folder} holds a run already: --resume continues it, --overwrite replaces it")
    elif not is_run and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds other files: name a new folder for the run")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{folder} cannot be made: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to")


def begin(folder: Path, recipe: Recipe) -> None:
    """Make the run directory, what an earlier run left in it removed, with the recipe saved."""
    for name in OURS:
        (folder / name).unlink(missing_ok=True)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    with whole(folder / "recipe.yaml") as partial:
        write_recipe(recipe, partial)


def resume(folder: Path, net: AuxNet, method: Method) -> Standing:
    """Fill net and method as the last epoch left them, and drop later lines of the metrics.

    Raises FileNotFoundError without a checkpoint, RuntimeError if it is damaged or of another recipe.
    """
    path = folder / "checkpoints" / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoints/last.pt to resume from; --overwrite begins again")
    state = load_state(path)
    try:
        net.load_state_dict(state["net"])
        method.load_state_dict(state["method"])
        standing = Standing(**state["standing"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RuntimeError(f"{path} does not fit the recipe: {str(error).splitlines()[0]}") from None
    kept = [json.dumps(row) + "\n" for row in read_metrics(folder) if row["epoch"] <= standing.epoch]
    with whole(folder / "metrics.jsonl") as partial:
        partial.write_text("".join(kept), encoding="utf-8")
    return standing


def save_epoch(folder: Path, standing: Standing, rows: Iterable[dict[str, Any]], net: AuxNet, method: Method) -> None:
    """Log an epoch, keep its weights if it is the best so far, and make it the one to resume from."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    if standing.best_epoch == standing.epoch:
        save_weights(folder / "checkpoints" / "best.safetensors", net)
    state = {"standing": asdict(standing), "net": net.state_dict(), "method": method.state_dict()}
    save_state(folder / "checkpoints" / "last.pt", state)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that was torn by a crash is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def provenance(device: torch.device) -> dict[str, Any]:
    """Where a figure comes from: versions, device, threads, and the commit where the program runs from git."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "versions": {"auxnet": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": _commit(),
        "device": {"type": device.type, "name": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def _check_same(saved: Recipe, recipe: Recipe, folder: Path) -> None:
    """A run goes on by its own recipe; only where it runs may change."""
    saved = replace(saved, device=recipe.device, threads=recipe.threads, data_dir=recipe.data_dir)
    for key, value in asdict(saved).items():
        if value != getattr(recipe, key):
            raise ValueError(f"{folder} was begun with {key}={value!r}, and cannot go on with {getattr(recipe, key)!r}")


def _commit() -> str | None:
    source = Path(__file__).parent
    if not (source.parents[1] / ".git").exists():
        return None
    git = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
