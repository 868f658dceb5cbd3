"""Inception-v4, and the two Inceptions with residual connections.

paper     Szegedy, Ioffe, Vanhoucke, Alemi 2016, Inception-v4, Inception-ResNet and the impact of residual connections on
          learning, arXiv:1602.07261
follows   inception_v4: figures 3 to 9; the order of one-sided kernels and the names as in timm, which has the authors'
          release
          inception_resnet_v1_paper, inception_resnet_v2_paper: figures 3, 7 and 10 to 19
          inception_resnet_v2: the authors' release, as in timm
          inception_resnet_v1: the network that the public checkpoints have, D. Sandberg's facenet and its port
          facenet-pytorch, with their names
          all: batch norm with eps 1e-3, dropout 0.2 (the paper keeps 0.8), the zeros of the border do not count in an
          average; residuals scaled by 0.17, 0.10 and 0.20 as in the releases (section 3.3: 0.1 to 0.3)
          weights at the start: He's normal over the inputs, biases 0 (slim's rule, which cuts the normal at +-2)
differs   the releases are not the networks of the figures. Both end in one more module of the last kind, unscaled and
          without a rectifier; inception_resnet_v1 has a layer of 512 units in front of the classifier;
          inception_resnet_v2 has Inception-v3's stem, 10, 20 and 9 + 1 modules where figure 15 has 5, 10 and 5, and 320,
          1088 and 2080 maps where the figures have 384, 1154 and 2048
          inception_resnet_v2_paper: 1152 and 2144 maps in place of 1154 and 2048, which figures 17 and 19 print: a
          residual must have as many maps as its input, 3 * 384 and 1152 + 384 + 288 + 320
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from cnnlib.models.branches import Branches, ConvBNReLU, init_fan_in, sequence

conv = partial(ConvBNReLU, eps=1e-3)
Rows = Mapping[str, str]

# ---------------------------------------------------------------------------------------------------------------
# Inception-v4

# Figure 3: three convolutions, then three modules.
V4_STEM = {"conv2d_1a": "3x3/2V 32", "conv2d_2a": "3x3V 32", "conv2d_2b": "3x3 64"}
V4_STEM_MODULES = {
    "mixed_3a": {"maxpool": "max/2V", "conv": "3x3/2V 96"},
    "mixed_4a": {"branch0": "1x1 64, 3x3V 96", "branch1": "1x1 64, 1x7 64, 7x1 64, 3x3V 96"},
    "mixed_5a": {"conv": "3x3/2V 192", "maxpool": "max/2V"},
}
# Figure 4, 35x35.
INCEPTION_A = {
    "branch0": "1x1 96",
    "branch1": "1x1 64, 3x3 96",
    "branch2": "1x1 64, 3x3 96, 3x3 96",
    "branch3": "avg, 1x1 96",
}
# Figure 7 with the row of table 1: k, l, m, n = 192, 224, 256, 384.
REDUCTION_A = {"branch0": "3x3/2V 384", "branch1": "1x1 192, 3x3 224, 3x3/2V 256", "branch2": "max/2V"}
# Figure 5, 17x17.
INCEPTION_B = {
    "branch0": "1x1 384",
    "branch1": "1x1 192, 1x7 224, 7x1 256",
    "branch2": "1x1 192, 7x1 192, 1x7 224, 7x1 224, 1x7 256",
    "branch3": "avg, 1x1 128",
}
# Figure 8.
REDUCTION_B = {
    "branch0": "1x1 192, 3x3/2V 192",
    "branch1": "1x1 256, 1x7 256, 7x1 320, 3x3/2V 320",
    "branch2": "max/2V",
}
# Figure 6, 8x8.
INCEPTION_C = {
    "branch0": "1x1 256",
    "branch1": "1x1 384, 1x3 256 | 3x1 256",
    "branch2": "1x1 384, 3x1 448, 1x3 512, 1x3 256 | 3x1 256",
    "branch3": "avg, 1x1 256",
}
# Figure 9.
V4_MODULES = (
    *V4_STEM_MODULES.values(),
    *[INCEPTION_A] * 4,
    REDUCTION_A,
    *[INCEPTION_B] * 7,
    REDUCTION_B,
    *[INCEPTION_C] * 3,
)


def module(channels: int, rows: Rows) -> Branches:
    """(N, C, H, W) -> (N, out_channels, H', W'): the branches of a figure."""
    return Branches(channels, rows, conv, pad_counts=False)


def inception_v4(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> nn.Sequential:
    """(N, in_channels, 299, 299) -> (N, num_classes): figure 9."""
    stem, channels = sequence(in_channels, V4_STEM, conv)
    features = nn.Sequential(*stem.values())
    for rows in V4_MODULES:
        features.append(module(channels, rows))
        channels = features[-1].out_channels
    model = nn.Sequential(
        OrderedDict(features=features, **_pool(dropout), last_linear=nn.Linear(channels, num_classes))
    )
    return model.apply(init_fan_in)


# ---------------------------------------------------------------------------------------------------------------
# Inception-ResNet

RESNET_STEM = {
    "conv2d_1a": "3x3/2V 32",
    "conv2d_2a": "3x3V 32",
    "conv2d_2b": "3x3 64",
    "maxpool_3a": "max/2V",
    "conv2d_3b": "1x1 80",
    "conv2d_4a": "3x3V 192",
}

# Figures 10, 11 and 13, the modules of inception_resnet_v1.
V1_A = {"branch0": "1x1 32", "branch1": "1x1 32, 3x3 32", "branch2": "1x1 32, 3x3 32, 3x3 32"}
V1_B = {"branch0": "1x1 128", "branch1": "1x1 128, 1x7 128, 7x1 128"}
V1_C = {"branch0": "1x1 192", "branch1": "1x1 192, 1x3 192, 3x1 192"}
# Figure 7 with k, l, m, n = 192, 192, 256, 384; figure 12.
V1_REDUCTION_A = {"branch0": "3x3/2V 384", "branch1": "1x1 192, 3x3 192, 3x3/2V 256", "branch2": "max/2V"}
V1_REDUCTION_B = {
    "branch0": "1x1 256, 3x3/2V 384",
    "branch1": "1x1 256, 3x3/2V 256",
    "branch2": "1x1 256, 3x3 256, 3x3/2V 256",
    "branch3": "max/2V",
}

# Figures 16, 17 and 19, the modules of inception_resnet_v2.
V2_A = {"branch0": "1x1 32", "branch1": "1x1 32, 3x3 32", "branch2": "1x1 32, 3x3 48, 3x3 64"}
V2_B = {"branch0": "1x1 192", "branch1": "1x1 128, 1x7 160, 7x1 192"}
V2_C = {"branch0": "1x1 192", "branch1": "1x1 192, 1x3 224, 3x1 256"}
# Not in the paper: the module of Inception-v3's kind that follows the release's stem.
V2_MIXED_5B = {
    "branch0": "1x1 96",
    "branch1": "1x1 48, 5x5 64",
    "branch2": "1x1 64, 3x3 96, 3x3 96",
    "branch3": "avg, 1x1 64",
}
# Figure 7 with k, l, m, n = 256, 256, 384, 384; figure 18.
V2_REDUCTION_A = {"branch0": "3x3/2V 384", "branch1": "1x1 256, 3x3 256, 3x3/2V 384", "branch2": "max/2V"}
V2_REDUCTION_B = {
    "branch0": "1x1 256, 3x3/2V 384",
    "branch1": "1x1 256, 3x3/2V 288",
    "branch2": "1x1 256, 3x3 288, 3x3/2V 320",
    "branch3": "max/2V",
}


class ResidualModule(Branches):
    """(N, C, H, W) -> (N, C, H, W): the branches, and a 1x1 convolution back to C maps without batch norm."""

    def __init__(self, channels: int, rows: Rows, scale: float = 1.0) -> None:
        super().__init__(channels, rows, conv)
        self.conv2d = nn.Conv2d(self.out_channels, channels, 1)
        self.out_channels = channels
        self.scale = scale

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2d(super().forward(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.scale * self.residual(x))


class LinearResidualModule(ResidualModule):
    """(N, C, H, W) -> (N, C, H, W): the last module of the releases."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


