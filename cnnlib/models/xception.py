"""Xception: every convolution of an Inception taken apart into channels and pixels.

paper     Chollet 2016, Xception: deep learning with depthwise separable convolutions, arXiv:1610.02357
follows   figure 5: entry flow, middle flow of eight blocks, exit flow; separable convolutions without anything between
          their two halves (section 4.7), batch norm behind every convolution, shortcuts of 1x1 with stride 2 where the
          size halves, no auxiliary head, dropout 0.5 (section 4.3)
          names, padding and batch norm (eps 1e-5) as in timm's legacy_xception, the port with the public weights
          weights at the start as that port: He's normal over the outputs, linear bias 0
differs   the author's own Keras network has eps 1e-3 and momentum 0.99 in batch norm
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from cnnlib.models.blocks import init_fan_out

# Figure 5: input maps, widths of the separable convolutions, stride, whether a rectifier comes first.
ENTRY_FLOW = ((64, (128, 128), 2, False), (128, (256, 256), 2, True), (256, (728, 728), 2, True))
MIDDLE_FLOW = ((728, (728, 728, 728), 1, True),) * 8
EXIT_FLOW = ((728, (728, 1024), 2, True),)


class SeparableConv2d(nn.Sequential):
    """(N, C, H, W) -> (N, maps, H, W): a 3x3 kernel for each map alone, then 1x1 over all maps."""

    def __init__(self, channels: int, maps: int) -> None:
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        super().__init__(OrderedDict(conv1=depthwise, pointwise=nn.Conv2d(channels, maps, 1, bias=False)))


class Block(nn.Module):
    """(N, C, H, W) -> (N, widths[-1], H/s, W/s): rectified separable convolutions, 3x3 pooling if s = 2, plus a shortcut."""

    def __init__(self, channels: int, widths: tuple[int, ...], stride: int, relu_first: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for maps in widths:
            layers += [nn.ReLU(), SeparableConv2d(inputs, maps), nn.BatchNorm2d(maps)]
            inputs = maps
        if stride != 1:
            layers.append(nn.MaxPool2d(3, stride, padding=1))
        self.rep = nn.Sequential(*layers[0 if relu_first else 1 :])
        self.skip = self.skipbn = None
        if stride != 1 or inputs != channels:
            self.skip = nn.Conv2d(channels, inputs, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(inputs)

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.skip is None else self.skipbn(self.skip(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.rep(x) + self.shortcut(x)


def xception(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> nn.Sequential:
    """(N, in_channels, 299, 299) -> (N, num_classes): figure 5."""
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, 32, 3, 2, bias=False),
        bn1=nn.BatchNorm2d(32),
        act1=nn.ReLU(),
        conv2=nn.Conv2d(32, 64, 3, bias=False),
        bn2=nn.BatchNorm2d(64),
        act2=nn.ReLU(),
    )
    for number, row in enumerate((*ENTRY_FLOW, *MIDDLE_FLOW, *EXIT_FLOW), start=1):
        stages[f"block{number}"] = Block(*row)
    for number, (inputs, maps) in enumerate(((1024, 1536), (1536, 2048)), start=3):
        stages[f"conv{number}"] = SeparableConv2d(inputs, maps)
        stages[f"bn{number}"] = nn.BatchNorm2d(maps)
        stages[f"act{number}"] = nn.ReLU()
    stages["global_pool"] = nn.AdaptiveAvgPool2d(1)
    stages["flatten"] = nn.Flatten()
    stages["dropout"] = nn.Dropout(dropout)
    stages["fc"] = nn.Linear(2048, num_classes)
    return nn.Sequential(stages).apply(init_fan_out)
