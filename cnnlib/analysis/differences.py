"""Spot the difference: two networks aligned layer by layer, and what differs as rows.

Compared is what the networks compute for one image in evaluation mode: kind, kernel, stride, padding, groups, width,
norm and its constants, activation, order and wiring. Names of modules, flattening, and layers that change nothing
(dropout of rate 0, stochastic depth, pooling to the size that is there, rounding where no window hangs over) make no
difference; neither does the order in which branches run. Layers are aligned at the least total cost of changes and gaps (Needleman, Wunsch 1970); where costs are equal,
layers of the same name and map size belong together.

A width that changes also changes the parameters and multiply-adds of the layers that read it, and a stride those of
all layers behind it. These consequences are counted with the row in front of them, so that the rows of a comparison
add up to the difference between the two networks.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from torch import nn

from cnnlib import tables
from cnnlib.analysis.costs import costs_of
from cnnlib.analysis.fields import FieldTable, fields_of
from cnnlib.errors import listed
from cnnlib.graph import Graph, Node, check_input_shape, trace
from cnnlib.models.blocks import InputGuard
from cnnlib.models.zoo import build, card
from cnnlib.operations import bind

ABSENT = "-"
# Numbers that go without saying.
UNSAID = {"groups": "1", "dilation": "1", "padding": "0", "rounding": "down", "bias": "yes", "affine": "yes"}

# Kinds that only hand values on; a layer behind them reads what stands before them.
_PLUMBING = frozenset(
    ["identity", "copy", "item", "split", "expand", "flatten", "reshape", "permute", "parameter", "constant", "output"]
)
# Kinds that can stand for one another: such a pair is one row, any other pair two missing layers.
_FAMILIES = {
    **dict.fromkeys(["max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "global_avg_pool"], "pooling"),
    **dict.fromkeys(["batch_norm", "layer_norm", "group_norm", "instance_norm", "local_response_norm"], "norm"),
    **dict.fromkeys(["conv", "linear"], "layer"),
}
_POINTWISE = frozenset(["activation", "elementwise", "add", "mul"])
_GROUPABLE = _POINTWISE | _PLUMBING | {"max_pool", "avg_pool", "pad", "sum", "mean", "slice"}
_COMMUTATIVE = frozenset(["add", "radd", "iadd", "mul", "rmul", "imul", "multiply"])

# Constants of a kind that its attributes do not hold: name here, name in torch, torch's value where none is given.
_CONSTANTS = {
    "batch_norm": (("eps", "eps", 1e-5), ("momentum", "momentum", 0.1)),
    "layer_norm": (("eps", "eps", 1e-5),),
    "group_norm": (("eps", "eps", 1e-5), ("groups", "num_groups", None)),
    "instance_norm": (("eps", "eps", 1e-5),),
    "local_response_norm": (("n", "size", None), ("alpha", "alpha", 1e-4), ("beta", "beta", 0.75), ("k", "k", 1.0)),
}
_POSITIONAL = {"local_response_norm": "input size alpha beta k"}


@dataclass(frozen=True)
class Difference:
    """One row: where two networks differ, in what, and what follows from it up to the next row.

    `position` is the layer's name, in both networks if they call it differently. `in_a` and `in_b` are in words, "-"
    where a network lacks the layer. `params` and `macs` are those of b less those of a. `field` is the receptive field
    behind the layer in a and in b, in pixels; None where it has none or is missing.
    """

    position: str
    what: str
    in_a: str
    in_b: str
    params: int
    macs: int
    field: tuple[float | None, float | None]


@dataclass(frozen=True)
class Pair:
    """Two aligned layers, None where a network lacks one, and the number of the row that they belong to.

    `row` is None where the layers are equal; the layers that one row calls moved all have its number.
    """

    a: Layer | None
    b: Layer | None
    row: int | None


@dataclass(frozen=True, repr=False)
class Comparison:
    """The rows of `compare`, in the order of the layers; a pair holds a's value and b's.

    `field` are the receptive fields of the last maps, `pairs` all layers side by side. Iterates its rows; an empty
    comparison is false.
    """

    a: str
    b: str
    rows: tuple[Difference, ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    field: tuple[float | None, float | None]
    pairs: tuple[Pair, ...]

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def folded(self) -> tuple[tuple[int, Difference], ...]:
        """Rows that say the same at several places as one: how often, and the row with the sums and all positions."""
        same: dict[tuple[str, str, str], list[Difference]] = {}
        for row in self.rows:
            same.setdefault((row.what, row.in_a, row.in_b), []).append(row)
        found = []
        for (what, in_a, in_b), rows in same.items():
            names = [row.position for row in rows]
            where = ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
            sums = sum(row.params for row in rows), sum(row.macs for row in rows)
            field = rows[0].field if len(rows) == 1 else (None, None)
            found.append((len(rows), Difference(where, what, in_a, in_b, *sums, field)))
        return tuple(found)

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values; a field of infinity is the string "whole image"."""
        rows = [{**asdict(row), "field": [_size(f) for f in row.field]} for row in self.rows]
        totals = {"params": list(self.params), "macs": list(self.macs), "field": [_size(f) for f in self.field]}
        return {"a": self.a, "b": self.b, "rows": rows, "totals": totals}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    def _names(self) -> tuple[str, str]:
        return (self.a, self.b) if self.a != self.b else (f"{self.a} (a)", f"{self.b} (b)")

    def _columns(self) -> tuple[str, ...]:
        return ("times", "position", "what", *self._names(), "params", "macs", "field")

    def _lines(self) -> list[tuple[object, ...]]:
        lines: list[tuple[object, ...]] = [
            (
                times,
                row.position,
                row.what,
                row.in_a,
                row.in_b,
                _signed(row.params),
                _signed(row.macs),
                _arrow(row.field),
            )
            for times, row in self.folded()
        ]
        (pa, pb), (ma, mb) = self.params, self.macs
        return [*lines, ("", "total", "", "", "", _signed(pb - pa), _signed(mb - ma), _arrow(self.field))]

    def _title(self) -> str:
        a, b = self._names()
        if not self.rows:
            return f"{a} and {b} compute the same: no difference"
        n = len(self.rows)
        return (
            f"{a} and {b}: {n} difference{'s' * (n != 1)}; {self.params[0]:,} and {self.params[1]:,} parameters, "
            f"{self.macs[0]:,} and {self.macs[1]:,} multiply-adds; params and macs in the table are {b} less {a}"
        )

    _RIGHT = ("times", "params", "macs", "field")

    def __repr__(self) -> str:
        if not self.rows:
            return self._title()
        return tables.text(self._title(), self._columns(), self._lines(), right=self._RIGHT)

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<p>{escape(self._title())}</p>"
        return tables.html(self._title(), self._columns(), self._lines(), right=self._RIGHT)


