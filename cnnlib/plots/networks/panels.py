"""Panels of a drawing: one form of block, its branches side by side, or a mesh in layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cnnlib.plots.networks.canvas import LINE, MARGIN, Canvas, Text, kind_colour, short, width_of, wrapped
from cnnlib.plots.networks.parts import Fork, Form, Item, Mesh, Outline, Unit
from cnnlib.plots.style import INK

PARTS = 24  # parts of a mesh that are drawn; a larger one is counted


class Panel:
    """One form of block: branches as columns between the value that they share and the one they merge into."""

    def __init__(self, page: Canvas, form: Form) -> None:
        self.page = page
        self.form = form
        units = list(form.block.units())
        self.widths = {id(unit): widths for unit, widths in zip(units, form.widths())}
        self.sizes: dict[int, tuple[float, float]] = {}
        self.room = page.width - 2 * MARGIN
        meshes = [item for item in form.block.items if isinstance(item, Mesh)]
        body = self.series_size(form.block.items) if all(len(m.parts) <= PARTS for m in meshes) else (math.inf, 0)
        self.counted: list[Text] = []
        if body[0] > self.room:
            # Too entangled, or too many branches: what is in it instead of how it hangs together.
            self.counted = _counted(units)
            body = max(line.width for line in self.counted), LINE * len(self.counted)
        many = sum(len(entry.blocks) for entry in form.entries)
        title = f"{form.letter}  {form.title.lstrip('_')}".rstrip()
        room = max(body[0], width_of(title, True), 1.1)
        self.head = [Text(title, kind_colour(form.block.kind), True)]
        self.head += [Text(line) for line in wrapped(where(page.outline, form, 4).split(" "), room)]
        if many > 1:
            self.head.append(Text(f"{many} in all"))
        self.width = max([body[0], *(line.width for line in self.head)])
        self.body = body
        self.height = LINE * len(self.head) + 0.05 + body[1] + 0.16

    def draw(self, x: float, y: float) -> None:
        for line in self.head:
            self.page.text(x, y + LINE / 2, line, ha="left")
            y += LINE
        if self.counted:
            for line in self.counted:
                self.page.text(x, y + LINE / 2, line, ha="left")
                y += LINE
            return
        y += 0.05
        axis = x + self.body[0] / 2
        self.page.line([axis, axis], [y, y + 0.08])
        end = self.series(self.form.block.items, axis, y + 0.08)
        for foot in end:
            self.page.line([foot, foot], [y + 0.08 + self.body[1], y + self.body[1] + 0.14])
            self.page.arrow(foot, y + self.body[1] + 0.16, down=True)

    # Sizes ---------------------------------------------------------------------------------------------------------

    GAP = 0.09  # between one item and the next
    FORK = 0.08  # from the shared value to the columns, and from them to the merge
    COLUMN = 0.1  # between columns

    def unit_lines(self, unit: Unit) -> list[Text]:
        return self.page.unit_lines(unit, 1.0, self.widths.get(id(unit)))

    def size(self, item: Item) -> tuple[float, float]:
        if id(item) not in self.sizes:
            self.sizes[id(item)] = (
                self.unit_size(item)
                if isinstance(item, Unit)
                else self.fork_size(item)
                if isinstance(item, Fork)
                else _mesh_size(self, item)
            )
        return self.sizes[id(item)]

    def unit_size(self, unit: Unit) -> tuple[float, float]:
        lines = self.unit_lines(unit)
        return max(line.width for line in lines) + 0.12, LINE * len(lines) + 0.06

    def series_size(self, items: Sequence[Item]) -> tuple[float, float]:
        if not items:
            return 0.16, 0.0
        sizes = [self.size(item) for item in items]
        return max(w for w, _ in sizes), sum(h for _, h in sizes) + self.GAP * (len(items) - 1)

    def fork_size(self, fork: Fork) -> tuple[float, float]:
        columns = [self.column_size(times, branch) for times, branch in fork.columns()]
        width = sum(w for w, _ in columns) + self.COLUMN * (len(columns) - 1)
        height = 2 * self.FORK + max(h for _, h in columns)
        if fork.merge:
            height += self.FORK + self.merge_size(fork)[1]
        if fork.after:
            height += self.GAP + self.after_size(fork.after)[1]
        return max(width, self.merge_size(fork)[0]), height

    def column_size(self, times: int, branch: Sequence[Item]) -> tuple[float, float]:
        width, height = self.series_size(branch)
        return (max(width, 2 * width_of(f"×{times}", True) + 0.1), height + LINE) if times > 1 else (width, height)

    def merge_size(self, fork: Fork) -> tuple[float, float]:
        if fork.merge in ("add", "mul"):
            return 0.15, 0.15
        return width_of(self.merge_word(fork)) + 0.12, LINE + 0.05

    def merge_word(self, fork: Fork) -> str:
        return fork.detail or {"cat": "concat"}.get(fork.merge, fork.merge.replace("_", " "))

    def after_size(self, after: Sequence[str]) -> tuple[float, float]:
        lines = wrapped(after, 1.0)
        return max(map(width_of, lines)) + 0.12, LINE * len(lines) + 0.05

    # Drawing -------------------------------------------------------------------------------------------------------

    def series(self, items: Sequence[Item], axis: float, y: float) -> list[float]:
        """Draw items below each other from height y; returns where lines leave the last one."""
        feet = [axis]
        for i, item in enumerate(items):
            if i:
                for foot in feet:
                    self.page.line([foot, foot], [y, y + self.GAP])
                y += self.GAP
            draw = self.unit if isinstance(item, Unit) else self.fork if isinstance(item, Fork) else self.mesh
            feet = draw(item, axis, y)
            y += self.size(item)[1]
        return feet

    def unit(self, unit: Unit, axis: float, y: float) -> list[float]:
        width, height = self.size(unit)
        colour = kind_colour(unit.kind)
        self.page.used.add(colour)
        self.page.box(axis - width / 2, y, width, height, colour)
        for i, line in enumerate(self.unit_lines(unit)):
            self.page.text(axis, y + 0.03 + LINE * (i + 0.5), line)
        return [axis]

    def fork(self, fork: Fork, axis: float, y: float) -> list[float]:
        folded = fork.columns()
        columns = [self.column_size(times, branch) for times, branch in folded]
        total = sum(w for w, _ in columns) + self.COLUMN * (len(columns) - 1)
        deepest = max(h for _, h in columns)
        x = axis - total / 2
        bus, base = y + self.FORK, y + 2 * self.FORK + deepest
        axes, feet = [], []
        for (times, branch), (width, height) in zip(folded, columns):
            centre, top = x + width / 2, bus + self.FORK + (LINE if times > 1 else 0)
            axes.append(centre)
            self.page.line([centre, centre], [bus, top])
            if times > 1:
                self.page.text(centre + 0.04, top - LINE / 2 - 0.02, Text(f"×{times}", INK, True), ha="left")
            for foot in self.series(branch, centre, top):
                self.page.line([foot, foot], [bus + self.FORK + height, base + (self.FORK if fork.merge else 0)])
                feet.append(foot)
            x += width + self.COLUMN
        self.page.line([axis, axis], [y, bus])
        self.page.line([min(axes), max(axes)], [bus, bus])
        if not fork.merge:
            return feet
        base += self.FORK
        self.page.line([min(feet), max(feet)], [base, base])
        width, height = self.merge_size(fork)
        self.merge(fork, axis, base, width, height)
        if fork.after:
            y = base + height
            self.page.line([axis, axis], [y, y + self.GAP])
            self.after(fork.after, axis, y + self.GAP)
        return [axis]

    def merge(self, fork: Fork, axis: float, y: float, width: float, height: float) -> None:
        colour = kind_colour(fork.merge)
        self.page.used.add(colour)
        if fork.merge in ("add", "mul"):
            self.page.operator(fork.detail or fork.merge, axis, y + height / 2, height / 2, colour)
            return
        self.page.box(axis - width / 2, y, width, height, colour)
        self.page.text(axis, y + height / 2, Text(self.merge_word(fork), colour))

    def after(self, after: Sequence[str], axis: float, y: float) -> None:
        width, height = self.after_size(after)
        self.page.box(axis - width / 2, y, width, height, INK)
        for i, line in enumerate(wrapped(after, 1.0)):
            self.page.text(axis, y + 0.025 + LINE * (i + 0.5), Text(line))

    def mesh(self, mesh: Mesh, axis: float, y: float) -> list[float]:
        return _draw_mesh(self, mesh, axis, y)


def _counted(units: Sequence[Unit]) -> list[Text]:
    """Units by what they say, the most frequent first."""
    words = [unit.words() or " ".join(unit.after) for unit in units]
    counts = sorted(dict.fromkeys(words), key=words.count, reverse=True)
    lines = [f"{words.count(word)} × {word}" for word in counts[:8]]
    rest = sum(words.count(word) for word in counts[8:])
    return [
        Text(line)
        for line in [f"{len(units)} operations, too entangled to draw:", *lines, f"{rest} others"][: 10 if rest else 9]
    ]


# ---------------------------------------------------------------------------------------------------------------
# Meshes: layers of boxes with lines between them (Sugiyama, Tagawa, Toda 1981)


@dataclass(frozen=True)
class _Mesh:
    """A mesh laid out: where each part has its middle and its top, from the middle of the input's line.

    Part -1 is the input; parts from -2 down are places where a line passes a row.
    """

    places: dict[int, tuple[float, float]]
    sizes: dict[int, tuple[float, float]]
    lines: tuple[tuple[int, int], ...]
    left: float
    right: float
    height: float
    last: int


_BESIDE, _BELOW = 0.14, 0.16


def _mesh_rows(mesh: Mesh) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Parts in rows below all that they read, lines that skip rows with a place in each, few crossings."""
    level = {-1: 0}
    for i in range(len(mesh.parts)):
        level[i] = 1 + max([level[a] for a, b in mesh.links if b == i], default=0)
    rows: list[list[int]] = [[] for _ in range(max(level.values()) + 1)]
    for part, row in level.items():
        rows[row].append(part)
    lines, free = [], -2
    for a, b in mesh.links:
        last = a
        for row in range(level[a] + 1, level[b]):
            rows[row].append(free)
            lines.append((last, free))
            last, free = free, free - 1
        lines.append((last, b))
    for _ in range(4):
        for step in (range(1, len(rows)), range(len(rows) - 2, -1, -1)):
            for row in step:
                place = {part: i / max(len(r) - 1, 1) for r in rows for i, part in enumerate(r)}
                rows[row].sort(key=lambda part, place=place: _mean_beside(part, lines, place))
    return rows, lines


