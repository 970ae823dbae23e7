"""What a training method is made of: optimizers that are handed their gradients, and a step that does so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Gradients = list[Tensor | None]
Optimizer = Callable[[Any], torch.optim.Optimizer]  # parameter groups -> torch.optim.Optimizer
Weights = Sequence[float] | Tensor  # lambda [K]
Average = Callable[[Tensor], Tensor]  # a tensor -> its mean over the processes that train together


def alone(tensor: Tensor) -> Tensor:
    """The mean over the processes that train together, where there is only this one."""
    return tensor


def averaged(gradients: Gradients, average: Average) -> Gradients:
    """The gradients through `average`, all as one tensor: a message costs more than what is in it. Strides stay."""
    there = [g for g in gradients if g is not None]
    if not there:
        return gradients
    means = iter(average(torch.cat([g.flatten() for g in there])).split_with_sizes([g.numel() for g in there]))
    return [None if g is None else torch.empty_like(g).copy_(next(means).view_as(g)) for g in gradients]


class Update:
    """An optimizer over groups of parameters; calling it with their gradients is one of its steps.

    It works on aliases that share the parameters' storage but not their version counters. Autograd then lets
    weights change between two backwards of one forward, and the later one sees them changed: multi-way, live.
    Of a parameter with a `master` of higher precision (`precision.lowered`) that is what it works on; the parameter
    then takes the master's value, rounded, by such an alias too.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        groups: Sequence[list[nn.Parameter]],
        clip: float | None = None,
        average: Average = alone,
    ) -> None:
        if not callable(optimizer):
            made = "such as functools.partial(torch.optim.SGD, lr=0.1)"
            raise TypeError(f"optimizer must be a function of parameters, {made}, got {type(optimizer).__name__}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be a gradient norm above 0, got {clip}")
        self.clip = clip
        self.average = average
        self.trunk = groups[0]
        self.parameters = [p for group in groups for p in group]
        masters = [_master(p) for p in self.parameters]
        pairs = list(zip((p.data for p in self.parameters), masters, strict=True))
        self.aliases = [data if master is None else master for data, master in pairs]
        self.rounded = [(data, master) for data, master in pairs if master is not None]
        self.storage = [p.data_ptr() for p in self.parameters[:1]]
        aliases = iter(self.aliases)
        self.optimizer = optimizer([{"params": [next(aliases) for _ in group], "scale": 1.0} for group in groups])
        self.decays = [settings.get("weight_decay") for settings in self.optimizer.param_groups]
        for settings in self.optimizer.param_groups:
            settings["eta"] = settings["lr"]

    def __call__(self, gradients: Gradients) -> None:
        """One step along these gradients, one for each of `parameters` and in their order.

        What has None for its gradient is left as it is: no decay, no momentum.
        """
        self.check_storage()
        if self.average is not alone:
            gradients = averaged(gradients, self.average)
        for alias, gradient in zip(self.aliases, gradients, strict=True):
            alias.grad = None if gradient is None else gradient.to(alias.dtype)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.aliases, self.clip)
        self.optimizer.step()
        for alias in self.aliases:
            alias.grad = None
        self.round()

    def check_storage(self) -> None:
        """Raise RuntimeError if the parameters lie elsewhere than when this was built."""
        if self.storage != [p.data_ptr() for p in self.parameters[:1]]:
            raise RuntimeError("the net was moved after its method was built: build the method after net.to(...)")

    def round(self) -> None:
        """Give parameters of lower precision the value of their masters."""
        if self.rounded:
            parameters, masters = zip(*self.rounded, strict=True)
            torch._foreach_copy_(parameters, masters)

    def set_lr(self, eta: float) -> None:
        """The step size from now on; each group keeps its own share of it."""
        for settings in self.optimizer.param_groups:
            settings["eta"], settings["lr"] = eta, eta * settings["scale"]

    def rescale(self, scales: Sequence[float], decays: Sequence[float] | None = None) -> None:
        """Each group's share of the step size from now on, and what its weight decay is multiplied by."""
        for settings, scale in zip(self.optimizer.param_groups, scales, strict=True):
            settings["scale"], settings["lr"] = scale, settings["eta"] * scale
        for settings, decay, times in zip(self.optimizer.param_groups, self.decays, decays or (), strict=False):
            if decay is not None:
                settings["weight_decay"] = decay * times


