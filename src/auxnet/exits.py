"""Early exit: a network whose images leave at the first output that is sure of them, and really skip the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from auxnet.checkpoint import load, write_json
from auxnet.documents import read_json
from auxnet.evaluation import fingerprint
from auxnet.latency import measure
from auxnet.network import AuxNet, multiply_adds
from auxnet.scores import Confidence, check_confidence, confidence
from auxnet.thresholds import Policy, anytime


class Exited(NamedTuple):
    """What comes out, in the order of the images."""

    logits: Tensor
    """[N, classes], of the output at which each image left"""
    output: Tensor
    """int64 [N], that output, 1..K"""


class EarlyExit(nn.Module):
    """An AuxNet in which image n leaves at the first output whose confidence reaches its threshold.

    The images that stay are gathered into a smaller batch after each output, so that what has left costs
    nothing more; where none or all leave, nothing is copied. The weights are those of `net`, not copies.
    Images [N, C, H, W] -> `Exited`. Only evaluation mode makes sense. Logits come out as the net gives them:
    `temperatures` (K, default 1) serve the confidence alone.

    `thresholds` (K - 1) are in confidence (`scores.confidence`), in [0, 1], more is surer: 0 lets every image
    leave, anything above 1 none. BranchyNet's rule, leave if the entropy is at most h, is confidence="entropy"
    with a threshold of 1 - h / log(classes). Raises ValueError if the numbers do not fit the net.
    """

    def __init__(
        self,
        net: AuxNet,
        thresholds: Sequence[float],
        confidence: Confidence = "entropy",
        temperatures: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_confidence(confidence)
        if len(thresholds) != net.outputs - 1:
            raise ValueError(f"{net.outputs} outputs need {net.outputs - 1} thresholds, got {len(thresholds)}")
        temperatures = [1.0] * net.outputs if temperatures is None else temperatures
        if len(temperatures) != net.outputs:
            raise ValueError(f"{net.outputs} outputs need {net.outputs} temperatures, got {len(temperatures)}")
        if any(not t >= 0 for t in thresholds):
            raise ValueError(f"thresholds must be 0 or more, got {tuple(thresholds)}")
        if any(not 0 < t < float("inf") for t in temperatures):
            raise ValueError(f"temperatures must be above 0 and finite, got {tuple(temperatures)}")
        self.net = net
        self.thresholds = tuple(float(t) for t in thresholds)
        self.confidence: Confidence = confidence
        self.temperatures = tuple(float(t) for t in temperatures)

    def forward(self, images: Tensor) -> Exited:
        """Logits and exit of every image, in order; see the class. Raises ValueError for images not for this net."""
        self.net.check_images(images.shape)
        last = self.net.outputs - 1
        left: list[tuple[Tensor | None, Tensor]] = []  # per output: which images (None: all that there are), logits
        here: Tensor | None = None  # which images `features` holds; None: all
        features, exits = images, []
        for k, (segment, head) in enumerate(zip(self.net.segments, self.net.heads, strict=True)):
            features = segment(features)
            logits = head(features)
            if k == last:
                leaving, staying = None, None
            else:
                sure = confidence(logits, self.confidence, self.temperatures[k]) >= self.thresholds[k]
                leaving, staying = sure.nonzero().squeeze(1), (~sure).nonzero().squeeze(1)
                if not len(leaving):
                    continue
            everyone = leaving is None or not len(staying)  # type: ignore[arg-type]
            left.append((here, logits) if everyone else (_of(here, leaving), logits[leaving]))
            exits.append(k + 1)
            if everyone:
                break
            here = _of(here, staying)
            features = _rows(features, staying)  # type: ignore[arg-type]
        return _in_order(left, exits, len(images))


def exit_macs(net: AuxNet, image_shape: Sequence[int]) -> list[int]:
    """Multiply-adds of an image that leaves at each output: all segments and all heads that it passes."""
    parts = (AuxNet(net.segments[:k], net.heads[:k], net.depths[:k]) for k in range(1, net.outputs + 1))
    return [multiply_adds(part, image_shape) for part in parts]


def exit_latencies(
    net: AuxNet, image_shape: Sequence[int], kind: Confidence = "entropy", *, seconds: float = 2.0
) -> list[float]:
    """Median milliseconds of one image that leaves at each output: heads, confidences and decisions included."""
    models = [EarlyExit(net, policy.thresholds, kind) for policy in anytime(net.outputs, kind)]
    return [timing.median_ms for timing in measure(models, image_shape, 1, seconds=seconds)]


# ---- in a run directory ----------------------------------------------------------------------------------------


def save_policy(run: Path | str, policy: Policy, about: dict[str, Any]) -> None:
    """Write exits.json: the policy, the weights that it was solved for, and what is known `about` it."""
    write_json(Path(run) / "exits.json", policy_content(run, policy, about))


def policy_content(run: Path | str, policy: Policy, about: dict[str, Any]) -> dict[str, Any]:
    """What exits.json holds."""
    return {"weights_sha256": fingerprint(Path(run)), **asdict(policy), **about}


def early_exit(run: Path | str) -> EarlyExit:
    """The early-exit network of a run, by its exits.json, in evaluation mode.

    Raises FileNotFoundError without that file, RuntimeError if it is damaged or was made for other weights.
    """
    folder = Path(run)
    net = load(folder)
    path = folder / "exits.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no exits.json: `auxnet exits {folder}` makes it")
    content = read_json(path)
    try:
        made_for = content["weights_sha256"]
        exits = EarlyExit(net, content["thresholds"], content["confidence"], content["temperatures"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RuntimeError(f"{path} is damaged or of another network: {error}") from None
    if made_for != fingerprint(folder):
        raise RuntimeError(f"{path} was made for other weights than the run's: run `auxnet exits {folder}` again")
    return exits.eval()


def _of(here: Tensor | None, chosen: Tensor | None) -> Tensor | None:
    """The images of `here` at the places `chosen`; None stands for all."""
    return chosen if here is None else here if chosen is None else here[chosen]


def _rows(features: Tensor, chosen: Tensor) -> Tensor:
    """Images `chosen` of features [N, C, H, W], in the memory format that they are in."""
    if features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last):
        return features.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)
    return features.index_select(0, chosen)


def _in_order(left: list[tuple[Tensor | None, Tensor]], exits: list[int], images: int) -> Exited:
    """Rows of all outputs put back to where their images were."""
    where, first = left[0]
    if where is None:
        return Exited(first, torch.full((images,), exits[0], dtype=torch.int64, device=first.device))
    logits = first.new_empty(images, first.shape[1])
    output = torch.empty(images, dtype=torch.int64, device=first.device)
    for k, (indices, rows) in zip(exits, left, strict=True):
        if indices is not None:
            logits[indices] = rows
            output[indices] = k
    return Exited(logits, output)
