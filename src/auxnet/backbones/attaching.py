"""`attach`: outputs added to a backbone that was not built for them.

The backbone is split at its cuts (`cuts`) into segments made of its own modules. Its own classifier becomes the final
head. A dry run (`dryrun`) tells what features the other heads must fit, and how deep each output is.

Shapes: N images, C channels, H x W pixels or positions, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import index
from typing import SupportsIndex, cast

import torch
from torch import Tensor, nn

from auxnet.backbones.cuts import cut, even_cuts
from auxnet.backbones.dryrun import Feature, features, last_layer, outputs
from auxnet.blocks import Classifier
from auxnet.errors import warn, whole_number
from auxnet.modules import copied
from auxnet.network import AuxNet

Heads = Callable[[int], nn.Module]  # channels of a feature -> a module: feature -> logits [N, classes]


def attach(
    backbone: nn.Module | Sequence[nn.Module],
    at: Iterable[str] | str | int | None = None,
    num_classes: int | None = None,
    *,
    example: Tensor | None = None,
    heads: Heads | None = None,
) -> AuxNet:
    """An AuxNet of a backbone's own modules: they and their weights are shared, not copied, and keep their mode.

    `at` names the modules after which the trunk is cut, in order ("layer1", "features.4"), or is the number of cuts,
    placed evenly by cost (`cuts.even_cuts`). In place of a backbone, a list of modules can be given that are run one
    after the other: K segments and the classifier. `example` is one image [1, C, H, W] such as the backbone takes
    (default: 3 x 224 x 224); only its shape matters.

    The backbone's classifier becomes the final head, unchanged to the bit; for another `num_classes` a copy of it gets
    a new last layer. `heads` makes an auxiliary head from a number of channels. The default heads are, for feature maps
    [N, C, H, W], those of `auxnet.resnet`: BatchNorm and ReLU (left out if the feature comes out of an activation
    function), global average pooling, a linear layer; for tokens [N, T, C], maps [N, H, W, C] and sequences
    [N, C, T]: LayerNorm, mean over positions, a linear layer. The layers before a cut tell which dimension of the
    feature holds the channels; if they do not, the feature's shape does. Depths count the convolutions and linear
    layers on the longest path to the cut, and for the final output to the logits, as in the paper.

    Raises ValueError, naming the place and the remedy, if the backbone cannot be traced, cut or run, or if `heads`
    change their feature in place; RuntimeError in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("attach looks for changes in place, which inference mode hides: call it outside of that")
    shape = (3, 224, 224) if example is None else tuple(getattr(example, "shape", ()))[1:]
    if len(shape) != 3:
        given = list(getattr(example, "shape", ())) or f"{example!r}: torch.zeros(1, 3, 224, 224) is one"
        raise ValueError(f"example must be an image [1, C, H, W], got {given}")
    num_classes = None if num_classes is None else whole_number("num_classes", num_classes, 2)
    whole = isinstance(backbone, nn.Module)
    own = [*backbone] if isinstance(backbone, Sequence) else [backbone]
    if not all(isinstance(part, nn.Module) for part in own):
        mend = "auxnet.backbones.named.build_backbone builds that of a name"
        raise ValueError(f"the backbone must be a torch.nn.Module, or a list of them, got {backbone!r}: {mend}")
    if isinstance(heads, nn.Module) or not (heads is None or callable(heads)):
        raise ValueError(f"heads must be a function of channels that makes a head, got a {type(heads).__name__}")
    if whole and at is None:
        raise ValueError('at must name the modules to cut after, as at=("layer1", "layer2"), or say how many cuts')
    if not whole and (at is not None or len(own) < 2):
        raise ValueError("a list holds K segments and the classifier, cut already: 2 modules or more, without `at`")
    gives, training = _classes_of(nn.Sequential(*own), shape), own[-1].training
    classes = gives if num_classes is None else num_classes
    last = None if classes == gives else last_layer(own, shape)
    if classes != gives and last is None:
        mend = f"nn.Sequential(backbone, nn.Linear({gives}, {classes})) adds one, if it gives features"
        raise ValueError(f"the backbone has no classifier whose last layer can be replaced: {mend}")
    *segments, classifier = parts = _cut(own[0], at, shape) if at is not None else own
    kept = {module for part in parts for module in part.modules()}
    opened = [type(m) for part in own for m in part.modules() if m not in kept]
    for lost in dict.fromkeys(kind for kind in opened if kind.train is not nn.Module.train):
        mend = "what it keeps in evaluation mode, such as norms, put there yourself after each net.train()"
        warn(f"the train() of {lost.__name__}, which is taken apart, is called no more: {mend}")
    if last is not None:
        classifier = _for_classes(classifier, last, classes)
    like = next(chain.from_iterable(part.parameters() for part in parts), torch.empty(0))
    crossing = features(segments, shape)[:-1]
    auxiliary = [_head(feature, shape, classes, heads).to(like.device, like.dtype) for feature in crossing]
    modes = {module: module.training for part in own for module in part.modules()}
    net = AuxNet(segments, [*auxiliary, classifier], range(len(segments)), (shape[0], 1, 1)).train(training)
    for module, mode in modes.items():
        module.training = mode
    found = outputs(net, shape)
    for k, (got, _) in enumerate(found, start=1):
        if got != classes:
            mend = "its head, of `heads`, must give them" if k < len(found) else "build the backbone for that many"
            raise ValueError(f"output {k} gives {got} classes in place of {classes}: {mend}")
    net.depths = (*(feature.depth for feature in crossing), found[-1][1])
    return net