def compare(a: str | nn.Module, b: str | nn.Module, input_shape: tuple[int, int, int] | None = None) -> Comparison:
    """What differs between two networks, each a name of the zoo or any nn.Module, for images of `input_shape` (C, H, W).

    Without `input_shape`, each network of the zoo is read at its paper's size, and another at that of its partner.
    The networks are left as they were. ValueError for an unknown name or a shape that does not fit.

    >>> [(row.position, row.what, row.in_a, row.in_b) for row in compare("zfnet", "zfnet_wide")][0]
    ('conv3', 'width', '384', '512')
    """
    shapes = [input_shape or _own_shape(network) for network in (a, b)]
    if shapes == [None, None]:
        raise ValueError(
            "compare needs input_shape=(C, H, W), for example (3, 224, 224), since neither network tells its own"
        )
    sides = [_read(network, shape or next(filter(None, shapes))) for network, shape in zip((a, b), shapes)]
    # Where two alignments cost the same, the choice must not depend on who is called a.
    swapped = sides[1].key < sides[0].key
    first, second = reversed(sides) if swapped else sides
    rows, pairs = _rows(first, second)
    if swapped:
        rows = [_mirrored(row) for row in rows]
        pairs = [Pair(pair.b, pair.a, pair.row) for pair in pairs]
    totals = {name: tuple(getattr(side, name) for side in sides) for name in ("params", "macs", "field")}
    return Comparison(
        sides[0].name, sides[1].name, tuple(_difference(row) for row in rows), **totals, pairs=tuple(pairs)
    )


