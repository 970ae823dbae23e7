"""What is minimised at one output: cross-entropy or square hinge, weighted by class, or distilled from the final one.

Shapes: N images, C classes; logits [N, C]; a target is labels [N] or, of mixed images, a share of every class [N, C].
Every loss is a mean over images that does not depend on which others are in the batch, so that the processes of a
team may each take theirs of a part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from auxnet.gradients import Loss


def cross_entropy(
    logits: Tensor, target: Tensor, *, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy, in nats; `smoothing` is the share of the target that is spread over all classes.

    With `class_weights` [C] an image counts as often as its class weighs, smoothed or not. (PyTorch's own mean would
    divide by the weights that happen to be in the batch, and its smoothing would lean towards the classes that weigh.)
    """
    if class_weights is None:
        return F.cross_entropy(logits, target, label_smoothing=smoothing)
    said = logits.log_softmax(1)
    said = said.lerp(said.mean(1, keepdim=True), smoothing)
    if target.ndim == 1:
        return F.nll_loss(said, target, class_weights, reduction="none").mean()
    return -(target * class_weights * said).sum(1).mean()


def square_hinge(logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """DSN's loss (Lee et al. 2015), over C: mean of sum_{c != y} max(0, 1 - z_y + z_c)^2 / C, for labels [N]."""
    return F.multi_margin_loss(logits, labels, p=2, weight=class_weights)


def distilled(
    logits: Tensor, target: Tensor, final_logits: Tensor, *, loss: Loss, share: float, temperature: float
) -> Tensor:
    """(1 - share) loss + share T^2 KL(final || this), both softened by T ("Be Your Own Teacher", Zhang et al. 2019)."""
    student, teacher = ((z / temperature).log_softmax(1) for z in (logits, final_logits))
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - share) * loss(logits, target) + share * temperature**2 * divergence


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Class weights N / (C n_c) of labels [N], C the classes that have images: these count alike. An image counts once
    in the mean. One weight for each of the `classes`.
    """
    counts = torch.bincount(labels, minlength=classes)
    return len(labels) / (counts.count_nonzero() * counts.clamp(min=1).float())
