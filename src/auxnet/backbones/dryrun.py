"""Runs without arithmetic, on the meta device: what a net's tensors are like, what they cost, how deep they lie."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from auxnet.errors import MisfitError, first_line

N = 2  # images of a dry run
aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.linear, aten.addmm, aten.mm, aten.bmm, aten.baddbmm}
ACTIVATIONS = {aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.hardswish, aten.hardswish_, aten.gelu}
ACTIVATIONS |= {aten.silu, aten.silu_, aten.elu, aten.elu_, aten.leaky_relu, aten.leaky_relu_, aten.mish, aten.mish_}
PASSING = {aten.cat, aten.clone, aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.mean}


class Seen(NamedTuple):
    """One value of a graph, in a dry run."""

    macs: int
    """multiply-adds up to it, its own included"""
    kept: bool
    """whether it has a row for each image, and nothing changes it in place later"""


class Feature(NamedTuple):
    """What crosses a cut."""

    shape: tuple[int, ...]
    """for one image: without N"""
    activated: bool
    """whether the last thing done to it was an activation function"""
    depth: int
    """layers with weights on the longest path from the images to it"""


def observe(module: fx.GraphModule, image_shape: Sequence[int]) -> dict[fx.Node, Seen]:
    """Every value of a traced backbone, in order, for an image of shape (C, H, W)."""
    macs: list[int] = []
    versions: list[int] = []

    class Observer(fx.Interpreter):
        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            # torch.fx holds lists as immutable ones, but there are modules that assign to the list they are given.
            return super().call_module(target, tuple(list(a) if isinstance(a, list) else a for a in args), kwargs)

        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            macs.append(int(counter.get_total_flops()) // 2)
            versions.append(result._version if isinstance(result, Tensor) else 0)
            return result

    with _dry(image_shape):
        twin, images = _stand_in(module, image_shape)
        observer = Observer(twin, garbage_collect_values=False)
        with FlopCounterMode(display=False) as counter:
            observer.run(images)
        values = [observer.env[node] for node in twin.graph.nodes if node.op != "output"]  # type: ignore[union-attr]
    kept = [
        isinstance(x, Tensor) and x.ndim > 1 and len(x) == N and x._version == version
        for x, version in zip(values, versions, strict=False)
    ]
    return dict(zip(module.graph.nodes, map(Seen, macs, kept), strict=False))


def features(segments: Sequence[nn.Module], image_shape: Sequence[int]) -> list[Feature]:
    """What each of these modules, one after the other, gives for an image of shape (C, H, W).

    Raises ValueError if one does not give a tensor of a row per image, or changes in place what it was given.
    """
    found = []
    with _dry(image_shape):
        twins, x = _stand_in(nn.Sequential(*segments), image_shape)
        with Lineage(x) as lineage:
            for k, segment in enumerate(cast(nn.Sequential, twins), start=1):
                before, version = x, x._version
                x = segment(x)
                if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != N or x not in lineage.layers:
                    raise MisfitError(f"segment {k} must give a tensor of {N} rows for {N} images, it gives {_told(x)}")
                if before._version != version and k > 1:
                    raise MisfitError(
                        f"segment {k} changes in place what segment {k - 1} gives, which head {k - 1} needs too: "
                        "cut after the operation that does so, or build it with inplace=False"
                    )
                found.append(Feature(tuple(x.shape[1:]), lineage.activated[x], lineage.layers[x]))
    return found


def outputs(net: nn.Module, image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """(classes, depth) of each output of a module that gives logits [N, classes], or a tuple of them.

    Depth counts the layers with weights on the longest path from the images. Raises ValueError for a module that
    gives something else.
    """
    found = []
    with _dry(image_shape):
        twin, images = _stand_in(net, image_shape)
        with Lineage(images) as lineage:
            given = twin(images)
            for k, x in enumerate(given if isinstance(given, tuple) else (given,), start=1):
                if not isinstance(x, Tensor) or x.ndim != 2 or len(x) != N or x not in lineage.layers:
                    raise MisfitError(f"output {k} must be logits [{N}, classes] for {N} images, it is {_told(x)}")
                found.append((x.shape[1], lineage.layers[x]))
    return found


class Lineage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, follows what is made of the images.

    A layer with weights is a convolution or a matrix product of something that is made of the images with something
    that is not.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = WeakTensorKeyDictionary({images: 0})
        """tensor -> layers with weights on the longest path to it"""
        self.activated = WeakTensorKeyDictionary({images: False})
        """tensor -> whether the last thing done to it was an activation function"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as ever, and note what the result is made of."""
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        of_images = [x for x in tensors if x in self.layers]
        if of_images:
            kind = func.overloadpacket
            of_weights = any(x not in self.layers and x.ndim > 1 for x in tensors)
            layers = max(self.layers[x] for x in of_images) + (kind in PRODUCTS and of_weights)
            passing = (func.is_view or kind in PASSING) and all(self.activated[x] for x in of_images)
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    self.layers[x], self.activated[x] = layers, passing or kind in ACTIVATIONS
        return result


def _stand_in(module: nn.Module, image_shape: Sequence[int]) -> tuple[nn.Module, Tensor]:
    """A copy of a module and images for it, on the meta device, where nothing is computed.

    If it does not run there, since it looks at the values of a tensor, both are real.
    """
    like = next(module.parameters(), torch.empty(0))
    twin = copy.deepcopy(module).eval().requires_grad_(False)  # FlopCounterMode trips over parameters under no_grad
    images = torch.zeros(N, *image_shape, dtype=like.dtype, device=like.device)
    try:
        on_meta, nothing = copy.deepcopy(twin).to("meta"), images.to("meta")
        on_meta(nothing)
    except Exception:
        return twin, images
    return on_meta, nothing


@contextmanager
def _dry(image_shape: Sequence[int]) -> Iterator[None]:
    """Within, no gradients and no fused attention; what a backbone raises becomes one line about the images."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its layers would not be seen
    try:
        with torch.no_grad():
            yield
    except MisfitError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise ValueError(
            f"the backbone does not take images of shape {tuple(image_shape)}: {reason}; give an `example` "
            "[1, C, H, W], or images (image_size), with the channels and the size that it is built for"
        ) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _told(x: Any) -> str:
    return f"a tensor {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
