"""The AlexNet page: its explorer of sizes follows the formula, and networks that are really built have those sizes."""

from __future__ import annotations

import pytest
from torch import nn

import cnnlib
from cnnlib import explorers
from cnnlib.analysis import cost
from cnnlib.explorers.sizes import Window, changed, sides, windows_of

SHAPE = (3, 227, 227)


def chain(windows: list[Window]) -> nn.Sequential:
    """A network of these windows."""
    layers, maps = [], 3
    for w in windows:
        if w.kind == "conv":
            layers.append(nn.Conv2d(maps, w.maps, w.kernel, w.stride, w.padding))
            maps = w.maps
        else:
            layers.append(nn.MaxPool2d(w.kernel, w.stride, w.padding))
    return nn.Sequential(*layers)


def test_the_windows_of_alexnet_are_those_of_its_paper():
    windows = windows_of(cnnlib.build("alexnet"), SHAPE)
    shapes = cnnlib.card("alexnet").published["shapes"]["rows"]
    for window, side in zip(windows, sides(windows, 227), strict=True):
        assert [window.maps, side, side] == shapes[window.name]


@pytest.mark.parametrize("setting", [(227, 4, 0, 3), (224, 4, 2, 3), (224, 4, 0, 3), (231, 2, 1, 2), (256, 5, 3, 5)])
def test_sizes_by_the_formula_are_those_of_a_network_that_runs(setting):
    side, stride, padding, pool = setting
    windows = changed(windows_of(cnnlib.build("alexnet"), SHAPE), stride, padding, pool)
    rows = [row for row in cost(chain(windows), (3, side, side)) if row.kind in ("conv", "max_pool")]
    assert [row.output_shape[-1] for row in rows] == sides(windows, side)


def test_a_chain_that_shrinks_to_nothing_says_so_from_there_on():
    windows = windows_of(cnnlib.build("alexnet"), SHAPE)
    assert sides(changed(windows, 6, 0, 5), 64)[-1] == 0


def test_a_branching_network_is_refused():
    with pytest.raises(ValueError, match="joins branches"):
        windows_of(cnnlib.build("resnet20"), (3, 32, 32))


def test_sides_that_leave_out_the_networks_own_are_refused():
    with pytest.raises(ValueError, match="must include the network's own 227, got 230 to 256"):
        explorers.explore_output_sizes(cnnlib.build("alexnet"), SHAPE, least=230, most=256)


@pytest.mark.site
@pytest.mark.browser
def test_the_explorer_of_sizes_shows_what_cnnlib_computes(reader):
    windows = windows_of(cnnlib.build("alexnet"), SHAPE)
    figure = reader().open("book/alexnet").locator('[data-explorer="output-sizes"]')
    for setting in [(227, 4, 0, 3), (224, 4, 2, 3), (224, 4, 0, 3), (250, 3, 1, 2), (200, 6, 0, 5)]:
        for name, value in zip(("side", "stride", "padding", "pool"), setting):
            figure.locator(f'[name="{name}"]').evaluate(
                "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
            )
        side, *rest = setting
        expected = sides(changed(windows, *rest), side)
        shown = figure.locator("[data-side]").all_inner_texts()
        assert [int(text) if text.isdigit() else 0 for text in shown] == expected
        told = figure.locator(".reading").inner_text()
        if expected[-1]:
            assert f"{(256 * expected[-1] ** 2 + 1) * 4096:,} parameters" in told
        else:
            assert "shrink to nothing" in told
