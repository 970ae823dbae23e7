"""Files that are whole or not there: models in the hub's layout, and the state that a training resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from auxnet.network import AuxNet
from auxnet.residual import resnet


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to, moved to `path` once it is complete and on the disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # safetensors makes files that only their owner can read
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read too."""
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON. Raises FileNotFoundError, or RuntimeError if the file is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: is it a finished run?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RuntimeError(f"{path} is damaged: {error}") from None


def save_weights(path: Path, net: AuxNet) -> None:
    """Weights and buffers of a net as safetensors, in the default memory format whatever the net's."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    with whole(path) as partial:
        save_file(state, partial)


def load_weights(path: Path, net: AuxNet) -> None:
    """Fill a net from safetensors. Raises FileNotFoundError, or RuntimeError if the file does not fit the net."""
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}")
    try:
        net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise RuntimeError(f"{path} is damaged or of another network: {str(error).splitlines()[0]}") from None


def build_net(config: Any, where: Path | str) -> AuxNet:
    """The net that a config.json describes, with random weights: of a run, or of one "output" taken out of it.

    Raises RuntimeError, naming `where` it was read, if it does not describe a network of this program.
    """
    try:
        net = resnet(**config["network"])
        if config.get("output") is None:
            return net
        alone = net.truncate(config["output"])
        depths = net.depths[config["output"] - 1 : config["output"]]
        return AuxNet([alone.get_submodule("trunk")], [alone.get_submodule("head")], depths)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RuntimeError(f"{where} does not describe a network of this program: {error}") from None


def load(run: Path | str, which: str = "last") -> AuxNet:
    """The net of a run directory, in evaluation mode: of the last epoch, or the "best" one on validation.

    `auxnet.load` (in `hub`) takes exported folders and the hub too. Raises FileNotFoundError if there is none,
    RuntimeError if its files are damaged.
    """
    folder = Path(run)
    if which not in ("last", "best"):
        raise ValueError(f"which must be 'last' or 'best', got {which!r}")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run directory {folder}")
    net = build_net(read_json(folder / "config.json"), folder / "config.json")
    load_weights(folder / ("model.safetensors" if which == "last" else "checkpoints/best.safetensors"), net)
    return net.eval()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Everything that a training resumes from."""
    with whole(path) as partial:
        torch.save(state, partial)


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote; tensors and plain values only. Raises RuntimeError if the file is damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a different one for every kind of damage
        raise RuntimeError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict):
        raise RuntimeError(f"{path} is not a checkpoint of this program")
    return state
