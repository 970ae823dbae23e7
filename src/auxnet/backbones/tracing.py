"""A backbone's forward as a torch.fx graph, traced only as deep as its cuts are, and cut where one tensor crosses.

A module that contains no cut is called as a whole and stays the backbone's own: it behaves as before in training, in
evaluation and for inputs of any size. Only the forwards of modules that contain a cut are recorded, in both modes.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from operator import attrgetter, getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from auxnet.errors import first_line
from auxnet.modules import in_mode

INSTEAD = (
    "give the segments themselves: attach([first, second, ..., classifier]), or for the command line a function that "
    "returns nn.Sequential(OrderedDict(first=..., second=..., classifier=...)), and --cuts first"
)


@dataclass(frozen=True)
class Traced:
    """The forward of a backbone as a graph."""

    graph: fx.Graph
    """from one placeholder, the images, to one output, the logits"""
    values: dict[str, Any]
    """what its nodes name: the backbone's modules, parameters and buffers, and constants"""
    ends: dict[str, list[fx.Node | None]]
    """name of a module -> the result of each of its calls, in order; None for a result that is not one value"""

    @property
    def images(self) -> fx.Node:
        """The node of the images."""
        node: fx.Node = next(iter(self.graph.nodes))
        return node

    @property
    def logits(self) -> fx.Node:
        """The node of the logits."""
        return next(iter(self.graph.output_node().all_input_nodes))

    def module(self) -> fx.GraphModule:
        """The whole graph as a module that shares the backbone's."""
        return fx.GraphModule(self.values, self.graph)

    def has_weights(self, node: fx.Node) -> bool:
        """Whether a node is a module with parameters, or a parameter."""
        value = self.values.get(str(node.target)) if node.op in ("call_module", "get_attr") else None
        return isinstance(value, nn.Parameter) or (
            isinstance(value, nn.Module) and any(True for _ in value.parameters())
        )


def trace(backbone: nn.Module, opened: Collection[str]) -> Traced:
    """Record the forward of a backbone, and of the modules in it that are `opened` ("" is the backbone itself).

    An argument that is False in evaluation and True in training, as of functional dropout, becomes the `training` of
    the module that is made from the graph. Raises ValueError, naming the place, for a forward that cannot be recorded.
    """
    evaluation, constants, ends = _record(backbone, opened, training=False)
    training, _, _ = _record(backbone, opened, training=True)
    _follow_training(evaluation, training)
    _drop_unused(evaluation, backbone)
    _check_nothing_lost(evaluation)
    values: dict[str, Any] = {MODE: Mode()}
    for node in evaluation.nodes:
        if node.op in ("call_module", "get_attr") and node.target not in values:
            name = str(node.target)
            values[name] = constants[name] if name in constants else attrgetter(name)(backbone)
    return Traced(evaluation, values, ends)