def _own_shape(network: str | nn.Module) -> tuple[int, int, int] | None:
    if isinstance(network, str):
        return card(network).input_shape
    guard = _guard(network)
    return (guard.channels, *guard.size) if guard else None


def _guard(network: nn.Module) -> InputGuard | None:
    """What `zoo.build` hung on a network, which knows its name and size."""
    hooks = getattr(network, "_forward_pre_hooks", {}).values()
    return next((hook for hook in hooks if isinstance(hook, InputGuard)), None)


# ---------------------------------------------------------------------------------------------------------------
# A network as a list of layers


@dataclass(frozen=True)
class Layer:
    """One thing that a reader would call a layer: its kind, its numbers in words, and the layers that it reads.

    `params` and `macs` include those of the plumbing in front of it.
    """

    name: str
    kind: str
    numbers: Mapping[str, str]
    extent: tuple[int, ...]
    sources: tuple[int, ...]
    commutes: bool
    params: int
    macs: int
    field: float | None

    @property
    def key(self) -> tuple[str, ...]:
        return (self.kind, *(f"{k} {v}" for k, v in self.numbers.items()))

    @property
    def words(self) -> str:
        if "function" in self.numbers:
            return ", ".join(self.numbers.values())
        return " ".join([self.kind.replace("_", " "), ", ".join(map(" ".join, self.numbers.items()))]).strip()


@dataclass(frozen=True)
class Side:
    """One of the two networks."""

    name: str
    layers: tuple[Layer, ...]
    params: int
    macs: int
    field: float | None

    @property
    def key(self) -> tuple[object, ...]:
        return (tuple(layer.key for layer in self.layers), tuple(layer.name for layer in self.layers), self.name)


def _read(network: str | nn.Module, shape: tuple[int, int, int]) -> Side:
    if isinstance(network, str):
        return _read_entry(card(network).name, check_input_shape(shape))
    guard = _guard(network)
    return _side(guard.name if guard else type(network).__name__, network, shape)


@functools.lru_cache(maxsize=32)
def _read_entry(name: str, shape: tuple[int, int, int]) -> Side:
    with torch.device("meta"):
        model = build(name)
    return _side(name, model, shape)


def _side(name: str, model: nn.Module, shape: tuple[int, int, int]) -> Side:
    graph = trace(model, shape)
    costs, fields = costs_of(graph), fields_of(graph)
    final = fields.final.size if fields.final_name else None
    layers = _layers(graph, {row.name: (row.params, row.macs) for row in costs}, fields)
    return Side(name, layers, costs.params, costs.macs, _worst(final))


