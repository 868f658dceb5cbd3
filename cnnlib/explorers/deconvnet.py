"""Choose a layer, a map and a way back: the nine patches that excite it most, beside what each is projected to."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnlib.analysis.deconvnet import DECONVNET, GRADIENT, GUIDED, Way
from cnnlib.analysis.top_patches import Patch, TopPatches, pictures_of, reconstruct, strongest_in_layers
from cnnlib.explorers.html import Choice, Explorer, Range, png
from cnnlib.plots.deconvnet import shaded

SCRIPT = """
var L=data.layers[value('layer')],e=figure.querySelector('[name="map"]');
e.max=L.maps.length-1;if(Number(e.value)>L.maps.length-1)e.value=L.maps.length-1;e.disabled=L.maps.length===1;
var M=L.maps[value('map')],w=value('way');
show('map',M.number);
var p=figure.querySelector('img.patches'),r=figure.querySelector('img.projected');
p.src=M.patches;p.alt=M.alt;r.src=M.ways[w];r.alt=data.ways[w]+' of the same patches';
figure.querySelector('.caption-way').textContent=data.ways[w];
figure.querySelector('.reading').textContent=M.reading;
"""

_SIDE = 200  # pixels on the page


def sheet(pictures: Sequence[NDArray[np.uint8]], columns: int = 3) -> NDArray[np.uint8]:
    """Pictures (h, w, 4) of one size as one, `columns` to a row with a transparent pixel between them."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    rows = math.ceil(len(pictures) / columns)
    whole = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        top, left = row * (height + 1), column * (width + 1)
        whole[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return whole


def _uri(pictures: Sequence[NDArray[np.uint8]]) -> str:
    """The sheet of the pictures as PNG, in grey with opacity where no colour is in it, for a smaller page."""
    whole = sheet(pictures)
    grey = (whole[..., 0] == whole[..., 1]).all() and (whole[..., 1] == whole[..., 2]).all()
    return png(whole[..., 2:] if grey else whole)


def _layer(table: TopPatches, maps: int) -> list[int]:
    """The first maps that enough images excite; those with fewer patches only where there are no others."""
    most = max((len(table[m]) for m in table.maps), default=0)
    return [m for m in table.maps if len(table[m]) == most > 0][:maps]


def _reading(table: TopPatches, number: int, patches: Sequence[Patch], labels: Sequence[str] | None) -> str:
    top, left, bottom, right = patches[0].box
    strongest, weakest = patches[0].value, patches[-1].value
    said = (
        f"{table.at}, map {number}: the {len(patches)} strongest activations in {table.images:,} images, from "
        f"{strongest:.2f} to {weakest:.2f}. A unit sees {bottom - top}×{right - left} pixels."
    )
    if labels:
        counts = Counter(labels[patch.image] for patch in patches)
        said += " They come from: " + ", ".join(f"{name} ({n})" for name, n in counts.most_common()) + "."
    return said


def explore_deconvnet(
    model: nn.Module,
    images: Any,
    layers: Sequence[str],
    *,
    maps: int = 12,
    ways: Sequence[Way] = (DECONVNET, GUIDED, GRADIENT),
    labels: Sequence[str] | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    caption: str = "",
) -> Explorer:
    """Three controls, layer, map and way back, over the patches of `images` that excite the first `maps` maps of `layers`.

    `layers` are nodes of the traced graph; `labels` are the words of each image; `images` and `prepare` are as in
    `strongest_patches`. A network in float64 gives the same pictures on every machine. ValueError for a layer that no
    image excites.
    """
    if not layers or not ways or maps < 1:
        raise ValueError(
            f"at least one layer, map and way back: got {len(layers)} layers, {maps} maps, {len(ways)} ways"
        )
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"one label an image: got {len(labels)} labels and {len(images)} images")
    shown = []
    for at, table in strongest_in_layers(model, images, layers, prepare=prepare).items():
        numbers = _layer(table, maps)
        if not numbers:
            raise ValueError(f"no image excites {at} above 0, so that there is nothing to show of it; leave it out")
        patches = [patch for m in numbers for patch in table[m]]
        pieces = {
            "patches": pictures_of(images, patches, prepare=prepare),
            **{way.name: reconstruct(model, images, at, patches, way=way, prepare=prepare) for way in ways},
        }
        count = len(table[numbers[0]])
        sheets = []
        for i, m in enumerate(numbers):
            own = {name: found[i * count : (i + 1) * count] for name, found in pieces.items()}
            sheets.append(
                {
                    "number": m,
                    "patches": _uri(shaded(own["patches"])),
                    "ways": [_uri(shaded(own[way.name], signed=True)) for way in ways],
                    "alt": f"The {count} patches that excite map {m} of {at} most",
                    "reading": _reading(table, m, table[m], labels),
                }
            )
        shown.append({"name": at, "maps": sheets})
    one = shown[0]["maps"][0]
    box = f"width:{_SIDE}px;max-width:100%"
    name = html.escape(ways[0].name)
    first = (
        '<div style="display:flex;flex-wrap:wrap;gap:1rem;justify-content:center">'
        f'<div><img class="pixels patches" src="{one["patches"]}" alt="{html.escape(one["alt"])}" style="{box}">'
        '<div style="text-align:center">patches</div></div>'
        f'<div><img class="pixels projected" src="{one["ways"][0]}" alt="{name} of the same patches" style="{box}">'
        f'<div style="text-align:center" class="caption-way">{name}</div></div></div>'
        f'<p class="reading" aria-live="polite" data-value>{html.escape(one["reading"])}</p>'
    )
    return Explorer(
        name="deconvnet",
        title="What excites a feature map",
        controls=[
            Choice("layer", "Layer", list(layers)),
            Range("map", "Map", 0, len(shown[0]["maps"]) - 1, 0),
            Choice("way", "Way back", [way.name for way in ways]),
        ],
        first=first,
        data={"layers": shown, "ways": [way.name for way in ways]},
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )
