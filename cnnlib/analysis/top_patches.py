"""Which pieces of a data set excite a feature map most, and what the deconvnet makes of each.

paper     Zeiler and Fergus 2013, Visualizing and understanding convolutional networks, section 4 and figure 2

The data go through the network once, batch by batch; of each map only the strongest activations so far are kept. A patch
is what the unit sees: the receptive field of its position by `fields`, placed by offset and stride.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnlib import tables
from cnnlib.analysis.deconvnet import DECONVNET, Way, as_images, batch_size, check_maps, project
from cnnlib.analysis.fields import FieldRow, fields_of
from cnnlib.analysis.prices import Passes, priced
from cnnlib.graph import trace
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
class TopPatches:
    """The rows of `strongest_patches`; iterates its rows, `table[map]` are those of one map, the strongest first.

    A map that no image excites above 0 has none.
    """

    network: str
    at: str
    input_shape: tuple[int, int, int]
    images: int
    rows: tuple[Patch, ...]
    maps: tuple[int, ...]

    def __iter__(self) -> Iterator[Patch]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

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


def _passes(model: nn.Module, images: Any, at: str, **options: Any) -> Passes:
    one = _prepared(model, images, slice(0, 1), options.get("prepare"))
    return Passes(tuple(one.shape[1:]), len(images), batch=options.get("batch", 256))


@priced(_passes)
def strongest_patches(
    model: nn.Module,
    images: Any,
    at: str,
    *,
    maps: Sequence[int] | None = None,
    count: int = 9,
    one_an_image: bool = True,
    prepare: Callable[[Tensor], Tensor] | None = None,
    batch: int = 256,
) -> TopPatches:
    """The `count` strongest activations above 0 of each map of the node `at` over a data set, and what they see.

    `images` is anything of which a slice is a batch (N, C, H, W): a tensor, an array, a file mapped into memory.
    `prepare` turns a batch as it is stored into what the network wants. `one_an_image` keeps the strongest place of
    an image alone; of equal values the earlier image is kept. Only one batch of maps is held at a time.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    shape = tuple(_prepared(model, images, slice(0, 1), prepare).shape[1:])
    graph = trace(model, shape)
    part = graph.upto(at)
    check_maps(at, part.output.shape)
    channels, *extent = part.output.shape
    wanted = tuple(range(channels)) if maps is None else tuple(int(m) for m in maps)
    for m in wanted:
        if not 0 <= m < channels:
            raise ValueError(f"{at} has maps 0 to {channels - 1}, got {m}")
    keep = count if extent and not one_an_image else 1
    best: tuple[Tensor, Tensor, Tensor] | None = None
    batch = batch_size(part, batch)
    steps = range(0, len(images), batch)
    with borrowed(model, copied), torch.no_grad():
        run = part.module
        for start in progress(steps, f"strongest activations of {at}", total=len(steps), unit="batch"):
            value = run(_prepared(model, images, slice(start, start + batch), prepare).clone())
            flat = value.flatten(2) if value.dim() == 4 else value[..., None]
            flat = flat[:, list(wanted)].transpose(0, 1)  # (maps, N, places)
            top, place = flat.max(2, keepdim=True) if keep == 1 else flat.topk(min(keep, flat.shape[2]), dim=2)
            image = (torch.arange(flat.shape[1], device=flat.device) + start)[None, :, None].expand_as(top)
            found = tuple(part.flatten(1) for part in (top, image, place))
            best = found if best is None else tuple(torch.cat(pair, dim=1) for pair in zip(best, found))
            # A stable order, so that the batches do not show.
            order = best[0].sort(dim=1, descending=True, stable=True).indices[:, :count]
            best = tuple(part.gather(1, order) for part in best)
    row = next((row for row in fields_of(graph) if row.name == at), None)
    rows = []
    for m, *columns in zip(wanted, *(part.cpu().tolist() for part in best)):
        for rank, (value, image, place) in enumerate(zip(*columns)):
            if value > 0:
                position = divmod(place, extent[1]) if extent else ()
                rows.append(Patch(m, rank, image, position, value, box_of(row, position, shape[1:])))
    return TopPatches(type(model).__name__, at, shape, len(images), tuple(rows), wanted)


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
