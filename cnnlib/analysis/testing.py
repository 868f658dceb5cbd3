"""How the papers test: one crop or ten, the right class among the first k, several networks together.

Convention. Error = 1 - accuracy. Ten crops are the four corners and the centre, and their mirror images; the
probabilities of the crops are averaged (Krizhevsky, Sutskever, Hinton 2012, section 4.1), and so are those of several
networks (Simonyan and Zisserman 2014, section 4.4). Intervals are Wilson's (1927): where the true accuracy lies if the
test images are drawn by chance; they do not cover what another seed of the training would change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from cnnlib import tables
from cnnlib.analysis.folding import folded
from cnnlib.analysis.prices import Passes, priced
from cnnlib.progress import progress

Crops = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------
# Crops


def _size(images: Tensor, size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if images.ndim != 4:
        raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")
    if not (1 <= height <= images.shape[2] and 1 <= width <= images.shape[3]):
        raise ValueError(
            f"a crop must fit into the image, {images.shape[2]}x{images.shape[3]}, got {height}x{width}; "
            "enlarge or pad the images first"
        )
    return height, width


def centre_crop(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The centre of each image: (N, C, H, W) -> (N, 1, C, h, w)."""
    from torchvision.transforms.functional import center_crop

    return center_crop(images, list(_size(images, size)))[:, None]


