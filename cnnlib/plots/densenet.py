"""The connections of dense blocks, drawn from their table of growth."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from cnnlib.analysis.growth import GrowthTable
from cnnlib.plots.style import INK, PALETTE

LAYER, ENTRY = PALETTE["blue"], PALETTE["orange"]
RISE = -0.45  # of an arc: it is half as high as this, for a length of 1


def dense_links(layers: int) -> list[tuple[int, int]]:
    """Who is read by whom in a block of `layers`: (source, layer), where source 0 is what enters the block.

    >>> dense_links(2)
    [(0, 1), (0, 2), (1, 2)]
    """
    return [(source, layer) for layer in range(1, layers + 1) for source in range(layer)]


def draw_dense_blocks(table: GrowthTable, ax: Axes) -> Axes:
    """Draw each block as a row of layers with an arc for each connection, and below each layer the maps that it reads.

    Squares are what enters a block and what leaves it; all that is in a block reaches the square at its end.
    """
    start = 0.0
    top = 0.0
    for number in range(1, table.blocks + 1):
        layers = table.block(number)
        end = len(layers) + 1
        for source, target in [*dense_links(len(layers)), *((i, end) for i in range(end))]:
            ax.add_patch(
                FancyArrowPatch(
                    (start + source, 0.12),
                    (start + target, 0.12),
                    connectionstyle=f"arc3,rad={RISE}",
                    arrowstyle="-|>",
                    mutation_scale=8,
                    color=ENTRY if source == 0 else LAYER,
                    lw=1.1,
                    alpha=0.85,
                    shrinkA=5,
                    shrinkB=5,
                )
            )
        top = max(top, 0.12 - RISE / 2 * end)
        for place in range(end + 1):
            inside = 0 < place < end
            marker, colour = ("o", LAYER) if inside else ("s", ENTRY)
            ax.plot(start + place, 0, marker=marker, ms=15, color=colour, mec=INK, mew=0.6, ls="")
            if inside:
                ax.text(start + place, 0, f"$H_{{{place}}}$", ha="center", va="center", color="white", fontsize="small")
            maps = layers[place - 1].reads if inside else layers[0].reads if place == 0 else layers[-1].gives
            words = "reads\n" if inside else "enter\n" if place == 0 else "leave\n"
            ax.text(start + place, -0.28, f"{words}{maps}", ha="center", va="top", fontsize="small")
        ax.text(start + end / 2, top + 0.1, f"block {number}", ha="center", va="bottom")
        if number < table.blocks:
            ax.annotate(
                "",
                (start + end + 1.35, 0),
                xytext=(start + end + 0.25, 0),
                arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2},
            )
            ax.text(start + end + 0.8, 0.12, "transition", ha="center", va="bottom", fontsize="x-small")
        start += end + 1.6
    ax.set_xlim(-0.6, start - 1.0)
    ax.set_ylim(-1.2, top + 0.7)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax
