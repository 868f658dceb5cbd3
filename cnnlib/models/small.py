"""Small sisters of three papers' networks, our own: what trains on two CPU cores and still shows what its paper shows.

paper     none; the rules are those of Simonyan and Zisserman 2014, Krizhevsky et al. 2012 and Huang et al. 2016
follows   small_vgg: three stages of three 3x3 convolutions with pooling behind each, as VGG; its 16, 32 and 64 maps are
          those of the CIFAR ResNets, so that the two stand side by side
          small_alexnet: five convolutions, the first of them large, overlapping pooling and normalisation behind the
          first two (in ZFNet's order, which is the cheaper), dropout behind the hidden layer, as AlexNet; on images
          of 28x28, with 9x9 filters
          small_alexnet_128: the same for photos of 128x128, with AlexNet's 11x11 filters of stride 4
          densenet22_k12: the plain DenseNet with 6 layers in each block (`densenet.py`)
differs   in width, depth and input from every paper; at the start He's weights, since AlexNet's deviation of 0.01 was chosen
          for sums over many more inputs; in the first layer of the AlexNets 0.01 all the same, so that a short training
          leaves little in its filters that was not learned
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from cnnlib.models.blocks import ConvRow, local_response_norm
from cnnlib.models.densenet import cifar_densenet

STAGES = (16, 32, 64)

# Maps, kernel, stride, padding, groups, what follows.
FOR_28 = (
    ConvRow(32, 9, 1, 4, 1, "relu pool norm"),
    ConvRow(64, 5, 1, 2, 1, "relu pool norm"),
    ConvRow(96, 3, 1, 1, 1, "relu"),
    ConvRow(96, 3, 1, 1, 1, "relu"),
    ConvRow(64, 3, 1, 1, 1, "relu pool"),
)
FOR_128 = (
    ConvRow(64, 11, 4, 2, 1, "relu pool norm"),
    ConvRow(96, 5, 1, 2, 1, "relu pool norm"),
    ConvRow(128, 3, 1, 1, 1, "relu"),
    ConvRow(128, 3, 1, 1, 1, "relu"),
    ConvRow(96, 3, 1, 1, 1, "relu pool"),
)


def small_vgg(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """(N, in_channels, 28, 28) -> (N, num_classes): nine 3x3 convolutions, hidden layer of 128 units."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for stage, maps in enumerate(STAGES, start=1):
        for number in (1, 2, 3):
            layers[f"conv{stage}_{number}"] = nn.Conv2d(channels, maps, 3, padding=1)
            layers[f"relu{stage}_{number}"] = nn.ReLU()
            channels = maps
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers.update(flatten=nn.Flatten(), fc4=nn.Linear(channels * 3 * 3, 128), relu4=nn.ReLU())
    layers["fc5"] = nn.Linear(128, num_classes)
    return nn.Sequential(layers).apply(_init_he)


def _small_alexnet(
    rows: tuple[ConvRow, ...], units: int, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.5
) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, num_classes): `rows`, then the last maps as `units` values, hidden layer of 256."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for number, row in enumerate(rows, start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, row.maps, row.kernel, row.stride, row.padding)
        for kind in row.then.split():
            layers[f"{kind}{number}"] = {
                "relu": nn.ReLU,
                "norm": local_response_norm,
                "pool": partial(nn.MaxPool2d, 3, stride=2),
            }[kind]()
        channels = row.maps
    layers.update(flatten=nn.Flatten(), fc6=nn.Linear(units, 256), relu6=nn.ReLU(), drop6=nn.Dropout(dropout))
    layers["fc7"] = nn.Linear(256, num_classes)
    model = nn.Sequential(layers).apply(_init_he)
    nn.init.normal_(model.conv1.weight, std=0.01)
    return model


def _init_he(module: nn.Module) -> None:
    """Normal with variance 2 / inputs, biases 0 (He et al. 2015, Delving deep into rectifiers, eq. 10)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


small_alexnet = partial(_small_alexnet, FOR_28, 64 * 2 * 2, in_channels=1)
small_alexnet_128 = partial(_small_alexnet, FOR_128, 96 * 3 * 3)
densenet22_k12 = partial(cifar_densenet, 22, 12)
