"""The modules of the Inception family: a row of text a branch, as the papers' figures print them.

"1x1 64, 3x3 96, 3x3/2V 96"    three convolutions: kernel (height x width), stride, V for no padding, number of maps;
                               without V the borders are padded, so that the size changes by the stride alone
"avg, 1x1 32"                  3x3 pooling with stride 1, then a convolution
"max/2V", "max/2C"             pooling without padding; C: windows may stick out at the end
"1x1 384, 1x3 256 | 3x1 256"   the last two stand side by side
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Conv = Callable[[int, int, "int | tuple[int, int]", int, "int | tuple[int, int]"], nn.Module]

_STEP = re.compile(
    r"(?:(?P<pool>avg|max)|(?P<height>\d)x(?P<width>\d))(?:/(?P<stride>\d))?(?P<border>[VC]?)(?: (?P<maps>\d+))?"
)


class Step(NamedTuple):
    """One layer of a branch: a convolution, or 3x3 pooling where `pool` is "avg" or "max"."""

    pool: str | None
    kernel: tuple[int, int]
    stride: int
    border: str
    maps: int | None


def read_branch(text: str) -> list[list[Step]]:
    """The steps of a branch, each a list of the layers that stand side by side; ValueError for unreadable text.

    >>> [[step.maps for step in side] for side in read_branch("1x1 384, 1x3 256 | 3x1 128")]
    [[384], [256, 128]]
    """
    steps = [[_read_step(part) for part in step.split(" | ")] for step in text.split(", ")]
    if any(len(side) > 1 for side in steps[:-1]):
        raise ValueError(f"only the last layers of a branch may stand side by side, got {text!r}")
    return steps


def _read_step(text: str) -> Step:
    found = _STEP.fullmatch(text)
    if not found or (found["pool"] is None) != (found["maps"] is not None):
        raise ValueError(
            f"a layer of a branch reads '3x3 64', '3x3/2V 64' (kernel, stride, V: no padding, maps), 'avg' or "
            f"'max/2V', got {text!r}"
        )
    kernel = (3, 3) if found["pool"] else (int(found["height"]), int(found["width"]))
    maps = None if found["maps"] is None else int(found["maps"])
    return Step(found["pool"], kernel, int(found["stride"] or 1), found["border"], maps)


class ConvBNReLU(nn.Module):
    """(N, C, H, W) -> (N, maps, H', W'): relu(bn(conv(x))), the convolution without a bias unless `bias`."""

    def __init__(
        self,
        channels: int,
        maps: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        eps: float = 1e-5,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, maps, kernel, stride, padding, bias=bias)
        self.bn = nn.BatchNorm2d(maps, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """(N, C, H, W) -> (N, out_channels, H', W'): every branch sees x; their maps are concatenated in order.

    `rows` maps the name of a branch to its text; `conv` makes a convolution; `pad_counts` says whether the zeros of the
    border count in an average. A branch is a Sequential, or its only layer. Where it ends in layers side by side, or
    `first` is given, its layers hang on this module itself, numbered from `first` (else 0): `branch3x3_1`, ...
    """

    def __init__(
        self, channels: int, rows: Mapping[str, str], conv: Conv, pad_counts: bool = True, first: int | None = None
    ) -> None:
        super().__init__()
        self.paths: list[list[list[str]]] = []  # a branch, its steps, the modules of a step
        self.out_channels = 0
        for name, text in rows.items():
            steps = read_branch(text)
            width, layers = channels, []
            for side in steps:
                layers.append([_layer(width, step, conv, pad_counts) for step in side])
                width = sum(width if step.maps is None else step.maps for step in side)
            self.out_channels += width
            if first is None and len(steps[-1]) == 1:
                chain = [layer for side in layers for layer in side]
                self.add_module(name, chain[0] if len(chain) == 1 else nn.Sequential(*chain))
                self.paths.append([[name]])
            else:
                path = _names(name, steps, first or 0)
                for names, side in zip(path, layers):
                    for own, layer in zip(names, side):
                        self.add_module(own, layer)
                self.paths.append(path)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for path in self.paths:
            ends = [x]
            for step in path:
                ends = [self.get_submodule(name)(ends[0]) for name in step]
            maps += ends
        return torch.cat(maps, dim=1)


def sequence(channels: int, rows: Mapping[str, str], conv: Conv) -> tuple[OrderedDict[str, nn.Module], int]:
    """Layers one behind the other, {name: "3x3/2V 32"}, and the number of maps at the end."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, text in rows.items():
        step = _read_step(text)
        layers[name] = _layer(channels, step, conv)
        channels = step.maps or channels
    return layers, channels


def _layer(channels: int, step: Step, conv: Conv, pad_counts: bool = True) -> nn.Module:
    height, width = step.kernel
    padding = (0, 0) if step.border else (height // 2, width // 2)
    if step.pool == "avg":
        return nn.AvgPool2d(3, step.stride, padding[0], ceil_mode=step.border == "C", count_include_pad=pad_counts)
    if step.pool == "max":
        return nn.MaxPool2d(3, step.stride, padding[0], ceil_mode=step.border == "C")
    return conv(channels, step.maps, step.kernel, step.stride, padding)


def _names(branch: str, steps: list[list[Step]], first: int) -> list[list[str]]:
    """Names in torchvision's and timm's way: pooling is not counted, and a branch's only convolution has its name."""
    convs = sum(step.pool is None for side in steps for step in side)
    names, number = [], first
    for side in steps:
        if side[0].pool:
            names.append([f"{branch}_{side[0].pool}" if convs else branch])
            continue
        own = branch if convs == 1 else f"{branch}_{number}"
        names.append([own] if len(side) == 1 else [f"{own}{letter}" for letter, _ in zip("abc", side)])
        number += 1
    return names


def init_fan_in(module: nn.Module) -> None:
    """He's normal with variance 2 / (k * k * inputs), biases 0; batch norm starts at 1 and 0, as PyTorch has it."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def symmetric_input(x: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H, W): images with ImageNet's mean and deviation taken out become 2 * pixel - 1.

    Weights that came from TensorFlow want the latter; torchvision calls the option `transform_input`.
    """
    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = [x[:, c : c + 1] * deviations[c] + means[c] for c in range(3)]
    return torch.cat([2 * pixel - 1 for pixel in pixels], dim=1)
