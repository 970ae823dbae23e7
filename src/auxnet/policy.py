"""When an image may leave at a shallow output: how sure that output is of it, and how sure is sure enough.

Shapes: K outputs, N images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auxnet.errors import check_choice
from auxnet.sections import Confidence

NEVER = 2.0
"""a threshold that no confidence, which lies in [0, 1], reaches"""
ALWAYS = 0.0
"""a threshold that every confidence reaches"""


@dataclass(frozen=True)
class Policy:
    """An image leaves at the first output whose confidence reaches its threshold; the final one takes the rest."""

    thresholds: tuple[float, ...]
    """[K - 1], in confidence"""
    confidence: Confidence
    temperatures: tuple[float, ...]
    """[K]: the logits of each output are divided by its temperature before confidence is taken. The final output's
    decides no exit, but scales the probabilities of an exported early exit as the others do"""

    def check(self, outputs: int) -> None:
        """Raise ValueError unless this is a policy for so many outputs."""
        check_choice("confidence", self.confidence, Confidence)
        if len(self.thresholds) != outputs - 1:
            raise ValueError(f"{outputs} outputs need {outputs - 1} thresholds, got {len(self.thresholds)}")
        if len(self.temperatures) != outputs:
            raise ValueError(f"{outputs} outputs need {outputs} temperatures, got {len(self.temperatures)}")
        if any(not t >= 0 for t in self.thresholds):
            raise ValueError(f"thresholds must be 0 or more, got {self.thresholds}")
        if any(NEVER < t < math.inf for t in self.thresholds):
            raise ValueError(f"thresholds are confidences in 0..1 ({NEVER:g}: never), not per cent: {self.thresholds}")
        if any(not 0 < t < math.inf for t in self.temperatures):
            raise ValueError(f"temperatures must be above 0 and finite, got {self.temperatures}")

    def exits_here(self, logits: Tensor, k: int) -> Tensor:
        """Whether images leave at output k < K (from 1), bool [N], by their logits [N, C] there."""
        return confidence(logits, self.confidence, self.temperatures[k - 1]) >= self.thresholds[k - 1]

    def decides(self, k: int) -> bool:
        """Whether any image can leave at output k < K (from 1): if not, the head need not be run."""
        return can_leave(self.thresholds[k - 1])

    @property
    def deepest(self) -> int:
        """The deepest output that images can get to: the first at which every image leaves, or the final one."""
        always = [k for k, threshold in enumerate(self.thresholds, start=1) if threshold <= ALWAYS]
        return min(always, default=len(self.temperatures))

    def exits(self, logits: Tensor) -> Tensor:
        """The output 1..K at which each image leaves, int64 [N], by the logits [K, N, C] of all outputs.

        Raises ValueError for a policy that is not for K outputs, as `confidences` does.
        """
        return first_exit(self.confidences(logits), self.thresholds)

    def confidences(self, logits: Tensor) -> Tensor:
        """The confidences [K - 1, N] of all outputs but the final one, from the logits [K, N, C] of all."""
        self.check(len(logits))
        tempered = zip(logits[:-1], self.temperatures[:-1], strict=True)
        rows = [confidence(one, self.confidence, t) for one, t in tempered]
        return torch.stack(rows) if rows else logits.new_zeros(0, logits.shape[1])

    def up_to(self, output: int) -> Policy:
        """The policy over outputs 1..`output`, the last of which takes all images that are left."""
        return Policy(self.thresholds[: output - 1], self.confidence, self.temperatures[:output])


def never(outputs: int, confidence: Confidence = "entropy", temperatures: Sequence[float] | None = None) -> Policy:
    """The policy by which no image leaves early, to be given other thresholds; temperatures [K] are 1 by default.

    Raises ValueError.
    """
    tempers = (1.0,) * outputs if temperatures is None else tuple(map(float, temperatures))
    rule = Policy((NEVER,) * (outputs - 1), confidence, tempers)
    rule.check(outputs)
    return rule


def confidence(logits: Tensor, kind: Confidence = "entropy", temperature: float = 1.0) -> Tensor:
    """How sure logits [..., C] are, in [0, 1] (more is surer), of shape [...]. Raises ValueError.

    "entropy": 1 - H / log C, where H is BranchyNet's entropy of the probabilities (Teerapittayanon et al. 2016);
    "top": the largest probability (MSDNet, Huang et al. 2018); "margin": the largest less the second largest.
    """
    check_choice("confidence", kind, Confidence)
    if logits.dtype in (torch.bfloat16, torch.float16):  # whose rounding would make nearly sure quite sure
        logits = logits.float()
    if kind == "entropy":
        log_p = (logits / temperature).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return (1 - entropy / math.log(logits.shape[-1])).clamp(0, 1)
    top = (logits / temperature).softmax(-1).topk(2, dim=-1).values
    return top[..., 0].clamp(0, 1) if kind == "top" else (top[..., 0] - top[..., 1]).clamp(0, 1)


def can_leave(threshold: float) -> bool:
    """Whether a confidence, which lies in [0, 1], can reach a threshold."""
    return threshold <= 1


def first_exit(confidences: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The first output 1..K whose confidence [K - 1, N] reaches its threshold [K - 1], int64 [N].

    The final output takes all images that are left.
    """
    left = torch.full(confidences.shape[1:], len(confidences) + 1, device=confidences.device)
    for k in range(len(confidences), 0, -1):
        left.masked_fill_(confidences[k - 1] >= thresholds[k - 1], k)
    return left
