"""Drawings of architectures show what is in the traced graph, all of it once, and can be read."""

from __future__ import annotations

import copy
import itertools
import math
from functools import cache

import matplotlib
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import nn

import cnnlib
from cnnlib import plots
from cnnlib.plots import describe, draw_network, outline
from cnnlib.plots.networks.canvas import SIZE, kind_colour
from cnnlib.plots.networks.parts import Fork, Mesh, Unit, span
from cnnlib.plots.style import INK, PALETTE

# One network of each family, and those whose wiring is special.
ZOO = (
    *("lenet5_1998", "alexnet", "vgg_d", "nin", "googlenet", "bn_inception", "inception_v3", "inception_v4"),
    *("inception_resnet_v2", "xception", "highway19", "highway32", "resnet20", "resnet50", "preact_resnet164"),
    *("resnext50_32x4d", "densenet121", "densenet40_k12", "fcn8s", "se_resnet50", "vit_b_16", "convnext_tiny"),
    "mobilenet_v1",
)


@cache
def traced(name: str, training: bool = False):
    with torch.device("meta"):
        model = cnnlib.build(name)
    return cnnlib.trace(model, cnnlib.card(name).input_shape, training=training)


@cache
def outlined(name: str, training: bool = False):
    return outline(traced(name, training))


def drawn(network):
    figure = Figure(figsize=(7.2, 4))
    FigureCanvasAgg(figure)
    return draw_network(network, figure.subplots())


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def wiring(items) -> str:
    """A series as one line: units in brackets, branches between braces."""
    found = []
    for item in items:
        if isinstance(item, Unit):
            found.append(f"[{item.text()}]")
        elif isinstance(item, Fork):
            found.append("{" + " | ".join(map(wiring, item.branches)) + "}" + item.merge)
            found += item.after
        else:
            found.append(f"mesh of {len(item.parts)}")
    return " ".join(found)


def stage(drawing, name):
    return next(stage for stage in drawing.stages if stage.name == name)


# The outline against the graph ---------------------------------------------------------------------------------


def conserved(graph, drawing):
    inside = [name for entry in drawing.entries() for block in entry.blocks for name in block.names]
    inside += [name for head in drawing.heads for item in head.items for name in item.names]
    assert sorted(inside) == sorted(n.name for n in graph if n.live and n.kind not in ("input", "output"))
    for kind in ("conv", "conv_transpose", "linear", "max_pool"):
        assert sum(u.kind == kind for u in drawing.units()) == sum(n.kind == kind for n in graph if n.live), kind
    # What is folded stands for as many as it says.
    for kind in ("conv", "linear"):
        folded = sum(e.times * sum(u.kind == kind for u in e.block.units()) for e in drawing.entries())
        heads = sum(u.kind == kind for head in drawing.heads for u in head.units())
        assert folded + heads == sum(n.kind == kind for n in graph if n.live)


@pytest.mark.parametrize("name", ZOO)
def test_every_operation_of_the_graph_is_in_the_outline_once(name):
    conserved(traced(name), outlined(name))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_every_operation_in_training_is_in_the_outline_once_heads_included(name):
    conserved(traced(name, training=True), outlined(name, training=True))


@pytest.mark.parametrize("name", ZOO)
def test_stages_carry_the_shapes_of_the_graph_in_its_order(name):
    graph, drawing = traced(name), outlined(name)
    position = {node.name: i for i, node in enumerate(graph)}
    last = [max(position[n] for b in entry.blocks for n in b.names) for entry in drawing.entries()]
    assert last == sorted(last) or any(s.times > 1 for s in drawing.stages)
    for entry in drawing.entries():
        end = max(entry.blocks[-1].names, key=position.__getitem__)
        assert entry.shape == graph[end].shape
    assert list(drawing.entries())[-1].shape == graph.output.shape


def test_an_outline_is_the_same_for_the_same_network():
    with torch.device("meta"):
        again = cnnlib.trace(cnnlib.build("googlenet"), (3, 224, 224))
    assert outline(again) == outlined("googlenet")
    assert describe(again) == describe(traced("googlenet"))
    assert texts(drawn(again)) == texts(drawn(traced("googlenet")))


