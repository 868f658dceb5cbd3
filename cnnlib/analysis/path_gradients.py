"""How strong the gradient is along single paths of a residual network.

paper     Veit, Wilber, Belongie 2016, arXiv:1605.06431, section 5
follows   after an ordinary forward pass, the gradient comes back through the branch of k random blocks and through the
          skip of the others; its norm at the image, times the number of paths of length k
differs   evaluation mode, where batch normalisation lets no image see another, and the norm of each image's own
          gradient; the paper does not say how it did. Norms of paths add up to more than the norm of the whole gradient,
          since gradients of different paths partly cancel; only the gradients themselves add up

The gradient is the sum of the gradients along all 2^n paths in every network, since the way back is linear.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlib import tables
from cnnlib.analysis.editing import Editor, batches, check_data, home, lent
from cnnlib.analysis.prices import Passes, priced
from cnnlib.analysis.residual_paths import in_series, narrowest, path_lengths, random_sets
from cnnlib.graph import Graph, trace
from cnnlib.progress import progress


def along_path(model: nn.Module, images: Tensor, path: tuple[str, ...] | list[str]) -> Tensor:
    """What the network computes for (N, C, H, W) if each block in `path` lets only its branch through, each other only
    its skip; for a linear network these values add up, over all paths, to its answer."""
    graph = trace(model, tuple(images.shape[1:]))
    blocks = {block.name: block for block in in_series(graph)}
    for name in path:
        if name not in blocks:
            raise tables.missing("residual block", name, blocks)
    editor = Editor(graph)
    for name, block in blocks.items():
        dropped, kept = (block.skip, block.residual) if name in path else (block.residual, block.skip)
        editor.zero(block.add, dropped, like=kept)
    with lent(graph), torch.no_grad():
        network = editor.module()
        parts = batches(graph, images, images, batch=len(images))
        return torch.cat([network(x.to(**home(graph))) for x, _ in parts])


@dataclass(frozen=True)
class PathGradient:
    """Sampled paths of one length: `norms` has the gradient's norm at the image of each, a mean over the images.

    `paths` is how many paths of this length there are.
    """

    length: int
    paths: int
    norms: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.norms)

    @property
    def std(self) -> float | None:
        """Over the sampled paths; None for one path."""
        return statistics.stdev(self.norms) if len(self.norms) > 1 else None

    @property
    def total(self) -> float:
        """Norm of a path times how many paths there are: what paths of this length could bring at most."""
        return self.paths * self.mean


@dataclass(frozen=True, repr=False)
class PathGradients(tables.Rows[PathGradient]):
    """The rows of `gradient_by_path_length`, by length; `full` is the norm of the whole gradient, `images` how many."""

    network: str
    images: int
    full: float
    rows: tuple[PathGradient, ...]

    def __getitem__(self, length: int) -> PathGradient:
        return self.rows[length]

    def shares(self) -> list[float]:
        """The share of the summed norms that each length brings; they add up to 1."""
        total = math.fsum(row.total for row in self.rows)
        if total == 0:
            raise ValueError("no path carries any gradient to the image, so lengths have no shares")
        return [row.total / total for row in self.rows]

    def effective(self, share: float = 0.95) -> tuple[int, int]:
        """The fewest neighbouring lengths, first and last, that bring at least this `share` of the summed norms."""
        return narrowest(self.shares(), share)

    _COLUMNS = (
        "blocks crossed",
        "paths",
        "gradient of a path",
        "std",
        "sampled",
        "share of paths",
        "share of gradient",
    )

    def _lines(self) -> list[tuple[object, ...]]:
        paths = sum(row.paths for row in self.rows)
        return [
            (
                row.length,
                row.paths,
                f"{row.mean:.3g}",
                "" if row.std is None else f"{row.std:.2g}",
                len(row.norms),
                f"{100 * row.paths / paths:.2f} %",
                f"{100 * share:.2f} %",
            )
            for row, share in zip(self.rows, self.shares())
        ]

    def _title(self) -> str:
        return f"{self.network}: norm of the gradient at the image by path length, mean over {self.images} images"

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS)

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS)


class _Gate(torch.autograd.Function):
    """The value forward; backward its gradient, or none while the valve is shut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, valve: Valve) -> Tensor:
        ctx.valve = valve
        return x.clone()  # what comes after may write over it

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        return (gradient if ctx.valve.open else None), None