def ten_crops(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Corners and centre of each image, and their mirror images: (N, C, H, W) -> (N, 10, C, h, w)."""
    from torchvision.transforms.functional import ten_crop

    return torch.stack(ten_crop(images, list(_size(images, size))), dim=1)


# ---------------------------------------------------------------------------------------------------------------
# Probabilities


def softmax(scores: Tensor) -> Tensor:
    """Scores (N, classes) as probabilities."""
    return scores.softmax(dim=1)


def _as_it_is(images: Tensor) -> Tensor:
    return images[:, None]


def _passes(model: nn.Module, images: Tensor, crops: Crops, *, batch: int, **_: object) -> Passes:
    made = crops(images[:1])
    return Passes(tuple(made.shape[2:]), forward=len(images) * made.shape[1], batch=batch)


@priced(_passes)
def predict(
    model: nn.Module,
    images: Tensor,
    crops: Crops = _as_it_is,
    *,
    probabilities: Callable[[Tensor], Tensor] = softmax,
    batch: int = 64,
) -> Tensor:
    """Probabilities (N, classes) for images (N, C, H, W), averaged over the crops that `crops` makes of them.

    `images` are prepared as the network takes them; `crops` maps (N, C, H, W) to (N, n, C, h, w), by default the image
    itself. `probabilities` makes them of what the network returns; `batch` is the number of crops that go through at
    once. The network stays as it was; batch norm is folded where it can be. Priced.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be (N, C, H, W) with N >= 1, got {tuple(images.shape)}")
    made = crops(images[:1])
    if made.ndim != 5 or len(made) != 1:
        raise ValueError(
            f"crops must make (N, n, C, h, w) of images (N, C, H, W), got {tuple(made.shape)} of {tuple(images[:1].shape)}"
        )
    twin = folded(model, tuple(made.shape[2:]))
    first = next((t for t in (*twin.parameters(), *twin.buffers()) if t.is_floating_point()), images)
    found = []
    with torch.inference_mode():
        for part in progress(images.split(max(1, batch // made.shape[1])), "Testing", unit="batch"):
            views = crops(part.to(first.device, first.dtype))
            scores = twin(views.flatten(0, 1))
            if not isinstance(scores, Tensor) or scores.ndim != 2:
                what = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(f"the network must return scores (N, classes), it returned {what}")
            found.append(probabilities(scores).unflatten(0, views.shape[:2]).mean(dim=1).cpu())
    return torch.cat(found).clone()


def ensemble(predictions: Iterable[Tensor]) -> Tensor:
    """The mean of several networks' probabilities (N, classes)."""
    stack = list(predictions)
    if not stack or any(p.shape != stack[0].shape or p.ndim != 2 for p in stack):
        shapes = ", ".join(str(tuple(p.shape)) for p in stack) or "none"
        raise ValueError(f"an ensemble needs one or more tables (N, classes) of one shape, got {shapes}")
    return torch.stack(stack).mean(dim=0)


# ---------------------------------------------------------------------------------------------------------------
# How often they are right


def wilson(correct: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share of which `correct` of `images` were drawn.

    >>> [round(end, 4) for end in wilson(9, 10)]
    [0.5958, 0.9821]
    """
    if not 0 <= correct <= images or images < 1:
        raise ValueError(f"0 <= correct <= images, and images >= 1, must hold; got {correct} of {images}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = correct / images, z * z / images
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / images + weight / (4 * images)) / (1 + weight)
    # At the ends the interval reaches 0 or 1 exactly, which floats miss by a hair.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == images else centre + half)


@dataclass(frozen=True)
class Share:
    """`correct` of `images`, with the interval that holds the true share at `confidence`."""

    correct: int
    images: int
    confidence: float = 0.95

    @property
    def accuracy(self) -> float:
        return self.correct / self.images

    @property
    def error(self) -> float:
        return 1 - self.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """Of the accuracy."""
        return wilson(self.correct, self.images, self.confidence)

    @property
    def error_interval(self) -> tuple[float, float]:
        low, high = self.interval
        return 1 - high, 1 - low

    def __str__(self) -> str:
        low, high = self.error_interval
        return f"{self.error:.2%} ({low:.2%} to {high:.2%})"


def top_k(probabilities: Tensor, labels: Tensor | Sequence[int], k: int = 1, confidence: float = 0.95) -> Share:
    """How often the right class is among the `k` most probable of (N, classes); of equals the lower number comes first."""
    if probabilities.ndim != 2 or not 1 <= k <= probabilities.shape[1]:
        raise ValueError(
            f"k must be 1 .. classes for probabilities (N, classes), got k = {k} and {tuple(probabilities.shape)}"
        )
    labels = torch.as_tensor(labels, device=probabilities.device)
    if labels.shape != probabilities.shape[:1]:
        raise ValueError(f"labels must be one an image: {len(probabilities)}, got {tuple(labels.shape)}")
    if not bool(((labels >= 0) & (labels < probabilities.shape[1])).all()):
        raise ValueError(
            f"labels must be classes 0 .. {probabilities.shape[1] - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
    if not bool(probabilities.isfinite().all()):
        raise ValueError("probabilities must be finite, and some are not; a network that diverged has no rank to count")
    right = probabilities.gather(1, labels[:, None])
    before = torch.arange(probabilities.shape[1], device=probabilities.device) < labels[:, None]
    ahead = (probabilities > right) | ((probabilities == right) & before)
    return Share(int((ahead.sum(dim=1) < k).sum()), len(labels), confidence)


@dataclass(frozen=True)
class ScoreRow:
    """One way of testing: which network (or how many together), how many crops, and the share right among the first k."""

    name: str
    crops: int
    top: dict[int, Share]


class ScoreTable(tables.Rows[ScoreRow]):
    """Rows of `score`; iterates them, and `table[name, crops]` is one of them."""

    def __init__(self, rows: Sequence[ScoreRow]) -> None:
        self.rows = tuple(rows)

    def __getitem__(self, key: tuple[str, int]) -> ScoreRow:
        for row in self.rows:
            if (row.name, row.crops) == key:
                return row
        raise tables.missing("row", f"{key[0]}, {key[1]} crops", [f"{r.name}, {r.crops} crops" for r in self.rows])

    def _lines(self) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
        share = next(iter(self.rows[0].top.values()))
        title = f"error on {share.images:,} images, with the interval at {share.confidence:.0%}"
        columns = ("network", "crops", *(f"top-{k} error" for k in self.rows[0].top))
        return title, columns, [(r.name, r.crops, *map(str, r.top.values())) for r in self.rows]

    def __repr__(self) -> str:
        return tables.text(*self._lines(), right=("crops",))

    def _repr_html_(self) -> str:
        return tables.html(*self._lines(), right=("crops",))


def score(
    models: nn.Module | Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor | Sequence[int],
    size: int | tuple[int, int],
    *,
    ks: Sequence[int] = (1, 5),
    confidence: float = 0.95,
    probabilities: Callable[[Tensor], Tensor] = softmax,
    batch: int = 64,
) -> ScoreTable:
    """Error of a network, or of several by name and of all together, by the centre crop of `size` and by ten crops.

    `images` (N, C, H, W) are prepared as the networks take them but for the crop; `ks` are the k of top-k.
    """
    named = dict(models) if isinstance(models, Mapping) else {type(models).__name__: models}
    ways = {1: lambda x: centre_crop(x, size), 10: lambda x: ten_crops(x, size)}
    found: dict[int, dict[str, Tensor]] = {}
    for crops, way in ways.items():
        found[crops] = {
            name: predict(model, images, way, probabilities=probabilities, batch=batch) for name, model in named.items()
        }
        if len(named) > 1:
            found[crops][f"all {len(named)} together"] = ensemble(found[crops].values())
    return ScoreTable(
        [
            ScoreRow(name, crops, {k: top_k(found[crops][name], labels, k, confidence) for k in ks})
            for name in found[1]
            for crops in ways
        ]
    )