def _mean_beside(part: int, lines: Sequence[tuple[int, int]], place: dict[int, float]) -> float:
    beside = [place[a if b == part else b] for a, b in lines if part in (a, b)]
    return sum(beside) / len(beside) if beside else place[part]


def _mesh_laid(panel: Panel, mesh: Mesh) -> _Mesh:
    rows, lines = _mesh_rows(mesh)
    sizes = {part: _mesh_part_size(panel, mesh, part) for row in rows for part in row}
    x: dict[int, float] = {}
    for row in rows:
        total = sum(sizes[part][0] for part in row) + _BESIDE * (len(row) - 1)
        at = -total / 2
        for part in row:
            x[part] = at + sizes[part][0] / 2
            at += sizes[part][0] + _BESIDE
    for i in range(12):
        for row in rows[1:] if i % 2 == 0 else rows[-2::-1]:
            want = [_mean_beside(part, lines, x) for part in row]
            apart = [(sizes[a][0] + sizes[b][0]) / 2 + _BESIDE for a, b in pairwise(row)]
            rightward, leftward = list(want), list(want)
            for k, least in enumerate(apart):
                rightward[k + 1] = max(rightward[k + 1], rightward[k] + least)
            for k in range(len(apart) - 1, -1, -1):
                leftward[k] = min(leftward[k], leftward[k + 1] - apart[k])
            x.update((part, (a + b) / 2) for part, a, b in zip(row, rightward, leftward))
    y, places = 0.0, {}
    for row in rows:
        height = max(sizes[part][1] for part in row)
        for part in row:
            if part < -1:
                sizes[part] = (sizes[part][0], height)
            places[part] = (x[part] - x[-1], y + (height - sizes[part][1]) / 2)
        y += height + _BELOW
    left = min(place[0] - sizes[part][0] / 2 for part, place in places.items())
    right = max(place[0] + sizes[part][0] / 2 for part, place in places.items())
    return _Mesh(places, sizes, tuple(lines), left, right, y - _BELOW, rows[-1][-1])


