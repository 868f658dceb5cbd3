"""Occlusion maps as they are drawn and explored: every place of the square shows what `cnnlib` computes for it."""

from __future__ import annotations

import base64
import io
import json
import re
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnlib import explorers, plots
from cnnlib.analysis import OcclusionMap, occlusion_maps
from cnnlib.plots.occlusion import ANSWERS, answered, bitmap, coloured, extent_of, paler

CLASSES = ("<left>", "right", "neither")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 10, 3)).double()


def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, 1, 10, 12), dtype=np.uint8)


def maps() -> list[OcclusionMap]:
    inputs = torch.from_numpy(pictures()).double() / 51 - 2
    return occlusion_maps(net(), inputs, [0, 1], square=(4, 5), stride=(2, 3))


def explorer():
    return explorers.explore_occlusion(maps(), pictures(), CLASSES, titles=["first", "second"], grey=0.4)


def stored(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


@pytest.fixture
def ax():
    _, axes = plt.subplots()
    yield axes
    plt.close(axes.figure)


# --- the drawing


def test_a_cell_of_the_map_lies_where_the_centre_of_its_square_does():
    for found in maps():
        left, top, right, bottom = extent_of(found)
        rows, columns = found.probability.shape
        for row, column in np.ndindex(rows, columns):
            y, x = top + (row + 0.5) * (bottom - top) / rows, left + (column + 0.5) * (right - left) / columns
            assert y == pytest.approx(found.tops[row] + found.square[0] / 2)
            assert x == pytest.approx(found.lefts[column] + found.square[1] / 2)


def test_brighter_means_more_probable_and_each_answer_has_one_colour():
    for found in maps():
        order = found.probability.flatten().argsort().tolist()
        light = (coloured(found).reshape(-1, 3) @ np.array([0.2126, 0.7152, 0.0722]))[order]
        assert all(first <= second + 1 for first, second in pairwise(light))
        cells, colours = answered(found)
        assert set(colours) == set(found.answers)
        assert len({tuple(c) for c in cells.reshape(-1, 3).tolist()}) == len(set(colours.values())) == len(colours)
        assert colours.get(found.label, ANSWERS[0]) == ANSWERS[0]


def test_the_drawing_names_the_class_counts_the_answers_and_marks_the_worst_square(ax):
    found = maps()[0]
    plots.draw_occlusion(found, pictures()[0], ax, classes=CLASSES, grey=0.4)
    said = [text.get_text() for text in ax.texts]
    assert "probability of <left>" in said
    for label, count in found.answers.items():
        assert f"{CLASSES[label]}, {count} of {found.answer.numel()}" in said
    top, left, bottom, right = found.hidden(*found.lowest)
    (square,) = [patch for patch in ax.patches if patch.get_facecolor() == (0.4, 0.4, 0.4, 1.0)]
    assert square.get_xy() == pytest.approx((left / 12, top / 12))
    assert (square.get_width(), square.get_height()) == pytest.approx(((right - left) / 12, (bottom - top) / 12))
    assert np.array_equal(ax.images[0].get_array(), bitmap(pictures()[0]))
    assert np.array_equal(ax.images[1].get_array(), paler(bitmap(pictures()[0])))
    assert np.array_equal(ax.images[2].get_array(), coloured(found))
    assert np.array_equal(ax.images[4].get_array(), answered(found)[0])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((10, 12)), r"\(1, H, W\) or \(3, H, W\), got \(10, 12\)"),
        (np.full((1, 10, 12), 2.0), r"values in \[0, 1\], got 2 to 2"),
        (np.zeros((1, 9, 12)), "image of 10x12 pixels, the picture has 9x12"),
    ],
)
def test_a_picture_that_is_not_that_of_the_map_is_refused(picture, message, ax):
    with pytest.raises(ValueError, match=message):
        plots.draw_occlusion(maps()[0], picture, ax)


# --- the explorer


def test_it_is_whole_in_itself_the_same_twice_and_labelled():
    page = explorer()._repr_html_()
    assert page == explorer()._repr_html_()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    for key in re.findall(r'<(?:input|select)[^>]* id="([^"]+)"', page):
        assert f'<label for="{key}">' in page
    assert "<left>" not in re.sub(r'<script type="application/json">.*?</script>', "", page)


def test_the_page_holds_the_probabilities_answers_and_pictures_of_the_maps():
    data = stored(explorer()._repr_html_())
    for shown, found, picture in zip(data["images"], maps(), pictures(), strict=True):
        assert np.allclose(np.array(shown["p"]) / 1000, found.probability, atol=0.0005, rtol=0)
        assert shown["a"] == found.answer.tolist()
        assert np.array_equal(pixels(shown["picture"]), bitmap(picture))
        assert np.array_equal(pixels(shown["probability"]), coloured(found))
        assert np.array_equal(pixels(shown["answers"]), answered(found)[0])


