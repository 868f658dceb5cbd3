"""Everything that a run depends on, on one screen."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from cnnlib.data import Cutout, HorizontalFlip, Preprocess, RandomCrop
from cnnlib.errors import unknown
from cnnlib.models import zoo
from cnnlib.training.parts import SGD, AdamW, Constant, Cosine, CrossEntropy, MaximumAPosteriori, Steps

# What a recipe may name in JSON. A part of your own trains as well, but cannot be written down.
PARTS = {
    part.__name__: part
    for part in (
        *(SGD, AdamW),
        *(Constant, Cosine, Steps),
        *(CrossEntropy, MaximumAPosteriori),
        *(RandomCrop, HorizontalFlip, Cutout, Preprocess),
    )
}


@dataclass(frozen=True)
class Recipe:
    """How one network is trained on one data set; durations in epochs, the seed is a field.

    `model`, `options` and `data` are names for `cnnlib.build` and `cnnlib.load_data`; leave them out for a network or a
    set of your own. `train_images` trains on that many images only, with the classes' shares kept.

    >>> Recipe(epochs=0)
    Traceback (most recent call last):
    ...
    ValueError: a recipe's epochs must be a whole number of at least 1, got 0
    """

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    train_images: int | None = None

    epochs: int = 10
    batch_size: int = 128
    optimizer: Any = SGD()  # noqa: RUF009  (frozen, as are the parts below)
    lr: float = 0.05
    weight_decay: float = 0.0
    schedule: Any = Cosine()  # noqa: RUF009
    warmup: float = 0.0
    criterion: Any = CrossEntropy()  # noqa: RUF009

    augment: tuple[Any, ...] = ()
    preprocess: Preprocess = Preprocess()  # noqa: RUF009
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            _require(_whole(value) and value >= least, name, f"a whole number of at least {least}", value)
        _require(self.seed < 2**63, "seed", "below 2 to the 63", self.seed)
        for name, rule, ok in (
            ("lr", "a number above 0", lambda value: value > 0),
            ("weight_decay", "a number of at least 0", lambda value: value >= 0),
            ("warmup", f"from 0 to the {self.epochs} epochs of the run", lambda value: 0 <= value <= self.epochs),
        ):
            value = getattr(self, name)
            _require(_finite(value) and ok(value), name, rule, value)
            object.__setattr__(self, name, float(value))
        subset = self.train_images
        _require(
            subset is None or (_whole(subset) and subset >= 1), "train_images", "None or a number of images", subset
        )
        for name in ("model", "data"):
            value = getattr(self, name)
            _require(value is None or isinstance(value, str), name, "a name or None", value)
        _require(_plain(self.options), "options", "a dict of plain JSON values", self.options)
        _require(isinstance(self.augment, tuple | list), "augment", "a tuple of augmentations", self.augment)
        object.__setattr__(self, "augment", tuple(self.augment))
        for name in ("optimizer", "schedule", "preprocess"):
            _require(callable(getattr(self, name)), name, "something that can be called", getattr(self, name))
        for step in self.augment:
            _require(callable(step), "augment", "augmentations that can be called", step)
        _require(
            hasattr(self.criterion, "loss") and hasattr(self.criterion, "scores"),
            *("criterion", "an object with loss(output, target) and scores(output)", self.criterion),
        )

    def but(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed: `recipe.but(seed=1)`."""
        names = [f.name for f in fields(self)]
        for name in changes:
            if name not in names:
                raise unknown("field of a recipe", name, names)
        return replace(self, **changes)

    def build(self) -> nn.Module:
        """The network `model` with the weights that `seed` draws; the caller's random state is left alone."""
        if self.model is None:
            raise ValueError("this recipe names no model; Recipe(model='lenet5') does, or build the network yourself")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return zoo.build(self.model, **self.options)

    def lr_at(self, epoch: float, step: float = 0.0) -> float:
        """The learning rate `epoch` epochs into the run; `step` is the length of one step in epochs, for the warm-up."""
        warm = min(1.0, (epoch + step) / self.warmup) if self.warmup else 1.0
        return self.lr * self.schedule(epoch, self.epochs) * warm

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values from which `from_json` makes an equal recipe."""
        return {f.name: _written(f.name, getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote; a field that is left out has its default."""
        names = [f.name for f in fields(cls)]
        for name in plain:
            if name not in names:
                raise unknown("field of a recipe", name, names)
        return cls(**{name: _read(value) if name != "options" else value for name, value in plain.items()})


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs between two recipes in JSON form, a phrase a field: `lr is 0.1 there and 0.05 here`."""
    return [
        f"{name} is {one.get(name)!r} there and {other.get(name)!r} here"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(options: object) -> bool:
    try:
        return isinstance(options, dict) and json.loads(json.dumps(options, allow_nan=False)) == options
    except (TypeError, ValueError):
        return False


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"a recipe's {name} must be {rule}, got {value!r}")


def _written(name: str, value: Any) -> Any:
    if name == "options":
        return json.loads(json.dumps(value))
    if isinstance(value, tuple):
        return [_written(name, item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    if PARTS.get(type(value).__name__) is not type(value):
        raise ValueError(
            f"the {name} {value!r} cannot be written down, since JSON can name only {', '.join(PARTS)}; "
            "a recipe with parts of your own can be trained, but not recorded or resumed"
        )
    return {"kind": type(value).__name__, **{f.name: _written(name, getattr(value, f.name)) for f in fields(value)}}


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read(item) for item in value)
    if isinstance(value, dict):
        settings = {name: _read(item) for name, item in value.items()}
        kind = settings.pop("kind", None)
        if kind not in PARTS:
            raise unknown("part of a recipe", kind, PARTS)
        names = [f.name for f in fields(PARTS[kind])]
        for name in settings:
            if name not in names:
                raise unknown(f"setting of {kind}", name, names)
        return PARTS[kind](**settings)
    return value