def _layers(graph: Graph, costs: dict[str, tuple[int, int]], fields: FieldTable) -> tuple[Layer, ...]:
    size_of = {row.name: _worst(row.size) for row in fields}
    group_of = _groups(graph)
    waiting = dict(costs)
    layers: list[Layer] = []
    index: dict[str, tuple[int, ...]] = {}  # the layers that a node's value comes from
    carried = [0, 0]
    for node in _canonical(graph):
        for part in (node.name, f"{node.name}.in_proj", f"{node.name}.out_proj"):
            # An attention layer has rows of its own for its projections.
            if part == node.name or (node.kind == "attention" and part not in graph):
                params, macs = waiting.pop(part, (0, 0))
                carried = [carried[0] + params, carried[1] + macs]
        sources = tuple(s for name in node.inputs for s in index[name])
        group = group_of.get(node.name, (node,))
        if node is not group[-1] or _changes_nothing(node, graph):
            index[node.name] = sources
            continue
        kind, numbers = _described(group, graph)
        index[node.name] = (len(layers),)
        commutes = node.op in _COMMUTATIVE
        sources = tuple(sorted(sources)) if commutes else sources
        extent = (node.shape or ())[1:]
        name = node.name if len(group) == 1 else node.module
        layers.append(Layer(name, kind, numbers, extent, sources, commutes, *carried, size_of.get(node.name)))
        carried = [0, 0]
    rest = [sum(column) for column in zip((0, 0), carried, *waiting.values())]
    if any(rest):
        numbers = {"unused parameters": f"{rest[0]:,}"}
        layers.append(Layer("auxiliary", "unused", numbers, (), (), False, *rest, None))
    return tuple(layers)


def _canonical(graph: Graph) -> list[Node]:
    """All nodes that the output depends on, sources first, in an order that does not depend on which branch runs first:
    in front of a sum, the longer branch; in front of a concatenation, the first."""
    rank: dict[str, tuple[int, str, str]] = {}  # less the length of the branch, its kinds, its numbers
    for node in graph:
        lengths, kinds, numbers = zip(*[rank[i] for i in node.inputs]) if node.inputs else ((0,), (), ())
        structure = (node.kind, *sorted(kinds))
        rank[node.name] = (min(lengths) - 1, _digest(structure), _digest((structure, node.attrs, sorted(numbers))))
    order: dict[str, Node] = {}
    stack = [(graph.output, False)]
    while stack:
        node, done = stack.pop()
        if node.name in order:
            continue
        if done:
            order[node.name] = node
            continue
        inputs = list(dict.fromkeys(node.inputs))
        if node.op in _COMMUTATIVE:
            inputs.sort(key=rank.__getitem__)
        stack.append((node, True))
        stack += [(graph[name], False) for name in reversed(inputs) if name not in order]
    return list(order.values())


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _groups(graph: Graph) -> dict[str, tuple[Node, ...]]:
    """Chains of small operations inside one custom module without children, such as a scaled tanh: one layer each."""
    runs: list[list[Node]] = []
    for node in graph:
        if not node.live or node.kind not in _GROUPABLE or not _is_custom_leaf(graph, node):
            continue
        last = runs[-1][-1] if runs else None
        lives = [name for name in node.inputs if graph[name].live]
        if (
            last is not None
            and last.module == node.module
            and lives == [last.name]
            and len(graph.successors(last.name)) == 1
        ):
            runs[-1].append(node)
        else:
            runs.append([node])
    solid = ([node for node in run if node.kind not in _PLUMBING] for run in runs)
    chains = [tuple(run) for run, parts in zip(runs, solid) if len(parts) > 1]
    return {node.name: chain for chain in chains for node in chain}


def _is_custom_leaf(graph: Graph, node: Node) -> bool:
    if not node.module:
        return False
    module = graph.model.get_submodule(node.module)
    return not type(module).__module__.startswith("torch.nn.modules") and not any(True for _ in module.children())


def _changes_nothing(node: Node, graph: Graph) -> bool:
    if node.kind in _PLUMBING or not node.live:
        return True
    if node.kind == "dropout":
        # Some networks leave stochastic depth out of evaluation altogether, others run it as nothing.
        return node.attrs["p"] == 0 or node.op == "stochastic_depth"
    if node.kind == "cat":
        readers = graph.successors(node.name)
        return [(r.kind, r.attrs.get("dim")) for r in readers] == [("cat", node.attrs["dim"])]
    if node.kind.startswith("adaptive_"):
        return tuple(node.attrs["input_size"]) == tuple(node.attrs["output_size"])
    return False


