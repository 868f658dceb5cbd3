"""Released weights: which network they belong to, where they are fetched, and why others are refused.

The table is `data/pretrained.yml`. A file is taken only if its sha256 begins with the digits in its name.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from cnnlib.errors import listed, unknown
from cnnlib.models.zoo import build, card
from cnnlib.paths import cache_dir, data_dir

# Released before torchvision renamed these parameters.
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
PATIENCE = 30  # seconds that a silent server is waited for


@dataclass(frozen=True)
class Release:
    """One file of released weights: the entry it belongs to, its published accuracy, the images it wants.

    `top1` and `top5` are % of ImageNet's validation set, one crop; `options` are those that `build` needs for it.
    """

    model: str
    torchvision: str
    weights: str
    file: str
    megabytes: float
    top1: float
    top5: float
    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    address: str
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def url(self) -> str:
        return self.address + self.file

    @property
    def digest(self) -> str:
        """The first digits of the file's sha256, which stand in its name."""
        return self.file.removesuffix(".pth").rsplit("-", 1)[1]

    def transform(self) -> Callable[[Any], Tensor]:
        """PIL image -> (3, crop, crop): shorter side to `resize`, central square, 0 to 1, normalised."""
        from torchvision.transforms import v2

        return v2.Compose(
            [
                v2.Resize(self.resize, interpolation=v2.InterpolationMode(self.interpolation), antialias=True),
                v2.CenterCrop(self.crop),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.mean, self.std),
            ]
        )


@functools.cache
def _table() -> dict[str, Any]:
    return yaml.safe_load((data_dir() / "pretrained.yml").read_text(encoding="utf-8"))


@functools.cache
def _all() -> tuple[Release, ...]:
    table = _table()
    return tuple(
        Release(
            **(line := dict(zip(table["columns"], row))),
            mean=tuple(table["mean"]),
            std=tuple(table["std"]),
            address=table["address"],
            options=table["options"].get(line["model"], {}),
            note=table["notes"].get(line["model"], ""),
        )
        for row in table["rows"]
    )


def releases(name: str | None = None) -> tuple[Release, ...]:
    """The released weights of one network, the usual ones first, or of all.

    ValueError for a network that has none, which names the one that the weights of the same name belong to.
    """
    if name is None:
        return _all()
    model = card(name).name
    found = tuple(row for row in _all() if row.model == model)
    if found:
        return found
    other = _table()["another_network"].get(model)
    if other:
        raise ValueError(
            f"the released weights that {name!r} makes one think of belong to {other['belongs_to']!r}: {other['why']}; "
            f"load_pretrained({other['belongs_to']!r})"
        )
    raise ValueError(
        f"torchvision has released no weights of {name!r}; it has of {', '.join(dict.fromkeys(r.model for r in _all()))}"
    )


def release(name: str, weights: str | None = None) -> Release:
    """One release of a network: the one called `weights` (`IMAGENET1K_V2`), or the usual one.

    >>> release("resnet50_v1_5").top1
    76.13
    """
    found = {row.weights: row for row in releases(name)}
    if weights is None:
        return next(iter(found.values()))
    if weights not in found:
        raise unknown(f"release of {name} called", weights, found)
    return found[weights]


def load_pretrained(
    name: str,
    weights: str | None = None,
    *,
    folder: str | Path | None = None,
    address: str | None = None,
    progress: bool = True,
) -> nn.Module:
    """The network `name` with torchvision's released weights, in evaluation mode; `release(name)` says what it wants.

    The file is looked for in `folder` (default: `pretrained` in cnnlib's cache) and in torch.hub's, else fetched from
    `address` into `folder`. ValueError where the weights are another network's or a file is not what its name says;
    FileNotFoundError where it is not here and cannot be fetched.
    """
    row = release(name, weights)
    folder = Path(folder) if folder is not None else cache_dir() / "pretrained"
    path = _find(row, folder)
    url = (address.rstrip("/") + "/" if address else row.address) + row.file
    state = torch.load(path, map_location="cpu", weights_only=True) if path else _fetch(row, url, folder, progress)
    model = build(row.model, **row.options)
    model.load_state_dict(_fitting(row.model, state, model), strict=True)
    return model.eval()


