"""The recipe: everything that decides what a training gives, as one flat record that a YAML file can hold."""

from __future__ import annotations

import difflib
import types
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from auxnet.documents import read_yaml

BACKBONES = "timm:NAME, torchvision:NAME or package.module:function"
CUTS = "1 or more, or the names of modules"
OF_RESNETS = ("depth", "outputs", "at", "block", "width", "head", "precision")
OF_BACKBONES = ("cuts", "pretrained")


@dataclass(frozen=True)
class Recipe:
    """How to train: the data, the network, the method, the schedule. Saved with every run as recipe.yaml."""

    data: str = "digits"
    """digits, cifar10, cifar100, svhn, a folder of class folders, a folder of parquet shards, or hf:owner/name"""
    data_dir: str | None = None
    """where data sets lie (default: $AUXNET_DATA)"""
    image_size: int | None = None
    """resize and crop the images of a folder to this many pixels a side"""
    val_fraction: float = 0.1
    """share of the training images held out, class by class, for every choice that is made"""
    augment: Literal["default", "none", "crop", "flip", "crop+flip"] = "default"
    """random crops after zero padding, random horizontal flips; default: what suits the data set"""
    stream: Literal["auto", "always", "never"] = "auto"
    """leave the images of folders and parquet on disk; auto: if they would take over half of the memory left"""
    workers: int | None = None
    """processes that decode images left on disk (default: one per core)"""
    max_corrupt: int = 0
    """images that cannot be read and are left out, each told by name, before the run fails"""

    depth: int = 20
    """layers of the network, 6n + 2"""
    outputs: int | None = None
    """outputs, the final one included, placed evenly from the top (default: 3, or as --at says)"""
    at: tuple[int, ...] | None = None
    """layers of the auxiliary outputs, in place of --outputs"""
    block: Literal["plain", "original", "preact"] = "preact"
    """residual block: none, post-activation with option-A shortcuts, pre-activation"""
    width: int = 1
    """multiplies the channels (Wide ResNet)"""
    head: Literal["default", "bn_relu", "linear"] = "default"
    """form of the auxiliary heads; default: that of the final one"""
    backbone: str | None = None
    """in place of the built-in ResNets: timm:NAME, torchvision:NAME, or package.module:function of your own"""
    cuts: int | tuple[str, ...] | None = None
    """the backbone's modules after which outputs are added, or how many even cuts (default: 2)"""
    pretrained: str | None = None
    """file of weights for the backbone: .safetensors, or a .pt or .pth of tensors"""

    method: Literal["joint", "pairwise", "multiway"] = "multiway"
    """how gradients are propagated"""
    mode: Literal["live", "frozen", "fused"] = "live"
    """multiway: what a backward sees of the updates before it"""
    step_scale: Literal["default", "none", "sum", "cumulative", "adaptive"] = "default"
    """division of the trunk's step; default: sum (joint), none (pairwise), cumulative (multiway)"""
    gamma: float = 2.0
    """loss weights are (layer / depth)^gamma"""
    floor: float = 0.01
    """least loss weight"""
    relative_to: Literal["final", "last_auxiliary"] = "final"
    """the depth that loss weights refer to: the paper's, or the authors' code's"""

    epochs: int = 30
    """passes over the training images"""
    batch_size: int = 128
    """images a step"""
    optimizer: str = "SGD"
    """any optimizer of torch.optim that takes dense gradients of any shape, by name"""
    lr: float = 0.1
    """step size at the start"""
    momentum: float = 0.9
    """for optimizers that have it"""
    nesterov: bool = True
    """for optimizers that have it"""
    weight_decay: float = 1e-4
    """for optimizers that have it"""
    milestones: tuple[float, ...] = (0.4, 0.6)
    """shares of the run after which the step size is multiplied by lr_decay"""
    lr_decay: float = 0.1
    """factor at each milestone"""
    clip: float | None = None
    """largest gradient norm of an update"""
    label_smoothing: float = 0.0
    """share of the target spread over all classes"""
    sync_batchnorm: bool = False
    """under torchrun, BatchNorm normalises by the images of all processes, not by those of its own"""

    seed: int = 0
    """of the validation split, the weights, the order and the augmentation"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of convolutions and linear layers; bfloat16 is for GPUs, and slow on most CPUs"""
    threads: int | None = None
    """CPU threads (default: PyTorch's choice, at most the cores that this process may use)"""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _as(hint, getattr(self, name), name))
        for name, holds, rule in (
            ("backbone", self.backbone is None or all(self.backbone.partition(":")), BACKBONES),
            ("cuts", self.cuts is None or (self.cuts > 0 if isinstance(self.cuts, int) else self.cuts != ()), CUTS),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("lr", 0 < self.lr < float("inf"), "above 0 and finite"),
            ("lr_decay", 0 < self.lr_decay <= 1, "in 0..1, above 0"),
            ("momentum", 0 <= self.momentum < 1, "0 or more and below 1"),
            ("weight_decay", 0 <= self.weight_decay < float("inf"), "0 or more and finite"),
            ("milestones", all(0 < m < 1 for m in self.milestones), "shares of the run between 0 and 1"),
            ("clip", self.clip is None or self.clip > 0, "above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more and below 1"),
            ("val_fraction", 0 < self.val_fraction <= 0.5, "above 0 and at most 0.5"),
            ("workers", self.workers is None or self.workers >= 0, "0 or more"),
            ("max_corrupt", self.max_corrupt >= 0, "0 or more"),
            ("threads", self.threads is None or self.threads >= 1, "1 or more"),
            ("seed", 0 <= self.seed < 2**63, "0 or more"),
        ):
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")
        if self.precision != "float32" and self.sync_batchnorm:
            raise ValueError("precision='bfloat16' has no synchronised BatchNorm: leave sync_batchnorm out")
        if self.mode != "live" and self.method != "multiway":
            raise ValueError(f"mode={self.mode!r} is multiway's, but method={self.method!r}; leave mode out")
        self._check_one_network()

    def _check_one_network(self) -> None:
        """Raise ValueError for fields of the built-in ResNets beside a backbone, or of a backbone without one."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if self.backbone is None and field.name in OF_BACKBONES:
                raise ValueError(f"{field.name}={value!r} is a backbone's, and there is none: name it with backbone")
            if self.backbone is not None and field.name in OF_RESNETS:
                mend = "outputs come after cuts" if field.name in ("outputs", "at") else "leave it out"
                raise ValueError(
                    f"{field.name}={value!r} is the built-in ResNets', but backbone={self.backbone!r}: {mend}"
                )


def read_recipe(path: Path | str) -> Recipe:
    """The recipe in a YAML file. Raises ValueError for a key or value that cannot be, naming the file."""
    try:
        content = read_yaml(Path(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no recipe file {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a YAML recipe: {error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, got a {type(content).__name__}")
    try:
        return recipe_from(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_run_recipe(run: Path | str) -> Recipe:
    """The recipe of a run directory. Raises FileNotFoundError if that is not one."""
    if not (Path(run) / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{run} is not a run directory: it holds no recipe.yaml")
    return read_recipe(Path(run) / "recipe.yaml")


def recipe_from(content: dict[Any, Any]) -> Recipe:
    """A recipe from a mapping; a key it does not know is a ValueError that names the nearest right one."""
    known = [field.name for field in fields(Recipe)]
    for key in content:
        if key not in known:
            raise ValueError(f"there is no recipe key {key!r}{nearest(str(key), known)}")
    return Recipe(**content)


def write_recipe(recipe: Recipe, path: Path | str) -> None:
    """Save a recipe, complete, so that the file trains the same run again."""
    import yaml

    content = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def nearest(word: str, known: list[str]) -> str:
    """A suggestion to end an error with: '; perhaps you meant ...', or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; perhaps you meant {close[0]!r}" if close else ""


def _as(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type that `hint` asks for, or ValueError: 3 serves as 3.0, a list as a tuple, no more."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(_as(get_args(kind)[0], item, name) for item in value)
        if kind is float and isinstance(value, int | str) and not isinstance(value, bool) and _is_number(value):
            return float(value)  # YAML reads 1e-4 as a string
        if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    raise ValueError(f"{name} must be {_describe(kinds)}, got {value!r}")


def _is_number(value: int | str) -> bool:
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def _describe(kinds: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return " or ".join(
        f"one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else words.get(kind, _list_of(kind))
        for kind in kinds
    )


def _list_of(kind: Any) -> str:
    return "a list of names" if str in get_args(kind) else "a list of numbers"