def crossings(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the values computed up to it and used after it.

    Values that do not depend on the images do not count, nor does the number of images, which any value tells.
    """
    last_use = {used: node for node in graph.nodes for used in node.all_input_nodes}
    varying = _varying(graph)
    alive: dict[fx.Node, None] = {}
    found = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            if last_use[used] is node:
                alive.pop(used, None)
        if node in varying and node in last_use and not _counts_images(node):
            alive[node] = None
        found[node] = list(alive)
    return found


def between(traced: Traced, start: fx.Node, stop: fx.Node) -> fx.GraphModule:
    """The part of the graph after `start` and up to `stop`, as a module: one tensor -> one tensor.

    It shares the backbone's modules and parameters, but has its own copies of all other tensors, and its own `Mode`.
    """
    varying = _varying(traced.graph)
    piece = fx.Graph()
    copies = {start: piece.placeholder("x")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies and _counts_images(node):
            copies[node] = piece.call_method("size", (copies[start], 0))
        if node not in copies:
            if node in varying:
                raise ValueError(f"{node} crosses the cut beside {start}")
            copies[node] = piece.node_copy(node, copied)
        return copies[node]

    nodes = list(traced.graph.nodes)
    for node in nodes[nodes.index(start) + 1 : nodes.index(stop) + 1]:
        if node in varying:
            copies[node] = piece.node_copy(node, copied)
    piece.output(copied(stop))
    named = {str(node.target) for node in piece.nodes if node.op in ("call_module", "get_attr")}
    return fx.GraphModule({name: _own(traced.values[name]) for name in named}, piece)


def holders(names: Iterable[str]) -> set[str]:
    """The names of all modules that contain one of these, "" (the whole) included: `trace` must look into them."""
    return {"", *(name.rsplit(".", n)[0] for name in names for n in range(1, name.count(".") + 1))}


# ---- recording -------------------------------------------------------------------------------------------------


MODE = "in_training"


class Mode(nn.Module):
    """Returns its `training`: as an attribute, that would become a constant when torch.fx unpickles a graph."""

    def forward(self) -> bool:
        """Whether it is in training."""
        return self.training


class _Buffer(fx.Proxy):
    """The proxy of a buffer: it knows the shape, which does not change, so that a forward may compute with it."""

    def __init__(self, node: fx.Node, tracer: Any, value: torch.Tensor) -> None:
        super().__init__(node, tracer)
        self.shape, self.ndim = value.shape, value.ndim
        self.size, self.dim, self.numel = value.size, value.dim, value.numel

    def __len__(self) -> int:
        return int(self.shape[0])

    def __iter__(self) -> Any:
        return (self[n] for n in range(len(self)))  # type: ignore[index]


class _Recorder(fx.Tracer):
    """Records modules that are not opened as calls; notes the result of every call, and the module that failed."""

    proxy_buffer_attributes = True  # what is computed from buffers changes with them

    def __init__(self, opened: Collection[str], buffers: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.opened, self.buffers = opened, buffers
        self.ends: dict[str, list[fx.Node | None]] = {}
        self.failed: str | None = None

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The images alone: other arguments of a forward keep their defaults."""
        # The root is called: its forward alone would leave out hooks, and what its own `__call__` does.
        return lambda root, images: root(images), [self.root, self.create_proxy("placeholder", "images", (), {})]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        value = self.buffers.get(str(node.target)) if node.op == "get_attr" else None
        return super().proxy(node) if value is None else _Buffer(node, self, value)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        try:
            if name not in self.opened and not str(type(m).__call__.__module__).startswith("torch."):
                raise ValueError("its __call__ is its own and would act twice: do that in forward")
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or name
            raise
        if name:
            self.ends.setdefault(name, []).append(result.node if isinstance(result, fx.Proxy) else None)
        return result


def _record(
    backbone: nn.Module, opened: Collection[str], training: bool
) -> tuple[fx.Graph, dict[str, Any], dict[str, list[fx.Node | None]]]:
    """The graph in one mode, its constants, and its modules' results. The backbone is left as it was."""
    recorder = _Recorder(opened, dict(backbone.named_buffers()))
    before, generators = dict(vars(backbone)), _generators()
    try:
        with in_mode(backbone, training):
            graph = recorder.trace(backbone)
        if _generators() != generators:
            raise ValueError(
                "it draws random numbers, which would be drawn once for all: let a module of its own do so"
            )
    except Exception as error:  # a forward that gets a proxy in place of a tensor can raise anything
        place = f"the forward of {recorder.failed!r}" if recorder.failed else "the backbone's own forward"
        why = f"{place} cannot be traced by torch.fx{_line_of(error)}: {first_line(error)}"
        raise ValueError(f"{why}; cut outside of it, or {INSTEAD}") from None
    finally:
        # torch.fx stores tensors that a forward makes itself as attributes of the root
        constants = {name: vars(backbone).pop(name) for name in vars(backbone).keys() - before.keys()}
        vars(backbone).update(before)  # a forward may store what it computes, here proxies
    return graph, constants, recorder.ends


def _generators() -> tuple[Any, ...]:
    """The states of all random number generators: they differ once a number is drawn."""
    numpys = [x.tobytes() if isinstance(x, np.ndarray) else x for x in np.random.get_state()]
    return torch.get_rng_state().tolist(), random.getstate(), numpys


def _place(node: fx.Node) -> str:
    """The module, in words, whose forward a node was recorded in."""
    holders = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
    return f"the forward of {holders[-1]!r}" if holders and holders[-1] else "the backbone's own forward"


def _line_of(error: Exception) -> str:
    """The line of the backbone's code at which an error arose, in words; "" if there is none."""
    torchs = str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(torchs) and frame.filename != __file__:
            return f" ({Path(frame.filename).name} line {frame.lineno}: `{frame.line}`)"
    return ""


def _follow_training(evaluation: fx.Graph, training: fx.Graph) -> None:
    """Merge two graphs into the first: what is False in it and True in training becomes the module's `training`."""
    flags: list[fx.Node] = []

    def flag() -> fx.Node:
        if not flags:
            with evaluation.inserting_after(next(iter(evaluation.nodes))):
                flags.append(evaluation.call_module(MODE))
        return flags[0]

    def merged(here: Any, there: Any) -> Any:
        if repr(here) == repr(there):
            return here
        if here is False and there is True:
            return flag()
        if isinstance(here, tuple | list) and type(here) is type(there) and len(here) == len(there):
            return type(here)(map(merged, here, there))
        if isinstance(here, dict) and isinstance(there, dict) and here.keys() == there.keys():
            return {key: merged(value, there[key]) for key, value in here.items()}
        raise LookupError

    pairs = zip(list(evaluation.nodes), list(training.nodes), strict=False)
    for here, there in pairs:
        try:
            if (here.op, here.name, here.target) != (there.op, there.name, there.target):
                raise LookupError
            here.args, here.kwargs = merged(here.args, there.args), merged(here.kwargs, there.kwargs)
        except LookupError:
            raise ValueError(
                f"{_place(here)} does other things in training than in evaluation, from {there.name!r} on: "
                f"build the backbone without that (aux_logits=False, for one), or {INSTEAD}"
            ) from None


def _drop_unused(graph: fx.Graph, backbone: nn.Module) -> None:
    """Drop modules with weights whose result nobody uses: an output must not carry them along."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op not in ("call_module", "get_attr"):
            continue
        if node.op == "get_attr" or any(True for _ in backbone.get_submodule(str(node.target)).parameters()):
            graph.erase_node(node)


def _check_nothing_lost(graph: fx.Graph) -> None:
    """Raise ValueError if a value that does not depend on images is changed in place: a cut would lose the change."""
    varying = _varying(graph)
    for node in graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        if node.op.startswith("call_") and node.op != "call_module" and name.endswith("_") and name[-2:] != "__":
            changed, *_ = node.all_input_nodes
            if changed not in varying and (len(changed.users) > 1 or not node.users):
                raise ValueError(
                    f"{_place(node)} changes {changed.name!r} in place, by {name}, which a cut would lose: "
                    f"let a module of its own do so, or {INSTEAD}"
                )


def _varying(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on the images."""
    varying: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(used in varying for used in node.all_input_nodes):
            varying.add(node)
    return varying


def _counts_images(node: Any) -> bool:
    """Whether a node is images.shape[0], images.size()[0] or images.size(0)."""
    if node.target is not getitem:
        asked = (node.op, node.target, node.args[1:]) == ("call_method", "size", (0,))
    else:
        node, index = node.args
        shapes = ("call_function", getattr, ("shape",)), ("call_method", "size", ())
        asked = index == 0 and (node.op, node.target, node.args[1:]) in shapes
    return asked and node.args[0].op == "placeholder"


def _own(value: Any) -> Any:
    if isinstance(value, Mode):
        return Mode()
    return value.clone() if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter) else value
