"""The page on residual networks: its explorer against cnnlib's counts, its drawings, and what its sentences rest on."""

from __future__ import annotations

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import cnnlib
from cnnlib import explorers, plots
from cnnlib.analysis import cost, learn_identity
from cnnlib.explorers.residual_networks import DESIGNS, FACTORS, WAYS, residual_network
from cnnlib.models import preact_resnet, resnet

CHOSEN = [
    ("CIFAR, 8 layers", "plain", 1),
    ("CIFAR, 20 layers", "A", 1),
    ("CIFAR, 56 layers", "C", 4),
    ("ImageNet, 18 layers", "plain", 2),
    ("ImageNet, 34 layers", "B", 1),
    ("ImageNet, 50 layers", "plain", 1),
    ("ImageNet, 101 layers", "A", 8),
    ("ImageNet, 152 layers", "C", 1),
]


def counted(title, way, factor):
    """Parameters and MACs of each stage, and of what stands before and behind, in the whole network as built."""
    design = DESIGNS[title]
    with torch.device("meta"):
        net = residual_network(design, way, factor)
    stages = cost(net, (3, design.side, design.side)).by_stage()
    parts = {"conv1": [0, 0], **{name: [0, 0] for name in stages if name.startswith("layer")}, "fc": [0, 0]}
    for name, total in stages.items():
        home = name if name in parts else "fc" if name in ("avgpool", "flatten") else "conv1"
        parts[home][0] += total.params
        parts[home][1] += total.macs
    return {name: tuple(numbers) for name, numbers in parts.items()}


@pytest.mark.parametrize(("title", "way", "factor"), CHOSEN)
def test_stages_added_up_from_two_blocks_are_those_of_the_whole_network(title, way, factor):
    parts = explorers.residual_numbers(DESIGNS[title], way, factor)
    assert {part.name: (part.params, part.macs) for part in parts} == counted(title, way, factor)


@pytest.mark.parametrize("title", DESIGNS)
def test_the_papers_networks_have_the_published_counts(title):
    design = DESIGNS[title]
    if title in ("CIFAR, 8 layers", "CIFAR, 14 layers"):  # the paper begins at 20
        return
    name = f"resnet{design.depth}"
    parts = explorers.residual_numbers(design, design.usual)
    published = cnnlib.card(name).published
    assert sum(part.params for part in parts) == published["params"]["value"]
    assert sum(part.macs for part in parts) == published["macs"]["value"]
    rows = {row[0]: row[1:] for row in published.get("shortcuts", {}).get("rows", ())}
    for option, figures in rows.items():
        parts = explorers.residual_numbers(design, option)
        assert [sum(part.params for part in parts), sum(part.macs for part in parts)] == figures


def test_projections_of_the_34_layers_are_three_with_b_and_sixteen_with_c():
    found = {
        way: sum(part.projections for part in explorers.residual_numbers(DESIGNS["ImageNet, 34 layers"], way))
        for way in WAYS
    }
    assert found == {"plain": 0, "A": 0, "B": 3, "C": 16}


def test_what_is_not_offered_is_refused():
    with pytest.raises(ValueError, match=r"no network 'CIFAR, 21 layers'"):
        explorers.explore_residual_networks("CIFAR, 21 layers")
    with pytest.raises(ValueError, match="no shortcut 'D'"):
        explorers.explore_residual_networks(shortcut="D")
    with pytest.raises(ValueError, match="width must be one of 1, 2, 4, 8 times the paper's, got 3"):
        explorers.explore_residual_networks(width=3)
    with pytest.raises(ValueError, match="no shortcut 'D'"):
        residual_network(DESIGNS["CIFAR, 20 layers"], "D")


def test_the_explorer_is_whole_in_itself_and_starts_where_it_is_told(whole):
    page = whole(lambda: explorers.explore_residual_networks("ImageNet, 50 layers", "B"))
    assert f"{25_557_032:,} parameters" in page
    data = json.loads(re.search(r'application/json">(.*?)</script>', page, re.S)[1])
    assert len(data["pieces"]) == 3 * len(WAYS) * len(FACTORS)


