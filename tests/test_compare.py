"""Spot the difference: a network is its own equal, one change is one row, and the rows add up to what differs."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections import OrderedDict

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import cnnlib
from cnnlib.analysis import compare
from cnnlib.analysis.differences import _GAP, Layer, _aligned, _cost

SHAPE = (3, 16, 16)


def small(**parts: nn.Module) -> nn.Sequential:
    """A network with one layer of each usual kind; `parts` replace layers by name, None takes one out."""
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 8, 3, padding=1),
        bn1=nn.BatchNorm2d(8),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
        norm2=nn.LocalResponseNorm(5),
        relu2=nn.ReLU(),
        pool2=nn.AvgPool2d(2),
        flatten=nn.Flatten(),
        drop=nn.Dropout(0.5),
        fc=nn.Linear(8 * 4 * 4, 5),
    )
    layers.update(parts)
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))


def said(comparison) -> list[tuple[str, str, str, str]]:
    return [(row.position, row.what, row.in_a, row.in_b) for row in comparison]


def rows_add_up(comparison) -> bool:
    params = sum(row.params for row in comparison) == comparison.params[1] - comparison.params[0]
    return params and sum(row.macs for row in comparison) == comparison.macs[1] - comparison.macs[0]


# --- one change, one row


@pytest.mark.parametrize("name", ["lenet5_1998", "alexnet", "googlenet", "densenet40_k12"])
def test_a_network_compared_with_itself_has_no_rows(name):
    comparison = compare(name, name)
    assert not comparison
    assert comparison.params[0] == comparison.params[1] > 0
    assert "no difference" in repr(comparison)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"conv1": nn.Conv2d(3, 8, 5, padding=2)}, ("conv1", "kernel, padding", "kernel 3x3, padding 1", "kernel 5x5, padding 2")),
        ({"conv2": nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, bias=False)}, ("conv2", "padding, dilation", "padding 1, dilation 1", "padding 2, dilation 2")),
        ({"conv2": nn.Conv2d(8, 8, 3, padding=1, bias=False)}, ("conv2", "groups", "2", "1")),
        ({"conv2": nn.Conv2d(8, 8, 3, padding=1, groups=2)}, ("conv2", "bias", "none", "yes")),
        ({"bn1": nn.BatchNorm2d(8, eps=1e-3)}, ("bn1", "eps", "1e-05", "0.001")),
        ({"bn1": nn.BatchNorm2d(8, momentum=0.01)}, ("bn1", "momentum", "0.1", "0.01")),
        ({"bn1": nn.BatchNorm2d(8, affine=False)}, ("bn1", "affine", "yes", "no")),
        ({"bn1": nn.GroupNorm(2, 8)}, ("bn1", "norm", "batch norm eps 1e-05, momentum 0.1", "group norm eps 1e-05, groups 2")),
        ({"norm2": nn.LocalResponseNorm(5, k=2)}, ("norm2", "k", "1", "2")),
        ({"norm2": nn.LocalResponseNorm(5, alpha=5e-4)}, ("norm2", "alpha", "0.0001", "0.0005")),
        ({"norm2": nn.LocalResponseNorm(3)}, ("norm2", "n", "5", "3")),
        ({"norm2": nn.LocalResponseNorm(5, beta=0.5)}, ("norm2", "beta", "0.75", "0.5")),
        ({"norm2": None}, ("norm2", "missing", "local response norm n 5, alpha 0.0001, beta 0.75, k 1", "-")),
        ({"relu1": nn.Tanh()}, ("relu1", "activation", "relu", "tanh")),
        ({"relu1": nn.LeakyReLU(0.2)}, ("relu1", "function, negative_slope", "function relu, negative_slope -", "function leakyrelu, negative_slope 0.2")),
        ({"pool2": nn.MaxPool2d(2)}, ("pool2", "pooling", "avg pool kernel 2x2, stride 2", "max pool kernel 2x2, stride 2")),
        ({"drop": nn.Dropout(0.1)}, ("drop", "rate", "0.5", "0.1")),
        ({"drop": nn.Dropout(0.0)}, ("drop", "missing", "dropout rate 0.5", "-")),
        ({"fc": nn.Linear(128, 7)}, ("fc", "width", "5", "7")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_one_changed_number_is_one_row(parts, expected):
    comparison = compare(small(), small(**parts), SHAPE)
    assert said(comparison) == [expected]
    assert rows_add_up(comparison)


def test_one_changed_stride_is_one_row_that_carries_what_follows_from_it():
    pooled, strided = small(pool2=None, fc=nn.Linear(8 * 8 * 8, 5)), small(pool2=None)
    strided.conv2.stride = (2, 2)
    comparison = compare(pooled, strided, SHAPE)
    assert said(comparison) == [("conv2", "stride", "1", "2")]
    (row,) = comparison
    assert (row.params, row.macs) == (-5 * 8 * 48, -8 * 36 * 48 - 5 * 8 * 48)


def test_a_width_that_changes_is_one_row_however_many_layers_read_it():
    wide = small(conv1=nn.Conv2d(3, 12, 3, padding=1), bn1=nn.BatchNorm2d(12), conv2=nn.Conv2d(12, 8, 3, padding=1, groups=2, bias=False))  # fmt: skip
    comparison = compare(small(), wide, SHAPE)
    assert said(comparison) == [("conv1", "width", "8", "12")]
    assert comparison.rows[0].params == 4 * 28 + 4 * 2 + 8 * 2 * 9


def test_the_size_of_the_image_is_a_row():
    assert said(compare("alexnet", cnnlib.build("alexnet")))[:1] == []
    assert ("input", "size", "3x227x227", "3x224x224") in said(compare("alexnet", "alexnet_owt"))


# --- what makes no difference


class Same(nn.Module):
    """The layers of `small` called by hand, under other names and as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), (2, 2))
        x = F.relu(F.local_response_norm(self.second(x), 5)).contiguous()
        x = F.dropout(F.avg_pool2d(x, 2).view(x.shape[0], -1), 0.5, self.training)
        return self.last(x)


