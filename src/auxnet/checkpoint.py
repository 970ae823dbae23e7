"""The file that a training goes on from: tensors and plain values under their SHA-256, there whole or not at all."""

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

FORMAT = 1  # of checkpoints: from the first release on, a later program goes on reading the earlier ones. Later
# formats must hash this number too, so that a flipped bit in it is recognised as damage


def save_state(path: Path, state: dict[str, Any], written: Callable[[], object] = lambda: None) -> None:
    """A checkpoint: tensors and plain values, as a line of text (format, SHA-256) and what torch.save makes of them.

    `written` is called once all of it is on the disk, and before it stands at `path`.
    """
    with written_whole(path) as partial:
        with partial.open("wb") as file:
            file.write(_head(sha256().hexdigest()))  # its place: what follows is hashed as it is written
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
    """What torch.save writes to: a file, of all that follows in which the SHA-256 is taken."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, sha256()
        self.error: BaseException | None = None

    def write(self, some: Any) -> None:
        """Write and hash; what is raised is kept for later, as torch would raise an error that does not say why."""
        try:
            if self.error is None:
                self.digest.update(some)
                self.file.write(some)
        except BaseException as error:  # Ctrl-C, too
            self.error = error


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote; nothing is unpickled but tensors and plain values, and only if the checksum holds.

    Raises DamagedError if that is not what was written, RuntimeError if it was by another version.
    """
    line, _, payload = path.read_bytes().partition(b"\n")
    head = re.fullmatch(rb"auxnet checkpoint (\d{1,9}) sha256 ([0-9a-f]{64})", line[:200])
    if not head:
        raise DamagedError(f"{path} is damaged, or not a checkpoint of this program")
    holds = sha256(payload).hexdigest().encode() == head[2]
    if int(head[1]) != FORMAT and not holds:
        raise RuntimeError(f"{path} has format {int(head[1])}, this version of auxnet reads {FORMAT}: use a later one")
    if int(head[1]) != FORMAT or not holds:  # format 1 alone hashes what follows the line without its number
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
