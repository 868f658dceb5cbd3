"""Occlusion maps: what a network answers while a grey square hides one part of the image after another.

Zeiler and Fergus 2013, arXiv:1311.2901, section 4.2 and figure 7: where the probability of the right class falls, the
network looks; a second map shows its most frequent answer. The square stands at every `stride`-th row and column, and
the last one is cut off by the border, so that each pixel is hidden at least once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from cnnlib.analysis.folding import folded
from cnnlib.analysis.local import Local
from cnnlib.analysis.prices import Passes, priced
from cnnlib.errors import listed
from cnnlib.progress import progress


@dataclass(frozen=True, eq=False)
class OcclusionMap:
    """What a network answers for one image with a square at each of (rows, columns) places.

    `label` is the class that is watched, `size` the image's (H, W) and `square` the square's, in pixels; the square at
    place (i, j) begins at pixel (`tops[i]`, `lefts[j]`). `probability` (rows, columns) is that of the watched class,
    `answer` (rows, columns) the most probable class; `unhidden` and `answer_unhidden` are those of the image itself.
    """

    label: int
    size: tuple[int, int]
    square: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    probability: Tensor
    answer: Tensor
    unhidden: float
    answer_unhidden: int

    @property
    def drop(self) -> Tensor:
        """(rows, columns): by how much the square lowers the probability of the watched class."""
        return self.unhidden - self.probability

    @property
    def lowest(self) -> tuple[int, int]:
        """The place (row, column) of the square where the watched class is least probable; the first of equals."""
        return divmod(int(self.probability.argmin()), len(self.lefts))

    @property
    def answers(self) -> dict[int, int]:
        """At how many places each class is the most probable, the most frequent first."""
        counts = Counter(self.answer.flatten().tolist())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def hidden(self, row: int, column: int) -> tuple[int, int, int, int]:
        """The pixels (top, left, bottom, right) that the square hides at a place, the last two beyond its end."""
        top, left = self.tops[row], self.lefts[column]
        return top, left, min(top + self.square[0], self.size[0]), min(left + self.square[1], self.size[1])

    def drop_by_pixel(self) -> Tensor:
        """(H, W): the mean drop over all squares that hide a pixel."""
        total, count = (torch.zeros(self.size, dtype=self.probability.dtype) for _ in range(2))
        drop = self.drop
        for row, column in product(range(len(self.tops)), range(len(self.lefts))):
            top, left, bottom, right = self.hidden(row, column)
            total[top:bottom, left:right] += drop[row, column]
            count[top:bottom, left:right] += 1
        return total / count

    def __repr__(self) -> str:
        (row, column), (frequent, times) = self.lowest, next(iter(self.answers.items()))
        return (
            f"class {self.label}: probability {self.unhidden:.3f}, under a square of {listed(self.square)} from "
            f"{self.probability.max():.3f} down to {self.probability.min():.3f} (rows from {self.tops[row]}, columns "
            f"from {self.lefts[column]}); answer {frequent} at {times} of {self.answer.numel()} places"
        )


def softmax(scores: Tensor) -> Tensor:
    """Scores (N, classes) as probabilities."""
    return scores.softmax(dim=1)


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 1 for n in pair):
        raise ValueError(f"{name} must be a whole number of pixels, or (height, width), at least 1; got {value!r}")
    return pair


def places(extent: int, square: int, stride: int) -> tuple[int, ...]:
    """Where squares begin along an axis of `extent` pixels: every `stride`, until the last pixel is hidden.

    >>> places(10, 4, 3), places(10, 4, 4)
    ((0, 3, 6), (0, 4, 8))
    """
    return tuple(range(0, extent - square + stride, stride))


@dataclass(frozen=True)
class _Grid:
    """The places of the square on images (N, C, H, W)."""

    images: Tensor
    square: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def places(self) -> int:
        return len(self.tops) * len(self.lefts)


def _grid(images: Tensor, square: int | tuple[int, int], stride: int | tuple[int, int]) -> _Grid:
    if not isinstance(images, Tensor) or images.ndim not in (3, 4) or not images.numel():
        raise ValueError(
            "images must be a tensor (N, C, H, W), or one image (C, H, W), prepared as the network takes them; got "
            f"{tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__}"
        )
    images = images if images.ndim == 4 else images[None]
    if not images.is_floating_point():
        raise ValueError(f"images must be floats, prepared as the network takes them; got {images.dtype}")
    sides, steps = _pair("square", square), _pair("stride", stride)
    for side, step, extent in zip(sides, steps, images.shape[2:]):
        if side > extent:
            raise ValueError(f"square must fit into the image, {listed(images.shape[2:])}; got {listed(sides)}")
        if step > side:
            raise ValueError(
                f"stride must be at most the square, {listed(sides)}, or pixels are never hidden; got {listed(steps)}"
            )
    tops, lefts = (places(n, side, step) for n, side, step in zip(images.shape[2:], sides, steps))
    return _Grid(images, sides, tops, lefts)


def _passes(
    model: nn.Module,
    images: Tensor,
    labels: Sequence[int] | Tensor | None,
    *,
    square: int | tuple[int, int],
    stride: int | tuple[int, int],
    batch: int | None,
    **_: object,
) -> Passes:
    grid = _grid(images, square, stride)
    shape = tuple(grid.images.shape[1:])
    return Passes(shape, forward=len(grid.images) * (1 + grid.places), batch=batch or 64)


@priced(_passes)
def occlusion_maps(
    model: nn.Module,
    images: Tensor,
    labels: Sequence[int] | Tensor | None = None,
    *,
    square: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    value: float | Sequence[float] | Tensor = 0.0,
    probabilities: Callable[[Tensor], Tensor] = softmax,
    batch: int | None = None,
) -> list[OcclusionMap]:
    """What the network answers for each image with a square of one colour at every place, one map an image.

    `images` are (N, C, H, W), prepared as the network takes them; `labels` (N,) are the classes to watch, by default
    those that the network answers. `square` and `stride` are in pixels; `value` is the square's colour, one number or
    one a channel, in the units of the images: 0 is the mean of the training set where that was subtracted.
    `probabilities` makes them of what the network returns. `batch` squares go through at once, by default as many as
    keep the largest map in the processor's cache. Priced.
    """
    grid = _grid(images, square, stride)
    first = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), grid.images)
    inputs = grid.images.detach().to(first.device, first.dtype)
    colour = _colour(value, inputs)
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1; got {batch}; leave it out for as many as the cache holds")
    local = Local(folded(model, tuple(inputs.shape[1:])), grid.square, grid.tops, grid.lefts)
    batches = _batches(grid, batch or _batch(local))
    unhidden: list[Tensor] = []
    answers: list[list[Tensor]] = [[] for _ in inputs]
    steps = product(range(len(inputs)), batches)
    with torch.inference_mode():
        for i, (rows, columns) in progress(steps, "Occlusion", total=len(inputs) * len(batches)):
            if not answers[i]:
                hidden = local.on(inputs[i], colour)
                unhidden.append(_scored(hidden.unchanged, probabilities, 1)[0])
                _check_labels(labels, len(inputs), len(unhidden[0]))
            answers[i].append(_scored(hidden(rows, columns), probabilities, len(rows)))
    watched = [int(p.argmax()) for p in unhidden] if labels is None else [int(label) for label in labels]
    return [_map(grid, *one) for one in zip(watched, unhidden, answers)]


def _map(grid: _Grid, label: int, unhidden: Tensor, answers: list[Tensor]) -> OcclusionMap:
    by_place = torch.cat(answers).reshape(len(grid.tops), len(grid.lefts), -1).cpu()
    return OcclusionMap(
        label=label,
        size=tuple(grid.images.shape[2:]),
        square=grid.square,
        tops=grid.tops,
        lefts=grid.lefts,
        probability=by_place[..., label].clone(),
        answer=by_place.argmax(-1),
        unhidden=float(unhidden[label]),
        answer_unhidden=int(unhidden.argmax()),
    )


def _batches(grid: _Grid, batch: int) -> list[tuple[Tensor, Tensor]]:
    """The rows and columns of all places of the square, `batch` at a time."""
    places = torch.cartesian_prod(torch.arange(len(grid.tops)), torch.arange(len(grid.lefts)))
    return [part.unbind(1) for part in places.split(batch)]


def _colour(value: float | Sequence[float] | Tensor, inputs: Tensor) -> Tensor:
    colour = torch.as_tensor(value, dtype=inputs.dtype, device=inputs.device).flatten()
    if len(colour) not in (1, inputs.shape[1]):
        raise ValueError(
            f"value must be one number or one for each of the {inputs.shape[1]} channels; got {len(colour)} numbers"
        )
    return colour


def _scored(scores: Tensor, probabilities: Callable[[Tensor], Tensor], images: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != images:
        what = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"the network must return scores (N, classes); for {images} images it returned {what}")
    return probabilities(scores)


def _check_labels(labels: Sequence[int] | Tensor | None, images: int, classes: int) -> None:
    if labels is None:
        return
    if len(labels) != images:
        raise ValueError(f"labels must be one an image: got {len(labels)} labels for {images} images")
    if not all(0 <= int(label) < classes for label in labels):
        watched = ", ".join(str(int(label)) for label in labels)
        raise ValueError(f"labels must be classes 0 .. {classes - 1} of the network; got {watched}")


def _batch(local: Local) -> int:
    """As many images as keep the largest map within about a megabyte, at least 8; on a GPU 256 times as much."""
    device = next((p.device.type for p in local.twin.parameters()), "cpu")
    largest = max(math.prod(node.shape) for node in local.graph if node.live and node.shape)
    return max(8, (2**18 if device == "cpu" else 2**26) // largest)
