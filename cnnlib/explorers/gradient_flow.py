"""Move through the depth of towers of layers, and see how much of the gradient reaches their first layers."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from cnnlib.analysis.gradient_flow import Flow
from cnnlib.explorers.html import Explorer, Range
from cnnlib.plots.gradient_flow import QUANTITIES, WAYS, by_depth
from cnnlib.plots.style import INK, PALETTE

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 40

SCRIPT = """
var p=data.pictures[value('layers')];
show('layers',p.layers);
p.lines.forEach(function(points,k){figure.querySelectorAll('polyline')[k].setAttribute('points',points)});
figure.querySelector('svg').setAttribute('aria-label',p.words);
figure.querySelector('.reading').textContent=p.reading;
"""


def explore_gradient_flow(
    flows: Mapping[str, Sequence[Flow]], *, what: str = "gradient", start: int | None = None, caption: str = ""
) -> Explorer:
    """A slider over the depth of networks: `flows[label][i]` is a look at the i-th depth of the networks called `label`.

    Each network is a line over its layers, on axes that stay where they are while the slider moves; `start` is the depth
    shown first, by default the middle one. ValueError where the labels have not equally many depths.
    """
    counts = {len(looks) for looks in flows.values()}
    if not flows or len(counts) != 1 or counts == {0}:
        raise ValueError(
            f"as many looks a label, and at least one: got {', '.join(f'{len(v)} of {k}' for k, v in flows.items()) or 'none'}"
        )
    (count,) = counts
    first = count // 2 if start is None else start
    if not 0 <= first < count:
        raise ValueError(
            f"start must be one of the depths 0 .. {count - 1}, got {start!r}; leave it out for the middle"
        )
    lines = {label: [by_depth(look, what)[:2] for look in looks] for label, looks in flows.items()}
    deepest = max(depth for looks in lines.values() for depths, _ in looks for depth in depths)
    logs = [math.log10(mean) for looks in lines.values() for _, means in looks for mean in means]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    axes = _Axes(deepest, low, max(high, low + 1))
    pictures = []
    for i in range(count):
        ends = {label: looks[i] for label, looks in lines.items()}
        depth = max(depths[-1] for depths, _ in ends.values())
        told = "; ".join(f"{label} {_short(means[0])}" for label, (_, means) in ends.items())
        reading = f"{depth} layers with weights. {QUANTITIES[what].capitalize()}, at the first layer: {told}."
        pictures.append(
            {
                "layers": str(depth),
                "lines": [axes.points(depths, means) for depths, means in ends.values()],
                "reading": reading,
                "words": f"Lines over the layers of networks of {depth} layers. {reading}",
            }
        )
    one = pictures[first]
    colours = [WAYS.get(label, colour) for label, colour in zip(flows, _others(len(flows)))]
    return Explorer(
        name="gradient-flow",
        title="What of the gradient reaches each layer",
        controls=[Range("layers", "Layers", 0, count - 1, first)],
        first=axes.drawing(list(flows), colours, one["lines"], QUANTITIES[what], one["words"])
        + f'<p class="reading" aria-live="polite" data-value>{html.escape(one["reading"])}</p>',
        data={"pictures": pictures, "low": axes.low, "high": axes.high, "deepest": deepest},
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )


def _others(count: int) -> list[str]:
    """Colours for labels that have none of their own."""
    spare = [colour for colour in PALETTE.values() if colour not in WAYS.values()] + list(PALETTE.values())
    return [spare[i % len(spare)] for i in range(count)]


def _short(value: float) -> str:
    """Two digits that a screen reader can read: 0.0071, 3.2e-17."""
    return f"{value:.2g}"


class _Axes:
    """A drawing of fixed size: depth from 1 to `deepest` to the right, powers of ten from `low` to `high` upwards."""

    def __init__(self, deepest: int, low: int, high: int) -> None:
        self.deepest, self.low, self.high = deepest, low, high

    def x(self, depth: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (depth - 1) / max(self.deepest - 1, 1)

    def y(self, power: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - power) / (self.high - self.low)

    def points(self, depths: Sequence[int], values: Sequence[float]) -> str:
        return " ".join(f"{self.x(d):.1f},{self.y(math.log10(v)):.2f}" for d, v in zip(depths, values))

    def drawing(
        self, labels: Sequence[str], colours: Sequence[str], lines: Sequence[str], quantity: str, words: str
    ) -> str:
        parts = []
        step = max(1, math.ceil((self.high - self.low) / 6))
        for power in range(self.high, self.low - 1, -step):
            y = self.y(power)
            parts.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" stroke-opacity=".25"/>'
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">10<tspan dy="-5" font-size="9">{power}</tspan></text>'
            )
        step = max(1, math.ceil(self.deepest / 8))
        for depth in range(step, self.deepest + 1, step):
            parts.append(
                f'<text x="{self.x(depth):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{depth}</text>'
            )
        parts.append(
            f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">depth, layers with weights</text>'
            f'<text transform="translate(12,{(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(quantity)}</text>"
        )
        for colour, points in zip(colours, lines):
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        names = "".join(
            f'<span style="white-space:nowrap;margin-right:1em"><span style="display:inline-block;width:1.3em;'
            f'border-top:3px solid {colour};margin-right:.3em;vertical-align:middle"></span>{html.escape(label)}</span> '
            for colour, label in zip(colours, labels)
        )
        return (
            f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-size="11" fill="currentColor" '
            f'aria-label="{html.escape(words)}">{"".join(parts)}</svg><p style="margin:.3rem 0 0">{names}</p>'
        )
