"""Finding one published figure in `data/papers/`, with what is known of where it was read.

A reference is a path: `lenet5_1998.params`, `lenet5_1998.stages[c3].connections` (the row whose first column is `c3`),
`resnext_table5[ResNet-200 | 320].top1` (the row whose first two columns are these), `alexnet_layers[*].layer` (a whole
column). Unit, source and `check` are inherited from the nearest table above the figure that has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cnnlib.errors import unknown
from cnnlib.models.zoo import papers

# How a figure got into data/papers/, from the surest to the least sure.
TRUST = ("computed", "repo", "library", "text", "recalled")
_STEP = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")
_ABOUT = ("unit", "source", "check")


@dataclass(frozen=True)
class Figure:
    """A published figure: a number, a word, or a list of them; `check` is one of TRUST."""

    ref: str
    value: Any
    unit: str
    source: str
    check: str


def find(ref: str) -> Figure:
    """The figure that `ref` names; ValueError says which step of the path leads nowhere and what there is instead."""
    here: Any = papers()
    about = dict.fromkeys(_ABOUT, "")
    recalled: set[str] = set()
    columns: list[str] = []
    steps = list(_STEP.finditer(ref))
    if not steps or "".join(match.group() for match in steps) != ref.replace(".", ""):
        raise ValueError(f"a reference is a path such as 'lenet5_1998.params' or 'table[row].column', got {ref!r}")
    for match in steps:
        name, key = match.groups()
        if key is not None:
            columns, recalled, here = _row(here, key.strip(), ref, about)
        elif columns:
            here = _column(columns, here, name, ref)
            columns = []
        else:
            here = _child(here, name, ref)
        if isinstance(here, dict):
            about |= {field: str(here[field]) for field in _ABOUT if field in here}
        if recalled:
            about["check"] = "recalled"
    if isinstance(here, dict):
        if "value" not in here:
            raise ValueError(f"{ref!r} is a table, not a figure; go on with one of {', '.join(map(str, here))}")
        here = here["value"]
    if about["check"] not in TRUST:
        raise ValueError(
            f"{ref!r} does not say how it was read; give it or its table `check:` one of {', '.join(TRUST)}"
        )
    return Figure(ref, here, about["unit"], about["source"], about["check"])


def table(name: str) -> dict[str, Any]:
    """A whole published table, as it stands in `data/papers/`."""
    here = _child(papers(), name, name)
    if not isinstance(here, dict):
        raise ValueError(f"{name!r} is no table in data/papers/ but {here!r}")
    return here


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a published table with `columns` and `rows`, each as a dictionary."""
    found = table(name)
    if "columns" not in found or "rows" not in found:
        raise ValueError(f"{name!r} has no columns and rows in data/papers/; it has {', '.join(map(str, found))}")
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def _child(here: Any, name: str, ref: str) -> Any:
    if isinstance(here, list) and name.isdigit() and int(name) < len(here):
        return here[int(name)]
    if isinstance(here, dict):
        by_text = {str(key): value for key, value in here.items()}
        if name in by_text:
            return by_text[name]
        raise ValueError(f"{unknown('published figure', name, by_text)} (in the reference {ref!r})")
    raise ValueError(f"the reference {ref!r} goes on with {name!r} below {here!r}, which has nothing below it")


def _row(here: Any, key: str, ref: str, about: dict[str, str]) -> tuple[list[str], set[str], Any]:
    if not isinstance(here, dict) or "rows" not in here or "columns" not in here:
        raise ValueError(f"the reference {ref!r} asks for the row [{key}] of something that has no rows")
    keys = [part.strip() for part in key.split("|")]
    if key == "*":
        return here["columns"], set(), here["rows"]
    found = [row for row in here["rows"] if [str(cell) for cell in row[: len(keys)]] == keys]
    if not found:
        raise unknown(
            f"row of {ref.partition('[')[0]}", key, [" | ".join(map(str, r[: len(keys)])) for r in here["rows"]]
        )
    if len(found) > 1:
        raise ValueError(f"{len(found)} rows fit [{key}] in the reference {ref!r}; name further columns: [{key} | ...]")
    return here["columns"], {keys[0]} & {str(name) for name in here.get("recalled", [])}, found[0]


def _column(columns: list[str], here: Any, name: str, ref: str) -> Any:
    if name not in columns:
        raise ValueError(f"{unknown('column', name, columns)} (in the reference {ref!r})")
    index = columns.index(name)
    return [row[index] for row in here] if here and isinstance(here[0], list) else here[index]
