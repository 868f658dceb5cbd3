"""Residual networks, and the plain networks that they were measured against.

paper     He, Zhang, Ren, Sun 2015, Deep Residual Learning for Image Recognition, arXiv:1512.03385
follows   table 1 and figures 2, 3 and 5 (ImageNet), section 4.2 (CIFAR: 6n + 2 layers of 16, 32 and 64 maps); the stride
          of a bottleneck in its first 1x1, as the authors' released networks have it; shortcuts A, B, C of section 4.1
          names of parameters: torchvision's, so layer1 ... layer4 are conv2_x ... conv5_x
          weights at the start: He's normal over the outputs and linear bias 0, as facebook's fb.resnet.torch; the paper
          points to He's rule, which leaves the choice between inputs and outputs open
differs   nothing; the paper does not say on which side option A pads: fb.resnet.torch appends the zeros (ours),
          akamaster/pytorch_resnet_cifar10 puts half of them in front (`zeros="split"`, for its checkpoints)
          resnet50_v1_5 and its sisters: stride in the 3x3, as fb.resnet.torch and torchvision; their checkpoints fit
          resnet50 key by key and give another function
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from cnnlib.errors import unknown
from cnnlib.models.blocks import init_fan_out


def conv1x1(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    """(N, C, H, W) -> (N, out, H/s, W/s), without a bias: a batch norm follows, which has one."""
    return nn.Conv2d(channels, out, 1, stride, bias=False)


def conv3x3(channels: int, out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """(N, C, H, W) -> (N, out, H/s, W/s), without a bias."""
    return nn.Conv2d(channels, out, 3, stride, padding=1, groups=groups, bias=False)


class ZeroPadding(nn.Module):
    """(N, C, H, W) -> (N, C + before + after, H/s, W/s): every s-th pixel, and maps of zeros (option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.pad = (0, 0, 0, 0, before, after)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.avg_pool2d(x, kernel_size=1, stride=self.stride), self.pad)

    def extra_repr(self) -> str:
        return f"before={self.pad[4]}, after={self.pad[5]}, stride={self.stride}"


# Where the zeros of option A go: how many of `extra` stand before the maps.
ZEROS = {"append": lambda extra: 0, "split": lambda extra: extra // 2}


def option_a(channels: int, out: int, stride: int, zeros: str = "append") -> nn.Module:
    """(N, C, H, W) -> (N, out, H/s, W/s): no parameters at all (section 4.1, A)."""
    if stride == 1 and channels == out:
        return nn.Identity()
    before = ZEROS[zeros](out - channels)
    return ZeroPadding(before, out - channels - before, stride)


def projection(channels: int, out: int, stride: int) -> nn.Module:
    """(N, C, H, W) -> (N, out, H/s, W/s): W_s of equation 2, wherever it stands (section 4.1, C)."""
    return nn.Sequential(conv1x1(channels, out, stride), nn.BatchNorm2d(out))


def option_b(channels: int, out: int, stride: int) -> nn.Module:
    """(N, C, H, W) -> (N, out, H/s, W/s): a projection where the shape changes, else the identity (section 4.1, B)."""
    return nn.Identity() if stride == 1 and channels == out else projection(channels, out, stride)


SHORTCUTS = {"A": option_a, "B": option_b, "C": projection}
Shortcut = Callable[[int, int, int], nn.Module]


def shortcut_of(option: str, zeros: str = "append") -> Shortcut:
    """The shortcut A, B or C as a function of channels, output channels and stride; ValueError for another letter."""
    if option not in SHORTCUTS:
        raise ValueError(
            f"shortcut must be A (zero padding), B (projections where the shape changes) or C (projections everywhere), got {option!r}"
        )
    if zeros not in ZEROS:
        raise unknown("side for the zeros of shortcut A", zeros, ZEROS)
    if option != "A" and zeros != "append":
        raise ValueError(f"zeros={zeros!r} belongs to shortcut='A', got shortcut={option!r}; leave zeros out")
    return partial(option_a, zeros=zeros) if option == "A" else SHORTCUTS[option]


class PlainBlock(nn.Module):
    """(N, C, H, W) -> (N, w, H/s, W/s): two 3x3 convolutions (figure 3, middle)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x))


class BasicBlock(PlainBlock):
    """(N, C, H, W) -> (N, w, H/s, W/s): the same two convolutions, and the shortcut (figure 5, left)."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__(channels, width, stride)
        self.downsample = shortcut(channels, width, stride)  # torchvision's name; an identity has no parameters

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.downsample(x))  # equations 1 and 2


class Bottleneck(nn.Module):
    """(N, C, H, W) -> (N, 4w, H/s, W/s): 1x1 to fewer maps, 3x3, 1x1 to four times as many (figure 5, right).

    The convolutions come from outside: who strides, and in how many groups, is what the networks differ in.
    """

    def __init__(self, reduce: nn.Conv2d, conv: nn.Conv2d, restore: nn.Conv2d, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = reduce
        self.bn1 = nn.BatchNorm2d(reduce.out_channels)
        self.conv2 = conv
        self.bn2 = nn.BatchNorm2d(conv.out_channels)
        self.conv3 = restore
        self.bn3 = nn.BatchNorm2d(restore.out_channels)
        self.downsample = shortcut

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.downsample(x))


def bottleneck(channels: int, width: int, stride: int, shortcut: Shortcut) -> Bottleneck:
    """The paper's: the first 1x1 strides."""
    convs = conv1x1(channels, width, stride), conv3x3(width, width), conv1x1(width, 4 * width)
    return Bottleneck(*convs, shortcut(channels, 4 * width, stride))


def bottleneck_v1_5(channels: int, width: int, stride: int, shortcut: Shortcut) -> Bottleneck:
    """fb.resnet.torch's and torchvision's: the 3x3 strides, so that no pixel is skipped."""
    convs = conv1x1(channels, width), conv3x3(width, width, stride), conv1x1(width, 4 * width)
    return Bottleneck(*convs, shortcut(channels, 4 * width, stride))


Block = Callable[[int, int, int], nn.Module]

# Table 1: how many times the width leaves a block, and the blocks of conv2_x, conv3_x, conv4_x, conv5_x.
BLOCKS = {
    18: (1, (2, 2, 2, 2)),
    34: (1, (3, 4, 6, 3)),
    50: (4, (3, 4, 6, 3)),
    101: (4, (3, 4, 23, 3)),
    152: (4, (3, 8, 36, 3)),
}
WIDTHS = (64, 128, 256, 512)
CIFAR_WIDTHS = (16, 32, 64)


def stages(
    block: Block, expansion: int, blocks: tuple[int, ...], channels: int, widths: tuple[int, ...]
) -> OrderedDict:
    """`layer1`, `layer2`, ...: each a row of blocks; from the second stage on, the first block halves the maps."""
    layers = OrderedDict()
    for number, (count, width) in enumerate(zip(blocks, widths), start=1):
        strides = [1 if number == 1 else 2] + [1] * (count - 1)
        units = []
        for stride in strides:
            units.append(block(channels, width, stride))
            channels = expansion * width
        layers[f"layer{number}"] = nn.Sequential(*units)
    return layers


def network(stem: dict[str, nn.Module], layers: dict[str, nn.Module], features: int, num_classes: int) -> nn.Sequential:
    """Stem, stages, global average pooling and one linear layer, as all residual networks end (section 3.3)."""
    head = {
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(features, num_classes),
    }
    return nn.Sequential(OrderedDict({**stem, **layers, **head})).apply(init_fan_out)


def imagenet_stem(in_channels: int) -> dict[str, nn.Module]:
    """(N, in_channels, 224, 224) -> (N, 64, 56, 56): 7x7 by twos, batch norm, ReLU, 3x3 maximum by twos (table 1)."""
    return {
        "conv1": nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }


def cifar_stem(in_channels: int, width: int = 16) -> dict[str, nn.Module]:
    """(N, in_channels, 32, 32) -> (N, width, 32, 32): one 3x3 convolution (section 4.2)."""
    return {"conv1": conv3x3(in_channels, width), "bn1": nn.BatchNorm2d(width), "relu": nn.ReLU()}


