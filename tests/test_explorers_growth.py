"""The explorers of effective fields and of growth, moved in a real browser, show what `cnnlib` computes."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from torch import nn

from cnnlib import explorers
from cnnlib.analysis import effective_field, growth_table
from cnnlib.models.densenet import depth_of

PICTURE = np.arange(24 * 24, dtype=np.uint8).reshape(24, 24)


def fields_table():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 5, 2, 2), nn.Conv2d(4, 4, 9, 1, 4))
    return effective_field(model, (1, 24, 24), at=["0", "2", "3"], count=4)


def fields_explorer():
    return explorers.explore_effective_field(fields_table(), PICTURE)


def growth_explorer():
    return explorers.explore_growth()


@pytest.mark.parametrize("make", [fields_explorer, growth_explorer])
def test_an_explorer_is_whole_in_itself_labelled_and_the_same_twice(make, whole):
    whole(make)


def test_without_scripts_the_lectures_table_stands_there():
    page = growth_explorer()._repr_html_()
    assert "<td>5, 9, 13, 17</td><td>21</td>" in page


def test_without_scripts_every_block_and_transition_has_a_line():
    page = explorers.explore_growth(16, 12, 12, blocks=3, compression=100)._repr_html_().partition("<script")[0]
    steps = ["block 1", "transition 1", "block 2", "transition 2", "block 3"]
    assert re.findall(r"<tr><td>([^<]*)</td>", page) == steps
    assert "<td>304</td><td>304</td>" in page
    assert "counted as in the paper: 40. 1,019,722 parameters" in page


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: explorers.explore_effective_field(fields_table(), PICTURE[:20]),
            r"as high and wide as the table's images, \(24, 24\), got \(20, 24\)",
        ),
        (lambda: explorers.explore_growth(k0=0), r"Maps that enter \(k0\) goes from 1 to 96, got 0"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def shown(alone):
    """Opens an explorer alone on a page, and gives its figure."""
    return lambda explorer: alone(explorer, viewport={"width": 800, "height": 700}).locator("[data-explorer]")


def move(figure, name: str, value: int) -> None:
    figure.locator(f'[name="{name}"]').evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
    )


@pytest.mark.browser
def test_the_page_computes_the_same_growth_as_cnnlib(shown):
    figure = shown(growth_explorer())
    for k0, k, layers, blocks, percent, kind in [
        (5, 4, 4, 1, 50, 0),
        (16, 12, 12, 3, 100, 0),
        (24, 12, 12, 3, 50, 0),
        (24, 12, 16, 3, 50, 1),
        (64, 32, 6, 4, 57, 1),
        (1, 1, 1, 4, 50, 1),
    ]:
        settings = {"k0": k0, "k": k, "layers": layers, "blocks": blocks, "compression": percent, "kind": kind}
        for name, value in settings.items():
            move(figure, name, value)
        table = growth_table(
            k0, k, (layers,) * blocks, compression=percent / 100, bottleneck=4 * kind, image=(3, 3), classes=10
        )
        assert int(figure.locator(".reading").get_attribute("data-params")) == table.params
        depth = depth_of((layers,) * blocks, bottleneck=bool(kind))
        assert int(figure.locator(".reading").get_attribute("data-depth")) == depth
        assert f": {depth}." in figure.locator(".reading").inner_text()
        for b in range(1, blocks + 1):
            reads = figure.locator(f'[data-reads="{b}"]').get_attribute("data-all")
            assert [int(n) for n in reads.split()] == [row.reads for row in table.block(b)]
            assert int(figure.locator(f'[data-gives="{b}"]').inner_text()) == table.block(b)[-1].gives
        kept = [int(figure.locator(f'[data-out="{b}"]').inner_text()) for b in range(1, blocks)]
        assert kept == [row.gives for row in table.transitions]
        assert figure.locator("svg rect").count() == 2 * len(table.layers)


@pytest.mark.browser
def test_the_keyboard_moves_the_growth_rate(shown):
    figure = shown(growth_explorer())
    figure.locator('[name="k"]').focus()
    figure.page.keyboard.press("ArrowRight")
    assert figure.locator('[data-gives="1"]').inner_text() == "25"


@pytest.mark.browser
def test_the_page_shows_the_fields_and_the_gradient_that_cnnlib_computes(shown):
    from PIL import Image

    table = fields_table()
    figure = shown(explorers.explore_effective_field(table, PICTURE))
    for number, row in enumerate(table):
        move(figure, "stage", number)
        boxes = {
            name: figure.locator(f"rect.{name}").evaluate(
                "e => ['y', 'x', 'height', 'width'].map(a => Number(e.getAttribute(a)))"
            )
            for name in ("field", "held")
        }
        assert boxes["field"] == list(row.field)
        # Pixel i is drawn from i to i + 1, so that its centre is at i + 1/2.
        assert boxes["held"][0] + row.side / 2 - 0.5 == row.centre[0]
        assert boxes["held"][2:] == [row.side, row.side]
        source = figure.locator("image.heat").get_attribute("href")
        opacity = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))))[..., 3]
        mass = table.mass[row.name]
        assert np.abs(opacity - 230 * np.sqrt(mass / mass.max())).max() <= 0.51
        told = figure.locator(".reading").inner_text()
        assert f"{row.name}, unit in row {row.position[0]}" in told
        assert f"fill as much as a square of {row.root_area:.1f}" in told
