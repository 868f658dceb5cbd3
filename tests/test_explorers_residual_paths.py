"""The explorer of residual paths, and the drawings: what they show is what `cnnlib.analysis` counts and measures."""

from __future__ import annotations

import json
import re

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pytest
from test_residual_paths import SHAPE, Nested, Parallel, data, linear_net, trained_like

import cnnlib
from cnnlib import explorers, plots
from cnnlib.analysis import (
    central_lengths,
    delete_each,
    delete_several,
    gradient_by_path_length,
    path_lengths,
    permute_blocks,
    share_of_paths,
)
from cnnlib.models import resnet


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture(scope="module")
def graph():
    return cnnlib.trace(resnet.cifar_resnet(8), (3, 32, 32))


# ---------------------------------------------------------------------------------------------------------------
# Drawings


def words(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_three_blocks_written_out_are_eight_paths_with_each_branch_as_often_as_there_are_ways_to_it(graph, ax):
    said = words(plots.draw_unrolled(graph, ax))
    assert said.count("x") == 8
    assert [said.count(f) for f in ("f₁", "f₂", "f₃")] == [4, 2, 1]
    assert {"f₁: layer1.0", "f₂: layer2.0", "f₃: layer3.0", "8 paths"} <= set(said)


def test_a_deleted_block_leaves_half_of_the_drawing(graph, ax):
    plots.draw_unrolled(graph, ax, deleted=["layer2.0"])
    ends = [text.get_alpha() for text in ax.texts if text.get_text() == "x"]
    assert ends.count(1) == 4
    assert "4 of 8 paths" in words(ax)


@pytest.mark.parametrize(("net", "paths"), [(Parallel, 3), (Nested, 5)])
def test_blocks_inside_and_beside_each_other_are_written_out_too(net, paths, ax):
    assert words(plots.draw_unrolled(cnnlib.trace(net(), SHAPE), ax)).count("x") == paths


def test_blocks_stand_in_a_row_each_with_its_name(graph, ax):
    said = words(plots.draw_blocks(graph, ax, deleted=["layer3.0"]))
    assert [word for word in said if word.startswith("layer")] == ["layer1.0", "layer2.0", "layer3.0"]


def test_bars_are_the_shares_of_the_binomial_law(ax):
    plots.draw_path_lengths(54, ax, marked=(19, 35))
    bars = ax.containers[0]
    assert [bar.get_height() for bar in bars] == pytest.approx([100 * c / 2**54 for c in path_lengths(54)])
    assert "19 to 35 blocks: 98.02 % of the paths" in ax.get_legend_handles_labels()[1]


def test_the_gradient_beside_the_paths_is_the_measured_share(ax):
    rows = gradient_by_path_length(linear_net(), *data(), draws=2)
    plots.draw_path_lengths(4, ax, gradients=rows)
    assert [bar.get_height() for bar in ax.containers[1]] == pytest.approx([100 * s for s in rows.shares()])
    plt.close(ax.figure)
    _, other = plt.subplots()
    plots.draw_gradient_of_paths(rows, other)
    assert [len(dots.get_offsets()) for dots in other.collections] == [len(row.norms) for row in rows]
    assert list(other.lines[0].get_ydata()) == [row.mean for row in rows]
    plt.close(other.figure)


def test_a_bar_stands_for_each_deleted_part_and_a_dot_for_each_order(ax):
    model, (x, y) = trained_like(resnet.cifar_resnet(20)), data()
    found = delete_each(model, x, y)
    plots.draw_lesions({"resnet20-fashion_mnist": found, "mine": found}, ax)
    assert [bar.get_height() for bar in ax.patches] == 2 * [row.after for row in found]
    assert [label.get_text() for label in ax.get_xticklabels()][:4] == ["1.0", "1.1", "1.2", "2.0"]
    _, (left, right) = plt.subplots(1, 2)
    several = delete_several(model, x, y, counts=[1, 2], draws=2)
    plots.draw_several_lesions({"resnet20": several}, left)
    assert list(left.lines[0].get_ydata()) == [several.before, *(row.mean for row in several)]
    orders = permute_blocks(model, x, y, swaps=[1, 2], draws=2)
    plots.draw_permutations({"resnet20": orders}, right)
    assert right.collections[0].get_offsets().tolist() == [[row.kendall_tau, row.after] for row in orders]
    plt.close(left.figure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, ax: plots.draw_unrolled(g, ax, deleted=["layer9"]), "no residual block 'layer9'; did you mean"),
        (
            lambda g, ax: plots.draw_unrolled(cnnlib.trace(cnnlib.build("resnet20"), (3, 32, 32)), ax),
            "9 blocks have 512 paths, and a drawing takes at most 64",
        ),
        (
            lambda g, ax: plots.draw_blocks(cnnlib.trace(cnnlib.build("plain20"), (3, 32, 32)), ax),
            "has no residual block",
        ),
        (lambda g, ax: plots.draw_blocks(cnnlib.trace(Parallel(), SHAPE), ax), "draw_unrolled shows it"),
        (lambda g, ax: explorers.explore_residual_paths(blocks=60), "wanted 1 <= blocks <= most <= 128, got blocks=60"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_rule(call, message, graph, ax):
    with pytest.raises(ValueError, match=message):
        call(graph, ax)


# ---------------------------------------------------------------------------------------------------------------
# The explorer


def test_the_page_holds_what_cnnlib_computes(whole):
    page = whole(explorers.explore_residual_paths)
    told = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    for blocks, law in enumerate(told["laws"]):
        assert law["paths"] == f"{2**blocks:,}"
        assert law["shares"] == pytest.approx([c / 2**blocks for c in path_lengths(blocks)], rel=1e-5)
        assert share_of_paths(blocks, law["low"], law["high"]) >= 0.95
    assert told["known"] == {
        "9": "ResNet-20",
        "15": "ResNet-32",
        "21": "ResNet-44",
        "27": "ResNet-56",
        "54": "ResNet-110",
    }


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_moved_in_a_browser_it_shows_the_paths_that_are_left(alone, scheme):
    page = alone(explorers.explore_residual_paths(), color_scheme=scheme)
    figure = page.locator("figure")

    def reading() -> str:
        return figure.locator(".reading").inner_text()

    def heights(kind: str) -> list[float]:
        return figure.locator(f"rect.{kind}").evaluate_all("bars => bars.map(b => Number(b.getAttribute('height')))")

    assert reading().startswith("54 blocks, as ResNet-110, 0 deleted: 18,014,398,509,481,984 paths.")
    low, high = central_lengths(54)
    assert f"enter {low} to {high} of the 54 blocks" in reading()

    # By keyboard, as a reader without a mouse does.
    figure.locator('[name="deleted"]').focus()
    page.keyboard.press("ArrowRight")
    assert "9,007,199,254,740,992 of 18,014,398,509,481,984 paths are left, 1 in 2." in reading()

    figure.locator('[name="blocks"]').focus()
    page.keyboard.press("Home")
    assert reading().startswith("1 block, 1 deleted: 1 of 2 paths are left, 1 in 2.")
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    figure.locator('[name="deleted"]').focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert reading().startswith("10 blocks, 4 deleted: 64 of 1,024 paths are left, 1 in 16.")
    for kind, blocks in (("now", 6), ("before", 10)):
        shown, counts = heights(kind), path_lengths(blocks)
        assert [h / sum(shown) for h in shown[: blocks + 1]] == pytest.approx([c / 2**blocks for c in counts], abs=1e-5)
        assert not any(shown[blocks + 1 :])
    assert figure.locator('[name="deleted"]').get_attribute("max") == "10"
