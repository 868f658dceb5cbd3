"""The paths through a residual network: where its blocks are, how many paths there are, which of them carry gradient.

paper     Veit, Wilber, Belongie 2016, Residual Networks Behave Like Ensembles of Relatively Shallow Networks,
          arXiv:1605.06431: unravelled view (section 3), distribution of path lengths (section 5)
follows   a block is an addition of a skip and a branch that computes; a path enters the branch or takes the skip in each
          block, so n blocks in series have 2^n paths, and binomially many of each length
differs   blocks are found in the traced graph, so that any network has them; blocks beside or inside each other are
          counted too

With y = x + F(x) from block to block, the answer is the sum over the paths only where everything is linear; otherwise a
path says through which blocks a value passed. Gradients are the sum over the paths in every network (`path_gradients`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cnnlib.graph import Graph, Node

_WEIGHTED = frozenset(["conv", "conv_transpose", "linear", "matmul", "attention", "recurrent", "embedding"])
NORMS = frozenset(["batch_norm", "layer_norm", "group_norm", "instance_norm", "local_response_norm"])
_SAME = frozenset(["identity", "copy", "dropout"])
# What a skip may do besides a projection: nothing that bends or mixes values.
_POOLS = frozenset(["max_pool", "avg_pool", "adaptive_avg_pool", "upsample"])
_PICKS = frozenset(["pad", "slice", "item", "split", "expand", "cat"])
_ARRANGES = frozenset(["flatten", "reshape", "permute", "roll", "flip", "pixel_shuffle", "pixel_unshuffle"])
_CARRIES = _SAME | NORMS | _POOLS | _PICKS | _ARRANGES | {"add", "mul"}  # sums and products with fixed numbers
_DIFFERENCES = frozenset(["sub", "isub", "subtract"])


@dataclass(frozen=True)
class ResidualBlock:
    """One block y = skip(x) + F(x), in names of the graph's nodes.

    `add` is the addition; `source` is x; `skip` and `residual` are what is added; `branch` are the operations of F and
    `shortcut` those of the skip. `kind` of the skip: "identity", "padding" (shape changed without weights),
    "projection", or "block" (another block, whose sum is carried on). `shape_in` and `shape_out` are those of x and y.
    `skip_after` and `branch_after` name the block before, on the way back from the skip and from the branch.
    """

    name: str
    add: str
    source: str
    skip: str
    residual: str
    branch: tuple[str, ...]
    shortcut: tuple[str, ...]
    kind: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    skip_after: str | None
    branch_after: str | None

    @property
    def keeps_shape(self) -> bool:
        """Whether F's result has the shape of x, so that F can stand in another block of that shape."""
        return self.shape_in == self.shape_out


