"""What exists: one row a network.

A row names its builder as `file.function` of this folder, which is imported when the network is built. `size` is the
paper's input; `least` is the smallest height and width that it takes, or None where only `size` fits. The published
figures stand in `data/papers/`, under the same names.
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


# fmt: off
ZOO = (
    Row("lenet5_1998", "lenet.lenet5_1998", "LeNet-5",              1998, "lecun1998gradient", (32, 32), None, 1, 10),
    Row("lenet5",      "lenet.lenet5",      "LeNet-5, modernised",  1998, "lecun1998gradient", (32, 32), None, 1, 10),
    # AlexNet, ZFNet
    # VGG
    # Network in network
    # GoogLeNet, Inception, Xception
    # Highway
    # Plain and residual networks
    # Pre-activation residual networks
    # ResNeXt
    # DenseNet
    # Fully convolutional networks
    # After DenseNet
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

    guard = InputGuard(row.name, channels, row.size, exact=row.least is None, least=row.least or min(row.size))
    model.register_forward_pre_hook(guard)
    return model
