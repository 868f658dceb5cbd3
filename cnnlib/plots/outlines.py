"""What a drawing of a network shows, read off its traced graph: stages, blocks, branches, and what is repeated.

Three steps, none of which needs to know the network:

1. Branches. A node that every path passes is a cut of the graph. Between two neighbouring cuts, the parts that hang
   together are branches of one fork, each decomposed in the same way (a series-parallel decomposition). What has no
   such structure stays a `Mesh` of operations and links. A concatenation of a list that was concatenated before, one
   shorter (DenseNet), counts as that concatenation and the new maps.
2. Units. A convolution and the normalisation and activation around it are one `Unit`.
3. Stages. The paths of the modules say what belongs together. Neighbours of the same structure are one `Entry` with
   a number of times; names, and how many maps a block reads, make no difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import nn

from cnnlib.graph import Graph, Node
from cnnlib.models.blocks import InputGuard

# Kinds that rearrange values and compute none; a drawing leaves them out.
_SILENT = frozenset(
    ["identity", "copy", "flatten", "reshape", "permute", "item", "expand", "input", "parameter", "constant", "output"]
)
_NORMS = {
    "batch_norm": "BN",
    "layer_norm": "LN",
    "group_norm": "GN",
    "instance_norm": "IN",
    "local_response_norm": "LRN",
}
_WINDOWS = {"max_pool": "max pool", "avg_pool": "avg pool"}
_ADAPTIVE = {"adaptive_max_pool": "max pool", "adaptive_avg_pool": "avg pool"}
_POOLS = frozenset([*_WINDOWS, *_ADAPTIVE, "mean", "extremum"])
_WEIGHTED = frozenset(["conv", "conv_transpose", "linear"])
_ACTIVATIONS = {
    **{name.lower(): name for name in ("ReLU", "ReLU6", "GELU", "SiLU", "ELU", "SELU", "CELU", "PReLU", "GLU")},
    **{"leakyrelu": "leaky ReLU", "leaky_relu": "leaky ReLU", "hardswish": "hard swish", "hardsigmoid": "hard sigmoid"},
}
MERGES = {"add": "added", "cat": "concatenated", "mul": "multiplied", "matmul": "multiplied as matrices"}

# A fork longer than this is no block: its main branch is drawn as stages, its other branches as what they read.
_LONG = 8


@dataclass(frozen=True)
class Unit:
    """One operation that a reader would call a layer, with the small ones `before` and `after` it (`BN`, `ReLU`).

    `kind` is a word of `operations.KINDS`; `width` the number of maps or units of the result, where the operation sets
    it; `detail` what else must be said of it (`12 heads`). `shape` is the result's, `nodes` are the graph's nodes in it.
    """

    kind: str
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int | str = 1
    width: int | None = None
    reads: int | None = None
    detail: str = ""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()
    path: tuple[str, ...] = ()

    def signature(self, widths: bool = True) -> tuple[object, ...]:
        """What makes two units the same to a reader; without `widths`, of the same form."""
        window = (self.kernel, self.stride, self.dilation)
        detail = self.detail if widths else re.sub(r"\d+", "n", self.detail)
        groups = self.groups if widths or isinstance(self.groups, str) else self.groups > 1
        return (self.kind, *window, groups, detail, self.before, self.after, self.width if widths else None)

    def words(self, widths: Sequence[int | None] | None = None) -> str:
        """`3×3, 64 /2`: kernel, width and stride; `widths` gives the width as a range instead."""
        widths = [w for w in (widths if widths is not None else [self.width]) if w is not None]
        width = "" if not widths else f"{min(widths)}–{max(widths)}" if min(widths) < max(widths) else f"{widths[0]}"
        stride = "×".join(map(str, self.stride if len(set(self.stride)) > 1 else self.stride[:1]))
        step = f" /{stride}" if stride not in ("", "1") else ""
        window = "×".join(map(str, self.kernel))
        if self.kind in ("conv", "conv_transpose"):
            up = self.kind == "conv_transpose"
            parts = [
                f"{window} depthwise" if self.groups == "depthwise" else f"{window} transposed" if up else window,
                "" if self.groups == "depthwise" else width,
                f"{self.groups} groups" if isinstance(self.groups, int) and self.groups > 1 else "",
                f"dilation {max(self.dilation)}" if set(self.dilation) - {1} else "",
            ]
            return ", ".join(filter(None, parts)) + (step.replace("/", "×") if up else step)
        if self.kind == "linear":
            return f"linear {width}"
        if self.kind in _WINDOWS:
            return f"{window} {_WINDOWS[self.kind]}{step}" if set(self.kernel) != {1} else f"every pixel{step}"
        return self.detail

    @property
    def label(self) -> str:
        return self.words()

    def text(self) -> str:
        """The unit with what stands before and after it, on one line."""
        return " ".join(filter(None, [*self.before, self.label, *self.after]))

    def units(self) -> Iterator[Unit]:
        yield self

    @property
    def names(self) -> tuple[str, ...]:
        return self.nodes


@dataclass(frozen=True)
class Fork:
    """Branches that start from one value and are merged by `merge`: `add`, `cat`, `mul`, or another kind.

    A branch is a series of units, forks and meshes; an empty one hands its input on. `merge` is "" where the branches
    are merged further down, together with others. `after` follows the merge.
    """

    branches: tuple[tuple[Unit | Fork | Mesh, ...], ...]
    merge: str
    detail: str = ""
    after: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()
    path: tuple[str, ...] = ()

    def signature(self, widths: bool = True) -> tuple[object, ...]:
        branches = tuple(tuple(item.signature(widths) for item in branch) for branch in self.branches)
        return ("fork", self.merge, self.detail, self.after, branches)

    def units(self) -> Iterator[Unit]:
        for branch in self.branches:
            for item in branch:
                yield from item.units()

    @property
    def names(self) -> tuple[str, ...]:
        inside = (name for branch in self.branches for item in branch for name in item.names)
        return (*inside, *self.nodes)


@dataclass(frozen=True)
class Mesh:
    """Units that are connected in no series-parallel way: `links` are pairs of positions in `parts`, -1 the input."""

    parts: tuple[Unit, ...]
    links: tuple[tuple[int, int], ...]
    after: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()
    path: tuple[str, ...] = ()

    def signature(self, widths: bool = True) -> tuple[object, ...]:
        return ("mesh", self.links, self.after, tuple(part.signature(widths) for part in self.parts))

    def units(self) -> Iterator[Unit]:
        yield from self.parts

    @property
    def names(self) -> tuple[str, ...]:
        return (*(name for part in self.parts for name in part.names), *self.nodes)


Item = Unit | Fork | Mesh


@dataclass(frozen=True)
class Block:
    """What one module computes, as a series. `name` is its path, `title` the name of its class, if it has its own."""

    name: str
    title: str
    items: tuple[Item, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.items[-1].shape

    @property
    def is_chain(self) -> bool:
        return all(isinstance(item, Unit) for item in self.items)

    def units(self) -> Iterator[Unit]:
        for item in self.items:
            yield from item.units()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for item in self.items for name in item.names)

    def signature(self, widths: bool = True) -> tuple[object, ...]:
        # Of a lone linear layer the input is the story: the first behind the maps holds most of the weights.
        alone = len(self.items) == 1 and isinstance(self.items[0], Unit) and self.items[0].kind == "linear"
        reads = self.items[0].reads if alone and widths else None
        return (reads, *(item.signature(widths) for item in self.items))

    @property
    def kind(self) -> str:
        """The kind that colours it: attention if there is any, else what most of its weights are in, else the first."""
        kinds = [unit.kind for unit in self.units()]
        if "attention" in kinds:
            return "attention"
        weighted = [kind for kind in kinds if kind in _WEIGHTED]
        if weighted:
            return max(dict.fromkeys(weighted), key=weighted.count)
        return next((k for k in kinds if k in _POOLS), kinds[0] if kinds else getattr(self.items[0], "merge", "other"))


@dataclass(frozen=True)
class Entry:
    """Blocks of one structure that follow each other. `reads` names what it reads where that is not the entry before."""

    blocks: tuple[Block, ...]
    reads: tuple[str, ...] = ()

    @property
    def block(self) -> Block:
        return self.blocks[0]

    @property
    def times(self) -> int:
        return len(self.blocks)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.blocks[-1].shape

    @property
    def growth(self) -> int | None:
        """How many maps each block adds to those that it reads, if it concatenates the two (DenseNet's k)."""
        last = self.block.items[-1]
        if len(self.block.items) > 1 or not isinstance(last, Fork) or last.merge != "cat" or () not in last.branches:
            return None
        new = [branch for branch in last.branches if branch]
        return sum(branch[-1].shape[0] for branch in new) if all(branch[-1].shape for branch in new) else None

    @property
    def name(self) -> str:
        return span([block.name for block in self.blocks])


@dataclass(frozen=True)
class Stage:
    """A part of the network with a name: the entries in it, in order; `times` how often the sequence repeats.

    Of a repeated sequence, each entry holds its blocks of all rounds.
    """

    name: str
    entries: tuple[Entry, ...]
    times: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entries[-1].shape


@dataclass(frozen=True)
class Head:
    """What leads to a further output, such as an auxiliary classifier: its series, and the entry that it reads."""

    name: str
    reads: str
    items: tuple[Item, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.items[-1].shape

    def units(self) -> Iterator[Unit]:
        for item in self.items:
            yield from item.units()


@dataclass(frozen=True)
class Form:
    """Blocks that differ in widths only: one panel of a drawing. `entries` are those whose blocks have the form."""

    letter: str
    title: str
    entries: tuple[Entry, ...]

    @property
    def block(self) -> Block:
        return self.entries[0].block

    def widths(self) -> list[list[int | None]]:
        """For each unit of the block, its widths in all entries."""
        return [[unit.width for unit in units] for units in zip(*(entry.block.units() for entry in self.entries))]


@dataclass(frozen=True)
class Outline:
    """A network as a drawing and its alt text show it. `forms` are the blocks that have branches or many units."""

    name: str
    input_shape: tuple[int, ...]
    stages: tuple[Stage, ...]
    heads: tuple[Head, ...]
    forms: tuple[Form, ...]

    def entries(self) -> Iterator[Entry]:
        for stage in self.stages:
            yield from stage.entries

    def units(self) -> Iterator[Unit]:
        """All units, unfolded, those of the heads last."""
        for entry in self.entries():
            for block in entry.blocks:
                yield from block.units()
        for head in self.heads:
            yield from head.units()

    def form_of(self, entry: Entry) -> Form | None:
        return next((form for form in self.forms if entry in form.entries), None)


def outline(graph: Graph) -> Outline:
    """The stages, blocks and branches of a traced network, the same for the same graph."""
    reader = _Reader(graph)
    outputs = [name for name in graph.output.inputs if graph[name].live]
    trunk = reader.part(graph.ancestors(outputs[0]))
    items = reader.unrolled(reader.united(reader.decomposed(trunk, graph.input.name, [outputs[0]])))
    stages = _with_rounds(_folded_stages(reader.stages(items, 0)))
    stages = reader.with_reads(stages)
    seen, heads = set(trunk), []
    for name in outputs[1:]:
        members = [n for n in reader.part(graph.ancestors(name)) if n not in seen]
        seen.update(members)
        if members:
            heads.append(reader.head(members, name, stages))
    found = tuple(stages)
    guards = [hook for hook in graph.model._forward_pre_hooks.values() if isinstance(hook, InputGuard)]
    name = guards[0].name if guards else type(graph.model).__name__
    return Outline(name, graph.input_shape, found, tuple(heads), _forms(found))


class _Reader:
    """One graph on its way to an outline."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.position = {node.name: i for i, node in enumerate(graph)}
        self.sources = {node.name: [n for n in dict.fromkeys(node.inputs) if graph[n].live] for node in graph}
        self._factor_lists()
        # Modules that hold a layer; the others are only tokens around one.
        self.holders = {""}
        for node in graph:
            if node.live and not self._is_token(node) and node.kind not in _SILENT:
                path = self._parent(node)
                while path:
                    self.holders.add(path)
                    path = path.rpartition(".")[0]

    def _factor_lists(self) -> None:
        """cat(a, b, c) after cat(a, b) is cat(cat(a, b), c)."""
        lists: dict[tuple[object, ...], str] = {}
        for node in self.graph:
            inputs = self.sources[node.name]
            if node.kind != "cat" or len(inputs) != len(node.inputs):
                continue
            dim = node.attrs.get("dim")
            for k in range(len(inputs) - 1, 0, -1):
                for kept, rest in ((inputs[:k], inputs[k:]), (inputs[-k:], inputs[:-k])):
                    known = lists.get((dim, *kept))
                    if known:
                        self.sources[node.name] = [known, *rest] if kept == inputs[:k] else [*rest, known]
                        break
                else:
                    continue
                break
            lists.setdefault((dim, *inputs), node.name)

    def part(self, names: frozenset[str]) -> list[str]:
        """The nodes between the input and an output, in order, as the factored lists connect them."""
        wanted = {name for name in names if self.graph[name].live}
        # A factored list reads an earlier one, which the original need not have read.
        waiting = list(wanted)
        while waiting:
            for name in self.sources[waiting.pop()]:
                if name not in wanted:
                    wanted.add(name)
                    waiting.append(name)
        skipped = {self.graph.input.name, self.graph.output.name}
        return sorted(wanted - skipped, key=self.position.__getitem__)

    # Branches ------------------------------------------------------------------------------------------------------

    def decomposed(self, inside: list[str], start: str, ends: list[str]) -> list[str | Fork | Mesh]:
        """The nodes between `start` and what reads `ends`, as a series of nodes, forks and meshes.

        Branches hold the result of this function; `united` turns them into units.
        """
        at = {name: i for i, name in enumerate(inside)}
        reach = -1
        series: list[str | Fork | Mesh] = []
        waiting: list[str] = []
        before = start
        furthest: dict[str, int] = {}
        for name in inside:
            for source in self.sources[name]:
                furthest[source] = at[name]
        for name in ends:
            furthest[name] = len(inside)
        reach = furthest.get(start, -1)
        # Other values from outside are read as if they came from the start.
        outside = [at[name] for name in inside if any(s not in at and s != start for s in self.sources[name])]
        reach = max([reach, *outside])
        for i, name in enumerate(inside):
            if reach > i:
                waiting.append(name)
            elif waiting:
                series += self._region(waiting, before, name)
                waiting, before = [], name
            else:
                series.append(name)
                before = name
            reach = max(reach, furthest.get(name, -1))
        if waiting:
            series += self._region(waiting, before, None, ends)
        return series

    def _region(
        self, inside: list[str], start: str, merge: str | None, ends: Sequence[str] = ()
    ) -> list[str | Fork | Mesh]:
        ends = self.sources[merge] if merge else list(ends)
        group = {name: name for name in inside}

        def root(name: str) -> str:
            while group[name] != name:
                name = group[name]
            return name

        for name in inside:
            for source in self.sources[name]:
                if source in group:
                    group[root(name)] = root(source)
        parts: dict[str, list[str]] = {}
        for name in inside:
            parts.setdefault(root(name), []).append(name)
        branches = list(parts.values())
        if merge and (start in ends or any(e not in group for e in ends)):
            branches.append([])
        if len(branches) == 1:
            return self._entangled([*inside, *([merge] if merge else [])], start)

        def order(branch: list[str]) -> int:
            found = [i for i, e in enumerate(ends) if e in branch or (not branch and e not in group)]
            return min(found, default=len(ends))

        branches.sort(key=order)
        series = tuple(tuple(self.decomposed(b, start, [e for e in ends if e in b])) for b in branches)
        return [Fork(series, merge or "", nodes=(merge,) if merge else ())]

    def _entangled(self, names: list[str], start: str) -> list[str | Fork | Mesh]:
        """What has no branches: a mesh if it is small or one module among several, else module by module."""
        common = self._common(names)
        weighted = sum(self.graph[name].kind in _WEIGHTED for name in names)
        if weighted <= _LONG or (common and len(names) <= len(self.graph) / 4):
            return [self._mesh(names, start)]
        found: list[str | Fork | Mesh] = []
        for _, run in groupby(names, key=lambda name: self._path(self.graph[name])[: len(common) + 1]):
            members = list(run)
            inside = set(members)
            read = {s for name in names if name not in inside for s in self.sources[name]}
            ends = [name for name in members if name in read or name == names[-1]]
            outside = [s for name in members for s in self.sources[name] if s not in inside]
            found += self.decomposed(members, outside[0], ends) if len(members) < len(names) else members
        return found

    def _mesh(self, names: list[str], start: str) -> Mesh:
        """Units of single nodes; tokens with one reader join the unit before them."""
        readers: dict[str, list[str]] = {name: [] for name in names}
        for name in names:
            for source in self.sources[name]:
                if source in readers:
                    readers[source].append(name)
        unit_of: dict[str, int] = {}
        parts: list[list[str]] = []
        ahead: list[list[str]] = []  # what only hands the input on, with the first part after it
        waiting: list[str] = []
        for name in names:
            node, sources = self.graph[name], self.sources[name]
            before = unit_of.get(sources[0], -1) if sources else -1
            silent = len(sources) == 1 and self._is_silent(node) and name != names[-1]
            token = len(sources) == 1 and before >= 0 and readers[sources[0]] == [name] and self._is_token(node)
            if silent and before < 0:
                unit_of[name] = -1
                waiting.append(name)
            elif silent or token:
                unit_of[name] = before
                parts[before].append(name)
            else:
                unit_of[name] = len(parts)
                parts.append([name])
                ahead.append(waiting)
                waiting = []
        links: dict[tuple[int, int], None] = {}
        for name in names:
            for source in self.sources[name]:
                pair = (unit_of.get(source, -1), unit_of[name])
                if pair[0] != pair[1]:
                    links[pair] = None
        units = tuple(
            self._unit(self.graph[part[0]], part[1:], [self.graph[name] for name in first])
            for part, first in zip(parts, ahead)
        )
        return Mesh(units, tuple(links), shape=units[-1].shape, path=self._common(names[:-1]))

    # Units ---------------------------------------------------------------------------------------------------------

    def united(self, series: Sequence[str | Fork | Mesh]) -> list[Item]:
        """Nodes gathered into units, branch by branch; a chain of nodes in a series keeps to one habit of order."""
        found: list[Item] = []
        for plain, run in groupby(series, key=lambda item: isinstance(item, str)):
            if plain:
                self._unite([self.graph[name] for name in run], found)
                continue
            for item in run:
                item = self._united_fork(item) if isinstance(item, Fork) else item
                last = found[-1] if found else None
                if (
                    isinstance(item, Unit)
                    and item.kind == "attention"
                    and isinstance(last, Unit)
                    and last.kind == "split"
                ):
                    # One product split into queries, keys and values.
                    item = replace(item, nodes=(*found.pop().nodes, *item.nodes))
                found.append(item)
        return found

    def _united_fork(self, fork: Fork) -> Item:
        branches = []
        left: list[str] = []
        for branch in fork.branches:
            series = self.united(branch)
            if all(isinstance(item, Unit) and not item.kind for item in series):
                left += [name for item in series for name in item.names]
                series = []
            branches.append(tuple(series))
        inside = [name for branch in branches for item in branch for name in item.names]
        path = self._common(inside or list(fork.nodes))
        if not fork.merge:
            shape = next((branch[-1].shape for branch in reversed(branches) if branch), ())
            return Fork(tuple(branches), "", shape=shape, nodes=tuple(left), path=path)
        merge = self.graph[fork.merge]
        shape = merge.shape or ()
        attention = self._attention(merge, inside, left)
        if attention:
            return replace(attention, path=self._path(merge))
        if not any(branches):
            # All branches only hand on: x + x, or the halves of one value.
            return replace(self._unit(merge, []), nodes=(*left, merge.name), detail=self._merge_word(merge))
        detail = self._merge_word(merge) if merge.kind not in MERGES or merge.op.endswith("sub") else ""
        return Fork(tuple(branches), merge.kind, detail, (), shape, (*left, merge.name), path)

    def _merge_word(self, node: Node) -> str:
        words = {"add": "−" if "sub" in node.op else "+", "mul": "÷" if "div" in node.op else "×", "cat": "concat"}
        return words.get(node.kind, node.kind.replace("_", " "))

    def _attention(self, merge: Node, inside: list[str], left: list[str]) -> Unit | None:
        """Softmax of products of one value with itself, written out or as torch's one function."""
        nodes = [self.graph[name] for name in inside]
        small = {"matmul", "softmax", "mul", "dropout", "split", "slice", "add", "elementwise", *_SILENT}
        written_out = merge.kind == "matmul" and any(n.kind == "softmax" for n in nodes)
        if not (merge.kind == "attention" and not inside) and not (written_out and {n.kind for n in nodes} <= small):
            return None
        scores = next((n.shape for n in nodes if n.kind == "softmax"), ())
        heads = merge.attrs.get("heads") or (scores[0] if len(scores) == 3 else 1)
        nodes_in = tuple(sorted([*inside, *left, merge.name], key=self.position.__getitem__))
        return Unit("attention", detail=_attention_words(heads), shape=merge.shape or (), nodes=nodes_in)

    def _unite(self, nodes: list[Node], found: list[Item]) -> None:
        """Append the units of nodes in a row, chain by chain."""
        starts = [i for i, node in enumerate(nodes) if not i or nodes[i - 1].name not in self.sources[node.name]]
        for start, end in zip(starts, [*starts[1:], len(nodes)]):
            last = found[-1] if found else None
            follows = last is None or last.names[-1] in self.sources[nodes[start].name]
            if follows:
                self._unite_chain(nodes[start:end], found)
            else:
                apart: list[Item] = []
                self._unite_chain(nodes[start:end], apart)
                found += apart

    def _unite_chain(self, nodes: list[Node], found: list[Item]) -> None:
        """Append the units of a chain of nodes; a first token may belong to a merge at the end of `found`."""
        waiting: list[Node] = []  # tokens for the layer that comes next
        habit = ""
        fresh = True  # nothing of this chain is placed yet
        for node in nodes:
            last = found[-1] if found else None
            if self._is_silent(node):
                if fresh or waiting or not isinstance(last, Unit) or not self._belongs(node, last):
                    waiting.append(node)
                else:
                    found[-1] = self._extended(last, node)
            elif self._is_token(node):
                if fresh and not waiting and isinstance(last, Fork | Mesh) and self._closes(node, last):
                    after = _scaled((*last.after, self._token(node)))
                    found[-1] = replace(last, after=after, nodes=(*last.nodes, node.name))
                    continue
                if not habit:
                    habit = "after" if not fresh else "before" if node.kind in _NORMS else "activation before"
                is_norm = node.kind in _NORMS
                ahead = fresh or waiting or habit == ("before" if is_norm else "activation before")
                if not ahead and isinstance(last, Unit) and self._belongs(node, last):
                    found[-1] = self._extended(last, node)
                else:
                    waiting.append(node)
                fresh = False
            else:
                tokens = [token for token in waiting if self._is_token(token)]
                takes = node.kind not in _POOLS and all(self._under(t, node, habit == "before") for t in tokens)
                if tokens and not takes:
                    self._settle(waiting, found)
                    waiting = []
                found.append(self._unit(node, [], [n for n in waiting]))
                waiting, fresh = [], False
        self._settle(waiting, found)

    def _settle(self, waiting: list[Node], found: list[Item]) -> None:
        """Place tokens that no layer takes: on the unit before them where they belong to it, else on their own."""
        waiting = list(waiting)
        while waiting and isinstance(found[-1] if found else None, Unit):
            if self._is_token(waiting[0]) and not self._belongs(waiting[0], found[-1]):
                break
            found[-1] = self._extended(found[-1], waiting.pop(0))
        if not waiting:
            return
        last = found[-1] if found else None
        tokens = [node for node in waiting if self._is_token(node)]
        if tokens:
            found.append(self._unit(tokens[0], [n.name for n in waiting if n is not tokens[0]]))
        else:
            shape = waiting[-1].shape or ()
            if isinstance(last, Fork | Mesh):
                found[-1] = replace(last, nodes=(*last.nodes, *(n.name for n in waiting)), shape=shape)
            else:
                found.append(Unit("", shape=shape, nodes=tuple(n.name for n in waiting), path=self._path(waiting[0])))

    def _extended(self, unit: Item, node: Node) -> Item:
        shape = node.shape or unit.shape
        if self._is_silent(node):
            return replace(unit, nodes=(*unit.nodes, node.name), shape=shape)
        after = _scaled((*unit.after, self._token(node)))
        return replace(unit, after=after, nodes=(*unit.nodes, node.name), shape=shape)

    def _unit(self, node: Node, then: Sequence[str], first: Sequence[Node] = ()) -> Unit:
        before = tuple(self._token(n) for n in first if self._is_token(n))
        nodes = (*(n.name for n in first), node.name)
        base = {"before": before, "nodes": nodes, "shape": node.shape or (), "path": self._path(node)}
        if self._is_token(node):
            unit = Unit(node.kind, after=(self._token(node),), **base)
        else:
            unit = Unit(node.kind, **_numbers(node, self._source_shape(node), self._foreign(node)), **base)
            if node.kind in MERGES and len(self.sources[node.name]) > 1:
                unit = replace(unit, detail=self._merge_word(node))
        for name in then:
            unit = self._extended(unit, self.graph[name])
        return unit

    def _source_shape(self, node: Node) -> tuple[int, ...]:
        return next((self.graph[n].shape or () for n in node.inputs if self.graph[n].live), ())

    def _foreign(self, node: Node) -> str:
        """The last name of a parameter or buffer that the operation reads besides its input."""
        names = [n for n in node.inputs if not self.graph[n].live]
        while names and self.graph[names[0]].inputs:  # what an expanded parameter is made of
            names = self.graph[names[0]].inputs
        return names[0].split(":")[0].rpartition(".")[2] if names else ""

    def _is_silent(self, node: Node) -> bool:
        if node.kind == "cat":
            return len(node.inputs) == 1
        if node.kind == "pad":
            return self._source_shape(node)[:1] == (node.shape or ())[:1]
        if node.kind == "dropout":
            return node.attrs.get("p") == 0
        if node.kind in _ADAPTIVE:  # to the size that is there
            return self._source_shape(node) == node.shape
        return node.kind in _SILENT

    def _is_token(self, node: Node) -> bool:
        if node.kind in ("add", "mul"):
            return len(self.sources[node.name]) == 1
        if node.kind == "dropout":
            return not self._is_silent(node)
        if node.kind == "slice":  # a crop
            return len(node.shape or ()) == 3 and node.shape[0] == self._source_shape(node)[0]
        return node.kind in _NORMS or node.kind in ("activation", "elementwise", "softmax", "overwrite")

    def _token(self, node: Node) -> str:
        if node.kind in _NORMS:
            return "RMS" if "rms" in node.op.lower() else _NORMS[node.kind]
        if node.kind == "activation":
            return _ACTIVATIONS.get(node.op.lower(), node.op.lower())
        if node.kind not in ("add", "mul"):
            return {"dropout": "dropout", "slice": "crop"}.get(node.kind, node.op.lower())
        args = self.graph.fx_node(node.name).args
        numbers = [a for a in args if isinstance(a, int | float)]
        number = self._foreign(node) or (f"{numbers[0]:.3g}" if numbers else "")
        if not number:  # the same value twice
            return "doubled" if node.kind == "add" else "squared"
        if node.kind == "add":
            if "sub" not in node.op:
                return f"+ {number}"
            return f"{number} −" if args and args[0] in numbers else f"− {number}"
        return f"{'÷' if 'div' in node.op else '×'} {number}"

    def _parent(self, node: Node) -> str:
        """The module that uses the node: around a layer, or the one that calls a function."""
        own = node.name.split(":")[0] == node.module
        return node.module.rpartition(".")[0] if own else node.module

    def _lifted(self, node: Node) -> str:
        path = self._parent(node)
        while path not in self.holders:
            path = path.rpartition(".")[0]
        return path

    def _under(self, token: Node, layer: Node, beside: bool = False) -> bool:
        """Whether the module around the token is also around the layer; `beside`: or the module around that."""
        above, path = self._lifted(token), self._parent(layer)
        if beside and "." in above:
            above = above.rpartition(".")[0]
        return not above or path == above or path.startswith(above + ".")

    def _belongs(self, token: Node, unit: Unit) -> bool:
        main = next((self.graph[n] for n in unit.nodes if self.graph[n].kind == unit.kind), None)
        return main is not None and self._under(token, main)

    def _closes(self, token: Node, item: Fork | Mesh) -> bool:
        """Whether a token directly behind a merge is part of the same block."""
        name = item.nodes[-1] if isinstance(item, Fork) and item.nodes else item.names[-1]
        merge = self.graph[name]
        above = self._lifted(token)
        if token.kind in _NORMS:
            return merge.kind == "add" and above == merge.module
        return not above or merge.module == above or merge.module.startswith(above + ".")

    def _path(self, node: Node) -> tuple[str, ...]:
        return tuple(node.name.split(":")[0].removesuffix("()").split("."))

    def _common(self, names: list[str]) -> tuple[str, ...]:
        paths = [self._path(self.graph[name]) for name in names]
        shortest = min(paths, key=len, default=())
        for i, part in enumerate(shortest):
            if any(path[i] != part for path in paths):
                return shortest[:i]
        return shortest

    # Stages --------------------------------------------------------------------------------------------------------

    def unrolled(self, items: Sequence[Item]) -> list[Item]:
        """The items with long forks replaced by what is in them, in the order in which it runs."""
        found: list[Item] = []
        for item in items:
            if isinstance(item, Fork) and _is_long(item):
                inside = [i for branch in item.branches for i in self.unrolled(branch)]
                inside.sort(key=lambda i: self.position[i.names[0]])
                found += inside
                if item.merge:
                    merge = self.graph[next(n for n in item.nodes if self.graph[n].kind == item.merge)]
                    unit = Unit(item.merge, detail=self._merge_word(merge), after=item.after, shape=item.shape)
                    found.append(replace(unit, nodes=item.nodes, path=self._path(merge)))
            else:
                found.append(item)
        return found

    def stages(self, items: Sequence[Item], depth: int) -> list[Stage]:
        found: list[Stage] = []
        for _, run in groupby(items, key=lambda item: item.path[: depth + 1]):
            members = list(run)
            entries = _folded(self._blocks(members, depth + 1))
            deepest = max(len(item.path) for item in members)
            if len(entries) <= 4 or deepest <= depth + 1:
                found.append(Stage(_stage_name(members, depth + 1), tuple(entries)))
            else:
                found += self.stages(members, depth + 1)
        return found

    def _blocks(self, items: list[Item], depth: int) -> list[Block]:
        if _is_block(items):
            return [self._block(items)]
        found: list[Block] = []
        for key, run in groupby(items, key=lambda item: item.path[: depth + 1]):
            members = list(run)
            if len(key) <= depth:
                found += [self._block([item]) for item in members]
            else:
                found += self._blocks(members, depth + 1)
        return found

    def _block(self, items: list[Item]) -> Block:
        path = _common_path([item.path for item in items])
        title = ""
        for end in range(len(path), 0, -1):
            module = self._module(path[:end])
            if module is not None and not type(module).__module__.startswith("torch.nn"):
                title = type(module).__name__
                # A block of one layer goes by the layer's name, not by that of the module around it.
                path = path[:end] if len(items) > 1 or not isinstance(items[0], Unit) else path
                break
        if len(items) == 1 and isinstance(items[0], Unit):
            title = ""
        return Block(".".join(path), title, tuple(items))

    def _module(self, path: tuple[str, ...]) -> nn.Module | None:
        try:
            return self.graph.model.get_submodule(".".join(path))
        except AttributeError:
            return None

    def with_reads(self, stages: list[Stage]) -> list[Stage]:
        """Name what an entry reads, where that is not just the entry before it."""
        entry_of: dict[str, Entry] = {}
        before: Entry | None = None
        found = []
        for stage in stages:
            entries = []
            for entry in stage.entries:
                blocks = entry.blocks[:1] if stage.times > 1 else entry.blocks
                inside = {name for block in blocks for name in block.names}
                read = [s for name in inside for s in self.sources[name] if s not in inside]
                read.sort(key=lambda name: self.position[name])
                names = list(dict.fromkeys(entry_of[s].name if s in entry_of else "input" for s in read))
                usual = [before.name if before else "input"]
                if names != usual:
                    entry = replace(entry, reads=tuple(names))
                entry_of.update((name, entry) for block in entry.blocks for name in block.names)
                entries.append(entry)
                before = entry
            found.append(replace(stage, entries=tuple(entries)))
        return found

    def head(self, members: list[str], end: str, stages: Sequence[Stage]) -> Head:
        inside = set(members)
        read = [s for name in members for s in self.sources[name] if s not in inside]
        read.sort(key=self.position.__getitem__)
        items = self.united(self.decomposed(members, read[0], [end]))
        holder = next((e for st in stages for e in st.entries for b in e.blocks if read[0] in b.names), None)
        name = ".".join(self._common(members)) or self._path(self.graph[members[-1]])[0]
        return Head(name, holder.name if holder else "input", tuple(items))


def _attention_words(heads: int) -> str:
    return f"attention, {heads} head{'s' * (heads != 1)}"


def _numbers(node: Node, source: tuple[int, ...], foreign: str) -> dict[str, object]:
    """The fields of a unit that say what its main operation does."""
    attrs, shape = node.attrs, node.shape or ()
    window = {key: tuple(attrs.get(key, ())) for key in ("kernel", "stride", "dilation")}
    kind = node.kind
    if kind in ("conv", "conv_transpose"):
        groups = attrs["groups"]
        depthwise = groups > 1 and groups == attrs["in_channels"] == attrs["out_channels"]
        return {**window, "groups": "depthwise" if depthwise else groups, "width": attrs["out_channels"]}
    if kind == "linear":
        return {"width": attrs["out_features"], "reads": attrs["in_features"]}
    if kind in _WINDOWS:
        return window
    if kind in _ADAPTIVE:
        size = tuple(attrs["output_size"])
        what = _ADAPTIVE[kind]
        return {"detail": f"global {what}" if set(size) == {1} else f"{what} to {'×'.join(map(str, size))}"}
    if kind == "mean":
        spatial = len(source) == 3 and attrs.get("dims") in ((2, 3), (1, 2))
        return {"detail": "global avg pool" if spatial else "mean"}
    if kind == "extremum":
        return {"detail": "maximum" if "max" in node.op else "minimum"}
    if kind == "attention":
        return {"detail": _attention_words(attrs["heads"])}
    if kind == "upsample":
        scale = "×".join(f"{float(s):g}" for s in dict.fromkeys(attrs["scale"]))
        return {"detail": f"{attrs['mode']} ×{scale}"}
    if kind == "cat" and foreign:
        return {"detail": f"with {foreign}"}
    if kind == "gather":
        return {"detail": f"pick {shape[0]}" if shape else "pick"}
    if kind == "pad":
        return {"detail": f"{shape[0] - source[0]} zero maps"}
    if kind == "slice":
        return {"detail": f"pick 1 of {source[0]}" if shape == source[1:] else "slice"}
    if kind in ("pixel_shuffle", "pixel_unshuffle"):
        return {"detail": f"{kind.replace('_', ' ')} {attrs['factor']}"}
    return {"detail": node.op.lower() if kind == "other" else kind.replace("_", " ")}


def _scaled(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Tokens with the numbers around an activation as one: `× 0.667`, `tanh`, `× 1.72` is `1.72 tanh(0.667 x)`."""
    found = list(tokens)
    for i in range(len(found) - 2):
        inner, outer = (re.fullmatch(r"× ([\d.]+)", found[k]) for k in (i, i + 2))
        if inner and outer:
            return (*found[:i], f"{outer[1]} {found[i + 1]}({inner[1]} x)", *_scaled(tuple(found[i + 3 :])))
    return tokens


def _is_long(fork: Fork) -> bool:
    """Whether a fork spans stages: a branch of many layers, or one that changes the size of the maps twice."""
    for branch in fork.branches:
        weighted = sum(1 for item in branch for unit in item.units() if unit.kind in _WEIGHTED)
        scales = [item for item in branch if isinstance(item, Unit) and _changes_scale(item)]
        if weighted > _LONG or len(scales) >= 2:
            return True
    return False


def _changes_scale(unit: Unit) -> bool:
    return unit.kind in ("conv_transpose", "upsample") or bool(set(unit.stride) - {1})


def _common_path(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    first = paths[0]
    for i, part in enumerate(first):
        if any(path[i : i + 1] != (part,) for path in paths):
            return first[:i]
    return first


def _is_block(items: Sequence[Item]) -> bool:
    """Whether items that share a module are one block, rather than several in a row."""
    if len(items) == 1:
        return True
    common = _common_path([item.path for item in items])
    if not common or len(items) > 6:
        return False
    below = [item.path[len(common) : len(common) + 1] for item in items]
    if any(len(list(run)) > 1 for key, run in groupby(below) if key):
        return False
    forks = [item for item in items if not isinstance(item, Unit)]
    if any(item.path != common and not (isinstance(item, Fork) and item.merge == "mul") for item in forks):
        return False
    if any(item.path == common for item in forks):
        return True
    convs = sum(unit.kind in ("conv", "conv_transpose") for item in items for unit in item.units())
    return convs > 0 and len(items) - len(forks) <= 3


def _folded(blocks: Sequence[Block]) -> list[Entry]:
    return [Entry(tuple(run)) for _, run in groupby(blocks, key=lambda block: block.signature())]


def _folded_stages(stages: Sequence[Stage]) -> list[Stage]:
    """Stages of one entry each, beside each other under one parent and the same inside, as one stage."""

    def key(numbered: tuple[int, Stage]) -> tuple[object, ...]:
        i, stage = numbered
        if len(stage.entries) > 1:
            return (i,)
        return (stage.name.rpartition(".")[0], stage.entries[0].block.signature())

    found = []
    for _, run in groupby(enumerate(stages), key=key):
        members = [stage for _, stage in run]
        if len(members) == 1:
            found.append(members[0])
        else:
            blocks = tuple(block for stage in members for block in stage.entries[0].blocks)
            found.append(Stage(span([stage.name for stage in members]), (Entry(blocks),)))
    return found


def _with_rounds(stages: Sequence[Stage]) -> list[Stage]:
    """Sequences of two or three single blocks that repeat, A B A B, as one stage."""

    def key(stage: Stage) -> tuple[object, ...] | None:
        alone = len(stage.entries) == 1 and stage.entries[0].times == 1
        return (stage.name.rpartition(".")[0], stage.entries[0].block.signature()) if alone else None

    keys = [key(stage) for stage in stages]
    found, i = [], 0
    while i < len(stages):
        times, period = 1, 1
        for n in (2, 3):
            rounds = 1
            while None not in keys[i : i + n] and keys[i + n * rounds : i + n * (rounds + 1)] == keys[i : i + n]:
                rounds += 1
            if rounds > 1 and rounds * n > times * period:
                times, period = rounds, n
        members = stages[i : i + times * period]
        if times > 1:
            blocks = [stage.entries[0].block for stage in members]
            entries = tuple(Entry(tuple(blocks[k::period])) for k in range(period))
            found.append(Stage(span([stage.name for stage in members]), entries, times))
        else:
            found.append(stages[i])
        i += len(members)
    return found


def _stage_name(items: Sequence[Item], depth: int) -> str:
    return ".".join(items[0].path[:depth]) if items[0].path else "block"


def span(names: Sequence[str]) -> str:
    """A run of names in short.

    >>> span(["layer1.1", "layer1.2", "layer1.3"]), span(["conv3_1", "conv3_2"]), span(["fc"])
    ('layer1.1–3', 'conv3_1–2', 'fc')
    """
    first, last = names[0], names[-1]
    if first == last:
        return first
    stem = re.match(r"(.*?)(\d+)$", first), re.match(r"(.*?)(\d+)$", last)
    if all(stem) and stem[0][1] == stem[1][1]:
        return f"{first}–{stem[1][2]}"
    if first[:-1] == last[:-1]:
        return f"{first}–{last[-1]}"
    parents = first.rpartition("."), last.rpartition(".")
    return f"{first}–{parents[1][2]}" if parents[0][0] == parents[1][0] else f"{first}–{last}"


def _forms(stages: Sequence[Stage]) -> tuple[Form, ...]:
    found: dict[tuple[object, ...], list[Entry]] = {}
    for stage in stages:
        for entry in stage.entries:
            if not entry.block.is_chain or len(entry.block.items) > 3:
                found.setdefault(entry.block.signature(widths=False), []).append(entry)
    forms = []
    for i, entries in enumerate(found.values()):
        letter = chr(ord("A") + i) if i < 26 else f"Z{i - 25}"
        titles = list(dict.fromkeys(entry.block.title for entry in entries if entry.block.title))
        forms.append(Form(letter, " / ".join(titles), tuple(entries)))
    return tuple(forms)
