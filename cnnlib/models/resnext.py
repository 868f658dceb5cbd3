"""ResNeXt: a bottleneck whose 3x3 convolution works in groups, so that a block is a sum of many thin paths.

paper     Xie, Girshick, Dollar, Tu, He 2017, Aggregated Residual Transformations for Deep Neural Networks,
          arXiv:1611.05431
follows   figure 3 (c), grouped convolutions; table 1; section 5.3 and the authors' facebookresearch/ResNeXt for CIFAR
          (64 maps in the stem, stages of 64, 128 and 256); stride in the 3x3, as that code has it
          names of parameters: torchvision's, so that its resnext50_32x4d and resnext101_64x4d load as they are
          weights at the start: the authors' code, He's normal over the outputs, linear bias 0
differs   nothing; figure 3 (a) and (b), the same function by sums and by concatenation, are written out in the tests
"""

from __future__ import annotations

from functools import partial

from torch import nn

from cnnlib.models.resnet import (
    BLOCKS,
    WIDTHS,
    Bottleneck,
    Shortcut,
    blocks_per_stage,
    cifar_stem,
    conv1x1,
    conv3x3,
    imagenet_stem,
    network,
    option_b,
    stages,
)

CIFAR_WIDTHS = (64, 128, 256)


def aggregated(
    channels: int, width: int, stride: int, cardinality: int, d: int, shortcut: Shortcut = option_b
) -> Bottleneck:
    """(N, C, H, W) -> (N, 4w, H/s, W/s): `cardinality` paths, each of d maps where w is 64 and of d w / 64 elsewhere."""
    inner = cardinality * (width * d // 64)
    convs = conv1x1(channels, inner), conv3x3(inner, inner, stride, groups=cardinality), conv1x1(inner, 4 * width)
    return Bottleneck(*convs, shortcut(channels, 4 * width, stride))


def imagenet_resnext(
    depth: int, cardinality: int, d: int, num_classes: int = 1000, in_channels: int = 3
) -> nn.Sequential:
    """(N, in_channels, 224, 224) -> (N, num_classes): the blocks of ResNet-50 or 101, aggregated (table 1)."""
    deep = [number for number, (expansion, _) in BLOCKS.items() if expansion > 1]
    if depth not in deep:
        raise ValueError(
            f"ResNeXt has the depths {', '.join(map(str, deep))}, got {depth}; only bottlenecks have groups"
        )
    expansion, blocks = BLOCKS[depth]
    layers = stages(partial(aggregated, cardinality=cardinality, d=d), expansion, blocks, 64, WIDTHS)
    return network(imagenet_stem(in_channels), layers, expansion * WIDTHS[-1], num_classes)


def cifar_resnext(depth: int, cardinality: int, d: int, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """(N, in_channels, 32, 32) -> (N, num_classes): three stages of n blocks, depth 9n + 2 (section 5.3)."""
    n = blocks_per_stage(depth, layers=3)
    layers = stages(partial(aggregated, cardinality=cardinality, d=d), 4, (n, n, n), 64, CIFAR_WIDTHS)
    return network(cifar_stem(in_channels, 64), layers, 4 * CIFAR_WIDTHS[-1], num_classes)


resnext50_32x4d = partial(imagenet_resnext, 50, 32, 4)
resnext101_64x4d = partial(imagenet_resnext, 101, 64, 4)
resnext29_8x64d = partial(cifar_resnext, 29, 8, 64)
