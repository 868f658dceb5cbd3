"""Drawings of the lecture on residual networks: one block as its operations, what a stride reads, depth by year."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from cnnlib.graph import Graph, Node
from cnnlib.plots.style import INK, KINDS, PALETTE

_COLOURS = {
    "conv": KINDS["conv"],
    "batch_norm": PALETTE["teal"],
    "activation": PALETTE["purple"],
    "add": PALETTE["red"],
}
_SILENT = ("input", "output", "identity")


@dataclass(frozen=True)
class BlockSteps:
    """Operations of a block by where they stand: before the ways part, on the branch, on the shortcut, behind the sum.

    A block without a sum has all of them `behind` and no `branch`.
    """

    before: tuple[Node, ...]
    branch: tuple[Node, ...]
    shortcut: tuple[Node, ...] | None
    behind: tuple[Node, ...]


def block_steps_of(graph: Graph) -> BlockSteps:
    """The two ways of a traced block that meet in one addition; the way with more convolutions is the branch.

    ValueError for a graph with several sums: that is a network, or no residual block.
    """
    nodes = [node for node in graph if node.kind not in _SILENT]
    sums = [node for node in nodes if node.kind == "add"]
    if not sums:
        return BlockSteps((), (), None, tuple(nodes))
    if len(sums) > 1:
        raise ValueError(f"a block has one addition, got {len(sums)}; trace one block of the network alone")
    (meeting,) = sums
    ways = [_back(graph, name) for name in meeting.inputs]
    shared = {node.name for node in ways[0]} & {node.name for node in ways[1]}
    apart = [tuple(node for node in way if node.name not in shared) for way in ways]
    shortcut, branch = sorted(apart, key=lambda way: sum(node.kind == "conv" for node in way))
    inside = shared | {node.name for way in apart for node in way} | {meeting.name}
    return BlockSteps(
        tuple(node for node in ways[0] if node.name in shared),
        branch,
        shortcut,
        tuple(node for node in nodes if node.name not in inside),
    )


def _back(graph: Graph, name: str) -> list[Node]:
    """The chain of operations from the input to `name`."""
    found: list[Node] = []
    while graph[name].kind != "input":
        if graph[name].kind not in _SILENT:
            found.insert(0, graph[name])
        name = graph[name].inputs[0]
    return found


def step_words(node: Node) -> str:
    """What a drawing writes on an operation: "3×3, 64" (a convolution to 64 maps), "1×1/2, 128" (by twos), "BN", "ReLU"."""
    if node.kind == "conv":
        kernel, stride = node.attrs["kernel"], max(node.attrs["stride"])
        return f"{'×'.join(map(str, kernel))}" + (f"/{stride}" if stride > 1 else "") + f", {node.shape[0]}"
    if node.kind == "batch_norm":
        return "BN"
    if node.kind == "avg_pool":
        return f"every {max(node.attrs['stride'])}nd pixel" if max(node.attrs["kernel"]) == 1 else "mean"
    return {"relu": "ReLU", "pad": "zeros"}.get(node.op.lower(), node.op)


def draw_residual_units(units: Mapping[str, Graph], axes: Sequence[Axes]) -> Sequence[Axes]:
    """Draw traced blocks side by side on one scale, each from top to bottom under its name.

    The branch is the column on the left, the shortcut the line around it, with its operations, if it has any, on it.
    """
    axes = list(axes)  # `axes.flat` can be gone through once only
    if len(units) != len(axes):
        raise ValueError(f"one Axes a block: there are {len(units)} blocks and {len(axes)} Axes")
    lowest = min(_draw_block(graph, ax) for graph, ax in zip(units.values(), axes))
    wide = any(block_steps_of(graph).shortcut for graph in units.values())
    for name, ax in zip(units, axes):
        ax.set_title(name, fontsize="small")
        ax.set_xlim(-1.35, 3.85 if wide else 2.1)
        ax.set_ylim(lowest - 0.7, 0.7)
        ax.axis("off")
    return axes


def _draw_block(graph: Graph, ax: Axes) -> float:
    """Returns how far down the drawing goes."""
    steps = block_steps_of(graph)
    ax.text(0, 0.15, "x", ha="center", va="bottom", style="italic")
    y = _column(ax, 0, 0, steps.before)
    if steps.shortcut is not None:
        aside = 2.55 if steps.shortcut else 1.6
        top = y - 0.1
        bottom = _column(ax, 0, y - 0.25, steps.branch) - 0.4
        ax.plot([0, 0], [y, y - 0.25], color=INK, lw=1.3, zorder=1)
        start = (top + bottom) / 2 + 0.5 * len(steps.shortcut)
        end = _column(ax, aside, start, steps.shortcut)
        ax.plot([0, aside, aside], [top, top, start], color=INK, lw=1.3, zorder=1)
        ax.plot([aside, aside, 0], [end, bottom, bottom], color=INK, lw=1.3, zorder=1)
        ax.plot([0, 0], [bottom + 0.4, bottom - 0.25], color=INK, lw=1.3, zorder=1)
        ax.plot([0], [bottom], marker="o", ms=12, mfc=_COLOURS["add"], mec="none", zorder=3)
        ax.plot([0], [bottom], marker="+", ms=7, mec="white", mew=1.5, zorder=4)
        y = bottom - 0.25
    y = _column(ax, 0, y, steps.behind)
    ax.text(0, y - 0.15, "y", ha="center", va="top", style="italic")
    return y


def _column(ax: Axes, x: float, y: float, nodes: Sequence[Node]) -> float:
    """Boxes below one another, each under a piece of line; returns where the last one ends."""
    for node in nodes:
        colour = _COLOURS.get(node.kind, INK)
        ax.plot([x, x], [y, y - 0.25], color=INK, lw=1.3, zorder=1)
        ax.add_patch(
            FancyBboxPatch(
                (x - 1.15, y - 0.95),
                2.3,
                0.7,
                boxstyle="round,pad=0,rounding_size=0.12",
                fc="none",
                ec=colour,
                lw=1.2,
                zorder=3,
            )
        )
        ax.add_patch(Rectangle((x - 1.15, y - 0.95), 2.3, 0.7, fc=(colour, 0.18), ec="none", zorder=2))
        ax.text(x, y - 0.61, step_words(node), ha="center", va="center", fontsize="small", zorder=4)
        y -= 0.95
    return y


def draw_reads(counts: np.ndarray, ax: Axes, *, title: str = "") -> Axes:
    """Draw how many windows read each position of a map (H, W): a number in each square, none where nothing reads."""
    most = max(int(counts.max()), 1)
    colour = PALETTE["blue"]
    for (i, j), count in np.ndenumerate(counts.astype(int)):
        ax.add_patch(
            FancyBboxPatch(
                (j, -i - 1),
                0.92,
                0.92,
                boxstyle="square,pad=0",
                fc=(colour, 0.1 + 0.25 * count / most) if count else "none",
                ec=INK,
                lw=0.6,
            )
        )
        if count:
            ax.text(j + 0.46, -i - 0.54, str(count), ha="center", va="center", fontsize="x-small")
    height, width = counts.shape
    ax.set_xlim(-0.1, width)
    ax.set_ylim(-height - 0.1, 0.1)
    ax.set_aspect("equal")
    ax.set_title(title)
    ax.axis("off")
    return ax


def draw_stream(
    streams: Mapping[str, Sequence[float]], ax: Axes, *, colours: Sequence[str], starts: Sequence[int]
) -> Axes:
    """Draw a number of what leaves each block, against the block, one line a network; dotted where maps are halved."""
    for (name, values), colour in zip(streams.items(), colours, strict=True):
        ax.plot(range(1, len(values) + 1), values, color=colour, label=name, marker=".", ms=4, lw=1.5)
    for start in starts:
        ax.axvline(start + 0.5, color=INK, ls=":", lw=1)
    ax.set_xlabel("block")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


@dataclass(frozen=True)
class Ladder:
    """Layers with weights on a network's longest way, as the side of their maps; shortcuts as (from, to, projected).

    A shortcut leaves behind layer `from` (0 is the image) and joins behind layer `to`.
    """

    sides: tuple[int, ...]
    shortcuts: tuple[tuple[int, int, bool], ...]


def ladder_of(graph: Graph) -> Ladder:
    """The longest way through a traced network, and each addition whose two ways are not equally deep."""
    depth: dict[str, int] = {}
    before: dict[str, str | None] = {}
    for node in graph:
        deepest = max(node.inputs, key=lambda name: depth[name], default=None)
        before[node.name] = deepest
        depth[node.name] = (depth[deepest] if deepest else 0) + (node.kind in ("conv", "linear"))
    way, sides = graph.output.name, []
    while way is not None:
        node = graph[way]
        if node.kind in ("conv", "linear"):
            sides.insert(0, node.shape[-1] if len(node.shape) == 3 else 1)
        way = before[way]
    shortcuts = []
    for node in graph:
        if node.kind == "add" and len(node.inputs) == 2:
            short, long = sorted(node.inputs, key=lambda name: depth[name])
            chain = _back(graph, short)
            projected = 0
            while chain and chain[-1].kind in ("conv", "batch_norm") and depth[chain[-1].name] > 0:
                if chain[-1].kind == "conv":
                    projected = 1
                    break
                chain.pop()
            shortcuts.append((depth[short] - projected, depth[long], bool(projected)))
    return Ladder(tuple(sides), tuple(shortcuts))


def draw_ladder(graph: Graph, ax: Axes, *, title: str, longest: int) -> Axes:
    """Draw the layers of a network in a row, coloured by the side of their maps, and each shortcut as an arc above.

    A dashed arc has a projection. `longest` is how many layers the axis has room for.
    """
    ladder = ladder_of(graph)
    colours = [PALETTE[name] for name in ("purple", "blue", "teal", "green", "orange", "red", "brown", "pink")]
    for i, side in enumerate(ladder.sides):
        colour = INK if side == 1 else colours[side.bit_length() % len(colours)]
        ax.add_patch(Rectangle((i + 0.6, 0), 0.8, 1, fc=(colour, 0.35), ec=colour, lw=0.7))
    for side, run in groupby(range(len(ladder.sides)), key=lambda i: ladder.sides[i]):
        where = list(run)
        if len(where) > 0.04 * longest:  # a number needs as much room
            ax.text((where[0] + where[-1]) / 2 + 1, -0.2, str(side), fontsize="x-small", va="top", ha="center")
    for start, end, projected in ladder.shortcuts:
        x = np.linspace(start + 0.5, end + 0.5, 30)
        y = 1.1 + 1.1 * np.sin(np.pi * (x - x[0]) / (x[-1] - x[0]))
        ax.plot(x, y, color=PALETTE["red"], lw=1.0, ls="--" if projected else "-")
    ax.set_title(title, loc="left", fontsize="small", pad=2)
    ax.set_xlim(0, longest + 1)
    ax.set_ylim(-1, 2.4)
    ax.axis("off")
    return ax
