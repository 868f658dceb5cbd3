"""Two networks side by side: what differs as boxes, what is equal folded into bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea, VPacker
from matplotlib.patches import Rectangle

from cnnlib.analysis.differences import UNSAID, Comparison, Layer, Pair
from cnnlib.plots.style import FAINT, INK, KINDS, PALETTE, colour_of

LEFT, RIGHT, END = 40.0, 60.0, 100.0  # where the left column ends and the right one begins, in percent of the width
LINE = 0.168  # inches that a line of 8 points takes
WIDTH = 6.4  # inches, a little less than the text of a page
LETTERS = 36  # that fit into a box
GAP = 0.5  # lines between two boxes
HEAD = 3.5  # lines for the names of the networks
CHANGED = PALETTE["red"]

_COLOURS = {
    "conv": KINDS["conv"],
    "linear": KINDS["linear"],
    **dict.fromkeys(["max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"], KINDS["pool"]),
    **dict.fromkeys(
        ["batch_norm", "layer_norm", "group_norm", "instance_norm", "local_response_norm"], PALETTE["teal"]
    ),
}

Words = list[tuple[str, bool]]  # each word, and whether it says what differs


@dataclass(frozen=True)
class _Item:
    """A bar of `equal` layers, or one pair with its label, its lines of words on both sides, and what it was moved to.

    `top` and `height` are in lines.
    """

    top: float
    height: float
    text: str
    pair: Pair | None = None
    lines: tuple[list[Words], list[Words]] = ([], [])

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


def comparison_size(comparison: Comparison, *, shown: int = 40) -> tuple[float, float]:
    """Width and height in inches that `draw_comparison` needs for 8-point text on a page."""
    items = _items(comparison, shown)
    return WIDTH, LINE * (items[-1].top + items[-1].height + GAP)


def draw_comparison(comparison: Comparison, ax: Axes, *, shown: int = 40) -> Axes:
    """Draw two aligned networks from top to bottom, a left and b right, made for a figure of `comparison_size`.

    A link joins the layers that belong together; its label and the bold words say what differs. Runs of equal layers
    are one thin bar. After `shown` pairs that differ, a last bar says how many are left out.
    """
    if shown < 1:
        raise ValueError(f"at least one difference must be shown, got shown={shown}")
    items = _items(comparison, shown)
    for side, name in enumerate(_names(comparison)):
        x = (LEFT / 2, (RIGHT + END) / 2)[side]
        colour = colour_of((comparison.a, comparison.b)[side])
        ax.text(x, 0.1, name, ha="center", va="top", size=10, weight="bold", color=colour)
        totals = f"{comparison.params[side]:,} parameters\n{comparison.macs[side]:,} multiply-adds"
        ax.text(x, 1.3, totals, ha="center", va="top", size=8)
    for item in items:
        if item.pair is None:
            ax.add_patch(Rectangle((0, item.top), END, item.height, fc=FAINT, ec="none"))
            ax.text(END / 2, item.middle, item.text, ha="center", va="center", size=8)
            continue
        for side, layer in enumerate((item.pair.a, item.pair.b)):
            _draw_box(item, side, layer, ax)
        if item.pair.a and item.pair.b:
            colour, width = (CHANGED, 1.4) if item.text else (INK, 0.8)
            ax.plot([LEFT, RIGHT], [item.middle] * 2, color=colour, lw=width)
            if item.text:
                _label(item, (LEFT + RIGHT) / 2, item.middle - 0.12, "center", "bottom", ax)
    for one, other in _moved(items):
        ax.plot([LEFT, RIGHT], [one.middle, other.middle], color=CHANGED, lw=1.4)
    ax.set_xlim(-0.4, END + 0.4)
    ax.set_ylim(items[-1].top + items[-1].height + GAP, 0)
    ax.axis("off")
    return ax


def _names(comparison: Comparison) -> tuple[str, str]:
    same = comparison.a == comparison.b
    return (f"{comparison.a} (a)", f"{comparison.b} (b)") if same else (comparison.a, comparison.b)


def _items(comparison: Comparison, shown: int) -> list[_Item]:
    """What is drawn, from top to bottom."""
    found: list[_Item] = []
    top = HEAD
    pairs = list(comparison.pairs)
    moved = {row for row, group in _by_row(pairs) if len(group) > 1}
    inside = _inside_moves(pairs, moved)
    labelled: set[int] = set()
    drawn = 0
    for folded, run in groupby(range(len(pairs)), key=lambda at: pairs[at].row is None and at not in inside):
        run = list(run)
        if folded:
            text = f"{len(run)} equal layer{'s' * (len(run) > 1)}"
            found.append(_Item(top, 1.1, text))
            top += 1.1 + GAP
            continue
        for at in run:
            if drawn == shown:
                rest = {pair.row for pair in pairs[at:]} - {None} - labelled
                if rest:
                    found.append(_Item(top, 1.1, f"and {len(rest)} more difference{'s' * (len(rest) > 1)}"))
                    return found
            pair = pairs[at]
            text = "" if pair.row is None or pair.row in labelled else comparison.rows[pair.row].what
            labelled |= {pair.row} - {None}
            drawn += pair.row is not None
            partner = _partner(pair, pairs) if pair.row in moved else None
            lines = tuple(_lines(own, other) for own, other in _against(pair, partner))
            height = 1.3 + max(map(len, lines))
            found.append(_Item(top, height, text, pair, lines))
            top += height + GAP
    return found


def _by_row(pairs: Sequence[Pair]) -> Iterator[tuple[int, list[Pair]]]:
    """The pairs of each row of the comparison."""
    rows: dict[int, list[Pair]] = {}
    for pair in pairs:
        if pair.row is not None:
            rows.setdefault(pair.row, []).append(pair)
    return iter(rows.items())


def _inside_moves(pairs: Sequence[Pair], moved: set[int]) -> set[int]:
    """Places of the layers that something moved past, which are drawn although they are equal."""
    places: dict[int, list[int]] = {}
    for at, pair in enumerate(pairs):
        if pair.row in moved:
            places.setdefault(pair.row, []).append(at)
    return {at for ends in places.values() for at in range(ends[0], ends[-1])}


def _partner(pair: Pair, pairs: Sequence[Pair]) -> Layer | None:
    """Where a moved layer stands in the other network."""
    group = [other for other in pairs if other.row == pair.row]
    if pair.a and pair.b:
        return None
    layer, side = (pair.a, "b") if pair.a else (pair.b, "a")
    lone = [other for other in group if (other.a is None) == (side == "b")]
    same = [getattr(other, side) for other in lone if getattr(other, side).kind == layer.kind]
    return same[0] if same else None


def _moved(items: Sequence[_Item]) -> Iterator[tuple[_Item, _Item]]:
    """The items, left and right, of a layer that stands elsewhere in the other network."""
    lone = [item for item in items if item.pair and (item.pair.a is None or item.pair.b is None)]
    for one in lone:
        for other in lone:
            same_row = one.pair.row == other.pair.row
            if same_row and one.pair.a and other.pair.b and one.pair.a.kind == other.pair.b.kind:
                yield one, other


def _against(pair: Pair, partner: Layer | None) -> tuple[tuple[Layer | None, Layer | None], ...]:
    """Each side's layer and the one that it is compared with."""
    return (pair.a, pair.b or partner), (pair.b, pair.a or partner)


