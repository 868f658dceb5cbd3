"""Residual networks whose shortcut is an identity from end to end, and the orders of BN, ReLU and addition.

paper     He, Zhang, Ren, Sun 2016, Identity Mappings in Deep Residual Networks, arXiv:1603.05027
follows   figure 4 (a) to (e) as rows of data; the appendix: the first activation stands before the first split, an extra
          one after the last addition; the authors' KaimingHe/resnet-1k-layers for the bottlenecks of CIFAR: stride in the
          first 1x1, projections without batch norm that read the activated maps; section 5 for ResNet-200 on ImageNet
          names of parameters are ours, since the authors' Torch code has none
          weights at the start: the authors' code, He's normal over the outputs, linear bias 0
differs   nothing for 110, 164 and 1001. ResNet-200: the sources disagree on what the appendix means behind a 7x7 stem.
          Ours has BN and ReLU before the max pool and again before the first split, as pytorchcv; timm's resnetv2 leaves
          out the first pair (128 parameters fewer); fb.resnet.torch leaves out the second, and its projections read the
          maps before the activation and have a batch norm
          zero-padding shortcuts (110) read the maps before the activation, as fb.resnet.torch has it
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from cnnlib.errors import unknown
from cnnlib.models.resnet import (
    CIFAR_WIDTHS,
    WIDTHS,
    Shortcut,
    blocks_per_stage,
    conv1x1,
    conv3x3,
    imagenet_stem,
    network,
    option_a,
    stages,
)


@dataclass(frozen=True)
class Unit:
    """One order of BN, ReLU and addition; convolutions inside a branch are always joined by BN and ReLU.

    `stem` follows the first convolution of a network and `tail` its last unit, so that all see the same layers.
    """

    stem: str
    before: str
    after_conv: str
    after_sum: str
    tail: str
    place: str


# Each row shifts the same layers along the network; the sixth is the residual layer that lecture B prints, which has a
# ReLU more (and biases in its convolutions, which batch norm takes back).
# fmt: off
UNITS = {
    #                                    stem       before     after the  after the  tail       place
    #                                               the branch last conv  addition
    "original":                       Unit("bn relu", "",        "bn",      "relu",    "",        "figure 4 (a)"),
    "bn_after_addition":              Unit("bn relu", "",        "",        "bn relu", "",        "figure 4 (b)"),
    "relu_before_addition":           Unit("bn relu", "",        "bn relu", "",        "",        "figure 4 (c)"),
    "relu_only_preactivation":        Unit("bn",      "relu",    "bn",      "",        "relu",    "figure 4 (d)"),
    "full_preactivation":             Unit("",        "bn relu", "",        "",        "bn relu", "figure 4 (e)"),
    "relu_before_and_after_addition": Unit("bn relu", "",        "bn relu", "relu",    "",        "lecture B"),
}
# fmt: on


def unit_of(name: str) -> Unit:
    """The row of `UNITS`; ValueError for a name that it does not have."""
    if name not in UNITS:
        raise unknown("residual unit", name, UNITS)
    return UNITS[name]


def words(text: str, channels: int) -> OrderedDict[str, nn.Module]:
    """`"bn relu"` as modules."""
    known = {"bn": partial(nn.BatchNorm2d, channels), "relu": nn.ReLU}
    return OrderedDict((word, known[word]()) for word in text.split())


class ResidualUnit(nn.Module):
    """(N, C, H, W) -> (N, C', H/s, W/s): y = h(x) + F(x), x' = f(y) (equations 1 and 2), in the order of a row of UNITS.

    `split_after`: the shortcut leaves after the activation before the branch, not before it.
    """

    def __init__(self, unit: Unit, convs: list[nn.Conv2d], shortcut: nn.Module, split_after: bool) -> None:
        super().__init__()
        out = convs[-1].out_channels
        self.before = nn.Sequential(words(unit.before, convs[0].in_channels))
        self.branch = nn.Sequential()
        for number, conv in enumerate(convs, start=1):
            self.branch.append(nn.Sequential(OrderedDict(conv=conv)))
            between = "bn relu" if number < len(convs) else unit.after_conv
            for word, module in words(between, conv.out_channels).items():
                self.branch[-1].add_module(word, module)
        self.shortcut = shortcut
        self.after = nn.Sequential(words(unit.after_sum, out))
        self.split_after = split_after

    def forward(self, x: Tensor) -> Tensor:
        activated = self.before(x)
        carried = activated if self.split_after else x
        return self.after(self.shortcut(carried) + self.branch(activated))


def projection_for(unit: Unit) -> Shortcut:
    """A projection where the shape changes; its convolution has a batch norm if the last one of the branch has."""

    def shortcut(channels: int, out: int, stride: int) -> nn.Module:
        if stride == 1 and channels == out:
            return nn.Identity()
        norm = words("bn" if "bn" in unit.after_conv.split() else "", out)
        return nn.Sequential(OrderedDict(conv=conv1x1(channels, out, stride), **norm))

    return shortcut


def basic(unit: Unit, channels: int, width: int, stride: int, first: bool) -> ResidualUnit:
    """Two 3x3 convolutions and a zero-padding shortcut (section 3's ResNet-110); the net's `first` splits after BN-ReLU."""
    convs = [conv3x3(channels, width, stride), conv3x3(width, width)]
    return ResidualUnit(unit, convs, option_a(channels, width, stride), split_after=first)


def bottleneck(unit: Unit, channels: int, width: int, stride: int) -> ResidualUnit:
    """1x1 with the stride, 3x3, 1x1 to four times as many maps; a projection where their number changes."""
    convs = [conv1x1(channels, width, stride), conv3x3(width, width), conv1x1(width, 4 * width)]
    shortcut = projection_for(unit)(channels, 4 * width, stride)
    return ResidualUnit(unit, convs, shortcut, split_after=channels != 4 * width)


def _tail(unit: Unit, channels: int) -> dict[str, nn.Module]:
    return {"tail": nn.Sequential(words(unit.tail, channels))} if unit.tail else {}


def _cifar_stem(unit: Unit, in_channels: int) -> dict[str, nn.Module]:
    return {"conv1": nn.Sequential(OrderedDict(conv=conv3x3(in_channels, 16), **words(unit.stem, 16)))}


def cifar_preact(
    depth: int, num_classes: int = 10, in_channels: int = 3, unit: str = "full_preactivation"
) -> nn.Sequential:
    """(N, in_channels, 32, 32) -> (N, num_classes): basic units, depth 6n + 2, zero-padding shortcuts."""
    row, n = unit_of(unit), blocks_per_stage(depth, layers=2)
    fresh = iter([True])

    def block(channels: int, width: int, stride: int) -> ResidualUnit:
        return basic(row, channels, width, stride, first=next(fresh, False))

    layers = stages(block, 1, (n, n, n), 16, CIFAR_WIDTHS)
    return network(_cifar_stem(row, in_channels), {**layers, **_tail(row, 64)}, 64, num_classes)


def cifar_preact_bottleneck(
    depth: int, num_classes: int = 10, in_channels: int = 3, unit: str = "full_preactivation"
) -> nn.Sequential:
    """(N, in_channels, 32, 32) -> (N, num_classes): bottlenecks to 64, 128 and 256 maps, depth 9n + 2."""
    row, n = unit_of(unit), blocks_per_stage(depth, layers=3)
    layers = stages(partial(bottleneck, row), 4, (n, n, n), 16, CIFAR_WIDTHS)
    return network(_cifar_stem(row, in_channels), {**layers, **_tail(row, 256)}, 256, num_classes)


def preact_resnet200(num_classes: int = 1000, in_channels: int = 3) -> nn.Sequential:
    """(N, in_channels, 224, 224) -> (N, num_classes): 3, 24, 36 and 3 bottlenecks (section 5)."""
    row = UNITS["full_preactivation"]
    layers = stages(partial(bottleneck, row), 4, (3, 24, 36, 3), 64, WIDTHS)
    return network(imagenet_stem(in_channels), {**layers, **_tail(row, 2048)}, 2048, num_classes)


preact_resnet110 = partial(cifar_preact, 110)
preact_resnet164, preact_resnet1001 = (partial(cifar_preact_bottleneck, depth) for depth in (164, 1001))
