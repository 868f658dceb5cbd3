"""Text, lines and boxes of a drawing, measured and placed in inches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import matplotlib
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyBboxPatch, Polygon
from matplotlib.textpath import TextPath

from cnnlib.plots.networks.parts import CONVS, MERGES, Outline, Unit
from cnnlib.plots.networks.units import ACTIVATIONS
from cnnlib.plots.style import INK, KINDS, PALETTE

_COLOURS = {
    **KINDS,
    **dict.fromkeys(["max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "mean"], KINDS["pool"]),
    "attention": PALETTE["pink"],
    **dict.fromkeys(["conv_transpose", "upsample", "pixel_shuffle"], PALETTE["brown"]),
    **dict.fromkeys(["batch_norm", "layer_norm", "group_norm", "instance_norm"], PALETTE["teal"]),
    "local_response_norm": PALETTE["teal"],
    **dict.fromkeys(MERGES, PALETTE["red"]),
}
SIZE = 7.0  # points, the least that reads on paper
LINE = 0.128  # inches from line to line
MARGIN = 0.08  # on both sides of the page


def kind_colour(kind: str) -> str:
    return _COLOURS.get(kind, INK)


@lru_cache(maxsize=4096)
def width_of(text: str, bold: bool = False) -> float:
    """Inches that a line of text takes."""
    if not text.strip():
        return 0.0
    font = FontProperties(family=matplotlib.rcParams["font.family"], weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=SIZE, prop=font).get_extents().width) / 72


def wrapped(words: Sequence[str], width: float, bold: bool = False, joint: str = " ") -> list[str]:
    lines: list[str] = []
    for word in words:
        longer = f"{lines[-1]}{joint}{word}" if lines else word
        if lines and width_of(longer, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _broken(label: str, width: float) -> list[str]:
    """A label in lines, broken behind its commas where that is enough."""
    lines = wrapped(re.split(r"(?<=,) ", label), width) if label else []
    return [part for line in lines for part in ([line] if width_of(line) <= width else wrapped(line.split(" "), width))]


def shape_words(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def short(name: str) -> str:
    """The last part of a path that says something: `denseblock1`, but `features.3`."""
    parts = name.split(".")
    for i in range(len(parts) - 1, -1, -1):
        if not parts[i].replace("–", "").isdigit():
            return ".".join(parts[i:])
    return name


@dataclass(frozen=True)
class Text:
    text: str
    colour: str = INK
    bold: bool = False

    @property
    def width(self) -> float:
        return width_of(self.text, self.bold)


class Canvas:
    """An Axes of one inch a unit, y downwards; `used` are the colours that were drawn with."""

    def __init__(self, ax: Axes, drawn: Outline, width: float) -> None:
        self.ax = ax
        self.width = width
        self.outline = drawn
        self.used: set[str] = set()
        self.usual = _usual(drawn)

    def unit_lines(self, unit: Unit, width: float, widths: Sequence[int | None] | None = None) -> list[Text]:
        """A unit in lines of at most `width`: what comes before it, its own words, and what after it is not usual."""
        colour, after = kind_colour(unit.kind), unit.after
        if unit.kind in CONVS and self.usual:
            after = () if after == self.usual else after or ("nothing after",)
        own = unit.words(widths)
        lines = [Text(line) for line in wrapped(unit.before, width)]
        lines += [Text(line, colour) for line in _broken(own, width)]
        return lines + [Text(line) for line in wrapped(after, width)]

    def text(self, x: float, y: float, text: Text, ha: str = "center") -> None:
        """One line whose middle is at height y."""
        self.ax.text(
            *(x, y, text.text),
            **{"ha": ha, "va": "center_baseline", "fontsize": SIZE, "color": text.colour},
            fontweight="bold" if text.bold else "normal",
        )

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str = INK) -> None:
        self.ax.plot(xs, ys, color=colour, lw=0.8, solid_capstyle="round", solid_joinstyle="round", zorder=1)

    def arrow(self, x: float, y: float, down: bool = False, colour: str = INK) -> None:
        """An arrowhead whose tip is at (x, y)."""
        a, b = 0.045, 0.022
        points = [(x, y), (x - b, y - a), (x + b, y - a)] if down else [(x, y), (x - a, y - b), (x - a, y + b)]
        self.ax.add_patch(Polygon(points, closed=True, fc=colour, ec="none", zorder=2))

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.ax.add_patch(
            FancyBboxPatch(
                *((x + 0.03, y + 0.03), width - 0.06, height - 0.06),
                **{"boxstyle": "round,pad=0.03,rounding_size=0.035", "fc": colour + "38", "ec": colour, "lw": 0.8},
                zorder=3,
            )
        )

    def operator(self, word: str, x: float, y: float, radius: float, colour: str) -> None:
        """A circle with the sign of a sum, a difference or a product in it."""
        self.ax.add_patch(Circle((x, y), radius, fc=colour + "38", ec=colour, lw=0.8, zorder=3))
        r = radius * 0.6
        if word in ("mul", "×"):
            r *= 0.75
            strokes = [((-r, r), (-r, r)), ((-r, r), (r, -r))]
        elif word in ("−", "÷"):
            strokes = [((-r, r), (0, 0))]
            if word == "÷":
                strokes = [((-r, r), (r, -r))]
        else:
            strokes = [((-r, r), (0, 0)), ((0, 0), (-r, r))]
        for xs, ys in strokes:
            self.ax.plot([x + dx for dx in xs], [y + dy for dy in ys], color=colour, lw=1, zorder=4)


def _usual(drawn: Outline) -> tuple[str, ...]:
    """What follows at least three of four convolutions of a network that has many: said once, not at each."""
    after = [unit.after for unit in drawn.units() if unit.kind in CONVS]
    most = max(dict.fromkeys(after), key=after.count, default=())
    acts = bool(set(most) & ACTIVATIONS)
    return most if acts and len(after) > 10 and after.count(most) >= 0.75 * len(after) else ()
