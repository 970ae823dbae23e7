"""Weights from elsewhere, of another run or of a pretrained backbone: loaded whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from auxnet.documents import read_json
from auxnet.errors import DamagedError, first_line, warn
from auxnet.fetching import local_or_fetched
from auxnet.files import whole_path
from auxnet.network import AuxNet
from auxnet.tensors import read_tensors
from auxnet.words import first_few

MOST_LISTED = 20  # names of keys of each kind that do not fit


def classes_in(path: Path | str, backbone: nn.Module, num_classes: int) -> int:
    """The number of classes of a file's weights, found by comparison with a backbone that was built for `num_classes`.

    It is the number of rows, in the file, of the tensors that have `num_classes` rows in the backbone; if they do not
    agree on one other number, it is `num_classes`. Raises what `load_pretrained` raises for a file that cannot be read.
    """
    state = _of_net(_read(Path(path)), backbone)
    theirs = {
        len(state[name])
        for name, tensor in backbone.state_dict().items()
        if name in state and tensor.ndim and len(tensor) == num_classes and state[name].shape[1:] == tensor.shape[1:]
    }
    others = theirs - {num_classes}
    return others.pop() if len(others) == 1 else num_classes


def is_weights_of_run(path: Path | str) -> bool:
    """Whether weights are those of an AuxNet, as a run has them, and not a backbone's. Raises what `_read` raises."""
    return all(name.startswith(("segments.", "heads.")) for name in _read(Path(path)))


def run_of(path: Path | str) -> Path:
    """The folder of the run that weights belong to, if they belong to one: they are in it, or in its checkpoints/.

    Links to a file are followed. If the file itself is in no run (git-annex, DVC, the hub's cache), the last link that
    is in a run decides.
    """
    path = whole_path(local_or_fetched(path))
    if path.is_dir():
        return path
    home = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if path.is_symlink() and path.is_file():
        end = run_of(path.parent / path.readlink())
        return home if "network" in config_of(home) and "network" not in config_of(end) else end
    return home


