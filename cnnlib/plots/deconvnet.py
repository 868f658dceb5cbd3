"""Pieces of images, what is projected back to them, and learned filters: signed pictures with zero as mid-grey."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from cnnlib.plots.style import INK

GAP = 0.12  # between pictures, in widths of one


def shaded(pieces: Sequence[ArrayLike], *, signed: bool = False) -> list[NDArray[np.uint8]]:
    """Pieces (1 or 3, h, w) as pictures (h, w, 4) of red, green, blue and opacity; NaN is transparent.

    Unsigned pieces share one scale, black the lowest value of all and white the highest. A signed one has its own, with
    zero in the middle and its largest magnitude at black or white.
    """
    arrays = [np.asarray(piece, dtype=float) for piece in pieces]
    for array in arrays:
        if array.ndim != 3 or len(array) not in (1, 3):
            raise ValueError(
                f"a picture must be (1, h, w) or (3, h, w), got {array.shape}; take one channel, x[:, :1], to see it alone"
            )
    values = np.concatenate([array[np.isfinite(array)] for array in arrays]) if arrays else np.zeros(0)
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    found = []
    for array in arrays:
        here = np.isfinite(array)
        filled = np.where(here, array, 0.0)
        if signed:
            most = np.abs(filled).max(initial=0.0)
            scaled = 0.5 + filled / (2 * most if most > 0 else 1.0)
        else:
            scaled = (filled - low) / (high - low if high > low else 1.0)
        colours = np.clip(np.round(scaled * 255), 0, 255).astype(np.uint8)
        opacity = np.where(here.all(axis=0), 255, 0).astype(np.uint8)
        colours = np.where(opacity, colours, 0).astype(np.uint8)
        found.append(np.dstack([*np.broadcast_to(colours, (3, *array.shape[1:])), opacity]))
    return found


def _put(pictures: Sequence[NDArray[np.uint8]], ax: Axes, columns: int, left: float = 0.0, top: float = 0.0) -> None:
    """Pictures as tiles of width 1, `columns` to a row, in the order in which one reads."""
    tallest = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        x, y = left + column * (1 + GAP), top + row * (tallest + GAP)
        height = picture.shape[0] / picture.shape[1]
        ax.imshow(picture, extent=(x, x + 1, y + height, y), interpolation="nearest")
        ax.plot([x, x + 1, x + 1, x, x], [y, y, y + height, y + height, y], color=INK, lw=0.5)


def _extent(count: int, columns: int, ratio: float) -> tuple[float, float]:
    """Width and height of `count` tiles."""
    rows = math.ceil(count / columns)
    return columns * (1 + GAP) - GAP, rows * (ratio + GAP) - GAP


def _frame(ax: Axes, width: float, height: float, head: float = 0.0) -> Axes:
    ax.set_xlim(-0.02, width + 0.02)
    ax.set_ylim(height + 0.02, -head - 0.02)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def _ratio(pictures: Sequence[NDArray[np.uint8]]) -> float:
    return max(picture.shape[0] / picture.shape[1] for picture in pictures)


def draw_filters(filters: ArrayLike, ax: Axes, *, columns: int | None = None) -> Axes:
    """Draw filters (n, 1 or 3, h, w), each on its own scale: mid-grey is zero, so that the faint ones show too."""
    pictures = shaded(list(np.asarray(filters)), signed=True)
    if not pictures:
        raise ValueError("there are no filters to draw; cnnlib.analysis.first_filters(model, input_shape) has some")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    _put(pictures, ax, columns)
    return _frame(ax, *_extent(len(pictures), columns, _ratio(pictures)))


def draw_patches(
    patches: Sequence[ArrayLike], reconstructions: Sequence[ArrayLike], ax: Axes, *, columns: int = 3
) -> Axes:
    """Draw the patches that excite a map most, and to the right, in the same order, what each is projected to.

    Pieces are (1 or 3, h, w); what lies outside of the image is NaN and stays empty.
    """
    if not patches or len(patches) != len(reconstructions):
        raise ValueError(
            f"one reconstruction a patch, and at least one: got {len(patches)} patches and {len(reconstructions)} "
            "reconstructions"
        )
    left, right = shaded(patches), shaded(reconstructions, signed=True)
    columns = min(columns, len(left))
    width, height = _extent(len(left), columns, _ratio(left))
    _put(left, ax, columns)
    _put(right, ax, columns, left=width + 3 * GAP)
    return _frame(ax, 2 * width + 3 * GAP, height)


def draw_ways(picture: ArrayLike, ways: Mapping[str, ArrayLike], ax: Axes) -> Axes:
    """Draw an image (1 or 3, H, W) and beside it what each way back, by its name, makes of one activation."""
    if not ways:
        raise ValueError("there is no way back to draw; give at least one name with its pixels (C, H, W)")
    pictures = shaded([picture]) + shaded(list(ways.values()), signed=True)
    _put(pictures, ax, len(pictures))
    for i, name in enumerate(["image", *ways]):
        ax.text(i * (1 + GAP) + 0.5, -0.05, name, ha="center", va="bottom", fontsize="small")
    return _frame(ax, *_extent(len(pictures), len(pictures), _ratio(pictures)), head=0.2)
