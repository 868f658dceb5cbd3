"""How a dense network grows: maps, parameters and memory, layer by layer, read from any graph or by arithmetic alone.

Huang, Liu, van der Maaten, Weinberger 2016, Densely Connected Convolutional Networks, arXiv:1608.06993, section 3: layer
l of a block reads k0 + k (l - 1) maps and adds k; a transition keeps the share theta (compression) of them.

Dense blocks are found by what is concatenated: a chain of values, each of which holds all maps of the one before and new
ones that were computed from all of them, on maps of one size, at least two layers long. Where the maps of a value come
from is followed through everything that keeps maps apart (normalisation, activation, pooling); names of modules and
classes play no part.

Memory, in values for one image; bytes = 4 a value (float32)
`copied`  what concatenation writes anew: naively, each layer's input is a new tensor with all maps before it.
`renewed` what normalisation and activation of these maps compute, as many values again.
`kept`    all other results of the row.
naive     the sum of all three, so far: what training keeps for the pass back if each result is kept. Quadratic in the
          number of layers.
shared    `kept`, so far, and one buffer for the largest `copied` and `renewed`, in which each layer writes over the
          last one's and which the pass back computes once more (Pleiss et al. 2017, Memory-Efficient Implementation
          of DenseNets, arXiv:1707.06990). Linear in the number of layers, at the price of computing twice.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from cnnlib import tables
from cnnlib.analysis.costs import BYTES_PER_VALUE, costs_of
from cnnlib.errors import listed
from cnnlib.graph import Graph, Node, trace

# Each (source, maps): the node that computed the maps, and how many they are.
Maps = tuple[tuple[str, int], ...]
# Maps and the size of each: (height, width), or () behind the global pooling.
Value = tuple[Maps, tuple[int, ...]]
# The same without the order of the maps: each (source, maps) with how often it occurs, and the size.
Bag = tuple[frozenset[tuple[tuple[str, int], int]], tuple[int, ...]]

_WEIGHTED = ("conv", "conv_transpose", "linear")
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "local_response_norm")
_POOLS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")
_APART = frozenset([*_NORMS, *_POOLS, "dropout", "identity", "copy", "activation", "elementwise", "pad", "upsample"])


# ---------------------------------------------------------------------------------------------------------------
# Where the maps of a value come from


def _channels(node: Node) -> int:
    return node.full_shape[1] if len(node.full_shape or ()) > 1 else 0


def _keeps_apart(node: Node, graph: Graph, source: Node) -> bool:
    """Whether each map of the result is computed from the map of the same number alone."""
    if node.kind == "activation" and "halves" in node.attrs:
        return False
    if node.kind in _APART:
        return _channels(node) == _channels(source)
    if node.kind in ("flatten", "reshape", "slice"):
        # Behind global pooling, where nothing but the maps is left.
        return math.prod(source.full_shape) == source.full_shape[0] * _channels(source) == math.prod(node.full_shape)
    if node.kind in ("mean", "sum", "extremum"):
        here, before = node.full_shape, source.full_shape
        return len(before) == 4 and len(here) in (2, 4) and here[:2] == before[:2]
    return False


def _origins(graph: Graph) -> dict[str, Maps]:
    """For each value the maps in their order, by the node that computed them."""
    found: dict[str, Maps] = {}
    for node in graph:
        if not _channels(node) or node.kind == "output":
            continue
        live = [graph[name] for name in node.inputs if graph[name].live]
        if node.kind == "cat" and node.attrs["dim"] == 1:
            found[node.name] = tuple(
                part for name in node.inputs for part in found.get(name, ((name, _channels(graph[name])),))
            )
        elif len(live) == 1 and live[0].name in found and _keeps_apart(node, graph, live[0]):
            found[node.name] = found[live[0].name]
        else:
            found[node.name] = ((node.name, _channels(node)),)
    return found


def _count(maps: Maps) -> int:
    return sum(n for _, n in maps)


@dataclass(frozen=True)
class ConcatenationRow:
    """One concatenation along the maps: its `parts` as (source, maps), all `maps`, their size, and the values it copies."""

    name: str
    parts: Maps
    maps: int
    size: tuple[int, ...]
    values: int

    @property
    def bytes(self) -> int:
        return self.values * BYTES_PER_VALUE


def concatenations(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[ConcatenationRow, ...]:
    """Every concatenation along the maps of any network, in order: what it puts together, and what the copy takes."""
    graph = trace(model, input_shape)
    origins = _origins(graph)
    return tuple(
        ConcatenationRow(
            node.name, origins[node.name], _channels(node), tuple(node.full_shape[2:]), math.prod(node.shape)
        )
        for node in graph
        if node.live and node.kind == "cat" and node.attrs["dim"] == 1
    )


# ---------------------------------------------------------------------------------------------------------------
# Dense blocks


@dataclass(frozen=True)
class _Step:
    """A layer of a block: what it reads, the weight layers that read it, and the new maps."""

    reads: Value
    readers: tuple[str, ...]
    adds: Maps


@dataclass(frozen=True)
class _Block:
    """The steps of a dense block, the nodes whose values enter it, and the value that it gives."""

    steps: tuple[_Step, ...]
    entries: tuple[str, ...]
    gives: Value


def _value(graph: Graph, origins: dict[str, Maps], name: str) -> Value:
    return origins[name], tuple(graph[name].full_shape[2:])


def _readers(graph: Graph, origins: dict[str, Maps]) -> dict[str, Value]:
    """The weight layers, each with the value that it reads."""
    found = {}
    for node in graph:
        if node.kind in _WEIGHTED and node.live:
            image = next(name for name in node.inputs if graph[name].live)
            if image in origins:
                found[node.name] = _value(graph, origins, image)
    return found


def _blocks(graph: Graph, origins: dict[str, Maps]) -> list[_Block]:
    readers = _readers(graph, origins)
    cats: dict[Value, Node] = {}
    for node in graph:
        if node.kind == "cat" and node.live and node.attrs["dim"] == 1:
            cats.setdefault(_value(graph, origins, node.name), node)
    by_read: dict[Bag, list[str]] = {}
    for name, value in readers.items():
        by_read.setdefault(_bag(value), []).append(name)
    read = sorted(by_read.items(), key=lambda item: -len(item[0][0]))
    before: dict[Value, _Step] = {}
    for whole in cats:
        step = _last_step(graph, whole, readers, read)
        if step is not None:
            before[whole] = step
    followed = {_bag(step.reads) for step in before.values()}
    blocks = []
    by_bag = {_bag(value): value for value in before}
    for end in before:
        if _bag(end) in followed:
            continue
        steps: list[_Step] = []
        value = end
        while value in before:
            steps.insert(0, before[value])
            value = by_bag.get(_bag(steps[0].reads), steps[0].reads)
        if len(steps) > 1:
            first = cats[by_bag[_bag(steps[1].reads)]]
            new = {source for source, _ in steps[0].adds}
            entries = tuple(n for n in first.inputs if not new & {source for source, _ in origins[n]})
            blocks.append(_Block(tuple(steps), entries, end))
    place = {node.name: i for i, node in enumerate(graph)}
    return sorted(blocks, key=lambda block: place[block.steps[0].adds[-1][0]])


def _bag(value: Value) -> Bag:
    """A value without the order of its maps."""
    return frozenset(Counter(value[0]).items()), value[1]


def _last_step(
    graph: Graph, whole: Value, readers: dict[str, Value], read: list[tuple[Bag, list[str]]]
) -> _Step | None:
    """The layer whose new maps a concatenation adds to all that the layer reads, or None; `read` has large values first."""
    parts = Counter(whole[0])
    for (bag, size), names in read:
        known = Counter(dict(bag))
        if size != whole[1] or not known < parts:
            continue
        adds = tuple((parts - known).elements())
        # All new maps come from a weight layer that reads all that was there.
        behind = [graph.ancestors(source) for source, _ in adds]
        if all(not found.isdisjoint(names) for found in behind):
            used = tuple(name for name in names if any(name in found for found in behind))
            return _Step(readers[names[0]], used, adds)
    return None


# ---------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class GrowthRow:
    """One step of a dense network: `stem`, `layer`, `transition`, `head`, or `unused` parameters.

    `reads`, `adds` and `gives` are numbers of maps; `gives` of a layer is what the next one reads. `size` is that of
    the maps it reads. Values are for one image; None where no size is given.
    """

    what: str
    block: int | None
    layer: int | None
    name: str
    reads: int
    adds: int
    gives: int
    size: tuple[int, ...] | None
    params: int
    copied: int | None
    renewed: int | None
    kept: int | None

    @property
    def compression(self) -> float | None:
        """The share of its maps that a transition keeps."""
        return self.gives / self.reads if self.what == "transition" else None


@dataclass(frozen=True)
class SoFar:
    """Sums from the image to the end of a row; values and bytes are for one image."""

    params: int
    naive: int | None
    shared: int | None

    @property
    def naive_bytes(self) -> int | None:
        return None if self.naive is None else self.naive * BYTES_PER_VALUE

    @property
    def shared_bytes(self) -> int | None:
        return None if self.shared is None else self.shared * BYTES_PER_VALUE


@dataclass(frozen=True, repr=False)
class GrowthTable:
    """Rows of growth in the order of the network; `so_far` are the sums up to each row, `layers` the rows of layers."""

    network: str
    input_shape: tuple[int, int, int] | None
    rows: tuple[GrowthRow, ...]

    def __iter__(self) -> Iterator[GrowthRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def layers(self) -> tuple[GrowthRow, ...]:
        return tuple(row for row in self.rows if row.what == "layer")

    @property
    def transitions(self) -> tuple[GrowthRow, ...]:
        return tuple(row for row in self.rows if row.what == "transition")

    @property
    def blocks(self) -> int:
        return len({row.block for row in self.layers})

    def block(self, number: int) -> tuple[GrowthRow, ...]:
        """The layers of block `number`, counted from 1."""
        found = tuple(row for row in self.layers if row.block == number)
        if not found:
            raise ValueError(f"{self.network} has the blocks 1 to {self.blocks}, got {number}")
        return found

    @property
    def params(self) -> int:
        return sum(row.params for row in self.rows)

    @property
    def so_far(self) -> tuple[SoFar, ...]:
        found: list[SoFar] = []
        params = kept = all_values = largest = 0
        for row in self.rows:
            params += row.params
            if row.kept is None:
                found.append(SoFar(params, None, None))
                continue
            kept += row.kept
            all_values += row.copied + row.renewed + row.kept
            largest = max(largest, row.copied + row.renewed)
            found.append(SoFar(params, all_values, kept + largest))
        return tuple(found)

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values: the rows, each with its sums so far."""
        shape = None if self.input_shape is None else list(self.input_shape)
        rows = [
            {
                **asdict(row),
                "so_far": {**asdict(sums), "naive_bytes": sums.naive_bytes, "shared_bytes": sums.shared_bytes},
            }
            for row, sums in zip(self.rows, self.so_far)
        ]
        return {"network": self.network, "input_shape": shape, "rows": rows}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    _COLUMNS = ("step", "reads", "adds", "gives", "size", "params", "params so far", "naive MB", "shared MB")

    def _lines(self) -> list[tuple[object, ...]]:
        lines = []
        for row, sums in zip(self.rows, self.so_far):
            step = f"block {row.block}, layer {row.layer}" if row.what == "layer" else row.what
            memory = (None if b is None else round(b / 1e6, 3) for b in (sums.naive_bytes, sums.shared_bytes))
            lines.append((step, row.reads, row.adds, row.gives, row.size, row.params, sums.params, *memory))
        return lines

    def _title(self) -> str:
        on = f" on {listed(self.input_shape)}" if self.input_shape else ""
        return f"{self.network}{on}: maps, parameters, and memory so far for one image"

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[1:])

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[1:])


