"""One progress bar for everything that may take long; it stays away from what is over within two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 2.0  # seconds


def progress(steps: Iterable[T], what: str, *, total: int | None = None, unit: str = "step") -> Iterator[T]:
    """The same steps one after another; a bar titled `what` appears on stderr once they take over two seconds."""
    from tqdm import tqdm

    return iter(tqdm(steps, desc=what, total=total, unit=unit, delay=PATIENCE, leave=False, dynamic_ncols=True))