# What is found in famous networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "resnet50_v1_5", "resnext50_32x4d", "se_resnet50"])
def test_resnets_of_50_layers_have_3_4_6_3_bottlenecks_and_the_first_of_each_stage_stands_alone(name):
    drawing = outlined(name)
    for layer, blocks in zip(("layer1", "layer2", "layer3", "layer4"), (3, 4, 6, 3)):
        first, rest = stage(drawing, layer).entries
        assert (first.times, rest.times) == (1, blocks - 1)
        (fork,) = first.block.items
        assert fork.merge == "add"
        assert fork.after == ("ReLU",)
        assert [len(branch) > 0 for branch in fork.branches] == [True, True]
        assert () in rest.block.items[0].branches
    assert len(drawing.forms) == 3


def test_the_strides_of_resnet50_are_where_each_version_has_them():
    def strides(name):
        fork = stage(outlined(name), "layer2").entries[0].block.items[0]
        return [unit.stride for unit in fork.branches[0]]

    assert strides("resnet50") == [(2, 2), (1, 1), (1, 1)]
    assert strides("resnet50_v1_5") == [(1, 1), (2, 2), (1, 1)]


def test_plain_networks_fold_without_any_branch():
    with torch.device("meta"):
        graph = cnnlib.trace(cnnlib.build("plain34"), (3, 224, 224))
    drawing = outline(graph)
    assert not drawing.forms
    assert [sum(e.times for e in stage(drawing, f"layer{i}").entries) for i in (1, 2, 3, 4)] == [3, 4, 6, 3]


def test_googlenet_has_nine_modules_of_one_form_with_the_four_branches_of_the_paper():
    drawing = outlined("googlenet")
    (form,) = drawing.forms
    assert len(form.entries) == 9
    assert wiring(stage(drawing, "inception3a").entries[0].block.items) == (
        "{[1×1, 64 ReLU] | [1×1, 96 ReLU] [3×3, 128 ReLU] | [1×1, 16 ReLU] [5×5, 32 ReLU] "
        "| [3×3 max pool] [1×1, 32 ReLU]}cat"
    )
    # Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj of 5b.
    last = [unit.width for unit in stage(drawing, "inception5b").entries[0].block.units() if unit.width]
    assert last == [384, 192, 384, 48, 128, 128]


@pytest.mark.parametrize("name", ["densenet121", "torchvision"])
def test_densenet121_has_6_12_24_16_layers_that_each_add_32_maps(name):
    if name == "torchvision":
        with torch.device("meta"):
            drawing = outline(cnnlib.trace(torchvision.models.densenet121(), (3, 224, 224)))
    else:
        drawing = outlined(name)
    blocks = [stage(drawing, f"features.denseblock{i}").entries for i in (1, 2, 3, 4)]
    assert [[entry.times for entry in entries] for entries in blocks] == [[6], [12], [24], [16]]
    assert {entry.growth for entries in blocks for entry in entries} == {32}
    assert wiring(blocks[0][0].block.items) == "{ | [BN ReLU 1×1, 128] [BN ReLU 3×3, 32]}cat"
    assert len(drawing.forms) == 1
    assert wiring(stage(drawing, "features.transition1").entries[0].block.items) == (
        "[BN ReLU 1×1, 128] [2×2 avg pool /2]"
    )


def test_inception_v4_has_four_seven_and_three_modules_and_eight_forms():
    drawing = outlined("inception_v4")
    assert [(s.name, s.entries[0].times) for s in drawing.stages if s.entries[0].times > 1] == [
        *[("features.6–9", 4), ("features.11–17", 7), ("features.19–21", 3)]
    ]
    assert len(drawing.forms) == 8
    # The third kind of module ends in convolutions that fork without a merge of their own.
    assert wiring(stage(drawing, "features.19–21").entries[0].block.items) == (
        "{[1×1, 256 BN ReLU] | [1×1, 384 BN ReLU] {[1×3, 256 BN ReLU] | [3×1, 256 BN ReLU]} "
        "| [1×1, 384 BN ReLU] [3×1, 448 BN ReLU] [1×3, 512 BN ReLU] {[1×3, 256 BN ReLU] | [3×1, 256 BN ReLU]} "
        "| [3×3 avg pool] [1×1, 256 BN ReLU]}cat"
    )