def test_a_picture_of_28_by_28_costs_less_than_twelve_kilobytes():
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double()
    found = occlusion_maps(model, torch.from_numpy(images) / 255, square=6)
    sizes = [len(explorers.explore_occlusion(found[:n], images[:n], list("abcdefghij"))._repr_html_()) for n in (1, 3)]
    assert (sizes[1] - sizes[0]) / 2 < 12_000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explorers.explore_occlusion([], [], CLASSES), "at least one: got 0 maps"),
        (lambda: explorers.explore_occlusion(maps(), pictures()[:1], CLASSES), "got 2 maps, 1 pictures and 2 titles"),
        (lambda: explorers.explore_occlusion(maps(), pictures()[:, :, :9], CLASSES), "maps' 10x12 pixels, and <left>"),
        (
            lambda: explorers.explore_occlusion(
                [maps()[0], *occlusion_maps(net(), torch.zeros(1, 1, 10, 12), square=4)], pictures(), CLASSES
            ),
            "one square at the same places",
        ),
    ],
)
def test_maps_and_pictures_that_do_not_go_together_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def opened(alone):
    return alone(explorer())


def shows(figure, found: OcclusionMap, row: int, column: int) -> bool:
    """Whether the explorer shows this place: words, square in the picture, outline in the map."""
    top, left, bottom, right = found.hidden(row, column)
    said = (
        f"Square over rows {top} to {bottom - 1} and columns {left} to {right - 1}: probability of {CLASSES[found.label]} "
        f"{float(found.probability[row, column]):.3f}, answer {CLASSES[int(found.answer[row, column])]}. "
        f"Nothing hidden: {found.unhidden:.3f}, answer {CLASSES[found.answer_unhidden]}."
    )
    unit = 220 / 12
    place = [
        [float(figure.locator(f".{name}").get_attribute(key)) for key in ("x", "y", "width", "height")]
        for name in ("square", "outline")
    ]
    box = np.array([left, top, right - left, bottom - top]) * unit
    return figure.locator(".reading").inner_text() == said and np.allclose(place, [box, box + np.array([244, 0, 0, 0])])


@pytest.mark.browser
def test_in_a_browser_every_place_of_the_square_shows_its_probability_and_answer(opened):
    figure = opened.locator('[data-explorer="occlusion"]')
    for number, found in enumerate(maps()):
        figure.locator('[name="image"]').select_option(str(number))
        assert np.array_equal(
            pixels(figure.locator(".picture").first.get_attribute("href")), bitmap(pictures()[number])
        )
        for row, column in np.ndindex(*found.probability.shape):
            for name, value in (("row", row), ("column", column)):
                figure.locator(f'[name="{name}"]').evaluate(
                    "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
                )
            assert shows(figure, found, row, column)
        for kind, expected in ((0, coloured(found)), (1, answered(found)[0])):
            figure.locator('[name="map"]').select_option(str(kind))
            assert np.array_equal(pixels(figure.locator(".cells").get_attribute("href")), expected)
        named = figure.locator(".legend").inner_text()
        assert all(f"{CLASSES[label]} ({count})" in named for label, count in found.answers.items())


@pytest.mark.browser
def test_arrow_keys_and_the_pointer_move_the_square_and_stop_at_the_border(opened):
    figure = opened.locator('[data-explorer="occlusion"]')
    found = maps()[0]
    rows, columns = found.probability.shape
    row, column = found.lowest
    picture = figure.locator("svg")
    picture.focus()
    steps = {"ArrowDown": (1, 0), "ArrowRight": (0, 1), "ArrowUp": (-1, 0), "ArrowLeft": (0, -1)}
    for key in ["ArrowDown"] * rows + ["ArrowRight"] * columns + ["ArrowUp", "ArrowLeft", "ArrowUp"]:
        opened.keyboard.press(key)
        row = min(max(row + steps[key][0], 0), rows - 1)
        column = min(max(column + steps[key][1], 0), columns - 1)
        assert shows(figure, found, row, column)
    slider = figure.locator('[name="row"]')
    slider.focus()
    slider.press("Home")
    assert shows(figure, found, 0, column)
    box = picture.bounding_box()
    unit = box["width"] / 464 * 220 / 12
    for across in (0, 244 * box["width"] / 464):  # in the picture, and in the map
        picture.click(position={"x": across + (found.lefts[1] + 2.5) * unit, "y": (found.tops[2] + 2) * unit})
        assert shows(figure, found, 2, 1)
        picture.click(position={"x": across + 1, "y": 1})
        assert shows(figure, found, 0, 0)
    opened.set_viewport_size({"width": 375, "height": 740})
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
