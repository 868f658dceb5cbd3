"""Drawings of architectures, laid out from the outline of a traced graph, and the same in words."""

from cnnlib.plots.networks.drawing import draw_network
from cnnlib.plots.networks.stages import outline
from cnnlib.plots.networks.words import describe

__all__ = ["describe", "draw_network", "outline"]
