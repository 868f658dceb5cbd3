"""Which pixels of its field a value really listens to, how fields grow, where branches meet, what lies outside the image.

Luo, Li, Urtasun, Zemel 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks
(arXiv:1701.04128): the gradient of one position with respect to the image is far from equal over its field.

Effective field   the absolute gradient of the position in the middle of a map with respect to each pixel, mean over the
                  image's channels and over several images, with the network's own weights in evaluation mode. A map
                  has many channels, whose gradients would cancel in their sum; each image therefore gets a random
                  direction over the channels (normal, from `seed`), so that the mean is, up to one factor, the root
                  mean square over the channels. The gradients add up to one: `mass`.
`root_area`       Luo's size: the root of the number of pixels with more than 1 - 95.45 % of the gradient in the
                  centre. The largest gradient stands for that in the centre here, since a stride may leave the
                  centre out.
`side`            side of the square around the centre of the field that holds 95.45 % of the mass (two standard
                  deviations of a normal distribution).
`deviation`       standard deviation of the mass along an axis, root mean square over both. Luo's theory: n layers of
                  equal k x k weights give the root of n (k^2 - 1) / 12, while the field grows with n.
`share`           pixels of root_area among those pixels of the field that lie in the image.
`spill`           mass outside of the field that geometry gives: 0, unless a normalisation takes its statistics over the
                  map, which `receptive_field` notes and does not count.

Positions and pixels are counted from 0; see `fields` for the convention of fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from cnnlib import tables
from cnnlib.analysis.costs import costs_of
from cnnlib.analysis.fields import WHOLE_IMAGE, Both, FieldTable, both, fields_of
from cnnlib.analysis.prices import Passes, priced
from cnnlib.errors import listed
from cnnlib.graph import Graph, trace
from cnnlib.progress import progress
from cnnlib.tracing import borrowed, copied

TWO_SIGMA = 0.9545
FEWEST_STAGES = 4  # a network whose top level has fewer is read one level deeper

Span = tuple[float, float]


# ---------------------------------------------------------------------------------------------------------------
# Which maps are looked at


def stage_maps(graph: Graph, table: FieldTable) -> tuple[str, ...]:
    """The last map of each stage that leads to the main output and widens the field, in order.

    A stage is the first component of the names; where that gives fewer than four maps, the first two, and so on.
    """
    main = graph.ancestors(graph.output.inputs[0])
    last = graph.nodes.index(graph[table.final_name]) if table.final_name else -1
    maps = [node for node in graph.nodes[: last + 1] if node.name in table.places and node.name in main]
    found: list[str] = []
    for depth in range(1, max((node.name.count(".") for node in maps), default=0) + 2):
        ends = {node.at_depth(depth): node.name for node in maps}
        order = {node.name: i for i, node in enumerate(maps)}
        kept, widest = [], 0.0
        for name in sorted(ends.values(), key=order.__getitem__):
            size = max(table[name].axis("size", a) for a in (0, 1))
            if size > max(widest, 1):
                kept.append(name)
                widest = size
        if len(kept) > len(found):
            found = kept
        if len(found) >= FEWEST_STAGES:
            break
    return tuple(found)


def _chosen(graph: Graph, table: FieldTable, at: str | Sequence[str] | None) -> tuple[str, ...]:
    names = stage_maps(graph, table) if at is None else (at,) if isinstance(at, str) else tuple(at)
    for name in names:
        if name not in table:
            raise tables.missing("row", name, [row.name for row in table])
        if name not in table.places:
            why = table[name].note or "it is no map"
            raise ValueError(
                f"{name} has no positions along height and width ({why}); name one of {_some_names(table)}"
            )
    if not names:
        raise ValueError(
            f"{table.network} makes no map that sees more than one pixel, so that there is no field to look at; "
            "name a map by `at`"
        )
    return names


def _some_names(table: FieldTable) -> str:
    names = list(table.places)
    return ", ".join([*names[:3], "...", names[-1]] if len(names) > 4 else names)


def _inside(span: Span, extent: int) -> tuple[int, int]:
    """First pixel and number of pixels of a span that lie in an image of this extent."""
    first, last = max(span[0], 0), min(span[1], extent - 1)
    return int(first), max(int(last - first) + 1, 0)


def _overlap(span: Span, extent: int) -> float:
    """Which share of a span's pixels lies in the image; 1 for a span that is the whole image by definition."""
    return 1.0 if math.isinf(span[1]) else _inside(span, extent)[1] / (span[1] - span[0] + 1)


