"""What a trained network still does when parts of it are deleted or exchanged.

paper     Veit, Wilber, Belongie 2016, arXiv:1605.06431, section 4
follows   of a residual block the branch is deleted and the skip stays, also a skip that changes the shape (4.1); several
          blocks at random (4.2); random pairs of blocks of one shape exchange their branches, and the order is
          compared by Kendall's rank correlation (4.3)
          a layer of a plain network (the convolution or linear layer, with the normalisation, activation and dropout
          right behind it) is replaced by the identity
differs   the paper gave all layers of its VGG 128 maps, so that each could be deleted; here a layer that changes the
          shape is kept, and named as kept
          of a layer in a dense block the new maps are set to zero; the paper has no DenseNet
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from cnnlib import tables
from cnnlib.analysis.editing import Editor, batches, check_data, home, lent
from cnnlib.analysis.folding import folded
from cnnlib.analysis.prices import Passes, priced
from cnnlib.analysis.residual_paths import NORMS, ResidualBlock, Ways, random_sets, residual_blocks
from cnnlib.errors import listed, unknown
from cnnlib.graph import Graph, trace
from cnnlib.progress import progress

UNITS = {
    "block": "the branch of a residual block; the skip stays",
    "maps": "the new maps of a layer in a dense block, set to zero",
    "layer": "a layer that keeps the shape, replaced by the identity",
}
_BEHIND = NORMS | {"activation", "dropout", "identity", "copy"}
_LAYERS = frozenset(["conv", "conv_transpose", "linear"])


@dataclass(frozen=True)
class Unit:
    """A part that can be deleted by itself: `delete` makes the edit, and nothing before the value `after` changes."""

    name: str
    after: str
    delete: Callable[[Editor], None]


@dataclass(frozen=True)
class Anatomy:
    """The parts of one kind in a network, and those that must be `kept`, each with the reason."""

    kind: str
    units: tuple[Unit, ...]
    kept: dict[str, str]


def anatomy(graph: Graph, unit: str | None = None) -> Anatomy:
    """What can be deleted from a traced network, in the order in which it runs.

    `unit` is a key of `UNITS`; by default residual blocks if the network has any, else layers of dense blocks, else
    plain layers. ValueError if the network has no such part.
    """
    if unit is not None and unit not in _FIND:
        raise unknown("kind of part", unit, _FIND)
    for kind in _FIND if unit is None else [unit]:
        found = Anatomy(kind, *_FIND[kind](graph))
        if found.units:
            return found
    why = "; ".join(f"{name} {reason}" for name, reason in found.kept.items())
    raise ValueError(
        f"nothing of {type(graph.model).__name__} can be deleted as a part of kind {found.kind!r} ({UNITS[found.kind]})"
        + (f": {why}" if why else "")
    )


def _blocks(graph: Graph) -> tuple[tuple[Unit, ...], dict[str, str]]:
    def without(block: ResidualBlock) -> Callable[[Editor], None]:
        return lambda editor: editor.zero(block.add, block.residual, like=block.skip)

    return tuple(Unit(block.name, block.source, without(block)) for block in residual_blocks(graph)), {}


def _dense_layers(graph: Graph) -> tuple[tuple[Unit, ...], dict[str, str]]:
    """What is computed from values that it is then concatenated with."""
    ways = Ways(graph)
    behind: dict[str, frozenset[str]] = {}
    readers: dict[str, list[str]] = {}
    beside: dict[str, set[str]] = {}
    for node in graph:
        if not node.live or node.kind != "cat":
            continue
        operands = ways.sources(node)
        for name in operands:
            behind.setdefault(name, graph.ancestors(name))
        for name in operands:
            others = set(operands) - {name}
            if others & behind[name]:
                readers.setdefault(name, []).append(node.name)
                beside.setdefault(name, set()).update(others)
    paths, before = {}, {}
    for result in readers:
        modules, name = [], result
        while graph[name].kind != "cat" and name not in beside[result] and ways.from_one(name):
            modules.append(graph[name].module)
            (name,) = ways.sources(graph[name])
        paths[result], before[result] = _common_path(modules), name
    taken = list(paths.values())

    def without(result: str) -> Callable[[Editor], None]:
        def delete(editor: Editor) -> None:
            for reader in readers[result]:
                editor.zero(reader, result)

        return delete

    return tuple(
        Unit(path if path and taken.count(path) == 1 else result, before[result], without(result))
        for result, path in paths.items()
    ), {}


def _common_path(paths: Sequence[str]) -> str:
    """The path of the innermost module that holds them all.

    >>> _common_path(["dense1.layer2.norm", "dense1.layer2.conv"])
    'dense1.layer2'
    """
    shared = []
    for column in zip(*(path.split(".") for path in paths)):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)


def _layers(graph: Graph) -> tuple[tuple[Unit, ...], dict[str, str]]:
    units, kept = [], {}
    for node in graph:
        if not node.live or node.kind not in _LAYERS:
            continue
        last = node
        while len(after := graph.successors(last.name)) == 1 and after[0].kind in _BEHIND:
            (last,) = after
        source, *others = (name for name in node.inputs if graph[name].live)
        if others:
            kept[node.name] = "computes its weights from the image"
        elif graph[source].full_shape != last.full_shape:
            kept[node.name] = f"changes {listed(graph[source].shape)} to {listed(last.shape)}"
        else:
            units.append(Unit(node.name, source, _bypassing(node.name, last.name)))
    return tuple(units), kept


def _bypassing(first: str, last: str) -> Callable[[Editor], None]:
    return lambda editor: editor.bypass(first, last)


_FIND = {"block": _blocks, "maps": _dense_layers, "layer": _layers}


# ---------------------------------------------------------------------------------------------------------------
# Rows and tables


@dataclass(frozen=True)
class Lesion:
    """What was `deleted` together, and the error in % of `images` before and after."""

    deleted: tuple[str, ...]
    before: float
    after: float
    images: int

    COLUMNS = ("deleted", "error, %", "more by")

    @property
    def harm(self) -> float:
        """How much the error rose, in percentage points."""
        return self.after - self.before

    @property
    def cells(self) -> tuple[str, ...]:
        return ", ".join(self.deleted), f"{self.after:.2f}", f"{self.harm:+.2f}"


@dataclass(frozen=True)
class SeveralLesions:
    """`count` parts deleted together, several times at random: one `Lesion` a draw."""

    count: int
    draws: tuple[Lesion, ...]

    COLUMNS = ("deleted at once", "error, %, mean", "std", "draws")

    @property
    def mean(self) -> float:
        """Error in % after the deletion, over the draws."""
        return statistics.fmean(draw.after for draw in self.draws)

    @property
    def std(self) -> float | None:
        """Of the error in %, over the draws; None for one draw."""
        return statistics.stdev(draw.after for draw in self.draws) if len(self.draws) > 1 else None

    @property
    def cells(self) -> tuple[str, ...]:
        return str(self.count), f"{self.mean:.2f}", "" if self.std is None else f"{self.std:.2f}", str(len(self.draws))


@dataclass(frozen=True)
class Permutation:
    """Blocks in another order: `order` names, for each place that can be exchanged, the block whose branch is there now.

    `swaps` pairs were exchanged one after another (None: an order that was given); `kendall_tau` compares the orders
    (1: the same, -1: reversed). Errors are in % of `images`.
    """

    swaps: int | None
    order: tuple[str, ...]
    kendall_tau: float
    before: float
    after: float
    images: int

    COLUMNS = ("pairs exchanged", "Kendall's tau", "error, %", "more by")

    @property
    def harm(self) -> float:
        """How much the error rose, in percentage points."""
        return self.after - self.before

    @property
    def cells(self) -> tuple[str, ...]:
        swaps = "" if self.swaps is None else str(self.swaps)
        return swaps, f"{self.kendall_tau:.3f}", f"{self.after:.2f}", f"{self.harm:+.2f}"


Row = TypeVar("Row", Lesion, SeveralLesions, Permutation)


@dataclass(frozen=True, repr=False)
class Findings(tables.Rows[Row]):
    """The rows of a lesion study; iterates them. `before` is the error in % of `images` with nothing touched.

    `what` says what was done; `kept` are the parts that could not be touched, each with the reason.
    """

    network: str
    what: str
    before: float
    images: int
    rows: tuple[Row, ...]
    kept: Mapping[str, str]

    def __getitem__(self, at: int) -> Row:
        return self.rows[at]

    def _table(self) -> tuple[str, tuple[str, ...], list[tuple[str, ...]], tuple[str, ...]]:
        kept = "; ".join(f"{name} {why}" for name, why in self.kept.items())
        title = (
            f"{self.network}, {self.images:,} images, error {self.before:.2f} % before; {self.what}"
            + f"; kept: {kept}" * bool(kept)
        )
        columns = self.rows[0].COLUMNS
        return title, columns, [row.cells for row in self.rows], columns[columns[0] == "deleted" :]

    def __repr__(self) -> str:
        return tables.text(*self._table())

    def _repr_html_(self) -> str:
        return tables.html(*self._table())


# ---------------------------------------------------------------------------------------------------------------
# Running


@dataclass(frozen=True)
class _Edit:
    """A change to the network that leaves everything up to the values `after` as it is."""

    after: tuple[str, ...]
    make: Callable[[Editor], None]


class _Study:
    """The errors of one network under many edits. What stands before an edit runs once for all of them."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> None:
        check_data(images, labels)
        self.name = type(model).__name__
        self.images, self.labels, self.batch = images, labels, batch
        shape = tuple(images.shape[1:])
        self._layout = torch.contiguous_format
        try:
            twin = folded(model, shape)
            self.graph, self._layout = trace(twin.network, shape), twin.memory_format
        except ValueError:  # it cannot be copied; what else is wrong is said here
            self.graph = trace(model, shape)
        ways = Ways(self.graph)
        # The values that everything passes, in order: from each of them the rest can be computed.
        passed, name = [], self.graph.output.inputs[0]
        while name in ways.last_common:
            passed.append(name)
            name = ways.last_common[name]
        self._passed = passed[::-1]
        self._ways = ways

    def _start(self, after: Sequence[str]) -> str | None:
        """The last value that everything passes and from which all of `after` is computed."""
        common: set[str] | None = None
        for name in after:
            through, at = {name}, name
            while at in self._ways.last_common:
                at = self._ways.last_common[at]
                through.add(at)
            common = through if common is None else common & through
        return next((name for name in reversed(self._passed) if name in (common or ())), None)

    def _module(self, edit: _Edit) -> tuple[nn.Module, str | None]:
        start = self._start(edit.after)
        while True:
            editor = Editor(self.graph)
            edit.make(editor)
            try:
                return editor.module(start), start
            except ValueError:
                if start is None:
                    raise
                start = None  # something reads the size of the image itself

    def errors(self, edits: Sequence[_Edit], what: str) -> tuple[float, list[float]]:
        """Error in % before, and with each of the edits."""
        parts = batches(self.graph, self.images, self.labels, self.batch)
        wrong = torch.zeros(len(edits) + 1, dtype=torch.int64)
        steps = progress(range(len(parts) * len(edits)), what, total=len(parts) * len(edits))
        with lent(self.graph), torch.no_grad():
            modules = [self._module(edit) for edit in edits]
            starts = list(dict.fromkeys(start for _, start in modules if start is not None))
            whole = Editor(self.graph).module(also=starts)
            for images, labels in parts:
                x = images.to(**home(self.graph)).contiguous(memory_format=self._layout)
                y = labels.to(x.device)
                answer, *reached = whole(x) if starts else (whole(x),)
                values = {None: x, **dict(zip(starts, reached))}
                wrong[0] += _wrong(answer, y)
                for number, (module, start) in enumerate(modules, start=1):
                    next(steps)
                    value = values[start]
                    # What writes over its input must not write over the next one's.
                    wrong[number] += _wrong(module(value.clone() if self.graph.overwriting else value), y)
        next(steps, None)  # lets the bar go
        before, *after = (100 * wrong.double() / len(self.images)).tolist()
        return before, after