class Part(NamedTuple):
    """A line of a network: one module of `rows`, or `repeats` residual ones whose branches are scaled."""

    name: str
    rows: Rows
    repeats: int = 0
    scale: float = 1.0


V1 = (  # figure 15
    Part("repeat_1", V1_A, 5, 0.17),
    Part("mixed_6a", V1_REDUCTION_A),
    Part("repeat_2", V1_B, 10, 0.10),
    Part("mixed_7a", V1_REDUCTION_B),
    Part("repeat_3", V1_C, 5, 0.20),
)
V2 = (  # figure 15 with the modules of figures 16 to 19
    Part("repeat", V2_A, 5, 0.17),
    Part("mixed_6a", V2_REDUCTION_A),
    Part("repeat_1", V2_B, 10, 0.10),
    Part("mixed_7a", V2_REDUCTION_B),
    Part("repeat_2", V2_C, 5, 0.20),
)
V2_RELEASE = (
    Part("mixed_5b", V2_MIXED_5B),
    Part("repeat", V2_A, 10, 0.17),
    Part("mixed_6a", V2_REDUCTION_A),
    Part("repeat_1", V2_B, 20, 0.10),
    Part("mixed_7a", V2_REDUCTION_B),
    Part("repeat_2", V2_C, 9, 0.20),
)