# ---------------------------------------------------------------------------------------------------------------
# The effective field


@dataclass(frozen=True)
class EffectiveRow:
    """The field of the position in the middle of one map, by geometry and by gradient; sizes in pixels.

    `theoretical` is a pair where height and width differ. `centre` (row, column) and `field` (top, left, height, width)
    are the theoretical field's, not clipped; None for a field that is the whole image. `inside` is the share of the
    theoretical field that lies in the image. The other columns are defined at the head of this module.
    """

    name: str
    kind: str
    position: tuple[int, int]
    theoretical: Both
    root_area: float
    side: float
    deviation: float
    share: float
    inside: float
    spill: float
    centre: tuple[float, float] = field(repr=False)
    field: tuple[float, float, float, float] | None = field(repr=False)


@dataclass(frozen=True, repr=False)
class EffectiveTable(tables.NamedRows[EffectiveRow]):
    """The rows of `effective_field`; iterates them, `table[name]` is one, `mass[name]` its gradient (H, W) that adds up to 1."""

    network: str
    input_shape: tuple[int, int, int]
    images: int
    rows: tuple[EffectiveRow, ...]
    mass: dict[str, NDArray[np.float64]]

    def to_dict(self) -> dict[str, object]:
        """Everything but the gradients as plain values; a size of infinity is the string "whole image"."""
        rows = [{**asdict(row), "theoretical": _plain(row.theoretical)} for row in self.rows]
        return {
            "network": self.network,
            "input_shape": list(self.input_shape),
            "images": self.images,
            "rows": rows,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    _COLUMNS = ("name", "kind", "theoretical", "root_area", "side", "deviation", "share", "inside")

    def _lines(self) -> list[tuple[object, ...]]:
        return [
            (
                *(row.name, row.kind, _plain(row.theoretical), round(row.root_area, 2), row.side),
                *(round(row.deviation, 2), round(row.share, 4), round(row.inside, 4)),
            )
            for row in self.rows
        ]

    def _title(self) -> str:
        return (
            f"{self.network} on {listed(self.input_shape)}: theoretical and effective fields in pixels, middle of each "
            f"map, {self.images} image{'s' * (self.images > 1)}"
        )

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[2:])

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[2:])


def _plain(value: Both) -> object:
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return "whole image" if value == WHOLE_IMAGE else value


class _Reader(fx.Interpreter):
    """Runs the network and keeps the channels at the middle of each map that is asked for."""

    def __init__(self, module: fx.GraphModule, middles: dict[fx.Node, tuple[tuple[int, int], tuple[int, int]]]) -> None:
        super().__init__(module)
        self.middles = middles
        self.found: dict[fx.Node, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node in self.middles:
            (first, second), (row, column) = self.middles[node]
            # A copy, since a later operation may overwrite the map in place.
            self.found[node] = result.select(second, column).select(first, row).clone()
        return result


def _images_for(
    model: nn.Module, input_shape: tuple[int, int, int], images: Tensor | None, count: int, random: torch.Generator
) -> Tensor:
    first = next((p for p in model.parameters() if p.dtype.is_floating_point), torch.empty(0))
    if images is None:
        if count < 1:
            raise ValueError(f"count must be at least 1 image, got {count}")
        images = torch.randn(count, *input_shape, generator=random)
    if not isinstance(images, Tensor) or images.ndim != 4 or tuple(images.shape[1:]) != tuple(input_shape):
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"images must be a tensor (N, {', '.join(map(str, input_shape))}) with N >= 1 as input_shape says, got "
            f"{given}; preprocess them as in training, or leave them out for random ones"
        )
    if not len(images):
        raise ValueError("images must hold at least one image, got none")
    return images.detach().to(first.device, first.dtype)


