"""The branches of a network, from its graph alone.

A node that every path passes is a cut of the graph. Between two neighbouring cuts, the parts that hang together are
the branches of one fork, each taken apart in the same way (a series-parallel decomposition). What has no such
structure is a tangle. A concatenation of a list that was concatenated before, one shorter (DenseNet), counts as that
concatenation and the new maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from cnnlib.graph import Graph, Node
from cnnlib.plots.networks.parts import WEIGHTED

# A fork or tangle with more layers than this spans stages.
LONG = 8


@dataclass(frozen=True)
class Split:
    """Branches from one node to `merge`; "" where they are merged further down, together with others."""

    branches: tuple[tuple[Step, ...], ...]
    merge: str


@dataclass(frozen=True)
class Tangle:
    """Nodes between two cuts that form no branches, in order; the last one is what they lead to."""

    names: tuple[str, ...]


Step = str | Split | Tangle


class Flow:
    """Which values each operation reads, and the decomposition of that into branches."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.position = {node.name: i for i, node in enumerate(graph)}
        self.sources = {node.name: [n for n in dict.fromkeys(node.inputs) if graph[n].live] for node in graph}
        self._factor_lists()

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

    def decomposed(self, inside: list[str], start: str, ends: list[str]) -> list[Step]:
        """The nodes between `start` and what reads `ends`, in series."""
        at = {name: i for i, name in enumerate(inside)}
        series: list[Step] = []
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

    def _region(self, inside: list[str], start: str, merge: str | None, ends: Sequence[str] = ()) -> list[Step]:
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
            return self._entangled([*inside, *([merge] if merge else [])])

        def order(branch: list[str]) -> int:
            found = [i for i, e in enumerate(ends) if e in branch or (not branch and e not in group)]
            return min(found, default=len(ends))

        branches.sort(key=order)
        series = tuple(tuple(self.decomposed(b, start, [e for e in ends if e in b])) for b in branches)
        return [Split(series, merge or "")]

    def _entangled(self, names: list[str]) -> list[Step]:
        """What has no branches: one tangle if it is small or one module among several, else module by module."""
        common = self.common(names)
        weighted = sum(self.graph[name].kind in WEIGHTED for name in names)
        if weighted <= LONG or (common and len(names) <= len(self.graph) / 4):
            return [Tangle(tuple(names))]
        found: list[Step] = []
        for _, run in groupby(names, key=lambda name: self.path(self.graph[name])[: len(common) + 1]):
            members = list(run)
            inside = set(members)
            read = {s for name in names if name not in inside for s in self.sources[name]}
            ends = [name for name in members if name in read or name == names[-1]]
            outside = [s for name in members for s in self.sources[name] if s not in inside]
            found += self.decomposed(members, outside[0], ends) if len(members) < len(names) else members
        return found

    def path(self, node: Node) -> tuple[str, ...]:
        return tuple(node.name.split(":")[0].removesuffix("()").split("."))

    def common(self, names: list[str]) -> tuple[str, ...]:
        paths = [self.path(self.graph[name]) for name in names]
        shortest = min(paths, key=len, default=())
        for i, part in enumerate(shortest):
            if any(path[i] != part for path in paths):
                return shortest[:i]
        return shortest
