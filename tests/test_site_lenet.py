"""The explorers of the LeNet page, moved in a real browser, show what `cnnlib` computes."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch

import cnnlib
from cnnlib.analysis import receptive_field
from cnnlib.explorers import layers_of
from cnnlib.training import records

pytestmark = [pytest.mark.site, pytest.mark.browser]

PAGE = "book/lenet"
SHAPE = (1, 32, 32)


def move(figure, name: str, value: int) -> None:
    figure.locator(f'[name="{name}"]').evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
    )


def test_the_square_covers_the_field_that_cnnlib_computes(reader):
    model = cnnlib.build("lenet5_1998")
    by_stage = {row.name.split(".")[0]: row for row in receptive_field(model, SHAPE) if row.offset is not None}
    layers = layers_of(model, SHAPE)
    assert [layer.name for layer in layers] == ["c1", "s2", "c3", "s4", "c5"]
    figure = reader().open(PAGE).locator('[data-explorer="receptive-field"]')
    for number, layer in enumerate(layers):
        move(figure, "layer", number)
        field = by_stage[layer.name]
        for row, column in {(0, 0), (layer.height - 1, layer.width // 2)}:
            move(figure, "row", row)
            move(figure, "column", column)
            box = figure.locator("rect.field").evaluate(
                "e => ['x', 'y', 'width', 'height'].map(a => Number(e.getAttribute(a)))"
            )
            # Pixel i is drawn from i to i + 1; its centre is i for cnnlib and i + 1/2 in the drawing.
            left = field.offset + column * field.stride - (field.size - 1) / 2
            top = field.offset + row * field.stride - (field.size - 1) / 2
            assert box == [left, top, field.size, field.size]
            told = figure.locator(".reading").inner_text()
            assert f"sees {field.size}×{field.size} pixels" in told
            assert f"rows {top:g} to {top + field.size - 1:g} and columns {left:g} to {left + field.size - 1:g}" in told


def test_a_unit_depends_on_the_pixels_that_the_explorer_names_and_on_no_other():
    model = cnnlib.build("lenet5_1998").double()
    values = cnnlib.trace(model, SHAPE)
    for layer in layers_of(model, SHAPE):
        last = [node.name for node in values if node.stage == layer.name and node.shape and len(node.shape) == 3][-1]
        row, column = layer.height - 1, layer.width // 2
        x = torch.rand(1, *SHAPE, dtype=torch.float64)
        before = values.values(x, [last])[last][0, :, row, column]
        (top, bottom), (left, right) = layer.pixels(row), layer.pixels(column)
        for pixel in [(top, left), (bottom, right), (top - 1, left), (bottom, right + 1)]:
            i, j = map(int, pixel)
            if not (0 <= i < 32 and 0 <= j < 32):
                continue
            changed = x.clone()
            changed[0, 0, i, j] += 1
            inside = top <= i <= bottom and left <= j <= right
            after = values.values(changed, [last])[last][0, :, row, column]
            assert bool((after != before).any()) is inside, (layer.name, pixel)


def test_the_feature_maps_are_those_of_the_recorded_network(reader):
    from PIL import Image

    record = records.load("lenet5-fashion_mnist")
    test = cnnlib.load_data("fashion_mnist_mini").test
    model = record.model().double()
    figure = reader().open(PAGE).locator('[data-explorer="feature-maps"]')
    for label in (0, 9):
        image = test.images[test.labels == label][:1]
        x = record.recipe.preprocess(image).double()
        move(figure, "image", label)
        for number, name in enumerate(("c1", "s2", "c3", "s4")):
            with torch.no_grad():
                x = model.get_submodule(name)(x)
            maps = x[0].numpy()
            move(figure, "layer", number)
            source = figure.locator("img").get_attribute("src")
            sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))), dtype=float)
            height, width = maps.shape[1:]
            expected = (maps - maps.min()) / (maps.max() - maps.min()) * 255
            columns = (sheet.shape[1] + 1) // (width + 1)
            for i, one in enumerate(expected):
                top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
                assert np.abs(sheet[top : top + height, left : left + width] - one).max() <= 0.51
            told = figure.locator(".reading").inner_text()
            assert f"{len(maps)} maps of {height}×{width}" in told
            low, high = map(float, re.search(r"from (-?[\d.]+) \(black\) to (-?[\d.]+)", told).groups())
            assert (low, high) == pytest.approx((maps.min(), maps.max()), abs=0.0051)