class Valve(nn.Module):
    """Passes values on, and gradients back while it is `open`."""

    def __init__(self) -> None:
        super().__init__()
        self.open = True

    def forward(self, x: Tensor) -> Tensor:
        return _Gate.apply(x, self)


def _passes(model: nn.Module, images: Tensor, labels: Tensor, *, draws: int, batch: int, **_: object) -> Passes:
    blocks = len(in_series(trace(model, tuple(images.shape[1:]))))
    back = 1 + sum(min(draws, math.comb(blocks, k)) for k in range(blocks + 1))
    return Passes(tuple(images.shape[1:]), forward=len(images), backward=len(images) * back, batch=batch)


@priced(_passes)
def gradient_by_path_length(
    model: nn.Module, images: Tensor, labels: Tensor, *, draws: int = 10, seed: int = 0, batch: int = 100
) -> PathGradients:
    """How strong the loss's gradient is at the image when it comes back along single paths (section 5).

    `images` (N, C, H, W) as the network takes them and `labels` (N,). For every length k, `draws` random sets of k
    blocks: backward, the gradient passes those only through their branch and the other blocks only through their skip,
    after an ordinary forward pass. The norm is each image's own, of its own cross entropy; rows hold the mean over the
    images. The network must have blocks in series; it stays as it was. See `price` for what it costs.
    """
    graph = trace(model, tuple(images.shape[1:]))
    check_data(images, labels)
    blocks = in_series(graph)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, the paths sampled of a length, got {draws}")
    names = tuple(block.name for block in blocks)
    paths = [path for k in range(len(blocks) + 1) for path in random_sets(names, k, draws, seed)]
    sums = torch.zeros(len(paths) + 1, dtype=torch.float64)

    def add_up(number: int, gradients: Tensor) -> None:
        sums[number] += gradients.flatten(1).double().norm(dim=1).sum().cpu()

    gradients_along(graph, images, labels, [None, *paths], add_up, batch)
    full, *norms = (sums / len(images)).tolist()
    by_length: dict[int, list[float]] = {k: [] for k in range(len(blocks) + 1)}
    for path, norm in zip(paths, norms):
        by_length[len(path)].append(norm)
    rows = tuple(PathGradient(k, count, tuple(by_length[k])) for k, count in enumerate(path_lengths(len(blocks))))
    return PathGradients(type(model).__name__, len(images), full, rows)


def gradients_along(
    graph: Graph,
    images: Tensor,
    labels: Tensor,
    paths: Sequence[frozenset[str] | None],
    see: Callable[[int, Tensor], None],
    batch: int = 100,
) -> None:
    """Call `see(number, gradient)` for each of `paths` (None: all at once) and each batch of images.

    The gradient (n, C, H, W) is that of each image's cross entropy at the image. One forward pass serves all paths.
    """
    editor = Editor(graph)
    valves: dict[str, tuple[Valve, Valve]] = {}
    for block in in_series(graph):
        valves[block.name] = (Valve(), Valve())
        for operand, valve in zip((block.skip, block.residual), valves[block.name]):
            editor.through(block.add, operand, valve)
    parts = batches(graph, images, labels, batch)
    steps = progress(range(len(parts) * len(paths)), "gradients along paths", total=len(parts) * len(paths))
    with lent(graph), torch.enable_grad():
        network = editor.module()
        for x, y in parts:
            x = x.detach().to(**home(graph)).clone().requires_grad_()
            loss = F.cross_entropy(network(x), y.to(x.device), reduction="sum")
            for number, path in enumerate(paths):
                next(steps)
                for name, (skip, branch) in valves.items():
                    skip.open = path is None or name not in path
                    branch.open = path is None or name in path
                (gradient,) = torch.autograd.grad(loss, x, retain_graph=True, allow_unused=True)
                see(number, torch.zeros_like(x) if gradient is None else gradient)
    next(steps, None)  # lets the bar go
