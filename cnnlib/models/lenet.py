"""LeNet-5, as its authors described it and as courses print it.

paper     LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document recognition, section II-B
follows   figure 2, table I (which maps of S2 each map of C3 sees), the scaled tanh after every layer up to F6 and its
          initialisation (appendix A and section III), trainable sub-sampling, the Euclidean RBF output
differs   lenet5_1998: the ten 7x12 target bitmaps are drawn by us, since the paper shows its own only as a picture of
          ASCII characters; nothing else
          lenet5: ReLU, max pooling, every map of S2 into every map of C3, and linear outputs, as in today's courses
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Table I: map i of C3 sees these maps of S2.
C3_SEES = (
    *[(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)],
    *[(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)],
    *[(0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)],
    (0, 1, 2, 3, 4, 5),
)

# Section II-B: each class has a stylised image of its digit, 7 wide and 12 high, as target of F6.
BITMAPS = """
..###.. ...#... .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
.#...#. ..##... ##...## ##...## ...###. ##..... .##..## ##...## ##...## ##...##
##...## .###... ##...## .....## ..####. ##..... ##..... .....## ##...## ##...##
##...## #.##... .....## .....## ..#.##. ##..... ##..... ....##. ##...## ##...##
##...## ..##... .....## .....## .##.##. ##..... ##..... ....##. ##...## ##...##
##...## ..##... ....##. ..####. .#..##. ######. ##.###. ...##.. .#####. .######
##...## ..##... ...##.. .....## ##..##. .....## ###..## ...##.. ##...## .....##
##...## ..##... ..##... .....## ##..##. .....## ##...## ..##... ##...## .....##
##...## ..##... .##.... .....## ####### .....## ##...## ..##... ##...## .....##
##...## ..##... ##..... .....## ....##. .....## ##...## .##.... ##...## .....##
.#...#. ..##... ##...## ##...## ....##. ##...## .##..## .##.... ##...## ##..##.
..###.. ######. ####### .#####. ....##. .#####. ..####. .##.... .#####. .####..
"""


def target_bitmaps() -> Tensor:
    """(10, 84): the digits 0 to 9 as 7x12 bitmaps, read row by row; +1 is ink and -1 is paper."""
    rows = [line.split() for line in BITMAPS.strip().splitlines()]
    digits = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in digit] for digit in digits])


class ScaledTanh(nn.Module):
    """(...) -> (...): 1.7159 tanh(2x/3); f(1) = 1 and f(-1) = -1 (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * x)


class Subsampling(nn.Module):
    """(N, C, H, W) -> (N, C, H/2, W/2): coefficient * (sum of 2x2) + bias.

    One coefficient and one bias a map (layers S2 and S4).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        window_sum = F.avg_pool2d(x, kernel_size=2, divisor_override=1)
        return self.coefficient * window_sum + self.bias


class PartialConv2d(nn.Module):
    """(N, C, H, W) -> (N, len(sees), H-k+1, W-k+1), a convolution with gaps.

    Output map i sees the input maps `sees[i]` and no others. Maps that see equally
    many stand together in `sees` and are one grouped convolution. In training the
    same sums are one dense convolution whose other kernels are zero: on a CPU that
    is fifteen times faster.
    """

    def __init__(self, sees: tuple[tuple[int, ...], ...], kernel_size: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        self.fans = sorted({len(maps) for maps in sees})
        for fan in self.fans:
            members = [maps for maps in sees if len(maps) == fan]
            group = (fan * len(members), len(members), kernel_size)
            self.convs.append(nn.Conv2d(*group, groups=len(members)))
            order = [channel for maps in members for channel in maps]
            self._constant(f"inputs{fan}", order)
        channels = max(map(max, sees)) + 1
        self.dense_shape = (len(sees), channels, kernel_size, kernel_size)
        pairs = [(i, channel) for i, maps in enumerate(sees) for channel in maps]
        self._constant("links", [i * channels + channel for i, channel in pairs])

    def _constant(self, name: str, values: list[int]) -> None:
        self.register_buffer(name, torch.tensor(values), persistent=False)

    def dense_weight(self) -> Tensor:
        """(len(sees), C, k, k): all kernels, zero where a map is not seen."""
        kernels = torch.cat([conv.weight.flatten(0, 1) for conv in self.convs])
        empty = kernels.new_zeros(self.dense_shape).flatten(0, 1)
        return empty.index_copy(0, self.links, kernels).view(self.dense_shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            bias = torch.cat([conv.bias for conv in self.convs])
            return F.conv2d(x, self.dense_weight(), bias)
        inputs = [getattr(self, f"inputs{fan}") for fan in self.fans]
        seen = [x.index_select(1, maps) for maps in inputs]
        return torch.cat([conv(maps) for conv, maps in zip(self.convs, seen)], dim=1)


class RBFOutput(nn.Module):
    """(N, 84) -> (N, 10): y_i = sum_j (x_j - w_ij)^2; the smallest wins."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bitmaps", target_bitmaps())

    def forward(self, x: Tensor) -> Tensor:
        return ((x.unsqueeze(1) - self.bitmaps) ** 2).sum(dim=2)


def lenet5_1998(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """(N, 1, 32, 32) -> (N, 10): distances, of which the *smallest* is the answer."""
    _check_1998(num_classes, in_channels)
    model = nn.Sequential(
        OrderedDict(
            c1=nn.Sequential(nn.Conv2d(1, 6, 5), ScaledTanh()),
            s2=nn.Sequential(Subsampling(6), ScaledTanh()),
            c3=nn.Sequential(PartialConv2d(C3_SEES, 5), ScaledTanh()),
            s4=nn.Sequential(Subsampling(16), ScaledTanh()),
            c5=nn.Sequential(nn.Conv2d(16, 120, 5), ScaledTanh(), nn.Flatten()),
            f6=nn.Sequential(nn.Linear(120, 84), ScaledTanh()),
            output=RBFOutput(),
        )
    )
    return model.apply(_init_1998)


def _check_1998(num_classes: int, in_channels: int) -> None:
    if num_classes != 10:
        raise ValueError(
            f"lenet5_1998 has exactly 10 classes, since its output compares F6 with ten drawn digits; got "
            f"num_classes={num_classes}; build('lenet5', num_classes={num_classes}) has linear outputs"
        )
    if in_channels != 1:
        raise ValueError(
            f"lenet5_1998 reads grey images (1 input channel), got in_channels={in_channels}; "
            f"build('lenet5', in_channels={in_channels}) may be changed"
        )


def _init_1998(module: nn.Module) -> None:
    """Uniform in +-2.4 / F, F the inputs of a unit (section III); the coefficient of a sub-sampling map likewise."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        bound = 2.4 / module.weight[0].numel()
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, Subsampling):
        nn.init.uniform_(module.coefficient, -2.4 / 4, 2.4 / 4)
        nn.init.uniform_(module.bias, -2.4 / 4, 2.4 / 4)


def lenet5(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """(N, in_channels, 32, 32) -> (N, num_classes): the LeNet-5 of today's courses, which returns logits."""
    return nn.Sequential(
        OrderedDict(
            c1=nn.Sequential(nn.Conv2d(in_channels, 6, 5), nn.ReLU()),
            s2=nn.MaxPool2d(2),
            c3=nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU()),
            s4=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            c5=nn.Sequential(nn.Linear(16 * 5 * 5, 120), nn.ReLU()),
            f6=nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
            output=nn.Linear(84, num_classes),
        )
    )
