"""The outline of a network: what belongs together by the paths of its modules, and what is repeated.

Neighbours of the same structure are one `Entry` with a number of times; names, and how many maps a block reads, make
no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from torch import nn

from cnnlib.graph import Graph
from cnnlib.models.blocks import InputGuard
from cnnlib.plots.networks.branches import LONG, Flow
from cnnlib.plots.networks.parts import (
    WEIGHTED,
    Block,
    Entry,
    Fork,
    Form,
    Head,
    Item,
    Outline,
    Stage,
    Unit,
    span,
)
from cnnlib.plots.networks.units import Units


def outline(graph: Graph) -> Outline:
    """The stages, blocks and branches of a traced network, the same for the same graph."""
    flow = Flow(graph)
    units = Units(flow)
    reader = _Stages(units)
    outputs = [name for name in graph.output.inputs if graph[name].live]
    trunk = flow.part(graph.ancestors(outputs[0]))
    items = reader.unrolled(units.united(flow.decomposed(trunk, graph.input.name, [outputs[0]])))
    stages = reader.with_rounds(reader.folded_stages(reader.stages(items, 0)))
    stages = reader.with_reads(stages)
    seen, heads = set(trunk), []
    for name in outputs[1:]:
        members = [n for n in flow.part(graph.ancestors(name)) if n not in seen]
        seen.update(members)
        if members:
            heads.append(reader.head(members, name, stages))
    found = tuple(stages)
    guards = [hook for hook in graph.model._forward_pre_hooks.values() if isinstance(hook, InputGuard)]
    name = guards[0].name if guards else type(graph.model).__name__
    return Outline(name, graph.input_shape, found, tuple(heads), _forms(found))


class _Stages:
    """Groups the items of a network."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self.flow = units.flow
        self.graph = self.flow.graph
        self.sources = self.flow.sources
        self.position = self.flow.position

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
                    unit = Unit(item.merge, detail=self.units.merge_word(merge), after=item.after, shape=item.shape)
                    found.append(replace(unit, nodes=item.nodes, path=self.flow.path(merge)))
            else:
                found.append(item)
        return found

    def stages(self, items: Sequence[Item], depth: int) -> list[Stage]:
        found: list[Stage] = []
        for _, run in groupby(items, key=lambda item: item.path[: depth + 1]):
            members = list(run)
            blocks = self._blocks(members, depth + 1)
            entries = [Entry(tuple(run)) for run in self._alike(blocks, [b.signature() for b in blocks])]
            deepest = max(len(item.path) for item in members)
            if len(entries) <= 4 or deepest <= depth + 1:
                found.append(Stage(_stage_name(members, depth + 1), tuple(entries)))
            else:
                found += self.stages(members, depth + 1)
        return found

    def _follows(self, block: Block, before: Block) -> bool:
        """Whether a block reads the one before it and nothing else."""
        inside = set(block.names)
        read = {source for name in inside for source in self.sources[name]} - inside
        return bool(read) and read <= set(before.names)

    def _alike(self, blocks: Sequence[Block], keys: Sequence[object]) -> list[list[Block]]:
        """Runs of blocks of the same key in which each reads only the one before it."""
        found: list[list[Block]] = []
        for i, block in enumerate(blocks):
            if i and keys[i] == keys[i - 1] and self._follows(block, blocks[i - 1]):
                found[-1].append(block)
            else:
                found.append([block])
        return found

    def folded_stages(self, stages: Sequence[Stage]) -> list[Stage]:
        """Stages of one entry each, beside each other under one parent and the same inside, as one stage."""
        keys = [_key(stage) for stage in stages]
        found: list[Stage] = []
        names: list[str] = []
        for i, stage in enumerate(stages):
            before = found[-1] if found else None
            if (
                before
                and keys[i] is not None
                and keys[i] == keys[i - 1]
                and self._follows(stage.entries[0].block, before.entries[0].blocks[-1])
            ):
                names.append(stage.name)
                blocks = (*before.entries[0].blocks, *stage.entries[0].blocks)
                found[-1] = Stage(span(names), (Entry(blocks),))
            else:
                names = [stage.name]
                found.append(stage)
        return found

    def with_rounds(self, stages: Sequence[Stage]) -> list[Stage]:
        """Sequences of two or three single blocks that repeat, A B A B, as one stage."""
        keys = [_key(stage) if stage.entries[0].times == 1 else None for stage in stages]
        chained = [False, *(self._follows(b.entries[0].block, a.entries[-1].blocks[-1]) for a, b in pairwise(stages))]
        found, i = [], 0
        while i < len(stages):
            times, period = 1, 1
            for n in (2, 3):
                end = i + n
                while None not in keys[i : i + n] and keys[end : end + n] == keys[i : i + n]:
                    end += n
                if all(chained[i + 1 : end]) and n < end - i > times * period:
                    times, period = (end - i) // n, n
            members = stages[i : i + times * period]
            if times > 1:
                blocks = [stage.entries[0].block for stage in members]
                entries = tuple(Entry(tuple(blocks[k::period])) for k in range(period))
                found.append(Stage(span([stage.name for stage in members]), entries, times))
            else:
                found.append(stages[i])
            i += len(members)
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
        items = self.units.united(self.flow.decomposed(members, read[0], [end]))
        holder = next((e for st in stages for e in st.entries for b in e.blocks if read[0] in b.names), None)
        name = ".".join(self.flow.common(members)) or self.flow.path(self.graph[members[-1]])[0]
        return Head(name, holder.name if holder else "input", tuple(items))


def _is_long(fork: Fork) -> bool:
    """Whether a fork spans stages: a branch of many layers, or one that changes the size of the maps twice."""
    for branch in fork.branches:
        weighted = sum(1 for item in branch for unit in item.units() if unit.kind in WEIGHTED)
        scales = [item for item in branch if isinstance(item, Unit) and _changes_scale(item)]
        if weighted > LONG or len(scales) >= 2:
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


def _key(stage: Stage) -> tuple[object, ...] | None:
    """What makes two stages of one entry the same: their parent and their structure."""
    alone = len(stage.entries) == 1
    return (stage.name.rpartition(".")[0], stage.entries[0].block.signature()) if alone else None


def _stage_name(items: Sequence[Item], depth: int) -> str:
    return ".".join(items[0].path[:depth]) if items[0].path else "block"


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