def _found_blocks(graph: Graph, origins: dict[str, Maps]) -> list[_Block]:
    blocks = _blocks(graph, origins)
    if not blocks:
        raise ValueError(
            f"{type(graph.model).__name__} has no dense block: no chain of at least two layers that each read all maps "
            "before them and are concatenated to them; concatenations(...) lists what is concatenated"
        )
    return blocks


def dense_growth_of(model: nn.Module, input_shape: tuple[int, int, int]) -> GrowthTable:
    """Maps, parameters and memory of each layer of a network's dense blocks, for images of `input_shape` = (C, H, W).

    The rows add up to the network. ValueError for a network without a dense block.
    """
    graph = trace(model, input_shape)
    origins = _origins(graph)
    blocks = _found_blocks(graph, origins)
    costs: dict[str, tuple[int, int]] = {}
    for row in costs_of(graph):
        # An attention layer has a row for each of its projections, too.
        name = next((n for n in (row.name, row.name.rpartition(".")[0]) if n in graph), row.name)
        params, values = costs.get(name, (0, 0))
        costs[name] = (params + row.params, values + row.activations)
    given: set[str] = set()
    rows: list[GrowthRow] = []

    def add(what: str, nodes: set[str], reads: Value, adds: int, gives: int, **where: object) -> None:
        mine = nodes - given
        given.update(mine)
        copied = sum(costs.get(n, (0, 0))[1] for n in mine if graph[n].kind == "cat" and what != "stem")
        renewed = sum(
            costs.get(n, (0, 0))[1]
            for n in mine
            if graph[n].kind not in ("cat", *_WEIGHTED)
            and what != "stem"
            and n in origins
            and _bag(_value(graph, origins, n)) == _bag(reads)
        )
        params, values = (sum(costs.get(n, (0, 0))[i] for n in mine) for i in (0, 1))
        kept = values - copied - renewed
        where = {"block": None, "layer": None, "name": what, **where}
        size = reads[1]
        rows.append(
            GrowthRow(
                what,
                reads=_count(reads[0]),
                adds=adds,
                gives=gives,
                size=size,
                params=params,
                copied=copied,
                renewed=renewed,
                kept=kept,
                **where,
            )
        )

    last: Value = _value(graph, origins, graph.input.name)
    for number, block in enumerate(blocks, start=1):
        first = block.steps[0].reads
        before = {name for entry in block.entries for name in graph.ancestors(entry)}
        what = "stem" if number == 1 else "transition"
        add(what, before, last, _count(first[0]) if number == 1 else 0, _count(first[0]))
        for layer, step in enumerate(block.steps, start=1):
            nodes = {name for source, _ in step.adds for name in graph.ancestors(source)}
            k, name = _count(step.adds), step.adds[-1][0]
            add("layer", nodes, step.reads, k, _count(step.reads[0]) + k, block=number, layer=layer, name=name)
        last = block.gives
    main = graph[graph.output.inputs[0]]
    add("head", {node.name for node in graph}, last, 0, _channels(main))
    unused = sum(p.numel() for name, p in graph.model.named_parameters() if name in graph.unused)
    if unused:
        rows.append(GrowthRow("unused", None, None, "unused", 0, 0, 0, (), unused, 0, 0, 0))
    return GrowthTable(type(graph.model).__name__, graph.input_shape, tuple(rows))


