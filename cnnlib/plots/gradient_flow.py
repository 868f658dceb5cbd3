"""Signals and gradients by depth, at one moment or during a training, and blocks that learn the identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from cnnlib.analysis.gradient_flow import Flow, FlowRow
from cnnlib.analysis.identity_experiment import IdentityRun
from cnnlib.errors import unknown
from cnnlib.plots.style import INK, PALETTE, sequential

QUANTITIES = {
    "gradient": "norm of the gradient at a layer's output",
    "value": "norm of a layer's output",
    "gradient_rms": "gradient at one value (root mean square)",
    "value_rms": "one value (root mean square)",
    "weight_gradient": "norm of the weights' gradient",
    "relative": "gradient by norm of the weights",
    "update": "update by norm of the weights",
}
# One colour a way of joining layers, the same in figures and explorers.
WAYS = {
    "plain": PALETTE["red"],
    "auxiliary": PALETTE["pink"],
    "batch_norm": PALETTE["orange"],
    "highway": PALETTE["brown"],
    "residual": PALETTE["blue"],
    "pre_activation": PALETTE["teal"],
    "dense": PALETTE["green"],
}


def draw_flow(
    flow: Flow,
    ax: Axes,
    *,
    what: str = "gradient",
    label: str | None = None,
    colour: str = INK,
    dashed: bool = False,
) -> Axes:
    """Draw one quantity of each layer with weights against its depth, on a logarithmic axis.

    Layers of one depth (branches) are dots of their own; the line goes through their geometric mean. What is zero cannot
    stand on this axis and is left out.
    """
    depths, means, dots = by_depth(flow, what)
    ax.plot(depths, means, color=colour, label=label or flow.network, ls="--" if dashed else "-", lw=1.5)
    ax.scatter(*zip(*dots), s=9, color=colour, lw=0, alpha=0.7)
    ax.set_yscale("log")
    ax.set_xlabel("depth, layers with weights")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel(QUANTITIES[what])
    return ax


def by_depth(flow: Flow, what: str = "gradient") -> tuple[list[int], list[float], list[tuple[int, float]]]:
    """Depths, the geometric mean of the layers of each, and every layer as a dot; values above zero only."""
    if what not in QUANTITIES:
        raise unknown("quantity", what, QUANTITIES)
    dots = [(row.depth, value) for row in flow.layers if (value := getattr(row, what)) is not None and value > 0]
    if not dots:
        raise ValueError(f"no layer of {flow.network} has {what!r} above zero at moment {flow.moment}")
    depths = sorted({depth for depth, _ in dots})
    means = [float(np.exp(np.mean([np.log(value) for at, value in dots if at == depth]))) for depth in depths]
    return depths, means, dots


def draw_flow_during(flows: Sequence[Flow], ax: Axes, *, what: str = "gradient") -> Axes:
    """Draw one quantity of each layer (rows, the first on top) at each moment (columns) as a colour, and its scale.

    An empty cell has none: at the first moment nothing was updated, and zero has no logarithm.
    """
    if what not in QUANTITIES:
        raise unknown("quantity", what, QUANTITIES)
    names = [row.name for row in flows[0].layers] if flows else []
    if not names or any([row.name for row in flow.layers] != names for flow in flows):
        raise ValueError("the moments must be of one network, and at least one; got none, or layers that differ")
    table = np.array([[_number(row, what) for row in flow.layers] for flow in flows]).T
    if not np.isfinite(table).any():
        raise ValueError(f"{what!r} is above zero at none of the moments")
    picture = ax.imshow(
        np.ma.masked_invalid(table),
        norm=LogNorm(),
        cmap=sequential(),
        aspect="auto",
        interpolation="nearest",
        extent=(flows[0].moment - 0.5, flows[-1].moment + 0.5, len(names) - 0.5, -0.5),
    )
    ax.grid(False)
    ax.set_xlabel("moment (0 is the start)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    step = -(-len(names) // 24)
    ax.set_yticks(range(0, len(names), step), names[::step], fontsize=7)
    bar = ax.figure.colorbar(picture, ax=ax, label=QUANTITIES[what])
    bar.outline.set_edgecolor(INK)
    return ax


def _number(row: FlowRow, what: str) -> float:
    value = getattr(row, what)
    return value if value else np.nan


def draw_identity(runs: Sequence[IdentityRun], ax: Axes, *, colours: Mapping[str, str] = WAYS) -> Axes:
    """Draw the loss of each group (way, blocks) against the steps: the geometric mean of its seeds, and a band around all.

    More blocks are drawn thinner. Losses are cut at 1e-6, below which nothing is left to be told.
    """
    groups: dict[tuple[str, int], list[IdentityRun]] = {}
    for run in runs:
        groups.setdefault((run.way, run.blocks), []).append(run)
    counts = sorted({blocks for _, blocks in groups})
    for (way, blocks), members in groups.items():
        curves = np.log(np.maximum([run.losses for run in members], 1e-6))
        steps = np.arange(curves.shape[1])
        style = ("-", "--", ":", "-.")[counts.index(blocks) % 4]
        label = f"{way}, {blocks} block{'s' * (blocks > 1)}"
        ax.plot(steps, np.exp(curves.mean(axis=0)), color=colours[way], ls=style, lw=1.5, label=label)
        if len(members) > 1:
            ax.fill_between(
                steps, np.exp(curves.min(axis=0)), np.exp(curves.max(axis=0)), color=colours[way], alpha=0.12, lw=0
            )
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("squared error by squared input")
    return ax
