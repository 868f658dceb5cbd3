"""Which pieces of a data set excite a feature map most, and what the deconvnet makes of each.

paper     Zeiler and Fergus 2013, Visualizing and understanding convolutional networks, section 4 and figure 2

The data go through the network once, batch by batch; of each map only the strongest activations so far are kept. A patch
is what the unit sees: the receptive field of its position by `fields`, placed by offset and stride.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from cnnlib import tables
from cnnlib.analysis.deconvnet import DECONVNET, Way, as_images, batch_size, check_maps, project
from cnnlib.analysis.fields import FieldRow, fields_of
from cnnlib.analysis.prices import Passes, priced
from cnnlib.graph import Graph, trace
from cnnlib.progress import progress
from cnnlib.tracing import borrowed, copied

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Patch:
    """One of the strongest activations of a map: in which image, where, how strong, and the pixels that it sees.

    `rank` counts from 0; `position` is (row, column) in the map, () for a layer of single units; `box` is (top, left,
    bottom, right) in pixels of the image, the last two excluded, and may reach into the padding.
    """

    map: int
    rank: int
    image: int
    position: tuple[int, ...]
    value: float
    box: Box


@dataclass(frozen=True, repr=False)
class TopPatches(tables.Rows[Patch]):
    """The rows of `strongest_patches`; iterates its rows, `table[map]` are those of one map, the strongest first.

    A map that no image excites above 0 has none.
    """

    network: str
    at: str
    input_shape: tuple[int, int, int]
    images: int
    rows: tuple[Patch, ...]
    maps: tuple[int, ...]

    def __getitem__(self, number: int) -> tuple[Patch, ...]:
        if number not in self.maps:
            raise tables.missing("map", str(number), map(str, self.maps))
        return tuple(row for row in self.rows if row.map == number)

    _COLUMNS = ("map", "rank", "image", "position", "value", "box")

    def _lines(self) -> list[tuple[object, ...]]:
        return [(r.map, r.rank, r.image, _pair(r.position), float(f"{r.value:.4g}"), _pair(r.box)) for r in self.rows]

    def _title(self) -> str:
        return f"{self.network}, {self.at}: strongest activations in {self.images:,} images"

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS)

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS)


def _pair(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def box_of(row: FieldRow | None, position: tuple[int, ...], extent: tuple[int, int]) -> Box:
    """The pixels that a unit sees, (top, left, bottom, right) with the last two excluded; the whole image of `extent`
    where the field has no known place (units behind a flattening or a global pooling)."""
    ends = []
    for axis in (0, 1):
        size = row.axis("size", axis) if row else math.inf
        offset, stride = (row.axis(column, axis) if row else None for column in ("offset", "stride"))
        if math.isinf(size) or offset is None or stride is None or not position:
            ends.append((0, extent[axis]))
        else:
            centre = offset + stride * position[axis]
            ends.append((math.floor(centre - (size - 1) / 2), math.ceil(centre + (size - 1) / 2) + 1))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


def cut(picture: Any, box: Box) -> NDArray[np.float64]:
    """The part of a picture (C, H, W) in a box, with NaN where the box reaches beyond the picture.

    Along an axis where the box is longer than the picture, the whole axis is kept, with NaN where the box does not reach.
    """
    values = np.asarray(torch.as_tensor(picture).detach().cpu(), dtype=np.float64)
    top, left, bottom, right = box
    spans = [(top, bottom, values.shape[1]), (left, right, values.shape[2])]
    starts, lengths = [], []
    for low, high, side in spans:
        longer = high - low > side
        starts.append(0 if longer else low)
        lengths.append(side if longer else high - low)
    found = np.full((values.shape[0], *lengths), np.nan)
    inside, there = [], []
    for (low, high, side), start in zip(spans, starts):
        first, last = max(low, 0), min(high, side)
        inside.append(slice(first, max(last, first)))
        there.append(slice(first - start, max(last, first) - start))
    found[:, there[0], there[1]] = values[:, inside[0], inside[1]]
    return found


def _prepared(model: nn.Module, images: Any, here: slice | list[int], prepare: Callable[[Any], Any] | None) -> Tensor:
    batch = torch.as_tensor(images[here])
    return as_images(model, prepare(batch) if prepare else batch)


def _passes(model: nn.Module, images: Any, layers: Any, **options: Any) -> Passes:
    one = _prepared(model, images, slice(0, 1), options.get("prepare"))
    return Passes(tuple(one.shape[1:]), len(images), batch=options.get("batch", 256))


class _Search(fx.Interpreter):
    """Runs a network over batches and keeps, of each wanted map, the strongest activations so far."""

    def __init__(self, graph: Graph, wanted: Mapping[str, tuple[int, ...]], count: int, one_an_image: bool) -> None:
        super().__init__(graph.module)
        self.wanted = {graph.fx_node(name): (name, maps) for name, maps in wanted.items()}
        self.count, self.one_an_image = count, one_an_image
        self.start = 0  # the number of the batch's first image
        self.best: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # values, images, places: (maps, up to count)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            # At once, since a later operation may overwrite it.
            self._keep(*self.wanted[n], value)
        return value

    def _keep(self, name: str, maps: tuple[int, ...], value: Tensor) -> None:
        flat = value.flatten(2) if value.dim() == 4 else value[..., None]
        flat = flat[:, list(maps)].transpose(0, 1)  # (maps, N, places)
        if self.one_an_image:
            top, place = flat.max(2, keepdim=True)
        else:
            # Not topk, which orders equal values (of overlapping windows) as it likes.
            top, place = (part[..., : self.count] for part in flat.sort(dim=2, descending=True, stable=True))
        image = (torch.arange(flat.shape[1], device=flat.device) + self.start)[None, :, None].expand_as(top)
        found = tuple(column.flatten(1) for column in (top, image, place))
        if name in self.best:
            found = tuple(torch.cat(pair, dim=1) for pair in zip(self.best[name], found))
        # A stable order, so that the batches do not show.
        order = found[0].sort(dim=1, descending=True, stable=True).indices[:, : self.count]
        self.best[name] = tuple(column.gather(1, order) for column in found)


@priced(_passes)
def strongest_in_layers(
    model: nn.Module,
    images: Any,
    layers: Sequence[str],
    *,
    maps: Sequence[int] | None = None,
    count: int = 9,
    one_an_image: bool = True,
    prepare: Callable[[Tensor], Tensor] | None = None,
    batch: int = 256,
) -> dict[str, TopPatches]:
    """`strongest_patches` of several layers by their names, for one pass of the data."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not layers or not len(images):
        raise ValueError(f"at least one layer and one image: got {len(layers)} layers and {len(images)} images")
    shape = tuple(_prepared(model, images, slice(0, 1), prepare).shape[1:])
    graph = trace(model, shape)
    wanted = {at: _maps_of(graph, at, maps) for at in layers}
    last = max(wanted, key=[node.name for node in graph].index)
    part = graph.upto(last) if graph.ancestors(last).issuperset(wanted) else graph
    batch = batch_size(part, batch)
    steps = range(0, len(images), batch)
    with borrowed(model, copied), torch.no_grad():
        search = _Search(part, wanted, count, one_an_image)
        for search.start in progress(steps, f"strongest of {', '.join(wanted)}", total=len(steps), unit="batch"):
            # A copy, which the network may overwrite.
            search.run(_prepared(model, images, slice(search.start, search.start + batch), prepare).clone())
    fields = {row.name: row for row in fields_of(graph)}
    found = {}
    for at, numbers in wanted.items():
        extent = graph[at].shape[1:]
        rows = []
        for m, *columns in zip(numbers, *(column.cpu().tolist() for column in search.best[at])):
            for rank, (value, image, place) in enumerate(zip(*columns)):
                if value > 0:
                    position = divmod(place, extent[1]) if extent else ()
                    rows.append(Patch(m, rank, image, position, value, box_of(fields.get(at), position, shape[1:])))
        found[at] = TopPatches(type(model).__name__, at, shape, len(images), tuple(rows), numbers)
    return found


