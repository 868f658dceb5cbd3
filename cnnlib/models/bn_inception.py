"""BN-Inception: GoogLeNet with batch normalisation, the network for which it was invented.

paper     Ioffe, Szegedy 2015, Batch normalization: accelerating deep network training by reducing internal covariate
          shift, arXiv:1502.03167, figure 5 (appendix)
follows   the widths of figure 5; two 3x3 in place of 5x5; 3c and 4e halve the size, 3x3 convolutions with stride 2
          beside a pooling branch that passes its input on; average pooling inside the modules, maximum in 3c, 4e, 5b;
          no dropout, no response normalisation
          what the paper leaves open is as in the public Caffe network and its port (pretrained-models.pytorch):
          convolutions keep a bias in front of batch norm (eps 1e-5), windows of the pools with stride 2 may stick out at
          the end, the zeros of the border count in an average; checkpoints have that port's names
differs   the paper prints 13.6 million parameters in section 4.2.2, figure 5 gives 11.3: unresolved
          (data/papers/inception.yml)
          weights at the start: He's, since the paper gives none
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from cnnlib.errors import listed
from cnnlib.models.blocks import InputGuard
from cnnlib.models.branches import Branches, ConvBNReLU, init_fan_in

# Figure 5: 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3, pooling, pool proj; 0 stands for a branch that is not
# there. "max/2C" halves the size, and so do the last 3x3 of its row.
FIGURE_5 = {
    "inception_3a": (64, 64, 64, 64, 96, "avg", 32),
    "inception_3b": (64, 64, 96, 64, 96, "avg", 64),
    "inception_3c": (0, 128, 160, 64, 96, "max/2C", 0),
    "inception_4a": (224, 64, 96, 96, 128, "avg", 128),
    "inception_4b": (192, 96, 128, 96, 128, "avg", 128),
    "inception_4c": (160, 128, 160, 128, 160, "avg", 128),
    "inception_4d": (96, 128, 192, 160, 192, "avg", 128),
    "inception_4e": (0, 128, 192, 192, 256, "max/2C", 0),
    "inception_5a": (352, 192, 320, 160, 224, "avg", 128),
    "inception_5b": (352, 192, 320, 192, 224, "max", 128),
}
# Where a layer hangs in its module here, and what the released network calls it.
RELEASED = {
    "1x1": "1x1",
    "3x3.0": "3x3_reduce",
    "3x3.1": "3x3",
    "double_3x3.0": "double_3x3_reduce",
    "double_3x3.1": "double_3x3_1",
    "double_3x3.2": "double_3x3_2",
    "pool.1": "pool_proj",
}


def inception(channels: int, row: tuple[int | str, ...]) -> Branches:
    """(N, C, H, W) -> (N, out_channels, H/s, W/s): a row of figure 5; s = 2 where it passes its input on."""
    one, reduce, three, reduce_double, double, pool, proj = row
    s = "" if one else "/2"
    rows = {
        "1x1": f"1x1 {one}",
        "3x3": f"1x1 {reduce}, 3x3{s} {three}",
        "double_3x3": f"1x1 {reduce_double}, 3x3 {double}, 3x3{s} {double}",
        "pool": f"{pool}, 1x1 {proj}",
    }
    if not one:
        del rows["1x1"]
        rows["pool"] = pool
    return Branches(channels, rows, partial(ConvBNReLU, bias=True))


@dataclass(frozen=True)
class EvenGrids(InputGuard):
    """In 3c and 4e a convolution and a pool halve the size, which round alike where it is even: 32m - 1 to 32m + 6."""

    def check(self, shape: tuple[int, ...], training: bool = False) -> None:
        super().check(shape, training)
        if any((side + 1) % 32 > 7 for side in shape[2:]):
            raise ValueError(
                f"{self.name} takes heights and widths of 32m - 1 to 32m + 6 (31 to 38, 63 to 70, ..., 223 to 230), got "
                f"{listed(shape[2:])}; resize to multiples of 32"
            )


class BNInception(nn.Sequential):
    """(N, C, H, W) -> (N, classes): its stages one after the other; `state_dict` has the released network's names."""

    def __init__(self, stages: OrderedDict[str, nn.Module]) -> None:
        super().__init__(stages)
        self.released = {key: _released(key) for key in super().state_dict()}
        self.register_state_dict_post_hook(_to_released)
        self.register_load_state_dict_pre_hook(_from_released)


def bn_inception(num_classes: int = 1000, in_channels: int = 3) -> BNInception:
    """(N, in_channels, 224, 224) -> (N, num_classes): the public network."""
    conv = partial(ConvBNReLU, bias=True)
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        conv1_7x7_s2=conv(in_channels, 64, 7, 2, 3),
        pool1_3x3_s2=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2_3x3_reduce=conv(64, 64, 1),
        conv2_3x3=conv(64, 192, 3, 1, 1),
        pool2_3x3_s2=nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    channels = 192
    for name, row in FIGURE_5.items():
        stages[name] = inception(channels, row)
        channels = stages[name].out_channels
    stages["global_pool"] = nn.AdaptiveAvgPool2d(1)
    stages["flatten"] = nn.Flatten()
    stages["last_linear"] = nn.Linear(channels, num_classes)
    model = BNInception(stages).apply(init_fan_in)
    model.register_forward_pre_hook(EvenGrids("bn_inception", in_channels, (224, 224), exact=False, least=31))
    return model


def _released(key: str) -> str:
    """The released network's name of a parameter or buffer of this one.

    >>> _released("inception_3a.3x3.0.bn.weight")
    'inception_3a_3x3_reduce_bn.weight'
    """
    stage, *path, last = key.split(".")
    if not path:
        return key
    *layer, part = path
    name = "_".join([stage, RELEASED[".".join(layer)]] if layer else [stage])
    return f"{name}{'_bn' if part == 'bn' else ''}.{last}"


def _to_released(model: BNInception, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    for ours, theirs in model.released.items():
        if prefix + ours in state:
            state[prefix + theirs] = state.pop(prefix + ours)


def _from_released(model: BNInception, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    for ours, theirs in model.released.items():
        if prefix + theirs in state:
            state[prefix + ours] = state.pop(prefix + theirs)
