"""VGG: how far 3x3 convolutions go when nothing but depth changes.

paper     Simonyan, Zisserman 2014, Very deep convolutional networks for large-scale image recognition, arXiv:1409.1556
follows   table 1, column by column: 3x3 (in C also 1x1) convolutions with stride 1 that keep the size, each with ReLU,
          2x2 max pooling, layers of 4096, 4096 and 1000 units; in A-LRN, AlexNet's normalisation behind the first
          convolution; dropout behind the first two fully connected layers (3.1); names of parameters: torchvision's,
          so that the released weights of A, B, D and E (vgg11, 13, 16, 19) load; weights at the start: Glorot and
          Bengio's, by which, the paper says, all columns train without those of A; biases 0
differs   other sizes than 224 are averaged to 7x7 in front of the classifier, as torchvision does
          vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn: torchvision's, with batch normalisation behind each convolution;
          at the start He's weights over the outputs, deviation 0.01 in the fully connected layers
"""

from __future__ import annotations

from functools import partial

from torch import nn

from cnnlib.errors import unknown
from cnnlib.models.blocks import PooledClassifier, local_response_norm

# Table 1, from pooling to pooling: 3-64 is the paper's conv3-64, a 3x3 convolution to 64 maps.
# fmt: off
TABLE_1 = {
    "A": ("3-64", "3-128", "3-256 3-256", "3-512 3-512", "3-512 3-512"),
    "A-LRN": ("3-64 LRN", "3-128", "3-256 3-256", "3-512 3-512", "3-512 3-512"),
    "B": ("3-64 3-64", "3-128 3-128", "3-256 3-256", "3-512 3-512", "3-512 3-512"),
    "C": ("3-64 3-64", "3-128 3-128", "3-256 3-256 1-256", "3-512 3-512 1-512", "3-512 3-512 1-512"),
    "D": ("3-64 3-64", "3-128 3-128", "3-256 3-256 3-256", "3-512 3-512 3-512", "3-512 3-512 3-512"),
    "E": ("3-64 3-64", "3-128 3-128", "3-256 3-256 3-256 3-256", "3-512 3-512 3-512 3-512", "3-512 3-512 3-512 3-512"),
}
# fmt: on


def convolutions(stage: str) -> list[tuple[int, int]]:
    """Kernel and maps of each convolution in an entry of table 1.

    >>> convolutions("3-256 3-256 1-256")
    [(3, 256), (3, 256), (1, 256)]
    """
    return [tuple(map(int, layer.split("-"))) for layer in stage.split() if layer != "LRN"]


def layer_names(column: str) -> list[str]:
    """The layers of a column in order, as later papers name them: conv1_1, ..., pool5, fc6, fc7, fc8.

    >>> layer_names("A")[:4]
    ['conv1_1', 'pool1', 'conv2_1', 'pool2']
    """
    if column not in TABLE_1:
        raise unknown("column of table 1", column, TABLE_1)
    names = []
    for block, stage in enumerate(TABLE_1[column], start=1):
        names += [f"conv{block}_{number}" for number in range(1, len(convolutions(stage)) + 1)]
        names.append(f"pool{block}")
    return [*names, "fc6", "fc7", "fc8"]


def vgg(
    column: str, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, batch_norm: bool = False
) -> PooledClassifier:
    """(N, in_channels, 224, 224) -> (N, num_classes): one column of table 1; ValueError where the table has none."""
    if column not in TABLE_1:
        raise unknown("column of table 1", column, TABLE_1)
    features: list[nn.Module] = []
    channels = in_channels
    for stage in TABLE_1[column]:
        for kernel, maps in convolutions(stage):
            features.append(nn.Conv2d(channels, maps, kernel, padding=kernel // 2))
            features += [nn.BatchNorm2d(maps)] if batch_norm else []
            features.append(nn.ReLU())
            channels = maps
        features += [local_response_norm()] if "LRN" in stage else []
        features.append(nn.MaxPool2d(2))
    classifier = nn.Sequential(
        *[nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(dropout)],
        *[nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout)],
        nn.Linear(4096, num_classes),
    )
    model = PooledClassifier(nn.Sequential(*features), 7, classifier)
    return model.apply(_init_torchvision if batch_norm else init_glorot)


def init_glorot(module: nn.Module) -> None:
    """Uniform in +-sqrt(6 / (inputs + outputs)), biases 0 (Glorot, Bengio 2010, eq. 16)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def _init_torchvision(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


vgg_a = partial(vgg, "A")
vgg_a_lrn = partial(vgg, "A-LRN")
vgg_b = partial(vgg, "B")
vgg_c = partial(vgg, "C")
vgg_d = partial(vgg, "D")
vgg_e = partial(vgg, "E")

vgg11_bn = partial(vgg, "A", batch_norm=True)
vgg13_bn = partial(vgg, "B", batch_norm=True)
vgg16_bn = partial(vgg, "D", batch_norm=True)
vgg19_bn = partial(vgg, "E", batch_norm=True)