def growth_table(
    k0: int,
    k: int,
    layers: int | Sequence[int],
    *,
    compression: float = 1.0,
    bottleneck: int = 0,
    size: int | None = None,
    image: tuple[int, int] | None = None,
    classes: int | None = None,
) -> GrowthTable:
    """The table by arithmetic alone: `k0` maps enter the first block, each layer adds `k`; `layers` in each block.

    A layer is BN-ReLU-3x3, with `bottleneck` = 4 BN-ReLU-1x1 to 4k maps and BN-ReLU-3x3 (DenseNet-B); a transition
    BN-ReLU-1x1 to floor(`compression` * C) maps and 2x2 pooling (DenseNet-C). `size` is the side of the first block's
    maps, without which there are no values; `image` = (channels, kernel) adds the row of a first convolution without
    bias, `classes` that of BN, ReLU, global pooling and classifier.

    >>> [row.reads for row in growth_table(5, 4, 4)], growth_table(5, 4, 4).rows[-1].gives
    ([5, 9, 13, 17], 21)
    """
    numbers = (layers,) if isinstance(layers, int) else tuple(layers)
    for name, value in (("k0", k0), ("k", k), *(("layers", n) for n in numbers or (0,))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < compression <= 1:
        raise ValueError(f"compression must be in (0, 1], the share of maps that a transition keeps; got {compression}")
    if bottleneck < 0:
        raise ValueError(f"bottleneck must be 0 (none) or the multiple of k that the 1x1 gives (4), got {bottleneck}")
    if size is not None and size < 2 ** (len(numbers) - 1):
        raise ValueError(
            f"{len(numbers)} blocks halve the maps {len(numbers) - 1} times, which a side of {size} does not bear"
        )
    maps, side, wide = k0, size, bottleneck * k
    rows: list[GrowthRow] = []

    def add(what: str, gives: int, params: int, kept: int | None, block=None, layer=None, adds=0, reads=None) -> None:
        area = None if side is None else side * side
        from_dense = None if area is None else (0 if what == "stem" else maps * area)
        renewed = None if from_dense is None else 2 * from_dense
        shape = None if side is None else (side, side)
        name = f"block {block}, layer {layer}" if what == "layer" else what
        reads = maps if reads is None else reads
        rows.append(GrowthRow(what, block, layer, name, reads, adds, gives, shape, params, from_dense, renewed, kept))

    area = None if size is None else size * size
    if image is not None:
        channels, kernel = image
        add("stem", k0, channels * kernel**2 * k0, None if area is None else k0 * area, adds=k0, reads=channels)
    for block, count in enumerate(numbers, start=1):
        area = None if side is None else side * side
        if block > 1:
            out = int(compression * maps)
            if out < 1:
                raise ValueError(f"compression {compression} leaves none of {maps} maps; keep at least one")
            half = None if side is None else side // 2
            add("transition", out, maps * 2 + maps * out, None if area is None else out * (area + half * half))
            maps, side = out, half
            area = None if side is None else side * side
        for layer in range(1, count + 1):
            weights = maps * wide + 2 * wide + 9 * wide * k if wide else 9 * maps * k
            kept = None if area is None else (3 * wide + k) * area
            add("layer", maps + k, 2 * maps + weights, kept, block, layer, adds=k)
            maps += k
    if classes is not None:
        add("head", classes, 2 * maps + maps * classes + classes, None if area is None else maps + classes)
    return GrowthTable(f"k0 = {k0}, k = {k}", None, tuple(rows))


# ---------------------------------------------------------------------------------------------------------------
# Who reads whom: weights between layers


@dataclass(frozen=True)
class ConnectionRow:
    """The weights by which layer `target` of a block reads the maps of layer `source`.

    Layers are counted from 1; source 0 is what enters the block; `target` is the number of layers + 1 for a weight
    layer behind the block (`kind` "after": transition or classifier). `reader` and `writer` are their names. `weight`
    is the mean absolute weight over filters, maps of the source and kernel positions; `l1` the L1 norm of a filter's
    weights on the source's maps, mean over filters, divided by the number of these maps.
    """

    block: int
    source: int
    target: int
    kind: str
    writer: str
    reader: str
    maps: int
    weight: float
    l1: float


@dataclass(frozen=True, repr=False)
class ConnectionTable:
    """The rows of `connection_weights`; `block(n)` are those of one block."""

    network: str
    rows: tuple[ConnectionRow, ...]

    def __iter__(self) -> Iterator[ConnectionRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def blocks(self) -> int:
        return max(row.block for row in self.rows)

    def block(self, number: int) -> tuple[ConnectionRow, ...]:
        found = tuple(row for row in self.rows if row.block == number)
        if not found:
            raise ValueError(f"{self.network} has the blocks 1 to {self.blocks}, got {number}")
        return found

    def to_dict(self) -> dict[str, object]:
        return {"network": self.network, "rows": [asdict(row) for row in self.rows]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    _COLUMNS = ("block", "source", "target", "kind", "maps", "weight", "l1")

    def _lines(self) -> list[tuple[object, ...]]:
        return [tuple(getattr(row, column) for column in self._COLUMNS) for row in self.rows]

    def _title(self) -> str:
        return f"{self.network}: mean absolute weights between the layers of each dense block"

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._lines(), right=("maps", "weight", "l1"))

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._lines(), right=("maps", "weight", "l1"))


def _weight(graph: Graph, node: Node) -> Tensor:
    """The weights of a layer as (filters, maps, positions); a layer in groups has zeros for maps that a filter does not see."""
    if graph.fx_node(node.name).op == "call_module":
        weight = graph.model.get_submodule(node.module).weight
    else:
        tensors = [graph[n] for n in node.inputs if graph[n].kind == "parameter"]
        if not tensors:
            raise ValueError(
                f"{node.name} computes its weights, so that no stored tensor holds them; "
                "store them as a parameter (torch.nn.utils.parametrize.remove_parametrizations) first"
            )
        weight = graph.tensor(tensors[0].name)
    return weight.detach()


def _by_map(weight: Tensor, node: Node) -> Tensor:
    """The sum of absolute weights on each input map, and the number of weights that are summed there, as (2, maps)."""
    size = weight.abs().double().cpu()
    if node.kind == "conv_transpose":
        sums = size.flatten(1).sum(dim=1)
        return torch.stack([sums, torch.full_like(sums, size[0].numel())])
    filters, per_group = size.shape[:2]
    groups = node.attrs.get("groups", 1)
    grouped = size.reshape(groups, filters // groups, per_group, -1)
    sums = grouped.sum(dim=(1, 3)).flatten()
    return torch.stack([sums, torch.full_like(sums, grouped.shape[1] * grouped.shape[3])])


def connection_weights(model: nn.Module, input_shape: tuple[int, int, int]) -> ConnectionTable:
    """How strongly each layer of each dense block reads each layer before it (fig. 5 of the DenseNet paper).

    The paper's caption: average L1 norm, normalised by the number of input maps; `ConnectionRow` says what that is
    here. The weights are taken as they are; the scales of the normalisation in front of them are not multiplied in.
    ValueError for a network without a dense block.
    """
    graph = trace(model, input_shape)
    origins = _origins(graph)
    readers = _readers(graph, origins)
    rows: list[ConnectionRow] = []
    for number, block in enumerate(_found_blocks(graph, origins), start=1):
        sources: dict[str, int] = {source: 0 for source, _ in block.steps[0].reads[0]}
        for layer, step in enumerate(block.steps, start=1):
            sources.update({source: layer for source, _ in step.adds})
        targets = [(layer, "layer", name) for layer, step in enumerate(block.steps, start=1) for name in step.readers]
        inside = {name for _, _, name in targets}
        whole = Counter(block.gives[0])
        after = [name for name, (maps, _) in readers.items() if Counter(maps) == whole and name not in inside]
        targets += [(len(block.steps) + 1, "after", name) for name in after]
        for target, kind, name in targets:
            sums = _by_map(_weight(graph, graph[name]), graph[name])
            filters = graph[name].attrs.get("out_channels") or graph[name].attrs["out_features"]
            parts: dict[int, list[tuple[str, slice]]] = {}
            first = 0
            for source, maps in readers[name][0]:
                parts.setdefault(sources[source], []).append((source, slice(first, first + maps)))
                first += maps
            for source, slices in sorted(parts.items()):
                total, count = torch.cat([sums[:, part] for _, part in slices], dim=1).sum(dim=1).tolist()
                maps = sum(part.stop - part.start for _, part in slices)
                writer = slices[-1][0]
                rows.append(
                    ConnectionRow(
                        number, source, target, kind, writer, name, maps, total / count, total / filters / maps
                    )
                )
    return ConnectionTable(type(graph.model).__name__, tuple(rows))
