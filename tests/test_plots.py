"""Figures show the rows that they are given: as many squares, lines and tiles, at their values."""

from __future__ import annotations

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

import cnnlib
from cnnlib import plots
from cnnlib.models.lenet import C3_SEES
from cnnlib.plots.style import INK, NETWORKS


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_a_filled_square_stands_for_each_link_and_no_other(ax):
    plots.draw_links(C3_SEES, 6, ax)
    filled = {
        (round(p.get_x() - 0.08), round(p.get_y() - 0.08))
        for p in ax.patches
        if p.get_facecolor()[3] > 0 and p.get_fill()
    }
    assert filled == {(column, row) for column, maps in enumerate(C3_SEES) for row in maps}


def test_a_tile_stands_for_each_picture_with_its_own_values(ax):
    pictures = np.arange(5 * 2 * 3).reshape(5, 2, 3)
    plots.draw_tiles(pictures, ax, columns=2)
    assert [image.get_array().tolist() for image in ax.images] == pictures.tolist()
    assert {image.get_clim() for image in ax.images} == {(0, 29)}


def test_signed_tiles_have_zero_in_the_middle_of_their_colours(ax):
    plots.draw_tiles(np.array([[[-1.0, 3.0]]]), ax, symmetric=True)
    assert ax.images[0].get_clim() == (-3, 3)


def test_a_line_is_the_mean_of_the_seeds_and_the_band_their_range(ax):
    plots.draw_history([[1, 2], [3, 6]], ax, label="two", colour=INK)
    assert ax.lines[0].get_ydata().tolist() == [2, 4]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1, 6)


def test_the_mean_of_a_spread_is_printed_and_every_value_a_dot(ax):
    plots.draw_spread({"net": [1.0, 2.0, 6.0]}, ax, colours=["red"], unit="%")
    assert ax.collections[0].get_offsets()[:, 0].tolist() == [1, 2, 6]
    assert ax.texts[0].get_text() == "net: 3.00 %"


def test_the_stages_of_a_drawing_are_those_of_the_traced_network():
    stages = plots.stages_of(cnnlib.trace(cnnlib.build("lenet5"), (1, 32, 32)))
    assert [(s.name, s.maps, s.height) for s in stages] == [
        *[("input", 1, 32), ("c1", 6, 28), ("s2", 6, 14), ("c3", 16, 10), ("s4", 16, 5)],
        *[("c5", 120, 1), ("f6", 84, 1), ("output", 10, 1)],
    ]


def test_the_grey_of_the_ink_reads_on_a_white_and_on_a_dark_page():
    def luminance(colour):
        rgb = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for colour in [INK, *NETWORKS.values()]:
        assert contrast(colour, "white") >= 2.7, colour
        assert contrast(colour, "#14181e") >= 3, colour
    assert min(contrast(INK, "white"), contrast(INK, "#14181e")) >= 4


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda ax: plots.draw_tiles(np.zeros((2, 2)), ax),
            r"\(n, H, W\) or \(n, H, W, 3\) with n >= 1, got shape \(2, 2\)",
        ),
        (lambda ax: plots.draw_stack([], ax), "no stages to draw"),
        (lambda ax: plots.draw_spread({"a": [1]}, ax, colours=[], unit="%"), "1 groups and 0 colours"),
        (lambda ax: plots.draw_field_growth(["a"], [], ax, label="", colour=INK), "1 names and 0 sizes"),
        (lambda ax: plots.draw_history([], ax, label="", colour=INK), r"at least one of each, got shape \(1, 0\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(draw, message, ax):
    with pytest.raises(ValueError, match=message):
        draw(ax)
