"""ZFNet: AlexNet's frame after a look at what its layers see.

paper     Zeiler, Fergus 2013, Visualizing and understanding convolutional networks, arXiv:1311.2901
follows   figure 3: 7x7 kernels with stride 2 in layer 1, stride 2 in layer 2 too, rectified, then pooled (3x3, stride
          2), then normalised across maps; no groups; section 3.1: dropout 0.5 behind layers 6 and 7, weights with a
          deviation of 0.01 and biases 0 at the start
          zfnet_wide: section 5's widening of layers 3, 4 and 5 to 512, 1024 and 512 maps
differs   what the paper leaves open: padding 1 in layers 1, 3, 4 and 5, and windows of pooling that may stick out at
          the end, are the ones that give figure 3's sizes (110, 55, 26, 13, 6); normalisation has AlexNet's constants
"""

from __future__ import annotations

from torch import nn

from cnnlib.models.blocks import ConvRow, eight_layers, local_response_norm

# Figure 3: maps, kernel, stride, padding, groups, what follows.
FIGURE_3 = (
    ConvRow(96, 7, 2, 1, 1, "relu pool norm"),
    ConvRow(256, 5, 2, 0, 1, "relu pool norm"),
    ConvRow(384, 3, 1, 1, 1, "relu"),
    ConvRow(384, 3, 1, 1, 1, "relu"),
    ConvRow(256, 3, 1, 1, 1, "relu pool"),
)
WIDE = tuple(row._replace(maps=maps) for row, maps in zip(FIGURE_3, (96, 256, 512, 1024, 512)))


def zfnet(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> nn.Sequential:
    """(N, in_channels, 224, 224) -> (N, num_classes): the network of figure 3."""
    return _zeiler(FIGURE_3, num_classes, in_channels, dropout)


def zfnet_wide(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> nn.Sequential:
    """(N, in_channels, 224, 224) -> (N, num_classes): figure 3 with 512, 1024 and 512 maps in layers 3, 4 and 5."""
    return _zeiler(WIDE, num_classes, in_channels, dropout)


def _zeiler(rows: tuple[ConvRow, ...], num_classes: int, in_channels: int, dropout: float) -> nn.Sequential:
    pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    model = eight_layers(rows, num_classes, in_channels, local_response_norm(), pool, dropout)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    return model
