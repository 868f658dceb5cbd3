"""Drawings of architectures, laid out from the outline of a traced graph.

Above, the stages in reading order: every stage a slab as high as the logarithm of its maps' side and as wide as the
logarithm of their number, so that halving the side or doubling the maps is the same step everywhere. Below, one panel
for each form of block, its branches side by side from the value that they share to the one that they merge into.
One unit of the axes is one inch on paper.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle
from matplotlib.textpath import TextPath

from cnnlib.graph import Graph
from cnnlib.plots.outlines import MERGES, Entry, Fork, Form, Head, Item, Mesh, Outline, Stage, Unit, outline
from cnnlib.plots.style import INK, KINDS, PALETTE

_COLOURS = {
    **KINDS,
    **dict.fromkeys(["max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "mean"], KINDS["pool"]),
    "attention": PALETTE["pink"],
    **dict.fromkeys(["conv_transpose", "upsample", "pixel_shuffle"], PALETTE["brown"]),
    **dict.fromkeys(["batch_norm", "layer_norm", "group_norm", "instance_norm"], PALETTE["teal"]),
    "local_response_norm": PALETTE["teal"],
    **dict.fromkeys(MERGES, PALETTE["red"]),
}
_WORDS = (
    ("convolution", "conv"),
    ("pooling", "pool"),
    ("fully connected", "linear"),
    ("attention", "attention"),
    ("upsampling", "upsample"),
    ("normalisation", "batch_norm"),
    ("merge", "add"),
)

_CONVS = ("conv", "conv_transpose")

SIZE = 7.0  # points, the least that reads on paper
LINE = 0.128  # inches from line to line
SLAB = 0.56  # height of the highest slab
GAP = 0.17  # between neighbours in the strip, where the arrow stands
_PARTS = 24  # parts of a mesh that are drawn; a larger one is counted
PANELS = 9  # forms of block that are drawn; further ones are only named


def draw_network(network: Graph | Outline, ax: Axes) -> Axes:
    """Draw a traced network as wide as the figure of `ax`, which gets the height that the drawing needs.

    The alt text is `describe(network)`. ValueError if the figure holds other axes or is less than 4 inches wide.
    """
    drawn = outline(network) if isinstance(network, Graph) else network
    figure = ax.figure
    if len(figure.axes) != 1 or figure is not ax.get_figure(root=True):
        raise ValueError(
            f"draw_network needs a figure of its own, got one with {len(figure.axes)} axes; use plt.subplots()"
        )
    width = figure.get_figwidth()
    if width < 4:
        raise ValueError(f"a drawing needs a figure of at least 4 inches, got {width:g}; use figsize=(7.2, 4)")
    page = _Page(ax, drawn, width)
    page.draw()
    figure.set_figheight(page.bottom)
    ax.set_position((0, 0, 1, 1))
    ax.set_xlim(0, width)
    ax.set_ylim(page.bottom, 0)
    ax.axis("off")
    return ax


# ---------------------------------------------------------------------------------------------------------------
# Text


@lru_cache(maxsize=4096)
def _width(text: str, bold: bool = False) -> float:
    """Inches that a line of text takes."""
    if not text.strip():
        return 0.0
    font = FontProperties(family=matplotlib.rcParams["font.family"], weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=SIZE, prop=font).get_extents().width) / 72


def _wrapped(words: Sequence[str], width: float, bold: bool = False, joint: str = " ") -> list[str]:
    lines: list[str] = []
    for word in words:
        longer = f"{lines[-1]}{joint}{word}" if lines else word
        if lines and _width(longer, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _broken(label: str, width: float) -> list[str]:
    """A label in lines, broken behind its commas where that is enough."""
    lines = _wrapped(re.split(r"(?<=,) ", label), width) if label else []
    return [part for line in lines for part in ([line] if _width(line) <= width else _wrapped(line.split(" "), width))]


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _short(name: str) -> str:
    """The last part of a path that says something: `denseblock1`, but `features.3`."""
    parts = name.split(".")
    for i in range(len(parts) - 1, -1, -1):
        if not parts[i].replace("–", "").isdigit():
            return ".".join(parts[i:])
    return name


def _colour(kind: str) -> str:
    return _COLOURS.get(kind, INK)


# ---------------------------------------------------------------------------------------------------------------
# What stands in one column of the strip


@dataclass(frozen=True)
class _Text:
    text: str
    colour: str = INK
    bold: bool = False

    @property
    def width(self) -> float:
        return _width(self.text, self.bold)


@dataclass(frozen=True)
class _Cell:
    """An entry of the strip: its slab and the lines under it. `above` is the name of a stage of several entries."""

    entry: Entry | None
    lines: tuple[_Text, ...]
    kind: str
    slab: tuple[float, float]
    times: int
    arrow: bool
    width: float
    above: str = ""
    hangs: tuple[tuple[_Text, ...], ...] = ()


class _Page:
    """The drawing while it is made: `bottom` is how far down it reaches."""

    def __init__(self, ax: Axes, drawn: Outline, width: float) -> None:
        self.ax = ax
        self.outline = drawn
        self.width = width
        self.bottom = 0.08
        self.margin = 0.08
        sides = [shape[-1] for shape in self._maps()]
        self.longest = math.log2(1 + max(sides, default=1))
        self.widest = math.log2(1 + max(shape[0] for shape in self._shapes()))
        self.used: set[str] = set()
        self.usual = _usual(drawn)

    def unit_lines(self, unit: Unit, width: float, widths: Sequence[int | None] | None = None) -> list[_Text]:
        """A unit in lines of at most `width`: what comes before it, its own words, and what after it is not usual."""
        colour, after = _colour(unit.kind), unit.after
        if unit.kind in _CONVS and self.usual:
            after = () if after == self.usual else after or ("nothing after",)
        own = unit.words(widths)
        lines = [_Text(line) for line in _wrapped(unit.before, width)]
        lines += [_Text(line, colour) for line in _broken(own, width)]
        return lines + [_Text(line) for line in _wrapped(after, width)]

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        yield self.outline.input_shape
        for entry in self.outline.entries():
            yield entry.shape or (1,)

    def _maps(self) -> Iterator[tuple[int, ...]]:
        return (shape for shape in self._shapes() if len(shape) == 3)

    def draw(self) -> None:
        self.strip()
        shown = self.outline.forms[:PANELS]
        self.panels([_Panel(self, form) for form in shown])
        left_out = self.outline.forms[PANELS:]
        if left_out:
            names = ", ".join(f"{form.letter} ({_where(self.outline, form, 1)})" for form in left_out)
            self.lines([f"not drawn: {names}"], self.margin, INK)
        self.legend()
        self.bottom += 0.06

    # Pieces --------------------------------------------------------------------------------------------------------

    def text(self, x: float, y: float, text: _Text, ha: str = "center") -> None:
        """One line whose middle is at height y."""
        self.ax.text(
            *(x, y, text.text),
            **{"ha": ha, "va": "center_baseline", "fontsize": SIZE, "color": text.colour},
            fontweight="bold" if text.bold else "normal",
        )

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str = INK) -> None:
        self.ax.plot(xs, ys, color=colour, lw=0.8, solid_capstyle="round", solid_joinstyle="round", zorder=1)

    def arrow(self, x: float, y: float, down: bool = False, colour: str = INK) -> None:
        """An arrowhead whose tip is at (x, y)."""
        a, b = 0.045, 0.022
        points = [(x, y), (x - b, y - a), (x + b, y - a)] if down else [(x, y), (x - a, y - b), (x - a, y + b)]
        self.ax.add_patch(Polygon(points, closed=True, fc=colour, ec="none", zorder=2))

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.ax.add_patch(
            FancyBboxPatch(
                *((x + 0.03, y + 0.03), width - 0.06, height - 0.06),
                **{"boxstyle": "round,pad=0.03,rounding_size=0.035", "fc": colour + "38", "ec": colour, "lw": 0.8},
                zorder=3,
            )
        )

    def lines(self, lines: Sequence[str], x: float, colour: str, bold: bool = False) -> None:
        for line in lines:
            self.text(x, self.bottom + LINE / 2, _Text(line, colour, bold), ha="left")
            self.bottom += LINE

    # The strip -----------------------------------------------------------------------------------------------------

    def strip(self) -> None:
        groups = list(self.groups())
        room = self.width - 2 * self.margin - GAP
        rows = _rows(groups, room)
        # As few rows as fit, and these about equally long.
        low, high = 0.0, room
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if len(_rows(groups, middle)) == len(rows) else (middle, high)
        rows = _rows(groups, high)
        widest = max(sum(cell.width for cell in row) + GAP * len(row) for row in rows)
        count = max(map(len, rows))
        gap = GAP + min((room + GAP - widest) / count, 2 * GAP)
        for i, row in enumerate(rows):
            self.row(row, gap, first=i == 0)

    def groups(self) -> Iterator[list[_Cell]]:
        shape = self.outline.input_shape
        lines = (_Text("input", INK, True), _Text(_shape(shape)))
        yield [self.cell(None, lines, "input", shape, 1, False)]
        for stage in self.outline.stages:
            yield [self.entry_cell(stage, entry) for entry in stage.entries]

    def entry_cell(self, stage: Stage, entry: Entry) -> _Cell:
        kind, colour = entry.block.kind, _colour(entry.block.kind)
        several = len(stage.entries) > 1
        times = 1 if stage.times > 1 else entry.times
        lines = [] if several else [_Text(_short(stage.name), colour, True)]
        form = self.outline.form_of(entry)
        if form:
            lines.append(_Text(f"block {form.letter}", colour, several))
            if entry.growth and times > 1:
                lines.append(_Text(f"k = {entry.growth}"))
        else:
            for unit in entry.block.units():
                lines += self.unit_lines(unit, 1.02)
        lines.append(_Text(_shape(entry.shape)))
        if entry.reads:
            lines += [_Text(line) for line in _wrapped(["reads", *_listed(map(_short, entry.reads))], 1.02)]
        hangs = [self.head_lines(head) for head in self.outline.heads if head.reads == entry.name]
        above = _short(stage.name) + (f"  ×{stage.times}" if stage.times > 1 else "") if several else ""
        return self.cell(entry, tuple(lines), kind, entry.shape, times, not entry.reads, above, tuple(hangs))

    def head_lines(self, head: Head) -> tuple[_Text, ...]:
        lines = [_Text(head.name, KINDS["output"], True)]
        for item in head.items:
            if isinstance(item, Unit):
                lines += self.unit_lines(item, 1.02)
            else:
                lines.append(_Text(f"{sum(1 for _ in item.units())} layers", INK))
        return (*lines, _Text(_shape(head.shape)))

    def cell(
        self,
        entry: Entry | None,
        lines: tuple[_Text, ...],
        kind: str,
        shape: Sequence[int],
        times: int,
        arrow: bool,
        above: str = "",
        hangs: tuple[tuple[_Text, ...], ...] = (),
    ) -> _Cell:
        side = shape[-1] if len(shape) == 3 else shape[0] if len(shape) == 2 else 1
        maps = shape[-1] if len(shape) == 2 else shape[0] if shape else 1
        high = SLAB * math.log2(1 + side) / max(self.longest, math.log2(1 + side))
        wide = 0.62 * math.log2(1 + maps) / self.widest
        repeated = f"×{times}" if times > 1 else ""
        slab = wide + 2 * (_width(repeated, True) + 0.05 if repeated else 0)
        width = max([slab, 0.3, *(line.width for line in lines), *(t.width for h in hangs for t in h)]) + 0.04
        return _Cell(entry, lines, kind, (wide, max(high, 0.05)), times, arrow, width, above, hangs)

    def row(self, cells: Sequence[_Cell], gap: float, first: bool) -> None:
        top = self.bottom + (LINE + 0.06 if any(cell.above for cell in cells) else 0.02)
        highest = max(max(cell.slab[1], 2 * LINE) + 0.07 * min(cell.times - 1, 2) for cell in cells)
        middle = top + highest / 2 + 0.03
        under = top + highest + 0.13
        x = self.margin + gap / 2
        lowest = under
        edges = []
        for i, cell in enumerate(cells):
            centre, colour = x + cell.width / 2, _colour(cell.kind)
            self.used.add(colour)
            self.slab(centre, middle, cell, colour)
            if cell.arrow and (i or not first):
                start = edges[-1] if edges else x - gap / 2
                end = centre - cell.slab[0] / 2 - 0.03
                self.line([start, end], [middle, middle])
                self.arrow(end, middle)
            right = centre + cell.slab[0] / 2 + (0.05 * min(cell.times - 1, 2) if cell.times > 1 else 0)
            edges.append(right + (_width(f"×{cell.times}", True) + 0.06 if cell.times > 1 else 0.02))
            y = under
            for line in cell.lines:
                self.text(centre, y, line)
                y += LINE
            for hang in cell.hangs:
                y = self.hang(centre, y, hang)
            lowest = max(lowest, y)
            x += cell.width + gap
        self.brackets(cells, gap, top - LINE / 2 - 0.04)
        self.bottom = lowest + 0.07

    def slab(self, centre: float, middle: float, cell: _Cell, colour: str) -> None:
        wide, high = cell.slab
        for back in range(min(cell.times - 1, 2), -1, -1):
            corner = (centre - wide / 2 + 0.035 * back, middle - high / 2 - 0.035 * back)
            face = colour + ("38" if back == 0 else "18")
            self.ax.add_patch(Rectangle(corner, wide, high, fc=face, ec=colour, lw=0.8, zorder=3 - 0.1 * back))
        if cell.times > 1:
            text = _Text(f"×{cell.times}", colour, True)
            self.text(centre + wide / 2 + 0.05 * min(cell.times - 1, 2), middle + 0.03, text, ha="left")

    def hang(self, centre: float, y: float, lines: Sequence[_Text]) -> float:
        """A head under its entry: a line down to its box; returns where the box ends."""
        y -= LINE / 2
        self.line([centre, centre], [y + 0.02, y + 0.14])
        self.arrow(centre, y + 0.15, down=True)
        top, width = y + 0.15, max(line.width for line in lines) + 0.1
        self.box(centre - width / 2, top, width, LINE * len(lines) + 0.06, KINDS["output"])
        for i, line in enumerate(lines):
            self.text(centre, top + 0.03 + LINE * (i + 0.5), line)
        self.used.add(KINDS["output"])
        return top + LINE * len(lines) + 0.14

    def brackets(self, cells: Sequence[_Cell], gap: float, y: float) -> None:
        """The name of each stage of several entries above them."""
        x = self.margin + gap / 2
        i = 0
        while i < len(cells):
            j = i
            while j + 1 < len(cells) and cells[i].above and cells[j + 1].above == cells[i].above:
                j += 1
            end = x + sum(cell.width for cell in cells[i : j + 1]) + gap * (j - i)
            if cells[i].above:
                colour = _colour(cells[i].kind)
                half = _width(cells[i].above, True) / 2 + 0.04
                centre = (x + end) / 2
                self.text(centre, y, _Text(cells[i].above, colour, True))
                for a, b in ((x, centre - half), (centre + half, end)):
                    if b > a:
                        self.line([a, b], [y, y], colour)
            x, i = end + gap, j + 1

    # Panels --------------------------------------------------------------------------------------------------------

    def panels(self, panels: Sequence[_Panel]) -> None:
        if not panels:
            return
        self.bottom += 0.02
        self.line([self.margin, self.width - self.margin], [self.bottom, self.bottom])
        self.bottom += 0.07
        space, left, right = 0.24, self.margin, self.width - self.margin
        # Each at the highest place where it fits beside and under those before it, there as far left as it goes.
        top, taken = self.bottom, []
        for panel in panels:
            starts = [left, *(x + w + space for x, _, w, _ in taken)]
            fitting = [x for x in starts if x + panel.width <= right + 1e-6] or [left]

            def lowest(x: float, panel: _Panel = panel) -> float:
                over = [b + h + 0.1 for a, b, w, h in taken if a < x + panel.width + space and x < a + w + space]
                return max([top, *over])

            x = min(fitting, key=lambda x: (round(lowest(x), 3), x))
            taken.append((x, lowest(x), panel.width, panel.height))
        for panel, (x, y, _, _) in zip(panels, taken):
            panel.draw(x, y)
        self.bottom = max(y + height for _, y, _, height in taken) + 0.1

    def legend(self) -> None:
        x, y = self.margin, self.bottom + LINE / 2
        words = [(word, _colour(kind)) for word, kind in _WORDS if _colour(kind) in self.used]
        notes = ["slabs: height = log of the side, width = log of the number of maps"]
        if any(unit.kind in ("conv", "conv_transpose") for unit in self.outline.units()):
            notes.append("3×3, 64 /2: kernel, maps, stride")
        if self.usual:
            notes.append(f"{' '.join(self.usual)} after each convolution where nothing else is said")
        for word, colour in [*words, *((note, "") for note in notes)]:
            need = _width(word) + (0.13 if colour else 0)
            if x > self.margin and x + need > self.width - self.margin:
                x, y = self.margin, y + LINE + 0.02
            if colour:
                self.ax.add_patch(Rectangle((x, y - 0.045), 0.09, 0.09, fc=colour + "38", ec=colour, lw=0.8))
                x += 0.13
            self.text(x, y, _Text(word), ha="left")
            x += _width(word) + 0.16
        self.bottom = y + LINE / 2


def _rows(groups: Sequence[Sequence[_Cell]], room: float) -> list[list[_Cell]]:
    """The cells in rows of at most `room`, a group in one row where it fits."""
    rows: list[list[_Cell]] = [[]]
    used = 0.0
    for group in groups:
        if rows[-1] and used + sum(cell.width + GAP for cell in group) - GAP > room:
            rows.append([])
            used = 0.0
        for cell in group:
            if rows[-1] and used + cell.width > room:
                rows.append([])
                used = 0.0
            rows[-1].append(cell)
            used += cell.width + GAP
    return rows


def _listed(names: Sequence[str] | Iterator[str]) -> list[str]:
    names = list(names)
    return [*(f"{name}," for name in names[:-2]), *names[-2:-1], "and", names[-1]] if len(names) > 1 else names


def _usual(drawn: Outline) -> tuple[str, ...]:
    """What follows at least three of four convolutions of a network that has many: said once, not at each."""
    after = [unit.after for unit in drawn.units() if unit.kind in _CONVS]
    most = max(dict.fromkeys(after), key=after.count, default=())
    return most if len(after) > 10 and after.count(most) >= 0.75 * len(after) else ()


def _where(drawn: Outline, form: Form, most: int) -> str:
    """Where a form stands in the network, in short: the stages that consist of it, else its entries."""
    names = []
    for stage in drawn.stages:
        whole = len(stage.entries) == 1
        for entry in stage.entries:
            if entry in form.entries:
                # Of a sequence that repeats, the names of one entry do not follow each other.
                blocks = [block.name for block in entry.blocks] if stage.times > 1 else [entry.name]
                names += [_short(stage.name)] if whole else [_short(name) for name in blocks]
    return ", ".join(names) if len(names) <= most else f"{names[0]} to {names[-1]}"


# ---------------------------------------------------------------------------------------------------------------
# Panels: one form of block


class _Panel:
    """One form of block: branches as columns between the value that they share and the one they merge into."""

    def __init__(self, page: _Page, form: Form) -> None:
        self.page = page
        self.form = form
        units = list(form.block.units())
        self.widths = {id(unit): widths for unit, widths in zip(units, form.widths())}
        self.sizes: dict[int, tuple[float, float]] = {}
        self.room = page.width - 2 * page.margin
        meshes = [item for item in form.block.items if isinstance(item, Mesh)]
        body = self.series_size(form.block.items) if all(len(m.parts) <= _PARTS for m in meshes) else (math.inf, 0)
        self.counted: list[_Text] = []
        if body[0] > self.room:
            # Too entangled, or too many branches: what is in it instead of how it hangs together.
            self.counted = _counted(units)
            body = max(line.width for line in self.counted), LINE * len(self.counted)
        many = sum(len(entry.blocks) for entry in form.entries)
        title = f"{form.letter}  {form.title.lstrip('_')}".rstrip()
        room = max(body[0], _width(title, True), 1.1)
        self.head = [_Text(title, _colour(form.block.kind), True)]
        self.head += [_Text(line) for line in _wrapped(_where(page.outline, form, 4).split(" "), room)]
        if many > 1:
            self.head.append(_Text(f"{many} in all"))
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

    def unit_lines(self, unit: Unit) -> list[_Text]:
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
        columns = [self.column_size(times, branch) for times, branch in _columns(fork)]
        width = sum(w for w, _ in columns) + self.COLUMN * (len(columns) - 1)
        height = 2 * self.FORK + max(h for _, h in columns)
        if fork.merge:
            height += self.FORK + self.merge_size(fork)[1]
        if fork.after:
            height += self.GAP + self.after_size(fork.after)[1]
        return max(width, self.merge_size(fork)[0]), height

    def column_size(self, times: int, branch: Sequence[Item]) -> tuple[float, float]:
        width, height = self.series_size(branch)
        return (max(width, 2 * _width(f"×{times}", True) + 0.1), height + LINE) if times > 1 else (width, height)

    def merge_size(self, fork: Fork) -> tuple[float, float]:
        if fork.merge in ("add", "mul"):
            return 0.15, 0.15
        return _width(self.merge_word(fork)) + 0.12, LINE + 0.05

    def merge_word(self, fork: Fork) -> str:
        return fork.detail or {"cat": "concat"}.get(fork.merge, fork.merge.replace("_", " "))

    def after_size(self, after: Sequence[str]) -> tuple[float, float]:
        lines = _wrapped(after, 1.0)
        return max(map(_width, lines)) + 0.12, LINE * len(lines) + 0.05

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
        colour = _colour(unit.kind)
        self.page.used.add(colour)
        self.page.box(axis - width / 2, y, width, height, colour)
        for i, line in enumerate(self.unit_lines(unit)):
            self.page.text(axis, y + 0.03 + LINE * (i + 0.5), line)
        return [axis]

    def fork(self, fork: Fork, axis: float, y: float) -> list[float]:
        folded = _columns(fork)
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
                self.page.text(centre + 0.04, top - LINE / 2 - 0.02, _Text(f"×{times}", INK, True), ha="left")
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
        colour = _colour(fork.merge)
        self.page.used.add(colour)
        if fork.merge in ("add", "mul"):
            _operator(self.page, fork.detail or fork.merge, axis, y + height / 2, height / 2, colour)
            return
        self.page.box(axis - width / 2, y, width, height, colour)
        self.page.text(axis, y + height / 2, _Text(self.merge_word(fork), colour))

    def after(self, after: Sequence[str], axis: float, y: float) -> None:
        width, height = self.after_size(after)
        self.page.box(axis - width / 2, y, width, height, INK)
        for i, line in enumerate(_wrapped(after, 1.0)):
            self.page.text(axis, y + 0.025 + LINE * (i + 0.5), _Text(line))

    def mesh(self, mesh: Mesh, axis: float, y: float) -> list[float]:
        return _draw_mesh(self, mesh, axis, y)


def _counted(units: Sequence[Unit]) -> list[_Text]:
    """Units by what they say, the most frequent first."""
    words = [unit.words() or " ".join(unit.after) for unit in units]
    counts = sorted(dict.fromkeys(words), key=words.count, reverse=True)
    lines = [f"{words.count(word)} × {word}" for word in counts[:8]]
    rest = sum(words.count(word) for word in counts[8:])
    return [
        _Text(line)
        for line in [f"{len(units)} operations, too entangled to draw:", *lines, f"{rest} others"][: 10 if rest else 9]
    ]


def _columns(fork: Fork) -> list[tuple[int, tuple[Item, ...]]]:
    """The branches, three and more neighbours of one structure as one column with how many there are."""
    found: list[tuple[int, tuple[Item, ...]]] = []
    for _, run in groupby(fork.branches, key=lambda branch: tuple(item.signature() for item in branch)):
        same = list(run)
        found += [(len(same), same[0])] if len(same) > 2 else [(1, branch) for branch in same]
    return found


def _operator(page: _Page, word: str, x: float, y: float, radius: float, colour: str) -> None:
    """A circle with the sign of a sum, a difference or a product in it."""
    page.ax.add_patch(Circle((x, y), radius, fc=colour + "38", ec=colour, lw=0.8, zorder=3))
    r = radius * 0.6
    if word in ("mul", "×"):
        r *= 0.75
        strokes = [((-r, r), (-r, r)), ((-r, r), (r, -r))]
    elif word in ("−", "÷"):
        strokes = [((-r, r), (0, 0))]
        if word == "÷":
            strokes = [((-r, r), (r, -r))]
    else:
        strokes = [((-r, r), (0, 0)), ((0, 0), (-r, r))]
    for xs, ys in strokes:
        page.ax.plot([x + dx for dx in xs], [y + dy for dy in ys], color=colour, lw=1, zorder=4)


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


def _mesh_laid(panel: _Panel, mesh: Mesh) -> _Mesh:
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


def _mesh_part_size(panel: _Panel, mesh: Mesh, part: int) -> tuple[float, float]:
    if part < 0:
        return 0.1, 0.0
    unit = mesh.parts[part]
    return (0.15, 0.15) if unit.kind in ("add", "mul") and not unit.after else panel.unit_size(unit)


def _mesh_size(panel: _Panel, mesh: Mesh) -> tuple[float, float]:
    laid = _mesh_laid(panel, mesh)
    tail = panel.GAP + panel.after_size(mesh.after)[1] if mesh.after else 0
    return 2 * max(-laid.left, laid.right), laid.height + tail


def _draw_mesh(panel: _Panel, mesh: Mesh, axis: float, y: float) -> list[float]:
    laid = _mesh_laid(panel, mesh)
    for part, (x, top) in laid.places.items():
        height = laid.sizes[part][1]
        if part >= 0:
            unit = mesh.parts[part]
            if unit.kind in ("add", "mul") and not unit.after:
                panel.page.used.add(_colour(unit.kind))
                middle = y + top + height / 2
                _operator(panel.page, unit.detail or unit.kind, axis + x, middle, height / 2, _colour(unit.kind))
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


# ---------------------------------------------------------------------------------------------------------------
# The same in words


def describe(network: Graph | Outline) -> str:
    """The alt text of a network's drawing: stages in order with shapes, blocks and how many, and what merges."""
    drawn = outline(network) if isinstance(network, Graph) else network
    sentences = [f"{drawn.name}, from an input of {_shape(drawn.input_shape)}."]
    stages = []
    for stage in drawn.stages:
        parts = [_entry_words(drawn, entry, stage) for entry in stage.entries]
        if stage.times > 1:
            parts[0] = f"{stage.times} times {parts[0]}"
        parts[-1] += f", {_shape(stage.shape)}"
        stages.append(f"{stage.name}: {' then '.join(parts)}")
    sentences.append("; ".join(stages) + ".")
    for form in drawn.forms:
        title = f"Block {form.letter}" + (f" ({form.title.lstrip('_')})" if form.title else "")
        sentences.append(f"{title}: {_series_words(form.block.items, _ranges(form))}.")
    for head in drawn.heads:
        sentences.append(f"{head.name} leaves at {head.reads}: {_series_words(head.items, lambda u: u.text())}.")
    return " ".join(sentences)


