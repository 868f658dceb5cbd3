"""Move through the stages of a network: the pixels that a unit could see, and those that it listens to."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnnlib.analysis.effective_fields import EffectiveRow, EffectiveTable
from cnnlib.explorers.html import Explorer, Range, png

HEAT = (217, 130, 43)

SCRIPT = """
var s=data.stages[value('stage')];show('stage',s.name);
var put=function(name,box){var e=figure.querySelector('rect.'+name);['y','x','height','width'].forEach(function(a,i){e.setAttribute(a,box[i]);});};
put('field',s.field);put('held',s.held);
figure.querySelector('image.heat').setAttribute('href',s.heat);
figure.querySelector('.reading').textContent=s.reading;
var svg=figure.querySelector('svg');svg.setAttribute('aria-label',s.alt);svg.setAttribute('viewBox',s.view);
"""


def _heat(mass: np.ndarray) -> str:
    """The gradient as a picture of one colour, as opaque as the root of the share of its largest value."""
    peak = mass.max()
    layer = np.empty((*mass.shape, 4), dtype=np.uint8)
    layer[..., :3] = HEAT
    layer[..., 3] = np.round(230 * np.sqrt(mass / peak)) if peak > 0 else 0
    return png(layer)


def _stage(row: EffectiveRow, mass: np.ndarray) -> dict[str, Any]:
    """What the page shows of one map; boxes are top, left, height, width with pixel i drawn from i to i + 1."""
    height, width = mass.shape
    top, left, tall, wide = row.field or (0, 0, height, width)
    size = "the whole image" if row.field is None else f"{tall:g}×{wide:g} pixels"
    y, x = row.centre
    held = [y + 0.5 - row.side / 2, x + 0.5 - row.side / 2, row.side, row.side]
    reading = (
        f"{row.name}, unit in row {row.position[0]}, column {row.position[1]}: it could see {size}, and 95.45 % of its "
        f"gradient lies in {row.side:g}×{row.side:g}. Pixels above 4.55 % of the largest gradient fill as much as a square of "
        f"{row.root_area:.1f}, {100 * row.share:.0f} % of the field's pixels in the image"
        + (f"; {100 * (1 - row.inside):.0f} % of the field lies outside of it." if row.inside < 1 else ".")
    )
    # As much of the surroundings as the field needs, up to one side of the image.
    margin = min(max(-top, -left, top + tall - height, left + wide - width, 0) + 1, max(height, width))
    return {
        "name": row.name,
        "field": [top, left, tall, wide],
        "held": held,
        "heat": _heat(mass),
        "reading": reading,
        "alt": f"An image; a square over {size} that the unit could see, and in colour the pixels that it listens to",
        "view": f"{-margin:g} {-margin:g} {width + 2 * margin:g} {height + 2 * margin:g}",
    }


def explore_effective_field(table: EffectiveTable, picture: ArrayLike, *, caption: str = "") -> Explorer:
    """One slider over the maps of `table` (of `effective_field`): theoretical and effective field on one `picture`.

    The picture is (H, W) or (H, W, 3) of uint8, as high and wide as the images of the table; ValueError for another.
    """
    image = np.asarray(picture)
    if image.shape[:2] != tuple(table.input_shape[1:]):
        raise ValueError(
            f"the picture must be as high and wide as the table's images, {tuple(table.input_shape[1:])}, got "
            f"{image.shape[:2]}"
        )
    stages = [_stage(row, table.mass[row.name]) for row in table]
    return Explorer(
        name="effective-field",
        title="What a unit could see and what it listens to",
        controls=[Range("stage", "Stage", 0, len(stages) - 1, 0)],
        first=_drawing(image, stages[0]),
        data={"stages": stages},
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )


def _drawing(image: np.ndarray, stage: dict[str, Any]) -> str:
    height, width = image.shape[:2]
    line = max(height, width) / 80

    def rect(name: str, box: list[float], colour: str, dash: str) -> str:
        top, left, tall, wide = box
        return (
            f'<rect class="{name}" x="{left}" y="{top}" width="{wide}" height="{tall}" fill="none" stroke="{colour}" '
            f'stroke-width="{line}"{dash}/>'
        )

    dashes = f' stroke-dasharray="{3 * line} {2 * line}"'
    pixels = f'width="{width}" height="{height}" style="image-rendering:pixelated"'
    return (
        f'<svg role="img" viewBox="{stage["view"]}" width="360" aria-label="{html.escape(stage["alt"])}">'
        f'<image href="{png(image)}" {pixels}/><image class="heat" href="{stage["heat"]}" {pixels}/>'
        f"{rect('field', stage['field'], '#3b8bc2', '')}"
        f"{rect('held', stage['held'], '#d9822b', dashes)}</svg>"
        f'<p class="reading" aria-live="polite" data-value>{html.escape(stage["reading"])}</p>'
    )