def _wrong(answer: Tensor, labels: Tensor) -> Tensor:
    if answer.dim() != 2 or answer.shape[0] != len(labels):
        raise ValueError(
            f"the network must answer with one score a class, (N, classes), to count its errors; got {tuple(answer.shape)}"
        )
    return (answer.argmax(1) != labels).sum().cpu()


def _together(units: Sequence[Unit]) -> _Edit:
    def make(editor: Editor) -> None:
        for unit in units:
            unit.delete(editor)

    return _Edit(tuple(unit.after for unit in units), make)


def _at_least(what: str, number: object, least: int = 1) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"{what} must be a whole number of at least {least}, got {number!r}")


def _passes_each(model: nn.Module, images: Tensor, labels: Tensor, *, unit: str | None, batch: int) -> Passes:
    shape = tuple(images.shape[1:])
    return Passes(shape, forward=len(images) * (1 + len(anatomy(trace(model, shape), unit).units)), batch=batch)


@priced(_passes_each)
def delete_each(
    model: nn.Module, images: Tensor, labels: Tensor, *, unit: str | None = None, batch: int = 100
) -> Findings[Lesion]:
    """The error without each part of the network in turn: one `Lesion` a part (section 4.1, figure 3).

    `images` (N, C, H, W) as the network takes them and `labels` (N,). `unit` says what a part is, a key of `UNITS`; by
    default residual blocks if the network has any, else layers of dense blocks, else plain layers. Parts that cannot be
    deleted stand in `kept`. The network stays as it was. `price` counts whole passes; what stands before a part is
    computed once, so that about half of that is needed.
    """
    study = _Study(model, images, labels, batch)
    found = anatomy(study.graph, unit)
    before, after = study.errors([_together([part]) for part in found.units], "deleting parts")
    rows = tuple(Lesion((part.name,), before, error, len(images)) for part, error in zip(found.units, after))
    return Findings(study.name, f"deleted: {UNITS[found.kind]}", before, len(images), rows, found.kept)