def test_names_functions_and_flattening_make_no_difference():
    assert said(compare(small(), Same(), SHAPE)) == []


class Head(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 3), pool, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.conv(x)).flatten(1))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(14), Mean(), nn.Sequential(nn.AdaptiveAvgPool2d(14), nn.AvgPool2d(14))])
def test_a_mean_over_the_whole_map_is_the_same_however_it_is_written(pool):
    assert not compare(Head(nn.AdaptiveAvgPool2d(1)), Head(pool), SHAPE)
    assert compare(Head(nn.AdaptiveMaxPool2d(1)), Head(pool), SHAPE)


def test_rounding_up_counts_only_where_a_window_hangs_over_the_edge():
    down, up = small(), small(pool1=nn.MaxPool2d(2, ceil_mode=True))
    assert not compare(down, up, SHAPE)
    up.fc = nn.Linear(8 * 4 * 4, 5)
    down.fc = nn.Linear(8 * 3 * 3, 5)
    assert said(compare(down, up, (3, 15, 15))) == [("pool1", "rounding", "down", "up")]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("alexnet_owt", torchvision.models.alexnet),
        ("resnet50_v1_5", torchvision.models.resnet50),
        ("googlenet_bn", functools.partial(torchvision.models.googlenet, init_weights=False)),
    ],
)
def test_entries_that_follow_torchvision_do_not_differ_from_it(name, theirs):
    with torch.device("meta"):
        assert said(compare(name, theirs())) == []


# --- order and wiring


def test_two_layers_in_the_other_order_are_one_row():
    def net(*order: str) -> nn.Module:
        parts = {"bn": nn.BatchNorm2d(4), "relu": nn.ReLU(), "pool": nn.MaxPool2d(2)}
        middle = [(name, parts[name]) for name in order]
        return nn.Sequential(OrderedDict([("conv1", nn.Conv2d(3, 4, 3)), *middle, ("conv2", nn.Conv2d(4, 4, 3))]))

    comparison = compare(net("bn", "relu", "pool"), net("relu", "bn", "pool"), SHAPE)
    assert said(comparison) == [("bn", "order", "batch norm, activation", "activation, batch norm")]
    comparison = compare(net("bn", "relu", "pool"), net("relu", "pool", "bn"), SHAPE)
    assert [row.what for row in comparison] == ["order"]


