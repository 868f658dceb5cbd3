"""Only what a changed square of the image can reach is computed anew.

A square of an image changes a square of the first map that is a little larger, that one a larger one of the next map,
and so on; everything beside it is what it is for the unchanged image. The network is cut where one single map passes
on everything; each part between two cuts runs on a crop around what changed, wide enough that its borders do not matter
or are those of the map, and its result is pasted into the map of the unchanged image. Where the changed part fills
most of the map, or an operation looks beyond its window, the rest of the network runs as usual. Exact, but for the
order in which floats are summed.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from cnnlib.analysis.folding import Folded
from cnnlib.graph import Graph, Node
from cnnlib.operations import Spec

WORTH = 0.75  # the largest share of a map's positions for which a crop is cheaper than the whole

_POINTWISE = frozenset(["batch_norm", "activation", "elementwise", "add", "mul", "dropout", "identity", "copy"])
_WINDOWS = frozenset(["conv", "max_pool", "avg_pool"])
_CHANNELS = frozenset(["local_response_norm", "cat"])


@dataclass(frozen=True)
class _Reads:
    """Along one axis, position j reads the positions j * stride + first .. j * stride + last."""

    stride: int = 1
    first: int = 0
    last: int = 0

    def then(self, stride: int, before: int, span: int) -> _Reads:
        """What a window of `span` positions reads that starts `before` positions ahead of its stride."""
        first = self.first - before * self.stride
        last = self.last + (span - 1 - before) * self.stride
        return _Reads(self.stride * stride, first, last)

    def joined(self, other: _Reads) -> _Reads | None:
        if self.stride != other.stride:
            return None
        return _Reads(self.stride, min(self.first, other.first), max(self.last, other.last))


_ONE_TO_ONE = (_Reads(), _Reads())


@dataclass(frozen=True)
class _Span:
    """Along one axis, for every place of the square: where the crop of the map begins, and where what changes in the
    next map, both with their lengths, and how far windows step."""

    crop: Tensor
    length: int
    changed: Tensor
    changed_length: int
    stride: int


@dataclass(frozen=True)
class _Part:
    """What runs between two cuts: the map that it reads, that which it makes, and the crops along rows and columns."""

    module: fx.GraphModule
    source: str
    result: str
    spans: tuple[_Span, _Span]


class Local:
    """A twin of a network that answers for an image with a square of it changed, at each of many places.

    `tops` and `lefts` are where squares of `square` = (height, width) may begin; what lies beyond the border is cut
    off. `share` are the maps up to which only a crop is computed, each with the crop's share of the positions.
    """

    def __init__(
        self,
        twin: Folded,
        square: tuple[int, int],
        tops: Sequence[int],
        lefts: Sequence[int],
    ) -> None:
        self.twin = twin
        self.share: dict[str, float] = {}
        self.parts: list[_Part] = []
        self.graph = graph = twin.graph
        extents = graph.input_shape[1:]
        self._begins = [torch.tensor(places) for places in (tops, lefts)]
        self._ends = [torch.clamp(b + s, max=n) for b, s, n in zip(self._begins, square, extents)]
        # All squares are as long as the longest, so that a batch of crops has one size; what is too much does no harm.
        changed = [(torch.clamp(b, max=n - s), s) for b, s, n in zip(self._begins, square, extents)]
        line = _Line(graph)
        cuts = line.cuts() if graph.source == "fx" else [graph.input.name]
        here = cuts[0]
        for there in cuts[1:]:
            reads = line.reads(here, there)
            if reads is None:
                break
            sizes, results = graph[here].shape[1:], graph[there].shape[1:]
            spans = tuple(_span(r, *c, n, m) for r, c, n, m in zip(reads, changed, sizes, results))
            share = spans[0].length * spans[1].length / (sizes[0] * sizes[1])
            if share > WORTH:
                break
            self.parts.append(_Part(line.between(here, there), here, there, spans))
            self.share[there] = share
            changed = [(s.changed, s.changed_length) for s in spans]
            here = there
        self.rest = line.between(here, graph.output.name) if self.parts else twin.network

    def on(self, image: Tensor, value: Tensor) -> _OnImage:
        """Ready for one image (C, H, W), whose squares take on `value`, broadcast to (C, 1, 1)."""
        return _OnImage(self, image, value)


class _OnImage:
    """One image: `unchanged` is what the network answers for it as it is, and a call for it with squares changed."""

    def __init__(self, local: Local, image: Tensor, value: Tensor) -> None:
        self.local = local
        self.value = value.view(1, -1, 1, 1)
        if local.parts:
            graph = local.graph
            names = [part.source for part in local.parts] + [local.parts[-1].result]
            maps = graph.values(image[None], [*names, graph.output.inputs[0]])
            self.unchanged = maps.pop(graph.output.inputs[0])
            # (H, W, C), so that one index reads all channels of a position.
            self.maps = {name: found[0].permute(1, 2, 0).contiguous() for name, found in maps.items()}
        else:
            self.unchanged = local.twin(image[None])
        self.image = image

    def __call__(self, row: Tensor, column: Tensor) -> Tensor:
        """What the network answers with the squares at the places tops[row], lefts[column]; (B,) each."""
        local, device = self.local, self.image.device
        begins = [places[i].to(device) for places, i in zip(local._begins, (row, column))]
        ends = [places[i].to(device) for places, i in zip(local._ends, (row, column))]
        if not local.parts:
            rows, columns = (torch.arange(n, device=device).expand(len(row), n) for n in self.image.shape[1:])
            x = self.image.expand(len(row), *self.image.shape)
            return local.twin(torch.where(_inside(rows, columns, begins, ends), self.value, x))
        values, changed = None, []  # what the last part made, and where it belongs along rows and columns
        for part in local.parts:
            spans = [(span, i) for span, i in zip(part.spans, (row, column))]
            crops = [span.crop[i].to(device) for span, i in spans]
            rows, columns = (_run(at, span.length) for at, (span, _) in zip(crops, spans))
            x = _read(self.maps[part.source], rows, columns)
            if values is None:
                x = torch.where(_inside(rows, columns, begins, ends), self.value, x)
                x = x.contiguous(memory_format=torch.channels_last)
            else:
                _paste(x, values, *(at - crop[:, None] for at, crop in zip(changed, crops)))
            changed = [_run(span.changed[i].to(device), span.changed_length) for span, i in spans]
            inner = [at - crop[:, None] // span.stride for at, crop, (span, _) in zip(changed, crops, spans)]
            values = _pick(part.module(x), *inner)
        x = self.maps[part.result].permute(2, 0, 1).expand(len(row), -1, -1, -1)
        x = x.clone(memory_format=torch.channels_last)
        _paste(x, values, *changed)
        return local.rest(x.contiguous(memory_format=local.twin.memory_format))


# ---------------------------------------------------------------------------------------------------------------
# Squares of maps


def _run(begins: Tensor, length: int) -> Tensor:
    """(B,) first positions -> (B, length) positions."""
    return begins[:, None] + torch.arange(length, device=begins.device)


def _inside(rows: Tensor, columns: Tensor, begins: list[Tensor], ends: list[Tensor]) -> Tensor:
    """(B, 1, h, w): whether a position, by its row and column in the image, lies in the square."""
    down, across = (
        (at >= begin[:, None]) & (at < end[:, None]) for at, begin, end in zip((rows, columns), begins, ends)
    )
    return (down[:, :, None] & across[:, None, :])[:, None]


def _index(rows: Tensor, columns: Tensor, width: int, first: Tensor | int = 0) -> Tensor:
    """The numbers of positions, rows (B, h) and columns (B, w) of maps that lie one after another from `first` on."""
    return (rows[:, :, None] * width + columns[:, None, :] + first).flatten()


def _firsts(maps: Tensor) -> Tensor:
    """(B, 1, 1): the number of the first position of each map."""
    positions = maps.shape[2] * maps.shape[3]
    return torch.arange(0, len(maps) * positions, positions, device=maps.device)[:, None, None]


def _read(source: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Crops (B, C, h, w), channels last, of one map (H, W, C)."""
    found = source.flatten(0, 1).index_select(0, _index(rows, columns, source.shape[1]))
    return found.view(*rows.shape, columns.shape[1], -1).permute(0, 3, 1, 2)


