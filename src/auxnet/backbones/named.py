"""A backbone by its name: a model of timm or of torchvision, or what a function of the user's own builds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, all_suffixes
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from auxnet.backbones.weights import classes_in, load_pretrained
from auxnet.errors import first_line, warn
from auxnet.words import nearest

LIBRARIES = ("timm", "torchvision")
WITH_AUXILIARIES = ("googlenet", "inception_v3")  # torchvision's, which are built without them here
Build = Callable[[int], nn.Module]  # number of classes -> a backbone


def build_backbone(name: str, num_classes: int, in_channels: int = 3, pretrained: str | None = None) -> nn.Module:
    """Build the backbone of this name, for images of `in_channels` channels; nothing is downloaded.

    `timm:NAME` and `torchvision:NAME` are models of these libraries, for `num_classes`. `package.module:function` is
    imported, from the current folder too, and called with `num_classes` and `in_channels` if it has such parameters.
    With a file of weights (`pretrained`) the classifier has the file's number of classes; `attach` replaces it.

    Raises ValueError for a name that leads to no backbone, or weights that do not fit it (`load_pretrained`), and
    RuntimeError if a package is missing or the code that was called fails.
    """
    library, _, what = name.partition(":")
    if library == "timm":
        build = _timm(name, what, in_channels)
    elif library == "torchvision":
        build = _torchvision(name, what, in_channels)
    else:
        build = _own(name, library, what, in_channels)
    backbone = build(num_classes)
    if pretrained is None:
        return backbone
    theirs = classes_in(pretrained, backbone, num_classes)
    if theirs != num_classes:
        backbone = build(theirs)
        what = f"{pretrained} is of {theirs} classes, not {num_classes}"
        warn(f"{what}: the last layer of the classifier is not loaded")
    load_pretrained(backbone, pretrained)
    return backbone


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The (mean, std) per channel, in 0..255, with which a library trained its own weights for this model.

    None for the user's own code, of which nothing is known, and for models without weights. The name is one that
    `build_backbone` takes.
    """
    library, _, model = name.partition(":")
    if library == "timm":
        seen = _imported(name, "timm").get_pretrained_cfg(model)
    elif library == "torchvision" and model in WITH_AUXILIARIES:
        return (127.5,) * 3, (127.5,) * 3  # what torchvision makes of ImageNet's, within the model (transform_input)
    elif library == "torchvision":
        seen = _imported(name, "torchvision").models.get_model_weights(model).DEFAULT.transforms()
    else:
        return None
    if seen is None:  # a model of no weights
        return None
    return tuple(255 * m for m in seen.mean), tuple(255 * s for s in seen.std)


def is_own_code(name: str) -> bool:
    """Whether a name stands for code outside the known libraries."""
    return name.partition(":")[0] not in LIBRARIES


def check_outside(name: str, run: Path) -> None:
    """Raise ValueError if building the backbone of this name could run code that lies in the folder of a `run`.

    The run and its recipe may come from a stranger. Nothing is imported for this check.
    """
    if not is_own_code(name):
        return
    module, _, _ = name.partition(":")
    with _current_folder():
        for place in map(Path, sys.path):
            if _lies_in(place, run) and _holds_code(place):
                raise ValueError(
                    f"{place.absolute()} lies in the run {run} and holds code, which backbone {name} could import: "
                    "call this from another folder"
                )
        for spec in _specs(module):
            if spec.has_location and spec.origin is not None and _lies_in(Path(spec.origin), run):
                raise ValueError(
                    f"{run} names the backbone {name}, and its code ({spec.origin}) lies in the run itself: a run's "
                    "own files are not imported; build it yourself, cut it by auxnet.attach, and load the weights"
                )


