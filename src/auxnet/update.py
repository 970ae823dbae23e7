"""Update: an optimizer that is handed its gradients. Method: a way of training bound to a net, made of such updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from auxnet.network import AuxNet, check_tensors

Gradients = list[Tensor | None]
Optimizer = Callable[[Any], torch.optim.Optimizer]  # a list of parameters -> torch.optim.Optimizer
Weights = Sequence[float] | Tensor  # lambda [K]
Average = Callable[[Tensor], Tensor]  # a tensor -> its mean over the processes that train together


def checked_weights(weights: Weights, outputs: int) -> list[float]:
    """Loss weights [K] as numbers. Raises ValueError unless they are K finite ones of 0 or more."""
    try:
        lambdas = [float(w) for w in weights]
    except TypeError:  # one number alone
        lambdas = []
    if len(lambdas) != outputs or not all(0 <= w < math.inf for w in lambdas):
        raise ValueError(f"weights must be {outputs} finite numbers >= 0, one per output, got {weights}")
    return lambdas


def weights_for(net: AuxNet, weights: Weights | None) -> list[float]:
    """The loss weights [K] of a net's outputs as numbers; None: the paper's.

    Raises ValueError for weights that a method cannot train with, and for a net whose parts share parameters.
    """
    net.check_nothing_shared()
    lambdas = checked_weights(net.loss_weights() if weights is None else weights, net.outputs)
    if not any(lambdas):
        raise ValueError(f"weights must leave at least one output above 0 (0 discards it), got {lambdas}")
    return lambdas


def identity(tensor: Tensor) -> Tensor:
    """The mean over the processes that train together, where there is only this one."""
    return tensor


def averaged(gradients: Gradients, average: Average) -> Gradients:
    """The means of the gradients, sent as one tensor: a message costs more than its contents. Strides stay."""
    given = [g for g in gradients if g is not None]
    if not given:
        return gradients
    means = iter(average(torch.cat([g.flatten() for g in given])).split_with_sizes([g.numel() for g in given]))
    return [None if g is None else torch.empty_like(g).copy_(next(means).view_as(g)) for g in gradients]


class Update:
    """An optimizer over groups of parameters; calling it with their gradients is one of its steps.

    It works on aliases that share the parameters' storage but not their version counters. Autograd then lets
    weights change between two backwards of one forward, and the later one sees them changed: multi-way, live.
    Of a parameter with a `master` of higher precision (`precision.to_bfloat16`) that is what it works on; the parameter
    then takes the master's value, rounded, by such an alias too.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        groups: Sequence[list[nn.Parameter]],
        clip: float | None = None,
        average: Average = identity,
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
        try:
            self.optimizer = optimizer(self.aliases or [{"params": []}])
        except ValueError as error:
            if str(error).startswith("Muon"):
                raise ValueError("Muon takes matrices alone, and convolutions and biases are none: take SGD") from None
            raise
        closure = signature(self.optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is not None:
            name = type(self.optimizer).__name__
            raise ValueError(f"{name} asks for losses within a step, where gradients are handed over: take another")
        if isinstance(self.optimizer, torch.optim.SparseAdam):
            raise ValueError("SparseAdam takes sparse gradients, and those of convolutions are dense: take Adam")
        if isinstance(self.optimizer, torch.optim.Rprop | torch.optim.ASGD):
            name = type(self.optimizer).__name__
            raise ValueError(f"{name} keeps its step sizes to itself, where those of a method do not reach: take SGD")
        aliases = iter(self.aliases)
        self.places = _split_groups(self.optimizer, [[next(aliases) for _ in group] for group in groups])
        etas = [float(settings["lr"]) for settings in self.optimizer.param_groups]
        usual = self.optimizer.defaults.get("lr")  # what a group has that says nothing of its own
        usual = float(usual) if usual in etas else etas[0]
        self.shares = [eta / usual if usual else 1.0 for eta in etas]
        for settings in self.optimizer.param_groups:
            settings["scale"], settings["eta"] = 1.0, settings["lr"]
        self.decays = [settings.get("weight_decay") for settings in self.optimizer.param_groups]

    def __call__(self, gradients: Gradients) -> None:
        """One step along these gradients, one for each of `parameters` and in their order.

        What has None for its gradient is left as it is: no decay, no momentum. Without any gradient there is no step.
        """
        if all(gradient is None for gradient in gradients):
            return
        self._check_lr()
        if self.average is not identity:
            gradients = averaged(gradients, self.average)
        for alias, gradient in zip(self.aliases, gradients, strict=True):
            alias.grad = None if gradient is None else gradient.to(alias.dtype)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.aliases, self.clip)
        self.optimizer.step()
        for alias in self.aliases:
            alias.grad = None
        self.round()
        torch.clear_autocast_cache()  # it holds casts of the weights as they were

    def round(self) -> None:
        """Give parameters of lower precision the value of their masters."""
        if self.rounded:
            parameters, masters = zip(*self.rounded, strict=True)
            torch._foreach_copy_(parameters, masters)

    def set_lr(self, eta: float) -> None:
        """The step size from now on; each group keeps its own share of it."""
        for settings, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            settings["eta"] = eta * share
            settings["lr"] = settings["eta"] * settings["scale"]

    def rescale(self, scales: Sequence[float], decays: Sequence[float] | None = None) -> None:
        """The share of the step size of each group of parameters, and what its weight decay is multiplied by."""
        self._check_lr()
        for settings, decay, place in zip(self.optimizer.param_groups, self.decays, self.places, strict=True):
            settings["scale"], settings["lr"] = scales[place], settings["eta"] * scales[place]
            if decays is not None and decay is not None:
                settings["weight_decay"] = decay * decays[place]

    def _check_lr(self) -> None:
        """Raise RuntimeError for a step size that something else has set: the scales would be lost, or it would be."""
        for settings in self.optimizer.param_groups:
            lr = settings["lr"]
            if isinstance(lr, float) and lr != settings["eta"] * settings["scale"]:
                raise RuntimeError(
                    f"an optimizer's step size was set to {lr} behind its method, as torch's schedulers do: "
                    "use method.set_lr(...), which keeps the scales of the steps"
                )


