"""Occlusion maps over their image: where the square costs the right class its probability, and what is answered there.

paper     Zeiler and Fergus 2013, Visualizing and understanding convolutional networks, figure 7, columns d and e
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from cnnlib.plots.deconvnet import GAP
from cnnlib.plots.style import INK, PALETTE, sequential

if TYPE_CHECKING:
    from cnnlib.analysis.occlusion import OcclusionMap

# The watched class first, then the others by how often they are answered.
ANSWERS = tuple(PALETTE[name] for name in ("blue", "orange", "green", "red", "purple", "teal", "brown", "pink"))

PALE, LAID = 0.4, 0.75  # how strong the picture and the map over it are


def bitmap(picture: ArrayLike) -> NDArray[np.uint8]:
    """A picture (1 or 3, H, W), 8-bit or in [0, 1], as (H, W, 3) of 8 bits."""
    values = np.asarray(picture)
    if values.ndim != 3 or len(values) not in (1, 3):
        raise ValueError(f"a picture must be (1, H, W) or (3, H, W), got {values.shape}")
    if values.dtype != np.uint8:
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"a picture must be 8-bit or have values in [0, 1], got {values.min():.3g} to {values.max():.3g}; give it "
                "as it was before the network's preprocessing"
            )
        values = np.round(255 * values).astype(np.uint8)
    return np.moveaxis(np.broadcast_to(values, (3, *values.shape[1:])), 0, -1).copy()


def extent_of(found: OcclusionMap) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of the map whose cells are centred where the squares are, one a place.

    Where the last square is cut off by the border, the last cells may reach beyond the image.
    """
    ends = []
    for starts, side in zip((found.lefts, found.tops), found.square[::-1]):
        stride = starts[1] - starts[0] if len(starts) > 1 else side
        ends.append((starts[0] + (side - stride) / 2, starts[-1] + (side + stride) / 2))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def coloured(found: OcclusionMap) -> NDArray[np.uint8]:
    """The probability of the watched class at each place as colours (rows, columns, 3), dark 0 and bright 1."""
    values = np.clip(np.asarray(found.probability, dtype=np.float64), 0, 1)
    return np.round(255 * sequential()(values)[..., :3]).astype(np.uint8)


def answered(found: OcclusionMap) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """The answer at each place as colours (rows, columns, 3), and the colour of each class: the watched one is blue."""
    order = [found.label, *(label for label in found.answers if label != found.label)]
    colours = {label: ANSWERS[i % len(ANSWERS)] for i, label in enumerate(order)}
    answers = np.asarray(found.answer)
    whole = np.zeros((*answers.shape, 3), dtype=np.uint8)
    for label, colour in colours.items():
        whole[answers == label] = np.round(255 * np.asarray(to_rgb(colour))).astype(np.uint8)
    return whole, {label: colour for label, colour in colours.items() if label in found.answers}


def paler(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture nearer to mid-grey, as what lies under a map; opaque, so that the page's colour does not show through."""
    return np.round(PALE * pixels + (1 - PALE) * 128.0).astype(np.uint8)


def draw_occlusion(
    found: OcclusionMap, picture: ArrayLike, ax: Axes, *, classes: Sequence[str] | None = None, grey: float = 0.5
) -> Axes:
    """Draw an image with the square where it costs most, the probability of the watched class, and the answer.

    The two maps lie over the image, each cell where the centre of its square is. `picture` is (1 or 3, H, W) as it was
    before preprocessing, 8-bit or in [0, 1]; `classes` are their names; `grey` is the square's colour in [0, 1].
    """
    pixels = bitmap(picture)
    height, width = pixels.shape[:2]
    if (height, width) != found.size:
        raise ValueError(
            f"the map is of an image of {found.size[0]}x{found.size[1]} pixels, the picture has {height}x{width}"
        )
    name = (lambda label: classes[label]) if classes is not None else (lambda label: f"class {label}")
    tall = height / width
    answers, colours = answered(found)
    left, top, right, bottom = extent_of(found)
    titles = ("image", f"probability of {name(found.label)}", "answer")
    for i, (title, cells) in enumerate(zip(titles, (None, coloured(found), answers))):
        x = i * (1 + GAP)
        ax.text(x + 0.5, -0.04, title, ha="center", va="bottom", fontsize="small")
        shown = pixels if cells is None else paler(pixels)
        ax.imshow(shown, extent=(x, x + 1, tall, 0), interpolation="nearest")
        frame = Rectangle((x, 0), 1, tall, fill=False, edgecolor=INK, lw=0.5)
        ax.add_patch(frame)
        if cells is not None:
            box = (x + left / width, x + right / width, bottom / width, top / width)
            laid = ax.imshow(cells, extent=box, interpolation="nearest", alpha=LAID)
            laid.set_clip_path(frame)
    row, column, end, last = found.hidden(*found.lowest)
    square = Rectangle((column / width, row / width), (last - column) / width, (end - row) / width)
    square.set(facecolor=(grey,) * 3, edgecolor=PALETTE["orange"], lw=1.2)
    ax.add_patch(square)
    _scale(ax, 1 + GAP, tall)
    _names(ax, 2 * (1 + GAP), tall, {name(k): (colours[k], n) for k, n in found.answers.items()}, found.answer.numel())
    ax.set_xlim(-0.02, 3 + 2 * GAP + 0.02)
    ax.set_ylim(tall + 0.05 + 0.11 * max(3, len(colours)), -0.16)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def _scale(ax: Axes, left: float, top: float) -> None:
    """The colours from 0 to 1 under a tile."""
    shades = sequential()(np.linspace(0, 1, 64))[None, :, :3]
    box = (left + 0.12, left + 0.88, top + 0.13, top + 0.06)
    ax.imshow(np.full_like(shades, 128 / 255), extent=box, interpolation="nearest")
    ax.imshow(shades, extent=box, interpolation="nearest", alpha=LAID)
    for x, text, side in ((0.09, "0", "right"), (0.91, "1", "left")):
        ax.text(left + x, top + 0.095, text, ha=side, va="center", fontsize="small")


def _names(ax: Axes, left: float, top: float, answers: dict[str, tuple[str, int]], places: int) -> None:
    """The classes that are answered, each with its colour and its share of the places, under a tile."""
    for i, (name, (colour, count)) in enumerate(answers.items()):
        y = top + 0.06 + 0.11 * i
        ax.add_patch(Rectangle((left, y), 0.07, 0.07, facecolor=colour, alpha=LAID, lw=0))
        ax.text(left + 0.11, y + 0.035, f"{name}, {count} of {places}", va="center", fontsize="small")
