"""The checkpoint file: tensors and plain values with their SHA-256, written whole or not at all."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import torch

from auxnet.errors import DamagedError, first_line
from auxnet.files import written_whole

FORMAT = 1  # of checkpoints: from the first release on, later versions must read all earlier formats. Later formats
# must hash this number too, so that a flipped bit in it is recognised as damage


def save_state(path: Path, state: dict[str, Any], written: Callable[[], object] = lambda: None) -> None:
    """Write a checkpoint of tensors and plain values: a line of text (format, SHA-256), then the bytes of torch.save.

    `written` is called once all of it is on the disk, before the file gets the name `path`.
    """
    with written_whole(path) as partial:
        with partial.open("wb") as file:
            file.write(_head(sha256().hexdigest()))  # a placeholder: the rest is hashed while it is written
            payload = _Hashed(file)
            torch.save(state, payload)  # type: ignore[arg-type]
            if payload.error is not None:
                raise payload.error
            file.seek(0)
            file.write(_head(payload.digest.hexdigest()))
            file.flush()
            os.fsync(file.fileno())
        written()


def _head(checksum: str) -> bytes:
    return f"auxnet checkpoint {FORMAT} sha256 {checksum}\n".encode()


class _Hashed(io.RawIOBase):
    """A file for torch.save to write to, with the SHA-256 of what it wrote."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, sha256()
        self.error: BaseException | None = None

    def write(self, some: Any) -> None:
        """Write and hash; an error is kept for later, since torch would raise one of its own that does not say why."""
        try:
            if self.error is None:
                self.digest.update(some)
                self.file.write(some)
        except BaseException as error:  # Ctrl-C, too
            self.error = error


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; only tensors and plain values are unpickled, and only if the checksum holds.

    Raises DamagedError if the file is not as it was written, RuntimeError if another version wrote it.
    """
    line, _, payload = path.read_bytes().partition(b"\n")
    head = re.fullmatch(rb"auxnet checkpoint (\d{1,9}) sha256 ([0-9a-f]{64})", line[:200])
    if not head:
        raise DamagedError(f"{path} is damaged, or not a checkpoint of this program")
    holds = sha256(payload).hexdigest().encode() == head[2]
    if int(head[1]) != FORMAT and not holds:
        raise RuntimeError(f"{path} has format {int(head[1])}, this version of auxnet reads {FORMAT}: use a later one")
    if int(head[1]) != FORMAT or not holds:  # (later formats hash their number too)
        raise DamagedError(f"{path} is damaged: its checksum does not hold")
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as records:
            if any(record.compress_type for record in records.infolist()):  # torch.save compresses nothing
                raise ValueError("its records are compressed")
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a different one for every kind of content that it refuses
        raise RuntimeError(f"{path} is not a checkpoint of this program: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise RuntimeError(f"{path} is not a checkpoint of this program")
    return state
