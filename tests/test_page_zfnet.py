"""The page on Zeiler and Fergus: its explorers show what cnnlib computes, and what it says of ZFNet and of chance is so."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import cnnlib
from cnnlib import checks
from cnnlib.analysis import cost, occlusion_maps, strongest_patches
from cnnlib.training import records

RECORD = "small_alexnet-fashion_mnist"


def seen():
    """The network of the page, the pictures as it takes them, their labels, and the names of the classes."""
    known, clothes = records.load(RECORD), cnnlib.load_data("fashion_mnist_mini")
    inputs = known.recipe.preprocess(clothes.test.images[:500]).double()
    return known.model().double().eval(), inputs, clothes.test.labels[:500].tolist(), clothes.classes


def test_zfnet_and_alexnet_without_groups_differ_in_the_parameters_of_their_first_layer_alone():
    with torch.device("meta"):
        nets = {name: cnnlib.build(name) for name in ("alexnet_ungrouped", "zfnet")}
    rows = {
        name: {row: total.params for row, total in cost(net, cnnlib.card(name).input_shape).by_stage().items()}
        for name, net in nets.items()
    }
    differ = {row: n - rows["zfnet"][row] for row, n in rows["alexnet_ungrouped"].items() if n != rows["zfnet"][row]}
    assert differ == {"conv1": 96 * 3 * (11**2 - 7**2)}


@pytest.mark.parametrize(("count", "classes"), [(1, 3), (2, 2), (4, 3), (5, 4)])
def test_the_share_of_chance_is_the_mean_over_all_draws(count, classes):
    draws = list(product(range(classes), repeat=count))
    mean = sum(max(draw.count(label) for label in draw) for draw in draws) / len(draws)
    assert checks.same_class_by_chance(count, classes) == pytest.approx(mean, rel=1e-12)


def test_the_count_of_one_class_is_that_of_the_labels_of_the_nine():
    nine = checks.nine_strongest(RECORD, "relu5", 0)
    _, _, labels, _ = seen()
    ours = [labels[number] for number in nine]
    assert len(set(nine)) == 9
    assert 1 <= max(map(ours.count, ours)) <= 9
    lowest, highest = (checks.same_class_of_nine(RECORD, at) for at in ("relu1", "relu5"))
    assert 1 <= lowest < highest <= 9


def test_a_square_that_costs_most_leaves_less_than_the_picture_itself():
    alone, least = (checks.occluded(RECORD, image=0, square=6, stride=6, least=least) for least in (False, True))
    assert 0 <= least < alone <= 1
    assert sum(checks.answers_under_square(RECORD, image=0, square=6, stride=6)) == 5 * 5


def test_the_deconvnet_of_the_page_is_its_steps_written_out():
    assert checks.deconvnet_by_hand(RECORD, image=3) < 1e-12 < checks.deconvnet_by_hand(RECORD, image=3, rectify=False)


@pytest.mark.site
@pytest.mark.browser
def test_the_square_of_the_page_shows_the_probabilities_that_cnnlib_computes(reader):
    net, inputs, labels, classes = seen()
    figure = reader().open("book/zfnet").locator('[data-explorer="occlusion"]')
    for choice, number in ((1, 14), (3, 23)):
        (found,) = occlusion_maps(net, inputs[number : number + 1], [labels[number]], square=6)
        figure.locator('[name="image"]').select_option(str(choice))
        for row, column in [found.lowest, (0, 0), (22, 22), (9, 13), (4, 20)]:
            for name, value in (("row", row), ("column", column)):
                figure.locator(f'[name="{name}"]').evaluate(
                    "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
                )
            said = figure.locator(".reading").inner_text()
            assert f"rows {row} to {row + 5} and columns {column} to {column + 5}" in said
            assert f"probability of {classes[found.label]} {float(found.probability[row, column]):.3f}" in said
            assert f"answer {classes[int(found.answer[row, column])]}." in said


@pytest.mark.site
@pytest.mark.browser
def test_the_sheets_of_the_page_name_the_strongest_activations_that_cnnlib_finds(reader):
    net, inputs, labels, classes = seen()
    figure = reader().open("book/zfnet").locator('[data-explorer="deconvnet"]')
    for choice, at in ((0, "relu1"), (3, "relu5")):
        table = strongest_patches(net, inputs, at)
        figure.locator('[name="layer"]').select_option(str(choice))
        for place in (0, 5):
            figure.locator('[name="map"]').evaluate(
                "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(place)
            )
            nine = table[[m for m in table.maps if len(table[m]) == 9][place]]
            said = figure.locator(".reading").inner_text()
            assert f"{at}, map {nine[0].map}: the 9 strongest activations in 500 images" in said
            assert f"from {nine[0].value:.2f} to {nine[-1].value:.2f}" in said
            assert f"{classes[labels[nine[0].image]]} (" in said