def test_a_gate_is_a_fork_inside_a_branch():
    block = stage(outlined("se_resnet50"), "layer1").entries[1].block
    assert wiring(block.items) == (
        "{[1×1, 64 BN ReLU] [3×3, 64 BN ReLU] [1×1, 256 BN] "
        "{[global avg pool] [1×1, 16 ReLU] [1×1, 256 sigmoid] | }mul | }add ReLU"
    )


def test_a_highway_layer_is_a_mesh_whose_gate_is_read_twice():
    entry = stage(outlined("highway19"), "conv2–5").entries[0]
    (mesh,) = entry.block.items
    assert isinstance(mesh, Mesh)
    assert entry.times == 4
    words = [part.text() for part in mesh.parts]
    assert words == ["3×3, 32 ReLU", "3×3, 32 sigmoid", "×", "1 −", "×", "+"]
    # T(x) H(x) + (1 - T(x)) x, with -1 for x.
    assert set(mesh.links) == {(-1, 0), (-1, 1), (0, 2), (1, 2), (1, 3), (3, 4), (-1, 4), (2, 5), (4, 5)}


def test_a_sequence_that_alternates_is_folded_as_a_sequence():
    found = [s for s in outlined("highway32").stages if s.times > 1]
    assert [(s.name, s.times, len(s.entries)) for s in found] == [
        *[("conv2–9", 4, 2), ("conv12–19", 4, 2), ("conv22–29", 4, 2)]
    ]
    assert not any(entry.reads for s in found for entry in s.entries)


def test_what_skips_stages_is_named_where_it_is_read():
    reads = {entry.name: entry.reads for entry in outlined("fcn8s").entries() if entry.reads}
    assert reads["score_pool4"] == ("pool4",)
    assert reads["score_pool3"] == ("pool3",)
    sums = [e.reads for e in outlined("fcn8s").entries() if e.block.kind == "add"]
    assert sums == [("upscore2", "score_pool4"), ("upscore_pool4", "score_pool3")]
    assert not any(entry.reads for entry in outlined("resnet50").entries())


def test_normalisation_and_activation_stand_on_the_side_of_the_convolution_where_they_run():
    before = stage(outlined("preact_resnet164"), "layer1").entries[1].block
    assert wiring(before.items) == "{ | [BN ReLU 1×1, 16] [BN ReLU 3×3, 16] [BN ReLU 1×1, 64]}add"
    assert [s.name for s in outlined("preact_resnet164").stages][-3:] == ["tail", "avgpool", "fc"]
    xception = stage(outlined("xception"), "block4–11").entries[0].block
    assert wiring(xception.items) == "{" + " ".join(["[ReLU 3×3 depthwise] [1×1, 728 BN]"] * 3) + " | }add"
    assert [e.block.items[0].text() for e in outlined("alexnet").entries()] == [
        *["11×11, 96 /4 ReLU LRN", "3×3 max pool /2", "5×5, 256, 2 groups ReLU LRN", "3×3 max pool /2"],
        *["3×3, 384 ReLU", "3×3, 384, 2 groups ReLU", "3×3, 256, 2 groups ReLU", "3×3 max pool /2"],
        *["linear 4096 ReLU dropout", "linear 4096 ReLU dropout", "linear 1000"],
    ]


def test_attention_written_out_is_one_unit_as_torchs_own_is():
    ours = stage(outlined("vit_b_16"), "encoder").entries[1]
    assert ours.times == 12
    assert "[LN linear 2304] [attention, 12 heads] [linear 768]" in wiring(ours.block.items)
    with torch.device("meta"):
        theirs = outline(cnnlib.trace(torchvision.models.vit_b_16(), (3, 224, 224)))
    assert "[LN attention, 12 heads]" in wiring(stage(theirs, "encoder").entries[1].block.items)
    assert stage(theirs, "encoder").entries[1].times == 12


