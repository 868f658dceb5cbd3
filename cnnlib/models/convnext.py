"""ConvNeXt-T: a residual network with the habits of a transformer.

paper     Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022, A ConvNet for the 2020s, arXiv:2201.03545
follows   section 2 and figure 4: 4x4 patches, 3, 3, 9, 3 blocks of 96, 192, 384, 768 maps, 7x7 depthwise convolution,
          inverted bottleneck of 4C, one layer norm and one GELU a block, layer scale 1e-6, stochastic depth up to 0.1
          names of parameters: torchvision's convnext_tiny, so that its weights load as they are
          weights at the start: truncated normal with deviation 0.02, biases zero (appendix A.1)
differs   nothing
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Figure 4 and appendix A.1: blocks and maps of each stage, the highest rate of stochastic depth.
TINY = ((3, 3, 9, 3), (96, 192, 384, 768), 0.1)


class LayerNorm2d(nn.LayerNorm):
    """(N, C, H, W) -> (N, C, H, W): each position is normalised over its C channels."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Permute(nn.Module):
    """The axes of the input in the order `dims`."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class StochasticDepth(nn.Module):
    """(N, C, H, W) -> (N, C, H, W): in training, drops the whole branch of an image with probability p, else 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, 1, 1), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:.3g}"


class CNBlock(nn.Module):
    """(N, C, H, W) -> (N, C, H, W): x + scale * W2 GELU(W1 LN(depthwise 7x7 of x)), with W1 and W2 at each position."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))
        self.stochastic_depth = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stochastic_depth(self.layer_scale * self.block(x))


class ConvNeXt(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes): 4x4 stem, four stages of blocks, a 2x2 convolution before each but the first."""

    def __init__(
        self, blocks: tuple[int, ...], widths: tuple[int, ...], drop_path: float, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        # The rate grows from 0 at the first block to `drop_path` at the last.
        rates = iter([drop_path * i / (sum(blocks) - 1) for i in range(sum(blocks))])
        self.features = nn.Sequential()
        for stage, (count, width) in enumerate(zip(blocks, widths)):
            if stage == 0:
                down = nn.Conv2d(in_channels, width, 4, stride=4), LayerNorm2d(width, eps=1e-6)
            else:
                before = widths[stage - 1]
                down = LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, width, 2, stride=2)
            self.features.append(nn.Sequential(*down))
            self.features.append(nn.Sequential(*[CNBlock(width, next(rates)) for _ in range(count)]))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            LayerNorm2d(widths[-1], eps=1e-6), nn.Flatten(), nn.Linear(widths[-1], num_classes)
        )
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def convnext_tiny(num_classes: int = 1000, in_channels: int = 3, drop_path: float = TINY[2]) -> ConvNeXt:
    """(N, in_channels, 224, 224) -> (N, num_classes): ConvNeXt-T; `drop_path` is the highest rate of stochastic depth."""
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path must be in [0, 1), got {drop_path}; the paper's is {TINY[2]}")
    return ConvNeXt(*TINY[:2], drop_path, num_classes, in_channels)