def _specs(module: str) -> Iterator[ModuleSpec]:
    """Where the packages around a module and the module itself would be imported from, as far as they are found."""
    package, *below = module.split(".")
    if package in sys.modules:
        spec = getattr(sys.modules[package], "__spec__", None)
    else:
        spec = find_spec(package) if package else None
    for part in (*below, None):
        if spec is None:
            return
        yield spec
        if part is None or spec.submodule_search_locations is None:
            return
        # By its last name alone: with a dotted one, the packages around it would be imported.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path, as it is written or with its links followed, leads through a folder."""
    ways = (path.absolute(), path.resolve())
    return any(
        os.path.exists(place) and os.path.samefile(place, folder) for way in ways for place in (way, *way.parents)
    )


def _holds_code(folder: Path) -> bool:
    return any(file.name.endswith(tuple(all_suffixes())) for file in folder.rglob("*"))


def _timm(name: str, model: str, in_channels: int) -> Build:
    timm = _imported(name, "timm")
    if not timm.is_model(model):
        raise ValueError(f"timm has no model {model!r}{nearest(model, timm.list_models())}")
    return lambda classes: _called(name, timm.create_model, model, num_classes=classes, in_chans=in_channels)


def _torchvision(name: str, model: str, in_channels: int) -> Build:
    models = _imported(name, "torchvision").models
    known = models.list_models(module=models)  # those that classify
    if model not in known:
        raise ValueError(f"torchvision has no model {model!r}{nearest(model, known)}")
    if in_channels != 3:
        raise ValueError(f"torchvision's models take 3 channels, the images have {in_channels}: timm's take any")
    extra = {"aux_logits": False, "init_weights": True} if model in WITH_AUXILIARIES else {}
    return lambda classes: _called(name, models.get_model, model, num_classes=classes, **extra)


def _own(name: str, module: str, function: str, in_channels: int) -> Build:
    with _current_folder():
        try:
            code = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise RuntimeError(f"backbone {name}: {module} needs {error.name}: install it") from None
            mend = "install it, or run in the folder that it lies in"
            if module.endswith(".py"):
                mend = f"name the module without .py, as {module.removesuffix('.py')}:{function}"
            raise ValueError(f"backbone {name}: there is no module {error.name!r}; {mend}") from None
        except Exception as error:  # the user's code can raise anything
            raise RuntimeError(f"backbone {name}: importing {module} failed: {first_line(error)}") from None
    build = getattr(code, function, None)
    if build is None:
        known = [key for key, value in vars(code).items() if callable(value)]
        raise ValueError(f"backbone {name}: {module} has no {function!r}{nearest(function, known)}")
    if not callable(build):
        raise ValueError(f"backbone {name}: {function!r} is a {type(build).__name__}, and must be a function")
    taken = signature(build).parameters

    def called(classes: int) -> nn.Module:
        options = {"num_classes": classes, "in_channels": in_channels}
        return _called(name, build, **{key: value for key, value in options.items() if key in taken})

    return called


def _called(name: str, build: Callable[..., Any], *arguments: Any, **options: Any) -> nn.Module:
    """The Module that a function builds. Raises ValueError if it gives something else, RuntimeError if it fails."""
    try:
        with _current_folder():
            backbone = build(*arguments, **options)
    except Exception as error:  # of code that is not ours
        raise RuntimeError(f"backbone {name} cannot be built: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"backbone {name} gives a {type(backbone).__name__}, and must give a torch.nn.Module")
    return backbone


def _imported(name: str, library: str) -> ModuleType:
    try:
        try:
            return import_module(library)
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            _operators_declared()
            return import_module(library)
    except ModuleNotFoundError as error:
        raise RuntimeError(f"backbone {name} needs {error.name}: pip install {error.name}") from None
    except Exception as error:  # a torchvision that was built for another torch
        raise RuntimeError(f"backbone {name}: {library} cannot be imported: {first_line(error)}") from None


@cache
def _operators_declared() -> torch.library.Library:
    """Declare two operators that no classifier calls, but that PyPI's torchvision looks for beside a CPU torch."""
    operators = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    return operators


@contextmanager
def _current_folder() -> Iterator[None]:
    """Look for modules in the current folder first, for the block, as `python -m` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
