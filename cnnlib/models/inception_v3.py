"""Inception-v3: large kernels taken apart into small and one-sided ones.

paper     Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015, Rethinking the Inception architecture for computer vision,
          arXiv:1512.00567
follows   torchvision's network, which is the authors' release (TensorFlow slim) layer by layer and name by name: batch
          norm with eps 1e-3, an auxiliary head with batch norm behind Mixed_6e (section 4), dropout 0.5 as torchvision
          figure 5: Mixed_5b to 5d, two 3x3 for a 5x5; figure 6: 6b to 6e, 1x7 and 7x1; figure 7: 7b and 7c, 1x3 beside
          3x1; figure 10: 6a and 7a, convolution and pooling side by side to halve the size
          weights at the start as torchvision: normal, cut at +-2, with deviation 0.1 (0.01 and 0.001 in the head)
differs   the release is not the network of the paper's table 1: Mixed_5b to 5d have a 5x5 where figure 5 has a single
          3x3, and the stem goes on with 1x1, 3x3 and a pool where the table has three 3x3 convolutions
          the zeros of the border count in an average, in TensorFlow they do not; linear biases start at 0, torchvision
          leaves them to PyTorch's default
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from cnnlib.models.branches import Branches, ConvBNReLU, sequence, symmetric_input


def figure_5(pool_proj: int) -> dict[str, str]:
    """35x35."""
    return {
        "branch1x1": "1x1 64",
        "branch5x5": "1x1 48, 5x5 64",
        "branch3x3dbl": "1x1 64, 3x3 96, 3x3 96",
        "branch_pool": f"avg, 1x1 {pool_proj}",
    }


def figure_6(c7: int) -> dict[str, str]:
    """17x17, with n = 7."""
    return {
        "branch1x1": "1x1 192",
        "branch7x7": f"1x1 {c7}, 1x7 {c7}, 7x1 192",
        "branch7x7dbl": f"1x1 {c7}, 7x1 {c7}, 1x7 {c7}, 7x1 {c7}, 1x7 192",
        "branch_pool": "avg, 1x1 192",
    }


FIGURE_7 = {
    "branch1x1": "1x1 320",
    "branch3x3": "1x1 384, 1x3 384 | 3x1 384",
    "branch3x3dbl": "1x1 448, 3x3 384, 1x3 384 | 3x1 384",
    "branch_pool": "avg, 1x1 192",
}
STEM = {
    "Conv2d_1a_3x3": "3x3/2V 32",
    "Conv2d_2a_3x3": "3x3V 32",
    "Conv2d_2b_3x3": "3x3 64",
    "maxpool1": "max/2V",
    "Conv2d_3b_1x1": "1x1 80",
    "Conv2d_4a_3x3": "3x3V 192",
    "maxpool2": "max/2V",
}
MIXED = {
    "Mixed_5b": figure_5(32),
    "Mixed_5c": figure_5(64),
    "Mixed_5d": figure_5(64),
    "Mixed_6a": {"branch3x3": "3x3/2V 384", "branch3x3dbl": "1x1 64, 3x3 96, 3x3/2V 96", "branch_pool": "max/2V"},
    "Mixed_6b": figure_6(128),
    "Mixed_6c": figure_6(160),
    "Mixed_6d": figure_6(160),
    "Mixed_6e": figure_6(192),
    "Mixed_7a": {
        "branch3x3": "1x1 192, 3x3/2V 320",
        "branch7x7x3": "1x1 192, 1x7 192, 7x1 192, 3x3/2V 192",
        "branch_pool": "max/2V",
    },
    "Mixed_7b": FIGURE_7,
    "Mixed_7c": FIGURE_7,
}


class InceptionOutput(NamedTuple):
    """What training sees, (N, classes) each; torchvision's names."""

    logits: Tensor
    aux_logits: Tensor


class AuxiliaryHead(nn.Sequential):
    """(N, C, 17, 17) -> (N, classes): 5x5 average pooling with stride 3, and a 5x5 convolution over all that is left."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(
            OrderedDict(
                pool=nn.AvgPool2d(5, 3),
                conv0=ConvBNReLU(channels, 128, 1, eps=1e-3),
                conv1=ConvBNReLU(128, 768, 5, eps=1e-3),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(768, num_classes),
            )
        )


class InceptionV3(nn.Module):
    """(N, C, H, W) -> (N, classes); in training with the head -> InceptionOutput, whose head counts `aux_weight`."""

    aux_weight = 0.4  # slim's; the paper gives none

    def __init__(
        self, stages: Mapping[str, nn.Module], head: nn.Module | None = None, transform_input: bool = False
    ) -> None:
        super().__init__()
        self.transform_input = transform_input
        self.stages = list(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.AuxLogits = head

    def forward(self, x: Tensor) -> Tensor | InceptionOutput:
        x = symmetric_input(x) if self.transform_input else x
        aux = None
        for name in self.stages:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6e" and self.training and self.AuxLogits is not None:
                aux = self.AuxLogits(x)
        return x if aux is None else InceptionOutput(x, aux)


def inception_v3(
    num_classes: int = 1000,
    in_channels: int = 3,
    aux_logits: bool = True,
    dropout: float = 0.5,
    transform_input: bool = False,
) -> InceptionV3:
    """(N, in_channels, 299, 299) -> (N, num_classes); torchvision's weights want `transform_input=True`.

    ValueError where `transform_input` is asked for without three channels.
    """
    if transform_input and in_channels != 3:
        raise ValueError(
            f"transform_input turns ImageNet's means of 3 channels around, got in_channels={in_channels}; leave it out"
        )
    conv = partial(ConvBNReLU, eps=1e-3)
    stages, channels = sequence(in_channels, STEM, conv)
    for name, rows in MIXED.items():
        stages[name] = Branches(channels, rows, conv, first=1)
        channels = stages[name].out_channels
        if name == "Mixed_6e":
            head = AuxiliaryHead(channels, num_classes) if aux_logits else None
    stages["avgpool"] = nn.AdaptiveAvgPool2d(1)
    stages["dropout"] = nn.Dropout(dropout)
    stages["flatten"] = nn.Flatten()
    stages["fc"] = nn.Linear(channels, num_classes)
    return _init(InceptionV3(stages, head, transform_input))


def _init(model: InceptionV3) -> InceptionV3:
    deviations = {"AuxLogits.conv1.conv": 0.01, "AuxLogits.fc": 0.001}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=deviations.get(name, 0.1), a=-2, b=2)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model
