"""Explorers are self-contained, deterministic, labelled, and refuse what they cannot show."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import cnnlib
from cnnlib import explorers
from cnnlib.explorers.html import png
from cnnlib.explorers.maps import mosaic

PICTURE = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)


def field_explorer():
    torch.manual_seed(0)
    return explorers.explore_receptive_field(cnnlib.build("lenet5"), (1, 32, 32), PICTURE)


def maps_explorer():
    rng = np.random.default_rng(0)
    maps = [{"c1": rng.normal(size=(6, 4, 4)), "f6": rng.normal(size=84)} for _ in range(2)]
    return explorers.explore_feature_maps(["shoe", "bag & <b>"], maps, ["It says shoe.", "It says bag."])


@pytest.mark.parametrize("make", [field_explorer, maps_explorer])
def test_an_explorer_is_whole_in_itself_labelled_and_the_same_twice(make, whole):
    whole(make)


def test_text_of_the_caller_is_not_taken_for_markup():
    assert "<b>" not in re.sub(r'<script type="application/json">.*?</script>', "", maps_explorer()._repr_html_())


def test_an_explorer_takes_the_readers_own_network():
    own = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.Flatten())
    layers = explorers.layers_of(own, (1, 32, 32))
    assert [(layer.size, layer.stride) for layer in layers] == [(3, 1), (4, 2), (8, 2)]
    # Padding puts the first centre on the first pixel: the field begins one pixel outside of the picture.
    assert layers[0].pixels(0) == (-1, 1)


def test_a_mosaic_holds_every_value_once_scaled_to_bytes():
    maps = np.random.default_rng(1).normal(size=(5, 3, 4))
    sheet = mosaic(maps)
    scaled = np.round((maps - maps.min()) / np.ptp(maps) * 255)
    assert sheet[:3, :4].tolist() == scaled[0].tolist()
    assert sheet.min() == 0
    assert sheet.max() == 255


def test_a_constant_map_is_black_and_no_division_by_zero():
    assert mosaic(np.ones((1, 2, 2))).tolist() == [[0, 0], [0, 0]]


def test_with_a_kernel_the_square_follows_network_layer_and_unit():
    own = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2))
    box = explorers.play_receptive_field({"LeNet-5": "lenet5", "mine": own}, PICTURE)
    network, layer, row, column, told, drawing = box.children

    def square():
        return [float(re.search(rf'class="field".*? {a}="([^"]+)"', drawing.value)[1]) for a in ("x", "y", "width")]

    assert square() == [0, 0, 5]
    layer.value, row.value, column.value = 3, 4, 2
    s4 = explorers.layers_of(cnnlib.build("lenet5"), (1, 32, 32))[3]
    assert square() == [s4.pixels(2)[0], s4.pixels(4)[0], s4.size] == [8, 16, 16]
    assert "s4: 16×16 pixels, effective stride 4" in told.value
    network.value = "mine"
    assert layer.max == 1
    assert square()[2] == 4


def test_every_network_of_the_zoo_is_offered_to_play_with():
    assert list(explorers.play_receptive_field().children[0].options) == cnnlib.list_models()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: explorers.explore_receptive_field(cnnlib.build("lenet5"), (1, 32, 32), PICTURE[:28]),
            r"as high and wide as input_shape, \(32, 32\), got \(28, 32\)",
        ),
        (
            lambda: explorers.explore_receptive_field(
                nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)), (1, 32, 32), PICTURE
            ),
            "no layer with a square field of known place",
        ),
        (lambda: explorers.explore_feature_maps([], [], []), "one title, one set of maps and one answer an image"),
        (
            lambda: explorers.explore_feature_maps(["a"], [{"c1": np.zeros((2, 2))}], ["b"]),
            r"maps of layer 'c1' must be \(C, H, W\) or \(units,\), got shape \(2, 2\)",
        ),
        (lambda: png(np.zeros((2, 2))), "8-bit .* got float64"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
