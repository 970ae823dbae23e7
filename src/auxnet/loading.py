"""Nets of run directories: built as config.json describes them, filled with the weights beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from auxnet.answers import alike, answers, check_answers
from auxnet.backbones.described import net_from
from auxnet.backbones.named import check_outside, is_own_code
from auxnet.documents import made_again, parsing, read_json
from auxnet.errors import DamagedError, check_choice, first_line
from auxnet.files import is_held, sha256_of
from auxnet.machine import random_kept
from auxnet.modules import copied
from auxnet.network import AuxNet
from auxnet.recipe import RunDir, has_recipe, read_run_recipe, run_path
from auxnet.rundir import LOCK, checkpoints
from auxnet.sections import Which
from auxnet.tensors import read_about, read_tensors
from auxnet.words import command


def weights_file(folder: Path, which: Which) -> Path:
    """Where a run has its "last" or "best" weights. Raises ValueError for others."""
    check_choice("which", which, Which)
    return folder / ("model.safetensors" if which == "last" else "checkpoints/best.safetensors")


def weights_sha256(folder: Path, which: Which = "last") -> str:
    """SHA-256 of a run's weights: what was computed for other weights must not be used with these.

    Raises FileNotFoundError if the run has none.
    """
    path = weights_file(folder, which)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {path.relative_to(folder)}: is it a finished run?")
    return sha256_of(path)


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
        raise RuntimeError(f"{path} is damaged or of another network than is built here: {first_line(error)}") from None
    if (note := read_about(path).get("answers")) is not None:
        check_answers(net, note, path)


def build_net(config: Any, where: Path | str, trusted: str | None = None) -> AuxNet:
    """The net that a config.json describes, with random weights: of a run, or of one "output" taken out of it.

    Files come from anywhere, and must not decide what is imported: if the backbone is the user's own code
    (package.module:function), it is built only if it is the `trusted` one (`backbone_of`).

    Raises RuntimeError, naming `where` it was read, if it does not describe a network of this program, or cannot be
    built here; ValueError for a backbone that is not trusted.
    """
    undescribed = f"{where} does not describe a network of this program"
    with parsing(undescribed):
        backbone = config["network"].get("backbone")
        foreign = backbone is not None and is_own_code(backbone) and backbone != trusted
    if foreign:
        raise ValueError(
            f"{where} names the backbone {str(backbone)[:80]!r}, code that is not imported for a file's sake: build it "
            f"yourself, cut it by auxnet.attach at {str(config['network'].get('cuts'))[:80]}, and load the weights"
        )
    why = undescribed if backbone is None else f"the network of {where} cannot be built here"
    with random_kept(torch.device("cpu")), parsing(why):
        net = net_from(config["network"])
        return net if config.get("output") is None else net.alone(config["output"])


def unlike(net: AuxNet, built: AuxNet, image_shape: Sequence[int]) -> str | None:
    """What differs between a net and `built`, the net of its description, with the same weights; None if nothing does.

    Compared are the names and shapes of tensors, then the logits for an image (C, H, W), on the CPU and in float32.
    """
    state, theirs = net.state_dict(), built.state_dict()
    shapes = [{(name, tuple(x.shape)) for name, x in each.items()} for each in (state, theirs)]
    if different := min(shapes[0] ^ shapes[1], default=None):
        return f"its tensor {different[0]}"
    built.load_state_dict(state)
    said, expected = (answers(each.cpu().float(), image_shape) for each in (copied(net), built))
    return None if alike(said, expected) else "what it computes"


def read_config(folder: Path) -> Any:
    """The config.json of a run. Raises FileNotFoundError, which says how to continue an unfinished run."""
    finished = any((folder / name).is_file() for name in ("config.json", "summary.json"))
    if not finished and checkpoints(folder):
        goes_on = f"`{command('train', '--out', folder, '--resume')}` goes on with it"
        trained = is_held(folder / LOCK)
        raise FileNotFoundError(f"{folder} is not finished: {'another process trains in it' if trained else goes_on}")
    return read_json(folder / "config.json")


def backbone_of(run: Path) -> str | None:
    """The backbone that a run directory's own recipe asks for: code that the user had trained by name.

    Raises ValueError if that code is in the run: it then came with the run, from wherever that comes.
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
