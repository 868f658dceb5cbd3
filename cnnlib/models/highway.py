"""Highway networks: each layer learns how much of its input it changes and how much it carries on.

paper     Srivastava, Greff, Schmidhuber 2015, Highway Networks, arXiv:1505.00387, and
          Training Very Deep Networks, arXiv:1507.06228, of which the sections and tables below are
follows   equation 3 and section 2.2, gate bias below 0 at the start; section 3.1 (`highway_fc`: 50 units, one plain layer
          and 9, 19, 49 or 99 highway layers, softmax)
          highway19: flukeskywalker/highway-networks, the authors' release for CIFAR-10, layer by layer with its names,
          dropout and gate bias -2. It has 2,256,838 parameters, the "~2.3M" of table 2, and the end of section 3.3.2: a
          1x1 convolution and global average pooling in the place of the fully connected layer
          weights at the start: the release's, Caffe's "xavier" (uniform with variance 1 / inputs), in the last layer of
          the convolutional nets a normal with deviation 0.05; biases 0
differs   highway19: table 2's own Highway B ended in that fully connected layer, whose width is not printed. The release
          gives conv1's Gaussian a `value` where Caffe reads `std`, so that it ran with 1; ours starts like the others
          highway32: only four facts are printed: 32 layers, 3x3 and 1x1 in turn, thinner, about 1.25M parameters. Widths
          (32, 64, 96) and the frame of highway19 are our choice and give 1,264,502
          highway_fc: the paper searched ReLU or tanh and a gate bias of -1 to -10, and prints no winner; ReLU and -2
          are ours
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn


class Highway(nn.Module):
    """(...) -> (...): y = H(x) T(x) + x (1 - T(x)), T = sigmoid(gate), H = activation(transform) (equation 3)."""

    def __init__(self, transform: nn.Module, activation: nn.Module, gate: nn.Module, gate_bias: float) -> None:
        super().__init__()
        self.transform = transform
        self.activation = activation
        self.gate = gate
        self.gate_bias = gate_bias

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.transform(x))
        t = torch.sigmoid(self.gate(x))
        return h * t + x * (1 - t)


def _init(module: nn.Module) -> None:
    """Caffe's xavier for convolutions and layers, biases 0; then the gates' biases, since parents come after children."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        bound = (3 / module.weight[0].numel()) ** 0.5
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Highway):
        nn.init.constant_(module.gate.bias, module.gate_bias)


def highway_conv(channels: int, kernel_size: int, gate_bias: float) -> Highway:
    """(N, C, H, W) -> (N, C, H, W): both convolutions zero-padded, so that x and y can be added (section 2.1)."""
    conv = partial(nn.Conv2d, channels, channels, kernel_size, padding=kernel_size // 2)
    return Highway(conv(), nn.ReLU(), conv(), gate_bias)


# Maps of a stage, and the kernels of its layers: the first is plain and widens, the others are highway layers.
HIGHWAY19 = ((32, (3,) * 5), (80, (3,) * 6), (128, (3,) * 6))
HIGHWAY32 = ((32, (3, 1) * 5), (64, (3, 1) * 5), (96, (3, 1) * 5))


def convolutional(
    rows: tuple[tuple[int, tuple[int, ...]], ...],
    num_classes: int = 10,
    in_channels: int = 3,
    gate_bias: float = -2.0,
) -> nn.Sequential:
    """(N, in_channels, 32, 32) -> (N, num_classes): stages between max pools, 1x1 to 100 maps, mean, linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(drop1=nn.Dropout(0.2))
    number, channels = 0, in_channels
    for stage, (width, kernels) in enumerate(rows, start=1):
        if stage > 1:
            layers[f"pool{stage - 1}"] = nn.MaxPool2d(2)
            layers[f"drop{stage}"] = nn.Dropout(0.2)
        first, *rest = kernels
        number += 1
        layers[f"conv{number}"] = nn.Sequential(nn.Conv2d(channels, width, first, padding=first // 2), nn.ReLU())
        for kernel_size in rest:
            number += 1
            layers[f"conv{number}"] = highway_conv(width, kernel_size, gate_bias)
        channels = width
    layers[f"conv{number + 1}"] = nn.Sequential(nn.Conv2d(channels, 100, 1), nn.ReLU())
    layers["pool3"] = nn.AdaptiveAvgPool2d(1)
    layers["drop4"] = nn.Dropout(0.2)
    layers["flatten"] = nn.Flatten()
    layers["ip2"] = nn.Linear(100, num_classes)
    model = nn.Sequential(layers).apply(_init)
    nn.init.normal_(model.ip2.weight, std=0.05)
    return model


highway19 = partial(convolutional, HIGHWAY19)
highway32 = partial(convolutional, HIGHWAY32)

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def highway_fc(
    num_classes: int = 10, in_channels: int = 1, depth: int = 50, gate_bias: float = -2.0, activation: str = "relu"
) -> nn.Sequential:
    """(N, in_channels, 28, 28) -> (N, num_classes): a plain layer to 50 units, depth - 1 highway layers, softmax's logits."""
    if depth < 2:
        raise ValueError(
            f"depth must be at least 2, a plain and a highway layer (the paper: 10, 20, 50, 100), got {depth}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be {' or '.join(ACTIVATIONS)}, as in section 3.1, got {activation!r}")
    f = ACTIVATIONS[activation]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    layers["layer1"] = nn.Sequential(nn.Linear(in_channels * 28 * 28, 50), f())
    for number in range(2, depth + 1):
        layers[f"layer{number}"] = Highway(nn.Linear(50, 50), f(), nn.Linear(50, 50), gate_bias)
    layers["output"] = nn.Linear(50, num_classes)
    return nn.Sequential(layers).apply(_init)