def config_of(run: Path) -> Mapping[str, Any]:
    """The config.json of a run; {} if there is none that can be read."""
    try:
        config = read_json(run / "config.json")
    except (OSError, RuntimeError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def file_of(path: Path | str) -> Path:
    """The file that weights are read from; of a run directory, that of its last epoch. Raises FileNotFoundError."""
    path = local_or_fetched(path)
    if path.is_dir():
        path /= "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    return path


def load_pretrained(net: nn.Module, path: Path | str) -> None:
    """Fill a net with the weights and buffers of a .safetensors file, or of a .pt or .pth file of tensors.

    `path` may be a run directory too: its weights of the last epoch; or a model on the hub, hf:owner/name[@revision]. A
    .pt file holds a state dict, or one under "state_dict" or "model"; nothing else is unpickled. Names may
    begin with "module.", "_orig_mod." or "model.", as those of wrapped nets do.

    The keys and shapes must be exactly the net's, with three exceptions: (1) if all outputs of an AuxNet have another
    number of classes than the file's, their last layers stay as they are, with a warning (for a backbone's own
    classifier, load the weights first and let `attach` replace it); (2) the last layer of any other net stays as it is,
    with a warning, if it is all that the file lacks; (3) the auxiliary heads of torchvision's GoogLeNet and Inception
    are left out if the net is built without them.

    Raises FileNotFoundError, ValueError with the keys that do not fit (the net is then as it was), or RuntimeError for
    a file that is damaged.
    """
    if isinstance(path, Mapping):
        raise TypeError("load_pretrained reads a file, and this is a state dict: net.load_state_dict(...) takes it")
    path = Path(path)
    own, theirs = net.state_dict(), _of_net(_read(path), net)
    # Files older than BatchNorm's counter of batches lack it, and are complete all the same.
    counters = {name: own[name] for name in own if name.endswith(".num_batches_tracked")}
    last = _for_other_classes(net, theirs) if isinstance(net, AuxNet) else {}
    begun = {} if isinstance(net, AuxNet) else _without_last(net, counters | theirs)
    state = {**counters, **theirs, **last, **begun}
    misfits = {
        "missing": [name for name in own if name not in state],
        "not the net's": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    if any(misfits.values()):
        told = " and ".join(
            f"{len(names)} {kind}: {first_few(names, MOST_LISTED)}" for kind, names in misfits.items() if names
        )
        raise ValueError(f"{path} does not fit the net: {told}")
    net.load_state_dict(state)
    if begun:
        warn(f"{path} has no {next(iter(begun))}: the last layer of the classifier is not loaded")
    if last:
        name = next(iter(last))
        counts = f"{len(theirs[name])} classes, the net of {len(last[name])}"
        warn(f"{path} is of {counts}: the last layers of all outputs are not loaded")


def _for_other_classes(net: AuxNet, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The net's own last layers, if those of another state dict all have the same other number of classes; else {}."""
    last: dict[str, Tensor] = {}
    pairs: set[tuple[int, tuple[int, int]]] = set()  # (head, (their classes, its own))
    for k, head in enumerate(net.heads):
        for name, tensor in head.state_dict(prefix=f"heads.{k}.").items():
            other = theirs.get(name)
            if other is not None and other.shape != tensor.shape and other.shape[1:] == tensor.shape[1:]:
                pairs.add((k, (len(other), len(tensor))))
                last[name] = tensor
    return last if len(pairs) == net.outputs and len({classes for _, classes in pairs}) == 1 else {}


def _without_last(net: nn.Module, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The net's own last layer, if it is all that another state dict lacks; else {}."""
    *_, (name, last) = [("", net), *((name, m) for name, m in net.named_modules() if m._parameters)]
    own = last.state_dict(prefix=f"{name}.") if name and isinstance(last, nn.Linear | nn.Conv2d) else {}
    return own if own.keys() == net.state_dict().keys() - theirs.keys() else {}


def _of_net(theirs: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Tensors by their names in the net; without those of torchvision's auxiliary heads, if the net has none."""
    theirs = _unwrapped(theirs, net)
    if getattr(net, "aux_logits", True):
        return theirs
    return {name: each for name, each in theirs.items() if getattr(net, name.partition(".")[0], net) is not None}


def _unwrapped(theirs: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Tensors by their names in the net: without the prefixes of wrappers that they were saved from."""
    own = net.state_dict()
    if "n_averaged" not in own:  # torch.optim.swa_utils.AveragedModel saves it beside its module
        theirs = {name: tensor for name, tensor in theirs.items() if name != "n_averaged"}
    # nn.DataParallel's and torch.compile's, which may wrap each other, and Lightning's usual attribute
    for prefix in ("module.", "_orig_mod.", "model."):
        if theirs and all(name.startswith(prefix) and name not in own for name in theirs):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in theirs.items()}, net)
    return theirs


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of a run directory, by name."""
    path = file_of(path)
    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"):
        raise ValueError(f"weights are read from .safetensors, .pt, .pth, .bin and .ckpt files, not from {path}")
    content: Any
    try:
        content = read_tensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except DamagedError:
        raise
    except Exception as error:  # torch.load raises a different one for every kind of damage
        raise RuntimeError(f"{path} is damaged, or holds more than tensors: {_reason(error)}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{path} holds no state dict: name -> tensor, or one under 'state_dict' or 'model'")
    return content


def _reason(error: Exception) -> str:
    """What torch.load says is wrong, without its advice."""
    _, found, said = str(error).rpartition("WeightsUnpickler error: ")
    what = re.search(r"GLOBAL (\S+)", said)
    if what:
        return f"{what[1]} (of a module save the state_dict(), not the module itself)"
    return first_line(ValueError(said)) if found else first_line(error)
