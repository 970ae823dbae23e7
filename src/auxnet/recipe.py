"""The recipe: everything that decides the result of a training, as one flat record that a YAML file can hold."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from auxnet.documents import read_yaml
from auxnet.errors import ExclusionError, error_prefix
from auxnet.fetching import on_hub
from auxnet.files import whole_path
from auxnet.sections import LARGEST, DataFields, MachineFields, MethodFields, NetworkFields, TrainingFields
from auxnet.words import nearest

SEAL = b"# sha256 "
OF_RESNETS = ("depth", "form", "outputs", "at", "placement", "block", "width", "head", "precision")
OF_BACKBONES = ("cuts",)
METHOD_OF = {"mode": "multiway", "state": "multiway", "order": "multiway", "aggregator": "joint"}
OFF = (None, 0, False, "default", "float32")  # values that mean "off", and go with all other fields
Departures = Sequence[tuple[str, Any]]  # fields and their values, to be checked against each other
RunDir = str | os.PathLike[str]  # a run's directory by its path, or the Run that `fit` returned
WHERE = ("data_dir", "stream", "workers", "device", "threads", "cuda_graph", "compile")
"""fields that say where and how a recipe runs, and do not change its result"""
RULES: tuple[tuple[Callable[[Any], bool], str, tuple[str, ...]], ...] = (
    (lambda x: x >= 0, "0 or more", ("workers", "max_corrupt")),
    (lambda x: x >= 1, "1 or more", ("epochs", "batch_size", "train_images", "threads")),
    (lambda x: x < 2**31, "below 2**31", ("epochs", "batch_size", "train_images", "threads", "workers", "max_corrupt")),
    (lambda x: x >= 1, "an output, from 1 on", ("alone",)),
    (lambda x: x > 0, "above 0", ("clip",)),
    (lambda x: 0 < x < math.inf, "above 0 and finite", ("lr", "temperature")),
    (lambda x: 0 <= x < math.inf, "0 or more and finite", ("gamma", "weight_decay", "mixup", "cutmix")),
    (lambda x: 0 <= x <= 1, "in 0..1", ("floor", "distill")),
    (lambda x: 0 < x <= 1, "in 0..1, above 0", ("lr_decay",)),
    (lambda x: 0 < x < 1, "between 0 and 1", ("ema",)),
    (lambda x: 0 <= x < 1, "0 or more and below 1", ("momentum", "label_smoothing")),
    (lambda x: 0 < x <= 0.5, "above 0 and at most 0.5", ("val_fraction",)),
    (lambda x: 0 <= x < 2**63, "0 or more and below 2**63", ("seed",)),
    (lambda x: 4 <= x <= LARGEST, f"4 to {LARGEST} pixels", ("image_size",)),
    (lambda x: all(0 < m < 1 for m in x), "shares of the run between 0 and 1", ("milestones",)),
    (lambda x: x != () and all(0 <= w < math.inf for w in x), "one or more finite numbers of 0 or more", ("weights",)),
    (
        lambda x: 0 < x < 1 or (x >= 1 and x.is_integer()),
        "a share of the run between 0 and 1, or a number of epochs",
        ("discard_after",),
    ),
    (lambda x: x > 0 if isinstance(x, int) else x != (), "1 or more, or the names of modules", ("cuts",)),
    (lambda x: all(x.partition(":")), "timm:NAME, torchvision:NAME or package.module:function", ("backbone",)),
)
"""(check, the same in words, the fields it is for): what a field's value must be, unless it is none"""


