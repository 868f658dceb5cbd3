"""MobileNet: a convolution in two steps, first within each map, then across the maps.

paper     Howard et al. 2017, MobileNets, arXiv:1704.04861
follows   table 1 and figure 3: batch norm and ReLU after both steps; width multiplier (section 3.3)
differs   table 1 prints stride 2 for the last depthwise convolution, whose input and output are 7x7: its stride is 1
          padding is 1 on every side, where TensorFlow pads an even image at the right and the bottom only
          weights at the start, which the paper leaves open: He's normal over the inputs, batch norm 1 and 0, bias 0
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

# Table 1: maps and stride of each depthwise separable convolution; the first, full one has 32 maps and stride 2.
STEM = 32
SEPARABLE = (
    *[(64, 1), (128, 2), (128, 1), (256, 2), (256, 1)],
    *[(512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)],
    *[(1024, 2), (1024, 1)],
)


class DepthwiseSeparable(nn.Sequential):
    """(N, C, H, W) -> (N, out, H/s, W/s): 3x3 within each map, then 1x1 across them (figure 3, right)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(
            OrderedDict(
                depthwise=nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
                depthwise_bn=nn.BatchNorm2d(channels),
                depthwise_relu=nn.ReLU(),
                pointwise=nn.Conv2d(channels, out, 1, bias=False),
                pointwise_bn=nn.BatchNorm2d(out),
                pointwise_relu=nn.ReLU(),
            )
        )


def mobilenet_v1(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 224, 224) -> (N, num_classes): table 1 with `width` (alpha, section 3.3) times the maps."""
    if width <= 0 or int(width * STEM) < 1:
        raise ValueError(f"width must leave at least one of {STEM} maps (the paper: 0.25, 0.5, 0.75, 1.0), got {width}")
    channels = int(width * STEM)
    stages = OrderedDict(
        conv0=nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False),
                bn=nn.BatchNorm2d(channels),
                relu=nn.ReLU(),
            )
        )
    )
    for number, (maps, stride) in enumerate(SEPARABLE, start=1):
        out = int(width * maps)
        stages[f"conv{number}"] = DepthwiseSeparable(channels, out, stride)
        channels = out
    stages["avgpool"] = nn.AdaptiveAvgPool2d(1)
    stages["flatten"] = nn.Flatten()
    stages["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(stages).apply(_init)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)
