"""GoogLeNet, as its paper describes it and as most people load it.

paper     Szegedy et al. 2014, Going deeper with convolutions, arXiv:1409.4842
follows   table 1 (widths) and figure 3 (order of the layers): 5x5 branches, local response normalisation before the 1x1
          reduction of conv2 and behind its 3x3, 3x3 pooling with stride 2 four times, dropout 0.4; two auxiliary heads,
          behind 4a and 4d, which count 0.3 each in training (section 5): 5x5 average pooling with stride 3, 1x1
          convolution with 128 maps, 1024 units, dropout 0.7
          what the paper leaves open is as in Caffe's release (bvlc_googlenet): windows of the four pools may stick out
          at the end; normalisation over 5 maps with alpha 1e-4, beta 0.75, k 1; weights uniform in +-sqrt(3 / inputs),
          biases 0.2, and 0 in the classifiers
          names of layers: torchvision's, so that both versions can be laid side by side
differs   conv1 is a full 7x7 convolution: 2.7K parameters in table 1 would fit a separable one (data/papers/googlenet.yml)
          googlenet_bn: torchvision's. Batch norm (eps 1e-3) in place of biases and normalisation, 3x3 in place of 5x5,
          a 2x2 window in the last pool, heads that pool to 4x4 whatever the size; dropout 0.2
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from cnnlib.models.branches import Branches, Conv, ConvBNReLU, symmetric_input

# Table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj.
TABLE_1 = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "maxpool3": (),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "maxpool4": (),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
HEADS = {"aux1": "inception4a", "aux2": "inception4d"}


class GoogLeNetOutput(NamedTuple):
    """What training sees, (N, classes) each; torchvision's names and order."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class ConvReLU(nn.Module):
    """(N, C, H, W) -> (N, maps, H', W'): relu(conv(x)), with a bias."""

    def __init__(self, channels: int, maps: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, maps, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


def inception(channels: int, widths: tuple[int, ...], conv: Conv, large: str = "5x5") -> Branches:
    """(N, C, H, W) -> (N, 1x1 + 3x3 + `large` + pool proj, H, W): figure 2(b) with a row of table 1."""
    one, reduce3, three, reduce5, five, proj = widths
    rows = {
        "branch1": f"1x1 {one}",
        "branch2": f"1x1 {reduce3}, 3x3 {three}",
        "branch3": f"1x1 {reduce5}, {large} {five}",
        "branch4": f"max, 1x1 {proj}",
    }
    return Branches(channels, rows, conv)


class AuxiliaryHead(nn.Module):
    """(N, C, 14, 14) -> (N, classes): a classifier of its own on early maps (section 5)."""

    def __init__(self, channels: int, num_classes: int, pool: nn.Module, conv: Conv, dropout: float) -> None:
        super().__init__()
        self.pool = pool
        self.conv = conv(channels, 128, 1, 1, 0)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(x)).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    """(N, C, H, W) -> (N, classes); in training with heads -> GoogLeNetOutput, whose heads count `aux_weight` each."""

    aux_weight = 0.3

    def __init__(
        self, stages: OrderedDict[str, nn.Module], heads: dict[str, nn.Module], transform_input: bool = False
    ) -> None:
        super().__init__()
        self.transform_input = transform_input
        self.stages = list(stages)
        for name, module in [*stages.items(), *heads.items()]:
            self.add_module(name, module)
        self.heads = {HEADS[head]: head for head in heads}

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutput:
        x = symmetric_input(x) if self.transform_input else x
        aux = []
        for name in self.stages:
            x = self.get_submodule(name)(x)
            if self.training and name in self.heads:
                aux.append(self.get_submodule(self.heads[name])(x))
        return GoogLeNetOutput(x, *reversed(aux)) if aux else x


def modules(conv: Conv, large: str, last_pool: int) -> OrderedDict[str, nn.Module]:
    """(N, 192, H, W) -> (N, 1024, H/4, W/4): table 1 from 3a to 5b; `last_pool` is the window of maxpool4."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 192
    for name, widths in TABLE_1.items():
        if widths:
            stages[name] = inception(channels, widths, conv, large)
            channels = stages[name].out_channels
        else:
            stages[name] = nn.MaxPool2d(last_pool if name == "maxpool4" else 3, 2, ceil_mode=True)
    return stages


def classifier(num_classes: int, dropout: float) -> OrderedDict[str, nn.Module]:
    """(N, 1024, H, W) -> (N, classes): the mean of each map, which is 7x7 at the paper's size, and a linear layer."""
    return OrderedDict(
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(dropout),
        fc=nn.Linear(1024, num_classes),
    )


def googlenet(
    num_classes: int = 1000,
    in_channels: int = 3,
    aux_logits: bool = True,
    dropout: float = 0.4,
    dropout_aux: float = 0.7,
) -> GoogLeNet:
    """(N, in_channels, 224, 224) -> (N, num_classes): the network of the paper; `aux_logits=False` leaves the heads out."""
    stages = OrderedDict(
        conv1=ConvReLU(in_channels, 64, 7, 2, 3),
        maxpool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        norm1=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        conv2=ConvReLU(64, 64, 1),
        conv3=ConvReLU(64, 192, 3, 1, 1),
        norm2=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        maxpool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        **modules(ConvReLU, "5x5", last_pool=3),
        **classifier(num_classes, dropout),
    )
    heads = {
        head: AuxiliaryHead(stages[stage].out_channels, num_classes, nn.AvgPool2d(5, 3), ConvReLU, dropout_aux)
        for head, stage in HEADS.items()
    }
    return _init(GoogLeNet(stages, heads if aux_logits else {}))


def googlenet_bn(
    num_classes: int = 1000,
    in_channels: int = 3,
    aux_logits: bool = True,
    dropout: float = 0.2,
    dropout_aux: float = 0.7,
    transform_input: bool = False,
) -> GoogLeNet:
    """(N, in_channels, H, W) -> (N, num_classes): torchvision's; its weights want `transform_input=True`.

    ValueError where `transform_input` is asked for without three channels.
    """
    if transform_input and in_channels != 3:
        raise ValueError(
            f"transform_input turns ImageNet's means of 3 channels around, got in_channels={in_channels}; leave it out"
        )
    conv = partial(ConvBNReLU, eps=1e-3)
    stages = OrderedDict(
        conv1=conv(in_channels, 64, 7, 2, 3),
        maxpool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=conv(64, 64, 1),
        conv3=conv(64, 192, 3, 1, 1),
        maxpool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        **modules(conv, "3x3", last_pool=2),
        **classifier(num_classes, dropout),
    )
    heads = {
        head: AuxiliaryHead(stages[stage].out_channels, num_classes, nn.AdaptiveAvgPool2d(4), conv, dropout_aux)
        for head, stage in HEADS.items()
    }
    return GoogLeNet(stages, heads if aux_logits else {}, transform_input).apply(_init_bn)


def _init(model: GoogLeNet) -> GoogLeNet:
    """As bvlc_googlenet: Caffe's "xavier" filler, biases 0.2, and 0 in the classifiers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = (3 / module.weight[0].numel()) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.constant_(module.bias, 0.0 if name.endswith(("fc", "fc2")) else 0.2)
    return model


def _init_bn(module: nn.Module) -> None:
    """As torchvision: normal with deviation 0.01; linear biases, which it leaves to PyTorch's default, are 0 here."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01, a=-2, b=2)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
