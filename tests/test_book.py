"""Laws of the committed lectures: their form, and that what they store is what they compute."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
import pytest
import torch

import cnnlib
from cnnlib import notebooks, site
from cnnlib.plots import describe

ROOT = Path(__file__).resolve().parent.parent
FRESH = ROOT / "_build" / "src" / "book"
LECTURES = notebooks.lectures()
every_lecture = pytest.mark.parametrize("path", LECTURES, ids=[path.stem for path in LECTURES])


@every_lecture
def test_a_lecture_keeps_the_form_of_the_book(path):
    assert notebooks.faults(notebooks.read(path)) == []


@every_lecture
def test_a_lecture_is_stored_executed_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@every_lecture
def test_a_lecture_is_stored_in_normal_form_with_the_current_set_up_cell(path):
    notebook = notebooks.read(path)
    assert path.stat().st_size <= notebooks.MOST_BYTES
    with_setup = notebooks.with_setup_cell(copy.deepcopy(notebook))
    assert notebooks.normalised(with_setup, copy.deepcopy(with_setup)) == path.read_text(encoding="utf-8")
    assert sum("setup" in notebooks.tags(cell) for cell in notebook.cells) == 1


@every_lecture
def test_a_lecture_shows_nothing_of_the_machine_that_ran_it(path):
    for cell in notebooks.read(path).cells:
        shown = nbformat.writes(nbformat.v4.new_notebook(cells=[cell])) if cell.cell_type == "code" else cell.source
        assert not re.search(
            r"/(?:home|root|Users|tmp|work|site-packages)/", re.sub(r'"image/png": ".*?"', "", shown)
        ), cell.id


def test_a_drawn_network_has_the_words_of_its_graph_as_alt_text():
    """`describe(trace(build(name), ...))` stands in the cell that draws it; where it does not, copy it there."""
    found = {}
    for path in LECTURES:
        for cell in notebooks.read(path).cells:
            for name in re.findall(r'draw_network\(graphs\["(\w+)"\]', cell.source):
                found[name] = cell.metadata["mystnb"]["image"]["alt"]
    assert {"lenet5_1998", "inception_v4", "densenet121"} <= set(found)
    for name, alt in found.items():
        with torch.device("meta"):
            model = cnnlib.build(name)
        assert alt == describe(cnnlib.trace(model, cnnlib.card(name).input_shape)), name


@every_lecture
def test_a_lecture_starts_from_a_question_that_fits_on_a_card(path):
    asked = site.question(notebooks.read(path))
    assert "?" in asked
    assert len(asked) < 500, "give a shorter one in the notebook's metadata, cnnlib.question"


@every_lecture
@pytest.mark.site
def test_stored_pictures_are_those_that_the_cells_draw_now(path):
    fresh = FRESH / path.name
    assert fresh.is_file(), f"{path.stem} has no executed copy in _build/src; run `make book`"
    assert notebooks.differences(notebooks.read(path), notebooks.read(fresh)) == []


@every_lecture
@pytest.mark.site
def test_a_damaged_lecture_is_found_out(path):
    """Each damage that nbval lets pass, done to this lecture: junk or nothing in place of a picture, an empty cell."""
    fresh = notebooks.read(FRESH / path.name)
    whole = notebooks.read(path)
    drawn = [
        number
        for number, cell in enumerate(whole.cells)
        if cell.cell_type == "code" and any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]
    ran = [number for number, cell in enumerate(whole.cells) if cell.cell_type == "code" and cell.outputs]
    for number in drawn:
        junk = copy.deepcopy(whole)
        for output in junk.cells[number].outputs:
            if "data" in output:
                output.data["image/png"] = "anVuaw=="
        assert notebooks.differences(junk, fresh)
    for number in ran:
        emptied = copy.deepcopy(whole)
        emptied.cells[number].outputs = []
        assert notebooks.differences(emptied, fresh)
        unrun = copy.deepcopy(whole)
        unrun.cells[number].execution_count = None
        assert notebooks.differences(unrun, fresh)
