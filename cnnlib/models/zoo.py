"""What exists: one row a network.

A row names its builder as `file.function` of this folder, which is imported when the network is built. `size` is the
paper's input; `least` is the smallest height and width that it takes, or None where only `size` fits; `answering` is a
smaller one that it takes where its auxiliary head keeps quiet. A network that pads everywhere would compute on a single
pixel: its `least` is the product of its strides, at which the last maps have one. The published figures stand in
`data/papers/`, under the same names.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from cnnlib.errors import unknown
from cnnlib.paths import data_dir

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Row:
    """One line of the table below; `reference` is the key in `book/references.bib`."""

    name: str
    builder: str
    title: str
    year: int
    reference: str
    size: tuple[int, int]
    least: int | None
    channels: int = 3
    classes: int = 1000
    aliases: tuple[str, ...] = ()
    answering: int | None = None


# fmt: off
ZOO = (
    Row("lenet5_1998", "lenet.lenet5_1998", "LeNet-5",              1998, "lecun1998gradient", (32, 32), None, 1, 10),
    Row("lenet5",      "lenet.lenet5",      "LeNet-5, modernised",  1998, "lecun1998gradient", (32, 32), None, 1, 10),
    # AlexNet, ZFNet
    Row("alexnet",           "alexnet.alexnet",           "AlexNet",                    2012, "krizhevsky2012imagenet", (227, 227), None),
    Row("alexnet_ungrouped", "alexnet.alexnet_ungrouped", "AlexNet, one tower",         2012, "krizhevsky2012imagenet", (227, 227), None),
    Row("caffenet",          "alexnet.caffenet",          "CaffeNet",                   2014, "jia2014caffe",           (227, 227), None),
    Row("alexnet_owt",       "alexnet.alexnet_owt",       "AlexNet, torchvision's",     2014, "krizhevsky2014weird",    (224, 224), 63),
    Row("zfnet",             "zfnet.zfnet",               "ZFNet",                      2013, "zeiler2014visualizing",  (224, 224), None),
    Row("zfnet_wide",        "zfnet.zfnet_wide",          "ZFNet, wide",                2013, "zeiler2014visualizing",  (224, 224), None),
    # VGG
    Row("vgg_a",     "vgg.vgg_a",     "VGG A",     2014, "simonyan2015very", (224, 224), 32, aliases=("vgg11",)),
    Row("vgg_a_lrn", "vgg.vgg_a_lrn", "VGG A-LRN", 2014, "simonyan2015very", (224, 224), 32),
    Row("vgg_b",     "vgg.vgg_b",     "VGG B",     2014, "simonyan2015very", (224, 224), 32, aliases=("vgg13",)),
    Row("vgg_c",     "vgg.vgg_c",     "VGG C",     2014, "simonyan2015very", (224, 224), 32),
    Row("vgg_d",     "vgg.vgg_d",     "VGG D",     2014, "simonyan2015very", (224, 224), 32, aliases=("vgg16",)),
    Row("vgg_e",     "vgg.vgg_e",     "VGG E",     2014, "simonyan2015very", (224, 224), 32, aliases=("vgg19",)),
    Row("vgg11_bn",  "vgg.vgg11_bn",  "VGG A, torchvision's with batch norm", 2014, "simonyan2015very", (224, 224), 32, aliases=("vgg_a_bn",)),
    Row("vgg13_bn",  "vgg.vgg13_bn",  "VGG B, torchvision's with batch norm", 2014, "simonyan2015very", (224, 224), 32, aliases=("vgg_b_bn",)),
    Row("vgg16_bn",  "vgg.vgg16_bn",  "VGG D, torchvision's with batch norm", 2014, "simonyan2015very", (224, 224), 32, aliases=("vgg_d_bn",)),
    Row("vgg19_bn",  "vgg.vgg19_bn",  "VGG E, torchvision's with batch norm", 2014, "simonyan2015very", (224, 224), 32, aliases=("vgg_e_bn",)),
    # Network in network
    Row("nin", "nin.nin", "Network in network", 2013, "lin2014network", (32, 32), 4, classes=10),
    # GoogLeNet, Inception, Xception
    Row("googlenet",    "googlenet.googlenet",       "GoogLeNet",                2014, "szegedy2015going", (224, 224), None),
    Row("googlenet_bn", "googlenet.googlenet_bn",    "GoogLeNet, torchvision's", 2014, "szegedy2015going", (224, 224), 15),
    Row("bn_inception", "bn_inception.bn_inception", "BN-Inception",             2015, "ioffe2015batch", (224, 224), 31),
    Row("inception_v3", "inception_v3.inception_v3", "Inception-v3",             2015, "szegedy2016rethinking", (299, 299), 299, answering=75),
    Row("inception_v4", "inception_v4.inception_v4", "Inception-v4",             2016, "szegedy2017inception", (299, 299), 75),
    Row("inception_resnet_v1", "inception_v4.inception_resnet_v1", "Inception-ResNet-v1, released", 2016, "szegedy2017inception", (299, 299), 75),
    Row("inception_resnet_v2", "inception_v4.inception_resnet_v2", "Inception-ResNet-v2, released", 2016, "szegedy2017inception", (299, 299), 75),
    Row("inception_resnet_v1_paper", "inception_v4.inception_resnet_v1_paper", "Inception-ResNet-v1, the figures'", 2016, "szegedy2017inception", (299, 299), 75),
    Row("inception_resnet_v2_paper", "inception_v4.inception_resnet_v2_paper", "Inception-ResNet-v2, the figures'", 2016, "szegedy2017inception", (299, 299), 75),
    Row("xception",     "xception.xception",         "Xception",                 2016, "chollet2017xception", (299, 299), 39),
    # Highway
    Row("highway19",  "highway.highway19",  "Highway, 19 layers",       2015, "srivastava2015training", (32, 32), 4, classes=10),
    Row("highway32",  "highway.highway32",  "Highway, 32 thin layers",  2015, "srivastava2015training", (32, 32), 4, classes=10),
    Row("highway_fc", "highway.highway_fc", "Highway, fully connected", 2015, "srivastava2015training", (28, 28), None, 1, 10),
    # Plain and residual networks
    Row("plain18",        "resnet.plain18",        "plain-18",                  2015, "he2016deep", (224, 224), 32),
    Row("plain34",        "resnet.plain34",        "plain-34",                  2015, "he2016deep", (224, 224), 32),
    Row("resnet18",       "resnet.resnet18",       "ResNet-18",                 2015, "he2016deep", (224, 224), 32),
    Row("resnet34",       "resnet.resnet34",       "ResNet-34",                 2015, "he2016deep", (224, 224), 32),
    Row("resnet50",       "resnet.resnet50",       "ResNet-50",                 2015, "he2016deep", (224, 224), 32),
    Row("resnet101",      "resnet.resnet101",      "ResNet-101",                2015, "he2016deep", (224, 224), 32),
    Row("resnet152",      "resnet.resnet152",      "ResNet-152",                2015, "he2016deep", (224, 224), 32),
    Row("resnet50_v1_5",  "resnet.resnet50_v1_5",  "ResNet-50, torchvision's",  2015, "he2016deep", (224, 224), 32),
    Row("resnet101_v1_5", "resnet.resnet101_v1_5", "ResNet-101, torchvision's", 2015, "he2016deep", (224, 224), 32),
    Row("resnet152_v1_5", "resnet.resnet152_v1_5", "ResNet-152, torchvision's", 2015, "he2016deep", (224, 224), 32),
    Row("plain20",        "resnet.plain20",        "plain-20 for CIFAR",        2015, "he2016deep", (32, 32), 4, classes=10),
    Row("plain32",        "resnet.plain32",        "plain-32 for CIFAR",        2015, "he2016deep", (32, 32), 4, classes=10),
    Row("plain44",        "resnet.plain44",        "plain-44 for CIFAR",        2015, "he2016deep", (32, 32), 4, classes=10),
    Row("plain56",        "resnet.plain56",        "plain-56 for CIFAR",        2015, "he2016deep", (32, 32), 4, classes=10),
    Row("plain110",       "resnet.plain110",       "plain-110 for CIFAR",       2015, "he2016deep", (32, 32), 4, classes=10),
    Row("resnet20",       "resnet.resnet20",       "ResNet-20 for CIFAR",       2015, "he2016deep", (32, 32), 4, classes=10),
    Row("resnet32",       "resnet.resnet32",       "ResNet-32 for CIFAR",       2015, "he2016deep", (32, 32), 4, classes=10),
    Row("resnet44",       "resnet.resnet44",       "ResNet-44 for CIFAR",       2015, "he2016deep", (32, 32), 4, classes=10),
    Row("resnet56",       "resnet.resnet56",       "ResNet-56 for CIFAR",       2015, "he2016deep", (32, 32), 4, classes=10),
    Row("resnet110",      "resnet.resnet110",      "ResNet-110 for CIFAR",      2015, "he2016deep", (32, 32), 4, classes=10),
    Row("resnet1202",     "resnet.resnet1202",     "ResNet-1202 for CIFAR",     2015, "he2016deep", (32, 32), 4, classes=10),
    # Pre-activation residual networks
    Row("preact_resnet110",  "preact_resnet.preact_resnet110",  "ResNet-110, pre-activation",  2016, "he2016identity", (32, 32), 4, classes=10),
    Row("preact_resnet164",  "preact_resnet.preact_resnet164",  "ResNet-164, pre-activation",  2016, "he2016identity", (32, 32), 4, classes=10),
    Row("preact_resnet1001", "preact_resnet.preact_resnet1001", "ResNet-1001, pre-activation", 2016, "he2016identity", (32, 32), 4, classes=10),
    Row("preact_resnet200",  "preact_resnet.preact_resnet200",  "ResNet-200, pre-activation",  2016, "he2016identity", (224, 224), 32),
    # ResNeXt
    Row("resnext50_32x4d",  "resnext.resnext50_32x4d",  "ResNeXt-50, 32x4d",            2016, "xie2017aggregated", (224, 224), 32),
    Row("resnext101_64x4d", "resnext.resnext101_64x4d", "ResNeXt-101, 64x4d",           2016, "xie2017aggregated", (224, 224), 32),
    Row("resnext29_8x64d",  "resnext.resnext29_8x64d",  "ResNeXt-29, 8x64d, for CIFAR", 2016, "xie2017aggregated", (32, 32), 4, classes=10),
    # DenseNet
    Row("densenet121",           "densenet.densenet121",           "DenseNet-121",                     2016, "huang2017densely", (224, 224), 29),
    Row("densenet161",           "densenet.densenet161",           "DenseNet-161",                     2016, "huang2017densely", (224, 224), 29),
    Row("densenet169",           "densenet.densenet169",           "DenseNet-169",                     2016, "huang2017densely", (224, 224), 29),
    Row("densenet201",           "densenet.densenet201",           "DenseNet-201",                     2016, "huang2017densely", (224, 224), 29),
    Row("densenet264",           "densenet.densenet264",           "DenseNet-264",                     2016, "huang2017densely", (224, 224), 29),
    Row("densenet40_k12",        "densenet.densenet40_k12",        "DenseNet (L=40, k=12)",            2016, "huang2017densely", (32, 32), 4, 3, 10),
    Row("densenet40_k12_2k",     "densenet.densenet40_k12_2k",     "DenseNet (L=40, k=12), 2k initial maps", 2016, "huang2017densely", (32, 32), 4, 3, 10),
    Row("densenet40_k12_halved", "densenet.densenet40_k12_halved", "DenseNet (L=40, k=12), pytorchcv's", 2016, "huang2017densely", (32, 32), 4, 3, 10),
    Row("densenet100_k12",       "densenet.densenet100_k12",       "DenseNet (L=100, k=12)",           2016, "huang2017densely", (32, 32), 4, 3, 10),
    Row("densenet100_k24",       "densenet.densenet100_k24",       "DenseNet (L=100, k=24)",           2016, "huang2017densely", (32, 32), 4, 3, 10),
    Row("densenet_bc100_k12",    "densenet.densenet_bc100_k12",    "DenseNet-BC (L=100, k=12)",        2016, "huang2017densely", (32, 32), 4, 3, 10),
    Row("densenet_bc190_k40",    "densenet.densenet_bc190_k40",    "DenseNet-BC (L=190, k=40)",        2016, "huang2017densely", (32, 32), 4, 3, 10),
    Row("densenet_bc250_k24",    "densenet.densenet_bc250_k24",    "DenseNet-BC (L=250, k=24)",        2016, "huang2017densely", (32, 32), 4, 3, 10),
    # Fully convolutional networks
    Row("fcn32s", "fcn.FCN32s", "FCN-32s", 2015, "long2015fully", (500, 500), 1, classes=21),
    Row("fcn16s", "fcn.FCN16s", "FCN-16s", 2015, "long2015fully", (500, 500), 1, classes=21),
    Row("fcn8s",  "fcn.FCN8s",  "FCN-8s",  2015, "long2015fully", (500, 500), 1, classes=21),
    # After DenseNet
    Row("vit_b_16",      "vit.vit_b_16",           "ViT-B/16",          2020, "dosovitskiy2021image",  (224, 224), None),
    Row("convnext_tiny", "convnext.convnext_tiny", "ConvNeXt-T",        2022, "liu2022convnet",        (224, 224), 32),
    Row("mobilenet_v1",  "mobilenet.mobilenet_v1", "MobileNet (1.0)",   2017, "howard2017mobilenets",  (224, 224), 32),
    Row("se_resnet50", "se_resnet.se_resnet50", "SE-ResNet-50", 2017, "hu2018squeeze", (224, 224), 32),
    # Small sisters, our own, for what a page computes and two cores train
    Row("small_vgg",         "small.small_vgg",         "small VGG, ours",               2026, "simonyan2015very",       (28, 28), None, 1, 10),
    Row("small_alexnet",     "small.small_alexnet",     "small AlexNet, ours",           2026, "krizhevsky2012imagenet", (28, 28), None, 1, 10),
    Row("small_alexnet_128", "small.small_alexnet_128", "small AlexNet, ours",           2026, "krizhevsky2012imagenet", (128, 128), None, 3, 10),
    Row("densenet22_k12",    "small.densenet22_k12",    "DenseNet (L=22, k=12), ours",   2026, "huang2017densely",       (32, 32), 4, 3, 10),
    Row("stack_net",         "stacks.stack_net",        "stacks of filters, ours",       2026, "simonyan2015very",       (28, 28), None, 1, 10),
)
# fmt: on

_ROWS = {row.name: row for row in ZOO}
_ALIASES = {alias: row.name for row in ZOO for alias in row.aliases}


@dataclass(frozen=True)
class Card:
    """What is known of a network before it is built.

    `input_shape` is (C, H, W); `least` is the smallest height and width, equal to the paper's where only that fits;
    `published` maps a quantity (`params`, `macs`, ...) to what `data/papers/` holds of it: value, source, check.
    """

    name: str
    title: str
    year: int
    reference: str
    input_shape: tuple[int, int, int]
    num_classes: int
    least: int
    published: dict[str, Any]
    paper: str


def list_models() -> list[str]:
    """The names that `build` and `card` take, in the order of the table (aliases left out)."""
    return list(_ROWS)


def _row(name: str) -> Row:
    name = _ALIASES.get(name, name)
    if name not in _ROWS:
        raise unknown("model", name, [*_ROWS, *_ALIASES])
    return _ROWS[name]


@functools.cache
def papers() -> dict[str, Any]:
    """All published tables of `data/papers/*.yml`, merged; a name that stands in two files is an error."""
    merged: dict[str, Any] = {}
    for path in sorted((data_dir() / "papers").glob("*.yml")):
        for key, table in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if key in merged:
                raise ValueError(f"data/papers/{path.name} has {key!r}, which another file there has too; keep one")
            merged[key] = table
    return merged


def card(name: str) -> Card:
    """Title, year, paper, input shape and published figures of a network, without building it.

    >>> card("lenet5_1998").input_shape
    (1, 32, 32)
    """
    row = _row(name)
    published = dict(papers().get(row.name, {}))
    return Card(
        name=row.name,
        title=row.title,
        year=row.year,
        reference=row.reference,
        input_shape=(row.channels, *row.size),
        num_classes=row.classes,
        least=row.least or min(row.size),
        published=published,
        paper=published.pop("paper", row.reference),
    )


@dataclass(frozen=True)
class Figures:
    """A line of the list of all networks: `macs` are those at `macs_at`, (C, H, W); `receptive_field` is in pixels."""

    name: str
    title: str
    year: int
    input_shape: tuple[int, int, int]
    num_classes: int
    least: int
    reference: str
    paper: str
    params: int | None
    macs: int | None
    macs_at: tuple[int, int, int]
    receptive_field: int | str | None


def overview() -> list[Figures]:
    """Every network with its figures from `data/papers/`, each of which the tests compute again from the network.

    >>> [(row.year, row.params) for row in overview() if row.name == "vgg_d"]
    [(2014, 138357544)]
    """
    rows = []
    for known in map(card, list_models()):
        params, macs, field = (known.published.get(key) or {} for key in ("params", "macs", "receptive_field"))
        rows.append(
            Figures(
                *(known.name, known.title, known.year, known.input_shape, known.num_classes),
                *(known.least, known.reference, known.paper, params.get("value"), macs.get("value")),
                macs_at=tuple(macs.get("at", known.input_shape)),
                receptive_field=field.get("value"),
            )
        )
    return rows


def build(name: str, *, num_classes: int | None = None, in_channels: int | None = None, **options: Any) -> nn.Module:
    """The network `name` with fresh weights from the current random state.

    `num_classes` and `in_channels` default to the paper's; further `options` are those of the network's builder.
    ValueError for a name, an option or a number that does not fit; the network itself refuses images that do not.
    """
    row = _row(name)
    for what, number in (("num_classes", num_classes), ("in_channels", in_channels)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(
                f"{what} must be a whole number of at least 1, got {number!r}; leave it out for the paper's"
            )
    module, function = row.builder.split(".")
    builder = getattr(importlib.import_module(f"cnnlib.models.{module}"), function)
    taken = [p for p in inspect.signature(builder).parameters if p not in ("num_classes", "in_channels")]
    for option in options:
        if option not in taken:
            way_out = f"it takes {', '.join(taken)}" if taken else "it takes num_classes and in_channels only"
            raise ValueError(f"{row.name} has no option {option!r}; {way_out}")
    channels = in_channels or row.channels
    model = builder(num_classes=num_classes or row.classes, in_channels=channels, **options)

    from cnnlib.models.blocks import InputGuard

    least = row.least or min(row.size)
    answering = row.answering or least
    if options.get("aux_logits") is False:
        least = answering
    guard = InputGuard(row.name, channels, row.size, row.least is None, least, answering)
    model.register_forward_pre_hook(guard)
    return model