def _split_groups(optimizer: torch.optim.Optimizer, parts: Sequence[Sequence[Tensor]]) -> list[int]:
    """Split an optimizer's groups so that each lies within one of these parts of its parameters; gives each one's part.

    However a function groups parameters (those without weight decay by themselves, say), each takes the steps of its
    part. Raises ValueError for an optimizer that leaves out a parameter, or has others.
    """
    place_of = {id(tensor): place for place, part in enumerate(parts) for tensor in part}
    held = [tensor for settings in optimizer.param_groups for tensor in settings["params"]]
    if {id(tensor) for tensor in held} != set(place_of):
        raise ValueError(
            f"the optimizer must hold the {len(place_of)} parameters that its function was given and no others, "
            f"it holds {len(place_of.keys() & {id(tensor) for tensor in held})} of them, and {len(held)} in all"
        )
    apart, places = [], []
    one = len(optimizer.param_groups) == 1  # then each part has a group, also one without parameters
    for settings in optimizer.param_groups:
        of_each = [place_of[id(tensor)] for tensor in settings["params"]]
        for place in range(len(parts)) if one else dict.fromkeys(of_each or [0]):
            own = [tensor for tensor, at in zip(settings["params"], of_each, strict=True) if at == place]
            apart.append(settings | {"params": own})
            places.append(place)
    optimizer.param_groups[:] = apart
    return places


def _master(parameter: nn.Parameter) -> Tensor | None:
    """What `precision.to_bfloat16` gave it, as long as it is of lower precision than that."""
    master: Tensor | None = getattr(parameter, "master", None)
    return None if master is None or master.dtype == parameter.dtype else master


class SharedUpdate:
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


