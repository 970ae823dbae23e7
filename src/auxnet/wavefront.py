"""Live multi-way in pieces that may run at once: K backwards, each a segment behind the one before it.

Backward k needs only one thing from the backward before it: in each segment S_j, the update of S_j must be done. So
backward k may go through S_j while the previous backward is already below S_j. If the device has room for all of them,
as a GPU that small feature maps do not fill, a step takes little longer than its longest backward. The weights equal
those of backwards one after another, to the last bit: each segment is updated in the same order, along the same
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from auxnet.gradients import Supervised, gradients, parameters
from auxnet.method import Piece
from auxnet.network import AuxNet
from auxnet.sections import Order
from auxnet.update import Gradients, SharedUpdate, Update, identity

Pass = tuple[int, int]  # (k, j): backward k through segment S_j


def wavefront(
    net: AuxNet,
    updates: Sequence[Update | SharedUpdate],
    lambdas: Sequence[float],
    order: Order,
    supervised: Callable[[Tensor, Tensor], Iterable[Supervised]],
) -> Callable[[Tensor, Tensor], list[Piece] | None]:
    """A live step in pieces: the forward with all its heads, then backward k through segment S_j for all k and j.

    `supervised` yields x_k, L_k and dL_k/dx_k of each output. The function returned gives None if parameters cannot be
    updated one by one: with clipped gradients, means over processes, hooked optimizers, or others than PyTorch's. The
    first piece raises RuntimeError for hooks on features, which two pieces would call.
    """
    turns = range(1, net.outputs + 1) if order == "shallow_first" else range(net.outputs, 0, -1)

    def pieces(images: Tensor, labels: Tensor) -> list[Piece] | None:
        if not all(map(_is_separable, updates)):
            return None
        trained = [j for j, segment in enumerate(net.segments, start=1) if parameters(segment)]
        lowest = min(trained, default=net.outputs)  # no backward goes below S_lowest
        outputs: dict[int, Supervised] = {}
        entering: dict[int, Tensor | None] = {}  # by k: lambda_k dL_k/dx_j at the x_j that backward k has reached

        def forward() -> Tensor:
            for output in supervised(images, labels):
                outputs[output.k] = output
                entering[output.k] = lambdas[output.k - 1] * output.supervision
                if output.feature._backward_hooks:
                    raise RuntimeError(f"segment {output.k} hooks the gradient of its feature")
            return torch.stack([outputs[k].loss for k in sorted(outputs)])

        def backward(k: int, j: int) -> None:
            """Take backward k from x_j through S_j to x_{j-1} and update S_j; at j = k, update the head H_k too."""
            own, above = parameters(net.segments[j - 1]), entering[k]
            below = [outputs[j - 1].feature] if j > lowest and outputs[j - 1].feature.requires_grad else []
            found: Gradients = [None] * len([*own, *below])
            if above is not None:  # None if a segment above lets no gradient through
                found = gradients([outputs[j].feature], [*own, *below], [above], keep=True)
            entering[k] = found.pop() if below else None
            if (going_on := entering[k]) is not None:  # optimizers may overwrite the gradients they are given
                found = [g.clone() if g is not None and g.data_ptr() == going_on.data_ptr() else g for g in found]
            gradient_of = dict(zip(own, found, strict=True))
            if j == k:
                gradient_of |= zip(parameters(net.heads[k - 1]), outputs[k].head, strict=True)
            updates[k - 1]([gradient_of.get(p) for p in updates[k - 1].parameters])

        passes = ordered_passes([k for k in turns if lambdas[k - 1] > 0], lowest)
        place = {each: n for n, each in enumerate(passes, start=1)}
        return [Piece(forward, lane=0, after=())] + [
            Piece(partial(backward, k, j), lane=k, after=tuple(place[each] for each in before) or (0,))
            for (k, j), before in passes.items()
        ]

    return pieces


def _is_separable(update: Update | SharedUpdate) -> bool:
    """Whether updating parameters one by one equals updating them together."""
    whole = update.whole if isinstance(update, SharedUpdate) else update
    optimizer = whole.optimizer
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    together = hooked or whole.clip is not None or whole.average is not identity
    return not together and type(optimizer).__module__.startswith("torch.optim.")


def ordered_passes(turns: Sequence[int], lowest: int = 1) -> dict[Pass, list[Pass]]:
    """All passes of a step's backwards in the order in which they can begin, each with the passes it must wait for.

    Pass (k, j) waits for (k, j + 1), the same backward one segment above, and for the pass through S_j of the backward
    before it. No backward goes below segment `lowest`, since nothing is trained there; but each makes its first pass
    (k, k), which updates its head.
    """
    needs: dict[Pass, list[Pass]] = {}
    when: dict[Pass, int] = {}
    last: dict[int, Pass] = {}  # by j: the last pass through S_j so far
    for k in turns:
        for j in range(k, min(k, lowest) - 1, -1):
            before = [(k, j + 1)] if j < k else []
            if j in last:
                before.append(last[j])
            needs[k, j], last[j] = before, (k, j)
            when[k, j] = 1 + max((when[each] for each in before), default=0)
    return {each: needs[each] for each in sorted(needs, key=when.__getitem__)}
