"""Receptive fields: the published ones, the ones that a gradient measures, and when there is none to give."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.analysis import receptive_field, receptive_field_by_gradient
from cnnlib.models.zoo import papers

PUBLISHED = {name: table for name, table in papers().items() if name.startswith("torchvision/")}
WITH_FIELD = [name for name, table in PUBLISHED.items() if "receptive_field" in table]
BY_LAYER = papers()["receptive_fields_by_layer"]
EXAMPLES = papers()["receptive_field_examples"]


def network(name: str) -> nn.Module:
    name = name.removeprefix("torchvision/")
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None, **options)


def shape_of(name: str) -> tuple[int, int, int]:
    return tuple(PUBLISHED[name]["input_shape"]["value"])


def numbers(row) -> tuple:
    return row.size, row.stride, row.offset, row.padding


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


# ---------------------------------------------------------------------------------------------------------------
# Published figures


@pytest.mark.parametrize("name", WITH_FIELD)
def test_the_last_maps_of_torchvisions_networks_see_what_is_published(name):
    published = PUBLISHED[name]
    final = receptive_field(network(name), shape_of(name)).final
    found = {"receptive_field": final.size, "stride": final.stride, "padding": final.padding}
    assert found == {key: published[key]["value"] for key in found}
    assert final.offset == (final.size - 1) / 2 - final.padding


@pytest.mark.parametrize("name", [name for name in BY_LAYER if name.startswith("torchvision/")])
def test_each_layer_sees_what_is_published(name):
    table = receptive_field(network(name), shape_of(name))
    for layer, size, stride, padding in BY_LAYER[name]:
        assert (table[layer].size, table[layer].stride, table[layer].padding) == (size, stride, padding)


def test_lenet_sees_the_whole_character():
    published = papers()["lenet5_1998"]["receptive_field"]
    final = receptive_field(cnnlib.build("lenet5_1998"), (1, 32, 32)).final
    assert final.name.startswith(published["at"])
    assert final.size == published["value"]
    assert (final.stride, final.padding) == (4, 0)


class Sum(nn.Module):
    """Branches of convolutions, added."""

    def __init__(self, branches: list[list[dict]], channels: int = 2) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            chain(*(nn.Conv2d(channels, channels, c["k"], c["s"], c.get("p", 0)) for c in branch))
            for branch in branches
        )

    def forward(self, x):
        return sum(branch(x) for branch in self.branches)


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if isinstance(example, dict)])
def test_examples_of_other_tools_come_out_the_same(name):
    example = EXAMPLES[name]
    model = chain(Sum(example["branches"]), *([Sum(example["then"])] if "then" in example else []))
    final = receptive_field(model, (2, 65, 65)).final
    size = example["receptive_field"]
    assert final.size == (tuple(size) if isinstance(size, list) else size)
    assert (final.stride, final.padding) == (example["stride"], example["padding"])
    assert numbers(receptive_field_by_gradient(model, (2, 65, 65))) == numbers(final)


def test_branches_that_meet_off_centre_have_no_offset_and_the_reason_is_given():
    class Meet(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(2, 2, 3, padding=1)
            self.b = nn.Conv2d(2, 2, 2)
            self.after = nn.Conv2d(2, 2, 3)

        def forward(self, x):
            return self.after(self.a(x) + F.pad(self.b(x), (0, 1, 0, 1)))

    table = receptive_field(Meet(), (2, 9, 9))
    assert numbers(table["add"]) == (3, 1, None, None)
    assert table["add"].note == "branches meet 0.5 pixels off centre at add"
    assert numbers(table["after"]) == (5, 1, None, None)
    assert table["after"].note == table["add"].note
    measured = receptive_field_by_gradient(Meet(), (2, 9, 9))
    assert (measured.size, measured.stride) == (5, 1)


# ---------------------------------------------------------------------------------------------------------------
# Two methods that agree


@pytest.mark.parametrize(
    "name",
    [
        *["alexnet", "vgg11", "squeezenet1_1", "resnet18", "resnet50", "googlenet", "inception_v3", "densenet121"],
        *["mobilenet_v2", "shufflenet_v2_x1_0", "convnext_tiny"],
    ],
)
def test_the_gradients_support_is_the_computed_field(name):
    shape = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    model = network(name)
    final = receptive_field(model, shape).final
    measured = receptive_field_by_gradient(model, shape)
    assert measured.name == final.name
    assert numbers(measured) == numbers(final)


@pytest.mark.parametrize("name", ["lenet5_1998", "lenet5"])
def test_the_gradient_agrees_on_every_map_of_lenet(name):
    model = cnnlib.build(name)
    for row in receptive_field(model, (1, 32, 32)):
        if row.stride is not None:
            assert numbers(receptive_field_by_gradient(model, (1, 32, 32), at=row.name)) == numbers(row)


def pair(rng: random.Random, choices: list[int]) -> tuple[int, int]:
    return rng.choice(choices), rng.choice(choices)


class Shift(nn.Module):
    """Moves the map by some pixels: zeros come in at one border, the other is cut."""

    def __init__(self, by: tuple[int, int]) -> None:
        super().__init__()
        self.by = by

    def forward(self, x):
        h, w = self.by
        x = F.pad(x, (w, 0, h, 0))
        return x[:, :, : x.shape[2] - h, : x.shape[3] - w]


class Merge(nn.Module):
    def __init__(self, branches: list[nn.Module], how: str) -> None:
        super().__init__()
        self.branches, self.how = nn.ModuleList(branches), how
        self.mix = nn.Conv2d(2 * len(branches), 2, 1)

    def forward(self, x):
        ways = [branch(x) for branch in self.branches]
        if self.how == "cat":
            return self.mix(torch.cat(ways, dim=1))
        return ways[0] * ways[1] if self.how == "mul" else ways[0] + ways[1]


def same_size(rng: random.Random) -> nn.Module:
    """An operation that keeps height and width."""
    kind = rng.choice(
        ["conv", "conv", "conv", "max", "avg", "shift", "up", "norm", "transposed", "shuffle", "unshuffle"]
    )
    if kind == "conv":
        kernel, dilation = pair(rng, [1, 3, 5, 7]), pair(rng, [1, 1, 2, 3])
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation))
        return nn.Conv2d(2, 2, kernel, 1, padding, dilation, groups=rng.choice([1, 2]))
    if kind == "max":
        dilated = chain(nn.ZeroPad2d(1), nn.MaxPool2d(3, 1, 1, dilation=2))
        return dilated if rng.random() < 0.3 else nn.MaxPool2d(3, 1, 1)
    if kind == "avg":
        return nn.AvgPool2d(3, 1, 1)
    if kind == "shift":
        return Shift(pair(rng, [0, 1, 2]))
    if kind == "norm":
        return chain(nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout())
    factor = rng.choice([2, 4])
    down = nn.Conv2d(2, 2, factor, factor)
    between = nn.Conv2d(2, 2, 3, padding=1) if rng.random() < 0.5 else nn.Identity()
    if kind == "up":
        mode = rng.choice(["nearest", "bilinear"])
        return chain(down, between, nn.Upsample(scale_factor=factor, mode=mode))
    if kind == "transposed":
        extra = rng.choice([0, 1])
        return chain(down, between, nn.ConvTranspose2d(2, 2, factor + 2 * extra, factor, extra))
    if kind == "unshuffle":
        return chain(nn.PixelUnshuffle(2), nn.Conv2d(8, 8, 3, padding=1), nn.PixelShuffle(2))
    return chain(down, between, nn.Conv2d(2, 2 * factor**2, 1), nn.PixelShuffle(factor))


def smaller(rng: random.Random) -> nn.Module:
    stride = pair(rng, [1, 2])
    kind = rng.choice(["conv", "even", "max", "ceil"])
    if kind == "conv":
        return nn.Conv2d(2, 2, 3, stride, 1)
    if kind == "even":
        return nn.Conv2d(2, 2, stride, stride)
    return nn.MaxPool2d(2, 2, ceil_mode=kind == "ceil")


def random_network(seed: int) -> nn.Sequential:
    rng = random.Random(seed)
    layers: list[nn.Module] = []
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.6:
            branches = [chain(*(same_size(rng) for _ in range(rng.randint(0, 2)))) for _ in range(2)]
            layers.append(Merge(branches, rng.choice(["add", "cat", "mul"])))
        else:
            layers.append(same_size(rng))
        if rng.random() < 0.5:
            layers.append(smaller(rng))
    return chain(*layers, nn.Conv2d(2, 2, 1))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_both_methods_agree_on_random_branching_networks(seed):
    model = random_network(seed)
    final = receptive_field(model, (2, 64, 64)).final
    measured = receptive_field_by_gradient(model, (2, 64, 64))
    assert (measured.size, measured.stride) == (final.size, final.stride)
    for axis in (0, 1):
        # Without a common centre there is an offset to measure and none to tell.
        if final.offset is not None:
            assert measured.axis("offset", axis) == final.axis("offset", axis)
            assert measured.axis("padding", axis) == final.axis("padding", axis)
        else:
            assert final.note


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100_000), factor=st.integers(2, 4))
def test_the_field_does_not_depend_on_the_size_of_the_image(seed, factor):
    model = random_network(seed)
    assert receptive_field(model, (2, 64, 64)).rows == receptive_field(model, (2, 64 * factor, 64)).rows


def test_measuring_reads_no_weights_and_changes_none():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).train()
    model.layer1.eval()
    for p in model.parameters():
        nn.init.zeros_(p)
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    modes = [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    measured = receptive_field_by_gradient(model, (3, 64, 64), at="layer2.0.conv1")
    assert numbers(measured) == numbers(receptive_field(model, (3, 64, 64))["layer2.0.conv1"])
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == i and torch.equal(after[name], t) for name, (i, t) in before.items())
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


# ---------------------------------------------------------------------------------------------------------------
# Single operations


def only(layer: nn.Module, size: int = 12):
    return receptive_field(chain(layer), (2, size, size)).rows[-1]


def test_kernels_strides_and_dilation_follow_the_recursion():
    assert numbers(only(nn.Conv2d(2, 2, 3, dilation=2, padding=2))) == (5, 1, 0, 2)
    assert numbers(only(nn.Conv2d(2, 2, (1, 7), padding=(0, 3)))) == ((1, 7), 1, 0, (0, 3))
    assert numbers(only(nn.Conv2d(2, 2, 4, padding="same"))) == (4, 1, 0.5, 1)
    assert numbers(only(nn.MaxPool2d(3, 2, ceil_mode=True))) == (3, 2, 1, 0)
    assert numbers(only(nn.ZeroPad2d((2, 0, 1, 0)))) == (1, 1, (-1, -2), (1, 2))


def test_more_positions_than_before_give_strides_below_one():
    assert numbers(only(nn.Upsample(scale_factor=2))) == (1, 0.5, 0, 0)
    up = receptive_field(chain(nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 2)), (2, 8, 8)).final
    assert (up.size, up.stride, up.note) == (2, 0.5, "the size changes with the position, from 1")
    bilinear = only(nn.Upsample(scale_factor=2, mode="bilinear"))
    assert numbers(bilinear) == (2, 0.5, -0.5, 1)
    assert numbers(only(nn.ConvTranspose2d(2, 2, 4, 2, 1))) == (2, 0.5, -0.5, 1)
    assert only(nn.PixelShuffle(1)).stride == 1
    aligned = only(nn.Upsample(size=23, mode="bilinear", align_corners=True))
    assert (aligned.size, aligned.stride, aligned.offset) == (2, 0.5, 0)


def test_adaptive_pools_are_pools_where_the_sizes_divide():
    assert numbers(only(nn.AdaptiveAvgPool2d(4))) == (3, 3, 1, 0)
    uneven = only(nn.AdaptiveAvgPool2d(5))
    assert (uneven.size, uneven.stride) == (4, 2.4)
    assert "windows of unequal size (12 to 5 positions)" in uneven.note
    assert receptive_field(chain(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1)), (2, 12, 12)).final.size == 3


def test_what_every_position_reads_sees_the_whole_image():
    table = receptive_field(network("mobilenet_v3_small"), (3, 224, 224))
    assert table.final.size == math.inf
    assert table.final.stride == 32
    assert table.final.offset is None
    assert "is spread over the map at features.1.block.1.mul" in table.final.note
    assert table["features.1.block.0.0"].size < math.inf
    assert receptive_field_by_gradient(network("mobilenet_v3_small"), (3, 224, 224)).size == math.inf
    assert "whole image" in repr(table)

    tokens = receptive_field(network("vit_b_16"), (3, 224, 224))
    assert numbers(tokens["conv_proj"]) == (16, 16, 7.5, 0)
    assert tokens.final.size == math.inf
    assert "every position reads every other" in tokens.final.note
    assert receptive_field(network("swin_t"), (3, 224, 224)).final.size == math.inf


def test_one_pixel_that_meets_a_pooled_value_sees_the_whole_image():
    class Net(nn.Module):
        def forward(self, x):
            return x[:, :, 0, 0] * x.mean((2, 3))

    class Gate(nn.Module):
        def forward(self, x):
            return x * F.adaptive_avg_pool2d(x, 1)

    assert receptive_field(Net(), (2, 6, 6))["mul"].size == math.inf
    assert receptive_field(Gate(), (2, 6, 6)).final.size == math.inf
    # The gate is one even where the map has a single position.
    assert receptive_field(Gate(), (2, 1, 1)).final.size == math.inf


def test_channels_last_and_shuffled_channels_are_followed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.norm = nn.LayerNorm(4)
            self.mix = nn.Linear(4, 4)

        def forward(self, x):
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            x = self.mix(self.norm(self.conv(x).permute(0, 2, 3, 1)))
            return x.permute(0, 3, 1, 2)

    assert numbers(receptive_field(Net(), (4, 9, 9)).final) == (3, 2, 1, 0)


def test_a_map_that_was_tokens_is_a_map_again():
    class Net(nn.Module):
        def forward(self, x):
            tokens = F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
            return tokens.transpose(1, 2).reshape(-1, 2, 3, 5)

    table = receptive_field(Net(), (2, 6, 10))
    assert numbers(table.final) == (2, 2, 0.5, 0)
    assert table["flatten"].stride is None
    assert table["flatten"].note == "flattened"


def test_statistics_over_the_map_are_noted():
    row = only(nn.GroupNorm(1, 2))
    assert (row.size, row.note) == (1, "its statistics are taken over the whole map and not counted")
    assert only(nn.BatchNorm2d(2)).note == ""


def test_an_operation_without_a_rule_is_an_upper_bound():
    class Net(nn.Module):
        def forward(self, x):
            return x.cumsum(dim=2)

    row = receptive_field(Net(), (2, 6, 6)).final
    assert row.size == math.inf
    assert row.note == "no rule for cumsum at cumsum: an upper bound"


def test_fields_may_be_larger_than_the_image():
    name = "torchvision/resnet50"
    assert receptive_field(network(name), (3, 32, 32)).final.size == PUBLISHED[name]["receptive_field"]["value"]
    small = receptive_field_by_gradient(network(name), (3, 32, 32))
    assert small.size == PUBLISHED[name]["receptive_field"]["value"]
    vgg = receptive_field(network("vgg16"), (3, 32, 32)).final
    assert vgg.size == PUBLISHED["torchvision/vgg16"]["receptive_field"]["value"]
    dense = receptive_field(network("densenet121"), (3, 32, 32)).final
    assert dense.size == PUBLISHED["torchvision/densenet121"]["receptive_field"]["value"]


def test_a_network_without_maps_has_no_last_one():
    table = receptive_field(chain(nn.Flatten(), nn.Linear(18, 3)), (2, 3, 3))
    assert table["1"].size == 3
    with pytest.raises(ValueError, match="makes no map out of its image"):
        _ = table.final


def test_what_cannot_run_on_a_strip_is_refused_with_the_reason():
    with pytest.raises(
        ValueError, match=r"probed by gradient: encoder.*self_attention \(MultiheadAttention\) lets pos"
    ):
        receptive_field_by_gradient(network("vit_b_16"), (3, 224, 224))
    with pytest.raises(ValueError, match=r"is no map that grows with the image"):
        receptive_field_by_gradient(network("resnet18"), (3, 64, 64), at="avgpool")
    with pytest.raises(ValueError, match=r"no node 'stage5' among 71; print the table"):
        receptive_field_by_gradient(network("resnet18"), (3, 64, 64), at="stage5")


def test_the_table_reads_well():
    table = receptive_field(cnnlib.build("lenet5"), (1, 32, 32))
    lines = repr(table).splitlines()
    assert lines[0] == "Sequential on 1x32x32: receptive fields in pixels; the last map is s4"
    assert lines[1].split() == ["name", "kind", "size", "stride", "offset", "padding", "note"]
    assert lines[3].split() == ["c1.0", "conv", "5", "1", "2", "0"]
    data = json.loads(table.to_json())
    assert data["rows"][0]["size"] == 5
    assert data["final"] == "s4"
    assert json.loads(receptive_field(network("mobilenet_v3_small"), (3, 64, 64)).to_json())["rows"][-1]["size"]
    assert "<td" in table._repr_html_()
