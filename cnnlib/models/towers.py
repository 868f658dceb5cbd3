"""Towers of equal layers, our own: the same 3x3 convolutions, joined in seven ways, to see what reaches the first of them.

paper     none; each way is the block of its paper, taken from that paper's file
follows   plain, auxiliary: a convolution and a function of each value (Simonyan and Zisserman 2014); auxiliary adds
          classifiers in training, behind each third of the tower (Szegedy et al. 2014, section 5)
          batch_norm, residual: figure 5 of He et al. 2015 without and with the shortcut, two layers a block
          highway: Srivastava et al. 2015, gate bias -2
          pre_activation: figure 4 (e) of He et al. 2016
          dense: section 3 of Huang et al. 2016, k maps a layer
differs   no pooling and no change of width inside, so that all layers can be compared with one another. At the start the
          layers that are not of a paper's block have He's weights over the inputs behind ReLU, and Xavier's elsewhere
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from cnnlib.errors import unknown
from cnnlib.models.blocks import init_fan_out
from cnnlib.models.densenet import DenseBlock, DenseLayer
from cnnlib.models.highway import highway_conv
from cnnlib.models.preact_resnet import UNITS, basic
from cnnlib.models.resnet import BasicBlock, PlainBlock, option_a

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "none": nn.Identity}


class Tower(nn.Sequential):
    """(N, C, H, W) -> (N, classes); in training with heads -> a tuple, whose further entries are the heads' answers."""

    def __init__(self, stages: OrderedDict[str, nn.Module], heads: dict[str, nn.Module]) -> None:
        super().__init__(stages)
        self.behind = dict(zip(heads, ("body1", "body2")))
        self.heads = nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        told = []
        for name, stage in self.named_children():
            if name == "heads":
                break
            x = stage(x)
            told += [head(x) for key, head in self.heads.items() if self.training and self.behind[key] == name]
        return (x, *told) if told else x


def _layer(width: int, activation: str) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(width, width, 3, padding=1), activation=ACTIVATIONS[activation]()))


def _one_a_layer(make: Callable[[], nn.Module], layers: int) -> nn.Sequential:
    return nn.Sequential(*(make() for _ in range(layers)))


def _one_in_two(make: Callable[[], nn.Module], layers: int) -> nn.Sequential:
    return nn.Sequential(*(make() for _ in range(layers // 2))).apply(init_fan_out)


def _plain(width: int, layers: int, activation: str) -> nn.Module:
    return _one_a_layer(partial(_layer, width, activation), layers).apply(partial(_start, activation))


def _highway(width: int, layers: int, activation: str) -> nn.Module:
    body = _one_a_layer(partial(highway_conv, width, 3, -2.0), layers).apply(partial(_start, "relu"))
    for unit in body:
        nn.init.constant_(unit.gate.bias, -2.0)
    return body


def _dense(width: int, layers: int, activation: str) -> nn.Module:
    return DenseBlock(DenseLayer, layers, width, width, 0.0).apply(partial(_start, "relu"))


WAYS: dict[str, Callable[[int, int, str], nn.Module]] = {
    "plain": _plain,
    "auxiliary": _plain,
    "batch_norm": lambda width, layers, _: _one_in_two(partial(PlainBlock, width, width, 1), layers),
    "highway": _highway,
    "residual": lambda width, layers, _: _one_in_two(partial(BasicBlock, width, width, 1, option_a), layers),
    "pre_activation": lambda width, layers, _: _one_in_two(
        partial(basic, UNITS["full_preactivation"], width, width, 1, first=False), layers
    ),
    "dense": _dense,
}


def _start(activation: str, module: nn.Module) -> None:
    """He's weights over the inputs behind ReLU, Xavier's elsewhere; biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        if activation == "relu":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        else:
            nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _head(width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(width, num_classes))
    )


def tower(
    way: str,
    layers: int,
    *,
    width: int = 16,
    activation: str = "relu",
    num_classes: int = 10,
    in_channels: int = 1,
) -> Tower:
    """(N, in_channels, H, W) -> (N, num_classes): a 3x3 convolution by twos, `layers` equal ones, mean, linear layer.

    `way` is a name of WAYS; `activation` (of ACTIVATIONS) is for the plain ways. ValueError for a name that does not exist,
    an odd number of layers where two make a block, or one that thirds do not divide where heads stand behind thirds.
    """
    if way not in WAYS:
        raise unknown("way of joining layers", way, WAYS)
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if activation != "relu" and way not in ("plain", "auxiliary"):
        raise ValueError(
            f"{way} has the ReLU of its paper, got activation={activation!r}; leave it out, or take 'plain'"
        )
    step = {"plain": 1, "highway": 1, "dense": 1, "auxiliary": 3}.get(way, 2)
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < step or layers % step:
        raise ValueError(f"{way} layers come in numbers of {step}, {2 * step}, {3 * step}, ..., got {layers!r}")
    last = width * (1 + layers) if way == "dense" else width
    stem = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(in_channels, width, 3, stride=2, padding=1), act=ACTIVATIONS[activation]())
    )
    stages = OrderedDict(stem=stem.apply(partial(_start, activation)))
    heads = {}
    if way == "auxiliary":
        for third in (1, 2, 3):
            stages[f"body{third}"] = WAYS[way](width, layers // 3, activation)
        heads = {name: _head(width, num_classes) for name in ("aux1", "aux2")}
    else:
        stages["body"] = WAYS[way](width, layers, activation)
    stages["head"] = _head(last, num_classes)
    return Tower(stages, heads)
