"""How every figure of the book looks: transparent, mid-grey ink, colours that read on a white and on a dark page."""

from __future__ import annotations

from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap

INK = "#7d7d7d"  # 4.1:1 on white, 4.3:1 on the dark theme's #14181e: the one grey that serves both
FAINT = "#7d7d7d40"
PALETTE = {
    "blue": "#3b8bc2",
    "orange": "#d9822b",
    "green": "#3f9b57",
    "red": "#d1495b",
    "purple": "#8e6bbf",
    "teal": "#2a9d9d",
    "brown": "#a5774a",
    "pink": "#c76ba4",
}

# One colour a network, the same on every page: a hue for the family, the paler the shallower.
NETWORKS = {
    "lenet5": PALETTE["blue"],
    "lenet5_1998": PALETTE["orange"],
    "alexnet": PALETTE["brown"],
    "small_alexnet": PALETTE["brown"],
    "small_alexnet_128": PALETTE["brown"],
    "zfnet": PALETTE["pink"],
    "vgg_d": PALETTE["orange"],
    "small_vgg": PALETTE["orange"],
    "googlenet": PALETTE["teal"],
    "highway19": PALETTE["purple"],
    "plain20": "#dc7a89",
    "plain56": PALETTE["red"],
    "plain34": PALETTE["red"],
    "resnet20": "#5ca1d1",
    "resnet34": "#5ca1d1",
    "resnet50": PALETTE["blue"],
    "resnet56": PALETTE["blue"],
    "resnet110": "#2a6ea0",
    "densenet22_k12": PALETTE["green"],
    "densenet40_k12": PALETTE["green"],
    "densenet121": PALETTE["green"],
}

# What a layer does, in drawings of architectures.
KINDS = {
    "input": INK,
    "conv": PALETTE["blue"],
    "pool": PALETTE["orange"],
    "linear": PALETTE["green"],
    "output": PALETTE["purple"],
}

STYLE = {
    "figure.facecolor": "none",
    "figure.figsize": (7.2, 3.6),
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "savefig.facecolor": "none",
    "savefig.bbox": "tight",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": f"cycler('color', {list(PALETTE.values())})",
    "grid.color": INK,
    "grid.alpha": 0.2,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "font.size": 10,
    "image.cmap": "gray",
    "svg.hashsalt": "cnnlib",
}


def colour_of(network: str) -> str:
    """The colour of a network in every figure of the book; grey ink for one that is not in the book."""
    return NETWORKS.get(network, INK)


def diverging() -> Colormap:
    """Negative blue, zero transparent, positive orange: signed weights on a page of either colour."""
    return LinearSegmentedColormap.from_list("signed", ["#1f78b4ff", "#7d7d7d10", "#e0701aff"])


def sequential() -> Colormap:
    """Dark to light for values without sign, with its ends off black and white so that both pages frame it."""
    return colormaps["cividis"]