class Ways:
    """What lies between two nodes of a graph, as far as it depends on the image."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = {node.name: i for i, node in enumerate(graph)}
        self.depth: dict[str, int] = {}
        self.last_common: dict[str, str] = {}
        for node in graph:
            sources = self.sources(node)
            if node.kind == "input" or not sources:
                self.depth[node.name] = 0
                continue
            common = sources[0]
            for other in sources[1:]:
                common = self._meet(common, other)
            self.last_common[node.name] = common
            self.depth[node.name] = self.depth[common] + 1

    def sources(self, node: Node) -> list[str]:
        return [name for name in dict.fromkeys(node.inputs) if self.graph[name].live]

    def from_one(self, name: str) -> bool:
        """Whether the operation reads one value that depends on the image, and reads it once."""
        return sum(self.graph[i].live for i in self.graph[name].inputs) == 1

    def _meet(self, a: str, b: str) -> str:
        """The last node that all ways from the image to `a` and to `b` pass."""
        while a != b:
            if self.depth[a] < self.depth[b]:
                a, b = b, a
            a = self.last_common[a]
        return a

    def between(self, source: str, end: str) -> tuple[str, ...]:
        """The nodes on the ways from `source` (not counted) to `end`, in the order of the graph."""
        found: set[str] = set()
        waiting = [end] if end != source else []
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(s for s in self.sources(self.graph[name]) if s != source)
        return tuple(sorted(found, key=self.order.__getitem__))


# How much stands on a side of an addition; the lesser side is the skip.
_NOTHING, _BLOCKS, _PROJECTION, _COMPUTES = range(4)


def residual_blocks(graph: Graph) -> tuple[ResidualBlock, ...]:
    """The residual blocks of any traced network, in the order in which they run; none in a plain network.

    An addition of two values that come from the same x is a block if one of them is carried (x itself, padded, pooled,
    normalised, or projected by one layer without a non-linear function) and the other computes more than that.
    """
    ways = Ways(graph)
    found: dict[str, dict[str, Any]] = {}
    for node in graph:
        sides = ways.sources(node)
        if not node.live or node.kind != "add" or len(sides) != 2 or len(node.inputs) != 2:
            continue
        source = ways.last_common[node.name]
        regions = {side: ways.between(source, side) for side in sides}
        amounts = {side: _amount(graph, ways, source, side, regions[side], found) for side in sides}
        skip, residual = sorted(sides, key=lambda side: amounts[side])
        if amounts[skip] == amounts[residual] or amounts[skip] == _COMPUTES:
            continue
        subtracted = {**dict.fromkeys(_DIFFERENCES, 1), "rsub": 0}.get(node.op)
        if subtracted is not None and skip == sides[subtracted]:
            continue
        found[node.name] = {
            "add": node.name,
            "source": source,
            "skip": skip,
            "residual": residual,
            "branch": regions[residual],
            "shortcut": regions[skip],
            "kind": _kind(graph, amounts[skip], regions[skip]),
            "shape_in": graph[source].shape,
            "shape_out": node.shape,
        }
    names = _names(graph, found)

    def before(name: str) -> str | None:
        while name not in names:
            if name not in ways.last_common:
                return None
            name = ways.last_common[name]
        return names[name]

    return tuple(
        ResidualBlock(
            name=names[add], **block, skip_after=before(block["skip"]), branch_after=before(block["residual"])
        )
        for add, block in found.items()
    )


def _amount(
    graph: Graph, ways: Ways, source: str, end: str, region: tuple[str, ...], blocks: dict[str, dict[str, Any]]
) -> int:
    if not any(name in blocks for name in region):
        weighted = sum(graph[name].kind in _WEIGHTED for name in region)
        if all(graph[name].kind in _CARRIES | _WEIGHTED and ways.from_one(name) for name in region):
            return (_NOTHING, _PROJECTION)[weighted] if weighted <= 1 else _COMPUTES
        return _COMPUTES
    # On from block to block by their skips, back to the source?
    name = end
    while name != source:
        if name in blocks:
            name = blocks[name]["skip"]
        elif graph[name].kind in _CARRIES and ways.from_one(name):
            (name,) = ways.sources(graph[name])
        else:
            return _COMPUTES
    return _BLOCKS


def _kind(graph: Graph, amount: int, region: tuple[str, ...]) -> str:
    if amount == _NOTHING:
        return "identity" if all(graph[name].kind in _SAME for name in region) else "padding"
    return {_PROJECTION: "projection", _BLOCKS: "block"}[amount]


def _names(graph: Graph, found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The path of the module that adds, where it adds once only; else the addition's own name."""
    modules = [graph[add].module for add in found]
    return {add: m if m and modules.count(m) == 1 else add for add, m in zip(found, modules)}


# ---------------------------------------------------------------------------------------------------------------
# Counting paths


def path_lengths(blocks: int | Graph) -> list[int]:
    """How many paths pass through k = 0, 1, ... residual branches: the law of so many blocks in series, or of a network.

    >>> path_lengths(3)
    [1, 3, 3, 1]
    """
    if isinstance(blocks, Graph):
        return _lengths(blocks)
    if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 0:
        raise ValueError(f"blocks must be a whole number of at least 0, or a traced network, got {blocks!r}")
    return [math.comb(blocks, k) for k in range(blocks + 1)]


def share_of_paths(blocks: int | Graph, low: int, high: int) -> float:
    """The share of all paths that pass through `low` to `high` residual branches, both ends counted.

    >>> round(share_of_paths(54, 19, 35), 4)  # ResNet-110; section 5 prints "more than 95 %"
    0.9802
    """
    counts = path_lengths(blocks)
    if not 0 <= low <= high < len(counts):
        raise ValueError(
            f"lengths must be 0 <= low <= high <= {len(counts) - 1}, the number of blocks, got {low} and {high}"
        )
    return sum(counts[low : high + 1]) / sum(counts)


def central_lengths(blocks: int | Graph, share: float = 0.95) -> tuple[int, int]:
    """The fewest neighbouring lengths, first and last, that hold at least this `share` of the paths.

    >>> central_lengths(54)
    (20, 34)
    """
    return narrowest(path_lengths(blocks), share)


