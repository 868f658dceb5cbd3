"""The drawing of a comparison: every layer is in a box or in a bar, and every row of the comparison is a label."""

from __future__ import annotations

import re

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from cnnlib import plots
from cnnlib.analysis import compare
from cnnlib.plots.comparisons import CHANGED

PAIRS = [
    ("lenet5_1998", "lenet5"),
    ("alexnet", "caffenet"),
    ("alexnet", "alexnet_owt"),
    ("resnet50", "resnet50_v1_5"),
    ("densenet40_k12", "densenet40_k12_2k"),
]
every_pair = pytest.mark.parametrize(("a", "b"), PAIRS, ids=" ".join)


@pytest.fixture
def draw():
    figures = []

    def drawn(comparison, **options):
        figure, ax = plt.subplots(figsize=plots.comparison_size(comparison, **options), layout="constrained")
        figures.append(figure)
        assert plots.draw_comparison(comparison, ax, **options) is ax
        figure.canvas.draw()
        return ax

    yield drawn
    for figure in figures:
        plt.close(figure)


def texts(ax) -> list[Text]:
    return [text for text in ax.findobj(Text) if text.get_text()]


def said(ax) -> list[str]:
    return [text.get_text().replace(",\n", ", ") for text in texts(ax)]


def folded(ax) -> int:
    """How many layers stand in bars."""
    return sum(int(found[1]) for found in (re.fullmatch(r"(\d+) equal layers?", text) for text in said(ax)) if found)


@every_pair
def test_every_pair_of_layers_is_drawn_or_counted_in_a_bar(a, b, draw):
    comparison = compare(a, b)
    words = said(draw(comparison))
    boxed = [pair for pair in comparison.pairs if pair.row is not None]
    for pair in boxed:
        assert {layer.name for layer in (pair.a, pair.b) if layer} <= set(words)
    beside = {"alexnet caffenet": 2}.get(f"{a} {b}", 0)  # the two pools that a norm moved past are drawn though equal
    assert folded(draw(comparison)) + len(boxed) + beside == len(comparison.pairs)


@every_pair
def test_every_row_is_a_label_once(a, b, draw):
    comparison = compare(a, b)
    whats = [row.what for row in comparison]
    words = [text.get_text().replace(",\n", ", ") for text in draw(comparison).texts]
    for what in set(whats):
        assert words.count(what) == whats.count(what), what


@every_pair
def test_text_is_at_least_seven_points_and_stays_inside_its_figure(a, b, draw):
    ax = draw(compare(a, b))
    frame = ax.figure.bbox
    assert all(text.get_fontsize() >= 7 for text in texts(ax))
    for drawn in [*ax.texts, *ax.artists]:
        box = drawn.get_window_extent(ax.figure.canvas.get_renderer())
        assert frame.x0 - 1 <= box.x0 < box.x1 <= frame.x1 + 1
        assert frame.y0 - 1 <= box.y0 < box.y1 <= frame.y1 + 1


@every_pair
def test_words_stay_inside_their_box(a, b, draw):
    ax = draw(compare(a, b))
    edges = [ax.transData.transform((x, 0))[0] for x in (0, 40, 60, 100)]
    for artist in ax.artists:
        box = artist.get_window_extent(ax.figure.canvas.get_renderer())
        assert any(low <= box.x0 and box.x1 <= high for low, high in (edges[:2], edges[2:])), said(artist)


def test_marked_are_the_numbers_that_differ_and_no_others(draw):
    ax = draw(compare("resnet50", "resnet50_v1_5"))
    marked = [text.get_text() for text in texts(ax) if text.get_color() == CHANGED and text not in ax.texts]
    assert marked == ["stride 2,", "stride 1,", "stride 1,", "stride 2,"] * 3


def test_a_number_that_goes_without_saying_is_said_where_it_differs(draw):
    words = said(draw(compare("alexnet", "alexnet_ungrouped")))
    assert words.count("groups 2,") == words.count("groups 1") == 3


def test_a_layer_that_moved_is_linked_to_where_it_stands(draw):
    ax = draw(compare("alexnet", "caffenet"))
    slanted = [line for line in ax.lines if line.get_ydata()[0] != line.get_ydata()[1]]
    level = [line for line in ax.lines if line.get_ydata()[0] == line.get_ydata()[1]]
    assert (len(slanted), len(level)) == (2, 2)
    assert all(line.get_color() == CHANGED for line in slanted)
    assert not any(line.get_color() == CHANGED for line in level)


def test_the_mirror_has_the_same_links_the_other_way(draw):
    there, back = draw(compare("alexnet", "caffenet")), draw(compare("caffenet", "alexnet"))
    falls = [sorted(round(line.get_ydata()[1] - line.get_ydata()[0], 6) for line in ax.lines) for ax in (there, back)]
    assert falls[0] == [-value for value in falls[1][::-1]]


def test_equal_networks_are_one_bar(draw):
    comparison = compare("alexnet", "alexnet")
    ax = draw(comparison)
    assert folded(ax) == len(comparison.pairs)
    assert len(ax.patches) == 1
    assert {"alexnet (a)", "alexnet (b)"} <= set(said(ax))


def test_a_long_comparison_says_how_much_it_leaves_out(draw):
    comparison = compare("resnet50", "resnet50_v1_5")
    words = said(draw(comparison, shown=4))
    assert words.count("stride") == 4
    assert "and 2 more differences" in words
    assert plots.comparison_size(comparison, shown=4)[1] < plots.comparison_size(comparison)[1]


def test_a_drawing_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one difference must be shown, got shown=0"):
        plots.draw_comparison(compare("alexnet", "caffenet"), None, shown=0)