class TokenClassifier(nn.Module):
    """LayerNorm, mean over positions, and a linear layer, for features whose channels come last (or `first`)."""

    def __init__(self, channels: int, num_classes: int, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.norm = nn.LayerNorm(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, T, C] or maps [N, H, W, C] -> logits [N, classes]; with `first`, sequences [N, C, T]."""
        x = x.movedim(1, -1) if self.first else x
        return cast(Tensor, self.fc(self.norm(x).flatten(1, -2).mean(1)))


def _head(feature: Feature, image_shape: Sequence[int], classes: int, heads: Heads | None) -> nn.Module:
    """An auxiliary head for a feature: the caller's, or the default one for its shape."""
    last = len(feature.shape) - 1
    known = feature.channels in (0, last)
    first = feature.channels == 0 if known else channels_first(feature.shape, image_shape)
    channels = feature.shape[0 if first else -1]
    if heads is not None:
        return heads(channels)
    if len(feature.shape) == 1:
        head: nn.Module = nn.Linear(channels, classes)
    elif first and len(feature.shape) == 3:
        head = Classifier(channels, classes, activate=not feature.activated)
    else:
        head = TokenClassifier(channels, classes, first)
    nn.init.zeros_(head.bias if isinstance(head, nn.Linear) else head.fc.bias)  # type: ignore[arg-type,union-attr]
    return head


def channels_first(shape: Sequence[int], image_shape: Sequence[int]) -> bool:
    """Whether a feature is a map [C, H, W], and not [H, W, C] or tokens [T, C]: a map has the image's aspect ratio."""
    if len(shape) != 3:
        return False
    _, height, width = image_shape

    def unlike(h: int, w: int) -> float:
        return abs(math.log(h / w) - math.log(height / width))

    a, b, c = shape
    return unlike(b, c) <= unlike(a, b)


def _cut(backbone: nn.Module, at: Iterable[str] | str | int, image_shape: Sequence[int]) -> list[nn.Module]:
    if isinstance(at, str):
        names: Sequence[str] = (at,)
    elif isinstance(at, SupportsIndex) and not isinstance(at, bool):
        names = even_cuts(backbone, index(at), image_shape)
    elif isinstance(at, Iterable):
        names = tuple(at)
    else:
        raise ValueError(f"at must name modules or be a whole number, got {at!r}")
    return [*cut(backbone, names, image_shape)]


def _classes_of(backbone: nn.Module, image_shape: Sequence[int]) -> int:
    (classes, _), *others = outputs(backbone, image_shape)
    if others:
        raise ValueError(f"the backbone gives a tuple of {1 + len(others)}: it must give logits [N, classes] alone")
    return classes


def _for_classes(classifier: nn.Module, name: str, classes: int) -> nn.Module:
    """A copy of a classifier with a new last layer (the module of this name), for another number of classes."""
    classifier = copied(classifier)
    last = cast(nn.Linear | nn.Conv2d, classifier.get_submodule(name))
    bias = last.bias is not None
    new: nn.Module
    if isinstance(last, nn.Linear):
        new = nn.Linear(last.in_features, classes, bias)
    else:
        new = nn.Conv2d(last.in_channels, classes, last.kernel_size, last.stride, last.padding, bias=bias)  # type: ignore[arg-type]
    if bias:
        nn.init.zeros_(new.bias)  # type: ignore[arg-type]
    new.to(last.weight.device, last.weight.dtype).train(last.training)
    if not name:
        return new
    classifier.set_submodule(name, new)
    return classifier
