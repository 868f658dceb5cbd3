"""Walk over the loss surfaces of networks: where on the plane, and how high it is there."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnlib.analysis.loss_surfaces import LossSurface
from cnnlib.explorers.html import Choice, Explorer, Range, png

TOP = 10.0  # as in the static figure
SIDE, LEFT, UP = 240, 46, 24  # the map and the cut: pixels of a side, and where they begin
CUT = LEFT + SIDE + 64  # where the cut begins, from the left
CURVE, MARK = "#3b8bc2", "#d9822b"

# Heights go from `low` to `high` on a logarithmic scale, which is the same for all networks.
SCRIPT = """
var i=figure.querySelector('[name=network]')?value('network'):0,c=value('x'),r=value('y'),N=data.networks[i];
var P=N.loss[r][c],big=function(v){return v===null?Infinity:v};
var place=function(v){return 1-(Math.log(Math.min(Math.max(big(v),data.low),data.high))-Math.log(data.low))/(Math.log(data.high)-Math.log(data.low))};
var X=data.xs,Y=data.ys,U=data.up,S=data.side,n=X.length,m=Y.length;
show('x',X[c]);show('y',Y[r]);
figure.querySelector('image').setAttribute('href',N.map);
figure.querySelector('.here').setAttribute('transform','translate('+(data.left+(c+.5)*S/n)+','+(U+(m-r-.5)*S/m)+')');
figure.querySelector('.row').setAttribute('y',U+(m-1-r)*S/m);
var at=function(k){return [data.cut+k*S/(n-1),U+S*place(N.loss[r][k])]};
figure.querySelector('polyline').setAttribute('points',X.map(function(_,k){return at(k).map(function(v){return v.toFixed(1)}).join(',')}).join(' '));
var dot=figure.querySelector('.dot');dot.setAttribute('cx',at(c)[0].toFixed(1));dot.setAttribute('cy',at(c)[1].toFixed(1));
var number=function(v){return v===null?'beyond all numbers':String(v)};
figure.querySelector('.reading').textContent=N.name+' at x = '+X[c]+', y = '+Y[r]+': loss '+number(P)+
(N.loss_se[r][c]?' \\u00b1 '+N.loss_se[r][c]:'')+(big(P)>data.high?' (above the scale)':'')+', error '+N.error[r][c]+' %'+
(N.error_se[r][c]?' \\u00b1 '+N.error_se[r][c]:'')+'. '+N.about;
figure.querySelector('svg').setAttribute('aria-label','Left the loss of '+N.name+' over the plane, with a cross at x = '+X[c]+', y = '+Y[r]+'; right the loss along x at this y');
"""


def explore_loss_surfaces(
    surfaces: Sequence[LossSurface],
    *,
    labels: Sequence[str] | None = None,
    top: float = TOP,
    caption: str = "",
    name: str = "loss-surfaces",
) -> Explorer:
    """Two sliders, x and y, over the planes of `surfaces` (one network each, on one grid), and a list to choose a network.

    A map of the loss with a cross, the cut through it along x, and in words the loss and error with one standard error. All
    networks share a logarithmic scale, cut at `top`. ValueError for lines and for planes of different grids.
    """
    labels = [surface.network for surface in surfaces] if labels is None else list(labels)
    if not surfaces or len(labels) != len(surfaces):
        raise ValueError(
            f"one label a surface, and at least one: got {len(surfaces)} surfaces and {len(labels)} labels"
        )
    first = surfaces[0]
    for surface, label in zip(surfaces, labels):
        if len(surface.xs) < 2 or len(surface.ys) < 2:
            raise ValueError(
                f"{label} has {len(surface.xs)} x {len(surface.ys)} points, which is no plane to walk over"
            )
        if (surface.xs, surface.ys) != (first.xs, first.ys):
            raise ValueError(
                f"all surfaces must have one grid, and {label} has another than {labels[0]}; give both xs and ys"
            )
    losses = np.concatenate([surface.array().ravel() for surface in surfaces])
    low = float(max(losses.min(), 1e-4))
    high = float(min(losses.max(), top))
    if not low < high:
        low, high = low / 2, low * 2
    column = min(range(len(first.xs)), key=lambda i: abs(first.xs[i]))
    row = min(range(len(first.ys)), key=lambda i: abs(first.ys[i]))
    data = {
        "networks": [_network(surface, label, low, high) for surface, label in zip(surfaces, labels)],
        **{"xs": [_short(x) for x in first.xs], "ys": [_short(y) for y in first.ys]},
        **{"low": low, "high": high, "side": SIDE, "left": LEFT, "up": UP, "cut": CUT},
    }
    controls: list[Range | Choice] = [
        Range("x", "x", 0, len(first.xs) - 1, column),
        Range("y", "y", 0, len(first.ys) - 1, row),
    ]
    if len(surfaces) > 1:
        controls.insert(0, Choice("network", "Network", labels))
    return Explorer(
        name=name,
        title="Around the weights of a network",
        controls=controls,
        first=_drawing(data, labels[0], first, row, column),
        data=data,
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )


def _short(value: float, digits: int = 4) -> float | None:
    """A value as it is read: four digits, None for infinity."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _rows(surface: LossSurface, column: str, factor: float = 1, digits: int = 4) -> list[list[float | None]]:
    return [[_short(factor * value, digits) for value in row] for row in surface.array(column)]