def _passes(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    images: Tensor | None,
    *,
    at: str | Sequence[str] | None,
    count: int,
    batch: int,
    **_: object,
) -> Passes:
    """Each image once forward; back once from each map, as far as it is in multiply-adds, and only to the image."""
    graph = trace(model, input_shape)
    names = _chosen(graph, fields_of(graph), at)
    count = count if images is None else len(images)
    macs = {row.name: row.macs for row in costs_of(graph)}
    # `price` counts a pass back as two forward; that to the image alone is one.
    back = sum(macs.get(name, 0) for end in names for name in graph.ancestors(end)) / max(sum(macs.values()), 1) / 2
    return Passes(graph.input_shape, forward=count, backward=math.ceil(count * back), batch=batch)


@priced(_passes)
def effective_field(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    images: Tensor | None = None,
    *,
    at: str | Sequence[str] | None = None,
    count: int = 16,
    seed: int = 0,
    batch: int = 16,
) -> EffectiveTable:
    """Theoretical and effective field of the middle position of each stage's last map, or of the maps named by `at`.

    `images` are (N, C, H, W), preprocessed as in training; without any, `count` images of normal noise from `seed`, as
    in Luo's experiments. The network is read in evaluation mode and left as it was. ValueError for a name that is no
    map and for images of another shape. Says its price (`price(effective_field, model, ...)`).
    """
    graph = trace(model, input_shape)
    table = fields_of(graph)
    names = _chosen(graph, table, at)
    random = torch.Generator().manual_seed(seed)
    images = _images_for(model, graph.input_shape, images, count, random)
    middles: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
    for name in names:
        homes, shape = table.places[name].homes, graph[name].full_shape
        middles[name] = homes, (shape[homes[0]] // 2, shape[homes[1]] // 2)
    batch = 1 if graph.source == "recorded" else batch
    height, width = graph.input_shape[1:]
    sums = {name: torch.zeros(height, width, dtype=torch.float64) for name in names}
    # One direction an image, so that the size of the batches makes no difference.
    directions = {}
    for name in names:
        channels = [n for d, n in enumerate(graph[name].full_shape) if d and d not in middles[name][0]]
        directions[name] = torch.randn(len(images), *channels, generator=random)
    with borrowed(graph.model, copied):
        # The module is built inside, so that it holds the copies; `graph` is not used afterwards.
        wanted = {graph.fx_node(name): middles[name] for name in names}
        steps = range(0, len(images), batch)
        for start in progress(steps, "effective fields", unit="batch"):
            leaf = images[start : start + batch].clone().requires_grad_()
            reader = _Reader(graph.module, wanted)
            with torch.enable_grad():
                reader.run(leaf.clone())
            for i, name in enumerate(names):
                value = reader.found[graph.fx_node(name)]
                seeds = directions[name][start : start + batch].to(value)
                gradient = None
                if value.requires_grad:
                    keep = i + 1 < len(names)
                    (gradient,) = torch.autograd.grad(value, leaf, seeds, retain_graph=keep, allow_unused=True)
                if gradient is not None:
                    sums[name] += gradient.abs().double().mean(dim=1).sum(dim=0).cpu()
    mass = {name: _normalised(total.numpy()) for name, total in sums.items()}
    rows = [_row(graph, table, name, middles[name][1], mass[name]) for name in names]
    return EffectiveTable(table.network, graph.input_shape, len(images), tuple(rows), mass)


def _normalised(gradient: NDArray[np.float64]) -> NDArray[np.float64]:
    total = gradient.sum()
    return gradient / total if total > 0 else gradient


def _row(
    graph: Graph, table: FieldTable, name: str, position: tuple[int, int], mass: NDArray[np.float64]
) -> EffectiveRow:
    place, extents = table.places[name], graph.input_shape[1:]
    spans = place.pixels(*position) or ((0, -1), (0, -1))
    whole = any(math.isinf(span[1]) for span in spans)
    sizes = [graph[name].full_shape[home] for home in place.homes]
    centre = tuple(
        (n + 0.5) * extent / size - 0.5 if math.isinf(span[1]) else sum(span) / 2
        for span, n, extent, size in zip(spans, position, extents, sizes)
    )
    (top, rows), (left, columns) = (_inside(span, extent) for span, extent in zip(spans, extents))
    area = int((mass > (1 - TWO_SIGMA) * mass.max()).sum()) if mass.any() else 0
    return EffectiveRow(
        name=name,
        kind=graph[name].kind,
        position=position,
        theoretical=both([span[1] - span[0] + 1 for span in spans]),
        root_area=math.sqrt(area),
        side=_side(mass, centre),
        deviation=_deviation(mass),
        share=area / (rows * columns) if rows * columns else 0.0,
        inside=math.prod(_overlap(span, extent) for span, extent in zip(spans, extents)),
        spill=_outside(mass, top, left, rows, columns),
        centre=centre,
        field=None if whole else (spans[0][0], spans[1][0], *(span[1] - span[0] + 1 for span in spans)),
    )


def _outside(mass: NDArray[np.float64], top: int, left: int, rows: int, columns: int) -> float:
    """The mass outside of a window."""
    rest = mass.copy()
    rest[top : top + rows, left : left + columns] = 0
    return float(rest.sum())


def _side(mass: NDArray[np.float64], centre: tuple[float, float]) -> float:
    """Side of the smallest square of whole pixels around the centre that holds 95.45 % of the mass."""
    if not mass.any():
        return 0.0
    y, x = (np.abs(np.arange(n) - c) for n, c in zip(mass.shape, centre))
    distance = np.maximum(y[:, None], x[None, :])
    reach, ring = np.unique(distance, return_inverse=True)
    held = np.cumsum(np.bincount(ring.ravel(), weights=mass.ravel()))
    # Sums of many small masses are short of 1 by rounding.
    first = int(np.searchsorted(held, min(TWO_SIGMA, held[-1]) - 1e-12))
    return float(2 * reach[first] + 1)


def _deviation(mass: NDArray[np.float64]) -> float:
    if not mass.any():
        return 0.0
    variances = []
    for axis in (0, 1):
        along = mass.sum(axis=1 - axis)
        pixels = np.arange(len(along))
        mean = (along * pixels).sum()
        variances.append((along * (pixels - mean) ** 2).sum())
    return math.sqrt(sum(variances) / 2)


# ---------------------------------------------------------------------------------------------------------------
# Growth along depth


@dataclass(frozen=True)
class GrowthStep:
    """The largest field among the maps behind `depth` weight layers, and the map that has it."""

    depth: int
    name: str
    size: float
    stride: float | None


_WEIGHTED = ("conv", "conv_transpose", "linear")


def field_growth(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[GrowthStep, ...]:
    """How the field grows with depth: for each number of weight layers on the longest way, up to the last map.

    The side along height or width, whichever is larger; `math.inf` where a value sees the whole image. Depth 0 is the
    image, and a pooling or addition behind the same number of weight layers counts with them.
    """
    graph = trace(model, input_shape)
    table = fields_of(graph)
    if table.final_name is None:
        raise ValueError(f"{table.network} makes no map out of its image, so that no field grows; look at its rows")
    depth: dict[str, int] = {}
    steps = {0: GrowthStep(0, graph.input.name, 1, 1)}
    main = graph.ancestors(table.final_name)
    for node in graph:
        if node.live:
            before = max((depth.get(name, 0) for name in node.inputs), default=0)
            depth[node.name] = before + (node.kind in _WEIGHTED)
        if node.name in main and node.name in table.places:
            row = table[node.name]
            size = max(row.axis("size", a) for a in (0, 1))
            known = steps.get(depth[node.name])
            if known is None or size >= known.size:
                strides = [row.axis("stride", a) for a in (0, 1)]
                stride = None if None in strides else max(strides)
                steps[depth[node.name]] = GrowthStep(depth[node.name], node.name, size, stride)
    return tuple(steps[d] for d in sorted(steps))


# ---------------------------------------------------------------------------------------------------------------
# Alignment: where branches that meet look


@dataclass(frozen=True)
class BranchPlace:
    """One of the values that meet: its field's side, step and centre at position 0, along height (a pair where width differs)."""

    name: str
    size: Both
    stride: Both | None
    offset: Both | None


@dataclass(frozen=True)
class MeetingRow:
    """An operation at which branches meet; `shift` is the largest distance of their centres in pixels, over all positions.

    `shift` is None where a branch has no place: it sees the whole image, or nothing.
    """

    name: str
    kind: str
    branches: tuple[BranchPlace, ...]
    shift: float | None

    @property
    def aligned(self) -> bool:
        return self.shift == 0


def alignment(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[MeetingRow, ...]:
    """Whether branches look at the same place where they meet (additions, concatenations, products), for each meeting."""
    graph = trace(model, input_shape)
    table = fields_of(graph)
    rows = []
    for node in graph:
        if node.kind not in ("add", "cat", "mul", "stack", "elementwise") or node.name not in table.places:
            continue
        names = [name for name in dict.fromkeys(node.inputs) if graph[name].live]
        if len(names) > 1:
            rows.append(_meeting(graph, table, node.name, names))
    return tuple(rows)


def _meeting(graph: Graph, table: FieldTable, name: str, names: list[str]) -> MeetingRow:
    branches = []
    for branch in names:
        if branch == graph.input.name:
            branches.append(BranchPlace(branch, 1, 1, 0))
        else:
            row = table[branch]
            branches.append(BranchPlace(branch, row.size, row.stride, row.offset))
    shift: float | None = 0.0
    home = table.places[name].homes
    for a in (0, 1):
        axes = [table.places[b].axes[a] if b in table.places else None for b in names if b != graph.input.name]
        if any(axis is None or axis.whole for axis in axes):
            shift = None
            break
        for n in range(graph[name].full_shape[home[a]]):
            seen = [axis.track.at(n) for axis in axes] + [(n, n)] * (graph.input.name in names)
            if None in seen:
                continue
            centres = [sum(pixels) / 2 for pixels in seen]
            shift = max(shift, max(centres) - min(centres))
    return MeetingRow(name, graph[name].kind, tuple(branches), shift)


# ---------------------------------------------------------------------------------------------------------------
# The border: which share of a field lies outside


@dataclass(frozen=True)
class BorderRow:
    """Which share of its field each position of a map has outside of the image; `outside` is (height, width) of the map.

    `whole_inside` counts the positions that have all of their field in the image.
    """

    name: str
    size: Both
    outside: NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def positions(self) -> tuple[int, int]:
        return self.outside.shape

    @property
    def middle(self) -> float:
        rows, columns = self.outside.shape
        return float(self.outside[rows // 2, columns // 2])

    @property
    def corner(self) -> float:
        return float(self.outside[0, 0])

    @property
    def mean(self) -> float:
        return float(self.outside.mean())

    @property
    def whole_inside(self) -> int:
        return int((self.outside == 0).sum())


@dataclass(frozen=True, repr=False)
class BorderTable(tables.NamedRows[BorderRow]):
    """The rows of `border_case`; iterates them, `table[name]` is one."""

    network: str
    input_shape: tuple[int, int, int]
    rows: tuple[BorderRow, ...]

    _COLUMNS = ("name", "field", "positions", "outside, corner", "outside, middle", "outside, mean", "whole inside")

    def _lines(self) -> list[tuple[object, ...]]:
        return [
            (
                r.name,
                _plain(r.size),
                r.positions,
                round(r.corner, 4),
                round(r.middle, 4),
                round(r.mean, 4),
                r.whole_inside,
            )
            for r in self.rows
        ]

    def _title(self) -> str:
        return f"{self.network} on {listed(self.input_shape)}: share of each field that lies outside of the image"

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[1:])

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[1:])


def border_case(
    model: nn.Module, input_shape: tuple[int, int, int], *, at: str | Sequence[str] | None = None
) -> BorderTable:
    """Which share of its field each position has outside of the image, for each stage's last map or those named by `at`.

    A field that is the whole image by definition has nothing outside.
    """
    graph = trace(model, input_shape)
    table = fields_of(graph)
    rows = []
    for name in _chosen(graph, table, at):
        place = table.places[name]
        within = []
        for a in (0, 1):
            axis, extent = place.axes[a], graph.input_shape[1 + a]
            spans = [
                (-WHOLE_IMAGE, WHOLE_IMAGE) if axis.whole else axis.track.at(n)
                for n in range(graph[name].full_shape[place.homes[a]])
            ]
            within.append([1.0 if span is None else _overlap(span, extent) for span in spans])
        outside = 1 - np.outer(*(np.array(shares) for shares in within))
        rows.append(BorderRow(name, table[name].size, outside))
    return BorderTable(table.network, graph.input_shape, tuple(rows))
