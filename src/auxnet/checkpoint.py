"""What survives a training: models in the hub's layout, and the state that it resumes from."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from auxnet.backbones.described import net_from
from auxnet.backbones.named import check_outside, is_own_code
from auxnet.documents import made_again, parsing, read_json
from auxnet.errors import DamagedError, check_choice, first_line
from auxnet.files import is_held, written_whole
from auxnet.machine import random_kept
from auxnet.network import AuxNet
from auxnet.recipe import RunDir, has_recipe, read_run_recipe, run_path
from auxnet.rundir import LOCK, checkpoints
from auxnet.sections import Which
from auxnet.tensors import read_tensors
from auxnet.words import command

FORMAT = 1  # of checkpoints: from the first release on, a later program goes on reading the earlier ones. Later
# formats must hash this number too, so that a flipped bit in it is recognised as damage


def weights_file(folder: Path, which: Which) -> Path:
    """Where a run has its "last" or "best" weights. Raises ValueError for others."""
    check_choice("which", which, Which)
    return folder / ("model.safetensors" if which == "last" else "checkpoints/best.safetensors")


def weights_sha256(folder: Path, which: Which = "last") -> str:
    """SHA-256 of a run's weights: what was worked out for others must not be used with them.

    Raises FileNotFoundError if the run has none.
    """
    path = weights_file(folder, which)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {path.relative_to(folder)}: is it a finished run?")
    return sha256(path.read_bytes()).hexdigest()


def load_weights(path: Path, net: AuxNet) -> None:
    """Fill a net from safetensors. Raises FileNotFoundError, or RuntimeError if the file is damaged or does not fit."""
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}{made_again(path)}")
    try:
        state = read_tensors(path)
    except DamagedError as error:
        raise DamagedError(f"{error}{made_again(path)}") from None
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise RuntimeError(f"{path} is damaged or of another network: {first_line(error)}") from None


def build_net(config: Any, where: Path | str, trusted: str | None = None) -> AuxNet:
    """The net that a config.json describes, with random weights: of a run, or of one "output" taken out of it.

    Files come from anywhere, and must not say what is imported: of backbones that are code of the user's own
    (package.module:function) only the `trusted` one is built (`backbone_of`).

    Raises RuntimeError, naming `where` it was read, if it does not describe a network of this program, or cannot be
    built here; ValueError for a backbone that is not trusted.
    """
    with parsing(f"{where} does not describe a network of this program"):
        backbone = config["network"].get("backbone")
        foreign = backbone is not None and is_own_code(backbone) and backbone != trusted
    if foreign:
        raise ValueError(
            f"{where} names the backbone {str(backbone)[:80]!r}, code that is not imported for a file's sake: build it "
            f"yourself, cut it by auxnet.attach at {str(config['network'].get('cuts'))[:80]}, and load the weights"
        )
    with random_kept(torch.device("cpu")), parsing(f"{where} does not describe a network of this program"):
        net = net_from(config["network"])
        return net if config.get("output") is None else net.alone(config["output"])


def read_config(folder: Path) -> Any:
    """The config.json of a run. Raises FileNotFoundError, which says how to go on with a run that is not finished."""
    finished = any((folder / name).is_file() for name in ("config.json", "summary.json"))
    if not finished and checkpoints(folder):
        goes_on = f"`{command('train', '--out', folder, '--resume')}` goes on with it"
        trained = is_held(folder / LOCK)
        raise FileNotFoundError(f"{folder} is not finished: {'another process trains in it' if trained else goes_on}")
    return read_json(folder / "config.json")


def backbone_of(run: Path) -> str | None:
    """The backbone that a run directory's own recipe asks for: code that the user had trained by name.

    Raises ValueError if that code lies in the run: then it came with it, from wherever the run comes.
    """
    backbone = read_run_recipe(run).backbone if has_recipe(run) else None
    if backbone is not None:
        check_outside(backbone, run)
    return backbone


def load_net(run: RunDir, which: Which = "last") -> AuxNet:
    """The net of a run directory, in evaluation mode: of the last epoch, or the "best" one on validation.

    `auxnet.load` (in `hub`) takes exported folders and the hub too. Raises FileNotFoundError if there is none,
    RuntimeError if its files are damaged.
    """
    folder = run_path(run)
    weights = weights_file(folder, which)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run directory {folder}")
    net = build_net(read_config(folder), folder / "config.json", backbone_of(folder))
    load_weights(weights, net)
    return net.eval()


def save_state(path: Path, state: dict[str, Any], written: Callable[[], object] = lambda: None) -> None:
    """A checkpoint: tensors and plain values, as a line of text (format, SHA-256) and what torch.save makes of them.

    `written` is called once all of it is on the disk, and before it stands at `path`.
    """
    payload = io.BytesIO()
    torch.save(state, payload)
    checksum = sha256(payload.getbuffer()).hexdigest()
    with written_whole(path) as partial:
        with partial.open("wb") as file:
            file.write(f"auxnet checkpoint {FORMAT} sha256 {checksum}\n".encode())
            file.write(payload.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        written()


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