def imagenet_resnet(
    depth: int,
    deep_block: Block,
    num_classes: int = 1000,
    in_channels: int = 3,
    shortcut: str = "B",
    zeros: str = "append",
) -> nn.Sequential:
    """(N, in_channels, 224, 224) -> (N, num_classes): a column of table 1; ValueError for another depth."""
    if depth not in BLOCKS:
        raise ValueError(f"table 1 has the depths {', '.join(map(str, BLOCKS))}, got {depth}")
    expansion, blocks = BLOCKS[depth]
    block = partial(BasicBlock if expansion == 1 else deep_block, shortcut=shortcut_of(shortcut, zeros))
    layers = stages(block, expansion, blocks, 64, WIDTHS)
    return network(imagenet_stem(in_channels), layers, expansion * WIDTHS[-1], num_classes)


def imagenet_plain(depth: int, num_classes: int = 1000, in_channels: int = 3) -> nn.Sequential:
    """(N, in_channels, 224, 224) -> (N, num_classes): the layers of ResNet-18 or 34 without the shortcuts (figure 3)."""
    if depth not in (18, 34):
        raise ValueError(f"the paper has plain networks of 18 and 34 layers, got {depth}")
    layers = stages(PlainBlock, 1, BLOCKS[depth][1], 64, WIDTHS)
    return network(imagenet_stem(in_channels), layers, WIDTHS[-1], num_classes)


def blocks_per_stage(depth: int, layers: int) -> int:
    """n of a CIFAR network, whose three stages have n blocks of 2 or 3 layers: depth 6n + 2 or 9n + 2.

    >>> blocks_per_stage(20, layers=2), blocks_per_stage(164, layers=3)
    (3, 18)
    >>> blocks_per_stage(21, layers=2)
    Traceback (most recent call last):
    ...
    ValueError: depth must be 6n + 2 with n >= 1 (8, 14, 20, ...), got 21; the nearest are 20 and 26
    """
    step = 3 * layers
    n, rest = divmod(depth - 2, step)
    if rest or n < 1:
        right = [step * k + 2 for k in (1, 2, 3)]
        near = f"the nearest are {step * n + 2} and {step * (n + 1) + 2}" if n >= 1 else f"the least is {right[0]}"
        raise ValueError(
            f"depth must be {step}n + 2 with n >= 1 ({', '.join(map(str, right))}, ...), got {depth}; {near}"
        )
    return n


def cifar_resnet(
    depth: int, num_classes: int = 10, in_channels: int = 3, shortcut: str = "A", zeros: str = "append"
) -> nn.Sequential:
    """(N, in_channels, 32, 32) -> (N, num_classes): three stages of n blocks, depth 6n + 2 (section 4.2)."""
    n = blocks_per_stage(depth, layers=2)
    layers = stages(partial(BasicBlock, shortcut=shortcut_of(shortcut, zeros)), 1, (n, n, n), 16, CIFAR_WIDTHS)
    return network(cifar_stem(in_channels), layers, CIFAR_WIDTHS[-1], num_classes)


def cifar_plain(depth: int, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """(N, in_channels, 32, 32) -> (N, num_classes): the same without shortcuts (figure 6, left)."""
    n = blocks_per_stage(depth, layers=2)
    layers = stages(PlainBlock, 1, (n, n, n), 16, CIFAR_WIDTHS)
    return network(cifar_stem(in_channels), layers, CIFAR_WIDTHS[-1], num_classes)


plain18, plain34 = (partial(imagenet_plain, depth) for depth in (18, 34))
plain20, plain32, plain44, plain56, plain110 = (partial(cifar_plain, depth) for depth in (20, 32, 44, 56, 110))

resnet18, resnet34 = (partial(imagenet_resnet, depth, bottleneck) for depth in (18, 34))
resnet50, resnet101, resnet152 = (partial(imagenet_resnet, depth, bottleneck) for depth in (50, 101, 152))
resnet50_v1_5, resnet101_v1_5, resnet152_v1_5 = (
    partial(imagenet_resnet, depth, bottleneck_v1_5) for depth in (50, 101, 152)
)
resnet20, resnet32, resnet44, resnet56, resnet110, resnet1202 = (
    partial(cifar_resnet, depth) for depth in (20, 32, 44, 56, 110, 1202)
)
