"""Rows of text as a table, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from html import escape
from typing import Generic, TypeVar

from cnnlib.errors import listed, unknown


def cell(value: object) -> str:
    """One value as a table shows it: 25,557,032; 64x112x112; nothing for None.

    >>> cell(25557032), cell((64, 112, 112)), cell(None), cell(15.5)
    ('25,557,032', '64x112x112', '', '15.5')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, tuple | list):
        return listed(value)
    return str(value)


def text(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> str:
    """A table in fixed width; the columns named in `right` are aligned to the right."""
    right = set(right)
    lines = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]

    def put(line: Sequence[str]) -> str:
        padded = (c.rjust(w) if name in right else c.ljust(w) for c, w, name in zip(line, widths, columns))
        return "  ".join(padded).rstrip()

    return "\n".join([title, put(lines[0]), put(["-" * w for w in widths]), *map(put, lines[1:])])


def html(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> str:
    """The same table as HTML, for a notebook."""
    right = set(right)

    def put(tag: str, line: Iterable[object]) -> str:
        aligned = (
            f'<{tag} style="text-align: {"right" if name in right else "left"}">{escape(cell(value))}</{tag}>'
            for value, name in zip(line, columns)
        )
        return f"<tr>{''.join(aligned)}</tr>"

    body = "".join(put("td", row) for row in rows)
    return f"<table><caption>{escape(title)}</caption><thead>{put('th', columns)}</thead><tbody>{body}</tbody></table>"


def missing(kind: str, given: object, known: Iterable[str]) -> ValueError:
    """The error for a row that does not exist, with the nearest that does, but never with hundreds."""
    known = list(known)
    if len(known) <= 20 or get_close_matches(str(given).lower(), known, n=1, cutoff=0.6):
        return unknown(kind, given, known)
    return ValueError(f"no {kind} {given!r} among {len(known)}; print the table to see their names")


Row = TypeVar("Row")


class Rows(Generic[Row]):
    """A table that iterates its `rows` and knows how many they are."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class NamedRows(Rows[Row]):
    """A table whose rows have names: `table[name]` is one of them; ValueError says the nearest where there is none."""

    def __contains__(self, name: object) -> bool:
        return any(row.name == name for row in self.rows)

    def __getitem__(self, name: str) -> Row:
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise missing("row", name, found)
        return found[name]
