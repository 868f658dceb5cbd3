"""One question of VGG's at a small scale: the same field from one large filter or from a stack of small ones.

paper     Simonyan, Zisserman 2014, arXiv:1409.1556, sections 2.3 and 4.1
follows   the comparison of configuration B with a net in which each pair of 3x3 convolutions is one of 5x5
differs   all else: `stack_net` is our own, two stages of equal width, so that the stacks' weights are as 2 x 9 to 25;
          at the start He's weights
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def stack(kernels: Sequence[int], channels: int) -> nn.Sequential:
    """(N, channels, H, W) -> (N, channels, H, W): a convolution with ReLU for each of the odd `kernels`."""
    for kernel in kernels:
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"a kernel that keeps the size is odd (1, 3, 5, ...), got {kernel}")
    layers = [(nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.ReLU()) for kernel in kernels]
    return nn.Sequential(*[module for pair in layers for module in pair])


def stack_net(
    num_classes: int = 10, in_channels: int = 1, kernels: Sequence[int] = (3, 3), channels: int = 16
) -> nn.Sequential:
    """(N, in_channels, 28, 28) -> (N, num_classes): a first 3x3 convolution, then two stages of `stack(kernels)`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU())
    layers["pool1"] = nn.MaxPool2d(2)
    for stage in (2, 3):
        layers[f"stack{stage}"] = stack(kernels, channels)
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc4"] = nn.Linear(channels * 3 * 3, num_classes)
    return nn.Sequential(layers).apply(_init_he)


def _init_he(module: nn.Module) -> None:
    """Normal with variance 2 / inputs, biases 0 (He et al. 2015, Delving deep into rectifiers, eq. 10)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)