def _network(surface: LossSurface, label: str, low: float, high: float) -> dict[str, Any]:
    from cnnlib.plots.style import sequential

    shares = np.log(np.clip(surface.array(), low, high) / low) / np.log(high / low)
    pixels = np.round(255 * sequential()(shares)[::-1, :, :3]).astype(np.uint8)  # the highest y on top
    looked = (
        f"{surface.images:,} of {surface.population:,}"
        if surface.images < surface.population
        else f"{surface.images:,}"
    )
    policy = {"none": "", "running": ", batch norm with the statistics of training"}.get(
        surface.batch_norm, f", batch norm {surface.batch_norm}"
    )
    return {
        "name": label,
        "map": png(pixels),
        "loss": _rows(surface, "loss"),
        "loss_se": _rows(surface, "loss_se", digits=2),
        "error": _rows(surface, "error", 100, 3),
        "error_se": _rows(surface, "error_se", 100, 2),
        "about": f"({looked} images{policy}.)",
    }


def _drawing(data: dict[str, Any], label: str, surface: LossSurface, row: int, column: int) -> str:
    point = surface.points[row * len(surface.xs) + column]
    ticks = [
        value
        for value in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
        if data["low"] <= value <= data["high"]
    ]

    def down(loss: float) -> float:
        return UP + SIDE * (1 - math.log(loss / data["low"]) / math.log(data["high"] / data["low"]))

    scale = "".join(
        f'<path d="M{CUT - 4} {down(t):.1f}h{SIDE + 4}" stroke="currentColor" stroke-opacity=".2"/>'
        f'<text x="{CUT - 8}" y="{down(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
    )
    bottom = UP + SIDE
    ends = [(data["xs"][0], LEFT, "start"), (data["xs"][-1], LEFT + SIDE, "end")]
    ends += [(data["xs"][0], CUT, "start"), (data["xs"][-1], CUT + SIDE, "end")]
    below = "".join(f'<text x="{x}" y="{bottom + 15}" text-anchor="{a}">{value:g}</text>' for value, x, a in ends)
    below += f'<text x="{LEFT + SIDE / 2}" y="{bottom + 15}" text-anchor="middle">x</text>'
    below += f'<text x="{CUT + SIDE / 2}" y="{bottom + 15}" text-anchor="middle">x</text>'
    beside = (
        f'<text x="{LEFT - 6}" y="{UP + 10}" text-anchor="end">{data["ys"][-1]:g}</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">{data["ys"][0]:g}</text>'
        f'<text x="{LEFT - 6}" y="{UP + SIDE / 2}" text-anchor="end">y</text>'
        f'<text x="{CUT - 8}" y="{UP - 10}" text-anchor="end" font-style="italic">loss</text>'
    )
    words = f"{label}: loss {_short(point.loss)} where the cross is, error {_short(100 * point.error, 3)} %."
    return (
        f'<svg role="img" viewBox="0 0 {CUT + SIDE + 12} {bottom + 22}" width="{CUT + SIDE + 12}" font-size="11" fill="currentColor" '
        f'aria-label="The loss of {html.escape(label, quote=True)} over the plane, and along x at one y">'
        f'<image href="{data["networks"][0]["map"]}" x="{LEFT}" y="{UP}" width="{SIDE}" height="{SIDE}" preserveAspectRatio="none" '
        'style="image-rendering:pixelated"/>'
        f'<rect class="row" x="{LEFT}" y="{UP}" width="{SIDE}" height="{SIDE / len(surface.ys):.2f}" fill="none" stroke="{MARK}"/>'
        f'<g class="here" stroke="{MARK}" stroke-width="2"><path d="M-7 0H7M0 -7V7"/></g>'
        f'{scale}<rect x="{CUT}" y="{UP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="currentColor" stroke-opacity=".4"/>'
        f'<polyline fill="none" stroke="{CURVE}" stroke-width="2" points=""/><circle class="dot" r="5" fill="{MARK}"/>'
        f"{below}{beside}</svg>"
        f'<p class="reading" aria-live="polite" data-value>{html.escape(words)}</p>'
    )
