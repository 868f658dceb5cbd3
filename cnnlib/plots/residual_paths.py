"""Residual networks as their paths: the unravelled drawing, lengths with the gradient they carry, and lesions."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from cnnlib.analysis.lesions import Findings, Lesion, Permutation, SeveralLesions
from cnnlib.analysis.path_gradients import PathGradients
from cnnlib.analysis.residual_paths import ResidualBlock, path_lengths, residual_blocks, share_of_paths
from cnnlib.errors import unknown
from cnnlib.graph import Graph
from cnnlib.plots.style import INK, PALETTE, colour_of

BRANCH = PALETTE["orange"]
GONE = 0.22  # how much is still seen of what is deleted
MOST_DRAWN = 64  # paths
WIDE = 0.36  # of a box; blocks are 1 apart
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True)
class _Tree:
    """A value of the network written out: the image, or a block's sum of what it carries and what its branch makes."""

    block: str | None
    carried: _Tree | None = None
    branched: _Tree | None = None


def _written_out(name: str | None, blocks: Mapping[str, ResidualBlock]) -> _Tree:
    if name is None:
        return _Tree(None)
    block = blocks[name]
    return _Tree(name, _written_out(block.skip_after, blocks), _written_out(block.branch_after, blocks))


def _checked(graph: Graph, deleted: Collection[str]) -> dict[str, ResidualBlock]:
    blocks = {block.name: block for block in residual_blocks(graph)}
    for name in deleted:
        if name not in blocks:
            raise unknown("residual block", name, blocks)
    if not blocks:
        raise ValueError(f"{type(graph.model).__name__} has no residual block, so there is nothing to unroll")
    return blocks


def _numbered(blocks: Collection[str]) -> dict[str, str]:
    """f₁, f₂, ... in the order in which the blocks run."""
    return {name: "f" + str(i).translate(_SUBSCRIPTS) for i, name in enumerate(blocks, start=1)}


class _Pen:
    """Boxes, sums and wires; what is deleted is drawn faint."""

    def __init__(self, ax: Axes, height: float) -> None:
        self.ax = ax
        self.height = height

    def box(self, x: float, y: float, text: str, gone: bool) -> None:
        self.ax.add_patch(
            FancyBboxPatch(
                (x - WIDE / 2, y - self.height / 2),
                WIDE,
                self.height,
                boxstyle="round,pad=0,rounding_size=0.05",
                mutation_aspect=2 * self.height,
                fc=(BRANCH, 0.04 if gone else 0.2),
                ec=(BRANCH, 2 * GONE if gone else 1),
                lw=1.2,
                ls=":" if gone else "-",
                zorder=3,
            )
        )
        self.ax.text(x, y, text, ha="center", va="center", color=(BRANCH, 2 * GONE if gone else 1), zorder=4)

    def wire(self, xs: Sequence[float], ys: Sequence[float], gone: bool) -> None:
        self.ax.plot(xs, ys, color=INK, lw=1.2, alpha=GONE if gone else 1, zorder=1, solid_joinstyle="round")

    def plus(self, x: float, y: float) -> None:
        self.ax.plot([x], [y], marker="o", ms=9, mfc=INK, mec="none", zorder=5)
        self.ax.plot([x], [y], marker="+", ms=6, mec="white", mew=1.2, zorder=6)

    def end(self, x: float, y: float, text: str, ha: str) -> None:
        self.ax.text(x, y, text, ha=ha, va="center", zorder=4)


def draw_blocks(graph: Graph, ax: Axes, *, deleted: Collection[str] = ()) -> Axes:
    """Draw the residual blocks of a traced network one after another, each a skip over its branch f (figure 1a).

    The branches of `deleted` blocks are faint. ValueError for a network without blocks, or with blocks inside or beside
    each other, which have no one row.
    """
    blocks = _checked(graph, deleted)
    for before, block in zip([None, *blocks], blocks.values()):
        if (block.skip_after, block.branch_after) != (before, before):
            raise ValueError(f"block {block.name} does not follow the block before it alone; draw_unrolled shows it")
    pen = _Pen(ax, height=0.5)
    names = _numbered(blocks)
    pen.end(-0.18, 0, "x", "right")
    for i, name in enumerate(blocks):
        gone = name in deleted
        pen.wire([i - 0.1, i + 0.15], [0, 0], False)
        pen.wire([i + 0.15, i + 0.5 - WIDE / 2], [0, 0], gone)
        pen.wire([i + 0.5 + WIDE / 2, i + 0.9], [0, 0], gone)
        pen.wire([i + 0.15, i + 0.15, i + 0.9, i + 0.9], [0, 0.7, 0.7, 0], False)
        pen.box(i + 0.5, 0, names[name], gone)
        pen.plus(i + 0.9, 0)
        ax.text(i + 0.5, -0.42, name, ha="center", va="top", size=8, alpha=2 * GONE if gone else 1)
    pen.wire([len(blocks) - 0.1, len(blocks) + 0.05], [0, 0], False)
    pen.end(len(blocks) + 0.1, 0, "y", "left")
    ax.set_xlim(-0.4, len(blocks) + 0.4)
    ax.set_ylim(-0.85, 0.95)
    ax.axis("off")
    return ax


def draw_unrolled(graph: Graph, ax: Axes, *, deleted: Collection[str] = ()) -> Axes:
    """Draw a traced residual network written out as all of its paths, each from an x on the left (figure 1b).

    Every block stands as often as there are ways to it. With `deleted` blocks, what passes through them is faint: of n
    blocks in series, each deleted one takes half of the paths. ValueError for more than 64 paths, which are 6 blocks.
    """
    blocks = _checked(graph, deleted)
    total = sum(path_lengths(graph))
    if total > MOST_DRAWN:
        raise ValueError(
            f"{len(blocks)} blocks have {total:,} paths, and a drawing takes at most {MOST_DRAWN}; "
            "draw a network with fewer blocks, or draw_path_lengths for the counts"
        )
    names = _numbered(blocks)
    column = {name: i + 1.0 for i, name in enumerate(blocks)} | {None: 0.0}
    last = {b.skip_after for b in blocks.values()} | {b.branch_after for b in blocks.values()}
    (end,) = set(blocks) - last
    pen = _Pen(ax, height=0.62)
    leaves: list[bool] = []

    def place(tree: _Tree, gone: bool) -> float:
        """Draw the tree and return its height; leaves stand one below the other."""
        if tree.block is None:
            leaves.append(gone)
            y = 1.0 - len(leaves)
            ax.text(-0.08, y, "x", ha="right", va="center", alpha=GONE if gone else 1)
            return y
        x = column[tree.block]
        cut = gone or tree.block in deleted
        up, down = place(tree.carried, gone), place(tree.branched, cut)
        y = (up + down) / 2
        pen.wire([column[tree.carried.block], x - 0.12, x], [up, up, y], gone)
        pen.wire([column[tree.branched.block], x - 0.5 - WIDE / 2], [down, down], cut)
        pen.wire([x - 0.5 + WIDE / 2, x - 0.12, x], [down, down, y], cut)
        pen.box(x - 0.5, down, names[tree.block], cut)
        if not gone:
            pen.plus(x, y)
        return y

    y = place(_written_out(end, blocks), False)
    pen.wire([column[end], column[end] + 0.15], [y, y], False)
    pen.end(column[end] + 0.2, y, "y", "left")
    for name, short in names.items():
        ax.text(column[name] - 0.5, 0.75, f"{short}: {name}", ha="center", va="bottom", size=8)
    left = leaves.count(False)
    said = f"{total} paths" if left == total else f"{left} of {total} paths"
    ax.text(column[end] + 0.2, y - 0.8, said, ha="left", va="top", size=8)
    ax.set_xlim(-0.35, column[end] + 0.95)
    ax.set_ylim(0.4 - len(leaves), 1.5)
    ax.axis("off")
    return ax


# ---------------------------------------------------------------------------------------------------------------
# Lengths


def draw_path_lengths(
    blocks: int, ax: Axes, *, gradients: PathGradients | None = None, marked: tuple[int, int] | None = None
) -> Axes:
    """Draw the share of all paths that pass through k of `blocks` blocks, and beside it the share of the `gradients`.

    The lengths in `marked`, first and last, are shaded, with the share of paths that they hold.
    """
    counts = path_lengths(blocks)
    total = sum(counts)
    lengths = np.arange(blocks + 1)
    wide = 0.8 if gradients is None else 0.4
    shift = 0 if gradients is None else wide / 2
    if marked is not None:
        low, high = marked
        share = share_of_paths(blocks, low, high)
        ax.axvspan(
            low - 0.5,
            high + 0.5,
            color=INK,
            alpha=0.12,
            lw=0,
            label=f"{low} to {high} blocks: {100 * share:.2f} % of the paths",
        )
    shares = [100 * (count / total) for count in counts]
    ax.bar(lengths - shift, shares, width=wide, color=PALETTE["blue"], label="paths")
    if gradients is not None:
        if len(gradients) != blocks + 1:
            raise ValueError(f"gradients must be of {blocks} blocks, got those of {len(gradients) - 1}")
        carried = [100 * share for share in gradients.shares()]
        ax.bar(lengths + shift, carried, width=wide, color=PALETTE["orange"], label="gradient that they carry")
    ax.set_xlabel("blocks whose branch a path enters")
    ax.set_ylabel("share, %")
    ax.set_xlim(-0.7, blocks + 0.7)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="x", visible=False)
    _named(ax, 2)
    return ax


