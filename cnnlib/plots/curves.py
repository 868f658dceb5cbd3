"""Curves and spreads of trainings: several seeds as one line with a band, final values as dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from cnnlib.plots.style import INK


def draw_history(curves: ArrayLike, ax: Axes, *, label: str, colour: str, dashed: bool = False) -> Axes:
    """Draw (seeds, epochs) values against the epoch: the mean as a line, lowest to highest as a band; one seed is a line."""
    runs = np.atleast_2d(np.asarray(curves, dtype=float))
    if runs.ndim != 2 or not runs.size:
        raise ValueError(f"curves must be (seeds, epochs) with at least one of each, got shape {runs.shape}")
    epochs = np.arange(1, runs.shape[1] + 1)
    ax.plot(epochs, runs.mean(axis=0), color=colour, label=label, ls="--" if dashed else "-", marker=".", ms=4)
    if len(runs) > 1:
        ax.fill_between(epochs, runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.25, lw=0)
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def draw_spread(groups: Mapping[str, Sequence[float]], ax: Axes, *, colours: Sequence[str], unit: str) -> Axes:
    """Draw each group's values as dots in a row of its own, with a bar at their mean."""
    if len(colours) != len(groups):
        raise ValueError(f"one colour a group: there are {len(groups)} groups and {len(colours)} colours")
    for row, ((name, values), colour) in enumerate(zip(groups.items(), colours)):
        ax.scatter(values, [row] * len(values), s=36, color=colour, alpha=0.6, lw=0, zorder=3)
        mean = float(np.mean(values))
        ax.plot([mean, mean], [row - 0.25, row + 0.25], color=colour, lw=2.5, zorder=4)
        ax.text(mean, row - 0.32, f"{name}: {mean:.2f} {unit}", ha="center", va="bottom", color=colour)
    ax.set_ylim(len(groups) - 0.5, -0.9)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(unit, color=INK)
    return ax
