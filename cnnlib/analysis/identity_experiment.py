"""Can a block learn to do nothing? Plain and residual blocks trained to return what they are given.

He et al. 2015, section 3.1: were the identity the best that added layers can do, a solver should find it more easily by
driving a residual to zero than by fitting the identity with a stack of nonlinear layers. Here that is the whole task. A
block is the paper's of figure 2 with fully connected layers and a batch norm N behind each (section 3.4),
y = relu(F(x) + x) with F(x) = N2(W2 relu(N1(W1 x))), and the plain one is the same without "+ x". Inputs are fresh random
numbers at every step, cut at zero as behind a ReLU, so that no sign stands in the way of either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnlib.errors import unknown
from cnnlib.progress import progress

WAYS = ("plain", "residual")
BATCH = 64
MOMENTUM = 0.9
EPSILON = 1e-5


@dataclass(frozen=True)
class IdentityRun:
    """One training: `losses[t]` before step t, and after the last; 1 is as wrong as answering zeros, 0 is the identity.

    The loss is the mean square of y - x by the mean square of x, on a batch that was not seen before.
    """

    way: str
    blocks: int
    seed: int
    losses: tuple[float, ...]

    def steps_to(self, loss: float) -> int | None:
        """After how many steps the loss was first at most so large; None if it never was."""
        return next((step for step, value in enumerate(self.losses) if value <= loss), None)


def learn_identity(
    way: str,
    blocks: int,
    *,
    seeds: Sequence[int] = range(5),
    steps: int = 300,
    width: int = 16,
    lr: float = 0.1,
) -> tuple[IdentityRun, ...]:
    """Train `blocks` blocks of a way, "plain" or "residual", to be the identity on `width` numbers: a run a seed.

    SGD with momentum 0.9 on batches of 64; weights as He's for ReLU. All seeds are trained side by side, each with
    numbers of its own. ValueError for a way that does not exist, or a number below 1.
    """
    if way not in WAYS:
        raise unknown("way", way, WAYS)
    for name, value in (("blocks", blocks), ("steps", steps), ("width", width), ("the number of seeds", len(seeds))):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{name} must be a whole number of at least 1, got {value!r}; leave it out for the default"
            )
    if not (isinstance(lr, int | float) and 0 < lr < math.inf):
        raise ValueError(f"lr must be a number above 0, got {lr!r}; 0.1 is the default")
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    # All seeds in one tensor: (seeds, inputs, outputs).
    layers = [
        _Layer(
            torch.stack([torch.randn(width, width, generator=draw) * math.sqrt(2 / width) for draw in draws]),
            torch.ones(len(seeds), 1, width),
            torch.zeros(len(seeds), 1, width),
        )
        for _ in range(2 * blocks)
    ]
    parameters = [tensor.requires_grad_() for layer in layers for tensor in (layer.weight, layer.scale, layer.shift)]
    optimizer = torch.optim.SGD(parameters, lr, MOMENTUM)
    history = []
    with torch.enable_grad():
        for step in range(steps + 1):
            x = torch.stack([torch.randn(BATCH, width, generator=draw) for draw in draws]).relu()
            y = _answer(x, layers, way == "residual")
            wrong = (y - x).square().mean((1, 2)) / x.square().mean((1, 2))
            history.append(wrong.detach())
            if step < steps:
                optimizer.zero_grad()
                wrong.sum().backward()
                optimizer.step()
    curves = torch.stack(history, dim=1).tolist()
    return tuple(IdentityRun(way, blocks, seed, tuple(curve)) for seed, curve in zip(seeds, curves))


@dataclass(frozen=True, eq=False)
class _Layer:
    """(seeds, N, width) -> (seeds, N, width): a linear layer and a batch norm, for each seed its own."""

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        z = torch.bmm(x, self.weight)
        variance, mean = torch.var_mean(z, dim=1, correction=0, keepdim=True)
        return (z - mean) * torch.rsqrt(variance + EPSILON) * self.scale + self.shift


def _answer(x: Tensor, layers: Sequence[_Layer], shortcut: bool) -> Tensor:
    for first, second in zip(layers[::2], layers[1::2]):
        f = second(first(x).relu())
        x = (f + x if shortcut else f).relu()
    return x


def identity_runs(
    blocks: Sequence[int] = (1, 2, 4), *, seeds: Sequence[int] = range(5), steps: int = 300
) -> tuple[IdentityRun, ...]:
    """Both ways with each number of blocks, all seeds: what the figure shows, in some seconds."""
    pairs = [(way, count) for count in blocks for way in WAYS]
    return tuple(
        run
        for way, count in progress(pairs, "learning the identity", unit="network")
        for run in learn_identity(way, count, seeds=seeds, steps=steps)
    )
