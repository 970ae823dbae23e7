"""Check that an export is equal to its source: choose images to compare them on, and compare their answers.

Shapes: N images, H x W pixels, C channels, K outputs; images are uint8 [N, H, W, C].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from auxnet.batches import normalise
from auxnet.errors import one_line, warn
from auxnet.hub import PretrainedAuxNet, position_of
from auxnet.policy import Policy, confidence
from auxnet.reading.arrays import Pixels
from auxnet.reading.sources import existing_path
from auxnet.reading.splits import Labelled
from auxnet.recipe import Recipe, RunDir
from auxnet.run_data import data_of, with_data_in
from auxnet.runtimes import Answers

LOGIT_TOLERANCE = 1e-4, 1e-5  # absolute, and relative to the largest logit
PROBABILITY_ROUNDING = 1e-6  # of a probability, added to what the tolerance of its logits allows
READ_AT_ONCE = 64  # images, when more are looked for


def validation_images(run: RunDir, recipe: Recipe, data_dir: str | None) -> Labelled | None:
    """The validation images of a run; None if its data are gone, or, with a warning, if they can no longer be used.

    With a `data_dir` it raises what `data_of` raises instead.
    """
    try:
        return data_of(run, with_data_in(data_dir, run, recipe), judging=False).val
    except (OSError, ValueError, RuntimeError) as error:
        if data_dir is not None:
            raise
        if existing_path(recipe.data, recipe.data_dir):
            warn(f"the data of {run} cannot be used here: {one_line(error)}")
        return None


def random_images(net: PretrainedAuxNet, count: int) -> Pixels:
    """`count` random images [N, H, W, C] of the size that the net takes, always the same."""
    seen = net.preprocessing
    return np.random.default_rng(0).integers(0, 256, (count, *seen.image_size, seen.channels), dtype=np.uint8)


def evenly_spread(split: Labelled, count: int) -> Pixels:
    """At most `count` images [N, H, W, C], spread evenly over all."""
    number = len(split.labels)
    return split.read(torch.linspace(0, number - 1, min(count, number)).round().long()).numpy()


def images_for_every_exit(
    net: PretrainedAuxNet, policy: Policy, pixels: Pixels, split: Labelled | None
) -> tuple[Pixels, tuple[int, ...]]:
    """The images, and more of the split until one leaves at each output that can be left at.

    The second result holds the outputs at which none left.
    """
    K = len(policy.temperatures)
    lacking = {k for k in range(1, K + 1) if k == K or policy.decides(k)}
    lacking -= set(policy.exits(_logits(net, K, pixels)).tolist())
    indices = torch.arange(0 if split is None else len(split))
    while split is not None and lacking and len(indices):
        more, indices = split.read(indices[:READ_AT_ONCE]).numpy(), indices[READ_AT_ONCE:]
        exits = policy.exits(_logits(net, K, more)).tolist()
        pixels = np.concatenate([pixels, more[[k in lacking for k in exits]]])
        lacking -= set(exits)
    return pixels, tuple(sorted(lacking))


@torch.inference_mode()
def _logits(net: PretrainedAuxNet, output: int, pixels: Pixels) -> Tensor:
    """The logits [K, N, classes] of outputs 1..`output` in PyTorch."""
    return torch.stack(net(normalise(torch.from_numpy(pixels), net.preprocessing.mean, net.preprocessing.std))[:output])


def check_equal(
    net: PretrainedAuxNet, output: int, policy: Policy | None, pixels: Pixels, answers: Answers
) -> tuple[float, tuple[int, ...] | None]:
    """The largest difference of a logit from the whole net in PyTorch, and how many images left at each output.

    (None without a policy.) Raises RuntimeError if the export's answers differ from the net's.
    """
    output = position_of(net, output)
    logits_KNC = _logits(net, output, pixels)
    exits_N = torch.full((len(pixels),), output)
    if policy is not None:
        exits_N = policy.exits(logits_KNC)
        left = torch.from_numpy(answers.exits)
        for n in (exits_N != left).nonzero().flatten().tolist():
            k = int(min(exits_N[n], left[n]))
            sure = confidence(logits_KNC[k - 1, n], policy.confidence, policy.temperatures[k - 1])
            if abs(float(sure) - policy.thresholds[k - 1]) > LOGIT_TOLERANCE[0]:
                raise RuntimeError(f"the export differs: image {n} leaves at {int(left[n])}, and not {int(exits_N[n])}")
        exits_N = left
    expected = logits_KNC[exits_N - 1, torch.arange(len(pixels))]
    got = torch.from_numpy(answers.logits)
    difference, (absolute, relative) = float((got - expected).abs().max()), LOGIT_TOLERANCE
    allowed = absolute + relative * float(expected.abs().max())
    if not difference <= allowed:
        raise RuntimeError(f"the export differs by {difference:.2g} in a logit (allowed: {allowed:.2g}): not kept")
    classes, got_classes = expected.argmax(1), got.argmax(1)
    margin = (expected.gather(1, classes[:, None]) - expected.gather(1, got_classes[:, None])).max()
    if float(margin) > 2 * allowed:
        raise RuntimeError("the export predicts another class for some images: not kept")
    tempers = torch.tensor([1.0] * output if policy is None else policy.temperatures)[exits_N - 1]
    probabilities = (expected / tempers[:, None]).softmax(1)
    off = (torch.from_numpy(answers.probabilities) - probabilities).abs().amax(1)
    # A softmax changes by half of what its logits do, at most.
    if not (off <= allowed / (2 * tempers) + PROBABILITY_ROUNDING).all():
        raise RuntimeError(f"the export differs by {float(off.max()):.2g} in a probability: not kept")
    return difference, None if policy is None else tuple(torch.bincount(exits_N, minlength=output + 1)[1:].tolist())
