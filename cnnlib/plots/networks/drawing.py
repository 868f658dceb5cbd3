"""Drawings of architectures, laid out from the outline of a traced graph.

Above, the stages in reading order: every stage a slab as high as the logarithm of its maps' side and as wide as the
logarithm of their number, so that halving the side or doubling the maps is the same step everywhere. Below, one panel
for each form of block, its branches side by side from the value that they share to the one that they merge into.
One unit of the axes is one inch on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnnlib.graph import Graph
from cnnlib.plots.networks.canvas import LINE, MARGIN, Canvas, Text, kind_colour, shape_words, short, width_of, wrapped
from cnnlib.plots.networks.panels import Panel, where
from cnnlib.plots.networks.parts import Entry, Head, Outline, Stage, Unit, enumerated
from cnnlib.plots.networks.stages import outline
from cnnlib.plots.style import INK, KINDS

_WORDS = (
    ("convolution", "conv"),
    ("pooling", "pool"),
    ("fully connected", "linear"),
    ("attention", "attention"),
    ("upsampling", "upsample"),
    ("normalisation", "batch_norm"),
    ("merge", "add"),
)

SLAB = 0.56  # height of the highest slab
GAP = 0.17  # between neighbours in the strip, where the arrow stands
PANELS = 9  # forms of block that are drawn; further ones are only named


def draw_network(network: Graph | Outline, ax: Axes) -> Axes:
    """Draw a traced network as wide as the figure of `ax`, which gets the height that the drawing needs.

    The alt text is `describe(network)`. ValueError if the figure holds other axes or is less than 4 inches wide.
    """
    drawn = outline(network) if isinstance(network, Graph) else network
    figure = ax.figure
    if not isinstance(figure, Figure) or len(figure.axes) != 1:
        what = f"one with {len(figure.axes)} axes" if isinstance(figure, Figure) else "a part of one"
        raise ValueError(f"draw_network needs a figure of its own, got {what}; use plt.subplots()")
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


@dataclass(frozen=True)
class _Cell:
    """An entry of the strip: its slab and the lines under it. `above` is the name of a stage of several entries."""

    entry: Entry | None
    lines: tuple[Text, ...]
    kind: str
    slab: tuple[float, float]
    times: int
    arrow: bool
    width: float
    above: str = ""
    hangs: tuple[tuple[Text, ...], ...] = ()


class _Page(Canvas):
    """The drawing while it is made: `bottom` is how far down it reaches."""

    def __init__(self, ax: Axes, drawn: Outline, width: float) -> None:
        super().__init__(ax, drawn, width)
        self.bottom = 0.08
        sides = [shape[-1] for shape in self._maps()]
        self.longest = math.log2(1 + max(sides, default=1))
        self.widest = math.log2(1 + max(shape[0] for shape in self._shapes()))

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        yield self.outline.input_shape
        for entry in self.outline.entries():
            yield entry.shape or (1,)

    def _maps(self) -> Iterator[tuple[int, ...]]:
        return (shape for shape in self._shapes() if len(shape) == 3)

    def draw(self) -> None:
        self.strip()
        shown = self.outline.forms[:PANELS]
        self.panels([Panel(self, form) for form in shown])
        left_out = self.outline.forms[PANELS:]
        if left_out:
            names = ", ".join(f"{form.letter} ({where(self.outline, form, 1)})" for form in left_out)
            self.lines([f"not drawn: {names}"], MARGIN, INK)
        self.legend()
        self.bottom += 0.06

    # Pieces --------------------------------------------------------------------------------------------------------

    def lines(self, lines: Sequence[str], x: float, colour: str, bold: bool = False) -> None:
        for line in lines:
            self.text(x, self.bottom + LINE / 2, Text(line, colour, bold), ha="left")
            self.bottom += LINE

    # The strip -----------------------------------------------------------------------------------------------------

    def strip(self) -> None:
        groups = list(self.groups())
        room = self.width - 2 * MARGIN - GAP
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
        lines = (Text("input", INK, True), Text(shape_words(shape)))
        yield [self.cell(None, lines, "input", shape, 1, False)]
        for stage in self.outline.stages:
            yield [self.entry_cell(stage, entry) for entry in stage.entries]

    def entry_cell(self, stage: Stage, entry: Entry) -> _Cell:
        kind, colour = entry.block.kind, kind_colour(entry.block.kind)
        several = len(stage.entries) > 1
        times = 1 if stage.times > 1 else entry.times
        lines = [] if several else [Text(short(stage.name), colour, True)]
        form = self.outline.form_of(entry)
        if form:
            lines.append(Text(f"block {form.letter}", colour, several))
            if entry.growth and times > 1:
                lines.append(Text(f"k = {entry.growth}"))
        else:
            for unit in entry.block.units():
                lines += self.unit_lines(unit, 1.02)
        lines.append(Text(shape_words(entry.shape)))
        if entry.reads:
            lines += [Text(line) for line in wrapped(["reads", *enumerated(map(short, entry.reads))], 1.02)]
        hangs = [self.head_lines(head) for head in self.outline.heads if head.reads == entry.name]
        above = short(stage.name) + (f"  ×{stage.times}" if stage.times > 1 else "") if several else ""
        return self.cell(entry, tuple(lines), kind, entry.shape, times, not entry.reads, above, tuple(hangs))

    def head_lines(self, head: Head) -> tuple[Text, ...]:
        lines = [Text(head.name, KINDS["output"], True)]
        for item in head.items:
            if isinstance(item, Unit):
                lines += self.unit_lines(item, 1.02)
            else:
                lines.append(Text(f"{sum(1 for _ in item.units())} layers", INK))
        return (*lines, Text(shape_words(head.shape)))

    def cell(
        self,
        entry: Entry | None,
        lines: tuple[Text, ...],
        kind: str,
        shape: Sequence[int],
        times: int,
        arrow: bool,
        above: str = "",
        hangs: tuple[tuple[Text, ...], ...] = (),
    ) -> _Cell:
        side = shape[-1] if len(shape) == 3 else shape[0] if len(shape) == 2 else 1
        maps = shape[-1] if len(shape) == 2 else shape[0] if shape else 1
        high = SLAB * math.log2(1 + side) / max(self.longest, math.log2(1 + side))
        wide = 0.62 * math.log2(1 + maps) / self.widest
        repeated = f"×{times}" if times > 1 else ""
        slab = wide + 2 * (width_of(repeated, True) + 0.05 if repeated else 0)
        width = max([slab, 0.3, *(line.width for line in lines), *(t.width for h in hangs for t in h)]) + 0.04
        return _Cell(entry, lines, kind, (wide, max(high, 0.05)), times, arrow, width, above, hangs)

    def row(self, cells: Sequence[_Cell], gap: float, first: bool) -> None:
        top = self.bottom + (LINE + 0.06 if any(cell.above for cell in cells) else 0.02)
        highest = max(max(cell.slab[1], 2 * LINE) + 0.07 * min(cell.times - 1, 2) for cell in cells)
        middle = top + highest / 2 + 0.03
        under = top + highest + 0.13
        x = MARGIN + gap / 2
        lowest = under
        edges = []
        for i, cell in enumerate(cells):
            centre, colour = x + cell.width / 2, kind_colour(cell.kind)
            self.used.add(colour)
            self.slab(centre, middle, cell, colour)
            if cell.arrow and (i or not first):
                start = edges[-1] if edges else x - gap / 2
                end = centre - cell.slab[0] / 2 - 0.03
                self.line([start, end], [middle, middle])
                self.arrow(end, middle)
            right = centre + cell.slab[0] / 2 + (0.05 * min(cell.times - 1, 2) if cell.times > 1 else 0)
            edges.append(right + (width_of(f"×{cell.times}", True) + 0.06 if cell.times > 1 else 0.02))
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
            text = Text(f"×{cell.times}", colour, True)
            self.text(centre + wide / 2 + 0.05 * min(cell.times - 1, 2), middle + 0.03, text, ha="left")

    def hang(self, centre: float, y: float, lines: Sequence[Text]) -> float:
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
        x = MARGIN + gap / 2
        i = 0
        while i < len(cells):
            j = i
            while j + 1 < len(cells) and cells[i].above and cells[j + 1].above == cells[i].above:
                j += 1
            end = x + sum(cell.width for cell in cells[i : j + 1]) + gap * (j - i)
            if cells[i].above:
                colour = kind_colour(cells[i].kind)
                half = width_of(cells[i].above, True) / 2 + 0.04
                centre = (x + end) / 2
                self.text(centre, y, Text(cells[i].above, colour, True))
                for a, b in ((x, centre - half), (centre + half, end)):
                    if b > a:
                        self.line([a, b], [y, y], colour)
            x, i = end + gap, j + 1

    # Panels --------------------------------------------------------------------------------------------------------

    def panels(self, panels: Sequence[Panel]) -> None:
        if not panels:
            return
        self.bottom += 0.02
        self.line([MARGIN, self.width - MARGIN], [self.bottom, self.bottom])
        self.bottom += 0.07
        space, left, right = 0.24, MARGIN, self.width - MARGIN
        # Each at the highest place where it fits beside and under those before it, there as far left as it goes.
        top, taken = self.bottom, []
        for panel in panels:
            starts = [left, *(x + w + space for x, _, w, _ in taken)]
            fitting = [x for x in starts if x + panel.width <= right + 1e-6] or [left]

            def lowest(x: float, panel: Panel = panel) -> float:
                over = [b + h + 0.1 for a, b, w, h in taken if a < x + panel.width + space and x < a + w + space]
                return max([top, *over])

            x = min(fitting, key=lambda x: (round(lowest(x), 3), x))
            taken.append((x, lowest(x), panel.width, panel.height))
        for panel, (x, y, _, _) in zip(panels, taken):
            panel.draw(x, y)
        self.bottom = max(y + height for _, y, _, height in taken) + 0.1

    def legend(self) -> None:
        x, y = MARGIN, self.bottom + LINE / 2
        words = [(word, kind_colour(kind)) for word, kind in _WORDS if kind_colour(kind) in self.used]
        notes = ["Slabs: height = logarithm of the side, width = logarithm of the number of maps."]
        if any(unit.kind in ("conv", "conv_transpose") for unit in self.outline.units()):
            notes.append("3×3, 64 /2: kernel, maps, stride.")
        if any(entry.growth and entry.times > 1 for entry in self.outline.entries()):
            notes.append("k: the maps that each layer adds.")
        if self.usual:
            notes.append(f"{' '.join(self.usual)} after each convolution where nothing else is said.")
        for word, colour in words:
            need = width_of(word) + 0.13
            if x > MARGIN and x + need > self.width - MARGIN:
                x, y = MARGIN, y + LINE + 0.02
            self.ax.add_patch(Rectangle((x, y - 0.045), 0.09, 0.09, fc=colour + "38", ec=colour, lw=0.8))
            self.text(x + 0.13, y, Text(word), ha="left")
            x += need + 0.16
        for line in wrapped(notes, self.width - 2 * MARGIN - 0.3):
            y += LINE + 0.02
            self.text(MARGIN, y, Text(line), ha="left")
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