def _described(group: tuple[Node, ...], graph: Graph) -> tuple[str, dict[str, str]]:
    """Kind and numbers in words of a layer, which is one node or a chain of small ones."""
    parts = [node for node in group if node.kind not in _PLUMBING]
    if len(parts) <= 1:
        return _kind(group[-1], graph), _numbers(group[-1], graph)
    inner = [_step(node, graph) for node in parts]
    pools = [node for node in parts if node.kind in ("max_pool", "avg_pool")]
    if not pools:
        pointwise = all(node.kind in _POINTWISE for node in parts)
        return ("activation" if pointwise else "function"), {"function": ", ".join(inner)}
    at = parts.index(pools[0])
    numbers = _numbers(pools[0], graph)
    around = {"before": inner[:at], "then": inner[at + 1 :]}
    return pools[0].kind, numbers | {when: ", ".join(steps) for when, steps in around.items() if steps}


def _step(node: Node, graph: Graph) -> str:
    """One small operation in words: `tanh`, `mul by 1.7159`, `add a learned tensor`."""
    if node.kind == "activation" or node.kind not in ("mul", "add", "elementwise"):
        return " ".join([node.op.lower(), *(f"{k} {v}" for k, v in _numbers(node, graph).items() if k != "function")])
    other = {"parameter": "a learned tensor", "constant": "a fixed tensor"}
    others = [other.get(graph[name].kind, "a computed tensor") for name in node.inputs if not graph[name].live]
    return " ".join([node.op.lower(), *others, *_scalars(node, graph)])


def _scalars(node: Node, graph: Graph) -> list[str]:
    given = graph.fx_node(node.name).args
    return [f"by {v:.6g}" for v in given if isinstance(v, int | float) and not isinstance(v, bool)]


def _kind(node: Node, graph: Graph) -> str:
    whole = node.shape is not None and math.prod(node.shape[1:]) == 1
    if not whole or not node.inputs:
        return node.kind
    before = graph[node.inputs[0]].shape or ()
    if node.kind == "adaptive_avg_pool":
        return "global_avg_pool"
    if node.kind == "avg_pool":
        unpadded = all(pads == (0, 0) for pads in node.attrs["padding"])
        return "global_avg_pool" if unpadded and tuple(node.attrs["kernel"]) == before[1:] else node.kind
    if node.kind == "mean":
        return "global_avg_pool" if node.attrs["dims"] == (2, 3) and len(before) == 3 else node.kind
    return node.kind


def _numbers(node: Node, graph: Graph) -> dict[str, str]:
    """What distinguishes a layer from others of its kind; what only follows from its input is left out."""
    a, kind = node.attrs, _kind(node, graph)
    if kind == "global_avg_pool":
        return {}
    if kind == "input":
        return {"size": listed(node.shape or ())}
    if kind in ("conv", "conv_transpose"):
        depthwise = a["groups"] == a["in_channels"] > 1
        width = f"{a['out_channels'] // a['in_channels']} a map" if depthwise else str(a["out_channels"])
        numbers = _window(a) | {"groups": "depthwise" if depthwise else str(a["groups"]), "width": width}
        defaults = {"dilation": "1", "groups": "1"}
        bias = {} if a["bias"] else {"bias": "none"}
        return {k: v for k, v in numbers.items() if defaults.get(k) != v} | bias
    if kind == "linear":
        return {"width": str(a["out_features"])} | ({} if a["bias"] else {"bias": "none"})
    if kind in ("max_pool", "avg_pool"):
        window = {k: v for k, v in _window(a).items() if (k, v) not in (("padding", "0"), ("dilation", "1"))}
        divisor = {} if a["divisor"] is None else {"divisor": str(a["divisor"])}
        return window | ({"rounding": "up"} if _rounds_up(node, graph) else {}) | divisor
    if kind.startswith("adaptive_"):
        return {"output": listed(a["output_size"])}
    if kind == "activation":
        return {"function": node.op.lower().removesuffix("_")} | _other_numbers(node, graph)
    if kind in _CONSTANTS:
        given = _settings(node, graph)
        found = {name: given.get(theirs, default) for name, theirs, default in _CONSTANTS[kind]}
        affine = {} if a.get("affine", True) else {"affine": "no"}
        return {name: f"{value:g}" for name, value in found.items() if value is not None} | affine
    if kind == "dropout":
        return {"rate": f"{a['p']:g}"}
    if kind in ("add", "mul", "elementwise"):
        step = _step(node, graph)
        return {"operation": step} if step not in ("add", "mul", "iadd", "imul") else {}
    if kind == "matmul":
        return {}
    if kind == "attention":
        return {"heads": str(a["heads"])} | ({"width": str(a["embed_dim"])} if "embed_dim" in a else {})
    return {k: _plain(v) for k, v in a.items() if v is not False}