def _pick(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The values (positions, C) of squares of maps (B, C, H, W)."""
    index = _index(rows, columns, maps.shape[3], _firsts(maps))
    return maps.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, index)


def _paste(maps: Tensor, values: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Write the values (positions, C) of squares over maps (B, C, H, W) that lie channels last."""
    index = _index(rows, columns, maps.shape[3], _firsts(maps))
    maps.permute(0, 2, 3, 1).view(-1, maps.shape[1]).index_copy_(0, index, values)


# ---------------------------------------------------------------------------------------------------------------
# Where the network can be cut, and what a part of it reads


class _Line:
    """The operations of a network in the order in which they run, to be cut."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = [n for n in graph.fx_node(graph.output.name).graph.nodes if n.op != "get_attr"]
        self.place = {fx_node: i for i, fx_node in enumerate(self.order)}
        self.node_of = {graph.fx_node(node.name): node for node in graph}
        self.fresh = _fresh(graph)

    def cuts(self) -> list[str]:
        """The maps (C, H, W) that alone carry everything on, from the image to the last.

        One that is read by a function of single values is left out: the function runs along with what is before it.
        """
        cuts, reaches = [], 0
        for i, fx_node in enumerate(self.order[:-1]):
            # `reaches`: the last reader of everything before this operation.
            if i >= reaches and fx_node in self.node_of and len(self.node_of[fx_node].shape or ()) == 3:
                cuts.append(self.node_of[fx_node].name)
            reaches = max([reaches, *(self.place[user] for user in fx_node.users)])
        passed_on = {here for here, there in pairwise(cuts[1:]) if self.reads(here, there) == _ONE_TO_ONE}
        return [cut for cut in cuts if cut not in passed_on]

    def body(self, here: str, there: str) -> list[fx.Node]:
        """The operations after one cut up to another."""
        first, last = (self.place[self.graph.fx_node(name)] for name in (here, there))
        return self.order[first + 1 : last + 1]

    def reads(self, here: str, there: str) -> tuple[_Reads, _Reads] | None:
        """What a position of the later map reads of the earlier along rows and columns; None where that is no window."""
        seen: dict[str, list[_Reads]] = {here: [_Reads(), _Reads()]}
        for fx_node in self.body(here, there):
            node = self.node_of.get(fx_node)
            if node is None or not node.inputs or any(name not in seen for name in node.inputs):
                return None
            sources = self.graph.predecessors(node.name)
            if len(node.full_shape or ()) != 4 or len({s.shape[1:] for s in sources}) > 1:
                return None
            windows = _windows(self.graph, node)
            if windows is None or not isinstance(fx_node.meta["value"], Spec):
                return None
            joined = list(seen[node.inputs[0]])
            for name in node.inputs[1:]:
                joined = [a and a.joined(b) for a, b in zip(joined, seen[name])]
            if None in joined:
                return None
            seen[node.name] = [reads.then(*window) for reads, window in zip(joined, windows)]
        return tuple(seen[there])

    def between(self, here: str, there: str) -> fx.GraphModule:
        """The part of the network that makes one map out of another, or the output, as a network of its own."""
        graph, part = self.graph, fx.Graph()
        new = {graph.fx_node(here): part.placeholder("x")}

        def held(fx_node: fx.Node) -> fx.Node:
            if fx_node not in new and fx_node.op == "get_attr":
                new[fx_node] = part.node_copy(fx_node)
            return new[fx_node]

        for fx_node in self.body(here, there):
            new[fx_node] = part.node_copy(fx_node, held)
            if fx_node in self.node_of:
                _write_over(self.node_of[fx_node], graph, new[fx_node], self.fresh - {here})
        if there != graph.output.name:
            part.output(new[graph.fx_node(there)])
        return fx.GraphModule(graph.module, part)


def _windows(graph: Graph, node: Node) -> tuple[tuple[int, int, int], ...] | None:
    """(stride, positions ahead, span) along rows and columns; None for what looks elsewhere or knows where it is."""
    attrs, none = node.attrs, ((1, 0, 1), (1, 0, 1))
    if node.kind in _POINTWISE and node.op != "normalize":
        return none if attrs.get("halves", 1) == 1 else None
    if node.kind in _CHANNELS:
        return none if attrs.get("dim", 1) == 1 else None
    if node.kind in _WINDOWS and len(attrs["kernel"]) == 2:
        module = graph.model.get_submodule(node.module) if graph.fx_node(node.name).op == "call_module" else None
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return None
        sides = zip(attrs["stride"], attrs["padding"], attrs["kernel"], attrs["dilation"])
        return tuple((s, before, (k - 1) * d + 1) for s, (before, _), k, d in sides)
    if node.kind == "slice":
        batch, channels, *sides = attrs["index"]
        (source,) = graph.predecessors(node.name)
        cut = [side[1:] for side in sides if side[0] == "slice" and side[1] == 0 and side[2] > 0]
        whole = len(cut) == 2 and all(
            m == -(-n // step) for (_, step), n, m in zip(cut, source.shape[1:], node.shape[1:])
        )
        known = batch == ("slice", 0, 1) and channels[0] == "slice"
        return tuple((step, 0, 1) for _, step in cut) if whole and known else None
    if node.kind == "pad" and len(attrs["padding"]) == 3 and attrs["padding"][1:] == ((0, 0), (0, 0)):
        return none
    return None


def _span(reads: _Reads, changed: Tensor, length: int, size: int, result: int) -> _Span:
    """The crops of a map of `size` positions and what changes in the next, of `result` positions, along one axis."""
    first = torch.clamp(-((reads.last - changed) // reads.stride), 0, result - 1)
    last = torch.clamp((changed + length - 1 - reads.first) // reads.stride, 0, result - 1).maximum(first)
    made = int((last - first).max()) + 1
    first = torch.clamp(first, max=result - made)
    # What these positions read, and the changed positions themselves, as far as the map goes.
    low = torch.clamp((first * reads.stride + reads.first).minimum(changed), min=0)
    high = ((first + made - 1) * reads.stride + reads.last).maximum(changed + length - 1)
    # A crop begins at a multiple of the stride, as windows do, also where it ends with the map.
    low = low // reads.stride * reads.stride
    crop = int((torch.clamp(high, max=size - 1) - low).max()) + 1
    crop = min(crop + (size - crop) % reads.stride, size)
    return _Span(torch.clamp(low, max=size - crop), crop, first, made, reads.stride)


def _fresh(graph: Graph) -> set[str]:
    """Values in memory of their own that one operation alone reads, and may thus write over."""
    found: set[str] = set()
    if any(node.kind == "copy" for node in graph):  # types may differ, which are not known here
        return found
    for node in graph:
        readers = graph.successors(node.name)
        if len(readers) != 1 or readers[0].inputs.count(node.name) != 1 or node.name in graph.overwriting:
            continue
        if node.kind in _WINDOWS or (node.kind == "add" and node.live) or _passes_on(graph, node, found):
            found.add(node.name)
    return found


def _passes_on(graph: Graph, node: Node, fresh: set[str]) -> bool:
    """Whether this is a norm: one that makes a new map, or one that was folded and hands on a fresh one."""
    if node.kind != "batch_norm":
        return False
    kept = graph.fx_node(node.name).op != "call_module" or not isinstance(
        graph.model.get_submodule(node.module), nn.Identity
    )
    return kept or node.inputs[0] in fresh


def _write_over(node: Node, graph: Graph, new: fx.Node, fresh: set[str]) -> None:
    """Let a sum or a ReLU write over a fresh value, which spares half of its traffic with the memory."""
    is_relu = new.target in (torch.relu, F.relu) or (
        new.op == "call_module" and type(graph.model.get_submodule(node.module)) is nn.ReLU
    )
    if is_relu and node.inputs[0] in fresh:
        new.op, new.target, new.args, new.kwargs = "call_function", torch.relu_, new.args[:1], {}
    elif new.target is operator.add and len(node.inputs) == 2:
        for i, name in enumerate(node.inputs):
            if name in fresh and graph[name].full_shape == node.full_shape:
                new.target, new.args = operator.iadd, (new.args[i], new.args[1 - i])
                break