def steps(module, channels):
    found = plots.block_steps_of(cnnlib.trace(module, (channels, 8, 8)))
    words = [[node.kind for node in part or ()] for part in (found.before, found.branch, found.shortcut, found.behind)]
    return words if found.shortcut is not None else [words[3]]


def test_blocks_are_taken_apart_as_their_equations_say():
    conv, bn, relu = "conv", "batch_norm", "activation"
    layers = [conv, bn, relu, conv, bn]
    b = resnet.shortcut_of("B")
    assert steps(resnet.PlainBlock(8, 8, 1), 8) == [[*layers, relu]]
    assert steps(resnet.BasicBlock(8, 8, 1, b), 8) == [[], layers, [], [relu]]
    assert steps(resnet.BasicBlock(8, 16, 2, b), 8) == [[], layers, [conv, bn], [relu]]
    made = {
        name: steps(preact_resnet.basic(unit, 8, 8, 1, first=False), 8) for name, unit in preact_resnet.UNITS.items()
    }
    assert made["original"] == [[], layers, [], [relu]]
    assert made["bn_after_addition"] == [[], layers[:-1], [], [bn, relu]]
    assert made["relu_before_addition"] == [[], [*layers, relu], [], []]
    assert made["relu_only_preactivation"] == [[], [relu, *layers], [], []]
    assert made["full_preactivation"] == [[], [bn, relu, *layers[:-1]], [], []]
    first = steps(preact_resnet.basic(preact_resnet.UNITS["full_preactivation"], 8, 8, 1, first=True), 8)
    assert first == [[bn, relu], layers[:-1], [], []]


def test_a_network_is_no_block():
    with pytest.raises(ValueError, match="a block has one addition, got 9"):
        plots.block_steps_of(cnnlib.trace(cnnlib.build("resnet20"), (3, 32, 32)))


def test_drawings_write_every_operation_and_refuse_what_does_not_fit():
    b = resnet.shortcut_of("B")
    unit = {"one": cnnlib.trace(resnet.BasicBlock(8, 16, 2, b), (8, 8, 8))}
    figure, axes = plt.subplots(1, 2)
    plots.draw_residual_units(unit, axes[:1])
    written = sorted(text.get_text() for text in axes[0].texts)
    assert written == sorted(["x", "y", "3×3/2, 16", "BN", "ReLU", "3×3, 16", "BN", "1×1/2, 16", "BN", "ReLU"])
    with pytest.raises(ValueError, match="there are 1 blocks and 2 Axes"):
        plots.draw_residual_units(unit, axes)
    plots.draw_reads(np.array([[1, 0], [0, 2]]), axes[1])
    assert [text.get_text() for text in axes[1].texts] == ["1", "2"]
    plt.close(figure)


def test_a_stream_is_drawn_as_it_is():
    figure, ax = plt.subplots()
    plots.draw_stream({"a": [1.0, 2.0, 4.0]}, ax, colours=["red"], starts=[1])
    assert list(ax.lines[0].get_ydata()) == [1, 2, 4]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3]
    plt.close(figure)


@pytest.mark.parametrize(("unit", "falls"), [("relu_before_addition", False), ("original", True)])
def test_a_branch_that_ends_in_a_relu_lowers_nothing(unit, falls):
    torch.manual_seed(1)
    net = preact_resnet.cifar_preact(20, in_channels=1, unit=unit).double()
    with torch.no_grad():
        x = net.conv1(torch.randn(4, 1, 16, 16, dtype=torch.float64))
        for block in net.layer1:
            y = block(x)
            assert bool((y < x).any()) is falls
            x = y


@pytest.mark.parametrize("seed", [0, 40])
def test_residual_blocks_come_closer_to_the_identity_than_plain_ones_in_every_seed(seed):
    for blocks in (1, 4):
        ends = {
            way: [run.losses[-1] for run in learn_identity(way, blocks, seeds=range(seed, seed + 3))]
            for way in ("plain", "residual")
        }
        assert max(ends["residual"]) < 0.5 * min(ends["plain"])


