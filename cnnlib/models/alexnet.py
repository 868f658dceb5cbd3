"""AlexNet: the paper's two towers, and the versions that most people run.

paper     Krizhevsky, Sutskever, Hinton 2012, ImageNet classification with deep convolutional neural networks (NIPS)
follows   section 3.5 and figure 2: five convolutions and three fully connected layers; conv2, conv4 and conv5 see the
          maps of their own GPU (two groups); normalisation (3.3) before overlapping pooling (3.4) behind conv1 and
          conv2, pooling behind conv5; dropout (4.2) behind fc6 and fc7; weights and biases at the start: section 5
differs   images of 227x227 without padding: the paper says 224, which gives 54x54 maps in conv1, but its own 55x55
          (253,440 values) needs 227; normalisation runs over all maps, since the paper does not say whether it
          crossed the GPUs (Caffe's does)
          alexnet_ungrouped: each convolution sees all maps
          caffenet: Caffe's bvlc_reference_caffenet, which pools before it normalises, with k = 1
          alexnet_owt: torchvision's, after Krizhevsky 2014 (arXiv:1404.5997): one tower of 64, 192, 384, 256, 256
          maps, padding 2 in conv1, no normalisation, dropout before fc6 and fc7; names as in torchvision's
          checkpoint, and like there torch's own initialisation, since that paper gives none
"""

from __future__ import annotations

from torch import nn

from cnnlib.models.blocks import ConvRow, PooledClassifier, eight_layers, local_response_norm

# Section 3.5: maps, kernel, stride, padding, groups, what follows.
TWO_TOWERS = (
    ConvRow(96, 11, 4, 0, 1, "relu norm pool"),
    ConvRow(256, 5, 1, 2, 2, "relu norm pool"),
    ConvRow(384, 3, 1, 1, 1, "relu"),
    ConvRow(384, 3, 1, 1, 2, "relu"),
    ConvRow(256, 3, 1, 1, 2, "relu pool"),
)
ONE_TOWER = tuple(row._replace(groups=1) for row in TWO_TOWERS)
POOL_FIRST = tuple(row._replace(then=row.then.replace("norm pool", "pool norm")) for row in TWO_TOWERS)

# Section 5: a bias of 1 gives these layers' rectifiers a positive input from the first step.
BIAS_ONE = ("conv2", "conv4", "conv5", "fc6", "fc7")


def alexnet(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> nn.Sequential:
    """(N, in_channels, 227, 227) -> (N, num_classes): the network of 2012."""
    return _krizhevsky(TWO_TOWERS, num_classes, in_channels, local_response_norm(), dropout)


def alexnet_ungrouped(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> nn.Sequential:
    """(N, in_channels, 227, 227) -> (N, num_classes): the network of 2012 on one GPU, each kernel over all maps."""
    return _krizhevsky(ONE_TOWER, num_classes, in_channels, local_response_norm(), dropout)


def caffenet(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> nn.Sequential:
    """(N, in_channels, 227, 227) -> (N, num_classes): pooling before normalisation, as many lectures print AlexNet."""
    # Caffe's alpha of 1e-4 is divided by n = 5, and its k is 1 unless said otherwise.
    norm = local_response_norm(k=1.0, alpha=1e-4 / 5)
    return _krizhevsky(POOL_FIRST, num_classes, in_channels, norm, dropout, hidden_std=0.005)


def _krizhevsky(
    rows: tuple[ConvRow, ...],
    num_classes: int,
    in_channels: int,
    norm: nn.Module,
    dropout: float,
    hidden_std: float = 0.01,
) -> nn.Sequential:
    """The frame with section 5's start: weights normal with deviation 0.01 (fc6, fc7: `hidden_std`), biases 0 or 1."""
    model = eight_layers(rows, num_classes, in_channels, norm, nn.MaxPool2d(3, stride=2), dropout)
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=hidden_std if name in ("fc6", "fc7") else 0.01)
            nn.init.constant_(layer.bias, 1.0 if name in BIAS_ONE else 0.0)
    return model


def alexnet_owt(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> PooledClassifier:
    """(N, in_channels, 224, 224) -> (N, num_classes): torchvision's `alexnet`, whose released weights load."""
    features = nn.Sequential(
        *[nn.Conv2d(in_channels, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)],
        *[nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)],
        *[nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
        *[nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
        *[nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2)],
    )
    classifier = nn.Sequential(
        *[nn.Dropout(dropout), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()],
        *[nn.Dropout(dropout), nn.Linear(4096, 4096), nn.ReLU()],
        nn.Linear(4096, num_classes),
    )
    return PooledClassifier(features, 6, classifier)
