"""The three ways to propagate gradients through an AuxNet: `joint`, `pairwise` and `multiway`.

Output k = 1..K has loss L_k, weight lambda_k and head H_k. It sees the segments S_1..S_k of the trunk; x_k is the
feature after S_k. One training step on a batch:

    joint       forward;  backward of sum_k lambda_k L_k;  update
    pairwise    for k = 1..K:  forward to x_k;  backward of L_k;  update of S_1..S_k and H_k
    multiway    forward;  for k = 1..K:  backward of L_k, features kept;  update of S_1..S_k and H_k

In pairwise and multiway each output has its own optimizer state (except with `state="shared"` or `mode="fused"`).
lambda_k scales the gradient of L_k where it enters the trunk, at x_k; the head H_k takes its own gradient unscaled, at
the full step size. An output with lambda_k = 0 is discarded (`Method.set_weights`).

The module `steps` computes the step sizes, `update` explains why weights may change between two backwards of one
forward, and `fused` merges the K backwards into one. The argument `average` is the mean over the processes that train
together.

Labels such as eq:joint_gradient are those of the paper's LaTeX source.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxnet.features import kept_features
from auxnet.fused import fused
from auxnet.gradients import (
    Aggregator,
    Distillation,
    Loss,
    Supervised,
    aggregated,
    gradients,
    losses_of,
    parameters,
    supervise,
)
from auxnet.method import Method, Weights, weights_for
from auxnet.modules import statistics_kept
from auxnet.network import AuxNet, check_net
from auxnet.sections import Mode, Order, State, StepScale
from auxnet.steps import adaptive_scales, check_choices, check_rule, rescale_each, step_scales, updates_per_output
from auxnet.update import Average, Gradients, Optimizer, Update, identity
from auxnet.wavefront import wavefront


def joint(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights | None = None,
    step_scale: StepScale = "sum",
    *,
    loss: Loss = F.cross_entropy,
    distill: Distillation | None = None,
    aggregate: Aggregator | None = None,
    clip: float | None = None,
    average: Average = identity,
) -> Method:
    """One forward, one backward of the weighted sum of all losses, one update (paper, eq:joint_gradient).

    `step_scale` divides the step of each segment: "sum" by the sum of the weights of the auxiliary outputs at or above
    it, if that sum exceeds 1; "equilibrium" (IMTA) by the number of outputs at or above it; "none" by nothing.

    `aggregate` combines the trunk's gradients of all lambda_k L_k (K backwards) into one, in place of their sum.
    """
    check_net(net)
    check_rule(step_scale, "none", "sum", "equilibrium")
    lambdas = weights_for(net, weights)
    trunk, heads = parameters(net.segments), parameters(net.heads)
    update = Update(optimizer, [*map(parameters, net.segments), heads], clip, average)

    def rescale() -> None:
        update.rescale([*step_scales(lambdas, step_scale), 1.0])  # of S_1..S_K; of the heads

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses = losses_of(net(images), labels, loss, distill)
        weighted = [w * L for w, L in zip(lambdas, losses, strict=True) if w > 0]
        objective = torch.stack(weighted).sum()  # sum_k lambda_k L_k
        if aggregate is None:
            update(gradients([objective], [*trunk, *heads]))
        else:
            update([*aggregated(weighted, trunk, aggregate, average), *gradients([objective], heads)])
        return average(torch.stack(losses).detach())

    return Method(net, step, [update], lambdas, rescale, loss, "joint")


def backward(output: Supervised, weight: float, trunk: list[nn.Parameter], keep: bool = False) -> Gradients:
    """The gradients of S_1..S_k, from lambda_k dL_k/dx_k at x_k down (eq:pair-wise_gradient), and of H_k, unscaled.

    This backward uses the features of the forward that made x_k, and the weights as they are now. `keep` keeps the
    graph for another backward. For an output of weight 0 all gradients are None.
    """
    if weight == 0:
        return [None] * (len(trunk) + len(output.head))
    return [*gradients([output.feature], trunk, [weight * output.supervision], keep), *output.head]


def pairwise(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights | None = None,
    step_scale: StepScale = "none",
    *,
    loss: Loss = F.cross_entropy,
    clip: float | None = None,
    average: Average = identity,
) -> Method:
    """A forward, a backward and an update for each output in turn (paper, eq:pair-wise_gradient).

    Output k sees the weights that the update of output k-1 left, so there are K forwards. Running statistics move once
    per batch.
    """
    check_net(net)
    check_rule(step_scale, "none", "cumulative")
    lambdas = weights_for(net, weights)
    updates, optimizers = updates_per_output(net, optimizer, clip, average)

    def rescale() -> None:
        rescale_each(updates, step_scales(lambdas, step_scale))

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses = []
        for k, update in enumerate(updates, start=1):
            with statistics_kept(net.segments[: k - 1]):  # their running statistics have moved already
                x_k = next(islice(net.features(images.clone()), k - 1, None))  # new features, from new weights
                (output,) = supervise(net.heads, [(k, x_k)], labels, loss)
                update(backward(output, lambdas[k - 1], update.trunk))
            losses.append(output.loss)
        return average(torch.stack(losses))

    return Method(net, step, optimizers, lambdas, rescale, loss, "pairwise")


def multiway(
    net: AuxNet,
    optimizer: Optimizer,
    weights: Weights | None = None,
    mode: Mode = "live",
    step_scale: StepScale = "cumulative",
    *,
    state: State = "per_output",
    order: Order = "shallow_first",
    loss: Loss = F.cross_entropy,
    distill: Distillation | None = None,
    clip: float | None = None,
    average: Average = identity,
) -> Method:
    """One forward, whose features are kept; then a backward and an update for each output in turn.

    (Paper, eq:multipath_individual_gradient and eq:gradient-multi-way.) `mode` says which weights backward k uses:

    - "live", the paper's: old features, and the weights that the updates of outputs 1..k-1 left.
    - "frozen": old features, old weights; all K gradients are taken before the first update.
    - "fused": frozen in one backward. With SGD, frozen's K updates add up to one update along the gradient of
      sum_k c_k lambda_k L_k (under weight decay, up to O(eta x decay)). With any other optimizer (Adam, or SGD under
      `clip`) the one step along that gradient differs from frozen's K steps.

    `step_scale` divides the trunk's step in pass k: "cumulative" by the sum of the weights of the auxiliary
    outputs k and above, if that sum exceeds 1; "adaptive" by L_k / L_K instead, if that ratio exceeds 2.

    Two options depart from the paper, to see what its choices are worth: `state="shared"` gives all outputs one
    optimizer state (one momentum) instead of one each, and `order="deep_first"` updates the final output first.
    """
    check_net(net)
    check_rule(step_scale, "none", "cumulative", "adaptive")
    check_choices(mode, state, order, step_scale)
    lambdas = weights_for(net, weights)
    if mode == "fused":
        return fused(net, optimizer, lambdas, step_scale, loss, distill, clip, average)
    updates, optimizers = updates_per_output(net, optimizer, clip, average, state)
    features_of = kept_features(net, live=mode == "live")
    last = net.outputs if order == "shallow_first" else 1

    def rescale() -> None:
        rescale_each(updates, step_scales(lambdas, step_scale))

    def supervised(images: Tensor, labels: Tensor) -> Iterable[Supervised]:
        """Yield x_k, L_k and dL_k/dx_k of each output, in the order of the updates, each computed when its turn comes.

        Updates 1..k-1 do not touch S_k, so x_k is the old feature even if computed after them; less memory is held.
        """
        features = enumerate(features_of(images), start=1)
        turns = features if order == "shallow_first" else reversed([*features])
        return supervise(net.heads, turns, labels, loss, distill)

    def backpropagated(output: Supervised) -> tuple[int, Tensor, Gradients]:
        k = output.k
        return k, output.loss, backward(output, lambdas[k - 1], updates[k - 1].trunk, keep=k != last)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses, outputs = {}, supervised(images, labels)
        if step_scale == "adaptive":  # the one rule that needs all losses before the first backward
            outputs = [*outputs]
            known = average(_stacked({output.k: output.loss for output in outputs}))
            rescale_each(updates, adaptive_scales(known, step_scales(lambdas, step_scale)))
        passes = map(backpropagated, outputs)  # live: backward k+1 runs after update k, with the weights it left
        for k, L, gradient in [*passes] if mode == "frozen" else passes:  # frozen: all backwards come first
            updates[k - 1](gradient)
            losses[k] = L
            del gradient  # or it would be held during the next backward
        return average(_stacked(losses))

    # The same step in pieces that may run at the same time; the adaptive rule cannot be split, as it reads the losses.
    at_once = mode == "live" and step_scale != "adaptive"
    pieces = wavefront(net, updates, lambdas, order, supervised) if at_once else None
    return Method(net, step, optimizers, lambdas, rescale, loss, mode, pieces)


def _stacked(losses: dict[int, Tensor]) -> Tensor:
    """L_1..L_K as one tensor [K], in whatever order they were computed."""
    return torch.stack([losses[k] for k in sorted(losses)])
