"""Named tensors in a safetensors file, with their SHA-256: what was damaged on its way is not taken for whole."""

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

_KEY = "auxnet"  # a single one: safetensors writes several in an order that changes from process to process
_LARGEST_HEADER = 100_000_000  # bytes, as safetensors has it


def save_tensors(path: Path, state: Mapping[str, Tensor], **about: str | None) -> None:
    """Tensors by name, in the default memory format whatever theirs; `about` (not None) is what `read_about` gives."""
    plain = _plain(state)
    given = {key: value for key, value in about.items() if value is not None}
    noted = {_KEY: json.dumps({**given, "sha256": tensors_sha256(plain)})}
    with written_whole(path) as partial:
        partial.write_bytes(save(plain, noted))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds; one that holds no SHA-256, as those from elsewhere, is taken as it is.

    Raises DamagedError if the SHA-256 is that of other tensors, or there are none to read.
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
    """What tensors were saved with; {} if the file is damaged, not there, or not of this program."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, _LARGEST_HEADER)))
            about = json.loads(header["__metadata__"][_KEY])
    except (OSError, ValueError, RecursionError, TypeError, LookupError):
        return {}
    return about if isinstance(about, dict) else {}


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, kinds, shapes and bytes, whatever the memory format and the device."""
    found = sha256()
    for name, tensor in sorted(_plain(state).items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