def delete(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    *,
    unit: str | None = None,
    batch: int = 100,
) -> Lesion:
    """The error without the parts `names`, deleted together; see `delete_each`, which lists them.

    ValueError for a part that does not exist, or that must be kept, with the reason.
    """
    study = _Study(model, images, labels, batch)
    found = anatomy(study.graph, unit)
    units = {part.name: part for part in found.units}
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    for name in wanted:
        if name in found.kept:
            raise ValueError(f"{name} cannot be deleted: it {found.kept[name]}; those that can be: {', '.join(units)}")
        if name not in units:
            raise tables.missing("part that can be deleted", name, units)
    # In the order in which they run, since neighbours are bypassed one after another.
    chosen = [part for part in found.units if part.name in wanted]
    before, (after,) = study.errors([_together(chosen)], "deleting parts")
    return Lesion(tuple(part.name for part in chosen), before, after, len(images))


def _counts(parts: int, counts: Sequence[int] | None) -> list[int]:
    wanted = list(range(1, parts + 1)) if counts is None else list(counts)
    for count in wanted:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= parts:
            raise ValueError(f"counts must be 1 .. {parts}, the parts that can be deleted, got {count!r}")
    return wanted


def _passes_several(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    counts: Sequence[int] | None,
    draws: int,
    unit: str | None,
    batch: int,
    **_: object,
) -> Passes:
    shape = tuple(images.shape[1:])
    parts = len(anatomy(trace(model, shape), unit).units)
    sets = sum(min(draws, math.comb(parts, count)) for count in _counts(parts, counts))
    return Passes(shape, forward=len(images) * (1 + sets), batch=batch)