def _lines(layer: Layer | None, other: Layer | None) -> list[Words]:
    """What a layer is, in lines of at most `LETTERS` letters; marked are the numbers that `other` has not."""
    if layer is None:
        return []
    changed_kind = other is not None and other.kind != layer.kind
    parts = [] if "function" in layer.numbers else [(layer.kind.replace("_", " "), changed_kind)]
    numbers = dict(layer.numbers)
    if other is not None and not changed_kind:  # a number that goes without saying is said where the other has one
        numbers |= {label: UNSAID[label] for label in other.numbers if label in UNSAID and label not in numbers}
    for i, (label, value) in enumerate(numbers.items(), start=1):
        text = value if "function" in layer.numbers else f"{label} {value}"
        differs = other is not None and other.numbers.get(label) != value
        parts.append((text + "," * (i < len(numbers)), changed_kind or differs))
    lines: list[Words] = [[]]
    for text, marked in parts:
        for word in [text] if _letters(text, marked) <= LETTERS else text.split():
            if lines[-1] and sum(_letters(w, m) + 1 for w, m in lines[-1]) + _letters(word, marked) > LETTERS:
                lines.append([])
            lines[-1].append((word, marked))
    return lines


def _letters(word: str, marked: bool) -> float:
    """The room that a word takes; bold letters are wider."""
    return len(word) * (1.15 if marked else 1.0)


def _draw_box(item: _Item, side: int, layer: Layer | None, ax: Axes) -> None:
    x = (0.0, RIGHT)[side]
    if layer is None:
        if item.text:
            ax.add_patch(Rectangle((x, item.top), LEFT, item.height, fc="none", ec=CHANGED, lw=0.8, ls=(0, (3, 3))))
            _label(item, x + LEFT / 2, item.middle, "center", "center", ax)
        return
    colour = _COLOURS.get(layer.kind, INK)
    ax.add_patch(Rectangle((x, item.top), LEFT, item.height, fc=colour + "18", ec=colour, lw=1))
    ax.add_patch(Rectangle((x, item.top), 0.9, item.height, fc=colour, ec="none"))
    rows = [TextArea(layer.name, textprops={"size": 8.5, "weight": "bold", "color": colour})]
    for line in item.lines[side]:
        runs = []
        for marked, words in groupby(line, key=lambda word: word[1]):
            style = {"size": 8, "weight": "bold", "color": CHANGED} if marked else {"size": 8, "color": INK}
            runs.append(TextArea(" ".join(word for word, _ in words), textprops=style))
        rows.append(HPacker(children=runs, pad=0, sep=3, align="baseline"))
    box = VPacker(children=rows, pad=0, sep=2, align="left")
    at = (x + 2.0, item.middle)
    ax.add_artist(AnnotationBbox(box, at, box_alignment=(0, 0.5), frameon=False, pad=0, annotation_clip=False))


def _label(item: _Item, x: float, y: float, ha: str, va: str, ax: Axes) -> None:
    """What differs, a line each where it is several things in a narrow column."""
    text = item.text if len(item.text) <= 18 or va == "center" else item.text.replace(", ", ",\n")
    ax.text(x, y, text, ha=ha, va=va, size=8, weight="bold", color=CHANGED)
