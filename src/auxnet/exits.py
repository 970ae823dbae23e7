"""Early exit: images leave a net at the first output that is sure of them, and really skip the deeper layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from auxnet.cost import multiply_adds_by_part
from auxnet.documents import made_again, parsing, read_json
from auxnet.latency import Timing, time_in_turns
from auxnet.loading import load_net, weights_sha256
from auxnet.modules import copied
from auxnet.network import AuxNet, check_forward, check_net, fitting_unless_traced, logits_of
from auxnet.policy import ALWAYS, Policy, never
from auxnet.recipe import RunDir
from auxnet.sections import Confidence, Which
from auxnet.thresholds import anytime
from auxnet.words import command, which_flags


class Exited(NamedTuple):
    """Logits and exits, in the order of the images."""

    logits: Tensor
    """[N, classes], of the output at which each image left"""
    output: Tensor
    """int64 [N], the output at which each image left, 1..K"""


class EarlyExit(nn.Module):
    """An AuxNet in which image n leaves at the first output whose confidence reaches its threshold.

    After each output the images that stay are gathered into a smaller batch, so that images that have left cost
    nothing more. If none or all leave, no feature is copied; if none can leave (a threshold above 1), the head is not
    run. The weights are those of `net`, not copies.
    Images [N, C, H, W] -> `Exited`, in evaluation mode only. Logits are the net's own: `temperatures` (K, default 1)
    scale them for the confidence alone.

    `thresholds` (K - 1) are confidences (`policy.confidence`) in [0, 1], more is surer: at 0 every image leaves, above
    1 none. BranchyNet's rule, leave if the entropy is at most h, is confidence="entropy" with a threshold of
    1 - h / log(classes). The attribute `policy` holds thresholds, confidence and temperatures.
    Raises ValueError if they do not fit the net, TypeError if `net` is no AuxNet.
    """

    def __init__(
        self,
        net: AuxNet,
        thresholds: Sequence[float],
        confidence: Confidence = "entropy",
        temperatures: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_net(net)
        check_forward(net)
        try:
            if isinstance(thresholds, Mapping | str):
                raise TypeError
            thresholds = [float(threshold) for threshold in thresholds]
        except (TypeError, ValueError):
            rule = f"thresholds must be {net.outputs - 1} numbers, one for each output but the final"
            raise ValueError(f"{rule}, got {thresholds!r}") from None
        try:
            softened = (1.0,) * net.outputs if temperatures is None else tuple(map(float, temperatures))
        except (TypeError, ValueError):
            raise ValueError(f"temperatures must be {net.outputs} numbers, got {temperatures!r}") from None
        self.policy = Policy(tuple(thresholds), confidence, softened)
        self.policy.check(net.outputs)
        self.net = net
        self.training = net.training

    @classmethod
    def from_policy(cls, net: AuxNet, policy: Policy) -> EarlyExit:
        """The net that stops early by a policy, such as `solve_exits_on` finds. Raises as the class does.

        (None, which an answer has if no thresholds meet its target, is a TypeError.)
        """
        if not isinstance(policy, Policy):
            raise TypeError(f"from_policy takes a policy, got {policy!r}: `reason` of what was solved says why")
        return cls(net, policy.thresholds, policy.confidence, policy.temperatures)

    def forward(self, images: Tensor) -> Exited:
        """Logits and exit of every image, in order; see the class.

        Raises ValueError for images that are not for this net, RuntimeError for a net in training mode.
        """
        if self.net.training:
            raise RuntimeError(
                "early exit needs evaluation mode: in training, BatchNorm would normalise by whichever images are left "
                "and move its statistics; call .eval() first"
            )
        with fitting_unless_traced(self.net, images):
            return self._leaving(images)

    def _leaving(self, images: Tensor) -> Exited:
        self.net.check_images(images.shape)
        here = torch.arange(len(images), device=images.device)  # the numbers of the images in `x`
        x, answers, output = images.clone(), images.new_empty(0), torch.empty_like(here)  # a trunk may write over it
        for k, segment in enumerate(self.net.segments, start=1):
            x = segment(x)
            if k < self.net.outputs and not self.policy.decides(k):
                continue
            logits = logits_of(self.net.heads, k, x)
            answers = logits if len(here) == len(images) else answers.index_copy(0, here, logits)
            output[here] = k
            if k == self.net.outputs:
                break
            staying = (~self.policy.exits_here(logits, k)).nonzero().squeeze(1)
            if not len(staying):
                break
            if len(staying) < len(here):
                here, x = here[staying], _rows(x, staying)
        return Exited(answers, output)


class ExitCosts(NamedTuple):
    """What early exit costs, output by output, in one unit."""

    stop: list[float]
    """[K], of an image that leaves at each output, if no image can leave before it (earlier heads are not run)"""
    passing: list[float]
    """[K - 1], what an output at which images may leave costs an image that stays: its head and the decision"""
    alone: list[float]
    """[K], of each output as a model of its own (`AuxNet.truncate`), the alternative to early exit"""
    first: Timing | None = None
    """how the first of `stop` was measured; None for multiply-adds, which are counted"""


def exit_macs(net: AuxNet, image_shape: Sequence[int]) -> ExitCosts:
    """Multiply-adds of one image of shape (C, H, W)."""
    segments, heads = zip(*multiply_adds_by_part(net, image_shape), strict=True)
    alone = [float(trunk + head) for trunk, head in zip(accumulate(segments), heads, strict=True)]
    return ExitCosts(alone, [float(head) for head in heads[:-1]], alone)


def exit_latencies(
    net: AuxNet, image_shape: Sequence[int], confidence: Confidence = "entropy", *, seconds: float = 6.0
) -> ExitCosts:
    """Median milliseconds of one image, with all that early exit does: heads, confidences, decisions.

    Three ways to reach each output are timed in turns, for about `seconds` in all: without other heads, through all
    heads before it, and as a model of its own.
    """
    net, K = copied(net), net.outputs  # `time_in_turns` changes the mode and the memory format
    straight = [EarlyExit(net, policy.thresholds, confidence) for policy in anytime(never(K, confidence))]
    # At so high a temperature any confidence is near 0: no image reaches a threshold of 1, but all heads are run.
    asked = [EarlyExit(net, [1.0] * k + [ALWAYS] * (K - 1 - k), confidence, [1e6] * K) for k in range(1, K)]
    models = [*straight, *asked, *(net.truncate(k) for k in range(1, K + 1))]
    timings = time_in_turns(models, image_shape, 1, seconds=seconds)
    times = [timing.median_ms for timing in timings]
    stop, through, alone = times[:K], times[K:-K], times[-K:]
    more = (after - before for before, after in zip(stop[1:], through, strict=True))
    passed = accumulate(more, max, initial=0.0)  # a head cannot save time: less was noise
    return ExitCosts(stop, [after - before for before, after in pairwise(passed)], alone, timings[0])


# ---- in a run directory ----------------------------------------------------------------------------------------


def exits_file(run: RunDir, which: Which = "last") -> Path:
    """The file of the policy that was solved for a run's "last" or "best" weights."""
    return Path(run) / ("exits.json" if which == "last" else f"exits-{which}.json")