def _body(stages: OrderedDict[str, nn.Module], channels: int, parts: tuple[Part, ...]) -> int:
    """Append `parts` to `stages`; return the number of maps at the end."""
    for name, rows, repeats, scale in parts:
        if repeats:
            stages[name] = nn.Sequential(*[ResidualModule(channels, rows, scale) for _ in range(repeats)])
        else:
            stages[name] = module(channels, rows)
            channels = stages[name].out_channels
    return channels


def _pool(dropout: float) -> OrderedDict[str, nn.Module]:
    return OrderedDict(global_pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), head_drop=nn.Dropout(dropout))


def inception_resnet_v1(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> nn.Sequential:
    """(N, in_channels, 299, 299) -> (N, num_classes): the released network, with 512 units in front of the classifier."""
    stages, channels = sequence(in_channels, {**RESNET_STEM, "conv2d_4b": "3x3/2V 256"}, conv)
    channels = _body(stages, channels, V1)
    stages["block8"] = LinearResidualModule(channels, V1_C)
    stages.update(_pool(dropout))
    stages["last_linear"] = nn.Linear(channels, 512, bias=False)
    stages["last_bn"] = nn.BatchNorm1d(512, eps=1e-3)
    stages["logits"] = nn.Linear(512, num_classes)
    return nn.Sequential(stages).apply(init_fan_in)


def inception_resnet_v1_paper(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> nn.Sequential:
    """(N, in_channels, 299, 299) -> (N, num_classes): the network of the figures."""
    stages, channels = sequence(in_channels, {**RESNET_STEM, "conv2d_4b": "3x3/2V 256"}, conv)
    channels = _body(stages, channels, V1)
    stages.update(_pool(dropout), logits=nn.Linear(channels, num_classes))
    return nn.Sequential(stages).apply(init_fan_in)


def inception_resnet_v2(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> nn.Sequential:
    """(N, in_channels, 299, 299) -> (N, num_classes): the released network."""
    stages, channels = sequence(in_channels, {**RESNET_STEM, "maxpool_5a": "max/2V"}, conv)
    channels = _body(stages, channels, V2_RELEASE)
    stages["block8"] = LinearResidualModule(channels, V2_C)
    stages["conv2d_7b"] = conv(channels, 1536, 1)
    stages.update(_pool(dropout), classif=nn.Linear(1536, num_classes))
    return nn.Sequential(stages).apply(init_fan_in)


def inception_resnet_v2_paper(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> nn.Sequential:
    """(N, in_channels, 299, 299) -> (N, num_classes): the network of the figures, on Inception-v4's stem."""
    stages, channels = sequence(in_channels, V4_STEM, conv)
    for name, rows in V4_STEM_MODULES.items():
        stages[name] = module(channels, rows)
        channels = stages[name].out_channels
    channels = _body(stages, channels, V2)
    stages.update(_pool(dropout), classif=nn.Linear(channels, num_classes))
    return nn.Sequential(stages).apply(init_fan_in)
