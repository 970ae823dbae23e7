"""Method: a way of training bound to a net, as `auxnet.joint`, `pairwise` and `multiway` return it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from auxnet.errors import is_number, warn
from auxnet.network import AuxNet, check_forward, check_tensors, fitting
from auxnet.sections import Way
from auxnet.update import Update, base_lr, master_of

Weights = Sequence[float] | Tensor  # lambda [K]


def checked_weights(weights: Weights, outputs: int) -> list[float]:
    """The loss weights [K] as floats. Raises ValueError unless they are K finite numbers of 0 or more."""
    try:
        lambdas = [] if isinstance(weights, Mapping | str) else [float(w) for w in weights]
    except (TypeError, ValueError):  # a single number, or items that are not numbers
        lambdas = []
    if len(lambdas) != outputs or not all(0 <= w < math.inf for w in lambdas):
        raise ValueError(f"weights must be {outputs} finite numbers >= 0, one per output, got {weights}")
    return lambdas


def check_loss(loss: object, trains: bool = True) -> None:
    """Raise TypeError for a loss that is not a function; if it `trains` a net, ValueError for trainable parameters.

    No optimizer of a method would hold the loss's own parameters.
    """
    loss = loss.func if isinstance(loss, partial) else loss
    if not callable(loss) or isinstance(loss, type):
        got = f"the class {loss.__name__}: {loss.__name__}() makes one" if isinstance(loss, type) else repr(loss)
        raise TypeError(f"loss must be a function of logits and labels, got {got}")
    if trains and isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ValueError(
            f"{type(loss).__name__} has parameters, and a method trains those of its net alone: requires_grad_(False), "
            "or make them part of the heads"
        )


def weights_for(net: AuxNet, weights: Weights | None) -> list[float]:
    """The loss weights [K] of a net's outputs as floats; None stands for the paper's.

    Raises ValueError for weights or a net that a method cannot train with: such as a net whose parts share parameters,
    or one whose frozen parts (`freeze_trunk`) train again, for their norms would stay in evaluation mode.
    """
    check_forward(net)
    net.check_nothing_shared()
    if any(p.requires_grad for part in net.frozen for p in part.parameters()):
        raise ValueError(
            "parameters that freeze_trunk() froze are to train again: net.freeze_trunk(False) first unfreezes them all"
        )
    lambdas = checked_weights(net.loss_weights() if weights is None else weights, net.outputs)
    if not any(p.requires_grad for p in net.parameters()):
        mend = "net.freeze_trunk(False)" if net.frozen else "requires_grad_(True)"
        raise ValueError(f"the net has nothing to train, all its parameters are frozen: {mend} first")
    if not any(lambdas):
        raise ValueError(f"weights must leave at least one output above 0 (0 discards it), got {lambdas}")
    return lambdas


class Piece(NamedTuple):
    """A part of a training step that may run at the same time as other parts."""

    run: Callable[[], Tensor | None]
    """the first piece of a step returns the losses [K], the others None"""
    lane: int
    """pieces of one lane run one after another, in the order of the step's list"""
    after: tuple[int, ...]
    """the pieces that must be done before this one, as indices (from 0) into the step's list"""