def test_the_same_network_by_other_hands_has_the_same_outline():
    with torch.device("meta"):
        theirs = outline(cnnlib.trace(torchvision.models.resnet50(), (3, 224, 224)))
    ours = outlined("resnet50_v1_5")
    assert [e.block.signature() for e in theirs.entries()] == [e.block.signature() for e in ours.entries()]
    assert [e.times for e in theirs.entries()] == [e.times for e in ours.entries()]


def test_heads_hang_where_they_leave_the_trunk():
    heads = outlined("googlenet", training=True).heads
    assert {head.name: head.reads for head in heads} == {"aux1": "inception4a", "aux2": "inception4d"}
    assert wiring(heads[0].items) == "[5×5 avg pool /3] [1×1, 128 ReLU] [linear 1024 ReLU dropout] [linear 1000]"
    assert not outlined("googlenet").heads
    assert {"aux1", "aux2"} <= set(texts(drawn(outlined("googlenet", training=True))))


# Networks of other hands ---------------------------------------------------------------------------------------


class Grown(nn.Module):
    """A dense block that concatenates its running list, or all that came before, in either order."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(5))

    def forward(self, x):
        maps = [self.stem(x)]
        for layer in self.layers:
            if self.way == "running":
                maps = [torch.cat([maps[0], layer(maps[0])], 1)]
            elif self.way == "newest first":
                maps.insert(0, layer(torch.cat(maps, 1)))
            else:
                maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


@pytest.mark.parametrize("way", ["running", "list", "newest first"])
def test_dense_connections_are_the_same_however_they_are_written(way):
    graph = cnnlib.trace(Grown(way), (3, 8, 8))
    drawing = outline(graph)
    conserved(graph, drawing)
    # Where the list has one member there is nothing to concatenate yet.
    dense = [entry for entry in drawing.entries() if entry.growth]
    assert sum(entry.times for entry in dense) == 5
    assert {entry.growth for entry in dense} == {4}
    assert all(wiring(e.block.items) in ("{ | [3×3, 4]}cat", "{[3×3, 4] | }cat") for e in dense)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)])
        self.bottom = nn.Conv2d(16, 32, 3, padding=1)
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.out = nn.ModuleList([nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)])

    def forward(self, x):
        a = F.relu(self.down[0](x))
        b = F.relu(self.down[1](F.max_pool2d(a, 2)))
        c = F.relu(self.bottom(F.max_pool2d(b, 2)))
        b = F.relu(self.out[0](torch.cat([b, self.up[0](c)], 1)))
        return self.out[1](torch.cat([a, self.up[1](b)], 1))


def test_a_u_net_is_a_row_of_stages_with_its_skips_named():
    graph = cnnlib.trace(UNet(), (3, 32, 32))
    drawing = outline(graph)
    conserved(graph, drawing)
    assert [entry.reads for entry in drawing.entries() if entry.block.kind == "cat"] == [
        *[("down.1", "up.0"), ("down.0", "up.1")]
    ]


class Wide(nn.Module):
    """One block of many equal branches, summed."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 3)) for _ in range(branches))

    def forward(self, x):
        return torch.cat([path(x) for path in self.paths], 1)


def test_equal_branches_are_one_column_with_their_number():
    graph = cnnlib.trace(nn.Sequential(nn.Conv2d(3, 4, 3), Wide(32)), (3, 16, 16))
    drawing = outline(graph)
    conserved(graph, drawing)
    ax = drawn(drawing)
    assert "×32" in texts(ax)
    readable(ax)
    assert "32 times" in describe(drawing)


class Tangle(nn.Module):
    """Each layer reads the two before it."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(layers))

    def forward(self, x):
        a = b = x
        for layer in self.layers:
            a, b = b, layer(a + b)
        return a * b


@pytest.mark.parametrize("layers", [2, 5, 40])
def test_what_has_no_branches_is_still_drawn_whole(layers):
    graph = cnnlib.trace(Tangle(layers), (4, 8, 8))
    drawing = outline(graph)
    conserved(graph, drawing)
    readable(drawn(drawing))
    assert describe(drawing)


class Same(nn.Module):
    """One layer used four times, and a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.score = nn.Linear(3, 2)

    def forward(self, x):
        for _ in range(4):
            x = x + F.relu(self.conv(x))
        return self.score(x.mean((2, 3))), x.amax((2, 3))


