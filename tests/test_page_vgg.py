"""The VGG page: its drawings, its explorer against cnnlib's own counts, and what its arithmetic rests on."""

from __future__ import annotations

import json
import re

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import Rectangle
from torch import nn

import cnnlib
from cnnlib import explorers, plots
from cnnlib.analysis import cost, receptive_field
from cnnlib.explorers.stacks import CHANNELS, MOST_LAYERS, SIDES
from cnnlib.models import stacks, vgg


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def counted(kernels, channels, side):
    """Field, parameters, MACs and ReLUs of a stack as the instruments find them."""
    with torch.device("meta"):
        model = stacks.stack(kernels, channels)
    table = cost(model, (channels, side, side))
    relus = sum(isinstance(module, nn.ReLU) for module in model)
    return receptive_field(model, (channels, side, side)).final.size, table.params, table.macs, relus


@pytest.mark.parametrize(("layers", "channels", "side"), [(1, 1, 7), (2, 16, 28), (3, 64, 56), (7, 512, 14)])
def test_the_formulas_of_the_explorer_are_what_the_built_layers_cost(layers, channels, side):
    small, large = explorers.stack_numbers(layers, channels, side)
    for numbers, kernels in ((small, [3] * layers), (large, [2 * layers + 1])):
        assert (numbers.field, numbers.parameters, numbers.macs, numbers.relus) == counted(kernels, channels, side)


def test_an_explorer_starts_where_it_is_told_and_offers_only_what_it_can_count():
    page = explorers.explore_stack(2, 128, 28)._repr_html_()
    assert page == explorers.explore_stack(2, 128, 28)._repr_html_()
    assert f'data-small="parameters">{2 * (9 * 128**2 + 128):,}<' in page
    assert f'data-large="macs">{25 * 128**2 * 28**2:,}<' in page
    assert json.loads(re.search(r'application/json">(.*?)</script>', page)[1])["channels"] == list(CHANNELS)
    with pytest.raises(ValueError, match=f"1 to {MOST_LAYERS} layers, got 8"):
        explorers.explore_stack(8)
    with pytest.raises(ValueError, match=r"channels must be one of 1, 3, .*, got 65"):
        explorers.explore_stack(channels=65)
    with pytest.raises(ValueError, match=r"side must be one of 7, 14, .*, got 8"):
        explorers.explore_stack(side=8)


def test_a_stack_keeps_the_size_and_takes_odd_kernels_only():
    assert stacks.stack([3, 5, 1], 4)(torch.zeros(1, 4, 9, 9)).shape == (1, 4, 9, 9)
    with pytest.raises(ValueError, match=r"odd \(1, 3, 5, \.\.\.\), got 4"):
        stacks.stack([4], 1)


@pytest.mark.parametrize("column", vgg.TABLE_1)
def test_a_column_names_each_of_its_layers_once(column):
    with torch.device("meta"):
        net = vgg.vgg(column)
    names = vgg.layer_names(column)
    kinds = [type(m).__name__ for m in net.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d | nn.Linear)]
    assert len(set(names)) == len(names) == len(kinds)
    begins = {"Conv2d": "conv", "MaxPool2d": "pool", "Linear": "fc"}
    assert all(name.startswith(begins[kind]) for name, kind in zip(names, kinds))
    with pytest.raises(ValueError, match="no column of table 1 'F'"):
        vgg.layer_names("F")


def test_the_two_nets_that_the_page_trains_see_the_same_and_differ_in_the_stacks_alone():
    nets = {name: cnnlib.build("stack_net", kernels=kernels) for name, kernels in {"3x3": [3, 3], "5x5": [5]}.items()}
    assert {receptive_field(net, (1, 28, 28)).final.size for net in nets.values()} == {34}
    weights = {
        name: sum(p.numel() for n, p in net.named_parameters() if n.startswith("stack") and n.endswith("weight"))
        for name, net in nets.items()
    }
    assert weights["3x3"] * 25 == weights["5x5"] * 18