def _rounds_up(node: Node, graph: Graph) -> bool:
    """Whether a pooling window that starts inside hangs over the end, at this size of image."""
    a, before = node.attrs, graph[node.inputs[0]].shape or ()
    extents = zip(before[1:], a["kernel"], a["stride"], a["padding"], a["dilation"])
    return a["ceil_mode"] and any((n + sum(pads) - d * (k - 1) - 1) % s for n, k, s, pads, d in extents)


def _other_numbers(node: Node, graph: Graph) -> dict[str, str]:
    """Slopes and bounds of an activation, where they are not torch's own."""
    given = _settings(node, graph)
    known = {"negative_slope": 0.01, "alpha": 1.0, "approximate": "none"}
    return {k: str(given[k]) for k, usual in known.items() if k in given and given[k] != usual}


def _settings(node: Node, graph: Graph) -> dict[str, Any]:
    """A layer's own settings, of the module or of the call."""
    call = graph.fx_node(node.name)
    if call.op == "call_module":
        return vars(graph.model.get_submodule(node.module))
    if node.op in _POSITIONAL:
        return dict(zip(_POSITIONAL[node.op].split(), call.args)) | dict(call.kwargs)
    return bind(node.op, call.args, dict(call.kwargs))


def _window(a: Mapping[str, Any]) -> dict[str, str]:
    sides = [str(x) if x == y else f"{x}+{y}" for x, y in a["padding"]]
    numbers = {"kernel": listed(a["kernel"]), "stride": _one(a["stride"]), "padding": _one(sides)}
    return numbers | {"dilation": _one(a["dilation"])}


def _one(values: Any) -> str:
    """A number for each axis as one if they agree: `2`, `2x1`."""
    return str(values[0]) if len(set(values)) == 1 else listed(values)


def _plain(value: Any) -> str:
    return str(value).replace("'", "")


def _worst(size: Any) -> float | None:
    """The larger of height and width."""
    return max(size) if isinstance(size, tuple) else size


# ---------------------------------------------------------------------------------------------------------------
# Two lists of layers side by side

_GAP = 1000
_IMPOSSIBLE = 2 * _GAP + 1  # dearer than two gaps
_REACH = 4  # places that a layer may stand apart and still count as moved


def _cost(a: Layer, b: Layer) -> int:
    """What it costs to call two layers the same one: 0 if they are."""
    if a.kind != b.kind:
        family = _FAMILIES.get(a.kind)
        return 1200 if family and family == _FAMILIES.get(b.kind) else _IMPOSSIBLE
    return min(900, 250 * len(_labels(a, b)))


def _aligned(a: tuple[Layer, ...], b: tuple[Layer, ...]) -> list[tuple[int | None, int | None]]:
    """Pairs of indices, None for a gap, at the least total cost."""
    kinds_a, ids_a = _distinct(a)
    kinds_b, ids_b = _distinct(b)
    table = np.array([[_cost(x, y) for y in kinds_b] for x in kinds_a], dtype=np.int32)
    costs = table[np.ix_(ids_a, ids_b)]
    for values in (
        ([layer.name for layer in a], [layer.name for layer in b]),
        ([s.extent for s in a], [s.extent for s in b]),
    ):
        known = {value: i for i, value in enumerate(dict.fromkeys(values[0] + values[1]))}
        x, y = (np.array([known[value] for value in side]) for side in values)
        costs += 20 * (x[:, None] != y[None, :])
    n, m = costs.shape
    best = np.zeros((n + 1, m + 1), dtype=np.int32)
    ramp = _GAP * np.arange(m + 1, dtype=np.int32)
    best[0] = ramp
    for i in range(1, n + 1):
        row = best[i - 1] + _GAP
        np.minimum(row[1:], best[i - 1, :-1] + costs[i - 1], out=row[1:])
        best[i] = np.minimum.accumulate(row - ramp) + ramp
    pairs: list[tuple[int | None, int | None]] = []
    i, j = n, m
    while i or j:
        if i and j and best[i, j] == best[i - 1, j - 1] + costs[i - 1, j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and best[i, j] == best[i - 1, j] + _GAP:
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]


def _distinct(layers: tuple[Layer, ...]) -> tuple[list[Layer], np.ndarray]:
    first: dict[tuple[str, ...], int] = {}
    examples: list[Layer] = []
    for layer in layers:
        if layer.key not in first:
            first[layer.key] = len(examples)
            examples.append(layer)
    return examples, np.array([first[layer.key] for layer in layers])


Row = dict[str, Any]


def _rows(a: Side, b: Side) -> tuple[list[Row], list[Pair]]:
    """The rows, with the names, words and sizes of both sides kept apart so that they can be mirrored; all pairs."""
    pairs = _aligned(a.layers, b.layers)
    partner = {i: j for i, j in pairs if i is not None and j is not None}
    reverse = {j: i for i, j in partner.items()}
    moves = _moves(pairs, a.layers, b.layers)
    rows: list[Row] = []
    found: list[Pair] = []
    params = macs = moving = 0
    for at, (i, j) in enumerate(pairs):
        x = a.layers[i] if i is not None else None
        y = b.layers[j] if j is not None else None
        params += (y.params if y else 0) - (x.params if x else 0)
        macs += (y.macs if y else 0) - (x.macs if x else 0)
        row: Row | None = None
        if at in moves:
            row = moves[at]
        elif x is None or y is None:
            row = {"what": "missing", "words": (x.words if x else ABSENT, y.words if y else ABSENT)}
        elif x.key != y.key:
            row = _changed(x, y)
        elif _rewired(x, y, partner, reverse):
            row = {"what": "wiring", "words": (_reads(x, a), _reads(y, b))}
        if row:
            place = {"names": (x.name if x else None, y.name if y else None)}
            place["fields"] = (x.field if x else None, y.field if y else None)
            rows.append({"params": 0, "macs": 0, **place, **row})
            moving = len(rows) - 1 if at in moves else moving
        own = moving if at in moves else len(rows) - 1
        found.append(Pair(x, y, own if row or at in moves else None))
        if rows:
            rows[-1]["params"] += params
            rows[-1]["macs"] += macs
            params = macs = 0
    return rows, found


def _changed(x: Layer, y: Layer) -> Row:
    if x.kind != y.kind:
        return {"what": _FAMILIES[x.kind], "words": (x.words, y.words)}
    labels = _labels(x, y)
    given = [[side.numbers.get(label, UNSAID.get(label, ABSENT)) for label in labels] for side in (x, y)]
    if len(labels) == 1:
        return {"what": "activation" if labels == ["function"] else labels[0], "words": (given[0][0], given[1][0])}
    return {
        "what": ", ".join(labels),
        "words": tuple(", ".join(f"{label} {value}" for label, value in zip(labels, side)) for side in given),
    }


def _labels(x: Layer, y: Layer) -> list[str]:
    """The numbers in which two layers of one kind differ."""
    return [k for k in dict.fromkeys([*x.numbers, *y.numbers]) if x.numbers.get(k) != y.numbers.get(k)]


def _rewired(x: Layer, y: Layer, partner: dict[int, int], reverse: dict[int, int]) -> bool:
    """Whether two equal layers read different layers; a source without a partner has a row of its own."""
    if not all(i in partner for i in x.sources) or not all(j in reverse for j in y.sources):
        return False
    theirs = [partner[i] for i in x.sources]
    return (sorted(theirs) if x.commutes else theirs) != list(y.sources)


def _reads(layer: Layer, side: Side) -> str:
    return "reads " + ", ".join(side.layers[i].name for i in layer.sources)


def _moves(
    pairs: list[tuple[int | None, int | None]], a: tuple[Layer, ...], b: tuple[Layer, ...]
) -> dict[int, Row | None]:
    """Layers that are missing here and there again a few places on were moved: one row for all gaps of such a stretch,
    at its first pair, and None at the other gaps."""

    def lone(at: int) -> tuple[int, Layer] | None:
        """Which of the two has a layer in a gap, and the layer."""
        i, j = pairs[at]
        if i is not None and j is not None:
            return None
        return (0, a[i]) if i is not None else (1, b[j])

    found: list[tuple[int, int, tuple[Layer, Layer]]] = []
    taken: set[int] = set()
    for p in range(len(pairs)):
        here = lone(p)
        if here is None or p in taken:
            continue
        choices = []
        for q in range(p + 2, min(p + 1 + _REACH, len(pairs))):
            there = lone(q)
            passed = any(None not in pair for pair in pairs[p:q])
            if there and passed and q not in taken and there[0] != here[0] and there[1].kind == here[1].kind:
                choices.append((there[1].key != here[1].key, q, there[1]))
        if choices:
            _, q, layer = min(choices, key=lambda choice: choice[:2])
            taken |= {p, q}
            found.append((p, q, (here[1], layer) if here[0] == 0 else (layer, here[1])))
    moves: dict[int, Row | None] = {}
    while found:
        p, q, first = found.pop(0)
        moved = [first]
        while found and found[0][0] < q:
            _, end, other = found.pop(0)
            q = max(q, end)
            moved.append(other)
        words = []
        for side, layers in enumerate((a, b)):
            stretch = [layers[pair[side]] for pair in pairs[p : q + 1] if pair[side] is not None]
            changed = [two[side].name for two in moved if two[0].key != two[1].key]
            words.append(", ".join(s.words if s.name in changed else s.kind.replace("_", " ") for s in stretch))
        labels = dict.fromkeys(label for two in moved for label in _labels(*two))
        row = {"what": ", ".join(["order", *labels]), "words": tuple(words)}
        row |= {"names": tuple(s.name for s in first), "fields": tuple(s.field for s in first)}
        moves |= {at: None for at in taken if p < at <= q} | {p: row}
    return moves


def _mirrored(row: Row) -> Row:
    pairs = {key: row[key][::-1] for key in ("names", "words", "fields")}
    return {**row, **pairs, "params": -row["params"], "macs": -row["macs"]}


def _difference(row: Row) -> Difference:
    names = list(dict.fromkeys(name for name in row["names"] if name is not None))
    return Difference(" / ".join(names), row["what"], *row["words"], row["params"], row["macs"], row["fields"])


# ---------------------------------------------------------------------------------------------------------------
# Words


def _size(field: float | None) -> object:
    return "whole image" if field == math.inf else field


def _signed(number: int) -> str:
    return f"{number:+,}" if number else "0"


def _arrow(field: tuple[float | None, float | None]) -> str:
    x, y = map(_size, field)
    return f"{ABSENT if x is None else x} -> {ABSENT if y is None else y}" if x != y else str(x or "")
