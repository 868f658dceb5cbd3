"""The drawing of a network in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cnnlib.graph import Graph
from cnnlib.plots.networks.canvas import shape_words
from cnnlib.plots.networks.panels import PARTS
from cnnlib.plots.networks.parts import MERGES, Entry, Form, Item, Mesh, Outline, Stage, Unit, enumerated
from cnnlib.plots.networks.stages import outline


def describe(network: Graph | Outline) -> str:
    """The alt text of a network's drawing: stages in order with shapes, blocks and how many, and what merges."""
    drawn = outline(network) if isinstance(network, Graph) else network
    sentences = [f"{drawn.name}, from an input of {shape_words(drawn.input_shape)}."]
    stages = []
    for stage in drawn.stages:
        parts = [_entry_words(drawn, entry, stage) for entry in stage.entries]
        if stage.times > 1:
            parts[0] = f"{stage.times} times {parts[0]}"
        parts[-1] += f", {shape_words(stage.shape)}"
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
    reads = f" (reads {' '.join(enumerated(entry.reads))})" if entry.reads else ""
    return f"{times}{what}{growth}{reads}"


def _ranges(form: Form) -> Callable[[Unit], str]:
    widths = {id(unit): found for unit, found in zip(form.block.units(), form.widths())}
    return lambda unit: " ".join(filter(None, [*unit.before, unit.words(widths.get(id(unit))), *unit.after]))


_SIGNS = {"+": "sum", "−": "difference", "×": "product", "÷": "quotient", "concat": "concatenation"}


def _series_words(items: Sequence[Item], words: Callable[[Unit], str]) -> str:
    return " then ".join(_item_words(item, words) for item in items)


def _item_words(item: Item, words: Callable[[Unit], str]) -> str:
    if isinstance(item, Unit):
        return words(item)
    after = f", {' '.join(item.after)}" if item.after else ""
    if isinstance(item, Mesh):
        if len(item.parts) > PARTS:
            return f"{len(item.parts)} entangled operations{after}"
        reads = [[a for a, b in item.links if b == i] for i in range(len(item.parts))]
        each = [
            f"({i}) {_SIGNS.get(words(part)) or words(part)} of {' '.join(enumerated('the input' if a < 0 else f'({a + 1})' for a in reads[i - 1]))}"
            for i, part in enumerate(item.parts, 1)
        ]
        return f"{'; '.join(each)}{after}"
    columns = [(times, _series_words(branch, words) or "the input itself") for times, branch in item.columns()]
    branches = [f"{times} times {branch}" if times > 1 else branch for times, branch in columns]
    merged = f", {MERGES.get(item.merge, 'joined by ' + (item.detail or item.merge))}" if item.merge else ""
    return f"{len(item.branches)} branches ({' | '.join(branches)}){merged}{after}"