def test_a_shared_layer_counts_each_time_it_runs_and_a_second_output_is_a_head():
    graph = cnnlib.trace(Same(), (3, 8, 8))
    drawing = outline(graph)
    conserved(graph, drawing)
    assert sum(unit.kind == "conv" for unit in drawing.units()) == 4
    assert len(drawing.heads) == 1


class Steps(nn.Module):
    """Layers of random kinds on random earlier values."""

    def __init__(self, steps) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(nn.Conv2d(2, 2, 1) if kind == "conv" else nn.Identity() for kind, _, _ in steps)

    def forward(self, x):
        values = [x]
        for layer, (kind, a, b) in zip(self.layers, self.steps):
            first, second = values[a % len(values)], values[b % len(values)]
            values.append(
                layer(first)
                if kind in ("conv", "identity")
                else F.relu(first)
                if kind == "relu"
                else first + second
                if kind == "add"
                else torch.cat([first, second], 1)[:, :2]
            )
        return values[-1] if len(values) > 1 else values[-1] * 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["conv", "relu", "add", "cat", "identity"]), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=14,
    )
)
def test_any_wiring_is_conserved(steps):
    graph = cnnlib.trace(Steps(steps), (2, 4, 4))
    drawing = outline(graph)
    inside = [name for entry in drawing.entries() for block in entry.blocks for name in block.names]
    needed = graph.ancestors(graph.output.inputs[0]) - {"input"}
    assert len(inside) == len(set(inside))
    assert needed <= set(inside)
    assert describe(drawing)


# A change in the network changes the drawing -------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def swapped(index, layer):
    def change(model):
        model[index] = layer

    return change


@pytest.mark.parametrize(
    "change",
    [
        swapped(0, nn.Conv2d(3, 8, 5, padding=2)),
        swapped(0, nn.Conv2d(3, 8, 3, padding=1, stride=2)),
        swapped(0, nn.Conv2d(3, 8, 3)),
        swapped(0, nn.Conv2d(3, 8, (3, 1), padding=(1, 0))),
        swapped(1, nn.GroupNorm(2, 8)),
        swapped(1, nn.Identity()),
        swapped(2, nn.GELU()),
        swapped(3, nn.AvgPool2d(2)),
        swapped(3, nn.MaxPool2d(3, 2, 1)),
        swapped(3, nn.MaxPool2d(2, 1)),
        swapped(4, nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)),
        swapped(4, nn.Conv2d(8, 8, 3, padding=1, groups=2)),
        swapped(4, nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)),
        swapped(5, nn.Sequential(nn.ReLU(), nn.Dropout(0.5))),
        swapped(6, nn.AdaptiveMaxPool2d(1)),
        swapped(8, nn.Linear(8, 6)),
    ],
)
def test_a_changed_layer_changes_the_drawing_and_its_words(change):
    model = small()
    before = outline(cnnlib.trace(model, (3, 16, 16)))
    changed = copy.deepcopy(model)
    change(changed)
    after = outline(cnnlib.trace(changed, (3, 16, 16)))
    assert texts(drawn(before)) != texts(drawn(after))
    assert describe(before) != describe(after)


def test_branches_are_drawn_in_the_order_of_their_maps():
    class Pair(nn.Module):
        def __init__(self, swap: bool) -> None:
            super().__init__()
            self.one, self.three, self.swap = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), swap

        def forward(self, x):
            parts = [self.one(x), self.three(x)]
            return torch.cat(parts[::-1] if self.swap else parts, 1)

    lines = [wiring(next(outline(cnnlib.trace(Pair(s), (3, 8, 8))).entries()).block.items) for s in (False, True)]
    assert lines == ["{[1×1, 4] | [3×3, 4]}cat", "{[3×3, 4] | [1×1, 4]}cat"]


