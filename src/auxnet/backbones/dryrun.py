"""Dry runs on the meta device, without arithmetic: the shapes of a net's tensors, their cost and their depth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from auxnet.errors import MisfitError, first_line
from auxnet.machine import random_kept
from auxnet.modules import AnyModule, copied, in_mode
from auxnet.network import AuxNet
from auxnet.watching import MultiplyAddCounter, Watching

N = 2  # images of a dry run
aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.linear, aten.addmm, aten.mm, aten.bmm, aten.baddbmm}
ACTIVATIONS = {aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.hardswish, aten.hardswish_, aten.gelu}
ACTIVATIONS |= {aten.silu, aten.silu_, aten.elu, aten.elu_, aten.leaky_relu, aten.leaky_relu_, aten.mish, aten.mish_}
PASSING = {aten.cat, aten.clone, aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.mean}


class Seen(NamedTuple):
    """One value of a graph, in a dry run."""

    macs: int
    """multiply-adds up to this value, its own included"""
    row_per_image: bool
    """whether it is a tensor with a row for each image"""
    unwritten: bool
    """whether nothing changes it in place later"""


class Feature(NamedTuple):
    """The tensor that crosses a cut."""

    shape: tuple[int, ...]
    """for one image: without N"""
    activated: bool
    """whether an activation function made it, with at most views, concatenation and pooling after it"""
    depth: int
    """layers with weights on the longest path from the images to it"""
    channels: int | None
    """which dimension of `shape` holds the channels; None if unknown"""


def observe(module: fx.GraphModule, image_shape: Sequence[int]) -> dict[fx.Node, Seen]:
    """What a dry run shows of every value of a traced backbone, in order, for an image of shape (C, H, W)."""
    with _dry(module, image_shape) as (twin, images):
        counter = MultiplyAddCounter()
        evaluation, training = _Observer(twin, counter), _Observer(twin, counter)
        with counter:
            evaluation.run(images)
        if _may_write_in_training_alone(twin):
            with suppress(Exception), _in_training(twin, images.device):
                training.run(images)
        nodes = [node for node in twin.graph.nodes if node.op != "output"]
        values = [evaluation.env[node] for node in nodes]
    rows = [isinstance(x, Tensor) and x.ndim > 1 and len(x) == N for x in values]
    written = evaluation.written() | training.written()
    unwritten = [node not in written for node in nodes]
    macs = [evaluation.macs[node] for node in nodes]
    return dict(zip(module.graph.nodes, map(Seen, macs, rows, unwritten), strict=False))


class _Observer(fx.Interpreter):
    """Runs a graph, and notes of each value the multiply-adds up to it and its version counter."""

    def __init__(self, module: fx.GraphModule, counter: MultiplyAddCounter) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.macs: dict[fx.Node, int] = {}
        self.versions: dict[fx.Node, int] = {}
        self.counter = counter

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        # torch.fx holds lists as immutable ones, but there are modules that assign to the list they are given.
        return super().call_module(target, tuple(list(a) if isinstance(a, list) else a for a in args), kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.macs[n] = self.counter.multiply_adds
        self.versions[n] = result._version if isinstance(result, Tensor) else 0
        return result

    def written(self) -> set[fx.Node]:
        """The values that were changed in place after they were computed, also if the run broke off."""
        tensors = {node: x for node, x in self.env.items() if isinstance(x, Tensor)}
        return {node for node, x in tensors.items() if x._version != self.versions[node]}


def features(segments: Sequence[nn.Module], image_shape: Sequence[int]) -> list[Feature]:
    """The feature that each of these modules gives, run one after the other, for an image of shape (C, H, W).

    Raises ValueError if a module does not give a tensor with a row per image, or if one changes in place the feature of
    the module before it.
    """
    found, writing = [], set()
    with _dry(nn.Sequential(*segments), image_shape) as (twins, images):
        with DepthTracker(images) as tracker:
            for k, (x, writes) in enumerate(_in_a_row(twins, images), start=1):
                if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != N or x not in tracker.origins:
                    raise MisfitError(f"segment {k} must give a tensor of {N} rows for {N} images, it gives {_told(x)}")
                if writes:
                    writing.add(k)
                depth, activated, channels = tracker.origins[x]
                found.append(Feature(tuple(x.shape[1:]), activated, depth, None if channels is None else channels - 1))
        with suppress(Exception), _in_training(twins, images.device):
            for k, (_, writes) in enumerate(_in_a_row(twins, images), start=1):
                if writes:
                    writing.add(k)
    for k in sorted(writing - {1}):
        raise MisfitError(
            f"segment {k} changes in place what segment {k - 1} gives, which head {k - 1} needs too: "
            "cut after the operation that does so, or build it with inplace=False"
        )
    return found


def _in_a_row(modules: Iterable[nn.Module], x: Any) -> Iterator[tuple[Any, bool]]:
    """The results of modules that run one after the other, and whether each changed its input in place."""
    for module in modules:
        given, version = x, x._version
        x = module(x)
        yield x, given._version != version


def moved_in_training(module: fx.GraphModule, names: Iterable[str], image_shape: Sequence[int]) -> list[str]:
    """Which of these buffers a traced backbone changes in training, as functional BatchNorm does.

    It runs with real numbers, since version counters do not show such changes.
    """
    like, twin = next(module.parameters(), torch.empty(0)), copied(module).requires_grad_(False)
    before = {name: twin.get_buffer(name).clone() for name in names}
    with torch.no_grad(), in_mode(module, training=False), suppress(Exception), _in_training(twin, like.device):
        twin(torch.rand(N, *image_shape, dtype=like.dtype, device=like.device))
    now = {name: twin.get_buffer(name) for name in before}
    return [
        name
        for name, then in before.items()
        if not then.is_meta and not torch.isclose(now[name], then, rtol=0, atol=0, equal_nan=True).all()
    ]


def outputs(net: nn.Module, image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """(classes, depth) of each output of a module that gives logits [N, classes], or a tuple of them.

    Depth counts the layers with weights on the longest path from the images. Raises ValueError for a module that
    gives something else.
    """
    found = []
    with _dry(net, image_shape) as (twin, images), DepthTracker(images) as tracker:
        given = twin(images)
        for k, x in enumerate(given if isinstance(given, tuple) else (given,), start=1):
            if not isinstance(x, Tensor) or x.ndim != 2 or len(x) != N or x not in tracker.origins:
                raise MisfitError(f"output {k} must be logits [{N}, classes] for {N} images, it is {_told(x)}")
            found.append((x.shape[1], tracker.origins[x].depth))
    return found


def last_layer(modules: Sequence[nn.Module], image_shape: Sequence[int]) -> str | None:
    """The name, in the last of these modules, of the linear layer or 1x1 convolution that gives the logits.

    None if the last module with weights is of another kind (a norm), or if an activation follows it. An activation
    followed by pooling is allowed: so it is in SqueezeNet.
    """
    called: list[tuple[str, nn.Module, Any]] = []
    with _dry(nn.Sequential(*modules), image_shape) as (twins, images), DepthTracker(images) as tracker:
        for name, module in twins[-1].named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) or (module._parameters and not module._modules):
                module.register_forward_hook(lambda m, _, result, name=name: called.append((name, m, result)))
        given = twins(images)
    if not called:
        return None
    name, layer, result = called[-1]
    pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    activated = tracker.origins[given].activated and result.numel() == given.numel()
    return name if (pointwise or isinstance(layer, nn.Linear)) and not activated else None


class Origin(NamedTuple):
    """What is known of a tensor that is computed from the images."""

    depth: int
    """layers with weights on the longest path to it"""
    activated: bool
    """as in `Feature`"""
    channels: int | None
    """which dimension holds the channels, if a layer with weights tells; else None"""


class DepthTracker(Watching):  # type: ignore[no-untyped-call]
    """While it is on, notes the origin of every tensor that is computed from the images.

    A layer with weights is a convolution or a matrix product with one operand that is computed from the images and one
    that is not.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.origins = WeakTensorKeyDictionary({images: Origin(0, False, None)})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and note the origin of its results."""
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        # Shallow to deep: if the operands of a sum disagree about the channels, the shallower one (a skip) decides.
        given = sorted(((x, self.origins[x]) for x in tensors if x in self.origins), key=lambda each: each[1].depth)
        if given:
            kind = func.overloadpacket
            is_layer = kind in PRODUCTS and any(x not in self.origins and x.ndim > 1 for x in tensors)
            depth = max(origin.depth for _, origin in given) + is_layer
            passing = (func.is_view or kind in PASSING) and all(origin.activated for _, origin in given)
            for y in tree_leaves(result):
                if isinstance(y, Tensor):
                    channels: int | None = 1 if kind is aten.convolution else y.ndim - 1
                    if not is_layer:
                        places = (_moved(origin.channels, x, y, func, args) for x, origin in given)
                        channels = next((place for place in places if place is not None), None)
                    self.origins[y] = Origin(depth, passing or kind in ACTIVATIONS, channels)
                    if y._base is not None and any(y is x for x in tensors):  # a part of the base, changed in place
                        base = self.origins[y._base] if y._base in self.origins else Origin(0, False, None)
                        self.origins[y._base] = Origin(max(depth, base.depth), False, base.channels)
        return result


def _moved(channels: int | None, x: Tensor, y: Tensor, func: Any, args: Any) -> int | None:
    """Which dimension of y, computed from x by an operator without weights, holds the channels; None if unknown."""
    kind = func.overloadpacket
    if channels is None:
        return None
    if kind is aten.permute:  # [N, C, H, W] -> [N, H, W, C]
        return [int(dim) % x.ndim for dim in args[1]].index(channels)
    if kind in (aten.t, aten.transpose):  # [N, C, T] -> [N, T, C]
        a, b = (int(dim) % x.ndim for dim in (args[1:3] or (0, 1)))
        return {a: b, b: a}.get(channels, channels)
    if y.ndim == x.ndim and not (func.is_view or kind is aten._unsafe_view):  # an activation, a sum, a pooling
        return channels
    if channels == 1 and y.shape[:2] == x.shape[:2]:  # a view: [N, C, H, W] -> [N, C, H W]
        return 1
    if channels == x.ndim - 1 and y.shape[-1:] == x.shape[-1:]:  # a view: [N, H, W, C] -> [N, H W, C]
        return y.ndim - 1
    return None


def _stand_in(module: AnyModule, image_shape: Sequence[int]) -> tuple[AnyModule, Tensor]:
    """A copy of a module and images for it, on the meta device, where nothing is computed.

    If the module does not run there, because it reads the values of a tensor, both are on its own device instead.
    """
    like = next(module.parameters(), torch.empty(0))
    images = torch.zeros(N, *image_shape, dtype=like.dtype, device=like.device)
    try:
        twin, nothing = without_norms(frozen_copy(module).to("meta")), images.to("meta")
        twin(nothing)
    except Exception:
        return frozen_copy(module), images
    return twin, nothing


def frozen_copy(module: AnyModule) -> AnyModule:
    """A copy in evaluation mode whose parameters require no gradients: only its forwards are of interest."""
    return copied(module).eval().requires_grad_(False)


def without_norms(module: AnyModule) -> AnyModule:
    """Give a module's BatchNorms, which are slow on the meta device, a stand-in's forward; return the module.

    (A BatchNorm that was given a forward of its own keeps it.)
    """
    for each in module.modules():
        if type(each) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and "forward" not in vars(each):
            each.forward = partial(_normed, each)
    return module


def _normed(norm: Any, input: Tensor) -> Any:
    """A stand-in's forward: it refuses, returns and saves for backward what a BatchNorm does."""
    norm._check_input_dim(input)
    if input.shape[1] != norm.num_features:
        raise ValueError(f"a norm of {norm.num_features} channels got {input.shape[1]}")
    return _Norm.apply(input, norm.weight, norm.bias)  # type: ignore[no-untyped-call]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """A tensor like x, not computed; x and four statistics of each channel are saved for backward."""
        ctx.save_for_backward(x, x.new_empty(4, x.shape[1], dtype=torch.float32))
        return torch.empty_like(x)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Turn fused attention off for the block: the layers in it would not be seen."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _dry(module: AnyModule, image_shape: Sequence[int]) -> Iterator[tuple[AnyModule, Tensor]]:
    """The stand-ins of `_stand_in`, without gradients in the block.

    An error of a backbone becomes a ValueError of one line about the images; an error of an AuxNet, whose backbone has
    run before, one about the heads.
    """
    try:
        # (A forward or hooks that the module was given can lead from its copy back to the module itself.)
        with torch.no_grad(), plain_attention(), in_mode(module, training=False):
            yield _stand_in(module, image_shape)
    except MisfitError:
        raise
    except Exception as error:
        reason = first_line(error)
        if isinstance(module, AuxNet):
            raise ValueError(f"a head does not take its feature: {reason}") from None
        if "required positional argument" in reason:
            raise ValueError(f"the backbone does not take images alone ({reason}): wrap it with the rest") from None
        raise ValueError(
            f"the backbone does not take images of shape {tuple(image_shape)}: {reason}; give an `example` "
            "[1, C, H, W], a signal [1, C, T], or images (image_size), with the channels and the size it is built for"
        ) from None


def _may_write_in_training_alone(module: fx.GraphModule) -> bool:
    """Whether a traced backbone may have in-place dropout, which does nothing in evaluation."""
    nodes = (node for node in module.graph.nodes if node.op == "call_function")
    modules = (each for each in module.modules() if isinstance(each, _DropoutNd))
    return any(each.inplace for each in modules) or any("dropout" in str(n.target) for n in nodes)


@contextmanager
def _in_training(twin: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a stand-in into training mode for the block, and restore the caller's random state after it."""
    with random_kept(device):
        twin.train()
        yield


def _told(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor {list(x.shape)}"
    return f"a {type(x).__name__}: wrap it so that its forward returns them alone"