@priced(_passes_several)
def delete_several(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    counts: Sequence[int] | None = None,
    draws: int = 5,
    seed: int = 0,
    unit: str | None = None,
    batch: int = 100,
) -> Findings[SeveralLesions]:
    """The error without `counts` parts at once (by default 1, 2, ... all), `draws` random sets each (section 4.2).

    The sets of one count differ from each other and depend on `seed` and the count alone; where there are no more than
    `draws`, each is taken. Otherwise as `delete_each`.
    """
    _at_least("draws", draws)
    study = _Study(model, images, labels, batch)
    found = anatomy(study.graph, unit)
    units = {part.name: part for part in found.units}
    wanted = _counts(len(units), counts)
    sets = {count: random_sets(tuple(units), count, draws, seed) for count in wanted}
    edits = [_together([units[n] for n in units if n in chosen]) for count in wanted for chosen in sets[count]]
    before, after = study.errors(edits, "deleting several parts")
    errors = iter(after)
    rows = tuple(
        SeveralLesions(
            count,
            tuple(
                Lesion(tuple(n for n in units if n in chosen), before, next(errors), len(images))
                for chosen in sets[count]
            ),
        )
        for count in wanted
    )
    return Findings(study.name, f"deleted at random: {UNITS[found.kind]}", before, len(images), rows, found.kept)


# ---------------------------------------------------------------------------------------------------------------
# Exchanging blocks


def kendall_tau(order: Sequence[int]) -> float:
    """Kendall's rank correlation of a permutation with the sorted order: 1 the same, -1 reversed.

    >>> kendall_tau([0, 1, 2]), kendall_tau([2, 1, 0]), kendall_tau([1, 0, 2])
    (1.0, -1.0, 0.3333333333333333)
    """
    if sorted(order) != list(range(len(order))) or len(order) < 2:
        raise ValueError(f"a permutation holds each of 0 .. n - 1 once, for n of at least 2, got {list(order)}")
    pairs = math.comb(len(order), 2)
    turned = sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])
    return (pairs - 2 * turned) / pairs


def _movable(graph: Graph) -> tuple[dict[str, ResidualBlock], dict[str, str]]:
    """The blocks whose branch can stand in another one's place, and why the others must stay."""
    blocks = residual_blocks(graph)
    adds = {block.add for block in blocks}
    movable, kept = {}, {}
    for block in blocks:
        if not block.keeps_shape:
            kept[block.name] = f"changes {listed(block.shape_in)} to {listed(block.shape_out)}"
        elif adds & set(block.branch):
            kept[block.name] = "holds other blocks"
        else:
            movable[block.name] = block
    shapes = [block.shape_in for block in movable.values()]
    for name in [name for name, block in movable.items() if shapes.count(block.shape_in) == 1]:
        kept[name] = f"is the only one of {listed(movable.pop(name).shape_in)}"
    if not movable:
        why = "; ".join(f"{name} {reason}" for name, reason in kept.items()) or "it has no residual blocks"
        raise ValueError(f"no two blocks of {type(graph.model).__name__} can be exchanged: {why}")
    return movable, kept


