"""What a look at a network will cost, said before it is taken.

An instrument that sends many images through a network says how many (`@priced`); `price` times a few of them here and
multiplies. Multiply-adds: a pass back is counted as two forward, one for the gradient of the values and one for that of
the weights.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from cnnlib.analysis.costs import cost
from cnnlib.tracing import borrowed, copied

Instrument = TypeVar("Instrument", bound=Callable[..., Any])


@dataclass(frozen=True)
class Passes:
    """How many images of `shape` (C, H, W) go through the network, how many gradients come back, in batches of `batch`."""

    shape: tuple[int, int, int]
    forward: int
    backward: int = 0
    batch: int = 64


@dataclass(frozen=True)
class Price:
    """What a look costs: images forward and back, multiply-adds, and an estimate of the seconds on this machine.

    The seconds are those of the network as it is; an instrument that folds batch normalisation away takes less.
    """

    forward: int
    backward: int
    macs: int
    seconds: float

    def __str__(self) -> str:
        back = f", {self.backward:,} back" if self.backward else ""
        return (
            f"{self.forward:,} images forward{back}: {self.macs / 1e9:,.1f} GMAC, about {_duration(self.seconds)} here"
        )


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def priced(passes: Callable[..., Passes]) -> Callable[[Instrument], Instrument]:
    """Give an instrument its `passes`: of the same arguments, with the instrument's defaults, what goes through the network."""

    def give(instrument: Instrument) -> Instrument:
        instrument.passes = passes
        return instrument

    return give


def price(instrument: Callable[..., Any], model: nn.Module, *args: Any, **kwargs: Any) -> Price:
    """What `instrument(model, *args, **kwargs)` will cost on the device of the model; the network stays as it was.

    ValueError for a function that is not priced.
    """
    if not hasattr(instrument, "passes"):
        raise ValueError(
            f"{getattr(instrument, '__name__', instrument)!r} does not say what it sends through a network; "
            "of cnnlib.analysis, those do that say so in their description"
        )
    call = inspect.signature(instrument).bind(model, *args, **kwargs)
    call.apply_defaults()
    passes = instrument.passes(*call.args, **call.kwargs)
    seconds_forward, seconds_back = seconds_an_image(model, passes.shape, min(passes.batch, 16), passes.backward > 0)
    return Price(
        forward=passes.forward,
        backward=passes.backward,
        macs=cost(model, passes.shape).macs * (passes.forward + 2 * passes.backward),
        seconds=passes.forward * seconds_forward + passes.backward * seconds_back,
    )


def seconds_an_image(
    model: nn.Module, shape: tuple[int, int, int], batch: int, backward: bool = True
) -> tuple[float, float]:
    """Seconds that one image of a batch takes forward and back in evaluation mode; the better of two tries."""
    first = next(model.parameters(), torch.empty(0))
    x = torch.zeros(batch, *shape, device=first.device, dtype=first.dtype)
    with borrowed(model, copied):
        forward, back = [], []
        for _ in range(3):
            start = _now(x)
            with torch.set_grad_enabled(backward):
                y = model(x)
            middle = _now(x)
            if backward and y.requires_grad:
                y.sum().backward()
            forward.append((middle - start) / batch)
            back.append((_now(x) - middle) / batch)
    return min(forward[1:]), min(back[1:])


def _now(x: torch.Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
