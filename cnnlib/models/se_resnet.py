"""SE-ResNet-50: each residual branch weighs its own maps by what it sees in the whole picture.

paper     Hu, Shen, Albanie, Sun, Wu 2018, Squeeze-and-Excitation Networks, arXiv:1709.01507
follows   equations 2 to 4, reduction 16, figure 3 (the block ends the branch, before the addition); the authors' released
          models/SE-ResNet-50.prototxt for what the paper leaves open: biases in both layers of the gate, stride in the
          first 1x1, and a max pool without padding that rounds up, as Caffe does
          names of parameters: timm's legacy_seresnet50, which holds the authors' weights
          weights at the start: He's normal over the outputs, biases 0; the paper names He's rule
differs   nothing; pytorchcv's seresnet50 has the same parameters and pads the max pool by 1 instead, which gives another
          function; timm's seresnet50 is yet another, with the stride in the 3x3
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlib.models.blocks import init_fan_out
from cnnlib.models.resnet import BLOCKS, WIDTHS, Bottleneck, Shortcut, conv1x1, conv3x3, option_b, stages


class SqueezeExcitation(nn.Module):
    """(N, C, H, W) -> (N, C, H, W): s = sigmoid(W2 relu(W1 mean(u))), then s * u, map by map (equations 2 to 4)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, u: Tensor) -> Tensor:
        z = F.adaptive_avg_pool2d(u, 1)
        s = torch.sigmoid(self.fc2(F.relu(self.fc1(z))))
        return s * u


class SEBottleneck(Bottleneck):
    """(N, C, H, W) -> (N, 4w, H/s, W/s): the paper's bottleneck, its branch weighed before the addition (figure 3)."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: Shortcut, reduction: int) -> None:
        convs = conv1x1(channels, width, stride), conv3x3(width, width), conv1x1(width, 4 * width)
        super().__init__(*convs, shortcut(channels, 4 * width, stride))
        self.se_module = SqueezeExcitation(4 * width, reduction)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.se_module(self.residual(x)) + self.downsample(x))


def se_resnet50(num_classes: int = 1000, in_channels: int = 3, reduction: int = 16) -> nn.Sequential:
    """(N, in_channels, 224, 224) -> (N, num_classes); `reduction` is r of section 3.2, at most 256."""
    if not 1 <= reduction <= 4 * WIDTHS[0]:
        raise ValueError(
            f"reduction must leave a unit of the {4 * WIDTHS[0]} maps of layer1: between 1 and {4 * WIDTHS[0]}, "
            f"got {reduction}; the paper's is 16"
        )
    stem = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu1=nn.ReLU(),
        )
    )
    expansion, blocks = BLOCKS[50]
    block = partial(SEBottleneck, shortcut=option_b, reduction=reduction)
    layers = stages(block, expansion, blocks, 64, WIDTHS)
    head = {
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "last_linear": nn.Linear(2048, num_classes),
    }
    model = nn.Sequential(OrderedDict(layer0=stem, pool0=nn.MaxPool2d(3, stride=2, ceil_mode=True), **layers, **head))
    return model.apply(init_fan_out)