def _mesh_part_size(panel: Panel, mesh: Mesh, part: int) -> tuple[float, float]:
    if part < 0:
        return 0.1, 0.0
    unit = mesh.parts[part]
    return (0.15, 0.15) if unit.kind in ("add", "mul") and not unit.after else panel.unit_size(unit)


def _mesh_size(panel: Panel, mesh: Mesh) -> tuple[float, float]:
    laid = _mesh_laid(panel, mesh)
    tail = panel.GAP + panel.after_size(mesh.after)[1] if mesh.after else 0
    return 2 * max(-laid.left, laid.right), laid.height + tail


def _draw_mesh(panel: Panel, mesh: Mesh, axis: float, y: float) -> list[float]:
    laid = _mesh_laid(panel, mesh)
    for part, (x, top) in laid.places.items():
        height = laid.sizes[part][1]
        if part >= 0:
            unit = mesh.parts[part]
            if unit.kind in ("add", "mul") and not unit.after:
                panel.page.used.add(kind_colour(unit.kind))
                middle = y + top + height / 2
                panel.page.operator(unit.detail or unit.kind, axis + x, middle, height / 2, kind_colour(unit.kind))
            else:
                panel.unit(unit, axis + x, y + top)
        elif part < -1:
            panel.page.line([axis + x] * 2, [y + top, y + top + height])
    for a, b in laid.lines:
        (xa, ya), (xb, yb) = laid.places[a], laid.places[b]
        panel.page.line([axis + xa, axis + xb], [y + ya + laid.sizes[a][1], y + yb])
    end = axis + laid.places[laid.last][0]
    if mesh.after:
        bottom = y + laid.height
        panel.page.line([end, end], [bottom, bottom + panel.GAP])
        panel.after(mesh.after, end, bottom + panel.GAP)
    return [end]


def where(drawn: Outline, form: Form, most: int) -> str:
    """Where a form stands in the network, in short: the stages that consist of it, else its entries."""
    names = []
    for stage in drawn.stages:
        whole = len(stage.entries) == 1
        for entry in stage.entries:
            if entry in form.entries:
                # Of a sequence that repeats, the names of one entry do not follow each other.
                blocks = [block.name for block in entry.blocks] if stage.times > 1 else [entry.name]
                names += [short(stage.name)] if whole else [short(name) for name in blocks]
    return ", ".join(names) if len(names) <= most else f"{names[0]} to {names[-1]}"