def read_policy(run: RunDir, outputs: int, which: Which = "last") -> Policy:
    """The policy solved for the "last" or "best" weights of a run whose net has so many outputs.

    Raises FileNotFoundError if none was solved, RuntimeError if its file is damaged or was made for other weights than
    the run has now.
    """
    path, anew = exits_file(run, which), f"`{command('exits', run, *which_flags(which))}`"
    if not path.is_file():
        given = repr(str(run)) if which == "last" else f"{str(run)!r}, which={which!r}"
        how = f"{anew}, or auxnet.solve_exits({given}) in Python, makes it"
        raise FileNotFoundError(f"{run} holds no {path.name}: {how}")
    content = read_json(path)
    with parsing(f"{path} is damaged or of another network{made_again(path)}"):
        thresholds, temperatures = (tuple(map(float, content[key])) for key in ("thresholds", "temperatures"))
        policy, made_for = Policy(thresholds, content["confidence"], temperatures), content["weights_sha256"]
        policy.check(outputs)
    if made_for != weights_sha256(Path(run), which):
        raise RuntimeError(f"{path} was made for other weights than the run's; {anew} makes it anew")
    return policy


def read_notes(run: RunDir, which: Which = "last") -> list[str]:
    """The notes on the policy that `read_policy` gives; [] if there are none."""
    notes = read_json(exits_file(run, which)).get("notes")
    return [str(note) for note in notes if note] if isinstance(notes, list) else []


def early_exit(run: RunDir, which: Which = "last") -> EarlyExit:
    """The early-exit network of a run's "last" or "best" weights, by its exits.json or exits-best.json.

    In evaluation mode.

    Raises what `load_net` and `read_policy` raise.
    """
    net = load_net(run, which)
    return EarlyExit.from_policy(net, read_policy(run, net.outputs, which)).eval()


def _rows(features: Tensor, chosen: Tensor) -> Tensor:
    """Images `chosen` of features [N, C, H, W], in the memory format that they are in."""
    if features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last):
        return features.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)
    return features.index_select(0, chosen)
