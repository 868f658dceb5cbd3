"""Parts that more than one paper needs."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from cnnlib.errors import listed


@dataclass(frozen=True)
class InputGuard:
    """Refuses a batch that the network cannot take, before a layer deep inside fails with a sentence about matrices.

    `zoo.build` hangs it on a network as a forward pre-hook and `cnnlib.trace` asks it too; it computes nothing.
    `exact`: the network takes this height and width only; else any height and width of at least `least`, and in
    evaluation of at least `answering`, which is less where a head that serves training only needs larger maps.
    """

    name: str
    channels: int
    size: tuple[int, int]
    exact: bool
    least: int
    answering: int | None = None

    def check(self, shape: tuple[int, ...], training: bool = False) -> None:
        """Raise ValueError unless `shape` is (N, C, H, W) as the network wants it."""
        wanted = (self.channels, *self.size) if self.exact else (self.channels, "H", "W")
        if len(shape) != 4:
            raise ValueError(
                f"{self.name} takes a batch of images (N, {', '.join(map(str, wanted))}), got a tensor of shape "
                f"({', '.join(map(str, shape))}); a single image needs a batch axis: x[None]"
            )
        _, channels, *size = shape
        if channels != self.channels:
            raise ValueError(
                f"{self.name} was built for {self.channels} input channel{'s' * (self.channels != 1)}, got images of "
                f"{channels}; build({self.name!r}, in_channels={channels}) if the network may be changed"
            )
        if self.exact and tuple(size) != self.size:
            raise ValueError(
                f"{self.name} takes images of {listed(self.size)} only, got {listed(size)}; "
                f"pad or resize them to {listed(self.size)}"
            )
        answering = self.answering or self.least
        least = self.least if training else answering
        if min(size) < least:
            head = f" in training, where its auxiliary head answers too ({answering}x{answering} without)"
            raise ValueError(
                f"{self.name} takes images of at least {least}x{least}{head if least > answering else ''}, "
                f"got {listed(size)}; the paper's size is {listed(self.size)}"
            )

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.check(tuple(args[0].shape), module.training)


def init_fan_out(module: nn.Module) -> None:
    """He's normal with variance 2 / (k * k * outputs) and linear bias 0, as fb.resnet.torch and its descendants start.

    Batch norm starts at 1 and 0, and linear weights uniform in +-1 / sqrt(inputs), as in Torch; PyTorch does so unasked.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def local_response_norm(n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> nn.LocalResponseNorm:
    """(N, C, H, W) -> (N, C, H, W): b_i = a_i / (k + alpha * sum of a_j^2 over n neighbouring maps j)^beta.

    Krizhevsky et al. 2012, section 3.3, whose constants are the defaults.
    """
    # torch and Caffe divide alpha by n, the paper does not.
    return nn.LocalResponseNorm(n, alpha=n * alpha, beta=beta, k=k)


class ConvRow(NamedTuple):
    """One convolution as the papers of 2012 to 2014 tabulate it; `then` names what follows: relu, norm, pool."""

    maps: int
    kernel: int
    stride: int
    padding: int
    groups: int
    then: str


def eight_layers(
    rows: tuple[ConvRow, ...],
    num_classes: int,
    in_channels: int,
    norm: nn.Module,
    pool: nn.Module,
    dropout: float,
) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, num_classes): AlexNet's frame, `rows` of convolutions that end in maps of 6x6, then
    fully connected layers of 4096, 4096 and num_classes units with dropout behind the first two.

    Stages carry Caffe's names: conv1, relu1, norm1, pool1, ..., fc6, relu6, drop6, fc7, relu7, drop7, fc8.
    """
    after = {"relu": nn.ReLU(), "norm": norm, "pool": pool}
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for number, row in enumerate(rows, start=1):
        stages[f"conv{number}"] = nn.Conv2d(channels, row.maps, row.kernel, row.stride, row.padding, groups=row.groups)
        stages.update({f"{kind}{number}": copy.deepcopy(after[kind]) for kind in row.then.split()})
        channels = row.maps
    stages["flatten"] = nn.Flatten()
    units = channels * 6 * 6
    for number in (6, 7):
        stages[f"fc{number}"] = nn.Linear(units, 4096)
        stages[f"relu{number}"] = nn.ReLU()
        stages[f"drop{number}"] = nn.Dropout(dropout)
        units = 4096
    stages["fc8"] = nn.Linear(units, num_classes)
    return nn.Sequential(stages)


class PooledClassifier(nn.Module):
    """(N, C, H, W) -> (N, num_classes): torchvision's frame of AlexNet and VGG.

    `avgpool` brings the maps of `features` to side x side. They have that size at the paper's input, where it changes
    nothing; so images of another size can be classified too.
    """

    def __init__(self, features: nn.Sequential, side: int, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
