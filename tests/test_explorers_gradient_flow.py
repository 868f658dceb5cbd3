"""The explorer of gradients by depth shows, in a real browser, what `cnnlib` computes."""

from __future__ import annotations

import json
import re

import pytest
import torch

from cnnlib import explorers
from cnnlib.analysis import flow_through
from cnnlib.models.towers import tower
from cnnlib.plots.gradient_flow import by_depth

DEPTHS = (2, 4, 6)
LABELS = {"plain": ("plain", "relu"), "plain, <sigmoid>": ("plain", "sigmoid"), "residual": ("residual", "relu")}


def look(way: str, layers: int, activation: str):
    torch.manual_seed(0)
    model = tower(way, layers, width=4, activation=activation)
    draw = torch.Generator().manual_seed(1)
    return flow_through(model, torch.randn(4, 1, 8, 8, generator=draw), torch.arange(4))


@pytest.fixture(scope="module")
def flows():
    return {label: [look(way, n, activation) for n in DEPTHS] for label, (way, activation) in LABELS.items()}


def test_it_is_whole_in_itself_the_same_twice_and_labelled(flows, whole):
    page = whole(lambda: explorers.explore_gradient_flow(flows, caption="A caption."))
    assert "<sigmoid>" not in re.sub(r'<script type="application/json">.*?</script>', "", page)
    # It begins in the middle, and says something without scripts.
    assert "6 layers with weights." in page.split("<script")[0]


def test_looks_that_do_not_belong_together_are_refused(flows):
    with pytest.raises(ValueError, match="got 2 of plain, 3 of residual"):
        explorers.explore_gradient_flow({"plain": flows["plain"][:2], "residual": flows["residual"]})
    with pytest.raises(ValueError, match="got none"):
        explorers.explore_gradient_flow({})
    with pytest.raises(ValueError, match=r"start must be one of the depths 0 \.\. 2, got 3"):
        explorers.explore_gradient_flow(flows, start=3)


@pytest.mark.browser
def test_every_line_goes_through_the_gradients_that_cnnlib_computes(flows, alone):
    page = alone(explorers.explore_gradient_flow(flows, start=0))
    data = json.loads(page.locator('script[type="application/json"]').text_content())
    slider = page.locator('[name="layers"]')
    slider.focus()
    for i, layers in enumerate(DEPTHS):
        if i:
            page.keyboard.press("ArrowRight")
        assert page.locator("output").inner_text() == str(layers + 2)
        reading = page.locator(".reading").inner_text()
        for k, (label, looks) in enumerate(flows.items()):
            depths, means, _ = by_depth(looks[i])
            points = page.locator("polyline").nth(k).get_attribute("points").split()
            assert len(points) == len(depths) == layers + 2
            for point, depth, mean in zip(points, depths, means):
                x, y = map(float, point.split(","))
                assert x == pytest.approx(62 + (560 - 74) * (depth - 1) / (data["deepest"] - 1), abs=0.06)
                power = data["high"] - (y - 12) / (300 - 52) * (data["high"] - data["low"])
                assert 10**power == pytest.approx(mean, rel=0.01)
            assert f"{label} {means[0]:.2g}" in reading
