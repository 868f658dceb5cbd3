"""The classic drawing of a small convolutional network: every stage as a stack of its maps, to scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cnnlib.graph import Graph
from cnnlib.plots.style import INK, KINDS, PALETTE


@dataclass(frozen=True)
class Stage:
    """One stage to draw: its name, what it does (`conv`, `pool`, `linear`, ...) and its output, maps of height x width.

    A vector of units has height and width 1.
    """

    name: str
    kind: str
    maps: int
    height: int = 1
    width: int = 1


_DOES = (
    ("conv", "conv"),
    ("linear", "linear"),
    ("max_pool", "pool"),
    ("avg_pool", "pool"),
    ("adaptive_avg_pool", "pool"),
)


def stages_of(graph: Graph) -> list[Stage]:
    """The stages of a traced network as `draw_stack` wants them: the input, then each stage's last output.

    A stage that only rearranges its input (flatten, dropout) is left out; the last one is the output.
    """
    found = [Stage("input", "input", *graph.input_shape)]
    members: dict[str, list] = {}
    for node in graph:
        if node.live and node.kind not in ("input", "output"):
            members.setdefault(node.stage, []).append(node)
    for name, nodes in members.items():
        kinds = {node.kind for node in nodes}
        does = next((does for kind, does in _DOES if kind in kinds), "output" if name == list(members)[-1] else "")
        maps, height, width = (*nodes[-1].shape, 1, 1)[:3]
        if does:
            found.append(Stage(name, "output" if name == list(members)[-1] else does, maps, height, width))
    return found


def draw_stack(stages: Sequence[Stage], ax: Axes, *, shown: int = 16) -> Axes:
    """Draw `stages` from left to right; at most `shown` maps of a stage are drawn, its label says how many there are."""
    if not stages:
        raise ValueError("there are no stages to draw; pass at least one Stage")
    tallest = max(stage.height for stage in stages)
    lean = tallest / 26
    x = 0.0
    for stage in stages:
        colour = KINDS.get(stage.kind, INK)
        if stage.height == 1 and stage.width == 1:
            length = min(stage.maps, 120) / 120 * tallest
            ax.add_patch(Rectangle((x, -length / 2), tallest / 14, length, fc=colour + "55", ec=colour, lw=1))
            right, top = x + tallest / 14, length / 2
            text = f"{stage.maps}"
        else:
            drawn = min(stage.maps, shown)
            for i in range(drawn):
                corner = (x + i * lean, -stage.height / 2 + (drawn - 1 - 2 * i) * lean / 2)
                ax.add_patch(Rectangle(corner, stage.width, stage.height, fc=colour + "30", ec=colour, lw=0.8))
            right = x + (drawn - 1) * lean + stage.width
            top = stage.height / 2 + (drawn - 1) * lean / 2
            text = f"{stage.maps} @ {stage.height}×{stage.width}"
        middle = (x + right) / 2
        ax.text(middle, top + tallest * 0.06, text, ha="center", va="bottom", fontsize="small")
        ax.text(middle, -tallest * 0.86, stage.name, ha="center", va="top", color=colour, fontweight="bold")
        x = right + tallest * (0.26 if stage.height > 1 else 0.45)
    ax.set_xlim(-tallest * 0.1, x - tallest * 0.1)
    ax.set_ylim(-tallest * 1.05, tallest * 0.98)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def draw_links(sees: Sequence[Sequence[int]], sources: int, ax: Axes) -> Axes:
    """Draw which of `sources` input maps (rows) each output map (columns) sees: `sees[i]` for output map i."""
    for column, maps in enumerate(sees):
        for row in range(sources):
            linked = row in maps
            face = PALETTE["blue"] if linked else "none"
            ax.add_patch(Rectangle((column + 0.08, row + 0.08), 0.84, 0.84, fc=face, ec=INK, lw=0.5, alpha=0.9))
    ax.set_xticks(np.arange(len(sees)) + 0.5, [str(i) for i in range(len(sees))])
    ax.set_yticks(np.arange(sources) + 0.5, [str(i) for i in range(sources)])
    ax.tick_params(length=0)
    ax.set_xlim(0, len(sees))
    ax.set_ylim(sources, 0)
    ax.set_aspect("equal")
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax
