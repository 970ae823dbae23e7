"""Cut a backbone after named modules, or evenly by cost; and find where it can be cut.

A backbone can be cut after a module if the module's result is all that crosses the cut: one tensor with a row for each
image. Nothing may change this tensor in place afterwards, since a head reads it too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch import fx, nn

from auxnet.backbones.dryrun import Seen, moved_in_training, observe
from auxnet.backbones.tracing import INSTEAD, Traced, between, crossings, holders, trace
from auxnet.words import nearest

INPLACE_HINT = "inplace=False there would allow it"  # the cut
COST_TOLERANCE = 0.1  # of a segment's cost: no module is opened for a cut closer to the even one


def cut(backbone: nn.Module, names: Sequence[str], image_shape: Sequence[int]) -> list[fx.GraphModule]:
    """The segments of a backbone that is cut after the modules of these names, and its classifier.

    All are made of the backbone's own modules. The classifier is the last module with weights, and whatever is
    between the trunk and that module (pooling). Raises ValueError, naming the place and the remedy, if the backbone
    cannot be cut there.
    """
    known = [name for name, _ in backbone.named_modules() if name]
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"at must name modules (such as {known[0]!r}) or be a number, got {names!s:.99}")
        if name not in known:
            raise ValueError(f"the backbone has no module {name!r}{nearest(name, known)}")
    chart = _chart(backbone, holders(names), image_shape)
    stops = [_stop(chart, name) for name in names]
    for (here, stop), (there, next_stop) in pairwise(zip(names, stops, strict=True)):
        if chart.order[stop] >= chart.order[next_stop]:
            raise ValueError(
                f"at must run from the image to the classifier, but {there!r} does not lie behind {here!r}"
            )
    ends = [chart.traced.images, *stops, chart.trunk_end, chart.traced.logits]
    pieces = [between(chart.traced, start, end) for start, end in pairwise(ends)]
    _check_buffers(chart.traced, pieces, image_shape)
    return pieces


def even_cuts(backbone: nn.Module, cuts: int, image_shape: Sequence[int]) -> tuple[str, ...]:
    """The names of the modules after which `cuts` cuts divide a backbone's multiply-adds as evenly as possible.

    A module is opened (traced into) only if an even cut falls inside it and the backbone can be cut nowhere near.
    Raises ValueError if there are fewer places than cuts.
    """
    if cuts < 1:
        raise ValueError(f"at must be 1 cut or more, or the names of modules, got {cuts}")
    modules = sum(1 for _ in backbone.modules())
    if cuts > modules:
        raise ValueError(f"at={cuts} evenly placed cuts cannot be, the backbone has {modules} modules: ask for fewer")
    opened, closed = {""}, set[str]()
    chart = _chart(backbone, opened, image_shape)
    while True:
        total = max(seen.macs for seen in chart.seen.values())
        ideals = [total * (i + 1) / (cuts + 1) for i in range(cuts)]
        costs = _costs(chart)
        far = [x for x in ideals if all(abs(cost - x) > COST_TOLERANCE * total / (cuts + 1) for cost in costs.values())]
        inside = {_module_at(chart, x) for x in far} - {None, *closed}
        if not inside:
            return _nearest_places(costs, ideals, chart.overwritten())
        for name in sorted(filter(None, inside)):
            try:
                chart = _chart(backbone, {*opened, name}, image_shape)
                opened.add(name)
            except ValueError:  # it cannot be traced: it stays whole
                closed.add(name)


def _check_buffers(traced: Traced, pieces: Sequence[nn.Module], image_shape: Sequence[int]) -> None:
    """Raise ValueError if training changes a buffer that several pieces share: each would change a copy of its own."""
    owners: dict[str, list[str]] = {}
    for k, piece in enumerate(pieces, start=1):
        for name, _ in piece.named_buffers():
            owners.setdefault(name, []).append(f"segment {k}" if k < len(pieces) else "the classifier")
    several = [name for name, parts in owners.items() if len(parts) > 1]
    for name in moved_in_training(traced.module(), several, image_shape) if several else ():
        raise ValueError(
            f"{name!r} of {' and of '.join(owners[name])} are one tensor, which training changes: cut so that all "
            "come to lie in one segment, or build the parts without sharing"
        )


@dataclass(frozen=True)
class Chart:
    """A traced backbone, and what a dry run shows of it."""

    traced: Traced
    seen: dict[fx.Node, Seen]
    across: dict[fx.Node, list[fx.Node]]
    """for each node, the values that cross a cut after it"""
    order: dict[fx.Node, int]
    """the position of each node, from the images to the output"""

    def fits(self, node: fx.Node) -> bool:
        """Whether the backbone can be cut after a node."""
        return self._alone(node) and self.seen[node].unwritten

    def _alone(self, node: fx.Node) -> bool:
        """Whether the node's value, with a row for each image, is all that crosses a cut after it."""
        return self.across[node] == [node] and self.seen[node].row_per_image

    def overwritten(self, behind: int = 0) -> str:
        """A remark on modules after which it could be cut if nothing changed their result in place; "" if none."""
        nodes = {name: calls[0] for name, calls in self.traced.ends.items() if len(calls) == 1 and calls[0] is not None}
        written = {name: node for name, node in nodes.items() if self._alone(node) and not self.seen[node].unwritten}
        names = [name for name, node in written.items() if self.order[node] > behind]
        told = " or ".join(map(repr, names[-2:]))
        return f" (no cut after {told}, whose result is changed in place: {INPLACE_HINT})" if told else ""

    @cached_property
    def trunk_end(self) -> fx.Node:
        """Where the classifier begins: the earliest cut with only one module with weights after it."""
        *_, classifier = (node for node in self.order if node is self.traced.images or self.traced.has_weights(node))
        found = None
        for node in reversed(list(self.order)[1 : self.order[classifier]]):
            if self.fits(node):
                found = node
            if found is not None and self.traced.has_weights(node):
                break
        if found is None:
            where = f"before its classifier, {classifier.target!r}"
            raise ValueError(f"the backbone has no trunk {where}{self.overwritten()}: {INSTEAD}")
        return found

    @cached_property
    def places(self) -> dict[str, fx.Node]:
        """The modules of the trunk after which it can be cut; of several that end in the same node, the outermost."""
        end = self.order[self.trunk_end]
        ends = {
            nodes[0]: name
            for name, nodes in sorted(self.traced.ends.items(), key=lambda item: -item[0].count("."))
            if len(nodes) == 1 and nodes[0] is not None and self.order[nodes[0]] < end and self.fits(nodes[0])
        }
        return {ends[node]: node for node in self.order if node in ends}


def _chart(backbone: nn.Module, opened: Collection[str], image_shape: Sequence[int]) -> Chart:
    traced = trace(backbone, opened)
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    return Chart(traced, observe(traced.module(), image_shape), crossings(traced.graph), order)


def _stop(chart: Chart, name: str) -> fx.Node:
    """The node of a module's result, to cut after. Raises ValueError if the backbone cannot be cut there."""
    calls = chart.traced.ends.get(name, [])
    if len(calls) != 1:
        often = f"is called {len(calls)} times" if calls else "is not called by itself"
        raise ValueError(f"the module {name!r} {often} in the backbone's forward; {_places_near(chart, None)}")
    [node] = calls
    if node is None:
        raise ValueError(
            f"the module {name!r} gives several values, one tensor must cross; {_places_near(chart, None)}"
        )
    across = chart.across[node]
    if node not in across:
        raise ValueError(f"what the module {name!r} gives is not used for the output; {_places_near(chart, node)}")
    if len(across) > 1:
        values = ", ".join(str(value) for value in across)
        raise ValueError(
            f"{len(across)} values cross the cut after {name!r} ({values}), one must; {_places_near(chart, node)}"
        )
    if not chart.fits(node):
        in_place = f"is changed in place afterwards ({INPLACE_HINT})"
        why = in_place if chart.seen[node].row_per_image else "has no row per image"
        raise ValueError(f"what {name!r} gives {why}: no head can have it; {_places_near(chart, node)}")
    if chart.order[node] >= (end := chart.order[chart.trunk_end]):
        what = f"at {name!r} the trunk is at its end, and there the final output is already{chart.overwritten(end)}"
        raise ValueError(f"{what}; {_places_near(chart, node)}")
    return node


def _places_near(chart: Chart, node: fx.Node | None) -> str:
    """The remedy: the nearest places where it can be cut."""
    places = chart.places
    names = (
        list(places) if node is None else sorted(places, key=lambda n: abs(chart.order[places[n]] - chart.order[node]))
    )
    return f"cut after {' or '.join(map(repr, names[:3]))}, or {INSTEAD}" if names else INSTEAD


def _module_at(chart: Chart, macs: float) -> str | None:
    """The module inside which the multiply-adds so far pass this number; None if it has no children."""
    before = 0
    for node, seen in chart.seen.items():
        if before < macs < seen.macs:
            module = chart.traced.values.get(str(node.target)) if node.op == "call_module" else None
            return str(node.target) if module is not None and any(True for _ in module.children()) else None
        before = seen.macs
    return None


def _costs(chart: Chart) -> dict[str, int]:
    """The multiply-adds up to each place to cut, if below the trunk's; of places with equal costs, the deepest."""
    deepest = {chart.seen[node].macs: name for name, node in chart.places.items()}
    deepest.pop(chart.seen[chart.trunk_end].macs, None)
    return {name: macs for macs, name in deepest.items()}


def _nearest_places(costs: dict[str, int], ideals: Sequence[float], remark: str) -> tuple[str, ...]:
    """For each ideal cost the place nearest to it, each deeper than the one before."""
    places = list(costs)
    if len(places) < len(ideals):
        where = f"only after {', '.join(map(repr, places))}" if places else "nowhere"
        where += f"{remark}: ask for fewer, or" if places else f"{remark}:"
        raise ValueError(f"at={len(ideals)} evenly placed cuts cannot be, one tensor alone crosses {where} {INSTEAD}")
    chosen: list[int] = []
    for i, ideal in enumerate(ideals):
        free = range(chosen[-1] + 1 if chosen else 0, len(places) - (len(ideals) - 1 - i))
        chosen.append(min(free, key=[abs(costs[place] - ideal) for place in places].__getitem__))
    return tuple(places[i] for i in chosen)
