"""Network in network: a small perceptron slides over the image, and the last maps are the classes.

paper     Lin, Chen, Yan 2013, Network in network, arXiv:1312.4400
follows   section 3: each mlpconv layer is a convolution and two 1x1 convolutions (cccp, cascaded cross-channel
          parametric pooling), a rectifier behind each; global average pooling in place of fully connected layers;
          section 4: dropout between the mlpconv layers
          widths, kernels, pooling (maximum, then mean, 3x3 with stride 2 and windows that may stick out at the end)
          and names: the network that the first author released for CIFAR-10 (his fork of cuda-convnet, and for
          Caffe), since the paper prints none of them
differs   weights at the start: He's, biases 0; the releases set a deviation by hand for each layer
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def nin(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.5) -> nn.Sequential:
    """(N, in_channels, 32, 32) -> (N, num_classes): three mlpconv layers, then the mean of each class's map."""
    model = nn.Sequential(
        OrderedDict(
            **_mlpconv(1, in_channels, 192, 5, cccp1=160, cccp2=96),
            pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
            drop1=nn.Dropout(dropout),
            **_mlpconv(2, 96, 192, 5, cccp3=192, cccp4=192),
            pool2=nn.AvgPool2d(3, stride=2, ceil_mode=True),
            drop2=nn.Dropout(dropout),
            **_mlpconv(3, 192, 192, 3, cccp5=192, cccp6=num_classes),
            pool3=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    return model.apply(_init)


def _mlpconv(number: int, channels: int, maps: int, kernel: int, **cccp: int) -> OrderedDict[str, nn.Module]:
    """(N, channels, H, W) -> (N, last of cccp, H, W): eq. 2, a perceptron with two more layers at each pixel."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages[f"conv{number}"] = nn.Conv2d(channels, maps, kernel, padding=kernel // 2)
    stages[f"relu{number}"] = nn.ReLU()
    for name, width in cccp.items():
        stages[name] = nn.Conv2d(maps, width, 1)
        stages[f"relu_{name}"] = nn.ReLU()
        maps = width
    return stages


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)
