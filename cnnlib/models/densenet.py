"""DenseNet: each layer of a block reads the maps of all layers before it.

paper     Huang, Liu, van der Maaten, Weinberger 2016, Densely Connected Convolutional Networks, arXiv:1608.06993
follows   section 3: composite function BN-ReLU-conv, growth rate k, bottleneck of 4k maps (B), compression theta (C),
          16 initial maps, or 2k with B and C; table 1 for ImageNet; section 4.2: dropout after each convolution but
          the first
          names of parameters: torchvision's, so that its densenet121/161/169/201 load as they are
          weights at the start: the authors' Lua code, normal with variance 2 / (k*k*n_out), linear layer as Torch does
differs   nothing; DenseNet-264 has 265 layers by the rule that names its sisters, as in the paper
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cnnlib.models.blocks import init_fan_out

# Table 1: layers of each dense block, growth rate, maps after the first convolution (2k).
IMAGENET = {
    121: ((6, 12, 24, 16), 32, 64),
    161: ((6, 12, 36, 24), 48, 96),
    169: ((6, 12, 32, 32), 32, 64),
    201: ((6, 12, 48, 32), 32, 64),
    264: ((6, 12, 64, 48), 32, 64),
}


@dataclass(frozen=True)
class Version:
    """How the plain CIFAR networks are built, and who builds them so; `initial` maps are 16 or a multiple of k."""

    initial: str
    theta: float
    source: str


# The paper's totals (1.0M, 7.0M, 27.2M) fit its 16 initial maps only.
VERSIONS = {
    "paper": Version("16", 1.0, "section 3, implementation details"),
    "2k": Version("2k", 1.0, "liuzhuang13/DenseNet models/densenet.lua, andreasveit/densenet-pytorch"),
    "halved": Version("2k", 0.5, "pytorchcv densenet40_k12_cifar10: compresses without a bottleneck"),
}


def with_dropout(rate: float, **parts: nn.Module) -> OrderedDict[str, nn.Module]:
    """The parts by name, and dropout behind each convolution unless its rate is 0 (section 4.2)."""
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    for name, part in parts.items():
        steps[name] = part
        if rate > 0 and isinstance(part, nn.Conv2d):
            steps[name.replace("conv", "drop")] = nn.Dropout(rate)
    return steps


class DenseLayer(nn.Sequential):
    """(N, C, H, W) -> (N, k, H, W): H_l = BN-ReLU-conv3x3 (section 3, composite function)."""

    def __init__(self, channels: int, growth_rate: int, dropout: float) -> None:
        super().__init__(
            with_dropout(
                dropout,
                norm1=nn.BatchNorm2d(channels),
                relu1=nn.ReLU(),
                conv1=nn.Conv2d(channels, growth_rate, 3, padding=1, bias=False),
            )
        )


class BottleneckLayer(nn.Sequential):
    """(N, C, H, W) -> (N, k, H, W): H_l = BN-ReLU-conv1x1 to 4k maps, BN-ReLU-conv3x3 (section 3, DenseNet-B)."""

    def __init__(self, channels: int, growth_rate: int, dropout: float) -> None:
        width = 4 * growth_rate
        super().__init__(
            with_dropout(
                dropout,
                norm1=nn.BatchNorm2d(channels),
                relu1=nn.ReLU(),
                conv1=nn.Conv2d(channels, width, 1, bias=False),
                norm2=nn.BatchNorm2d(width),
                relu2=nn.ReLU(),
                conv2=nn.Conv2d(width, growth_rate, 3, padding=1, bias=False),
            )
        )


class DenseBlock(nn.ModuleDict):
    """(N, C, H, W) -> (N, C + layers * k, H, W): x_l = H_l([x_0, ..., x_{l-1}]) (eq. 2)."""

    def __init__(self, layer: type[nn.Module], layers: int, channels: int, growth_rate: int, dropout: float) -> None:
        super().__init__(
            {f"denselayer{i + 1}": layer(channels + i * growth_rate, growth_rate, dropout) for i in range(layers)}
        )

    def forward(self, x_0: Tensor) -> Tensor:
        x = [x_0]
        for h_l in self.values():
            x.append(h_l(torch.cat(x, dim=1)))
        return torch.cat(x, dim=1)


class Transition(nn.Sequential):
    """(N, C, H, W) -> (N, out, H/2, W/2): BN-ReLU-conv1x1 and 2x2 average pooling (section 3, pooling layers)."""

    def __init__(self, channels: int, out: int, dropout: float) -> None:
        super().__init__(
            with_dropout(
                dropout,
                norm=nn.BatchNorm2d(channels),
                relu=nn.ReLU(),
                conv=nn.Conv2d(channels, out, 1, bias=False),
                pool=nn.AvgPool2d(2),
            )
        )


class DenseNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes): `stem`, dense blocks with a transition between each two, classifier.

    `initial` is the number of maps after the stem; a transition keeps floor(theta * C) of C maps.
    """

    def __init__(
        self,
        stem: OrderedDict[str, nn.Module],
        initial: int,
        layer: type[nn.Module],
        blocks: tuple[int, ...],
        growth_rate: int,
        theta: float,
        dropout: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        if not 0 < theta <= 1:
            raise ValueError(f"theta must be in (0, 1], the share of maps that a transition keeps; got {theta}")
        if not 0 <= dropout < 1:
            raise ValueError(
                f"dropout must be in [0, 1), got {dropout}; the paper's is 0.2 without augmentation, else 0"
            )
        self.features = nn.Sequential(stem)
        channels = initial
        for number, layers in enumerate(blocks, start=1):
            self.features.add_module(f"denseblock{number}", DenseBlock(layer, layers, channels, growth_rate, dropout))
            channels += layers * growth_rate
            if number < len(blocks):
                out = int(theta * channels)
                self.features.add_module(f"transition{number}", Transition(channels, out, dropout))
                channels = out
        self.features.add_module(f"norm{len(blocks) + 1}", nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        self.apply(init_fan_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.relu(self.features(x)))
        return self.classifier(x.flatten(1))


def depth_of(blocks: tuple[int, ...], bottleneck: bool = True) -> int:
    """The layers that the name counts: first convolution, those of the blocks, one a transition, classifier.

    >>> depth_of((6, 12, 24, 16)), depth_of((6, 12, 64, 48)), depth_of((12, 12, 12), bottleneck=False)
    (121, 265, 40)
    """
    return 1 + sum(blocks) * (2 if bottleneck else 1) + (len(blocks) - 1) + 1


def layers_per_block(depth: int, bottleneck: bool) -> int:
    """N of the CIFAR networks, whose depth is 3N + 4, or 6N + 4 with a bottleneck; ValueError for another depth.

    >>> layers_per_block(40, bottleneck=False), layers_per_block(100, bottleneck=True)
    (12, 16)
    """
    step = 6 if bottleneck else 3
    layers, rest = divmod(depth - 4, step)
    if rest or layers < 1:
        below = max(layers, 1) * step + 4
        raise ValueError(
            f"depth must be {step}N + 4 with N >= 1 {'with' if bottleneck else 'without'} a bottleneck, got {depth}; "
            f"the nearest are {below} and {below + step}"
        )
    return layers


def imagenet_densenet(
    depth: int, num_classes: int = 1000, in_channels: int = 3, theta: float = 0.5, dropout: float = 0.0
) -> DenseNet:
    """(N, in_channels, 224, 224) -> (N, num_classes): a DenseNet-BC of table 1."""
    if depth not in IMAGENET:
        raise ValueError(f"table 1 has the depths {', '.join(map(str, IMAGENET))}, got {depth}")
    blocks, growth_rate, initial = IMAGENET[depth]
    stem = OrderedDict(
        conv0=nn.Conv2d(in_channels, initial, 7, stride=2, padding=3, bias=False),
        norm0=nn.BatchNorm2d(initial),
        relu0=nn.ReLU(),
        pool0=nn.MaxPool2d(3, stride=2, padding=1),
    )
    return DenseNet(stem, initial, BottleneckLayer, blocks, growth_rate, theta, dropout, num_classes)


def cifar_densenet_bc(
    depth: int, growth_rate: int, num_classes: int = 10, in_channels: int = 3, theta: float = 0.5, dropout: float = 0.0
) -> DenseNet:
    """(N, in_channels, 32, 32) -> (N, num_classes): DenseNet-BC, 2k initial maps, three blocks of (depth - 4) / 6."""
    blocks = (layers_per_block(depth, bottleneck=True),) * 3
    initial = 2 * growth_rate
    stem = OrderedDict(conv0=nn.Conv2d(in_channels, initial, 3, padding=1, bias=False))
    return DenseNet(stem, initial, BottleneckLayer, blocks, growth_rate, theta, dropout, num_classes)


def cifar_densenet(
    depth: int,
    growth_rate: int,
    num_classes: int = 10,
    in_channels: int = 3,
    version: str = "paper",
    dropout: float = 0.0,
) -> DenseNet:
    """(N, in_channels, 32, 32) -> (N, num_classes): the plain DenseNet, three blocks of (depth - 4) / 3 layers."""
    if version not in VERSIONS:
        raise ValueError(f"no version {version!r} of the plain DenseNet; there are {', '.join(VERSIONS)}")
    row = VERSIONS[version]
    blocks = (layers_per_block(depth, bottleneck=False),) * 3
    initial = 2 * growth_rate if row.initial == "2k" else int(row.initial)
    stem = OrderedDict(conv0=nn.Conv2d(in_channels, initial, 3, padding=1, bias=False))
    return DenseNet(stem, initial, DenseLayer, blocks, growth_rate, row.theta, dropout, num_classes)


densenet121 = partial(imagenet_densenet, 121)
densenet161 = partial(imagenet_densenet, 161)
densenet169 = partial(imagenet_densenet, 169)
densenet201 = partial(imagenet_densenet, 201)
densenet264 = partial(imagenet_densenet, 264)

densenet40_k12 = partial(cifar_densenet, 40, 12)
densenet40_k12_2k = partial(cifar_densenet, 40, 12, version="2k")
densenet40_k12_halved = partial(cifar_densenet, 40, 12, version="halved")
densenet100_k12 = partial(cifar_densenet, 100, 12)
densenet100_k24 = partial(cifar_densenet, 100, 24)
densenet_bc100_k12 = partial(cifar_densenet_bc, 100, 12)
densenet_bc190_k40 = partial(cifar_densenet_bc, 190, 40)
densenet_bc250_k24 = partial(cifar_densenet_bc, 250, 24)