def narrowest(amounts: list[float] | list[int], share: float) -> tuple[int, int]:
    """First and last of the fewest neighbours that hold at least this `share` of all amounts."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share!r}; 0.95 is 95 %")
    total = sum(amounts)
    for width in range(1, len(amounts) + 1):
        sums = [sum(amounts[i : i + width]) for i in range(len(amounts) - width + 1)]
        # Rounding may leave the sum of all a little below the whole.
        if max(sums) >= share * total or width == len(amounts):
            i = sums.index(max(sums))
            return i, i + width - 1
    raise AssertionError("unreachable: the widest range holds all")


def _chain(graph: Graph) -> tuple[dict[str, ResidualBlock], str | None]:
    """The blocks by name, and the last one; ValueError for a block that is not on the way from image to answer."""
    blocks = {block.name: block for block in residual_blocks(graph)}
    by_add = {block.add: block for block in blocks.values()}
    ways = Ways(graph)
    name = graph.output.inputs[0]
    while name not in by_add and name in ways.last_common:
        name = ways.last_common[name]
    last = by_add[name].name if name in by_add else None
    reached: set[str] = set()
    waiting = [last]
    while waiting:
        block = waiting.pop()
        if block is not None and block not in reached:
            reached.add(block)
            waiting += [blocks[block].skip_after, blocks[block].branch_after]
    for block in blocks:
        if block not in reached:
            raise ValueError(
                f"block {block} stands on one of several branches that are joined by something else than a skip, so "
                "the paths through the whole network have no single length; trace the part that holds it by itself"
            )
    return blocks, last


def _lengths(graph: Graph) -> list[int]:
    blocks, _ = _chain(graph)
    counts: dict[str | None, list[int]] = {None: [1]}
    last: str | None = None
    for last, block in blocks.items():
        skip, branch = counts[block.skip_after], [0, *counts[block.branch_after]]
        width = max(len(skip), len(branch))
        counts[last] = [sum(c[k] for c in (skip, branch) if k < len(c)) for k in range(width)]
    return counts[_chain(graph)[1]]


MOST_PATHS = 4096


def unrolled(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Every path through a residual network, as the blocks whose branch it enters (figure 1), shorter paths first.

    ValueError for more than 4096 paths, which are 12 blocks in series; `path_lengths` counts any number.
    """
    blocks, last = _chain(graph)
    total = sum(_lengths(graph))
    if total > MOST_PATHS:
        raise ValueError(
            f"{len(blocks)} blocks have {total:,} paths, and at most {MOST_PATHS:,} are listed; path_lengths counts them"
        )
    order = {name: i for i, name in enumerate(blocks)}

    def ways(name: str | None) -> Iterator[tuple[str, ...]]:
        if name is None:
            yield ()
            return
        yield from ways(blocks[name].skip_after)
        for path in ways(blocks[name].branch_after):
            yield (*path, name)

    return tuple(sorted(ways(last), key=lambda path: (len(path), [order[name] for name in path])))


def in_series(graph: Graph) -> tuple[ResidualBlock, ...]:
    """The blocks of a network whose blocks follow each other; ValueError for none, and for blocks beside each other."""
    blocks, _ = _chain(graph)
    if not blocks:
        raise ValueError(
            f"{type(graph.model).__name__} has no residual block: no addition of a value that is carried and one that "
            "is computed from it"
        )
    before: str | None = None
    for block in blocks.values():
        if (block.skip_after, block.branch_after) != (before, before):
            raise ValueError(
                f"block {block.name} does not follow the block before it alone, so that a set of blocks is no single "
                "path; only blocks in series can be sampled"
            )
        before = block.name
    return tuple(blocks.values())


def random_sets(names: tuple[str, ...], size: int, draws: int, seed: int) -> list[frozenset[str]]:
    """`draws` different sets of `size` of the names, at random; all of them where there are no more.

    They depend on the seed and the size alone, so that it does not matter which other sizes are asked for.
    """
    if math.comb(len(names), size) <= draws:
        return [frozenset(chosen) for chosen in combinations(names, size)]
    generator = random.Random(seed * 1_000_003 + size)
    found: dict[frozenset[str], None] = {}
    while len(found) < draws:
        found[frozenset(generator.sample(names, size))] = None
    return list(found)