def _reordered(blocks: Mapping[str, ResidualBlock], order: Sequence[str]) -> _Edit:
    changed = [(blocks[place], blocks[name]) for place, name in zip(blocks, order) if place != name]

    def make(editor: Editor) -> None:
        for place, block in changed:
            editor.move(block.branch, block.source, block.residual, place.source, place.add, place.residual)

    return _Edit(tuple(place.source for place, _ in changed), make)


def _ranks(blocks: Mapping[str, ResidualBlock], order: Sequence[str]) -> list[int]:
    names = list(blocks)
    return [names.index(name) for name in order]


_EXCHANGED = "exchanged: the branches of residual blocks of one shape"


def reorder_blocks(
    model: nn.Module, images: Tensor, labels: Tensor, order: Mapping[str, str], *, batch: int = 100
) -> Permutation:
    """The error with blocks in an order of your own: `order` maps a place to the block whose branch shall stand there.

    Places and blocks are names as `residual_blocks` gives them; places left out keep their own. ValueError for a block
    that cannot move there, with the reason.
    """
    study = _Study(model, images, labels, batch)
    blocks, kept = _movable(study.graph)
    for name in (*order, *order.values()):
        if name in kept:
            raise ValueError(f"block {name} cannot be exchanged: it {kept[name]}")
        if name not in blocks:
            raise tables.missing("residual block", name, blocks)
    for place, name in order.items():
        if blocks[place].shape_in != blocks[name].shape_in:
            raise ValueError(
                f"block {name} ({listed(blocks[name].shape_in)}) cannot stand in the place of {place} "
                f"({listed(blocks[place].shape_in)}); exchange blocks of one shape"
            )
    wanted = tuple(order.get(place, place) for place in blocks)
    if len(set(wanted)) < len(wanted):
        twice = next(name for name in wanted if wanted.count(name) > 1)
        raise ValueError(f"an order has each block once, and {twice} would stand in two places")
    before, (after,) = study.errors([_reordered(blocks, wanted)], "exchanging blocks")
    return Permutation(None, wanted, kendall_tau(_ranks(blocks, wanted)), before, after, len(images))


def _passes_permute(
    model: nn.Module, images: Tensor, labels: Tensor, *, swaps: Sequence[int], draws: int, batch: int, **_: object
) -> Passes:
    return Passes(tuple(images.shape[1:]), forward=len(images) * (1 + len(swaps) * draws), batch=batch)


@priced(_passes_permute)
def permute_blocks(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    swaps: Sequence[int] = (1, 2, 3, 4),
    draws: int = 5,
    seed: int = 0,
    batch: int = 100,
) -> Findings[Permutation]:
    """The error after random pairs of blocks of one shape exchanged their branches (section 4.3).

    For each number of `swaps`, `draws` times: that many different pairs are exchanged one after another. What stands outside of the
    branch (the skip, the addition, a ReLU after it) stays where it is. Otherwise as `delete_each`.
    """
    _at_least("draws", draws)
    for count in swaps:
        _at_least("swaps", count, least=0)
    study = _Study(model, images, labels, batch)
    blocks, kept = _movable(study.graph)
    names = list(blocks)
    pairs = [
        (i, j) for j in range(len(names)) for i in range(j) if blocks[names[i]].shape_in == blocks[names[j]].shape_in
    ]
    if max(swaps) > len(pairs):
        raise ValueError(f"swaps must be at most {len(pairs)}, the pairs that can be exchanged, got {max(swaps)}")
    planned: list[tuple[int, tuple[str, ...]]] = []
    for count in swaps:
        generator = random.Random(seed * 1_000_003 + count)
        for _ in range(draws):
            order = list(names)
            for i, j in generator.sample(pairs, count):
                order[i], order[j] = order[j], order[i]
            planned.append((count, tuple(order)))
    before, after = study.errors([_reordered(blocks, order) for _, order in planned], "exchanging blocks")
    rows = tuple(
        Permutation(count, order, kendall_tau(_ranks(blocks, order)), before, error, len(images))
        for (count, order), error in zip(planned, after)
    )
    return Findings(study.name, _EXCHANGED, before, len(images), rows, kept)
