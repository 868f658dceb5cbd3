"""What a drawing of a network is made of: units, forks and meshes of them, blocks, entries, stages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

WINDOWS = {"max_pool": "max pool", "avg_pool": "avg pool"}
ADAPTIVE = {"adaptive_max_pool": "max pool", "adaptive_avg_pool": "avg pool"}
POOLS = frozenset([*WINDOWS, *ADAPTIVE, "mean", "extremum"])
WEIGHTED = frozenset(["conv", "conv_transpose", "linear"])
CONVS = ("conv", "conv_transpose")
MERGES = {"add": "added", "cat": "concatenated", "mul": "multiplied", "matmul": "multiplied as matrices"}


@dataclass(frozen=True)
class Unit:
    """One operation that a reader would call a layer, with the small ones `before` and `after` it (`BN`, `ReLU`).

    `kind` is a word of `operations.KINDS`; `width` the number of maps or units of the result, where the operation sets
    it; `detail` what else must be said of it (`12 heads`). `shape` is the result's, `nodes` are the graph's nodes in it.
    """

    kind: str
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
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
        window = (self.kernel, self.stride, self.padding, self.dilation)
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
            pad = max((side for sides in self.padding for side in sides), default=0)
            parts = [
                f"{window} depthwise" if self.groups == "depthwise" else f"{window} transposed" if up else window,
                "" if self.groups == "depthwise" else width,
                f"{self.groups} groups" if isinstance(self.groups, int) and self.groups > 1 else "",
                f"dilation {max(self.dilation)}" if set(self.dilation) - {1} else "",
                f"padding {pad}" if pad > max(self.kernel, default=1) * max(self.dilation, default=1) else "",
            ]
            return ", ".join(filter(None, parts)) + (step.replace("/", "×") if up else step)
        if self.kind == "linear":
            return f"linear {width}"
        if self.kind in WINDOWS:
            return f"{window} {WINDOWS[self.kind]}{step}" if set(self.kernel) != {1} else f"every pixel{step}"
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

    def columns(self) -> list[tuple[int, tuple[Unit | Fork | Mesh, ...]]]:
        """The branches; three and more neighbours of one structure as one, with how many there are."""
        found: list[tuple[int, tuple[Unit | Fork | Mesh, ...]]] = []
        for _, run in groupby(self.branches, key=lambda branch: tuple(item.signature() for item in branch)):
            same = list(run)
            found += [(len(same), same[0])] if len(same) > 2 else [(1, branch) for branch in same]
        return found

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
        weighted = [kind for kind in kinds if kind in WEIGHTED]
        if weighted:
            return max(dict.fromkeys(weighted), key=weighted.count)
        return next((k for k in kinds if k in POOLS), kinds[0] if kinds else getattr(self.items[0], "merge", "other"))


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


def enumerated(names: Iterable[str]) -> list[str]:
    """Names in words, to be joined by spaces.

    >>> enumerated(["a", "b", "c"])
    ['a,', 'b', 'and', 'c']
    """
    names = list(names)
    return [*(f"{name}," for name in names[:-2]), *names[-2:-1], "and", names[-1]] if len(names) > 1 else names
