"""Update: an optimizer that is handed its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from auxnet.errors import is_number, warn

Gradients = list[Tensor | None]
Optimizer = Callable[[Any], torch.optim.Optimizer]  # a list of parameters -> torch.optim.Optimizer
Average = Callable[[Tensor], Tensor]  # a tensor -> its mean over the processes that train together


def identity(tensor: Tensor) -> Tensor:
    """The mean over the processes that train together when there is only this one: the tensor itself."""
    return tensor


def averaged(gradients: Gradients, average: Average) -> Gradients:
    """The gradients averaged over processes, sent as one flat tensor: a message costs more than its contents.

    Gradients must have no gaps in memory. They are copied once, in memory order; the means returned are views with the
    strides and dtypes of the gradients.
    """
    given = [g for g in gradients if g is not None]
    flat = average(torch.cat([g.as_strided((g.numel(),), (1,)) for g in given]))
    means = iter(flat.split_with_sizes([g.numel() for g in given]))
    return [None if g is None else next(means).to(g.dtype).as_strided(g.shape, g.stride()) for g in gradients]


class Update:
    """An optimizer over groups of parameters; calling it with their gradients makes one optimizer step.

    The optimizer works on aliases that share the parameters' storage but not their version counters. Autograd then lets
    weights change between two backwards of one forward, and the second backward uses the changed weights: multi-way,
    live. A parameter with a float32 `master` (`precision.to_bfloat16`) is updated through it: the optimizer changes the
    master, and its rounded value is copied into the parameter, by such an alias too.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        groups: Sequence[list[nn.Parameter]],
        clip: float | None = None,
        average: Average = identity,
    ) -> None:
        if clip is not None and not (is_number(clip) and clip > 0):
            raise ValueError(f"clip must be a gradient norm above 0, got {clip!r}")
        self.clip = clip
        self.average = average
        self.trunk = groups[0]  # S_1..S_k, if this is the update of output k (`steps.updates_per_output`)
        self.parameters = [p for group in groups for p in group]
        masters = [master_of(p) for p in self.parameters]
        pairs = list(zip((p.data for p in self.parameters), masters, strict=True))
        self.aliases = [data if master is None else master for data, master in pairs]
        self.strides = [torch.empty_like(alias).stride() for alias in self.aliases]  # the aliases' own, without gaps
        self.with_master = [(data, master) for data, master in pairs if master is not None]
        self.optimizer = _checked(optimizer, self.aliases)
        self.empty_groups = {n for n, settings in enumerate(self.optimizer.param_groups) if not settings["params"]}
        aliases = iter(self.aliases)
        self.places = _split_groups(self.optimizer, [[next(aliases) for _ in group] for group in groups])
        self.etas = [float(settings["lr"]) for settings in self.optimizer.param_groups]
        for settings in self.optimizer.param_groups:
            if isinstance(settings["lr"], Tensor) and settings["lr"].device.type == "cpu":  # would be changed in place
                settings["lr"] = float(settings["lr"])
            settings["scale"], settings["eta"] = 1.0, settings["lr"]
        self.decays = [settings.get("weight_decay") for settings in self.optimizer.param_groups]

    def __call__(self, gradients: Gradients) -> None:
        """Make one step along these gradients, one for each of `parameters`, in the same order.

        A parameter whose gradient is None stays as it is: no decay, no momentum. If all are None there is no step.
        """
        if all(gradient is None for gradient in gradients):
            return
        self._check_lr()
        together = self.average is not identity
        if together:
            gradients = [g if g is None else g.to_dense() for g in gradients]
        held = _as_held(gradients, self.aliases, self.strides)
        for alias, gradient in zip(self.aliases, averaged(held, self.average) if together else held, strict=True):
            alias.grad = gradient
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.aliases, self.clip)
        _begin_late_momenta(self.optimizer)
        self.optimizer.step()
        for alias in self.aliases:
            alias.grad = None
        self.copy_masters([alias for alias, gradient in zip(self.aliases, held, strict=True) if gradient is not None])
        torch.clear_autocast_cache()  # it holds casts of the old weights

    def copy_masters(self, updated: Iterable[Tensor] | None = None) -> None:
        """Copy masters, rounded, into their parameters of lower precision: the masters in `updated`, or all."""
        pairs = self.with_master
        if pairs and updated is not None:
            ids = set(map(id, updated))
            pairs = [(data, master) for data, master in pairs if id(master) in ids]
        if pairs:
            parameters, masters = zip(*pairs, strict=True)
            torch._foreach_copy_(parameters, masters)

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether an optimizer state has as many groups as this optimizer, with as many parameters in each."""
        theirs, ours = state["param_groups"], self.optimizer.param_groups
        return [len(each["params"]) for each in theirs] == [len(each["params"]) for each in ours]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what the optimizer's own `state_dict` returned, even that of a net in another memory layout.

        `capturable` and `fused` stay as they are here: they depend on this machine, and decide on which device the
        optimizer counts its steps.
        """
        groups = [
            saved | {name: value for name, value in here.items() if name in ("capturable", "fused")}
            for saved, here in zip(state["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict(state | {"param_groups": groups})
        for alias in self.aliases:
            of_alias = self.optimizer.state.get(alias, {})
            for name, value in of_alias.items():
                if isinstance(value, Tensor) and value.shape == alias.shape and value.stride() != alias.stride():
                    of_alias[name] = torch.empty_like(alias, dtype=value.dtype).copy_(value)
        self.copy_masters()

    def set_lr(self, eta: float, usual: float) -> None:
        """Set the step size to `eta` in place of `usual` (`base_lr`); every group keeps its own ratio to it."""
        for settings, own in zip(self.optimizer.param_groups, self.etas, strict=True):
            settings["eta"] = eta * (own / usual if usual else 1.0)
            settings["lr"] = settings["eta"] * settings["scale"]

    def rescale(self, scales: Sequence[float], decays: Sequence[float] | None = None) -> None:
        """Set the factors on step size and weight decay, one for each of the `groups` given to the constructor."""
        self._check_lr()
        for settings, decay, place in zip(self.optimizer.param_groups, self.decays, self.places, strict=True):
            settings["scale"], settings["lr"] = scales[place], settings["eta"] * scales[place]
            if decays is not None and decay is not None:
                settings["weight_decay"] = decay * decays[place]

    def _check_lr(self) -> None:
        """Raise RuntimeError if something else has set a step size: either it or the method's scales would be lost."""
        for settings in self.optimizer.param_groups:
            lr = settings["lr"]
            if isinstance(lr, float) and lr != settings["eta"] * settings["scale"]:
                raise RuntimeError(
                    f"an optimizer's step size was set to {lr} behind its method, as torch's schedulers do: "
                    "use method.set_lr(...), which keeps the scales of the steps"
                )


def base_lr(updates: Sequence[Update]) -> float:
    """The step size of groups without one of their own: the optimizer's default if any group has it, else the largest.

    It is the same for all outputs, since an output may have no parameters in some of the groups.
    """
    etas = [eta for update in updates for eta in update.etas]
    default = updates[0].optimizer.defaults.get("lr")
    return float(default) if default in etas else max(etas)


def _checked(optimizer: Optimizer, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that a function makes of these parameters.

    Raises TypeError if it is not a function or makes no optimizer, ValueError for an optimizer that cannot be used.
    """
    rule = "optimizer must be a function of parameters, such as functools.partial(torch.optim.SGD, lr=0.1)"
    if not callable(optimizer):
        raise TypeError(f"{rule}, got {type(optimizer).__name__}")
    for alias in parameters:  # the function may look at requires_grad
        alias.requires_grad_()
    try:
        made = optimizer(parameters or [torch.empty(0)])
    except ValueError as error:
        if str(error).startswith("Muon"):
            raise ValueError("Muon takes matrices alone, and convolutions and biases are none: take SGD") from None
        raise
    finally:
        for alias in parameters:
            alias.requires_grad_(False)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"{rule}, that gives a torch.optim.Optimizer: it gave {type(made).__name__}")
    if not parameters:
        made.state.clear()
        for settings in made.param_groups:
            settings["params"] = []
    name, closure = type(made).__name__, signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is not None:
        raise ValueError(f"{name} asks for losses within a step, but a method gives it gradients alone: take another")
    if isinstance(made, torch.optim.SparseAdam):
        raise ValueError("SparseAdam takes sparse gradients, and those of convolutions are dense: take Adam")
    if isinstance(made, torch.optim.Rprop | torch.optim.ASGD):
        raise ValueError(f"{name} keeps its step sizes to itself, so that a method cannot set them: take SGD")
    if isinstance(made, torch.optim.Adafactor):
        raise ValueError("Adafactor steps by 1 / sqrt(steps so far) once that is less than its step size: take AdamW")
    return made


def _split_groups(optimizer: torch.optim.Optimizer, parts: Sequence[Sequence[Tensor]]) -> list[int]:
    """Split the optimizer's groups so that each lies within one of the `parts`; return the index of each group's part.

    Each parameter then takes the step size of its part, however the function groups parameters (those without weight
    decay apart, say). Raises ValueError for an optimizer that leaves out a parameter, or holds others.
    """
    place_of = {id(tensor): place for place, part in enumerate(parts) for tensor in part}
    held = [tensor for settings in optimizer.param_groups for tensor in settings["params"]]
    if {id(tensor) for tensor in held} != set(place_of):
        raise ValueError(
            f"the optimizer must hold the {len(place_of)} parameters that its function was given and no others, "
            f"it holds {len(place_of.keys() & {id(tensor) for tensor in held})} of them, and {len(held)} in all"
        )
    apart, places = [], []
    one = len(optimizer.param_groups) == 1  # then each part gets a group, even without parameters
    for settings in optimizer.param_groups:
        of_each = [place_of[id(tensor)] for tensor in settings["params"]]
        for place in range(len(parts)) if one else dict.fromkeys(of_each or [0]):
            own = [tensor for tensor, at in zip(settings["params"], of_each, strict=True) if at == place]
            apart.append(settings | {"params": own})
            places.append(place)
    optimizer.param_groups[:] = apart
    return places


def _as_held(gradients: Gradients, aliases: Sequence[Tensor], strides: Sequence[tuple[int, ...]]) -> Gradients:
    """Gradients in the dtype and memory layout of their parameters, as fused kernels need, each in its own memory.

    Clipping and Nesterov momentum work in place, and autograd may return one tensor as the gradient of both a and b in
    a + b. (PyTorch's `backward` takes care of all this, `autograd.grad` does not.)
    """
    held, copies, originals = list(gradients), [], []
    seen: set[int] = set()
    for n, (g, a, stride) in enumerate(zip(gradients, aliases, strides, strict=True)):
        if g is not None and not g.is_sparse:
            if g.dtype != a.dtype or g.stride() != stride or g.data_ptr() in seen:
                held[n] = copy = torch.empty_like(a)
                copies.append(copy)
                originals.append(g)
            seen.add(g.data_ptr())
    if copies:
        torch._foreach_copy_(copies, originals)  # in one launch
    return held


def _begin_late_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Create a momentum v for parameters that get their first gradient later than others: fused SGD fails without one.

    PyTorch's first momentum is the gradient g, undamped, so v must satisfy mu v + (1 - dampening) g = g.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"]:
            given = [p for p in group["params"] if p.grad is not None]
            late = [p for p in given if optimizer.state[p].get("momentum_buffer") is None]
            for p in late if len(late) < len(given) else ():
                g = (-p.grad if group["maximize"] else p.grad).add(p, alpha=group["weight_decay"])
                optimizer.state[p]["momentum_buffer"] = g * (group["dampening"] / group["momentum"])


def master_of(parameter: nn.Parameter) -> Tensor | None:
    """The master that `precision.to_bfloat16` gave a parameter, if the parameter still has lower precision; else None.

    Where the parameter is not the rounded master, the master takes its value: other weights were loaded since.
    """
    master: Tensor | None = getattr(parameter, "master", None)
    if master is None and parameter.dtype == torch.bfloat16:
        warn(
            "parameters in bfloat16 without float32 masters, which a copy of a net does not have, lose small steps: "
            "auxnet.precision.to_bfloat16(net.float()) gives them"
        )
    if master is None or master.dtype == parameter.dtype:
        return None
    if not parameter.is_meta:
        master.copy_(torch.where(master.to(parameter.dtype) == parameter.data, master, parameter.data))
    return master


class SharedUpdate:
    """An update of some of an `Update`'s parameters, which leaves the others and their optimizer state alone."""

    def __init__(self, whole: Update, trunk: list[nn.Parameter], rest: list[nn.Parameter]) -> None:
        self.whole, self.trunk, self.parameters = whole, trunk, [*trunk, *rest]
        self.scales: Sequence[float] = (1.0, 1.0)

    def __call__(self, gradients: Gradients) -> None:
        """Make one step along these gradients, one for each of `parameters`, in the same order."""
        if all(gradient is None for gradient in gradients):
            return
        own = {id(p): gradient for p, gradient in zip(self.parameters, gradients, strict=True)}
        self.whole.rescale(self.scales)
        self.whole([own.get(id(p)) for p in self.whole.parameters])

    def rescale(self, scales: Sequence[float]) -> None:
        """Set the factors on the step sizes of the trunk and of the rest in this update."""
        self.scales = scales
