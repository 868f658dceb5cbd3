"""The explorer of patches and reconstructions shows, in a real browser, what `cnnlib` computes."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnlib import explorers
from cnnlib.analysis import pictures_of, reconstruct, strongest_patches
from cnnlib.analysis.deconvnet import DECONVNET, GRADIENT, GUIDED
from cnnlib.explorers.deconvnet import sheet
from cnnlib.plots.deconvnet import shaded

LAYERS = ["relu1", "relu2", "units"]
LABELS = [f"<kind {i % 3}>" for i in range(12)]
WAYS = (DECONVNET, GUIDED, GRADIENT)


def net() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential()
    for name, layer in {
        "conv1": nn.Conv2d(1, 3, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(3, 4, 3, padding=1),
        "relu2": nn.ReLU(),
        "flatten": nn.Flatten(),
        "units": nn.Linear(4 * 25, 2),
    }.items():
        model.add_module(name, layer)
    return model.double()


def images() -> torch.Tensor:
    return torch.rand(12, 1, 10, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def explorer():
    return explorers.explore_deconvnet(net(), images(), LAYERS, maps=2, labels=LABELS, caption="A caption.")


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_it_is_whole_in_itself_the_same_twice_and_labelled(whole):
    page = whole(explorer)
    assert "<kind" not in re.sub(r'<script type="application/json">.*?</script>', "", page)


def test_every_sheet_holds_the_patches_and_reconstructions_of_its_map():
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', explorer()._repr_html_(), re.S)[1])
    assert [layer["name"] for layer in data["layers"]] == LAYERS
    for layer in data["layers"]:
        table = strongest_patches(net(), images(), layer["name"])
        for shown in layer["maps"]:
            patches = table[shown["number"]]
            expected = sheet(shaded(pictures_of(images(), patches)))
            assert np.array_equal(pixels(shown["patches"]), expected)
            for way, uri in zip(WAYS, shown["ways"]):
                found = reconstruct(net(), images(), layer["name"], patches, way=way)
                assert np.array_equal(pixels(uri), sheet(shaded(found, signed=True)))
            assert f"from {patches[0].value:.2f} to {patches[-1].value:.2f}" in shown["reading"]


def test_the_colours_of_a_colour_image_are_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).double()
    images = torch.rand(4, 3, 6, 6, dtype=torch.float64)
    page = explorers.explore_deconvnet(model, images, ["1"])._repr_html_()
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    (shown,) = [one for one in data["layers"][0]["maps"] if one["number"] == 0]
    patches = strongest_patches(model, images, "1")[0]
    assert np.array_equal(pixels(shown["patches"]), sheet(shaded(pictures_of(images, patches))))
    assert len(np.unique(pixels(shown["patches"]).reshape(-1, 4), axis=0)) > 20


def test_a_sheet_keeps_every_picture_and_lines_between_them():
    pictures = [np.full((2, 3, 4), i, dtype=np.uint8) for i in range(1, 6)]
    whole = sheet(pictures)
    assert whole.shape == (5, 11, 4)
    assert [whole[0, 0, 0], whole[0, 4, 0], whole[0, 8, 0], whole[3, 0, 0], whole[3, 4, 0]] == [1, 2, 3, 4, 5]
    assert not whole[2].any()
    assert not whole[3, 8:].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: explorers.explore_deconvnet(net(), images(), []),
            "at least one layer, map and way back: got 0 layers",
        ),
        (lambda: explorers.explore_deconvnet(net(), images(), LAYERS, labels=["a"]), "got 1 labels and 12 images"),
        (lambda: explorers.explore_deconvnet(_dead(), images(), ["relu1"]), "no image excites relu1 above 0"),
    ],
)
def test_what_cannot_be_explored_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _dead() -> nn.Sequential:
    model = net()
    nn.init.zeros_(model.conv1.weight)
    nn.init.constant_(model.conv1.bias, -1)
    return model


@pytest.mark.browser
def test_in_a_browser_every_layer_map_and_way_shows_its_own_pictures(alone):
    page = alone(explorer())
    figure = page.locator('[data-explorer="deconvnet"]')
    shown = set()
    for number, at in enumerate(LAYERS):
        figure.locator('[name="layer"]').select_option(str(number))
        table = strongest_patches(net(), images(), at)
        most = max(len(table[m]) for m in table.maps)
        maps = [m for m in table.maps if len(table[m]) == most][:2]
        slider = figure.locator('[name="map"]')
        assert slider.get_attribute("max") == str(len(maps) - 1)
        for place, m in enumerate(maps):
            if len(maps) > 1:
                slider.focus()
                slider.press("Home")
                for _ in range(place):
                    slider.press("ArrowRight")
            assert figure.locator('[data-for="map"]').inner_text() == str(m)
            for choice, way in enumerate(WAYS):
                figure.locator('[name="way"]').select_option(str(choice))
                patches, projected = (figure.locator(f"img.{name}") for name in ("patches", "projected"))
                assert np.array_equal(
                    pixels(patches.get_attribute("src")), sheet(shaded(pictures_of(images(), table[m])))
                )
                found = reconstruct(net(), images(), at, table[m], way=way)
                assert np.array_equal(pixels(projected.get_attribute("src")), sheet(shaded(found, signed=True)))
                assert projected.evaluate("e => e.complete && e.naturalWidth > 0")
                assert projected.get_attribute("alt") == f"{way.name} of the same patches"
                shown.add(projected.get_attribute("src"))
            assert (
                f"{at}, map {m}: the {most} strongest activations in 12 images"
                in figure.locator(".reading").inner_text()
            )
    assert len(shown) > len(LAYERS)
    page.set_viewport_size({"width": 375, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
