"""FCN: VGG's column D slid over an image of any size, its scores brought back to the pixels.

paper     Long, Shelhamer, Darrell 2015, Fully convolutional networks for semantic segmentation, arXiv:1411.4038
follows   section 4: fully connected layers as convolutions, a 1x1 convolution that scores 21 classes, upsampling by
          bilinear kernels, sums with scores of pool4 (16s) and pool3 (8s); the authors' release
          (fcn.berkeleyvision.org) for what the paper leaves open: padding 100 in conv1_1, windows of pooling that may
          stick out at the end, which pixels are cropped, and the names of the layers
          `transplant` starts as the paper does: the trunk from a trained VGG-D, the score layers at zero
          upsampling kernels keep their bilinear values, as in the release; with `learn_upsampling` those before the
          last are trained too, as in section 4
differs   without a trained VGG-D all layers start as our VGG's do, since scores of zero would teach a random trunk nothing
          the scores of pool3 and pool4 enter unscaled, as in the networks trained in three stages; the release's
          "at once" network, which is another one, multiplies them by 0.0001 and 0.01
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnlib.models.blocks import PooledClassifier
from cnnlib.models.vgg import TABLE_1, convolutions, init_glorot


class Trunk(nn.Module):
    """Column D up to the scores `score_fr` of the coarsest map; a subclass's `forward` brings them to the pixels."""

    def __init__(self, num_classes: int = 21, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        channels = in_channels
        for s, stage in enumerate(TABLE_1["D"], start=1):
            for i, (kernel, maps) in enumerate(convolutions(stage), start=1):
                # 100 rather than 1: even a single pixel leaves a map that fc6's 7x7 kernel fits on.
                padding = 100 if (s, i) == (1, 1) else kernel // 2
                self.add_module(f"conv{s}_{i}", nn.Conv2d(channels, maps, kernel, padding=padding))
                self.add_module(f"relu{s}_{i}", nn.ReLU())
                channels = maps
            self.add_module(f"pool{s}", nn.MaxPool2d(2, ceil_mode=True))
        for number, kernel in ((6, 7), (7, 1)):
            self.add_module(f"fc{number}", nn.Conv2d(channels, 4096, kernel))
            self.add_module(f"relu{number}", nn.ReLU())
            self.add_module(f"drop{number}", nn.Dropout(dropout))
            channels = 4096
        self.score_fr = nn.Conv2d(4096, num_classes, 1)
        self.trunk = tuple(name for name, _ in self.named_children())
        self.apply(init_glorot)

    def coarse_scores(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, in_channels, H, W) -> pool3, pool4 and `score_fr`, of strides 8, 16 and 32."""
        kept = {}
        for name in self.trunk:
            x = kept[name] = getattr(self, name)(x)
        return kept["pool3"], kept["pool4"], x


class FCN32s(Trunk):
    """(N, in_channels, H, W) -> (N, num_classes, H, W): the coarsest scores, enlarged 32 times."""

    def __init__(self, num_classes: int = 21, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__(num_classes, in_channels, dropout)
        self.upscore = upsampling(num_classes, 32)

    def forward(self, x: Tensor) -> Tensor:
        _, _, score = self.coarse_scores(x)
        return crop(self.upscore(score), 19, x)


class FCN16s(Trunk):
    """(N, in_channels, H, W) -> (N, num_classes, H, W): twice the coarsest scores plus pool4's, enlarged 16 times."""

    def __init__(
        self, num_classes: int = 21, in_channels: int = 3, dropout: float = 0.5, learn_upsampling: bool = False
    ) -> None:
        super().__init__(num_classes, in_channels, dropout)
        self.upscore2 = upsampling(num_classes, 2, learn_upsampling)
        self.score_pool4 = score_layer(512, num_classes)
        self.upscore16 = upsampling(num_classes, 16)

    def forward(self, x: Tensor) -> Tensor:
        _, pool4, score = self.coarse_scores(x)
        score = self.upscore2(score)
        score = score + crop(self.score_pool4(pool4), 5, score)
        return crop(self.upscore16(score), 27, x)


class FCN8s(Trunk):
    """(N, in_channels, H, W) -> (N, num_classes, H, W): as FCN-16s, then twice that plus pool3's, enlarged 8 times."""

    def __init__(
        self, num_classes: int = 21, in_channels: int = 3, dropout: float = 0.5, learn_upsampling: bool = False
    ) -> None:
        super().__init__(num_classes, in_channels, dropout)
        self.upscore2 = upsampling(num_classes, 2, learn_upsampling)
        self.score_pool4 = score_layer(512, num_classes)
        self.upscore_pool4 = upsampling(num_classes, 2, learn_upsampling)
        self.score_pool3 = score_layer(256, num_classes)
        self.upscore8 = upsampling(num_classes, 8)

    def forward(self, x: Tensor) -> Tensor:
        pool3, pool4, score = self.coarse_scores(x)
        score = self.upscore2(score)
        score = score + crop(self.score_pool4(pool4), 5, score)
        score = self.upscore_pool4(score)
        score = score + crop(self.score_pool3(pool3), 9, score)
        return crop(self.upscore8(score), 31, x)


def score_layer(channels: int, num_classes: int) -> nn.Conv2d:
    """(N, channels, H, W) -> (N, num_classes, H, W): a 1x1 convolution (section 4.2)."""
    layer = nn.Conv2d(channels, num_classes, 1)
    init_glorot(layer)
    return layer


def upsampling(num_classes: int, factor: int, learned: bool = False) -> nn.ConvTranspose2d:
    """(N, C, H, W) -> (N, C, (H + 1) factor, (W + 1) factor): bilinear interpolation of each class's map by itself.

    The kernel is 2 factor wide, 1 - |distance from its middle| / factor along each axis (section 3.3).
    """
    layer = nn.ConvTranspose2d(num_classes, num_classes, 2 * factor, stride=factor, bias=False)
    distance = torch.arange(2 * factor) - (factor - 0.5)
    along = 1 - distance.abs() / factor
    with torch.no_grad():
        layer.weight.copy_(torch.eye(num_classes)[:, :, None, None] * along[:, None] * along)
    layer.weight.requires_grad_(learned)
    return layer


def crop(x: Tensor, offset: int, like: Tensor) -> Tensor:
    """The height and width of `like` out of `x`, `offset` pixels from the top and the left.

    The offsets (5, 9; 19, 27, 31) are those at which the centres of both maps' pixels coincide.
    """
    return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]


def transplant(vgg: PooledClassifier, fcn: Trunk) -> None:
    """Copy a VGG-D's weights into the trunk and put all score layers at zero, the paper's start (section 4.1).

    fc6 is VGG's first layer of 4096 units, read as a 7x7 kernel. ValueError when `vgg` is not column D without batch
    normalisation.
    """
    given = [layer for part in (vgg.features, vgg.classifier) for layer in part if hasattr(layer, "weight")][:-1]
    taken = [layer for name in fcn.trunk[:-1] if hasattr(layer := getattr(fcn, name), "weight")]
    if [layer.weight.numel() for layer in given] != [layer.weight.numel() for layer in taken]:
        raise ValueError(
            f"an FCN takes the weights of VGG's column D: {len(taken)} layers in front of its scores; got {len(given)} "
            f"layers of other sizes; build('vgg_d', in_channels={taken[0].in_channels}) has them"
        )
    with torch.no_grad():
        for source, target in zip(given, taken):
            target.weight.copy_(source.weight.view_as(target.weight))
            target.bias.copy_(source.bias)
        for name, layer in fcn.named_children():
            if name.startswith("score"):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