def _master(parameter: nn.Parameter) -> Tensor | None:
    """What `precision.lowered` gave it, as long as it is of lower precision than that."""
    master: Tensor | None = getattr(parameter, "master", None)
    return None if master is None or master.dtype == parameter.dtype else master


class Part:
    """An update of some of an `Update`'s parameters, which leaves the others and their optimizer state alone."""

    def __init__(self, whole: Update, trunk: list[nn.Parameter], rest: list[nn.Parameter]) -> None:
        self.whole, self.trunk, self.parameters = whole, trunk, [*trunk, *rest]
        self.scales: Sequence[float] = (1.0, 1.0)

    def __call__(self, gradients: Gradients) -> None:
        """One step along these gradients, one for each of `parameters` and in their order."""
        own = {id(p): gradient for p, gradient in zip(self.parameters, gradients, strict=True)}
        self.whole.rescale(self.scales)
        self.whole([own.get(id(p)) for p in self.whole.parameters])

    def rescale(self, scales: Sequence[float]) -> None:
        """The shares of the step size that the trunk and the rest have in this update."""
        self.scales = scales


@dataclass(frozen=True)
class Method:
    """A way of training, bound to a net. Build it after the net is on its device.

    `step(images [N, C, H, W], labels [N])` trains on one batch and returns the losses [K] whose gradients it
    took, detached, shallow to deep: those of the net before the step, but in pair-wise after each other's updates.
    """

    step: Callable[[Tensor, Tensor], Tensor]
    updates: list[Update]
    weigh: Callable[[Weights], None]

    def set_weights(self, weights: Weights) -> None:
        """The loss weights lambda [K] from now on, and the step scales that follow from them.

        An output that weighs 0 is discarded: its loss has no effect at all. No gradient of it is taken, and its head
        stays as it is, without decay or momentum; in pair-wise and multi-way its optimizer makes no step either.
        Its loss is still returned. Raises ValueError for weights that do not fit.
        """
        self.weigh(weights)

    def set_lr(self, lr: float) -> None:
        """The step size eta from now on, for every output. Raises ValueError unless it is a number of 0 or more."""
        if isinstance(lr, str) or not 0 <= float(lr) < math.inf:
            raise ValueError(f"lr must be a number of 0 or more, and finite, got {lr!r}")
        for update in self.updates:
            update.set_lr(lr)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer states: one, or one per output where outputs have their own; masters, where there are any."""
        state: dict[str, Any] = {"optimizers": [update.optimizer.state_dict() for update in self.updates]}
        return state | {"masters": masters} if (masters := self.masters()) else state

    def masters(self) -> list[Tensor]:
        """The masters of all parameters that have one, each once."""
        return list({id(master): master for update in self.updates for _, master in update.rounded}.values())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises ValueError if it is another method's or another net's."""
        states = state.get("optimizers", []) if isinstance(state, dict) else []
        if len(states) != len(self.updates):
            raise ValueError(f"this method has {len(self.updates)} optimizers, the state has {len(states)}")
        for update, optimizer_state in zip(self.updates, states, strict=True):
            capturable = [group.get("capturable") for group in update.optimizer.param_groups]
            update.optimizer.load_state_dict(optimizer_state)
            for group, own in zip(update.optimizer.param_groups, capturable, strict=True):
                group |= {} if own is None else {"capturable": own}  # a matter of where it runs
        for master, saved in zip(self.masters(), state.get("masters", []), strict=True):
            master.copy_(saved)
        for update in self.updates:
            update.round()