def draw_gradient_of_paths(gradients: PathGradients, ax: Axes, *, colour: str = PALETTE["orange"]) -> Axes:
    """Draw the norm of the gradient along single paths against their length: each sampled path a dot, the means a line."""
    for row in gradients:
        ax.scatter([row.length] * len(row.norms), row.norms, s=14, color=colour, alpha=0.45, lw=0, zorder=3)
    means = [row.mean for row in gradients]
    ax.plot([row.length for row in gradients], means, color=colour, lw=1.6, label="one path, mean")
    ax.axhline(gradients.full, color=INK, ls="--", lw=1, label="all paths together")
    ax.set_yscale("log")
    ax.set_xlabel("blocks whose branch a path enters")
    ax.set_ylabel("gradient at the image")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8)
    return ax


# ---------------------------------------------------------------------------------------------------------------
# Lesions


def draw_lesions(networks: Mapping[str, Findings[Lesion]], ax: Axes) -> Axes:
    """Draw the error after each part of each network was deleted: a bar a part, a group a network, in running order.

    The line across a group is the network's error before, and the numbers are those in the parts' names; `networks` maps names of the zoo, or labels, to `delete_each`.
    """
    at = 0.0
    every: list[float] = []
    numbers: list[str] = []
    for name, found in networks.items():
        places = at + np.arange(len(found))
        every += places.tolist()
        numbers += [_number(row.deleted[0]) for row in found]
        at = float(places[-1]) + 2.5
        ax.bar(places, [row.after for row in found], width=0.8, color=_colour(name), zorder=2)
        ax.plot([places[0] - 0.5, places[-1] + 0.5], [found.before] * 2, color=INK, lw=1.4, zorder=3)
        ax.annotate(
            f"{name}\n{found.before:.1f} % before",
            (float(places.mean()), 100),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            size=8,
            color=_colour(name),
        )
    ax.set_xticks(every, numbers, rotation=90, fontsize=7)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="x", visible=False)
    ax.set_xlim(-1, at - 1.5)
    ax.set_ylim(0, 100)
    ax.set_ylabel("error without one part, %")
    return ax


def _number(part: str) -> str:
    """The numbers in a part's name, which say where it stands: 1.0 of `layer1.0`."""
    return ".".join(re.findall(r"\d+", part)) or part


def _named(ax: Axes, networks: int) -> None:
    """The names above the axes, where no point can lie under them."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(networks, 4), fontsize=8, borderaxespad=0.2)


def _colour(name: str) -> str:
    """The network's colour; a recorded network is named with its data behind a hyphen."""
    return colour_of(name.split("-")[0])


def draw_several_lesions(networks: Mapping[str, Findings[SeveralLesions]], ax: Axes) -> Axes:
    """Draw the error against how many parts were deleted together: the means a line, one standard deviation a band."""
    for name, found in networks.items():
        counts = [0, *(row.count for row in found)]
        means = np.array([found.before, *(row.mean for row in found)])
        spread = np.array([0, *(row.std or 0 for row in found)])
        colour = _colour(name)
        ax.plot(counts, means, color=colour, marker=".", label=name)
        ax.fill_between(counts, means - spread, np.minimum(means + spread, 100), color=colour, alpha=0.2, lw=0)
    ax.set_xlabel("parts deleted together")
    ax.set_ylabel("error, %")
    ax.set_ylim(0, 100)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _named(ax, len(networks))
    return ax


def draw_permutations(networks: Mapping[str, Findings[Permutation]], ax: Axes) -> Axes:
    """Draw the error against Kendall's rank correlation of the new order of blocks with the old, each order a dot."""
    for name, found in networks.items():
        colour = _colour(name)
        ax.scatter(
            [row.kendall_tau for row in found],
            [row.after for row in found],
            s=28,
            color=colour,
            alpha=0.7,
            lw=0,
            label=name,
        )
        ax.scatter([1], [found.before], marker="D", s=30, color=colour, zorder=4)
    ax.invert_xaxis()
    ax.set_xlabel("Kendall's rank correlation with the order that was trained")
    ax.set_ylabel("error, %")
    ax.set_ylim(0, 100)
    _named(ax, len(networks))
    return ax
