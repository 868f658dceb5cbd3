"""What a network costs: parameters, multiply-adds and activations of each operation, for one image.

Parameters   every tensor of `model.parameters()`, frozen or not; a shared one is counted once, where it is used
             first; one that forward never reads has a row of kind `unused`. The rows add up to the model.
MACs         one multiply-add = 1 MAC = 2 FLOP. Counted: the products of convolutions, linear layers, matrix products
             and attention. Not counted: biases, normalisation, activation functions, pooling, additions.
Activations  values that an operation computes anew for the image. Views (flatten, reshape, permute, slices), identities
             and dropout in evaluation compute none, and a tensor that does not depend on the image is no activation;
             an operation that works in place counts like any other. The image itself is not counted, and neither
             are the scores inside an attention layer, which fused kernels never store. `bytes` = 4 a value (float32).
Connections  LeCun et al. 1998: the inputs that each unit sums, plus its bias; see `connections`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

from torch import nn

from cnnlib import tables
from cnnlib.errors import listed
from cnnlib.graph import KINDS, Graph, Node, trace

BYTES_PER_VALUE = 4


def _numel(shape: Iterable[int] | None) -> int:
    return math.prod(shape or ())


def _conv_macs(node: Node, graph: Graph) -> int:
    """Each output value sums kernel x (input channels / groups) products."""
    a = node.attrs
    return _numel(node.shape) * math.prod(a["kernel"]) * a["in_channels"] // a["groups"]


def _conv_transpose_macs(node: Node, graph: Graph) -> int:
    """Each input value is spread over kernel x (output channels / groups) products."""
    a = node.attrs
    image = graph[node.inputs[0]].shape
    return _numel(image) * math.prod(a["kernel"]) * a["out_channels"] // a["groups"]


def _linear_macs(node: Node, graph: Graph) -> int:
    return _numel(node.shape) * node.attrs["in_features"]


def _matmul_macs(node: Node, graph: Graph) -> int:
    products = node.attrs["products"]
    if products is None:
        raise ValueError(
            f"{node.name}: no formula for einsum {node.attrs['equation']!r}; two operands without '...' have one"
        )
    return products


def _attention_macs(node: Node, graph: Graph) -> int:
    """Scores (queries x keys) and their sums over the values; the projections of a layer have rows of their own."""
    a = node.attrs
    query, key, value = a["query"], a["key"], a["value"]
    return _numel(query[:-1]) * key[-2] * (query[-1] + value[-1])


# The table: kind -> multiply-adds. What is free multiplies nothing that the convention counts.
MACS: dict[str, Callable[[Node, Graph], int]] = {
    "conv": _conv_macs,
    "conv_transpose": _conv_transpose_macs,
    "linear": _linear_macs,
    "matmul": _matmul_macs,
    "attention": _attention_macs,
}
FREE = frozenset(KINDS) - {*MACS, "input", "output", "parameter", "recurrent", "other"}
# No new values: the result is the input in another arrangement.
VIEWS = frozenset(
    ["dropout", "identity", "split", "item", "slice", "expand", "flatten", "reshape", "permute", "constant"]
)


def _window_sums(node: Node, graph: Graph) -> int:
    return _numel(node.shape) * math.prod(node.attrs["kernel"])


def _all_inputs(node: Node, graph: Graph) -> int:
    return _numel(graph[node.inputs[0]].shape)


def _adaptive_sums(node: Node, graph: Graph) -> int:
    """Windows i of n inputs and m outputs run from floor(i n/m) to ceil((i + 1) n/m)."""
    per_map = 1
    for n, m in zip(node.attrs["input_size"], node.attrs["output_size"]):
        per_map *= sum(-(-(i + 1) * n // m) - i * n // m for i in range(m))
    return _numel(node.shape) // _numel(node.attrs["output_size"]) * per_map


def _added_terms(node: Node, graph: Graph) -> int:
    """A second computed term, or a trainable bias, is one more input of each unit; a constant is none."""
    terms = sum(graph[name].live or graph[name].kind == "parameter" for name in node.inputs)
    return _numel(node.shape) * max(terms - 1, 0)


def _with_bias(products: Callable[[Node, Graph], int]) -> Callable[[Node, Graph], int]:
    return lambda node, graph: products(node, graph) + _numel(node.shape) * bool(node.attrs["bias"])


CONNECTIONS: dict[str, Callable[[Node, Graph], int]] = {
    "conv": _with_bias(_conv_macs),
    "conv_transpose": _with_bias(_conv_transpose_macs),
    "linear": _with_bias(_linear_macs),
    "matmul": _matmul_macs,
    "attention": _attention_macs,
    "max_pool": _window_sums,
    "avg_pool": _window_sums,
    "adaptive_max_pool": _adaptive_sums,
    "adaptive_avg_pool": _adaptive_sums,
    "mean": _all_inputs,
    "sum": _all_inputs,
    "extremum": _all_inputs,
    "add": _added_terms,
}


@dataclass(frozen=True)
class CostRow:
    """One operation: parameters, multiply-adds, activation values and connections, for one image of the given shape."""

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    params: int
    macs: int
    activations: int
    connections: int

    @property
    def bytes(self) -> int:
        """Memory of the activations in float32."""
        return self.activations * BYTES_PER_VALUE


@dataclass(frozen=True)
class Totals:
    """Sums over some rows of a cost table."""

    params: int = 0
    macs: int = 0
    activations: int = 0
    connections: int = 0

    @property
    def bytes(self) -> int:
        """Memory of the activations in float32."""
        return self.activations * BYTES_PER_VALUE

    def __add__(self, other: Totals | CostRow) -> Totals:
        return Totals(
            self.params + other.params,
            self.macs + other.macs,
            self.activations + other.activations,
            self.connections + other.connections,
        )


@dataclass(frozen=True, repr=False)
class CostTable(tables.NamedRows[CostRow]):
    """The rows of `cost`, their sums and sub-totals; iterates its rows, `table[name]` is one of them."""

    network: str
    input_shape: tuple[int, int, int]
    rows: tuple[CostRow, ...]

    @property
    def params(self) -> int:
        return sum(row.params for row in self.rows)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def activations(self) -> int:
        return sum(row.activations for row in self.rows)

    @property
    def bytes(self) -> int:
        """Memory of the activations in float32."""
        return sum(row.bytes for row in self.rows)

    @property
    def connections(self) -> int:
        return sum(row.connections for row in self.rows)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Operations without weights of which it is not known whether they multiply; their macs stand as 0."""
        return tuple(row.name for row in self.rows if row.kind == "other")

    def total(self, *kinds: str) -> Totals:
        """Sums over the rows of these kinds, of all rows if none is named; a kind that the network lacks adds nothing."""
        return sum((row for row in self.rows if not kinds or row.kind in kinds), Totals())

    def by_kind(self) -> dict[str, Totals]:
        """Sub-totals of each kind of operation, in the order of first use."""
        return self._grouped(lambda row: row.kind)

    def by_stage(self, depth: int = 1) -> dict[str, Totals]:
        """Sub-totals of each stage: the first `depth` components of the rows' names."""
        return self._grouped(lambda row: ".".join(row.name.split(":")[0].split(".")[:depth]))

    def _grouped(self, key: Callable[[CostRow], str]) -> dict[str, Totals]:
        sums: dict[str, Totals] = {}
        for row in self.rows:
            sums[key(row)] = sums.get(key(row), Totals()) + row
        return sums

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values: network, input shape, rows and totals."""
        return {
            "network": self.network,
            "input_shape": list(self.input_shape),
            "rows": [{**asdict(row), "bytes": row.bytes} for row in self.rows],
            "totals": {**asdict(self.total()), "bytes": self.bytes},
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    _COLUMNS = ("name", "kind", "output_shape", "params", "macs", "activations")

    def _lines(self) -> list[tuple[object, ...]]:
        lines = [tuple(getattr(row, column) for column in self._COLUMNS) for row in self.rows]
        return [*lines, ("total", "", None, self.params, self.macs, self.activations)]

    def _title(self) -> str:
        missing = f"; without the macs of {', '.join(self.uncounted)}" if self.uncounted else ""
        return f"{self.network} on {listed(self.input_shape)}, one image; macs = multiply-adds{missing}"

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[3:])

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[3:])


def _made_of_weights(node: Node, graph: Graph) -> bool:
    """Whether a fixed value is a parameter or computed from one."""
    if node.live:
        return False
    return node.kind == "parameter" or any(_made_of_weights(graph[name], graph) for name in node.inputs)


def _row(node: Node, graph: Graph, params: int) -> CostRow:
    weighted = params or any(_made_of_weights(graph[name], graph) for name in node.inputs)
    if node.kind not in MACS and node.kind not in FREE and weighted:
        raise ValueError(
            f"{node.name} ({node.op}, {listed(node.shape or ())}) has weights and no cost formula; "
            "write it from operations that have one, or add the formula to cnnlib.analysis.costs.MACS"
        )
    macs = MACS[node.kind](node, graph) if node.kind in MACS else 0
    links = CONNECTIONS[node.kind](node, graph) if node.live and node.kind in CONNECTIONS else 0
    new = 0 if node.kind in VIEWS or not node.live else _numel(node.shape)
    return CostRow(node.name, node.kind, node.shape, params, macs, new, links)


def _attention_rows(node: Node, sizes: dict[str, int]) -> Iterator[CostRow]:
    """A multi-head attention layer as its three steps: projections of the inputs, attention, projection of its result."""
    a = node.attrs
    width, bias = a["embed_dim"], a["bias"]
    query, key, value = a["query"], a["key"], a["value"]
    tokens = [_numel(shape[:-1]) for shape in (query, key, value)]
    macs = sum(n * shape[-1] * width for n, shape in zip(tokens, (query, key, value)))
    inside = sum(sizes[p] for p in node.params if ".out_proj." not in f".{p}")
    outside = sum(sizes[p] for p in node.params) - inside
    new = sum(tokens) * width
    yield CostRow(f"{node.name}.in_proj", "linear", (tokens[0], 3 * width), inside, macs, new, macs + new * bias)
    products = 2 * tokens[0] * (tokens[1] + a["extra"]) * width
    out = tokens[0] * width
    yield CostRow(node.name, "attention", (tokens[0], width), 0, products, out, products)
    macs = out * width
    yield CostRow(f"{node.name}.out_proj", "linear", node.shape, outside, macs, out, macs + out * bias)


def _rows(graph: Graph) -> Iterator[CostRow]:
    sizes = {name: p.numel() for name, p in graph.model.named_parameters()}
    for node in graph:
        if node.kind in ("input", "output", "parameter") or (node.kind == "constant" and not node.inputs):
            continue
        if node.kind == "attention" and "embed_dim" in node.attrs:
            yield from _attention_rows(node, sizes)
        else:
            yield _row(node, graph, sum(sizes[p] for p in node.params))
    for name in graph.unused:
        yield CostRow(name, "unused", None, sizes[name], 0, 0, 0)


def costs_of(graph: Graph) -> CostTable:
    """The costs of a traced network; ValueError for an operation that has no formula."""
    return CostTable(type(graph.model).__name__, graph.input_shape, tuple(_rows(graph)))


def cost(model: nn.Module, input_shape: tuple[int, int, int]) -> CostTable:
    """Parameters, multiply-adds and activations of each operation, for one image of `input_shape` = (C, H, W).

    The network is read in evaluation mode and left as it was. ValueError for a shape that does not fit, and for an
    operation that has no formula.
    """
    return costs_of(trace(model, input_shape))


@dataclass(frozen=True)
class Connections:
    """LeCun's count: `total`, and `by_stage` by the first component of the names."""

    total: int
    by_stage: dict[str, int]

    def __int__(self) -> int:
        return self.total


def connections(model: nn.Module, input_shape: tuple[int, int, int]) -> Connections:
    """How many connections a network has (LeCun et al. 1998, section II-B): inputs that each unit sums, plus its bias.

    A pooling unit has one for each value of its window, an addition one for each further term, and the function that
    a unit applies to its sum (scale, squash, normalise) none.
    """
    table = cost(model, input_shape)
    stages = {name: totals.connections for name, totals in table.by_stage().items()}
    return Connections(table.connections, {name: n for name, n in stages.items() if n})
