"""Named tensors in a safetensors file, with their SHA-256, by which a damaged file is recognised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from auxnet.errors import DamagedError, first_line
from auxnet.files import written_whole

_KEY = "auxnet"  # one key alone: safetensors writes several in an order that changes from process to process
_LARGEST_HEADER = 100_000_000  # bytes, as safetensors has it


def save_tensors(path: Path, state: Mapping[str, Tensor], **about: str | None) -> None:
    """Save tensors by name, in the default memory format, and what of `about` is not None, which `read_about` reads."""
    plain = _plain(state)
    given = {key: value for key, value in about.items() if value is not None}
    noted = {_KEY: json.dumps({**given, "sha256": tensors_sha256(plain)})}
    with written_whole(path) as partial:
        partial.write_bytes(save(plain, noted))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a file without a SHA-256, as other programs write it, is not checked.

    Raises DamagedError if the SHA-256 is that of other tensors, or if there are no tensors to read.
    """
    try:
        found = load(path.read_bytes())  # safetensors opens no path that is not UTF-8
    except SafetensorError as error:
        raise DamagedError(f"{path} is damaged: {first_line(error)}") from None
    state = dict(sorted(found.items()))  # in the same order every time
    expected = read_about(path).get("sha256")
    if expected is not None and expected != tensors_sha256(state):
        raise DamagedError(f"{path} is damaged: its checksum does not hold")
    return state


def read_about(path: Path) -> dict[str, str]:
    """The `about` that tensors were saved with; {} if the file is damaged, missing, or not of this program."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, _LARGEST_HEADER)))
            about = json.loads(header["__metadata__"][_KEY])
    except (OSError, ValueError, RecursionError, TypeError, LookupError):
        return {}
    return about if isinstance(about, dict) else {}


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of tensors, whatever their memory format and device."""
    found = sha256()
    for name, tensor in sorted(_plain(state).items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
