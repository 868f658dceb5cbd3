"""Choose an image and a layer, and see every feature map that the network makes of it."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnnlib.explorers.html import Choice, Explorer, Range, png

SCRIPT = """
var i=value('image'),l=value('layer'),p=data.pictures[i][l];
show('layer',p.name);
var e=figure.querySelector('img');e.src=p.png;e.alt=p.alt;e.style.width=p.width+'px';
figure.querySelector('.reading').textContent=p.reading;
"""


def mosaic(maps: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(C, H, W) values -> one picture of all C maps with a grey pixel between them, black the lowest and white the highest."""
    count, height, width = maps.shape
    columns = math.ceil(math.sqrt(count * height / width)) if count > 1 else 1
    rows = math.ceil(count / columns)
    low, high = maps.min(), maps.max()
    scaled = np.round((maps - low) / (high - low if high > low else 1.0) * 255)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), 125, dtype=np.uint8)
    for i, one in enumerate(scaled):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = one.astype(np.uint8)
    return sheet


def explore_feature_maps(
    titles: Sequence[str], maps: Sequence[Mapping[str, ArrayLike]], answers: Sequence[str], *, caption: str = ""
) -> Explorer:
    """A list of images and a slider over layers: `maps[i]` are the layers of image `titles[i]`, (C, H, W) or (units,).

    `answers[i]` says in words what the network makes of it. Give the values in float64, so that the 8-bit pictures are
    the same on every machine.
    """
    if not titles or len(titles) != len(maps) or len(titles) != len(answers):
        raise ValueError(
            f"one title, one set of maps and one answer an image: got {len(titles)} titles, {len(maps)} sets of maps and "
            f"{len(answers)} answers"
        )
    pictures = []
    for title, layers, answer in zip(titles, maps, answers):
        sheets = []
        for name, values in layers.items():
            array = np.asarray(values, dtype=np.float64)
            if array.ndim not in (1, 3):
                raise ValueError(f"maps of layer {name!r} must be (C, H, W) or (units,), got shape {array.shape}")
            planes = array if array.ndim == 3 else array.reshape(1, *_near_square(array.size))
            what = (
                f"{len(array)} units"
                if array.ndim == 1
                else f"{len(array)} map{'s' * (len(array) > 1)} of {array.shape[1]}×{array.shape[2]}"
            )
            sheet = mosaic(planes)
            reading = f"{name}: {what}, values from {array.min():.2f} (black) to {array.max():.2f} (white). {answer}"
            scale = max(1, min(12, 420 // sheet.shape[1]))
            sheets.append(
                {
                    "name": name,
                    "png": png(sheet),
                    "alt": f"{title} in layer {name}: {what}",
                    "reading": reading,
                    "width": int(sheet.shape[1] * scale),
                }
            )
        pictures.append(sheets)
    one = pictures[0][0]
    first = (
        f'<img class="pixels" src="{one["png"]}" alt="{html.escape(one["alt"])}" style="width:{one["width"]}px">'
        f'<p class="reading" aria-live="polite" data-value>{html.escape(one["reading"])}</p>'
    )
    return Explorer(
        name="feature-maps",
        title="What every layer makes of an image",
        controls=[Choice("image", "Image", list(titles)), Range("layer", "Layer", 0, len(pictures[0]) - 1, 0)],
        first=first,
        data={"pictures": pictures},
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )


def _near_square(units: int) -> tuple[int, int]:
    """The factors of `units` nearest to each other, the smaller last: 84 -> (12, 7), 10 -> (5, 2)."""
    width = max(w for w in range(1, math.isqrt(units) + 1) if units % w == 0)
    return units // width, width