@pytest.mark.parametrize("kernels", [(3, 3), (5,), (3, 3, 3), (7,), (1, 3)])
def test_a_pyramid_has_as_many_pixels_as_the_stack_sees(kernels, ax):
    plots.draw_pyramid(kernels, ax, colour="blue")
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    lowest = min(box.get_y() for box in boxes)
    field = receptive_field(stacks.stack(kernels, 1), (1, 16, 16)).final.size
    assert sum(box.get_y() == lowest for box in boxes) == field
    assert f"{field} pixels" in [text.get_text() for text in ax.texts]


def test_the_columns_hold_every_layer_of_the_table(ax):
    plots.draw_columns(vgg.TABLE_1, ax, units=(4096, 4096, 1000))
    layers = [layer for column in vgg.TABLE_1.values() for stage in column for layer in stage.split()]
    drawn = [text.get_text() for text in ax.texts]
    for layer in set(layers):
        assert drawn.count(layer) == layers.count(layer)
    assert drawn.count("FC-4096") == 2 * len(vgg.TABLE_1)
    assert "14×14" in drawn


def test_shares_add_up_to_a_hundred(ax):
    plots.draw_shares([("a", "conv"), ("b", "pool"), ("c", "linear")], {"values": [1, 1, 2]}, [ax])
    assert [bar.get_width() for bar in ax.patches] == [25, 25, 50]


def test_drawings_refuse_what_does_not_fit(ax):
    with pytest.raises(ValueError, match="no kernel to draw"):
        plots.draw_pyramid([], ax, colour="blue")
    with pytest.raises(ValueError, match=r"as many entries .* got \[1, 2\]"):
        plots.draw_columns({"A": ["3-64"], "B": ["3-64", "3-64"]}, ax)
    with pytest.raises(ValueError, match=r"1 Axes, 1 layers and 2 values of work"):
        plots.draw_shares([("a", "conv")], {"work": [1, 2]}, [ax])


def move(figure, name: str, value: int) -> None:
    figure.locator(f'[name="{name}"]').evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
    )


def compare(figure, layers: int, channels: int, side: int) -> None:
    """Move the explorer there and compare all that it shows with what the instruments find in the built layers."""
    move(figure, "layers", layers)
    move(figure, "channels", CHANNELS.index(channels))
    move(figure, "side", SIDES.index(side))
    widths, weights = {}, {}
    for name, kernels in (("small", [3] * layers), ("large", [2 * layers + 1])):
        field, parameters, macs, relus = counted(kernels, channels, side)
        told = {
            what: figure.locator(f'[data-{name}="{what}"]').inner_text()
            for what in ("field", "parameters", "macs", "relus")
        }
        expected = {"field": f"{field}×{field}", "parameters": f"{parameters:,}", "macs": f"{macs:,}"}
        assert told == expected | {"relus": str(relus)}
        widths[name] = float(figure.locator(f"rect.{name}").get_attribute("width")) / parameters
        weights[name] = macs
    assert widths["small"] == pytest.approx(widths["large"])
    assert figure.locator("g.nest rect").count() == layers + 1
    if layers > 1:
        more = 100 * (weights["large"] / weights["small"] - 1)
        assert f"{more:.0f} % more" in figure.locator(".reading").inner_text()


@pytest.mark.browser
def test_the_explorer_shows_in_a_browser_what_cnnlib_counts(alone):
    page = alone(explorers.explore_stack())
    figure = page.locator('[data-explorer="stack"]')
    for layers, channels, side in [(1, 3, 224), (2, 64, 56), (3, 512, 14), (7, 512, 224)]:
        compare(figure, layers, channels, side)
    figure.locator('[name="layers"]').focus()
    page.keyboard.press("ArrowLeft")
    assert figure.locator('[data-for="layers"]').inner_text() == "6"


@pytest.mark.site
@pytest.mark.browser
def test_the_explorer_of_the_page_counts_as_cnnlib_does(reader):
    figure = reader().open("book/vgg").locator('[data-explorer="stack"]')
    for layers, channels, side in [(3, 64, 56), (5, 16, 112)]:
        compare(figure, layers, channels, side)