@dataclass(frozen=True)
class Recipe(MachineFields, TrainingFields, MethodFields, NetworkFields, DataFields):
    """How to train: all fields of `sections`, the data's first. Saved with every run as recipe.yaml."""

    def __post_init__(self) -> None:
        for name, may_be in kinds().items():
            object.__setattr__(self, name, _converted(may_be, getattr(self, name), name))
        for holds, rule, names in RULES:
            for name in names:
                if (value := getattr(self, name)) is not None and not holds(value):
                    mend = ': a module named 0 is cuts: ["0"] in a recipe file' if (name, value) == ("cuts", 0) else ""
                    raise ValueError(f"{name} must be {rule}, got {words_of(value)}{mend}")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f"warmup must be 0 or more and below epochs={self.epochs}, got {self.warmup}")
        self.check_together()

    def check_together(self, given: Collection[str] = ()) -> None:
        """Raise ExclusionError if two fields exclude each other.

        A field counts if it differs from its default, or is among `given` and not off (`OFF`).
        """
        departures = [
            (each.name, value)
            for each in fields(self)
            if (value := getattr(self, each.name)) != each.default or (each.name in given and value not in OFF)
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

    def _check_owners(self, departures: Departures) -> None:
        """Raise ExclusionError for a field of another method or network, or for `fit` without image_size."""
        for name, value in departures:
            given, owner = f"{name}={value!r}", METHOD_OF.get(name, self.method)
            if owner != self.method:
                message = f"{given} is {owner}'s, but method={self.method!r}; leave {name} out"
                raise ExclusionError(message, name, "method")
            if name == "fit" and self.image_size is None:
                message = f"{given} is how images are brought to image_size, and there is none: give image_size"
                raise ExclusionError(message, name, "image_size")
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
        """Raise ExclusionError for a field that has no meaning beside the value of another one."""
        for name, value, holds in (
            ("loss", "square_hinge", ("label_smoothing", "mixup", "cutmix")),
            ("schedule", "cosine", ("milestones", "lr_decay")),
            ("method", "pairwise", ("distill",)),
            ("mode", "fused", ("state", "order")),
            ("precision", "bfloat16", ("sync_batchnorm", "ema", "distill", "aggregator")),
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
    """Raise ExclusionError if auxiliary outputs `at` these layers do not make this number of outputs."""
    if at is not None and outputs not in (None, len(at) + 1):
        message = f"at={tuple(at)} makes {len(at) + 1} outputs, but outputs={outputs}; give one of the two"
        raise ExclusionError(message, "outputs", "at")


@cache
def kinds() -> dict[str, tuple[Any, ...]]:
    """The types that each field's value may have; computed once, since a study makes many recipes.

    {"lr": (float,), "at": (tuple[int, ...], NoneType), ...}
    """
    hints = get_type_hints(Recipe)
    return {
        name: get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        for name, hint in hints.items()
    }


def read_recipe(path: Path | str) -> Recipe:
    """The recipe in a YAML file. Raises ValueError, which names the file, for an unknown key or a bad value."""
    content = read_yaml(Path(path), "recipe")
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, got a {type(content).__name__}")
    with error_prefix(str(path)):
        return recipe_from(content)


def run_path(run: RunDir) -> Path:
    """The path of a run directory. Raises TypeError for anything else, such as a net."""
    if not isinstance(run, str | os.PathLike):
        raise TypeError(
            f"a run is the path of its directory, or what fit returned, got {type(run).__name__}: "
            'docs/guide.md, "In your own loop", says what there is for a net and batches of your own'
        )
    return Path(run)


def has_recipe(folder: Path) -> bool:
    """Whether a folder holds a recipe.yaml, as every run directory does."""
    return (folder / "recipe.yaml").is_file()


def nearest_run(run: RunDir) -> str:
    """A suggestion for the end of an error (`words.nearest`): a run of a similar name beside the one looked for."""
    path = Path(run)
    return nearest(path.name, [recipe.parent.name for recipe in path.parent.glob("*/recipe.yaml")], path.parent)


def read_run_recipe(run: RunDir) -> Recipe:
    """The recipe of a run directory, whose seal (`write_recipe`) must hold.

    Half a recipe is a recipe too, with default values for the fields that are lost: hence the seal. Raises as
    `run_path` does, FileNotFoundError if there is no run, RuntimeError if the recipe is not as it was written.
    """
    path = run_path(run) / "recipe.yaml"
    if not path.is_file():
        there = "it is a file" if Path(run).exists() else f"there is no such folder{nearest_run(run)}"
        lack = "it holds no recipe.yaml" if Path(run).is_dir() else there
        raise FileNotFoundError(f"{run} is not a run directory: {lack}")
    with path.open("rb") as file:
        seal, _, text = file.read(2**20).partition(b"\n")
    whole = seal == SEAL + sha256(text).hexdigest().encode()
    unsealed = not seal.startswith(SEAL) and b":" in seal + text  # its first line was removed
    if not (whole or unsealed):
        mend = "put it back, or remove its first line to have it taken as it is"
        raise RuntimeError(f"{path} is damaged, or was changed since the run began: {mend}")
    return _moved(read_recipe(path))


def _moved(recipe: Recipe) -> Recipe:
    """A run's recipe; if its data have moved, they are to be looked for by name, here and under data_dir."""
    data, root = Path(recipe.data), recipe.data_dir
    if data.is_absolute() and not data.exists():
        recipe = replace(recipe, data=f"./{name_of_data(recipe)}")  # "./": a folder, whatever its name
    if root is not None and not Path(root).is_dir() and "AUXNET_DATA" in os.environ:
        recipe = replace(recipe, data_dir=None)
    return recipe


def name_of_data(recipe: Recipe) -> Path:
    """The path of a recipe's data within its data_dir; for data elsewhere, their name alone."""
    data, root = Path(recipe.data), recipe.data_dir
    return data.relative_to(root) if root and Path(root) in data.parents else Path(data.name)


def recipe_from(content: dict[Any, Any]) -> Recipe:
    """A recipe from a mapping; an unknown key raises ValueError, which names the nearest right one."""
    known = [field.name for field in fields(Recipe)]
    for key in content:
        if key not in known:
            raise ValueError(f"there is no recipe key {key!r}{nearest(str(key), known)}")
    return Recipe(**content)


def write_recipe(recipe: Recipe, path: Path | str, sealed: bool = False) -> None:
    """Save all fields of a recipe, so that the file trains the same run again; `sealed`: under its own SHA-256."""
    import yaml

    content = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
    text = yaml.safe_dump(content, sort_keys=False).encode()
    seal = SEAL + sha256(text).hexdigest().encode() + b"\n" if sealed else b""
    Path(path).write_bytes(seal + text)


def data_name(data: str) -> str:
    """The name of a data set without the folders in which it lies; on the hub, its whole address."""
    return data if on_hub(data) else whole_path(data).name


def network_name(recipe: Recipe) -> str:
    """The kind of trunk: preact ResNet-20, or a backbone by its name."""
    return f"{recipe.block} ResNet-{recipe.depth}" if recipe.backbone is None else recipe.backbone


def method_name(recipe: Recipe) -> str:
    """How gradients are propagated: joint, pairwise, or multiway and its mode."""
    return f"multiway, {recipe.mode}" if recipe.method == "multiway" else recipe.method


def folder_name(recipe: Recipe) -> str:
    """A name for the folder of a recipe's run, such as digits-20-multiway."""
    network = str(recipe.depth) if recipe.backbone is None else recipe.backbone.replace(":", "-")
    return f"{Path(recipe.data.removeprefix('hf:')).name}-{network}-{recipe.method}"


def words_of(value: Any) -> str:
    """The value of a field in words: numbers in full, a list's items side by side, None as none."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _converted(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """`value` as one of these types; ValueError if it is none. 3 serves as 3.0, a list as a tuple, a path as text."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "tolist"):  # a number or an array of NumPy's, a tensor
        value = value.tolist()
    if value in ("none", "None"):  # as flags take None, and words_of writes it
        if type(None) in kinds:
            return None
        if kinds == (tuple[float, ...],):
            return ()
    for kind in kinds:
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            if get_args(kind)[0] is str:  # modules of nn.Sequential are named 0, 1, ...
                value = [str(item) if type(item) is int else item for item in value]
            return tuple(_converted(get_args(kind)[:1], item, name) for item in value)
        if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                return float(value)  # YAML reads 1e-4 as a string
        if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    raise ValueError(f"{name} must be {_describe(kinds)}, got {value!r}")


def _describe(kinds: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    lists = {kind: f"a list of {'names' if str in get_args(kind) else 'numbers'}" for kind in kinds}
    return " or ".join(
        f"one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else {**lists, **words}[kind]
        for kind in kinds
    )
