"""Loss surfaces: several networks on one scale, as contours or hills, as lines, and the way of training over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from cnnlib.analysis.loss_surfaces import LossSurface, Trajectory
from cnnlib.errors import unknown
from cnnlib.plots.style import INK, PALETTE, colour_of, sequential

COLUMNS = {"loss": "loss", "error": "error, %"}
TOP = 10.0  # the loss at which the paper's own figures are cut


@dataclass(frozen=True)
class Scale:
    """One scale for all surfaces of a figure: the loss logarithmically from `low` to `high`, the error from 0 to 100 %."""

    column: str
    low: float
    high: float

    @property
    def norm(self) -> Normalize:
        return LogNorm(self.low, self.high) if self.column == "loss" else Normalize(self.low, self.high)

    def levels(self, count: int = 13) -> np.ndarray:
        """The bounds of contours, at equal distances on this scale."""
        make = np.geomspace if self.column == "loss" else np.linspace
        return make(self.low, self.high, count)

    def cut(self, surface: LossSurface) -> np.ndarray:
        """The surface's values on this scale; what is beyond its ends is put on them."""
        return np.clip(_values(surface, self.column), self.low, self.high)

    def height(self, values: np.ndarray | float) -> np.ndarray:
        """Where values stand on the scale, in the units that an axis of heights counts in."""
        return np.log10(values) if self.column == "loss" else np.asarray(values)

    def ticks(self) -> list[float]:
        """Round values to write on the scale."""
        if self.column == "error":
            return [0, 25, 50, 75, 100]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            found = [digit * 10.0**decade for decade in decades for digit in digits]
            found = [value for value in found if self.low <= value <= self.high * 1.0001]
            if len(found) >= 4:
                break
        return found


def _values(surface: LossSurface, column: str) -> np.ndarray:
    return surface.array(column) * (100 if column == "error" else 1)


def scale_of(surfaces: Sequence[LossSurface], column: str = "loss", top: float = TOP) -> Scale:
    """The scale that holds all of `surfaces`; losses above `top` are cut there."""
    if column not in COLUMNS:
        raise unknown("column to draw", column, COLUMNS)
    if not surfaces:
        raise ValueError("a scale needs at least one surface, got none")
    if column == "error":
        return Scale(column, 0.0, 100.0)
    losses = np.concatenate([surface.array().ravel() for surface in surfaces])
    low, high = float(max(losses.min(), 1e-4)), float(min(losses.max(), top))
    return Scale(column, low, high) if low < high else Scale(column, low / 2, low * 2)


def draw_loss_surfaces(
    surfaces: Sequence[LossSurface],
    axes: Sequence[Axes] | np.ndarray,
    *,
    titles: Sequence[str] | None = None,
    column: str = "loss",
    top: float = TOP,
    scale: Scale | None = None,
) -> np.ndarray:
    """Draw each plane into its Axes, all on one scale: hills where the Axes is 3-D, else contours, with one bar for all.

    The loss is on a logarithmic scale and cut at `top`; a cross marks the network itself. ValueError for lines.
    """
    axes = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    titles = [surface.network for surface in surfaces] if titles is None else titles
    if not len(surfaces) == len(axes) == len(titles):
        raise ValueError(
            f"one Axes and one title a surface: there are {len(surfaces)} surfaces, {len(axes)} Axes and {len(titles)} titles"
        )
    for surface in surfaces:
        if len(surface.ys) < 2 or len(surface.xs) < 2:
            raise ValueError(
                f"{surface.network} has {len(surface.xs)} x {len(surface.ys)} points, which is no plane; "
                "use draw_loss_lines"
            )
    scale = scale or scale_of(surfaces, column, top)
    for surface, ax, title in zip(surfaces, axes, titles):
        draw = _hills if ax.name == "3d" else _contours
        draw(surface, ax, scale)
        ax.set_title(title)
    flat = [ax for ax in axes if ax.name != "3d"]
    if flat:
        _bar(flat, scale)
    return axes


def _contours(surface: LossSurface, ax: Axes, scale: Scale) -> None:
    values, levels = scale.cut(surface), scale.levels()
    ax.contourf(surface.xs, surface.ys, values, levels=levels, norm=scale.norm, cmap=sequential())
    ax.contour(surface.xs, surface.ys, values, levels=levels[1:-1], colors="white", linewidths=0.5, alpha=0.6)
    if surface.xs[0] <= 0 <= surface.xs[-1] and surface.ys[0] <= 0 <= surface.ys[-1]:
        ax.plot(0, 0, marker="+", ms=9, mew=1.6, color="white")
    ax.set_xlabel(_axis(surface, 0))
    ax.set_ylabel(_axis(surface, 1))
    ax.grid(False)
    if all("random" in axis for axis in surface.axes):
        ax.set_aspect("equal")


def _hills(surface: LossSurface, ax: Axes, scale: Scale) -> None:
    x, y = np.meshgrid(surface.xs, surface.ys)
    height = scale.height(scale.cut(surface))
    low, high = float(scale.height(scale.low)), float(scale.height(scale.high))
    colours = sequential()((height - low) / (high - low))
    ax.plot_surface(
        x, y, height, facecolors=colours, rstride=1, cstride=1, shade=False, lw=0.4, edgecolor=(1, 1, 1, 0.35)
    )
    ax.set_zlim(low, high)
    ticks = scale.ticks()
    ax.set_zticks(scale.height(np.array(ticks)), [f"{tick:g}" for tick in ticks])
    ax.set_zlabel("")
    ax.text2D(0.99, 0.83, COLUMNS[scale.column], transform=ax.transAxes, ha="right", fontsize="small")
    ax.set_xlabel(_axis(surface, 0), fontsize="small")
    ax.set_ylabel(_axis(surface, 1), fontsize="small")
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_visible(False)
        axis.line.set_color(INK)
        axis.set_tick_params(labelsize="small", pad=0)
    ax.xaxis.get_major_locator().set_params(nbins=4)
    ax.yaxis.get_major_locator().set_params(nbins=4)


def _bar(axes: Sequence[Axes], scale: Scale) -> None:
    bar = axes[0].figure.colorbar(
        ScalarMappable(scale.norm, sequential()), ax=list(axes), fraction=0.05, pad=0.03, shrink=0.85
    )
    bar.set_ticks(scale.ticks(), labels=[f"{tick:g}" for tick in scale.ticks()])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.outline.set_edgecolor(INK)
    bar.set_label(COLUMNS[scale.column])


def _axis(surface: LossSurface, number: int) -> str:
    return surface.axes[number].split(", filter-normalised")[0].split(", seed")[0].split(" of the variance")[0]


def draw_loss_lines(
    surfaces: Sequence[LossSurface],
    ax: Axes,
    *,
    labels: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    column: str = "loss",
    top: float = TOP,
) -> Axes:
    """Draw lines through weight space, one a network, with a band of two standard errors; the loss is logarithmic.

    A plane is drawn along x through the network. The colours are the networks', or `colours`.
    """
    scale = scale_of(surfaces, column, top)
    labels = [surface.network for surface in surfaces] if labels is None else labels
    if len(labels) != len(surfaces) or len(colours or labels) != len(surfaces):
        raise ValueError(
            f"one label and one colour a surface: there are {len(surfaces)} surfaces, {len(labels)} labels"
        )
    lows = []
    for number, (surface, label) in enumerate(zip(surfaces, labels)):
        points = [p for p in surface if p.y is None or p.y == surface.centre.y]
        factor = 100 if column == "error" else 1
        x = np.array([point.x for point in points])
        value = factor * np.array([getattr(point, column) for point in points])
        spread = 2 * factor * np.array([getattr(point, f"{column}_se") for point in points])
        colour = colours[number] if colours else colour_of(label)
        ax.plot(x, value, color=colour, label=label, marker=".", ms=4)
        known = np.isfinite(value) & np.isfinite(spread)
        below = np.maximum(value - spread, value / 4 if column == "loss" else 0)
        ax.fill_between(x[known], below[known], (value + spread)[known], color=colour, alpha=0.25, lw=0)
        lows.append(below[known].min())
    if column == "loss":
        ax.set_yscale("log")
        ax.set_ylim(0.9 * min(lows), scale.high)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        ax.set_ylim(0, 100)
    axes = dict.fromkeys(_axis(surface, 0) for surface in surfaces)
    ax.set_xlabel(" / ".join(axes))
    ax.set_ylabel(COLUMNS[column])
    return ax


def draw_trajectory(way: Trajectory, ax: Axes, *, labels: Sequence[str] = ()) -> Axes:
    """Draw the checkpoints of a training in their plane, a ring for the first and a star for the last, over a surface or alone.

    `labels` are written beside the checkpoints, one each; an empty one writes nothing.
    """
    if len(way.directions) != 2:
        raise ValueError("a trajectory is drawn in a plane; make it with components=2")
    if labels and len(labels) != len(way.positions):
        raise ValueError(f"one label a checkpoint: there are {len(way.positions)} checkpoints and {len(labels)} labels")
    x, y = np.array(way.positions).T
    colour = PALETTE["red"]
    rim = [withStroke(linewidth=3, foreground="white")]  # to be seen on both ends of the colour scale
    ax.plot(x, y, color=colour, lw=1.5, marker="o", ms=3.5, path_effects=rim)
    ax.plot(x[:1], y[:1], ls="", marker="o", ms=9, mec=colour, mfc="none", mew=1.5, path_effects=rim)
    ax.plot(x[-1:], y[-1:], ls="", marker="*", ms=12, color=colour, mec="white")
    for label, *place in zip(labels, x, y):
        ax.annotate(
            label, place, xytext=(7, 4), textcoords="offset points", color=colour, fontsize="small", path_effects=rim
        )
    for axis, direction in zip((ax.set_xlabel, ax.set_ylabel), way.directions):
        axis(direction.label.split(" of the variance")[0])
    return ax
