"""The DenseNet page: what it says of growth, depth and cuts holds, and its explorer shows what `cnnlib` computes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import FancyArrowPatch

import cnnlib
from cnnlib import plots
from cnnlib.analysis import growth_table
from cnnlib.models.densenet import DenseBlock, DenseLayer, depth_of
from cnnlib.plots.densenet import dense_links


@pytest.mark.parametrize("layers", [1, 2, 5, 16])
def test_a_block_has_as_many_connections_as_pairs_of_a_source_and_a_later_layer(layers):
    links = dense_links(layers)
    assert len(links) == len(set(links)) == layers * (layers + 1) // 2
    assert all(0 <= source < layer <= layers for source, layer in links)


def test_the_drawing_has_an_arrow_for_each_connection_and_each_way_out():
    figure, ax = plt.subplots()
    table = growth_table(5, 4, (4, 3), compression=0.5)
    plots.draw_dense_blocks(table, ax)
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == sum(m * (m + 1) // 2 + m + 1 for m in (4, 3))
    words = [text.get_text().replace("\n", " ") for text in ax.texts]
    assert [w for w in words if w.startswith("reads")] == [f"reads {n}" for n in (5, 9, 13, 17, 10, 14, 18)]
    assert [w for w in words if w.startswith(("enter", "leave"))] == ["enter 5", "leave 21", "enter 10", "leave 22"]
    plt.close(figure)


def test_a_block_hands_on_its_input_untouched():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 6)
    y = DenseBlock(DenseLayer, 3, 5, 4, 0.0)(x)
    assert torch.equal(y[:, :5], x)
    assert y.shape[1] == 5 + 3 * 4


@pytest.mark.parametrize("k", [5, 10, 15, 20])
def test_a_bottleneck_saves_from_seven_and_a_fifth_times_the_growth_rate_on(k):
    even = 36 * k // 5 + 1.6  # of k that 5 divides the 7.2 k is a whole number
    for maps in range(1, 200):
        plain, narrow = (growth_table(maps, k, 1, bottleneck=b).params for b in (0, 4))
        assert (narrow < plain) == (maps > even)


@pytest.mark.site
@pytest.mark.browser
def test_the_explorer_of_growth_shows_what_cnnlib_computes(reader):
    figure = reader().open("book/densenet").locator('[data-explorer="growth"]')
    for k0, k, layers, blocks, percent, kind in [(5, 4, 4, 1, 50, 0), (16, 12, 12, 3, 100, 0), (24, 12, 16, 3, 50, 1)]:
        settings = {"k0": k0, "k": k, "layers": layers, "blocks": blocks, "compression": percent, "kind": kind}
        for name, value in settings.items():
            figure.locator(f'[name="{name}"]').evaluate(
                "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
            )
        table = growth_table(
            *(k0, k, (layers,) * blocks),
            compression=percent / 100,
            bottleneck=4 * kind,
            image=(3, 3),
            classes=10,
        )
        reading = figure.locator(".reading")
        assert f"{table.params:,} parameters" in reading.inner_text()
        assert int(reading.get_attribute("data-depth")) == depth_of((layers,) * blocks, bottleneck=bool(kind))
    with torch.device("meta"):
        paper = cnnlib.build("densenet_bc100_k12")
    assert table.params == sum(p.numel() for p in paper.parameters())
