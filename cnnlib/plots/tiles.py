"""Many small pictures in one Axes: filters, feature maps, images, bitmaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from numpy.typing import ArrayLike

from cnnlib.plots.style import INK


def draw_tiles(
    pictures: ArrayLike,
    ax: Axes,
    *,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    cmap: str | Colormap = "gray",
    symmetric: bool = False,
    shared: bool = True,
) -> Axes:
    """Draw `pictures` (n, H, W), or (n, H, W, 3) with values in [0, 1], side by side, `columns` to a row.

    `symmetric` puts zero in the middle of the colours (for weights); `shared` gives all tiles one scale, so that a
    weak map looks weak; else each tile has its own.
    """
    stack = np.asarray(pictures, dtype=float)
    if stack.ndim not in (3, 4) or not len(stack):
        raise ValueError(f"pictures must be (n, H, W) or (n, H, W, 3) with n >= 1, got shape {stack.shape}")
    count, height, width = stack.shape[:3]
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    flat = np.abs(stack).reshape(count, -1).max(axis=1) if symmetric else stack.reshape(count, -1).max(axis=1)
    low = -flat if symmetric else stack.reshape(count, -1).min(axis=1)
    if shared:
        flat, low = np.full(count, flat.max()), np.full(count, low.min())
    gap, head = 0.12, (0.28 if labels else 0.0)
    for i, picture in enumerate(stack):
        row, column = divmod(i, columns)
        left, top = column * (1 + gap), row * (height / width + gap + head) + head
        box = (left, left + 1, top + height / width, top)
        span = dict(vmin=low[i], vmax=flat[i] if flat[i] > low[i] else low[i] + 1)
        ax.imshow(picture, extent=box, cmap=cmap, interpolation="nearest", **(span if stack.ndim == 3 else {}))
        ax.plot([left, left + 1, left + 1, left, left], [top, top, box[2], box[2], top], color=INK, lw=0.5)
        if labels:
            ax.text(left + 0.5, top - 0.05, labels[i], ha="center", va="bottom", fontsize="small")
    ax.set_xlim(-0.02, columns * (1 + gap) - gap + 0.02)
    ax.set_ylim(rows * (height / width + gap + head) - gap + 0.02, -0.02)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax
