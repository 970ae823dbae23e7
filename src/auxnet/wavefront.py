"""Live multi-way in pieces that may run at once: K backwards, each a segment behind the one before it.

Backward k needs one thing of the backward before it in each segment S_j: that its update of S_j is done. So it may go
through S_j while the other is already below, and a step takes little longer than its longest backward where there is
room for all of them, as on a GPU that small maps do not fill. The numbers are those of one after the other, to the last
bit: the weights of each segment are updated in the same order, along the same gradients.
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

    `supervised` gives x_k, L_k and dL_k/dx_k of each output. There are none (None) where an update is not one of each
    parameter by itself: with clipped gradients, means over processes, optimizers other than PyTorch's own, or hooks on
    them. Raises RuntimeError, in the first piece, for hooks on features: two pieces would call them.
    """
    turns = range(1, net.outputs + 1) if order == "shallow_first" else range(net.outputs, 0, -1)

    def pieces(images: Tensor, labels: Tensor) -> list[Piece] | None:
        if not all(map(_is_separable, updates)):
            return None
        trained = [j for j, segment in enumerate(net.segments, start=1) if parameters(segment)]
        lowest = min(trained, default=net.outputs)  # below S_lowest no backward goes
        outputs: dict[int, Supervised] = {}
        entering: dict[int, Tensor | None] = {}  # lambda_k dL_k/dx_j, where backward k has got to

        def forward() -> Tensor:
            for output in supervised(images, labels):
                outputs[output.k] = output
                entering[output.k] = lambdas[output.k - 1] * output.supervision
                if output.feature._backward_hooks:
                    raise RuntimeError(f"segment {output.k} hooks the gradient of its feature")
            return torch.stack([outputs[k].loss for k in sorted(outputs)])

        def backward(k: int, j: int) -> None:
            """Go from x_j through S_j, which is updated then, to x_{j-1}; with S_k its head is updated."""
            own, above = parameters(net.segments[j - 1]), entering[k]
            below = [outputs[j - 1].feature] if j > lowest and outputs[j - 1].feature.requires_grad else []
            found: Gradients = [None] * len([*own, *below])
            if above is not None:  # else a segment on the way lets no gradient through
                found = gradients([outputs[j].feature], [*own, *below], [above], keep=True)
            entering[k] = found.pop() if below else None
            if (going_on := entering[k]) is not None:  # optimizers may write over their own gradients
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
    """The passes of a step's backwards in the order in which they can begin, each with those that must be done first.

    Those are the same backward's pass above, and the pass through the same segment of the backward before it. Below
    segment `lowest`, where nothing is trained, no backward goes, but for its first pass, with its head.
    """
    needs: dict[Pass, list[Pass]] = {}
    when: dict[Pass, int] = {}
    last: dict[int, Pass] = {}  # through S_j
    for k in turns:
        for j in range(k, min(k, lowest) - 1, -1):
            before = [(k, j + 1)] if j < k else []
            if j in last:
                before.append(last[j])
            needs[k, j], last[j] = before, (k, j)
            when[k, j] = 1 + max((when[each] for each in before), default=0)
    return {each: needs[each] for each in sorted(needs, key=when.__getitem__)}