class Branches(nn.Module):
    """A sum or a concatenation of two branches, run in one or the other order."""

    def __init__(self, join: str, first: str) -> None:
        super().__init__()
        self.long = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.short = nn.Conv2d(3, 4, 1)
        self.join, self.first = join, first

    def forward(self, x: Tensor) -> Tensor:
        if self.first == "long":
            long, short = self.long(x), self.short(x)
        else:
            short, long = self.short(x), self.long(x)
        if self.join == "add":
            return long + short if self.first == "long" else short + long
        return torch.cat([long, short] if self.join == "cat" else [short, long], dim=1)


def test_which_branch_runs_first_makes_no_difference_but_the_order_of_a_concatenation_does():
    assert not compare(Branches("add", "long"), Branches("add", "short"), SHAPE)
    assert not compare(Branches("cat", "long"), Branches("cat", "short"), SHAPE)
    assert compare(Branches("cat", "long"), Branches("tac", "long"), SHAPE)
    joins = compare(Branches("cat", "long"), Branches("add", "long"), SHAPE)
    assert {row.what for row in joins} == {"missing"}


class Skip(nn.Module):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.conv1, self.conv2, self.source = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), source

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return self.conv2(y) + (x if self.source == "input" else y)


def test_the_same_layers_wired_otherwise_are_a_row():
    assert said(compare(Skip("input"), Skip("conv1"), SHAPE)) == [
        ("add", "wiring", "reads input, conv2", "reads conv1, conv2")
    ]


def test_a_concatenation_inside_another_is_one():
    class Cat(nn.Module):
        def __init__(self, nested: bool) -> None:
            super().__init__()
            self.convs, self.nested = nn.ModuleList(nn.Conv2d(3, n, 1) for n in (1, 2, 3)), nested

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = [conv(x) for conv in self.convs]
            return torch.cat([a, torch.cat([b, c], 1)], 1) if self.nested else torch.cat([a, b, c], 1)

    assert not compare(Cat(True), Cat(False), SHAPE)


# --- the famous pairs


def test_resnet_50_and_v1_5_differ_in_six_strides_and_in_nothing_else():
    comparison = compare("resnet50", "resnet50_v1_5")
    moved = {
        (f"layer{stage}.0.conv{conv}", "stride", a, b)
        for stage in (2, 3, 4)
        for conv, a, b in ((1, "2", "1"), (2, "1", "2"))
    }
    assert set(said(comparison)) == moved
    assert len(comparison) == 6
    assert comparison.params[0] == comparison.params[1] == cnnlib.card("resnet50").published["params"]["value"]
    assert comparison.field == (483, 427)
    assert rows_add_up(comparison)


PAIRS = [
    ("lenet5_1998", "lenet5", {"activation", "pooling", "missing", "width", "layer"}),
    ("alexnet", "alexnet_owt", {"size", "padding, width", "missing", "width, groups", "groups"}),
    ("alexnet", "caffenet", {"order, alpha, k"}),
    ("alexnet", "zfnet", {"size", "kernel, stride, padding", "stride, padding, groups", "groups", "order, rounding"}),
    ("zfnet", "zfnet_wide", {"width"}),
    ("vgg_a", "vgg_a_lrn", {"missing"}),
    (
        "googlenet",
        "googlenet_bn",
        {"bias", "missing", "kernel, padding, bias", "kernel, rounding", "rate", "unused parameters"},
    ),
    ("resnet20", "plain20", {"missing"}),
    ("densenet40_k12", "densenet40_k12_2k", {"width"}),
    ("densenet40_k12", "densenet40_k12_halved", {"width"}),
]


@pytest.mark.parametrize(("a", "b", "what"), PAIRS)
def test_a_famous_pair_differs_in_what_is_known_of_it_and_the_same_from_both_sides(a, b, what):
    comparison, back = compare(a, b), compare(b, a)
    assert {row.what for row in comparison} == what
    assert rows_add_up(comparison)
    for row, mirrored in zip(comparison, back, strict=True):
        assert (row.what, row.in_a, row.in_b) == (mirrored.what, mirrored.in_b, mirrored.in_a)
        assert (row.params, row.macs, row.field) == (-mirrored.params, -mirrored.macs, mirrored.field[::-1])
        assert set(row.position.split(" / ")) == set(mirrored.position.split(" / "))


