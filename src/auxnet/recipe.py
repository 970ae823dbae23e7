"""The recipe: everything that decides what a training gives, as one flat record that a YAML file can hold."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from auxnet.documents import read_yaml
from auxnet.errors import ExclusionError
from auxnet.fetching import on_hub
from auxnet.sections import LARGEST, DataFields, MachineFields, MethodFields, NetworkFields, TrainingFields
from auxnet.words import nearest

SEAL = b"# sha256 "
BACKBONES = "timm:NAME, torchvision:NAME or package.module:function"
DISCARDS = "a share of the run between 0 and 1, or a number of epochs"
CUTS = "1 or more, or the names of modules"
OF_RESNETS = ("depth", "form", "outputs", "at", "placement", "block", "width", "head", "precision")
OF_BACKBONES = ("cuts",)
METHOD_OF = {"mode": "multiway", "state": "multiway", "order": "multiway", "aggregator": "joint"}
WITHOUT = (None, 0, False, "default", "float32")  # values that mean "off", and go with everything
Departures = Sequence[tuple[str, Any]]  # fields, and their values, that are held against each other
RunDir = str | os.PathLike[str]  # a run's directory by its path, or the Run that `fit` returned
WHERE = ("data_dir", "stream", "workers", "device", "threads", "cuda_graph", "compile")
"""fields that say where and how a recipe runs, and nothing of what comes of it"""


@dataclass(frozen=True)
class Recipe(MachineFields, TrainingFields, MethodFields, NetworkFields, DataFields):
    """How to train: all fields of `sections`, the data's first. Saved with every run as recipe.yaml."""

    def __post_init__(self) -> None:
        for name, may_be in kinds().items():
            object.__setattr__(self, name, _as(may_be, getattr(self, name), name))
        for name, holds, rule in (
            ("backbone", self.backbone is None or all(self.backbone.partition(":")), BACKBONES),
            ("cuts", self.cuts is None or (self.cuts > 0 if isinstance(self.cuts, int) else self.cuts != ()), CUTS),
            ("gamma", 0 <= self.gamma < float("inf"), "0 or more and finite"),
            ("floor", 0 <= self.floor <= 1, "in 0..1"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("lr", 0 < self.lr < float("inf"), "above 0 and finite"),
            ("lr_decay", 0 < self.lr_decay <= 1, "in 0..1, above 0"),
            ("momentum", 0 <= self.momentum < 1, "0 or more and below 1"),
            ("weight_decay", 0 <= self.weight_decay < float("inf"), "0 or more and finite"),
            ("milestones", all(0 < m < 1 for m in self.milestones), "shares of the run between 0 and 1"),
            ("warmup", 0 <= self.warmup < self.epochs, f"0 or more and below epochs={self.epochs}"),
            ("weights", self.weights is None or self._are_weights(self.weights), "finite numbers of 0 or more"),
            ("discard_after", self.discard_after is None or self._discards(self.discard_after), DISCARDS),
            ("distill", 0 <= self.distill <= 1, "in 0..1"),
            ("temperature", 0 < self.temperature < float("inf"), "above 0 and finite"),
            ("mixup", 0 <= self.mixup < float("inf"), "0 or more and finite"),
            ("cutmix", 0 <= self.cutmix < float("inf"), "0 or more and finite"),
            ("ema", self.ema is None or 0 < self.ema < 1, "between 0 and 1"),
            ("clip", self.clip is None or self.clip > 0, "above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more and below 1"),
            ("image_size", self.image_size is None or 4 <= self.image_size <= LARGEST, f"4 to {LARGEST} pixels"),
            ("val_fraction", 0 < self.val_fraction <= 0.5, "above 0 and at most 0.5"),
            ("train_images", self.train_images is None or self.train_images >= 1, "1 or more"),
            ("alone", self.alone is None or self.alone >= 1, "an output, from 1 on"),
            ("workers", self.workers is None or self.workers >= 0, "0 or more"),
            ("max_corrupt", self.max_corrupt >= 0, "0 or more"),
            ("threads", self.threads is None or self.threads >= 1, "1 or more"),
            ("seed", 0 <= self.seed < 2**63, "0 or more"),
        ):
            if not holds:
                mend = ': a module named 0 is cuts: ["0"] in a recipe file' if name == "cuts" and self.cuts == 0 else ""
                raise ValueError(f"{name} must be {rule}, got {words_of(getattr(self, name))}{mend}")
        self.check_together()

    def check_together(self, given: Collection[str] = ()) -> None:
        """Raise ExclusionError for two fields that exclude each other.

        A field counts if it differs from its default, or is among `given` and not off (`WITHOUT`).
        """
        departures = [
            (each.name, value)
            for each in fields(self)
            if (value := getattr(self, each.name)) != each.default or (each.name in given and value not in WITHOUT)
        ]
        self._check_owners(departures)
        self._check_pairs(departures)

    @property
    def discards_from(self) -> int | None:
        """The epoch (1-based) from which on the auxiliary losses are discarded; None: they never are."""
        after = self.discard_after
        if after is None:
            return None
        first = 1 + math.ceil(after * self.epochs - 1e-9 if after < 1 else after)
        return first if first <= self.epochs else None

    @staticmethod
    def _discards(after: float) -> bool:
        return 0 < after < 1 or (after >= 1 and after.is_integer())

    @staticmethod
    def _are_weights(weights: tuple[float, ...]) -> bool:
        return len(weights) > 0 and all(0 <= w < float("inf") for w in weights)

    def _check_owners(self, departures: Departures) -> None:
        """Raise ExclusionError for a field of another method, or of another kind of network, than the recipe's."""
        for name, value in departures:
            given, owner = f"{name}={value!r}", METHOD_OF.get(name, self.method)
            if owner != self.method:
                message = f"{given} is {owner}'s, but method={self.method!r}; leave {name} out"
                raise ExclusionError(message, name, "method")
            if name in OF_BACKBONES and self.backbone is None:
                message = f"{given} is a backbone's, and there is none: name it with backbone"
                raise ExclusionError(message, name, "backbone")
            if name in OF_RESNETS and self.backbone is not None:
                mend = (
                    "outputs come after cuts (and alone trains the net of one of them by itself)"
                    if name in ("outputs", "at")
                    else "leave it out"
                )
                message = f"{given} is the built-in ResNets', but backbone={self.backbone!r}: {mend}"
                raise ExclusionError(message, name, "backbone")

    def _check_pairs(self, departures: Departures) -> None:
        """Raise ExclusionError for a field that says what another one leaves no room for."""
        for name, value, holds in (
            ("loss", "square_hinge", ("label_smoothing", "mixup", "cutmix")),
            ("schedule", "cosine", ("milestones", "lr_decay")),
            ("method", "pairwise", ("distill",)),
            ("mode", "fused", ("state", "order")),
            ("precision", "bfloat16", ("sync_batchnorm", "ema", "distill", "aggregator")),
            ("cuda_graph", True, ("sync_batchnorm", "aggregator")),
            ("step_scale", "adaptive", ("cuda_graph",)),
            ("compile", True, ("sync_batchnorm",)),
            ("freeze", "trunk", ("alone", "aggregator", "step_scale", "state", "order", "discard_after", "precision")),
        ):
            if getattr(self, name) == value:
                _check_unset(departures, holds, name, f"{name}={value!r}")
        if self.weights is not None:
            _check_unset(departures, ("gamma", "floor", "relative_to"), "weights", "weights, which are given")
        if self.placement != "even":
            beside = f"placement={self.placement!r}, which says where outputs are"
            _check_unset(departures, ("outputs", "at"), "placement", beside)
        check_outputs(self.outputs, self.at)


def _check_unset(departures: Departures, names: tuple[str, ...], other: str, beside: str) -> None:
    for name, value in departures:
        if name in names:
            message = f"{name}={value!r} has no meaning beside {beside}: leave one of them out"
            raise ExclusionError(message, name, other)


def check_outputs(outputs: int | None, at: Sequence[int] | None) -> None:
    """Raise ExclusionError for a number of outputs that auxiliary outputs `at` these layers do not make."""
    if at is not None and outputs not in (None, len(at) + 1):
        message = f"at={tuple(at)} makes {len(at) + 1} outputs, but outputs={outputs}; give one of the two"
        raise ExclusionError(message, "outputs", "at")


@cache
def kinds() -> dict[str, tuple[Any, ...]]:
    """Of each field the types that its value may be of, one by one; worked out once, as a study makes many recipes.

    {"lr": (float,), "at": (tuple[int, ...], NoneType), ...}
    """
    hints = get_type_hints(Recipe)
    return {
        name: get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        for name, hint in hints.items()
    }


def read_recipe(path: Path | str) -> Recipe:
    """The recipe in a YAML file. Raises ValueError for a key or value that cannot be, naming the file."""
    try:
        content = read_yaml(Path(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no recipe file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: name a recipe file, such as {path}/recipe.yaml of a run") from None
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


def run_path(run: RunDir) -> Path:
    """The path of a run directory. Raises TypeError for what is none, such as a net."""
    if not isinstance(run, str | os.PathLike):
        raise TypeError(
            f"a run is the path of its directory, or what fit returned, got {type(run).__name__}: "
            'docs/guide.md, "In your own loop", says what there is for a net and batches of your own'
        )
    return Path(run)


def has_recipe(folder: Path) -> bool:
    """Whether a folder holds a recipe.yaml, as every run directory does."""
    return (folder / "recipe.yaml").is_file()


def read_run_recipe(run: RunDir) -> Recipe:
    """The recipe of a run directory. Raises as `run_path` does, FileNotFoundError if it is no run, RuntimeError if it
    is not as it was.

    Half a recipe is a recipe, with other values for all that is lost: hence its seal (`write_recipe`).
    """
    path = run_path(run) / "recipe.yaml"
    if not path.is_file():
        lack = "it holds no recipe.yaml" if Path(run).is_dir() else "there is no such folder"
        raise FileNotFoundError(f"{run} is not a run directory: {lack}")
    with path.open("rb") as file:
        seal, _, text = file.read(2**20).partition(b"\n")
    whole = seal == SEAL + sha256(text).hexdigest().encode()
    unsealed = not seal.startswith(SEAL) and b":" in seal + text  # whose first line was removed
    if not (whole or unsealed):
        mend = "put it back, or remove its first line to have it taken as it is"
        raise RuntimeError(f"{path} is damaged, or was changed since the run began: {mend}")
    return _moved(read_recipe(path))


def _moved(recipe: Recipe) -> Recipe:
    """A run's recipe whose data lie elsewhere by now: they are looked for by their name, here and under data_dir."""
    data, root = Path(recipe.data), recipe.data_dir
    if data.is_absolute() and not data.exists():
        recipe = replace(recipe, data=f"./{data.name}")  # a folder still, whatever its name
    if root is not None and not Path(root).is_dir() and "AUXNET_DATA" in os.environ:
        recipe = replace(recipe, data_dir=None)
    return recipe


def recipe_from(content: dict[Any, Any]) -> Recipe:
    """A recipe from a mapping; a key it does not know is a ValueError that names the nearest right one."""
    known = [field.name for field in fields(Recipe)]
    for key in content:
        if key not in known:
            raise ValueError(f"there is no recipe key {key!r}{nearest(str(key), known)}")
    return Recipe(**content)


def write_recipe(recipe: Recipe, path: Path | str, sealed: bool = False) -> None:
    """Save a recipe, complete, so that the file trains the same run again; `sealed`: under its own SHA-256."""
    import yaml

    content = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
    text = yaml.safe_dump(content, sort_keys=False).encode()
    seal = SEAL + sha256(text).hexdigest().encode() + b"\n" if sealed else b""
    Path(path).write_bytes(seal + text)


def data_name(data: str) -> str:
    """What a data set is called, without the folders in which it lies; one on the hub by its whole address."""
    return data if on_hub(data) else Path(data).resolve().name


def network_name(recipe: Recipe) -> str:
    """Of which kind the trunk is: preact ResNet-20, or a backbone by its name."""
    return f"{recipe.block} ResNet-{recipe.depth}" if recipe.backbone is None else recipe.backbone


def method_name(recipe: Recipe) -> str:
    """How gradients are propagated: joint, pairwise, or multiway and its mode."""
    return f"multiway, {recipe.mode}" if recipe.method == "multiway" else recipe.method


def folder_name(recipe: Recipe) -> str:
    """What a folder for its run may be called: digits-20-multiway."""
    network = str(recipe.depth) if recipe.backbone is None else recipe.backbone.replace(":", "-")
    return f"{Path(recipe.data.removeprefix('hf:')).name}-{network}-{recipe.method}"


def words_of(value: Any) -> str:
    """The value of a field in words: numbers in full, a list's items side by side, what is left open as none."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _as(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """`value` as one of these types, or ValueError: 3 serves as 3.0, a list as a tuple, a path as text."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "tolist"):  # a number or an array of NumPy's, a tensor
        value = value.tolist()
    for kind in kinds:
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            if get_args(kind)[0] is str:  # modules of nn.Sequential are named 0, 1, ...
                value = [str(item) if type(item) is int else item for item in value]
            return tuple(_as(get_args(kind)[:1], item, name) for item in value)
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
