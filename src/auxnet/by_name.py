"""Objects of libraries that a recipe names: an optimizer of torch.optim, an aggregator of torchjd."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from auxnet.errors import first_line
from auxnet.gradients import Aggregator
from auxnet.machine import random_kept
from auxnet.recipe import Recipe
from auxnet.words import nearest


def optimizer_of(recipe: Recipe, capturable: bool = False) -> Callable[[Any], torch.optim.Optimizer]:
    """The optimizer that a recipe names, as a function of parameters; with fused kernels if there are any.

    `capturable` lets its steps be recorded in a CUDA graph, if the optimizer supports that.
    """
    kind = _kind_of(recipe)
    settings: dict[str, Any] = {
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "nesterov": recipe.nesterov and recipe.momentum > 0,
        "weight_decay": recipe.weight_decay,
        "fused": True,
        "capturable": capturable,
    }
    accepted = signature(kind).parameters
    taken = {name: value for name, value in settings.items() if name in accepted}

    def make(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        given, settings = [*parameters], dict(taken)
        if given and "fused" in taken and not _can_step(kind, taken, given[0].device):
            del settings["fused"]
        return kind(given if recipe.decay_norms else _norms_apart(given), **settings)

    return make


def _can_step(kind: type[torch.optim.Optimizer], settings: dict[str, Any], device: torch.device) -> bool:
    """Whether an optimizer has a fused kernel on a device; some optimizers find out only in their first step."""
    parameter = torch.zeros(1, device=device, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    try:
        kind([parameter], **settings).step()
    except RuntimeError:
        return False
    return True


def _norms_apart(parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Parameters in two groups; the second one, norms and biases, has no weight decay."""
    decayed: list[Tensor] = []
    norms: list[Tensor] = []
    for p in parameters:
        (decayed if p.ndim > 1 else norms).append(p)
    return [{"params": decayed}, {"params": norms, "weight_decay": 0.0}]


def without_effect(recipe: Recipe) -> list[str]:
    """The fields of a recipe that its optimizer does not take, and that differ from their defaults."""
    taken = signature(_kind_of(recipe)).parameters
    names = [name for name in ("momentum", "nesterov", "weight_decay") if name not in taken]
    return [name for name in names if getattr(recipe, name) != getattr(Recipe, name)]


def _kind_of(recipe: Recipe) -> type[torch.optim.Optimizer]:
    known = _subclasses(torch.optim, torch.optim.Optimizer)
    if recipe.optimizer not in known:
        raise ValueError(f"torch.optim has no optimizer {recipe.optimizer!r}{nearest(recipe.optimizer, [*known])}")
    kind: type[torch.optim.Optimizer] = known[recipe.optimizer]
    return kind


def _subclasses(module: ModuleType, base: type) -> dict[str, Any]:
    """The subclasses of a class that a module holds, by name."""
    return {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
    }


def aggregator_of(name: str) -> Aggregator:
    """An aggregator of torchjd, by name, with its own defaults: gradients [K, parameters] -> one [parameters].

    Of K equal gradients it makes that gradient: the result of those that sum (PCGrad, GradDrop, ConFIG, Sum) is divided
    by K.

    Raises ValueError if there is none of that name, if it needs more than a name or remembers steps, or if torchjd is
    not installed.
    """
    try:
        from torchjd import aggregation
    except ImportError:
        mend = "pip install 'torchjd[quadprog-projector]'"
        raise ValueError(f"aggregator={name!r} is torchjd's, which is not installed: {mend}") from None
    known = _subclasses(aggregation, aggregation.Aggregator)
    if name not in known:
        raise ValueError(f"torchjd has no aggregator {name!r}{nearest(name, [*known])}")
    try:
        aggregator: Aggregator = known[name]()
    except (TypeError, ImportError) as error:
        raise ValueError(f"torchjd's {name} cannot be made from its name alone ({first_line(error)})") from None
    if hasattr(aggregator, "reset"):
        raise ValueError(f"torchjd's {name} remembers steps, and a run could not be resumed: choose another aggregator")
    with random_kept(torch.device("cpu")):  # some draw random numbers
        adds_up = float(aggregator(torch.ones(2, 4))[0]) > 1.5
    return (lambda rows: aggregator(rows) / len(rows)) if adds_up else aggregator
