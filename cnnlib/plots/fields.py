"""Receptive fields: how they grow with depth, and what they cover of a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from cnnlib.plots.style import INK, PALETTE


def draw_field_growth(names: Sequence[str], sizes: Sequence[float], ax: Axes, *, label: str, colour: str) -> Axes:
    """Draw the field's side in pixels after each of `names`, in their order; an infinite one (whole image) ends the line."""
    if len(names) != len(sizes):
        raise ValueError(f"one size a name: there are {len(names)} names and {len(sizes)} sizes")
    ax.step(range(len(sizes)), sizes, where="mid", color=colour, label=label)
    ax.scatter(range(len(sizes)), sizes, s=18, color=colour, zorder=3)
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("receptive field, pixels")
    return ax


def draw_fields_on(
    picture: ArrayLike, fields: Sequence[tuple[str, float, float, float, float]], ax: Axes, *, cmap: str = "gray"
) -> Axes:
    """Draw squares over `picture` (H, W): each field is (label, top, left, height, width) in pixels, pixel 0 from -0.5 to 0.5.

    What lies outside of the picture is drawn too: there the network sees its own padding.
    """
    image = np.asarray(picture)
    ax.imshow(image, cmap=cmap, interpolation="nearest")
    colours = list(PALETTE.values())
    low, high = -0.5, max(image.shape[:2]) - 0.5
    for (label, top, left, height, width), colour in zip(fields, colours):
        ax.add_patch(Rectangle((left, top), width, height, fill=False, ec=colour, lw=2, label=label))
        low, high = min(low, top, left), max(high, top + height, left + width)
    pad = 0.02 * (high - low)
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(high + pad, low - pad)
    ax.grid(False)
    ax.tick_params(colors=INK, length=2)
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=min(len(fields), 5), handlelength=1, columnspacing=1
    )
    return ax