def _entry_words(drawn: Outline, entry: Entry, stage: Stage) -> str:
    form = drawn.form_of(entry)
    times = f"{entry.times} × " if entry.times > 1 and stage.times == 1 else ""
    what = f"block {form.letter}" if form else ", ".join(unit.text() for unit in entry.block.units())
    growth = f", each adding {entry.growth} maps" if entry.growth and entry.times > 1 else ""
    reads = f" (reads {' '.join(_listed(entry.reads))})" if entry.reads else ""
    return f"{times}{what}{growth}{reads}"


def _ranges(form: Form) -> Callable[[Unit], str]:
    widths = {id(unit): found for unit, found in zip(form.block.units(), form.widths())}
    return lambda unit: " ".join(filter(None, [*unit.before, unit.words(widths.get(id(unit))), *unit.after]))


_SIGNS = {"+": "sum", "−": "difference", "×": "product", "÷": "quotient", "concat": "concatenation"}


def _series_words(items: Sequence[Item], words: Callable[[Unit], str]) -> str:
    return ", ".join(_item_words(item, words) for item in items)


def _item_words(item: Item, words: Callable[[Unit], str]) -> str:
    if isinstance(item, Unit):
        return words(item)
    after = f", {' '.join(item.after)}" if item.after else ""
    if isinstance(item, Mesh):
        if len(item.parts) > _PARTS:
            return f"{len(item.parts)} entangled operations{after}"
        reads = [[a for a, b in item.links if b == i] for i in range(len(item.parts))]
        each = [
            f"({i}) {_SIGNS.get(words(part)) or words(part)} of {' '.join(_listed('the input' if a < 0 else f'({a + 1})' for a in reads[i - 1]))}"
            for i, part in enumerate(item.parts, 1)
        ]
        return f"{'; '.join(each)}{after}"
    columns = [(times, _series_words(branch, words) or "the input itself") for times, branch in _columns(item)]
    branches = [f"{times} times {branch}" if times > 1 else branch for times, branch in columns]
    merged = f", {MERGES.get(item.merge, 'joined by ' + (item.detail or item.merge))}" if item.merge else ""
    return f"{len(item.branches)} branches ({' | '.join(branches)}){merged}{after}"


__all__ = ["describe", "draw_network", "outline"]
