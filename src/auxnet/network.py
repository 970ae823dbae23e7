"""AuxNet: a trunk cut into K segments, with a classifier (head) after each one.

Output k = 1..K (shallow to deep) sees segments 1..k and head k only, so that it can be taken away as a
model of its own (`AuxNet.truncate`). This module does not know what segments are made of: `residual` builds them.

Shapes: N images, C channels, H x W pixels, K outputs; x_k is the feature that crosses the cut after segment k.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Self, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxnet.errors import MisfitError, check_choice, first_sentence, is_number
from auxnet.modules import AnyModule, copied
from auxnet.sections import RelativeTo


class AuxNet(nn.Module):
    """K segments, K heads: one forward gives the logits of all outputs.

    `depths` holds the layer of each output in the paper's count (stem = 1, every convolution of a block one
    more, the final classifier L); its last entry is the depth L of the whole network. `min_image_shape` is (C, H, W):
    images have C channels, and H x W pixels or more.
    """

    def __init__(
        self,
        segments: Iterable[nn.Module],
        heads: Iterable[nn.Module],
        depths: Sequence[int],
        min_image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.segments = nn.ModuleList(segments)
        self.heads = nn.ModuleList(heads)
        self.depths = tuple(depths)
        self.min_image_shape = min_image_shape
        self.frozen: tuple[nn.Module, ...] = ()  # a tuple, so that no module is registered twice
        if not len(self.segments) == len(self.heads) == len(self.depths) > 0:
            raise ValueError(
                f"one head and one depth to each segment, got {len(self.segments)} segments, "
                f"{len(self.heads)} heads, {len(self.depths)} depths"
            )
        self.check_nothing_shared()

    @property
    def outputs(self) -> int:
        """K, the number of outputs."""
        return len(self.heads)

    def freeze_trunk(self, frozen: bool = True) -> None:
        """Freeze the trunk and the final head: no gradients, and evaluation mode even while the net trains.

        They are frozen too in nets that `up_to` and `alone` make afterwards. With `frozen=False` both train again.
        """
        parts = (*self.segments, self.heads[-1])
        self.frozen = parts if frozen else ()
        for part in parts:
            part.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen (`freeze_trunk`) stays in evaluation mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    @property
    def trained(self) -> nn.Module:
        """What training changes: the whole net, or the heads that are not frozen."""
        return nn.ModuleList(head for head in self.heads if head not in self.frozen) if self.frozen else self

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """The features x_1..x_K of images [N, C, H, W], shallow to deep, each computed when it is asked for.

        Raises ValueError for images that are not for this net.
        """
        self.check_images(images.shape)
        for segment in self.segments:
            images = segment(images)
            yield images

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of all outputs, each [N, classes], shallow to deep, for images [N, C, H, W].

        Raises ValueError for images that are not for this net, and as `logits_of` does.
        """
        with fitting_unless_traced(self, images):
            return tuple(logits_of(self.heads, k, x) for k, x in enumerate(self.features(images), start=1))

    def truncate(self, output: int) -> nn.Module:
        """A copy of output k alone: images [N, C, H, W] -> logits [N, classes], with no parameter it does not use.

        Raises ValueError if there is no such output (they count from 1, shallow to deep).
        """
        self.check_output(output)
        trunk = nn.Sequential(*self.segments[:output])
        return copied(self._in_own_mode(nn.Sequential(OrderedDict(trunk=trunk, head=self.heads[output - 1]))))

    def alone(self, output: int) -> AuxNet:
        """Output k alone as an AuxNet of one segment, sharing its modules. Raises ValueError as `truncate` does."""
        self.check_output(output)
        trunk = nn.Sequential(*self.segments[:output])
        head, depth = self.heads[output - 1], self.depths[output - 1]
        return self._in_own_mode(AuxNet([trunk], [head], [depth], self.min_image_shape))

    def up_to(self, output: int) -> AuxNet:
        """Outputs 1..`output`, sharing their modules. Raises ValueError as `truncate` does."""
        self.check_output(output)
        part = AuxNet(self.segments[:output], self.heads[:output], self.depths[:output], self.min_image_shape)
        return self._in_own_mode(part)

    def _in_own_mode(self, made: AnyModule) -> AnyModule:
        """Put the new modules of `made` into this net's mode (training or evaluation); what is frozen stays so."""
        own, parts = set(self.modules()), set(made.modules())
        for module in parts - own:
            module.training = self.training
        if isinstance(made, AuxNet):
            made.frozen = tuple(part for part in self.frozen if part in parts)
        return made

    def check_images(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless images of this shape, (N, C, H, W), are what the net takes."""
        if self.min_image_shape is None or not isinstance(shape, tuple):  # torch.fx traces shapes that are no tuples
            return
        if len(shape) != 4:
            raise ValueError(f"images must be [N, C, H, W], got the shape {list(shape)}: one image is images[None]")
        (C, H, W), (_, channels, height, width) = self.min_image_shape, shape
        if channels != C:
            mend = "channels come before pixels" if shape[3] == C else f"build the net with in_channels={channels}"
            raise ValueError(f"images must have {C} channels, got {channels} (shape {list(shape)}): {mend}")
        if height < H or width < W:
            raise ValueError(
                f"images must have {H}x{W} pixels or more for this net, got {height}x{width}: enlarge them"
            )

    def check_nothing_shared(self) -> None:
        """Raise ValueError if two parts share a tensor: an output would train, or leave behind, another's weights."""
        owner: dict[int, tuple[str, str]] = {}
        for kind, parts in (("segment", self.segments), ("head", self.heads)):
            for k, part in enumerate(parts, start=1):
                for name, tensor in chain(part.named_parameters(), part.named_buffers()):
                    this = f"{kind} {k}"
                    first, other = owner.setdefault(id(tensor), (this, name))
                    if first != this:
                        raise ValueError(
                            f"{other!r} of {first} and {name!r} of {this} are one tensor: cut so that both come to "
                            "lie in one segment, or build the parts without sharing"
                        )

    def check_output(self, output: int) -> None:
        """Raise ValueError unless `output` is one of 1..K."""
        if not isinstance(output, SupportsIndex) or not 1 <= output.__index__() <= self.outputs:
            raise ValueError(f"output must be one of 1..{self.outputs} (shallow to deep), got {output!r}")

    def loss_weights(self, gamma: float = 2.0, floor: float = 0.01, relative_to: RelativeTo = "final") -> Tensor:
        """lambda_k = max(floor, (l_k / L)^gamma), float64 [K]; the final output weighs 1 (paper, section 3.1).

        `relative_to="final"` is the paper's L, the depth of the network; `"last_auxiliary"` is what the
        authors' code divides by, the depth of the last auxiliary output.
        """
        return loss_weights(self.depths, gamma, floor, relative_to)


def check_net(net: object) -> None:
    """Raise TypeError unless this is an AuxNet (a run or a truncated net is not one)."""
    if not isinstance(net, AuxNet):
        mend = "output k by itself is net.alone(k), and attach makes one of a backbone"
        if isinstance(net, str | os.PathLike):
            mend = f"auxnet.load({os.fspath(net)!r}) gives that of a run"
        if isinstance(getattr(net, "module", None), AuxNet):  # nn.DataParallel, AveragedModel
            mend = "its `module` is one"
        if isinstance(net, nn.parallel.DistributedDataParallel):  # a method takes its gradients itself
            mend = "give its `module`, and to the method average=, the mean of a tensor over the processes"
        if isinstance(getattr(net, "_orig_mod", None), AuxNet):
            mend = "net.compile() compiles it as it is, where torch.compile(net) wraps it"
        raise TypeError(f"net must be an AuxNet, got {type(net).__name__}: {mend}")


def check_forward(net: AuxNet) -> None:
    """Raise TypeError for a net with a forward of its own: methods, which run the segments, would skip it."""
    if type(net).forward is not AuxNet.forward:
        what = f"{type(net).__name__} has a forward of its own, which methods and early exit would pass over"
        raise TypeError(f"{what}: put what it does into the first segment, or into heads")


def check_tensors(images: object, labels: object, loss: object = F.cross_entropy) -> None:
    """Raise TypeError unless the images and the labels of a batch are tensors; a custom loss may take any labels.

    ValueError for labels that the default loss does not take.
    """
    if not (isinstance(images, Tensor) and (isinstance(labels, Tensor) or loss is not F.cross_entropy)):
        got = f"{type(images).__name__} and {type(labels).__name__}"
        raise TypeError(f"images and labels must be tensors, got {got}: torch.as_tensor(...) makes them")
    if not isinstance(labels, Tensor) or loss is not F.cross_entropy:
        return
    got = f"{labels.dtype} {list(labels.shape)}"
    if labels.is_floating_point():
        if labels.ndim < 2:
            mend = "labels.long() of classes; floats are probabilities [N, classes]"
            raise ValueError(f"labels must be int64 [N], got {got}: {mend}")
    elif labels.ndim > 1 or labels.dtype not in (torch.int64, torch.uint8):
        one_hot = labels.ndim > 1 and labels.shape[1] > 1
        mend = "labels.argmax(1) of one-hot rows" if one_hot else "labels.long(), and labels.squeeze(1) of [N, 1]"
        raise ValueError(f"labels must be int64 [N], got {got}: {mend}")
    if labels.shape[:1] != images.shape[:1]:
        got = f"labels {list(labels.shape)} for images {list(images.shape)}"
        mend = "one image is images[None]" if images.ndim == 3 else "give those of one batch"
        raise ValueError(f"labels must be one for each of the images [N, C, H, W], got {got}: {mend}")


@contextmanager
def fitting(net: AuxNet, images: Tensor) -> Iterator[None]:
    """Turn PyTorch's errors about a wrong dtype or label into a ValueError that says how to mend the batch."""
    try:
        yield
    except IndexError as error:
        if "Target" not in str(error):  # of cross_entropy
            raise
        raise ValueError(f"labels must be classes of this net, counted from 0: {first_sentence(error)}") from error
    except RuntimeError as error:
        # (Norms of a net in bfloat16 stay in float32.)
        takes, *others = {p.dtype for p in net.parameters() if p.ndim > 1} or {images.dtype}
        cast = not images.is_meta and torch.is_autocast_enabled(images.device.type)
        if others or images.dtype == takes or cast or "type" not in str(error):
            raise
        mend = f"images.to({takes})"
        if images.dtype == torch.uint8:
            mend = "images.float(), normalised as for evaluation, or net.prepare(...) of a net that load gave"
        raise ValueError(f"this net takes images of {takes}, got {images.dtype}: {mend}") from error


def fitting_unless_traced(net: AuxNet, images: Tensor) -> AbstractContextManager[None]:
    """`fitting` if images are not floats (bytes, for one); else, and while traced or compiled, no change of errors."""
    plain = not isinstance(images, Tensor) or images.is_floating_point() or torch.compiler.is_compiling()
    return nullcontext() if plain else fitting(net, images)


def logits_of(heads: Sequence[nn.Module] | nn.ModuleList, k: int, feature: Tensor) -> Tensor:
    """The logits of head k = 1..K. Raises MisfitError if it changes its feature in place, which the trunk needs too.

    The final head may change its feature: if that requires gradients, the head reads a copy. (In inference mode, and
    while the net is traced or compiled, PyTorch does not count changes, and nothing is raised.)
    """
    counted = isinstance(feature, Tensor) and not (torch.compiler.is_compiling() or feature.is_inference())
    if k == len(heads) or not counted:
        logits: Tensor = heads[k - 1](feature.clone() if counted and feature.requires_grad else feature)
        return logits
    before = feature._version
    try:
        logits = heads[k - 1](feature)
    except RuntimeError as error:  # the methods make features leaves, which torch itself refuses to change
        if "a leaf Variable that requires grad" not in str(error):
            raise
        feature = feature.clone()
        before = feature._version
        logits = heads[k - 1](feature)  # raises again if the leaf is another one, a weight of the head's own
    if feature._version != before:
        raise MisfitError(f"head {k} changes its feature in place, which the trunk needs too: inplace=False there")
    return logits


def loss_weights(
    depths: Sequence[int], gamma: float = 2.0, floor: float = 0.01, relative_to: RelativeTo = "final"
) -> Tensor:
    """The weights of `AuxNet.loss_weights` from depths alone. Raises ValueError for impossible values."""
    if not (is_number(gamma) and 0 <= gamma < float("inf")):
        raise ValueError(f"gamma must be 0 (all outputs alike) or more, and finite, got {gamma!r}")
    if not (is_number(floor) and 0 <= floor <= 1):
        raise ValueError(f"floor must lie in 0..1, got {floor!r}")
    check_choice("relative_to", relative_to, RelativeTo)
    auxiliary = torch.tensor(depths[:-1], dtype=torch.float64)
    reference = max(1, depths[-1] if relative_to == "final" or not len(auxiliary) else depths[-2])
    return torch.cat([(auxiliary / reference).pow(gamma).clamp(min=floor), torch.ones(1, dtype=torch.float64)])