def test_layers_that_differ_in_padding_alone_are_not_folded():
    model = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=p) for p in (1, 1, 0, 0, 0, 1)])
    entries = [e for e in outline(cnnlib.trace(model, (3, 16, 16))).entries()]
    assert [entry.times for entry in entries] == [2, 3, 1]
    # A border wider than the kernel is said: FCN's first layer has 100 pixels of it.
    first = stage(outlined("fcn8s"), "conv1_1").entries[0].block.items[0]
    assert first.text() == "3×3, 64, padding 100 ReLU"


# The picture ---------------------------------------------------------------------------------------------------


def readable(ax) -> None:
    """No text over another or outside the figure, none below 7 points, no box over another."""
    figure = ax.figure
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in ax.texts]
    for text in ax.texts:
        assert text.get_fontsize() >= 7, text
    for i, (word, box) in enumerate(boxes):
        assert box.x0 >= 0, word
        assert box.x1 <= width, word
        assert box.y0 >= 0, word
        assert box.y1 <= height, word
        for other, beside in boxes[:i]:
            apart = (
                box.x1 <= beside.x0 + 1 or beside.x1 <= box.x0 + 1 or box.y1 <= beside.y0 + 2 or beside.y1 <= box.y0 + 2
            )
            assert apart, (word, other)
    frames = [patch.get_window_extent(renderer) for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    for i, box in enumerate(frames):
        assert box.x0 >= 0
        assert box.x1 <= width
        for beside in frames[:i]:
            assert box.x1 <= beside.x0 or beside.x1 <= box.x0 or box.y1 <= beside.y0 or beside.y1 <= box.y0


@pytest.mark.parametrize("name", ZOO)
def test_a_drawing_can_be_read_at_the_width_of_the_page(name):
    ax = drawn(outlined(name))
    assert ax.figure.get_figwidth() == 7.2
    assert ax.figure.get_figheight() <= 11.7
    readable(ax)


def test_a_drawing_with_heads_can_be_read():
    readable(drawn(outlined("googlenet", training=True)))
    readable(drawn(outlined("inception_v3", training=True)))


def test_text_stays_inside_its_box():
    ax = drawn(outlined("inception_v4"))
    renderer = ax.figure.canvas.get_renderer()
    frames = [patch.get_window_extent(renderer) for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    inside = 0
    for text in ax.texts:
        box = text.get_window_extent(renderer)
        middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        for frame in frames:
            if frame.contains(*middle):
                assert frame.x0 <= box.x0
                assert box.x1 <= frame.x1, text.get_text()
                inside += 1
    assert inside >= len(frames)


def test_every_block_is_drawn_with_its_letter_and_every_unit_with_its_words():
    ax = drawn(outlined("resnet50"))
    words = texts(ax)
    for entry in outlined("resnet50").entries():
        form = outlined("resnet50").form_of(entry)
        if form:
            assert f"block {form.letter}" in words
    assert words.count("×5") == 1
    assert {"1×1, 64–512", "3×3, 64–512", "1×1, 256–2048", "1×1, 512–2048 /2"} <= set(words)
    assert "12 in all" in words


def test_slabs_are_as_high_as_the_log_of_the_side_and_as_wide_as_the_log_of_the_maps():
    drawing = outlined("alexnet")
    slabs = [p for p in drawn(drawing).patches if isinstance(p, Rectangle)][: 1 + len(list(drawing.entries()))]
    shapes = [drawing.input_shape, *(entry.shape for entry in drawing.entries())]
    first = slabs[0]
    for slab, shape in zip(slabs, shapes):
        maps, side = shape[0], shape[-1] if len(shape) == 3 else 1
        assert slab.get_width() / first.get_width() == pytest.approx(math.log2(1 + maps) / math.log2(4))
        if len(shape) == 3:
            assert slab.get_height() / first.get_height() == pytest.approx(math.log2(1 + side) / math.log2(228))


def test_slabs_have_the_colour_of_what_their_stage_does():
    drawing = outlined("alexnet")
    slabs = [p for p in drawn(drawing).patches if isinstance(p, Rectangle)][1:12]
    kinds = [entry.block.kind for entry in drawing.entries()]
    assert kinds[:2] == ["conv", "max_pool"]
    for slab, kind in zip(slabs, kinds):
        assert matplotlib.colors.to_hex(slab.get_edgecolor()) == kind_colour(kind)
    assert kind_colour("conv") == PALETTE["blue"]
    assert len({kind_colour(k) for k in ("conv", "max_pool", "linear", "attention", "add", "batch_norm")}) == 6


def test_a_drawing_leaves_the_page_to_its_background():
    with matplotlib.rc_context(plots.STYLE):
        ax = drawn(outlined("lenet5_1998"))
    assert ax.figure.get_facecolor()[3] == 0
    assert not ax.axison
    # Every face lets the page through, and all ink is of the colours that read on a white and on a dark page.
    known = {INK, *PALETTE.values()}
    for patch in ax.patches:
        assert patch.get_facecolor()[3] < 0.5 or patch.get_path().vertices.shape[0] <= 4
    assert {matplotlib.colors.to_hex(text.get_color()) for text in ax.texts} <= known


def test_the_width_of_text_is_measured_as_matplotlib_draws_it():
    ax = drawn(outlined("resnet50"))
    renderer = ax.figure.canvas.get_renderer()
    from cnnlib.plots.networks.canvas import width_of

    for text in ax.texts:
        seen = text.get_window_extent(renderer).width / ax.figure.dpi
        assert width_of(text.get_text(), text.get_fontweight() == "bold") == pytest.approx(seen, abs=0.06)
        assert text.get_fontsize() == SIZE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Figure().subplots(1, 2)[0], "a figure of its own, got one with 2 axes"),
        (lambda: Figure().subfigures(1, 2)[0].subplots(), "a figure of its own, got a part of one"),
        (lambda: Figure(figsize=(3, 3)).subplots(), "at least 4 inches, got 3; use figsize"),
    ],
)
def test_an_axes_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        draw_network(outlined("alexnet"), make())


# The words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_the_alt_text_names_every_stage_with_its_shape_and_every_form(name):
    drawing, words = outlined(name), describe(outlined(name))
    assert words.startswith(name)
    for part in drawing.stages:
        assert f"{part.name}: " in words
        assert f", {'×'.join(map(str, part.shape))}" in words
    for form in drawing.forms:
        assert f"Block {form.letter}" in words


def test_the_alt_text_says_how_many_blocks_and_what_merges():
    words = describe(outlined("resnet50"))
    assert "layer3: block C then 5 × block B, 1024×14×14" in words
    assert "| the input itself), added, ReLU" in words
    assert "24 × block A, each adding 32 maps" in describe(outlined("densenet121"))
    assert "(6) sum of (3) and (5)" in describe(outlined("highway19"))
    assert "aux1 leaves at inception4a" in describe(outlined("googlenet", training=True))
    assert "(reads pool3)" in describe(outlined("fcn8s"))


def test_a_run_of_names_is_shortened_without_losing_its_ends():
    assert span(["inception4b", "inception4c", "inception4d"]) == "inception4b–d"
    assert span(["layer1.1", "layer1.2"]) == "layer1.1–2"
    assert span(["encoder.a", "encoder.norm"]) == "encoder.a–norm"
    assert span(["one", "two"]) == "one–two"


def test_a_merge_that_is_no_sum_is_drawn_with_the_name_of_its_function():
    class Rivals(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.wide = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x):
            return torch.maximum(self.near(x), self.wide(x))

    graph = cnnlib.trace(Rivals(), (3, 32, 32))
    assert "joined by maximum" in describe(graph)
    assert "maximum" in texts(drawn(graph))


@pytest.mark.parametrize("name", ["lenet5_1998", "googlenet", "resnet50", "densenet121", "inception_v4"])
def test_the_notes_of_a_legend_are_whole_sentences_inside_the_page(name):
    ax = drawn(traced(name))
    notes = [text for text in ax.texts if text.get_text().endswith(".")]
    assert notes
    renderer = ax.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in notes]
    assert all(box.x1 <= ax.figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