def check_weights(name: str, state_dict: Mapping[str, Tensor], of: str | None = None) -> None:
    """Raise ValueError unless the weights fit the network `name` key by key and can be taken for its own.

    `of` is the network that they were trained as. It must be given where they would fit a second network too, whose
    weights are the ones in circulation.
    """
    model = card(name).name
    with torch.device("meta"):
        network = build(model)
    _fitting(model, state_dict, network)
    other = _table()["another_network"].get(model)
    if of is not None and card(of).name != model:
        raise ValueError(
            f"these weights are of {of!r} and were asked to go into {name!r}, which they fit but where they mean "
            f"something else; build({of!r}).load_state_dict(...)"
        )
    if of is None and other and other["fits"]:
        raise ValueError(
            f"these weights fit {name!r} and {other['belongs_to']!r} alike: {other['why']}; "
            f"take {other['belongs_to']!r} for torchvision's, or say of={model!r} if they were trained as that"
        )


def _fitting(name: str, state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights under today's names, complete; ValueError that says what does not fit, and whose weights they are."""
    given = {_todays_name(key): value for key, value in state_dict.items()}
    wanted = model.state_dict()
    # Files of before 2018 do not count the batches that a batch norm has seen; evaluation does not either.
    counters = {k: torch.zeros((), dtype=torch.long) for k in wanted if k.endswith("num_batches_tracked")}
    given = {**{k: v for k, v in counters.items() if k not in given}, **given}
    if _shapes(given) == _shapes(wanted):
        return given
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    shape = [k for k in wanted if k in given and wanted[k].shape != given[k].shape]
    faults = [f"{len(keys)} {what} ({keys[0]})" for keys, what in ((missing, "missing"), (extra, "unknown")) if keys]
    if shape:
        key = shape[0]
        faults.append(
            f"{len(shape)} of another shape ({key}: {listed(given[key].shape)}, not {listed(wanted[key].shape)})"
        )
    owner = _owner(given)
    raise ValueError(
        f"these weights do not fit {name!r}: {', '.join(faults)}; "
        + (f"they fit {owner!r}" if owner else f"{name!r} takes what build({name!r}).state_dict() has")
    )


def _todays_name(key: str) -> str:
    for pattern, name in RENAMED:
        key = pattern.sub(name, key)
    return key


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}


def _owner(given: Mapping[str, Tensor]) -> str | None:
    """The network with released weights that these fit, or None."""
    for row in dict.fromkeys(row.model for row in _all()):
        with torch.device("meta"):
            if _shapes(build(row).state_dict()) == _shapes(given):
                return row
    return None


def _find(row: Release, folder: Path) -> Path | None:
    """The file where it lies already; ValueError if it is not what its name says."""
    for path in (folder / row.file, Path(torch.hub.get_dir()) / "checkpoints" / row.file):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not digest.startswith(row.digest):
                raise ValueError(
                    f"{path} is damaged or another file: its sha256 should begin with {row.digest} and begins with "
                    f"{digest[: len(row.digest)]}; delete it, and it is fetched again"
                )
            return path
    return None


def _fetch(row: Release, url: str, folder: Path, progress: bool) -> dict[str, Tensor]:
    """Download to a temporary name, compare the digest, move into `folder`; torch.hub leaves nothing where that fails."""
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    by_hand = (
        f"looked for {folder / row.file} and in {hub}; to put it there by hand, copy {row.file} "
        f"({row.megabytes:.0f} MB, sha256 {row.digest}...) from {row.url}"
    )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        return torch.hub.load_state_dict_from_url(
            url, model_dir=str(folder), map_location="cpu", progress=progress, check_hash=True, weights_only=True
        )
    except RuntimeError as error:
        if "invalid hash" not in str(error):
            raise
        raise ValueError(
            f"what {url} gave is not {row.file}: its sha256 does not begin with {row.digest}; it was thrown away; {by_hand}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"the weights {row.weights} of {row.model!r} are not here and could not be fetched from {url} "
            f"({' '.join(str(error).split()) or type(error).__name__}); {by_hand}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