def _maps_of(graph: Graph, at: str, maps: Sequence[int] | None) -> tuple[int, ...]:
    shape = graph[at].shape
    check_maps(at, shape)
    wanted = tuple(range(shape[0])) if maps is None else tuple(int(m) for m in maps)
    for m in wanted:
        if not 0 <= m < shape[0]:
            raise ValueError(f"{at} has maps 0 to {shape[0] - 1}, got {m}")
    return wanted


@priced(_passes)
def strongest_patches(model: nn.Module, images: Any, at: str, **options: Any) -> TopPatches:
    """The `count` (9) strongest activations above 0 of each map of the node `at` over a data set, and what they see.

    `images` is anything of which a slice is a batch (N, C, H, W): a tensor, an array, a file mapped into memory.
    `prepare` turns a batch as it is stored into what the network wants; `maps` are those of interest. `one_an_image`
    (True) keeps the strongest place of an image alone; of equal values the earlier image is kept. Only one `batch` (256)
    of maps is held at a time.
    """
    return strongest_in_layers(model, images, [at], **options)[at]


def pictures_of(
    images: Any, patches: Sequence[Patch], *, prepare: Callable[[Tensor], Tensor] | None = None
) -> list[NDArray[np.float64]]:
    """The pieces (C, h, w) of the data that the patches are, NaN beyond the image."""
    found = []
    for patch in patches:
        one = torch.as_tensor(images[patch.image : patch.image + 1])
        found.append(cut((prepare(one) if prepare else one)[0], patch.box))
    return found


def _reconstructing(model: nn.Module, images: Any, at: str, patches: Sequence[Patch], **options: Any) -> Passes:
    one = _prepared(model, images, slice(0, 1), options.get("prepare"))
    return Passes(tuple(one.shape[1:]), len(patches), len(patches), options.get("batch", 32))


@priced(_reconstructing)
def reconstruct(
    model: nn.Module,
    images: Any,
    at: str,
    patches: Sequence[Patch],
    *,
    way: Way = DECONVNET,
    prepare: Callable[[Tensor], Tensor] | None = None,
    batch: int = 32,
) -> list[NDArray[np.float64]]:
    """What each patch's activation is projected to, cut like the patch: (C, h, w), NaN beyond the image."""
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(patches), batch):
        some = patches[start : start + batch]
        x = torch.cat([_prepared(model, images, slice(p.image, p.image + 1), prepare) for p in some])
        places = [p.position for p in some]
        sent = project(model, x, at, [p.map for p in some], positions=places, way=way, batch=batch)
        found += [cut(one.pixels, patch.box) for one, patch in zip(sent, some)]
    return found
