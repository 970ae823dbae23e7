"""Frozen multi-way in one backward and one update, by a theorem on SGD.

In frozen multi-way all K gradients g_k are taken at the same weights. With SGD output k's momentum obeys
v_k <- mu v_k + lambda_k g_k, and the trunk moves by -eta sum_k c_k v_k. The recursion is linear, so v = sum_k c_k v_k
obeys v <- mu v + sum_k c_k lambda_k g_k: *one* SGD update of sum_k c_k lambda_k L_k. (Nesterov's look-ahead is linear
in g and v, too.) With weight decay, S_k decays c_k + ... + c_K times, once for every output that reaches it; frozen and
fused then agree up to O(eta x decay), since each of frozen's updates decays the weights that the one before it left.

So what live multi-way adds to a re-weighted joint loss is exactly the effect of the live weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from auxnet.features import kept_features
from auxnet.gradients import Distillation, Loss, gradients, parameters, supervise
from auxnet.method import Method
from auxnet.network import AuxNet
from auxnet.sections import StepScale
from auxnet.steps import step_scales
from auxnet.update import Average, Gradients, Optimizer, Update


def fused(
    net: AuxNet,
    optimizer: Optimizer,
    lambdas: list[float],
    step_scale: StepScale,
    loss: Loss,
    distill: Distillation | None,
    clip: float | None,
    average: Average,
) -> Method:
    """`methods.multiway` with mode="fused", whose arguments are checked already."""
    K, trunk = net.outputs, parameters(net.segments)
    update = Update(optimizer, [parameters(part) for part in (*net.segments, *net.heads)], clip, average)
    features_of = kept_features(net, live=False)

    def rescale() -> None:
        c = [c_k if w > 0 else 0.0 for c_k, w in zip(step_scales(lambdas, step_scale), lambdas, strict=True)]
        decays = [sum(c[k:]) for k in range(K)]  # of each segment, once for every output that reaches it
        update.rescale([1.0] * 2 * K, [*decays, *[1.0] * K])

    def step(images: Tensor, labels: Tensor) -> Tensor:
        c = step_scales(lambdas, step_scale)
        losses, reached, entering, of_heads = [], [], [], Gradients()
        for output in supervise(net.heads, enumerate(features_of(images), start=1), labels, loss, distill):
            k = output.k - 1
            losses.append(output.loss)
            if lambdas[k] > 0:
                reached.append(output.feature)
                entering.append(c[k] * lambdas[k] * output.supervision)
            of_heads += output.head if lambdas[k] > 0 else [None] * len(output.head)
        update([*gradients(reached, trunk, entering), *of_heads])
        return average(torch.stack(losses))

    return Method(net, step, [update], lambdas, rescale, loss, "fused")
