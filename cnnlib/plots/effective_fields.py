"""What a value listens to, over its picture; how fields grow in many networks; where branches look; what lies outside."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from cnnlib.analysis.effective_fields import BorderRow, EffectiveRow, EffectiveTable, GrowthStep, MeetingRow
from cnnlib.plots.style import INK, NETWORKS, PALETTE, sequential

DASHES = ("-", "--", ":", "-.")
FIELD, HEAT = PALETTE["blue"], PALETTE["orange"]


def tinted(mass: ArrayLike, colour: str = HEAT) -> NDArray[np.float64]:
    """A gradient (H, W) as a layer of one colour (H, W, 4): as opaque as the root of the share of its largest value."""
    values = np.asarray(mass, dtype=float)
    largest = values.max() if values.size else 0.0
    layer = np.empty((*values.shape, 4))
    layer[..., :3] = to_rgb(colour)
    layer[..., 3] = 0.9 * np.sqrt(values / largest) if largest > 0 else 0.0
    return layer


def draw_effective_field(picture: ArrayLike, table: EffectiveTable, name: str, ax: Axes) -> Axes:
    """Draw over `picture`, (H, W) or (H, W, 3), the gradient of map `name`, its field by geometry and the square of `side`.

    A field that reaches out of the picture is drawn with what lies outside, up to one side of the picture.
    """
    row, mass = table[name], table.mass[name]
    image = np.asarray(picture)
    if image.shape[:2] != mass.shape:
        raise ValueError(f"the picture must be as high and wide as the gradient, {mass.shape}, got {image.shape[:2]}")
    height, width = mass.shape
    ax.imshow(image, cmap="gray", interpolation="nearest")
    ax.imshow(tinted(mass), interpolation="nearest")
    top, left, tall, wide = _frame(row, mass.shape)
    words = "the whole image" if row.field is None else f"{tall:g}×{wide:g}"
    if max(-top, -left) > max(height, width):
        words += ", beyond the drawing"
    ax.add_patch(Rectangle((left - 0.5, top - 0.5), wide, tall, fill=False, ec=FIELD, lw=2, label=f"field {words}"))
    y, x = row.centre
    ax.add_patch(
        Rectangle(
            (x - row.side / 2, y - row.side / 2),
            *(row.side, row.side),
            **dict(fill=False, ec=HEAT, lw=2, ls="--", label=f"95.45 % in {row.side:g}×{row.side:g}"),
        )
    )
    outside = max(-top, -left, top + tall - height, left + wide - width, 0)
    reach = min(outside + 1, max(height, width))
    ax.set_xlim(-0.5 - reach, width - 0.5 + reach)
    ax.set_ylim(height - 0.5 + reach, -0.5 - reach)
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(name)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), handlelength=1)
    return ax


def _frame(row: EffectiveRow, shape: tuple[int, int]) -> tuple[float, float, float, float]:
    return row.field or (0, 0, *shape)


def draw_field_use(table: EffectiveTable, ax: Axes) -> Axes:
    """Draw the theoretical field and the two effective sizes of each map of `table`, in their order."""
    names = [row.name for row in table]
    side = max(table.input_shape[1:])
    theoretical = [max(_pair(row.theoretical)) for row in table]
    ax.plot(names, [size if math.isfinite(size) else np.nan for size in theoretical], color=FIELD, marker="o", ms=4)
    ax.plot(names, [row.side for row in table], color=HEAT, marker="o", ms=4, ls="--")
    ax.plot(names, [row.root_area for row in table], color=PALETTE["green"], marker="o", ms=4, ls=":")
    ax.axhline(side, color=INK, lw=0.8)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:g}")
    words = ("theoretical", "holds 95.45 %", "root of the area above 4.55 %", "the image")
    ax.legend(ax.lines, words, loc="lower right", fontsize="small")
    ax.set_ylabel("pixels")
    ax.tick_params(axis="x", rotation=30)
    for label in ax.get_xticklabels():
        label.set_ha("right")
    return ax


def _pair(value: float | tuple[float, float]) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


def draw_growth_of_fields(
    networks: Mapping[str, Sequence[GrowthStep]],
    ax: Axes,
    *,
    named: Sequence[str] | None = None,
    side: int | None = None,
) -> Axes:
    """Draw how the field grows with the number of weight layers, one line a network (`field_growth`), both axes by powers.

    `named` (by default all, if they are at most twelve, else those that have a colour of their own in the book) are drawn in
    colour with their name; the others are thin and grey. A triangle ends a line that reaches the whole image. `side`
    draws the side of an image.
    """
    if not networks:
        raise ValueError("there is no network to draw; pass at least one, as {name: field_growth(...)}")
    if named is None:
        named = list(networks) if len(networks) <= 12 else [name for name in networks if name in NETWORKS]
    for name in named:
        if name not in networks:
            raise ValueError(f"{name!r} is named and not among the networks: {', '.join(networks)}")
    free = iter([c for c in PALETTE.values() if c not in {NETWORKS.get(name) for name in named}] * len(named))
    used: Counter[str] = Counter()
    for name, steps in sorted(networks.items(), key=lambda item: item[0] in named):
        reached = [step for step in steps if step.depth and math.isfinite(step.size)]
        special = name in named
        colour = (NETWORKS.get(name) or next(free, INK)) if special else INK
        if not reached:
            continue
        # Members of a family share a colour; a dash tells them apart.
        dash = DASHES[used[colour] % len(DASHES)] if special else "-"
        used[colour] += special
        style = dict(lw=1.8, zorder=3) if special else dict(lw=0.7, alpha=0.45, zorder=1)
        depths, sizes = [step.depth for step in reached], [step.size for step in reached]
        ax.plot(depths, sizes, color=colour, ls=dash, label=name if special else None, **style)
        whole = any(math.isinf(step.size) for step in steps)
        ax.plot(depths[-1], sizes[-1], color=colour, marker="^" if whole else "o", ms=5 if special else 3, **style)
    if side is not None:
        ax.axhline(side, color=INK, lw=0.8, ls=":")
        ax.text(0.01, side, f"{side} pixels", transform=ax.get_yaxis_transform(), va="bottom", fontsize="small")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("weight layers on the longest way")
    ax.set_ylabel("receptive field, pixels")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    return ax


def draw_border_case(row: BorderRow, ax: Axes) -> Axes:
    """Draw for each position of a map the share of its field that lies outside of the image, 0 to 100 %."""
    shown = ax.imshow(100 * row.outside, cmap=sequential(), vmin=0, vmax=100, interpolation="nearest")
    if max(row.positions) <= 8:
        for (i, j), share in np.ndenumerate(row.outside):
            # The map of colours is dark for small shares and light for large ones.
            tone = "black" if share > 0.5 else "white"
            ax.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize="small", color=tone)
    size = "whole image" if row.size == math.inf else "×".join(f"{n:g}" for n in _pair(row.size))
    ax.set_title(f"{row.name}: fields of {size}")
    ax.set_xlabel("column of the map")
    ax.set_ylabel("row of the map")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.grid(False)
    bar = ax.figure.colorbar(shown, ax=ax, fraction=0.046, pad=0.04)
    bar.set_label("% of the field outside")
    bar.outline.set_edgecolor(INK)
    return ax


def draw_alignment(row: MeetingRow, ax: Axes) -> Axes:
    """Draw which pixels each branch that meets at `row` sees from position 0, along height; a dot is the centre."""
    drawn = [branch for branch in row.branches if branch.offset is not None and math.isfinite(_pair(branch.size)[0])]
    if not drawn:
        raise ValueError(f"no branch of {row.name} has a field of known place; see receptive_field(...) for why")
    for i, (branch, colour) in enumerate(zip(drawn, list(PALETTE.values()) * len(drawn))):
        size, centre = _pair(branch.size)[0], _pair(branch.offset)[0]
        ax.add_patch(Rectangle((centre - size / 2, i - 0.3), size, 0.6, fc=colour + "40", ec=colour, lw=1.5))
        ax.plot(centre, i, "o", color=colour, ms=5)
        ax.text(centre, i - 0.36, f"{size:g} pixels, centre {centre:g}", ha="center", va="bottom", fontsize="small")
    ends = [(_pair(b.offset)[0] - _pair(b.size)[0] / 2, _pair(b.offset)[0] + _pair(b.size)[0] / 2) for b in drawn]
    low, high = min(a for a, _ in ends), max(b for _, b in ends)
    pad = 0.05 * (high - low) + 0.5
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(len(drawn) - 0.5, -0.8)
    ax.set_yticks(range(len(drawn)), [branch.name for branch in drawn])
    ax.set_xlabel("pixel (0 is the first of the image)")
    words = (
        "without a common place" if row.shift is None else "aligned" if row.aligned else f"{row.shift:g} pixels apart"
    )
    ax.set_title(f"{row.name}: branches {words}")
    ax.grid(axis="y", visible=False)
    return ax