def test_a_deeper_plain_network_can_answer_as_the_shallower_one_does():
    torch.manual_seed(0)
    shallow, deeper = (resnet.cifar_plain(depth).eval() for depth in (8, 20))
    deeper.load_state_dict(shallow.state_dict(), strict=False)
    for stage in (deeper.layer1, deeper.layer2, deeper.layer3):
        for block in stage[1:]:
            for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
                nn.init.dirac_(conv.weight)
                norm.eps = 0.0
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(shallow(x), deeper(x), atol=1e-6)


def test_the_stride_moves_the_field_by_twice_what_the_three_by_threes_lose():
    fields = [cnnlib.card(name).published["receptive_field"]["value"] for name in ("resnet50", "resnet50_v1_5")]
    assert fields[0] - fields[1] == 2 * (4 + 8 + 16)


def choose(figure, title, way, factor):
    for name, value in zip(("depth", "shortcut", "width"), (title, way, factor)):
        options = list(DESIGNS) if name == "depth" else list(WAYS) if name == "shortcut" else list(FACTORS)
        figure.locator(f'[name="{name}"]').evaluate(
            "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }",
            str(options.index(value)),
        )


def compare(figure, title, way, factor):
    """Choose a network and compare all that the explorer shows with the counts of the network as built."""
    choose(figure, title, way, factor)
    expected = counted(title, way, factor)
    shown = {
        name: tuple(
            int(figure.locator(f'[data-part="{name}"][data-what="{what}"]').inner_text().replace(",", ""))
            for what in ("params", "macs")
        )
        for name in expected
    }
    assert shown == expected
    told = figure.locator(".reading").inner_text()
    params, macs = (sum(column) for column in zip(*expected.values()))
    assert f"{DESIGNS[title].depth} layers" in told
    assert f"{params:,} parameters and {macs:,} multiply-adds" in told
    base = counted(title, DESIGNS[title].usual, 1)
    for total, whole in zip((params, macs), (sum(column) for column in zip(*base.values()))):
        assert f"{total / whole:.2f}" in told
    projections = sum(part.projections for part in explorers.residual_numbers(DESIGNS[title], way, factor))
    if way == "plain":
        assert "no shortcut" in told
    else:
        assert f"in {projections} projection" in told


@pytest.mark.browser
def test_the_explorer_shows_in_a_browser_what_cnnlib_counts(alone):
    page = alone(explorers.explore_residual_networks())
    figure = page.locator('[data-explorer="residual-networks"]')
    for chosen in CHOSEN:
        compare(figure, *chosen)
    figure.locator('[name="shortcut"]').focus()
    before = figure.locator(".reading").inner_text()
    page.keyboard.press("ArrowUp")
    assert figure.locator(".reading").inner_text() != before


@pytest.mark.site
@pytest.mark.browser
def test_the_explorer_of_the_page_counts_as_cnnlib_does(reader):
    figure = reader().open("book/resnet").locator('[data-explorer="residual-networks"]')
    for chosen in CHOSEN[4:]:
        compare(figure, *chosen)


@pytest.mark.parametrize(
    ("name", "size", "layers", "arcs", "over", "projected"),
    [
        ("vgg_e", 64, 19, 0, 0, 0),
        ("plain34", 64, 34, 0, 0, 0),
        ("resnet34", 64, 34, 16, 2, 3),
        ("resnet50", 64, 50, 16, 3, 4),
    ],
)
def test_ladders_have_the_layers_that_name_a_network_and_an_arc_a_block(name, size, layers, arcs, over, projected):
    with torch.device("meta"):
        graph = cnnlib.trace(cnnlib.build(name), (3, size, size))
    ladder = plots.ladder_of(graph)
    assert len(ladder.sides) == layers
    assert [end - start for start, end, _ in ladder.shortcuts] == [over] * arcs
    assert sum(with_projection for *_, with_projection in ladder.shortcuts) == projected
    figure, ax = plt.subplots()
    plots.draw_ladder(graph, ax, title=name, longest=layers)
    assert (len(ax.patches), len(ax.lines)) == (layers, arcs)
    plt.close(figure)
