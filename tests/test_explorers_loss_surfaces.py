"""Figures and explorer of loss surfaces: one scale for all, what is shown is what cnnlib computed."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from cnnlib.analysis import grid
from cnnlib.analysis.loss_surfaces import Direction, LossSurface, Point, Trajectory
from cnnlib.explorers import explore_loss_surfaces
from cnnlib.plots import draw_loss_lines, draw_loss_surfaces, draw_trajectory
from cnnlib.plots.loss_surfaces import scale_of
from cnnlib.plots.style import PALETTE, colour_of


def surface(name: str, floor: float, steep: float, *, line: bool = False) -> LossSurface:
    """A bowl; its value differs at every point."""
    xs, ys = grid(5), (-2.0, -0.5, 0.0, 1.0)
    places = [(x, None if line else y) for y in ((0.0,) if line else ys) for x in xs]
    points = tuple(
        Point(
            x, y, floor + steep * (x + 0.01) ** 2 + ((y or 0) + 0.003) ** 2, 0.0123, 0.1 + 0.1 * abs(x), 0.02, "running"
        )
        for x, y in places
    )
    axes = ("random direction 1, filter-normalised, seed 0", "random direction 2, filter-normalised, seed 0")
    return LossSurface(name, xs, () if line else ys, axes[: 2 - line], points, "running", 200, 1000, 64, 0)


FLAT, STEEP = surface("resnet20", 0.2, 1.0), surface("plain <b>20", 0.05, 60.0)


@pytest.fixture
def axes():
    made = []

    def make(count: int, **options):
        figure, found = plt.subplots(1, count, squeeze=False, **options)
        made.append(figure)
        return found[0]

    yield make
    for figure in made:
        plt.close(figure)


# --- figures


def test_all_surfaces_of_a_figure_have_one_scale_from_the_lowest_of_all_to_the_cut(axes):
    scale = scale_of([FLAT, STEEP])
    assert (scale.low, scale.high) == (STEEP.array().min(), 10.0)
    for count, options in ((2, {}), (2, {"subplot_kw": {"projection": "3d"}})):
        drawn = draw_loss_surfaces([FLAT, STEEP], axes(count, **options))
        for ax, shown in zip(drawn, (FLAT, STEEP)):
            assert ax.get_title() == shown.network
            if ax.name == "3d":
                assert ax.get_zlim() == pytest.approx((math.log10(scale.low), 1.0))
            else:
                filled = ax.collections[0]
                assert (filled.norm.vmin, filled.norm.vmax) == pytest.approx((scale.low, scale.high))
                assert np.allclose(filled.levels, scale.levels())


def test_the_error_is_drawn_from_0_to_100_percent(axes):
    (ax,) = draw_loss_surfaces([FLAT], axes(1), column="error")
    assert (ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) == (0, 100)
    assert scale_of([FLAT], "error").cut(FLAT).max() == pytest.approx(20)


def test_what_is_beyond_the_scale_lies_on_its_end_and_infinity_too():
    far = replace(FLAT, points=(*FLAT.points[:-1], replace(FLAT.points[-1], loss=math.inf)))
    scale = scale_of([far], top=3.0)
    assert scale.cut(far)[-1, -1] == scale.high == 3.0
    assert np.array_equal(scale.cut(far)[:, :-1], np.clip(FLAT.array()[:, :-1], None, 3.0))


def test_a_line_has_the_colour_of_its_network_and_a_band_of_two_standard_errors(axes):
    (ax,) = axes(1)
    draw_loss_lines([surface("resnet20", 0.2, 1.0, line=True), FLAT], ax, labels=["resnet20", "own"])
    one, two = ax.lines
    assert to_hex(one.get_color()) == colour_of("resnet20")
    assert np.allclose(one.get_ydata(), FLAT.array()[2])
    assert np.array_equal(one.get_ydata(), two.get_ydata())
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(FLAT.array()[2].max() + 0.0246)
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "random direction 1"


def test_the_trajectory_passes_its_checkpoints_and_ends_in_a_star(axes):
    labels = tuple(Direction({}, f"principal component {k}, 50.0 % of the variance") for k in (1, 2))
    way = Trajectory(labels, ((2.0, 1.0), (1.0, -1.0), (0.0, 0.0)), (0.5, 0.5))
    (ax,) = axes(1)
    draw_trajectory(way, ax, labels=["start", "", ""])
    assert ax.lines[0].get_xydata().tolist() == [list(place) for place in way.positions]
    assert (ax.lines[-1].get_marker(), ax.lines[-1].get_xydata().tolist()) == ("*", [[0, 0]])
    assert to_hex(ax.lines[0].get_color()) == PALETTE["red"]
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["start"]
    assert ax.get_xlabel() == "principal component 1, 50.0 %"


# --- the explorer


def test_the_explorer_is_the_same_twice_labelled_and_takes_no_text_for_markup(whole):
    page = whole(lambda: explore_loss_surfaces([FLAT, STEEP]))
    assert "<b>" not in re.sub(r'<script type="application/json">.*?</script>', "", page)


def test_before_any_script_runs_the_explorer_tells_the_middle_and_one_network_needs_no_list():
    page = explore_loss_surfaces([FLAT])._repr_html_()
    assert f"resnet20: loss {FLAT.at(0, 0).loss:.4g} where the cross is, error 10.0 %" in page
    assert "<select" not in page
    assert "<select" in explore_loss_surfaces([FLAT, STEEP])._repr_html_()


def test_the_map_has_a_pixel_a_point_and_the_highest_y_on_top():
    import base64
    import io

    from PIL import Image

    network = explore_loss_surfaces([FLAT, STEEP]).data["networks"][1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(network["map"].split(",")[1]))), dtype=int)
    assert pixels.shape == (4, 5, 3)
    # The map of colours is darkest where the loss is lowest.
    losses = STEEP.array()[::-1]
    assert np.unravel_index(pixels.sum(2).argmin(), (4, 5)) == np.unravel_index(losses.argmin(), (4, 5))


@pytest.mark.browser
def test_the_explorer_shows_the_numbers_of_every_point_in_a_browser(alone):
    infinite = replace(STEEP, points=(replace(STEEP.points[0], loss=math.inf, loss_se=math.inf), *STEEP.points[1:]))
    page = alone(explore_loss_surfaces([FLAT, infinite]))
    figure = page.locator('[data-explorer="loss-surfaces"]')

    def move(name, number):
        figure.locator(f'[name="{name}"]').evaluate(
            "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(number)
        )

    def told():
        return figure.locator(".reading").inner_text()

    scale = scale_of([FLAT, infinite])
    for number, shown in enumerate((FLAT, infinite)):
        move("network", number)
        map_at = figure.locator("image").get_attribute("href")
        assert map_at == explore_loss_surfaces([FLAT, infinite]).data["networks"][number]["map"]
        for row, column in ((0, 0), (2, 2), (3, 4), (1, 3)):
            move("y", row)
            move("x", column)
            point = shown.points[row * 5 + column]
            assert f"{shown.network} at x = {point.x:g}, y = {point.y:g}: " in told()
            if math.isfinite(point.loss):
                assert f"loss {point.loss:.4g} ± 0.012" in told()
            else:
                assert "loss beyond all numbers" in told()
            assert ("above the scale" in told()) is (point.loss > 10)
            assert f"error {100 * point.error:.3g} % ± 2" in told()
            assert "200 of 1,000 images, batch norm with the statistics of training" in told()
            height = float(figure.locator(".dot").get_attribute("cy"))
            share = math.log(min(point.loss, scale.high) / scale.low) / math.log(scale.high / scale.low)
            assert height == pytest.approx(24 + 240 * (1 - share), abs=0.06)
            curve = figure.locator("polyline").get_attribute("points").split()
            assert len(curve) == 5
            assert float(curve[column].split(",")[1]) == height
    # The keyboard alone is enough.
    slider = figure.locator('[name="x"]')
    before = told()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert told() != before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_loss_surfaces([FLAT], []), "one Axes and one title a surface: there are 1 surfaces, 0 Axes"),
        (
            lambda: draw_loss_surfaces([surface("r", 1, 1, line=True)], [None]),
            "r has 5 x 0 points, which is no plane; use draw_loss_lines",
        ),
        (lambda: scale_of([FLAT], "x"), "no column to draw 'x'; there are error, loss"),
        (lambda: scale_of([]), "at least one surface, got none"),
        (lambda: draw_loss_lines([FLAT], None, labels=[]), "one label and one colour a surface"),
        (lambda: draw_trajectory(Trajectory((), (), ()), None), "in a plane; make it with components=2"),
        (lambda: explore_loss_surfaces([]), "at least one: got 0 surfaces"),
        (lambda: explore_loss_surfaces([surface("r", 1, 1, line=True)]), "no plane to walk over"),
        (lambda: explore_loss_surfaces([FLAT, replace(STEEP, xs=grid(5, 2.0))]), "must have one grid"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