def test_option_b_adds_two_projections():
    comparison = compare("resnet20", cnnlib.build("resnet20", shortcut="B"))
    assert sum(row.params for row in comparison if row.position.startswith("layer2.0.downsample")) == 16 * 32 + 2 * 32
    assert [row.in_b for row in comparison if row.in_b.startswith("conv")] == [
        f"conv kernel 1x1, stride 2, padding 0, width {width}, bias none" for width in (32, 64)
    ]
    assert rows_add_up(comparison)


# --- the alignment


def letters(word: str) -> tuple[Layer, ...]:
    kinds = {"c": "conv", "r": "activation", "b": "batch_norm", "l": "layer_norm", "p": "max_pool"}
    return tuple(
        Layer(f"layer{i}", kinds[letter.lower()], {"n": "1" if letter.islower() else "2"}, (), (), False, 0, 0, None)
        for i, letter in enumerate(word)
    )


@given(st.text("cCrblp", min_size=1, max_size=7), st.text("cCrblp", min_size=1, max_size=7))
@settings(deadline=None, max_examples=60)
def test_no_alignment_is_cheaper(one, other):
    a, b = letters(one), letters(other)

    def pair(i: int, j: int) -> int:
        return _cost(a[i], b[j]) + 20 * (a[i].name != b[j].name)

    @functools.cache
    def least(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return _GAP * (len(a) - i + len(b) - j)
        return min(pair(i, j) + least(i + 1, j + 1), _GAP + least(i + 1, j), _GAP + least(i, j + 1))

    pairs = _aligned(a, b)
    assert [i for i, _ in pairs if i is not None] == list(range(len(a)))
    assert [j for _, j in pairs if j is not None] == list(range(len(b)))
    assert sum(_GAP if None in two else pair(*two) for two in pairs) == least(0, 0)


# --- the result, and what is refused


def test_the_networks_are_left_as_they_were():
    a, b = small().train(), small(relu1=nn.Tanh()).eval()
    before = [copy.deepcopy(net.state_dict()) for net in (a, b)]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    compare(a, b, SHAPE)
    assert torch.equal(torch.get_rng_state(), state)
    assert (a.training, b.training, a.bn1.training) == (True, False, True)
    for net, old in zip((a, b), before):
        assert all(torch.equal(old[key], value) for key, value in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())


def test_the_table_folds_what_is_said_twice_and_ends_with_the_total():
    comparison = compare("resnet50", "resnet50_v1_5")
    text = repr(comparison)
    assert text.splitlines()[0].startswith(
        "resnet50 and resnet50_v1_5: 6 differences; 25,557,032 and 25,557,032 parameters"
    )
    assert len(text.splitlines()) == 3 + 2 + 1
    assert "layer2.0.conv1, layer3.0.conv1, layer4.0.conv1" in text
    assert text.splitlines()[-1].split()[:3] == ["total", "0", "+231,211,008"]
    assert text.splitlines()[-1].endswith("483 -> 427")
    assert comparison._repr_html_().count("<tr>") == 1 + 2 + 1
    assert [times for times, _ in comparison.folded()] == [3, 3]


def test_the_result_is_plain_values_too():
    found = json.loads(compare("zfnet", "zfnet_wide").to_json())
    assert [row["position"] for row in found["rows"]] == ["conv3", "conv4", "conv5"]
    assert found["totals"]["params"] == [62357608, 107627624]


def test_a_field_of_the_whole_image_is_said_so():
    with torch.device("meta"):
        comparison = compare("vit_b_16", cnnlib.build("vit_b_16", num_classes=10))
    assert comparison.field == (math.inf, math.inf)
    assert said(comparison) == [("heads.head", "width", "1000", "10")]
    assert "whole image" in repr(comparison)
    json.loads(comparison.to_json())


def test_without_a_shape_that_anyone_knows_it_is_asked_for():
    with pytest.raises(ValueError, match=r"compare needs input_shape=\(C, H, W\), for example \(3, 224, 224\)"):
        compare(small(), small())
    with pytest.raises(ValueError, match="no model 'densenet12l'; did you mean 'densenet121'"):
        compare("densenet121", "densenet12l")
