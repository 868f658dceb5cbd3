"""The exchangeable parts of a recipe: optimisers, schedules of the learning rate, criteria.

Each is a small frozen object that does its one thing; another of the same shape serves as well.
An optimiser is called with parameters, learning rate and weight decay. A schedule is called with the time in epochs and
the length of the run, and returns what the learning rate is multiplied by. A criterion has `loss(output, target)` and
`scores(output)`, whose largest entry is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent; `momentum` 0 is the plain kind."""

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"SGD's momentum must be at least 0 and below 1, got {self.momentum!r}; 0.9 is usual")
        if self.nesterov and self.momentum == 0:
            raise ValueError("SGD with nesterov=True needs a momentum above 0, got 0; 0.9 is usual")

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, fused: bool
    ) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, lr, self.momentum, weight_decay=weight_decay, nesterov=self.nesterov, fused=fused
        )


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Kingma and Ba 2014; Loshchilov and Hutter 2017)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"AdamW's betas must be two numbers from 0 to below 1, got {self.betas!r}; (0.9, 0.999) is usual"
            )

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, fused: bool
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr, self.betas, self.eps, weight_decay, fused=fused)


@dataclass(frozen=True)
class Constant:
    """The same learning rate throughout."""

    def __call__(self, epoch: float, epochs: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """From 1 to `final` along half a cosine (Loshchilov and Hutter 2016, without restarts).

    >>> [round(Cosine()(epoch, 10), 3) for epoch in (0, 5, 10)]
    [1.0, 0.5, 0.0]
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.final <= 1:
            raise ValueError(f"Cosine's final must lie between 0 and 1, got {self.final!r}; 0 ends at nothing")

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclass(frozen=True)
class Steps:
    """Multiplied by `factor` at each epoch of `at`, counted from 0.

    >>> [round(Steps(at=(2, 4))(epoch, 6), 3) for epoch in (0, 1.9, 2, 4)]
    [1.0, 1.0, 0.1, 0.01]
    """

    at: tuple[float, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(self.at))
        if not self.at or list(self.at) != sorted(set(self.at)) or self.at[0] <= 0:
            raise ValueError(f"Steps' at must be rising epochs above 0, got {self.at!r}; e.g. at=(82, 123)")
        if not 0 < self.factor < 1:
            raise ValueError(f"Steps' factor must lie between 0 and 1, got {self.factor!r}; 0.1 is usual")

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.factor ** sum(epoch >= moment for moment in self.at)


@dataclass(frozen=True)
class CrossEntropy:
    """Outputs are logits, the largest wins; `label_smoothing` as Szegedy et al. 2015, section 7."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing!r}; 0 smooths nothing"
            )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """(N, K), (N,) -> (): the mean over the batch, in nats."""
        return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def scores(self, output: Tensor) -> Tensor:
        return output


@dataclass(frozen=True)
class MaximumAPosteriori:
    """Outputs are distances y, the smallest wins: mean(y_target + log(exp(-j) + sum_i exp(-y_i))).

    LeCun et al. 1998, equation 9, for `lenet5_1998`. `j` is the penalty of a rubbish class that keeps the sum away from
    zero: wrong classes that are farther away than j are left in peace.
    """

    j: float = 1.0

    def __post_init__(self) -> None:
        if not self.j > 0:
            raise ValueError(
                f"MaximumAPosteriori's j must be above 0 (the paper's equation 9), got {self.j!r}; try 1.0"
            )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """(N, K), (N,) -> (): the mean over the batch, in units of squared distance."""
        rubbish = output.new_full((len(output), 1), -self.j)
        competition = torch.logsumexp(torch.cat([rubbish, -output], dim=1), dim=1)
        return (output.gather(1, target[:, None]).squeeze(1) + competition).mean()

    def scores(self, output: Tensor) -> Tensor:
        return -output