@dataclass(frozen=True, repr=False)  # it would show the whole net
class Method:
    """A way of training, bound to a net. Build it after the net is on its device, and what is frozen is frozen."""

    net: AuxNet
    one_step: Callable[[Tensor, Tensor], Tensor]
    updates: list[Update]
    lambdas: list[float]
    """the loss weights at the moment, in the list that `one_step` reads"""
    rescale: Callable[[], None]
    """gives the updates the step scales that follow from the loss weights"""
    loss: Callable[[Tensor, Tensor], Tensor]
    """of logits [N, classes] and labels"""
    built_on: list[tuple[int, int, bool]] = field(init=False)
    """the parameters that the optimizers hold"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "built_on", _parameter_identities(self.net))
        self.rescale()

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch: images [N, C, H, W], labels [N], or whatever else the loss takes.

        Returns the losses L_1..L_K [K], detached, as they were before any weight moved; in pair-wise, L_k comes after
        the updates of outputs 1..k-1. A loss that is not finite is not noticed here, since looking would make a GPU
        wait: stop where `losses.isfinite().all()` is false, for then the weights are lost.

        Raises TypeError for what are no tensors (labels under the default loss alone), ValueError for images that are
        not for this net, RuntimeError if the net's parameters are others than when the method was built.
        """
        check_tensors(images, labels, self.loss)
        if _parameter_identities(self.net) != self.built_on:
            raise RuntimeError(
                "the net's parameters were moved, replaced, frozen or unfrozen after its method was built: "
                "build the method after that"
            )
        if not torch.is_grad_enabled():
            raise RuntimeError("a training step takes gradients, which are disabled here: call it outside no_grad()")
        return self.one_step(images, labels)

    def set_weights(self, weights: Weights | None) -> None:
        """The loss weights lambda [K] from now on (None: the paper's), and the step scales that follow from them.

        An output that weighs 0 is discarded: its loss has no effect at all. No gradient of it is taken, and its head
        stays as it is, without decay or momentum; in pair-wise and multi-way its optimizer makes no step either.
        Its loss is still returned. Raises ValueError for weights that do not fit.
        """
        self.lambdas[:] = weights_for(self.net, weights)
        self.rescale()

    def set_lr(self, lr: float) -> None:
        """The step size eta from now on, for every output; groups with a step size of their own keep their share.

        Raises ValueError unless it is a number of 0 or more.
        """
        if isinstance(lr, str) or not 0 <= float(lr) < math.inf:
            raise ValueError(f"lr must be a number of 0 or more, and finite, got {lr!r}")
        for update in self.updates:
            update.set_lr(float(lr))

    def state_dict(self) -> dict[str, Any]:
        """The optimizer states: one, or one per output where outputs have their own; the loss weights; masters."""
        state: dict[str, Any] = {
            "optimizers": [update.optimizer.state_dict() for update in self.updates],
            "kinds": [type(update.optimizer).__name__ for update in self.updates],
            "weights": [*self.lambdas],
        }
        return state | {"masters": masters} if (masters := self.masters()) else state

    def masters(self) -> list[Tensor]:
        """The masters of all parameters that have one, each once."""
        return list({id(master): master for update in self.updates for _, master in update.rounded}.values())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises ValueError if it is another method's or another net's."""
        states = state.get("optimizers", []) if isinstance(state, dict) else []
        if len(states) != len(self.updates):
            raise ValueError(f"this method has {len(self.updates)} optimizers, the state has {len(states)}")
        own = [type(update.optimizer).__name__ for update in self.updates]
        if (kinds := state.get("kinds", own)) != own:
            raise ValueError(f"this method has optimizers {', '.join(own)}, the state is of {', '.join(kinds)}")
        for update, optimizer_state in zip(self.updates, states, strict=True):
            capturable = [group.get("capturable") for group in update.optimizer.param_groups]
            update.optimizer.load_state_dict(optimizer_state)
            for group, held in zip(update.optimizer.param_groups, capturable, strict=True):
                group |= {} if held is None else {"capturable": held}  # a matter of where it runs
        for master, saved in zip(self.masters(), state.get("masters", []), strict=True):
            master.copy_(saved)
        for update in self.updates:
            update.round()
        self.set_weights(state.get("weights", self.lambdas))


def _parameter_identities(module: nn.Module) -> list[tuple[int, int, bool]]:
    """Of each parameter in a module its identity, its address and whether it is trained: fast, for every step."""
    identities = [(id(p), p.data_ptr(), p.requires_grad) for p in module._parameters.values() if p is not None]
    for child in module._modules.values():
        identities += [] if child is None else _parameter_identities(child)
    return identities
