"""Drawings of the VGG lecture: stacks of small filters from the side, table 1 as columns, where a network keeps what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cnnlib.plots.style import FAINT, INK, KINDS, PALETTE

ONE_BY_ONE = PALETTE["purple"]
NORM = PALETTE["teal"]


def draw_pyramid(kernels: Sequence[int], ax: Axes, *, colour: str, title: str = "") -> Axes:
    """Draw, from the side, what one unit sees through a stack of `kernels` of stride 1: pixels below, the unit on top.

    Each row holds the units that the unit on top depends on; lines go to what one of them reads.
    """
    if not kernels:
        raise ValueError("there is no kernel to draw; pass at least one, such as [3, 3]")
    widths = [1]
    for kernel in reversed(kernels):
        widths.insert(0, widths[0] + kernel - 1)
    for row, width in enumerate(widths):
        places = [place - (width - 1) / 2 for place in range(width)]
        if row:
            reach = (kernels[row - 1] - 1) / 2
            for place in places:
                for end in (place - reach, place + reach):
                    ax.plot([place, end], [row - 0.16, row - 0.84], color=colour, lw=0.9, alpha=0.55)
        for place in places:
            face = colour if row in (0, len(widths) - 1) else FAINT
            ax.add_patch(Rectangle((place - 0.4, row - 0.16), 0.8, 0.32, fc=face, ec=colour, lw=0.8))
    for row, kernel in enumerate(kernels):
        ax.text(widths[0] / 2 + 0.3, row + 0.5, f"{kernel}×{kernel}", va="center", ha="left", fontsize="small")
    ax.text(0, -0.42, f"{widths[0]} pixels", va="top", ha="center", fontsize="small")
    ax.set_title(title)
    ax.set_xlim(-widths[0] / 2 - 0.4, widths[0] / 2 + 2)
    ax.set_ylim(-0.95, len(widths) - 0.6)
    ax.axis("off")
    return ax


def draw_columns(columns: Mapping[str, Sequence[str]], ax: Axes, *, side: int = 224, units: Sequence[int] = ()) -> Axes:
    """Draw networks in VGG's notation side by side, a column each: boxes for convolutions, lines for pooling.

    `columns` maps a name to the entries between poolings (`"3-64 3-64"`, also `"3-64 LRN"`); `units` are the linear
    layers below, which all share. ValueError where the columns have unlike numbers of entries.
    """
    lengths = {len(stages) for stages in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"every column needs as many entries between poolings as the others, got {sorted(lengths)}")
    top = 0.0
    for stage in range(lengths.pop()):
        rows = max(len(stages[stage].split()) for stages in columns.values())
        ax.text(-0.62, top - rows / 2, f"{side}×{side}", ha="right", va="center", fontsize="small")
        for x, stages in enumerate(columns.values()):
            for row, layer in enumerate(stages[stage].split()):
                colour = NORM if layer == "LRN" else KINDS["conv"] if layer.startswith("3") else ONE_BY_ONE
                _box(ax, x, top - row, layer, colour)
        top -= rows + 0.25
        ax.plot([-0.48, len(columns) - 0.52], [top, top], color=KINDS["pool"], lw=3, solid_capstyle="butt")
        top -= 0.25
        side //= 2
    for layer in units:
        for x in range(len(columns)):
            _box(ax, x, top, f"FC-{layer}", KINDS["linear"])
        top -= 1
    for x, name in enumerate(columns):
        ax.text(x, 0.25, name, ha="center", va="bottom", fontweight="bold")
    ax.set_xlim(-1.5, len(columns) - 0.45)
    ax.set_ylim(top - 0.1, 1.1)
    ax.axis("off")
    return ax


def _box(ax: Axes, x: float, top: float, text: str, colour: str) -> None:
    ax.add_patch(Rectangle((x - 0.46, top - 0.92), 0.92, 0.84, fc=colour + "33", ec=colour, lw=0.9))
    ax.text(x, top - 0.5, text, ha="center", va="center", fontsize="x-small")


def draw_shares(
    layers: Sequence[tuple[str, str]], quantities: Mapping[str, Sequence[float]], axes: Sequence[Axes]
) -> Sequence[Axes]:
    """Draw, an Axes a quantity, the percentage that each layer (name, kind) holds of the quantity's sum."""
    if len(axes) != len(quantities) or any(len(values) != len(layers) for values in quantities.values()):
        raise ValueError(
            f"one Axes a quantity and one value a layer: there are {len(axes)} Axes, {len(layers)} layers and "
            f"{', '.join(f'{len(values)} values of {name}' for name, values in quantities.items())}"
        )
    for ax, (name, values) in zip(axes, quantities.items()):
        total = sum(values)
        shares = [100 * value / total for value in values]
        ax.barh(range(len(layers)), shares, color=[KINDS.get(kind, INK) for _, kind in layers], height=0.75)
        for row, share in enumerate(shares):
            if share >= 5:
                ax.text(share + max(shares) * 0.02, row, f"{share:.0f} %", va="center", fontsize="x-small")
        ax.set_xlim(0, max(shares) * 1.25)
        ax.set_xlabel(f"% of the {name}")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(layers)), [name for name, _ in layers], fontsize="x-small")
    axes[0].invert_yaxis()
    return axes
