"""Growth of dense networks: the lecture's table, arithmetic and graph agree, sums are the network's, weights are read rightly."""

from __future__ import annotations

import copy
import itertools
import math
from collections import OrderedDict

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib import plots
from cnnlib.analysis import concatenations, connection_weights, cost, dense_growth_of, growth_table
from cnnlib.analysis.growth import ConnectionRow, ConnectionTable
from cnnlib.models import densenet
from cnnlib.models.zoo import papers
from cnnlib.plots.growth import AFTER


def built(name: str) -> nn.Module:
    with torch.device("meta"):
        return cnnlib.build(name)


class Dense(nn.Module):
    """A dense block of plain convolutions with a classifier; `grown` says how the new maps join those before."""

    def __init__(self, grown, k0: int = 3, k: int = 2, layers: int = 3, groups: int = 1) -> None:
        super().__init__()
        self.grown = grown
        self.convs = nn.ModuleList(
            nn.Conv2d(k0 + k * i, k, 3, padding=1, groups=groups if i == 1 else 1, bias=False) for i in range(layers)
        )
        self.head = nn.Linear(k0 + k * layers, 2)

    def forward(self, x):
        for conv in self.convs:
            x = self.grown(x, conv(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


JOINED = {
    "new maps behind": lambda x, new: torch.cat([x, new], 1),
    "new maps in front": lambda x, new: torch.cat((new, x), dim=-3),
    "copied between": lambda x, new: torch.cat([F.relu(x.contiguous()), new], 1),
}


class Unet(nn.Module):
    """Maps that go around a detour and are concatenated to its result."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.end = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        low = F.relu(self.down(F.max_pool2d(x, 2)))
        return self.end(torch.cat([x, F.interpolate(self.up(low), scale_factor=2.0)], 1))


# ---------------------------------------------------------------------------------------------------------------
# Arithmetic and graph


def test_the_lectures_table_is_5_9_13_17_and_the_block_gives_21():
    table = growth_table(5, 4, 4)
    assert [row.reads for row in table] == [5, 9, 13, 17]
    assert table.rows[-1].gives == 21
    assert [row.reads for row in table] == [5 + 4 * (row.layer - 1) for row in table]


CIFAR = {
    "densenet40_k12": dict(k0=16, k=12, layers=(12,) * 3),
    "densenet40_k12_halved": dict(k0=24, k=12, layers=(12,) * 3, compression=0.5),
    "densenet22_k12": dict(k0=16, k=12, layers=(6,) * 3),
    "densenet_bc100_k12": dict(k0=24, k=12, layers=(16,) * 3, compression=0.5, bottleneck=4),
}
IMAGENET = {
    f"densenet{depth}": dict(k0=k0, k=k, layers=blocks, compression=0.5, bottleneck=4)
    for depth, (blocks, k, k0) in densenet.IMAGENET.items()
    if depth in (121, 161)
}
NUMBERS = ("what", "block", "layer", "reads", "adds", "gives", "size", "params", "copied", "renewed", "kept")


@pytest.mark.parametrize("name", [*CIFAR, *IMAGENET])
def test_arithmetic_and_graph_agree_row_by_row_on_the_zoos_densenets(name):
    shape = cnnlib.card(name).input_shape
    settings = {**CIFAR, **IMAGENET}[name]
    if name in CIFAR:
        table = growth_table(**settings, size=32, image=(shape[0], 3), classes=10)
        skipped = 0
    else:
        table, skipped = growth_table(**settings, size=56, classes=1000), 1  # their stem has more than a convolution
    found = dense_growth_of(built(name), shape)
    assert [[getattr(row, n) for n in NUMBERS] for row in found.rows[skipped:]] == [
        [getattr(row, n) for n in NUMBERS] for row in table
    ]


@pytest.mark.parametrize("name", ["densenet40_k12_halved", "densenet121"])
def test_the_rows_add_up_to_the_network(name):
    model, shape = built(name), cnnlib.card(name).input_shape
    table, costs = dense_growth_of(model, shape), cost(model, shape)
    assert table.params == costs.params == sum(p.numel() for p in model.parameters())
    assert table.so_far[-1].params == costs.params
    assert table.so_far[-1].naive == costs.activations
    assert table.so_far[-1].naive_bytes == costs.bytes


@pytest.mark.parametrize("name", ["densenet121", "densenet_bc100_k12"])
def test_blocks_give_what_the_papers_table_says(name):
    published = papers()[name]["shapes"]["rows"]
    table = dense_growth_of(built(name), cnnlib.card(name).input_shape)
    for b in range(1, table.blocks + 1):
        assert table.block(b)[-1].gives == published[f"features.denseblock{b}"][0]
    for b, row in enumerate(table.transitions, start=1):
        assert row.gives == published[f"features.transition{b}"][0]
        assert row.compression == 0.5


def test_another_library_is_read_the_same():
    with torch.device("meta"):
        theirs = torchvision.models.densenet121(weights=None)
    ours = dense_growth_of(built("densenet121"), (3, 224, 224))
    found = dense_growth_of(theirs, (3, 224, 224))
    assert [row.reads for row in found] == [row.reads for row in ours]
    assert [row.params for row in found] == [row.params for row in ours]


@pytest.mark.parametrize("way", JOINED)
def test_a_readers_own_block_is_found_however_its_maps_are_joined(way):
    model = Dense(JOINED[way])
    table = dense_growth_of(model, (3, 8, 8))
    assert [(row.reads, row.adds, row.gives) for row in table.layers] == [(3, 2, 5), (5, 2, 7), (7, 2, 9)]
    assert [row.params for row in table.layers] == [9 * 2 * reads for reads in (3, 5, 7)]
    assert table.params == sum(p.numel() for p in model.parameters())


def test_compression_is_floored_as_in_the_networks():
    model = densenet.DenseNet(
        OrderedDict(conv0=nn.Conv2d(1, 5, 3, padding=1)), 5, densenet.DenseLayer, (2, 2), 4, 0.57, 0.0, 3
    )
    table = growth_table(5, 4, (2, 2), compression=0.57, size=8, classes=3)
    assert table.transitions[0].gives == int(0.57 * 13) == 7
    found = dense_growth_of(model, (1, 8, 8))
    assert [row.params for row in found.rows[1:]] == [row.params for row in table]


def test_naive_memory_grows_with_the_square_of_the_layers_and_shared_memory_in_proportion():
    sums = growth_table(16, 12, 20, size=8).so_far
    naive = np.diff([row.naive for row in sums], 2)
    shared = np.diff([row.shared for row in sums], 2)
    # Each layer copies 12 maps more than the last and renews twice as many: 3 * 12 * 64 values.
    assert set(naive) == {3 * 12 * 64}
    assert set(shared) == {0}
    assert all(row.shared <= row.naive for row in sums)


# ---------------------------------------------------------------------------------------------------------------
# Concatenations, and what is no dense block


def test_every_concatenation_of_any_network_is_a_row():
    model = built("googlenet")
    rows = concatenations(model, (3, 224, 224))
    assert len(rows) == 9
    first = rows[0]
    assert [maps for _, maps in first.parts] == [64, 128, 32, 32]
    assert (first.maps, first.size, first.values) == (256, (28, 28), 256 * 28 * 28)
    assert first.bytes == 4 * first.values
    assert all(sum(n for _, n in row.parts) == row.maps for row in rows)


@pytest.mark.parametrize("name", ["googlenet", "resnet20", "inception_v3"])
def test_branches_and_shortcuts_are_no_dense_blocks(name):
    with pytest.raises(ValueError, match=r"no dense block: no chain of at least two layers .* concatenations"):
        dense_growth_of(built(name), cnnlib.card(name).input_shape)


def test_a_detour_is_no_dense_block():
    with pytest.raises(ValueError, match="Unet has no dense block"):
        connection_weights(Unet(), (2, 8, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: growth_table(0, 4, 4), "k0 must be at least 1, got 0"),
        (lambda: growth_table(5, 4, (4, 0)), "layers must be at least 1, got 0"),
        (lambda: growth_table(5, 4, 4, compression=1.5), r"compression must be in \(0, 1\], .*; got 1.5"),
        (lambda: growth_table(1, 1, (1, 1), compression=0.3), "compression 0.3 leaves none of 2 maps"),
        (lambda: growth_table(5, 4, (4, 4, 4), size=2), "3 blocks halve the maps 2 times, which a side of 2 does not"),
        (lambda: growth_table(5, 4, 4, bottleneck=-1), r"bottleneck must be 0 \(none\) or the multiple"),
        (lambda: growth_table(5, 4, 4).block(2), "has the blocks 1 to 1, got 2"),
    ],
)
def test_what_does_not_make_sense_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_table_shows_itself_and_its_plain_values():
    table = growth_table(5, 4, 4)
    assert "block 1, layer 4     17     4     21" in repr(table)
    assert table._repr_html_().count("<tr>") == 5
    plain = table.to_dict()["rows"][-1]
    assert (plain["gives"], plain["so_far"]["params"]) == (21, table.params)


# ---------------------------------------------------------------------------------------------------------------
# Weights between layers


def set_slices(conv: nn.Conv2d, edges: list[int], values: list[float]) -> None:
    with torch.no_grad():
        for (first, last), value in zip(itertools.pairwise(edges), values):
            signs = torch.where(torch.rand(conv.weight[:, first:last].shape) < 0.5, -1.0, 1.0)
            conv.weight[:, first:last] = value * signs


@pytest.mark.parametrize("way", JOINED)
def test_weights_belong_to_the_layer_whose_maps_they_read(way):
    torch.manual_seed(0)
    model = Dense(JOINED[way])
    front = way == "new maps in front"
    for layer, conv in enumerate(model.convs, start=1):
        # Source s of layer l weighs s + 10 l.
        sizes = [3, *[2] * (layer - 1)]
        values = [s + 10.0 * layer for s in range(layer)]
        sizes, values = (sizes[::-1], values[::-1]) if front else (sizes, values)
        set_slices(conv, [0, *np.cumsum(sizes).tolist()], values)
    table = connection_weights(model, (3, 8, 8))
    for row in table:
        if row.kind == "layer":
            assert row.weight == pytest.approx(row.source + 10 * row.target)
            assert row.l1 == pytest.approx(9 * row.weight)
    assert [(row.source, row.target) for row in table if row.kind == "layer"] == [
        (s, t) for t in (1, 2, 3) for s in range(t)
    ]
    after = [row for row in table if row.kind == "after"]
    assert [row.reader for row in after] == ["head"] * 4
    assert [row.source for row in after] == [0, 1, 2, 3]
    order = [9 - 2 - 2 * i for i in range(3)] if front else [3 + 2 * i for i in range(3)]
    weight = model.head.weight.detach().abs()
    starts = [0, 2, 4] if front else order
    expected = {3 - i if front else i + 1: weight[:, s : s + 2].mean().item() for i, s in enumerate(starts)}
    for row in after[1:]:
        assert row.weight == pytest.approx(expected[row.source])


def test_groups_leave_out_what_a_filter_does_not_see():
    torch.manual_seed(0)
    model = Dense(JOINED["new maps behind"], k0=2, k=2, groups=2)
    weight = model.convs[1].weight.detach().abs()  # two filters of two maps each: 0, 1 and 2, 3
    rows = {row.source: row for row in connection_weights(model, (2, 8, 8)) if row.target == 2}
    assert rows[0].weight == pytest.approx(weight[0].mean().item())
    assert rows[1].weight == pytest.approx(weight[1].mean().item())


def test_a_trained_densenets_weights_are_those_of_its_slices():
    model = cnnlib.build("densenet22_k12")
    shape = cnnlib.card("densenet22_k12").input_shape
    before = copy.deepcopy(model.state_dict())
    table = connection_weights(model, shape)
    assert table.blocks == 3
    assert [len(table.block(b)) for b in (1, 2, 3)] == [6 * 7 // 2 + 7] * 3
    conv = model.features.denseblock2.denselayer3.conv1.weight.detach().abs()
    rows = {row.source: row for row in table.block(2) if row.target == 3}
    assert rows[0].maps == 88
    assert rows[2].weight == pytest.approx(conv[:, 100:112].mean().item())
    # Mean of the sources, by their maps, is the mean over the filter.
    assert sum(r.weight * r.maps for r in rows.values()) / 112 == pytest.approx(conv.mean().item())
    after = {row.reader for row in table if row.kind == "after"}
    assert after == {"features.transition1.conv", "features.transition2.conv", "classifier"}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_that_are_computed_are_refused_with_a_way_out():
    class Computed(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight / 2, padding=1)

    model = Dense(JOINED["new maps behind"])
    model.convs[1] = Computed(5, 2, 3)
    with pytest.raises(ValueError, match="computes its weights, so that no stored tensor holds them"):
        connection_weights(model, (3, 8, 8))


# ---------------------------------------------------------------------------------------------------------------
# Drawings


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_a_bar_stands_for_each_layer_with_its_maps(ax):
    plots.draw_growth(growth_table(5, 4, 4), ax)
    heights = [(bar.get_y(), bar.get_height()) for bar in ax.patches]
    assert heights == [pair for reads in (5, 9, 13, 17) for pair in ((0, reads), (reads, 4))]
    assert "21" in [text.get_text() for text in ax.texts]


def test_memory_is_drawn_in_megabytes_and_needs_values(ax):
    table = growth_table(16, 12, (2, 2), size=32)
    plots.draw_growth_memory(table, ax)
    assert ax.lines[0].get_ydata()[-1] == table.so_far[-1].naive_bytes / 1e6
    assert ax.lines[1].get_ydata()[-1] == table.so_far[-1].shared_bytes / 1e6
    with pytest.raises(ValueError, match=r"no values; give growth_table.* the side"):
        plots.draw_growth_memory(growth_table(5, 4, 4), ax)


def test_the_heat_map_has_a_column_for_each_reader_and_frames_those_behind_the_block(ax):
    weights = {(0, 1): 0.2, (0, 2): 0.1, (1, 2): 0.4, (0, 3): 0.3, (1, 3): 0.6, (2, 3): 0.15}
    rows = tuple(
        ConnectionRow(1, s, t, "after" if t == 3 else "layer", f"l{s}", f"l{t}", 1, w, w)
        for (s, t), w in weights.items()
    )
    plots.draw_connection_weights(ConnectionTable("net", rows), 1, ax, relative=False)
    shown = ax.images[0].get_array().filled(math.nan)
    assert {(s, t): shown[s, t - 1] for s, t in weights} == weights
    assert np.isnan(shown[1, 0])
    assert np.isnan(shown[2, :2]).all()
    (frame,) = [p for p in ax.patches if p.get_edgecolor() == matplotlib.colors.to_rgba(AFTER)]
    assert (frame.get_x(), frame.get_width(), frame.get_height()) == (1.5, 1, 3)


def test_relative_weights_have_a_largest_one_in_each_column(ax):
    plots.draw_connection_weights(connection_weights(Dense(JOINED["new maps behind"]), (3, 8, 8)), 1, ax)
    assert np.nanmax(ax.images[0].get_array().filled(math.nan), axis=0).tolist() == [1, 1, 1, 1]
