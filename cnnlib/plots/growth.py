"""Dense networks: maps and memory layer by layer, and who reads whom."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cnnlib.analysis.growth import ConnectionTable, GrowthTable
from cnnlib.plots.style import INK, PALETTE, sequential

READ, ADDED, AFTER = PALETTE["blue"], PALETTE["orange"], PALETTE["red"]


def draw_growth(table: GrowthTable, ax: Axes) -> Axes:
    """Draw a bar for each layer of each block: the maps that it reads, and on top those that it adds.

    Few layers are labelled with their numbers; behind each block stands what it gives.
    """
    x, few = 0.0, len(table.layers) <= 16
    places: list[float] = []
    for number in range(1, table.blocks + 1):
        layers = table.block(number)
        first = x
        for row in layers:
            ax.bar(x, row.reads, color=READ, width=0.8, label="maps read" if not places else None)
            label = "maps added" if not places else None
            ax.bar(x, row.adds, bottom=row.reads, color=ADDED, width=0.8, label=label)
            if few:
                ax.text(x, row.reads / 2, str(row.reads), ha="center", va="center", color="white", fontsize="small")
            places.append(x)
            x += 1
        top = layers[-1].gives
        ax.text(x - 1, top, f"{top}", ha="center", va="bottom")
        ax.text(
            (first + x - 1) / 2,
            -0.1 if few else -0.02,
            f"block {number}",
            ha="center",
            va="top",
            transform=ax.get_xaxis_transform(),
        )
        x += 1
    ax.set_xticks(places if few else [], [str(row.layer) for row in table.layers] if few else [])
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("maps")
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 1.08 * max(row.gives for row in table.layers))
    ax.legend(loc="upper left")
    return ax


def draw_growth_memory(table: GrowthTable, ax: Axes) -> Axes:
    """Draw the memory of one image's values up to each row, naive and shared (see `growth`), in megabytes (10^6 bytes)."""
    sums = table.so_far
    if any(row.naive is None for row in sums):
        raise ValueError("this table has no values; give growth_table(...) the side of the maps as size=")
    for key, words, colour, style in (
        ("naive_bytes", "every result kept", AFTER, "-"),
        ("shared_bytes", "one buffer for concatenations", PALETTE["green"], "--"),
    ):
        values = [getattr(row, key) / 1e6 for row in sums]
        ax.plot(range(len(values)), values, color=colour, ls=style, lw=1.8)
        ax.annotate(
            f"{words}\n{values[-1]:.3g} MB",
            (len(values) - 1, values[-1]),
            **dict(xytext=(6, 0), textcoords="offset points", va="center", color=colour, annotation_clip=False),
        )
    changes = [i for i, row in enumerate(table) if row.what == "transition"]
    for i in changes:
        ax.axvline(i, color=INK, lw=0.8, ls=":")
    few = len(table) <= 12
    ax.set_xticks(changes if not few else range(len(table)), _steps(table, changes, few))
    ax.set_ylabel("MB for one image")
    ax.set_ylim(bottom=0)
    return ax


def _steps(table: GrowthTable, changes: list[int], few: bool) -> list[str]:
    if not few:
        return ["transition" for _ in changes]
    return [str(row.layer) if row.what == "layer" else row.what for row in table]


def draw_connection_weights(table: ConnectionTable, block: int, ax: Axes, *, relative: bool = True) -> Axes:
    """Draw the mean absolute weights of one block: a column for each reading layer, a row for each source (0 enters).

    Framed are weight layers behind the block. `relative` divides each column by its largest value, since the size of
    weights depends on how many maps and positions a layer sums; without it all columns have one scale.
    """
    rows = table.block(block)
    readers = list(dict.fromkeys((row.target, row.reader) for row in rows))
    sources = max(row.source for row in rows) + 1
    values = np.full((sources, len(readers)), np.nan)
    for row in rows:
        values[row.source, readers.index((row.target, row.reader))] = row.weight
    if relative:
        peaks = np.nanmax(values, axis=0)
        values = values / np.where(peaks > 0, peaks, 1)
    shown = ax.imshow(values, cmap=sequential(), vmin=0, vmax=1 if relative else None, interpolation="nearest")
    behind = {row.reader for row in rows if row.kind == "after"}
    for column, (_, reader) in enumerate(readers):
        if reader in behind:
            ax.add_patch(Rectangle((column - 0.5, -0.5), 1, sources, fill=False, ec=AFTER, lw=2.5, clip_on=False))
    step = max(1, -(-len(readers) // 7))
    columns = [i for i in range(len(readers)) if readers[i][1] not in behind and i % step == 0]
    ax.set_xticks(columns, [str(readers[i][0]) for i in columns])
    ax.set_yticks(range(0, sources, step))
    ax.set_xlabel("reading layer")
    ax.set_ylabel("source")
    ax.set_title(f"block {block}")
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = ax.figure.colorbar(shown, ax=ax, fraction=0.046, pad=0.04)
    bar.set_label("mean |weight|" + (" / column's largest" if relative else ""))
    bar.outline.set_edgecolor(INK)
    return ax
