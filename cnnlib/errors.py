"""How cnnlib says no: the rule, the value received, a way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, given: object, known: Iterable[str]) -> ValueError:
    """The error for a name that does not exist, with the nearest that does.

    >>> raise unknown("model", "lenet6", ["lenet5", "resnet20"])
    Traceback (most recent call last):
    ...
    ValueError: no model 'lenet6'; did you mean 'lenet5'?
    >>> raise unknown("model", "ResNet-2O", ["resnet32", "resnet20"])
    Traceback (most recent call last):
    ...
    ValueError: no model 'ResNet-2O'; did you mean 'resnet20'?
    """
    known = list(known)
    alike = [name for name in known if _seen(name) == _seen(str(given))]
    near = alike or get_close_matches(str(given).lower(), known, n=1, cutoff=0.6)
    way_out = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
    return ValueError(f"no {kind} {given!r}; {way_out}")


def _seen(name: str) -> str:
    """A name as the eye takes it in: O and 0 are one sign, l and 1 too, and neither capitals nor hyphens count."""
    return "".join(c for c in name.lower().translate(str.maketrans("oli", "011")) if c.isalnum())


def listed(shape: Iterable[int]) -> str:
    """A shape as a page prints it: `1x32x32`."""
    return "x".join(str(size) for size in shape)
