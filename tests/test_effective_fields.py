"""Effective fields: inside of the field that geometry gives, as theory has them, by a way that brute force confirms."""

from __future__ import annotations

import copy
import math
import random

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib import plots
from cnnlib.analysis import alignment, border_case, effective_field, field_growth, price, receptive_field
from cnnlib.analysis.effective_fields import GrowthStep


def chain(n: int, kernel: int = 3, uniform: bool = True) -> nn.Sequential:
    """n layers of one map and equal weights."""
    convs = [nn.Conv2d(1, 1, kernel, padding=kernel // 2, bias=False) for _ in range(n)]
    for conv in convs if uniform else []:
        nn.init.constant_(conv.weight, 1 / kernel**2)
    return nn.Sequential(*convs)


class Branches(nn.Module):
    """Two random branches that meet in a sum, then one more layer."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        stride = rng.choice([1, 2])
        self.a, self.b = self.branch(rng, stride), self.branch(rng, stride)
        self.after = nn.Conv2d(3, 2, rng.choice([1, 3]), dilation=rng.choice([1, 2]), padding=1)

    def branch(self, rng: random.Random, stride: int) -> nn.Sequential:
        kernel = rng.choice([1, 2, 3, 5])
        step = nn.Conv2d(2, 3, kernel, stride, padding=kernel // 2)
        extra = [nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3, padding=1)] if rng.random() < 0.5 else [nn.Tanh()]
        return nn.Sequential(step, *extra)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        h, w = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
        return self.after(a[:, :, :h, :w] + b[:, :, :h, :w])


class OffCentre(nn.Module):
    """A 3x3 and a 2x2 window that meet half a pixel apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 2)

    def forward(self, x):
        return torch.cat([self.a(x), F.pad(self.b(x), (0, 1, 0, 1))], 1) + 0


class Asks(nn.Module):
    """A network whose forward asks for values of its shape, so that it is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        if x.shape[2] > 4:
            x = self.conv(x)
        return x.mean(dim=(2, 3))


# ---------------------------------------------------------------------------------------------------------------
# Laws


def held(table, name, fields) -> bool:
    """Whether all mass of a map lies on the pixels that the geometry gives its middle position."""
    row, mass = table[name], table.mass[name]
    pixels = fields.places[name].pixels(*row.position)
    inside = np.zeros(mass.shape, dtype=bool)
    (top, bottom), (left, right) = pixels
    inside[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
    return not mass[~inside].any()


@pytest.mark.parametrize("seed", range(6))
def test_on_random_branching_graphs_no_gradient_lies_outside_of_the_computed_field(seed):
    torch.manual_seed(seed)
    model = Branches(random.Random(seed))
    fields = receptive_field(model, (2, 20, 18))
    names = list(fields.places)
    table = effective_field(model, (2, 20, 18), at=names, count=2)
    for name in names:
        assert table[name].spill == 0
        assert held(table, name, fields), name
        assert table.mass[name].sum() == pytest.approx(1) or not table.mass[name].any()


@pytest.mark.parametrize("name", ["lenet5_1998", "resnet20", "densenet22_k12", "small_alexnet", "small_vgg"])
def test_in_networks_of_the_book_the_effective_field_lies_in_the_theoretical_one(name):
    model, shape = cnnlib.build(name), cnnlib.card(name).input_shape
    fields, table = receptive_field(model, shape), effective_field(model, shape, count=2)
    for row in table:
        assert row.theoretical == fields[row.name].size
        assert held(table, row.name, fields), row.name
        assert 0 < row.share <= 1
        assert row.spill == 0
        assert 0 < row.root_area <= min(row.theoretical, max(shape[1:]))


@pytest.mark.parametrize("kernel", [3, 5])
def test_equal_weights_spread_as_the_root_of_the_depth_while_the_field_grows_with_it(kernel):
    table = effective_field(chain(9, kernel), (1, 81, 81), at=[str(i) for i in range(9)], count=1)
    for n, row in enumerate(table, start=1):
        assert row.theoretical == n * (kernel - 1) + 1
        assert row.deviation == pytest.approx(math.sqrt(n * (kernel**2 - 1) / 12))
    assert table["0"].share == 1
    assert table["8"].share < 0.5


def test_the_gradient_of_equal_weights_is_the_repeated_convolution_of_the_window():
    mass = effective_field(chain(3), (1, 15, 15), at="2", count=3).mass["2"]
    along = np.convolve(np.convolve([1, 1, 1], [1, 1, 1]), [1, 1, 1]) / 27
    assert mass[4:11, 4:11] == pytest.approx(np.outer(along, along))
    # 95.45 % of it: within 2 pixels of the centre lie (25 / 27)^2 = 85.7 %, within 3 all.
    row = effective_field(chain(3), (1, 15, 15), at="2", count=3)["2"]
    assert row.side == 7
    # Luo's area: products of 1 3 6 7 6 3 1 above 4.55 % of 49.
    ones = np.array([1, 3, 6, 7, 6, 3, 1])
    assert row.root_area**2 == pytest.approx((np.outer(ones, ones) > 0.0455 * 49).sum())


def test_random_directions_give_the_root_mean_square_over_the_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1))
    x = torch.zeros(1, 2, 9, 9, requires_grad=True)
    middle = model(x)[0, :, 4, 4]
    squares = sum(torch.autograd.grad(unit, x, retain_graph=True)[0] ** 2 for unit in middle)
    exact = squares.sqrt().mean(dim=1)[0].numpy()
    exact /= exact.sum()
    images = torch.zeros(4000, 2, 9, 9)
    found = effective_field(model, (2, 9, 9), images, at="1", batch=1000).mass["1"]
    assert np.abs(found - exact).max() < 0.04 * exact.max()


def test_the_size_of_the_batches_makes_no_difference():
    model = cnnlib.build("small_vgg")
    whole, parts = (effective_field(model, (1, 28, 28), count=5, batch=b, at=["conv1_2", "conv2_1"]) for b in (5, 2))
    for name in ("conv1_2", "conv2_1"):
        assert parts.mass[name] == pytest.approx(whole.mass[name], rel=1e-4, abs=1e-7)


def test_what_normalises_over_the_map_spills_out_of_the_field():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4))
    table = effective_field(model, (1, 12, 12), at=["0", "1"], count=2)
    assert table["0"].spill == 0
    assert table["1"].spill > 0.01


def test_a_layer_that_writes_over_its_input_changes_nothing():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 3, 3)
    found = [
        effective_field(nn.Sequential(conv, nn.ReLU(inplace=inplace), nn.Conv2d(3, 2, 1)), (1, 9, 9), at="0").mass["0"]
        for inplace in (True, False)
    ]
    assert np.array_equal(*found)
    first = nn.Sequential(nn.ReLU(inplace=True), conv)
    assert effective_field(first, (1, 9, 9), at="1")["1"].theoretical == 3


def test_a_network_that_must_be_recorded_is_read_image_by_image():
    table = effective_field(Asks(), (1, 8, 8), at="conv", count=3)
    assert table.images == 3
    assert (table["conv"].theoretical, table["conv"].side) == (3, 3)


def test_where_height_and_width_stand_last_in_the_tensor_or_not_makes_no_difference():
    class Turned(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            return self.conv(x).permute(0, 2, 3, 1) * 2

    torch.manual_seed(0)
    conv = nn.Conv2d(1, 3, (3, 5), padding=(1, 2))
    table = effective_field(Turned(conv), (1, 10, 12), at=["conv", "mul"], count=1)
    assert table["mul"].theoretical == table["conv"].theoretical == (3, 5)
    assert table["mul"].position == (5, 6)
    assert (table.mass["mul"] > 0).sum() == (table.mass["conv"] > 0).sum() == 15


# ---------------------------------------------------------------------------------------------------------------
# Looking must not touch; the same twice


def state_of(model):
    return (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [dict(m._forward_hooks) for m in model.modules()],
        torch.get_rng_state(),
    )


def same(before, after) -> bool:
    weights = all(torch.equal(value, after[0][key]) for key, value in before[0].items())
    grads = all(a is b is None or torch.equal(a, b) for a, b in zip(before[2], after[2]))
    return weights and grads and before[1] == after[1] and before[3] == after[3] and torch.equal(before[4], after[4])


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was_also_after_an_error(fails, monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[0].bias.requires_grad_(False)
    model[0].register_forward_hook(lambda *_: pytest.fail("a hook of the reader was called"))
    objects = [id(p) for p in model.parameters()]
    before = state_of(model)
    if fails:

        def stop(*_, **__):
            raise RuntimeError("in the middle")

        monkeypatch.setattr(torch.autograd, "grad", stop)
        with pytest.raises(RuntimeError, match="in the middle"):
            effective_field(model, (1, 8, 8), at="0")
    else:
        effective_field(model, (1, 8, 8), at="0")
    assert same(before, state_of(model))
    assert objects == [id(p) for p in model.parameters()]


def test_the_same_seed_gives_the_same_field_and_another_seed_another():
    model = cnnlib.build("small_vgg")
    first, again, other = (effective_field(model, (1, 28, 28), at="conv2_1", count=2, seed=s) for s in (0, 0, 1))
    assert np.array_equal(first.mass["conv2_1"], again.mass["conv2_1"])
    assert not np.array_equal(first.mass["conv2_1"], other.mass["conv2_1"])


def test_the_price_is_said_beforehand():
    model = chain(4)
    found = price(effective_field, model, (1, 16, 16), at=["0", "1", "3"], count=8)
    # Back to the image from depth 1, 2 and 4 of 4 equal layers is 7/4 of a forward pass, half of what `price` counts.
    assert (found.forward, found.backward) == (8, 7)
    assert price(effective_field, model, (1, 16, 16), torch.rand(3, 1, 16, 16)).forward == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_network_on_the_gpu_gives_the_same_field():
    model = chain(3, uniform=False)
    here = effective_field(model, (1, 16, 16), at="2").mass["2"]
    there = effective_field(model.cuda(), (1, 16, 16), at="2").mass["2"]
    assert there == pytest.approx(here, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_field(chain(2), (1, 8, 8), at="7"), "no row '7'|unknown row '7'"),
        (
            lambda: effective_field(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), (1, 8, 8), at="1"),
            r"1 has no positions along height and width \(flattened\); name one of 0",
        ),
        (
            lambda: effective_field(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), (1, 8, 8)),
            "makes no map that sees more than one pixel",
        ),
        (
            lambda: effective_field(chain(1), (1, 8, 8), torch.rand(2, 1, 9, 9)),
            r"images must be a tensor \(N, 1, 8, 8\) .* got \(2, 1, 9, 9\); preprocess",
        ),
        (lambda: effective_field(chain(1), (1, 8, 8), torch.rand(0, 1, 8, 8)), "at least one image, got none"),
        (lambda: effective_field(chain(1), (1, 8, 8), count=0), "count must be at least 1 image, got 0"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_table_shows_itself_and_its_plain_values():
    table = effective_field(chain(2), (1, 9, 9), at=["0", "1"], count=1)
    assert "middle of each map, 1 image" in repr(table)
    assert table._repr_html_().count("<tr>") == 3
    assert table.to_dict()["rows"][1]["theoretical"] == 5
    assert '"images": 1' in table.to_json()


# ---------------------------------------------------------------------------------------------------------------
# Growth, alignment, border


@pytest.mark.parametrize("name", ["alexnet", "vgg_d", "googlenet", "resnet50", "densenet121"])
def test_growth_ends_at_the_field_of_the_last_map_and_never_shrinks(name):
    with torch.device("meta"):
        model = cnnlib.build(name)
    shape = cnnlib.card(name).input_shape
    steps = field_growth(model, shape)
    assert steps[0] == GrowthStep(0, steps[0].name, 1, 1) or steps[0].depth == 0
    assert [step.depth for step in steps] == list(range(len(steps)))
    sizes = [step.size for step in steps]
    assert sizes == sorted(sizes)
    assert sizes[-1] == receptive_field(model, shape).final.size


def test_growth_counts_pooling_with_the_layer_before_it():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3))
    steps = field_growth(model, (1, 16, 16))
    assert [(s.depth, s.size, s.stride) for s in steps] == [(0, 1, 1), (1, 4, 2), (2, 8, 2)]


def test_branches_of_the_books_networks_are_aligned_and_half_a_pixel_is_seen():
    with torch.device("meta"):
        resnet = cnnlib.build("resnet20")
    rows = alignment(resnet, (3, 32, 32))
    assert len(rows) == 9
    assert all(row.aligned for row in rows)
    (row,) = alignment(OffCentre(), (1, 9, 9))
    assert (row.name, row.kind, row.shift, row.aligned) == ("cat", "cat", 0.5, False)
    assert [(b.size, b.offset) for b in row.branches] == [(3, 0), (2, 0.5)]


def test_strides_that_differ_drift_apart_over_the_map():
    class Drift(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 1, stride=2), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)[:, :, :4, :4]

    (row,) = alignment(Drift(), (1, 8, 8))
    assert row.shift == 3  # the last of four positions looks at pixel 6 here and at pixel 3 there


def test_the_share_outside_of_the_image_is_that_of_the_pixels_counted_one_by_one():
    model = nn.Sequential(nn.Conv2d(1, 1, 5, stride=2, padding=2), nn.Conv2d(1, 1, (3, 5), padding=(1, 2)))
    table = border_case(model, (1, 11, 9), at=["0", "1"])
    fields = receptive_field(model, (1, 11, 9))
    for row in table:
        for i in range(row.positions[0]):
            for j in range(row.positions[1]):
                (top, bottom), (left, right) = fields.places[row.name].pixels(i, j)
                pixels = [(y, x) for y in range(top, bottom + 1) for x in range(left, right + 1)]
                out = sum(not (0 <= y < 11 and 0 <= x < 9) for y, x in pixels)
                assert row.outside[i, j] == pytest.approx(out / len(pixels))
        assert row.whole_inside == (row.outside == 0).sum()
        assert row.corner == row.outside[0, 0]


def test_a_field_larger_than_the_image_lies_partly_outside_wherever_it_stands():
    with torch.device("meta"):
        model = cnnlib.build("resnet20")
    table = border_case(model, (3, 32, 32))
    last = table.rows[-1]
    assert last.size > 32
    assert last.whole_inside == 0
    assert last.middle == pytest.approx(1 - 32**2 / last.size**2)
    row = effective_field(cnnlib.build("resnet20"), (3, 32, 32), at=last.name, count=1)[last.name]
    assert row.inside == pytest.approx(1 - last.middle)
    assert last.name in repr(table)


# ---------------------------------------------------------------------------------------------------------------
# Drawings


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_the_frames_stand_where_the_rows_say(ax):
    table = effective_field(chain(3), (1, 15, 15), at="2", count=1)
    plots.draw_effective_field(np.zeros((15, 15)), table, "2", ax)
    boxes = [(p.get_y(), p.get_x(), p.get_height(), p.get_width()) for p in ax.patches]
    assert boxes == [(3.5, 3.5, 7, 7), (3.5, 3.5, 7, 7)]
    heat = ax.images[1].get_array()[..., 3]
    assert (heat > 0).sum() == 49
    with pytest.raises(ValueError, match=r"as high and wide as the gradient, \(15, 15\), got \(9, 9\)"):
        plots.draw_effective_field(np.zeros((9, 9)), table, "2", ax)


def test_three_lines_are_the_three_sizes(ax):
    table = effective_field(chain(3), (1, 15, 15), at=["0", "1", "2"], count=1)
    plots.draw_field_use(table, ax)
    assert [line.get_ydata()[-1] for line in ax.lines[:3]] == [7, table["2"].side, table["2"].root_area]


def test_each_network_has_a_line_and_the_named_ones_their_name(ax):
    steps = (GrowthStep(0, "x", 1, 1), GrowthStep(1, "a", 3, 1), GrowthStep(2, "b", 5, 1))
    ends = (*steps, GrowthStep(3, "se", math.inf, None))
    plots.draw_growth_of_fields({"mine": steps, "theirs": ends}, ax, named=["mine"])
    assert sorted(line.get_marker() for line in ax.lines if line.get_marker() != "None") == ["^", "o"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mine"]
    assert all(list(line.get_ydata()) in ([3, 5], [5]) for line in ax.lines)
    with pytest.raises(ValueError, match="'other' is named and not among the networks: mine"):
        plots.draw_growth_of_fields({"mine": steps}, ax, named=["other"])
    with pytest.raises(ValueError, match="no network to draw"):
        plots.draw_growth_of_fields({}, ax)


def test_shares_and_branches_are_drawn_at_their_values(ax):
    row = border_case(chain(2), (1, 6, 6), at="1")["1"]
    plots.draw_border_case(row, ax)
    assert np.allclose(ax.images[0].get_array(), 100 * row.outside)
    figure, other = plt.subplots()
    plots.draw_alignment(alignment(OffCentre(), (1, 9, 9))[0], other)
    assert [(p.get_x(), p.get_width()) for p in other.patches] == [(-1.5, 3), (-0.5, 2)]
    assert other.get_title() == "cat: branches 0.5 pixels apart"
    plt.close(figure)