@dataclass(frozen=True, eq=False, repr=False)  # a repr would show the whole net
class Method:
    """A way of training, bound to a net. Build it once the net is on its device and its frozen parts are frozen."""

    net: AuxNet
    one_step: Callable[[Tensor, Tensor], Tensor]
    updates: list[Update]
    lambdas: list[float]
    """the current loss weights, in the list that `one_step` reads"""
    rescale: Callable[[], None]
    """sets the step scales of the updates from the loss weights"""
    loss: Callable[[Tensor, Tensor], Tensor]
    """of logits [N, classes] and labels"""
    way: Way
    """how gradients are propagated: joint, pairwise, or multiway's mode"""
    pieces: Callable[[Tensor, Tensor], list[Piece] | None] | None = None
    """splits `one_step` into pieces, some of which may run at the same time; None, or returns None, if it cannot"""
    built_on: list[tuple[int, int, bool]] = field(init=False, default_factory=list)
    """what `_parameter_identities` said of the net when the method was built"""
    trained: list[nn.Parameter] = field(init=False, default_factory=list)
    """the parameters of the net that are not frozen"""
    mastered: list[nn.Parameter] = field(init=False, default_factory=list)
    """the trained parameters that have a float32 master"""
    versions: list[int] = field(init=False, default_factory=list)
    """the version counters of `mastered` after the last step"""

    def __post_init__(self) -> None:
        check_loss(self.loss)
        if set[int].intersection(*(update.empty_groups for update in self.updates)):
            warn(
                "the optimizer's function made a group without parameters: it is given aliases of the net's "
                "parameters, which are other objects without their attributes: group by shape (p.ndim) or by position"
            )
        self.built_on.extend(_parameter_identities(self.net))
        self.trained.extend(p for p in self.net.parameters() if p.requires_grad)
        self.mastered.extend(p for p in self.trained if hasattr(p, "master"))
        self.versions.extend(p._version for p in self.mastered)
        self.rescale()

    def __deepcopy__(self, memo: object) -> Any:
        raise TypeError(
            "a method trains the very net that it was built on, and so would a copy: build one on a copy of the net, "
            "and give it this one's state_dict()"
        )

    def __reduce__(self) -> Any:
        raise TypeError("a method holds the functions of a training, which cannot be pickled: save its state_dict()")

    def in_pieces(self, images: Tensor, labels: Tensor) -> list[Piece]:
        """`one_step` on a batch, in pieces that may run at the same time, or in one piece if it cannot be split."""
        pieces = self.pieces(images, labels) if self.pieces else None
        return pieces or [Piece(lambda: self.one_step(images, labels), lane=0, after=())]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch: images [N, C, H, W], labels [N], or whatever else the loss takes.

        The batch itself is not changed, even if the trunk's first layer works in place.
        Returns the losses L_1..L_K [K], detached, as they were before any weight changed; in pair-wise, L_k is computed
        after the updates of outputs 1..k-1. A loss that is not finite is not noticed here, since looking would make a
        GPU wait: stop if `losses.isfinite().all()` is false, because the weights are then lost.

        Raises TypeError if images, or labels under the default loss, are not tensors; ValueError for images or labels
        that do not fit this net; RuntimeError if gradients are disabled, if the net's parameters were moved, replaced,
        frozen or unfrozen since the method was built, or if the whole net is in evaluation mode, in which BatchNorm
        would keep its statistics.
        """
        check_tensors(images, labels, self.loss)
        if _parameter_identities(self.net) != self.built_on:
            raise RuntimeError(
                "the net's parameters were moved, replaced, frozen or unfrozen after its method was built: "
                "build the method after that"
            )
        if not any(module.training for module in self.net.modules() if not module._modules):
            raise RuntimeError(
                "a training step needs training mode, and the net is in evaluation mode, as load gives it: "
                "net.train() first (then norms alone may go back to evaluation mode)"
            )
        if len(images) == 0:
            raise ValueError("a training step needs one image or more, got a batch of none")
        if not torch.is_grad_enabled():
            raise RuntimeError("a training step takes gradients, which are disabled here: call it outside no_grad()")
        for p, version in zip(self.mastered, self.versions, strict=True):
            if p._version != version:  # written to outside of steps, as by net.load_state_dict
                master_of(p)
        with fitting(self.net, images):
            losses = self.one_step(images.clone(), labels)
        increment_version(self.trained)  # so that autograd refuses a backward through older graphs
        self.versions[:] = [p._version for p in self.mastered]
        return losses

    def set_weights(self, weights: Weights | None) -> None:
        """Set the loss weights lambda [K] from now on (None: the paper's), and the step scales that follow from them.

        An output of weight 0 is discarded: its loss has no effect at all. No gradient of its loss is taken, and its
        head stays as it is, without decay or momentum; in pair-wise and multi-way, an optimizer of its own makes no
        step either. Its loss is still returned. Raises ValueError for weights that do not fit.
        """
        self.lambdas[:] = weights_for(self.net, weights)
        self.rescale()

    def set_lr(self, lr: float) -> None:
        """Set the step size eta from now on, for all outputs; groups with their own step size keep their ratio to it.

        Raises ValueError unless it is a number of 0 or more.
        """
        if not (is_number(lr) and 0 <= lr < math.inf):
            raise ValueError(f"lr must be a number of 0 or more, and finite, got {lr!r}")
        usual = base_lr(self.updates)
        for update in self.updates:
            update.set_lr(float(lr), usual)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer states (one, or one per output if each has its own), the loss weights and float32 masters."""
        state: dict[str, Any] = {
            "way": self.way,
            "optimizers": [update.optimizer.state_dict() for update in self.updates],
            "kinds": [type(update.optimizer).__name__ for update in self.updates],
            "shapes": [list(p.shape) for p in self.trained],
            "weights": [*self.lambdas],
        }
        return state | {"masters": masters} if (masters := self.masters()) else state

    def masters(self) -> list[Tensor]:
        """The masters of all parameters that have one, each once."""
        return list({id(master): master for update in self.updates for _, master in update.with_master}.values())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned. Tensors are copied, so the state may be that of a method that trains on.

        Raises ValueError if the state is that of another method or another net.
        """
        states = copy.deepcopy(state.get("optimizers", [])) if isinstance(state, dict) else []
        way = state.get("way", self.way) if states else self.way  # (old states have no way)
        if _function_of(way) != _function_of(self.way):
            raise ValueError(f"this method is {self.way}, the state is of {way}: build this method as the saved one")
        if len(states) != len(self.updates):
            raise ValueError(f"this method has {len(self.updates)} optimizers, the state has {len(states)}")
        own = [type(update.optimizer).__name__ for update in self.updates]
        if (kinds := state.get("kinds", own)) != own:
            raise ValueError(f"this method has optimizers {', '.join(own)}, the state is of {', '.join(kinds)}")
        if not all(isinstance(each, dict) and isinstance(each.get("param_groups"), list) for each in states):
            raise ValueError("an optimizer's state is none that state_dict() gave: it has no param_groups")
        shapes = [list(p.shape) for p in self.trained]
        for theirs, ours in zip_longest(state.get("shapes", shapes), shapes):
            if theirs != ours:
                raise ValueError(f"the state is of another net: it has a parameter {theirs}, where this one has {ours}")
        if not all(map(Update.fits, self.updates, states)):
            raise ValueError(
                "the state is of optimizers with other groups of parameters: build this method as the saved one"
            )
        masters, saved = self.masters(), state.get("masters", [])
        if len(masters) != len(saved):
            raise ValueError(
                f"this method has {len(masters)} float32 masters, the state has {len(saved)}: "
                "build it on a net of the same precision"
            )
        for update, optimizer_state in zip(self.updates, states, strict=True):
            update.load_state_dict(optimizer_state)
        for master, value in zip(masters, saved, strict=True):
            master.copy_(value)
        for update in self.updates:
            update.copy_masters()
        self.set_weights(state.get("weights", self.lambdas))


def _parameter_identities(module: nn.Module) -> list[tuple[int, int, bool]]:
    """(identity, address, whether it is trained) of each parameter in a module: fast, for every step."""
    identities = [(id(p), p.data_ptr(), p.requires_grad) for p in module._parameters.values() if p is not None]
    for child in module._modules.values():
        identities += [] if child is None else _parameter_identities(child)
    return identities


def _function_of(way: str) -> str:
    """The function that makes methods of this way; multi-way's modes share one, and may load each other's states."""
    return way if way in ("joint", "pairwise") else "multiway"
