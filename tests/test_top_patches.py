"""Laws of the strongest patches: brute force finds the same, no batch shows, and a patch is what its unit sees."""

from __future__ import annotations

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import cnnlib
from cnnlib import plots
from cnnlib.analysis import pictures_of, price, reconstruct, strongest_in_layers, strongest_patches, through_deconvnet
from cnnlib.analysis.deconvnet import GRADIENT
from cnnlib.analysis.fields import FieldRow
from cnnlib.analysis.top_patches import box_of, cut
from cnnlib.plots.deconvnet import shaded

SHAPE = (2, 21, 17)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.Conv2d(5, 4, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 5 * 4, 6),
        nn.ReLU(),
    )
    return model.double().eval()


def data(count: int = 23) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def brute(model: nn.Module, images: torch.Tensor, at: str, map: int, count: int, one_an_image: bool):
    """All activations of a map, sorted: (value, image, position)."""
    value = cnnlib.trace(model, SHAPE).values(images, [at])[at][:, map]
    found = [(v.item(), i, place) for i, one in enumerate(value) for place, v in np.ndenumerate(one.numpy())]
    found = sorted((row for row in found if row[0] > 0), key=lambda row: -row[0])
    if one_an_image:
        firsts = {}
        for row in found:
            firsts.setdefault(row[1], row)
        found = list(firsts.values())
    return [(i, place, v) for v, i, place in found[:count]]


@pytest.mark.parametrize("one_an_image", [True, False])
@pytest.mark.parametrize("at", ["0", "2", "4", "7"])
def test_brute_force_finds_the_same_patches(at, one_an_image):
    model, images = net(), data()
    table = strongest_patches(model, images, at, one_an_image=one_an_image, batch=7)
    for m in table.maps:
        expected = brute(model, images, at, m, 9, one_an_image)
        assert [(p.image, p.position) for p in table[m]] == [row[:2] for row in expected]
        assert np.allclose([p.value for p in table[m]], [row[2] for row in expected], atol=1e-12)
        assert [p.rank for p in table[m]] == list(range(len(expected)))


def test_the_batches_do_not_show_and_equal_values_keep_the_earlier_image():
    model, images = net(), data(6).repeat(3, 1, 1, 1)
    tables = [strongest_patches(model, images, "4", count=4, batch=batch) for batch in (1, 5, 18)]
    for table in tables:
        for patches in (table[m] for m in table.maps):
            assert [(p.image, p.position) for p in patches] == [
                (p.image, p.position) for p in tables[0][patches[0].map]
            ]
        for first, second, third, other in (table[m] for m in table.maps):
            assert (second.image - first.image, third.image - second.image) == (6, 6)
            assert first.value == second.value == third.value > other.value
        assert all(table[m][0].image < 6 for m in table.maps)


def test_several_layers_take_one_pass_and_give_the_same_as_each_alone():
    model, images = net(), data()
    calls = []

    def prepare(batch):
        calls.append(len(batch))
        return batch * 2

    together = strongest_in_layers(model, images, ["0", "4", "7"], prepare=prepare, batch=10)
    assert calls == [1, 10, 10, 3]  # the first to see the shape
    for at, table in together.items():
        assert table.rows == strongest_patches(model, images * 2, at, batch=10).rows


class Fork(nn.Module):
    """Two branches, of which neither leads to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)

    def forward(self, x):
        return self.left(x) + self.right(x)


def test_layers_that_do_not_lead_to_each_other_are_read_together_too():
    torch.manual_seed(0)
    model = Fork().double()
    found = strongest_in_layers(model, data(), ["left", "right"])
    assert found["left"].rows == strongest_patches(model, data(), "left").rows
    assert found["right"].rows == strongest_patches(model, data(), "right").rows


def test_a_map_that_nothing_excites_has_no_patches():
    model = net()
    nn.init.zeros_(model[3].weight[1])
    nn.init.constant_(model[3].bias[1:2], -1)
    table = strongest_patches(model, data(), "4", maps=[1, 2])
    assert table[1] == ()
    assert len(table[2]) == 9
    with pytest.raises(ValueError, match="no map '0'"):
        table[0]


def test_the_activation_depends_on_its_patch_and_on_nothing_else():
    model, images = net(), data()
    graph = cnnlib.trace(model, SHAPE)
    for at in ("2", "4"):
        for patch in strongest_patches(model, images, at, maps=[0, 3], count=3, one_an_image=False):
            leaf = images[patch.image : patch.image + 1].clone().requires_grad_()
            value = graph.upto(at).module(leaf.clone())[(0, patch.map, *patch.position)]
            assert value.item() == pytest.approx(patch.value, abs=1e-12)
            (gradient,) = torch.autograd.grad(value, leaf)
            top, left, bottom, right = patch.box
            outside = gradient[0].clone()
            outside[:, max(top, 0) : bottom, max(left, 0) : right] = 0
            assert not outside.any()
            # The box is no larger than the field, whose corners the gradient of another switch may leave dark.
            field = cnnlib.analysis.receptive_field(model, SHAPE)[at]
            assert (bottom - top, right - left) == (field.size, field.size)


def test_the_alignment_is_that_of_offset_and_stride():
    # 5x5 convolution of stride 2 without padding: unit (1, 3) sees rows 2 to 6 and columns 6 to 10.
    model = nn.Sequential(nn.Conv2d(1, 1, 5, stride=2))
    nn.init.ones_(model[0].weight)
    image = torch.zeros(1, 1, 13, 13)
    image[0, 0, 2:7, 6:11] = torch.arange(1.0, 26).view(5, 5)
    table = strongest_patches(model, image, "0")
    assert table[0][0].position == (1, 3)
    assert table[0][0].box == (2, 6, 7, 11)
    assert pictures_of(image, table[0])[0].tolist() == [torch.arange(1.0, 26).view(5, 5).tolist()]


def test_units_behind_a_flattening_see_the_whole_image():
    table = strongest_patches(net(), data(), "7", count=2)
    assert len(table)
    assert {patch.box for patch in table} == {(0, 0, *SHAPE[1:])}
    assert {patch.position for patch in table} == {()}


def test_a_field_of_even_size_and_of_unequal_sides_is_placed_by_its_halves():
    row = FieldRow("x", "conv", (4, 3), (2, 1), (0.5, 1), (1, 0))
    assert box_of(row, (2, 5), (9, 9)) == (3, 5, 7, 8)
    assert box_of(None, (2, 5), (9, 9)) == (0, 0, 9, 9)


def test_a_cut_keeps_the_place_and_leaves_empty_what_lies_outside():
    picture = torch.arange(12.0).view(1, 3, 4)
    inner = cut(picture, (1, 1, 3, 3))
    assert inner.tolist() == [[[5, 6], [9, 10]]]
    corner = cut(picture, (-1, 3, 1, 5))
    assert np.isnan(corner[0]).tolist() == [[True, True], [False, True]]
    assert corner[0, 1, 0] == 3
    # A field longer than the image: the whole axis, empty where the field does not reach.
    longer = cut(picture, (-3, 0, 1, 2))
    assert longer.shape == (1, 3, 2)
    assert np.isnan(longer[0]).tolist() == [[False, False], [True, True], [True, True]]
    assert np.isnan(cut(picture, (5, 5, 6, 6))).all()


@pytest.mark.parametrize("at", ["2", "4", "7"])
def test_a_reconstruction_is_that_of_the_patchs_activation_cut_like_the_patch(at):
    model, images = net(), data()
    patches = strongest_patches(model, images, at, maps=[2], count=4).rows
    assert patches
    found = reconstruct(model, images, at, patches, batch=3)
    for patch, piece, picture in zip(patches, found, pictures_of(images, patches)):
        place = {"positions": [patch.position]}
        (one,) = through_deconvnet(model, images[patch.image : patch.image + 1], at, patch.map, **place)
        assert one.value == pytest.approx(patch.value, abs=1e-12)
        assert np.allclose(piece, cut(one.pixels, patch.box), atol=1e-12, equal_nan=True)
        assert piece.shape == picture.shape
        # All of it lies in the patch.
        assert np.nansum(piece) == pytest.approx(one.pixels.sum().item(), abs=1e-10)


def test_bytes_are_prepared_batch_by_batch_and_the_network_stays_as_it_was():
    record = cnnlib.build("lenet5").train()
    before = {k: v.clone() for k, v in record.state_dict().items()}
    state = torch.get_rng_state()
    split = cnnlib.load_data("fashion_mnist_mini").test
    prepare = cnnlib.data.augment.Preprocess(pad=2, mean=(0.3,), std=(0.3,))
    numbers = split.images[:40].numpy()
    table = strongest_patches(record, numbers, "c3.1", prepare=prepare, maps=range(4), batch=16)
    assert table.input_shape == (1, 32, 32)
    assert table.rows == strongest_patches(record, prepare(split.images[:40]), "c3.1", maps=range(4), batch=16).rows
    reconstruct(record, numbers, "c3.1", table.rows[:3], prepare=prepare, way=GRADIENT)
    with pytest.raises(RuntimeError, match="halfway"):
        strongest_patches(record, numbers, "c3.1", prepare=_fails_at(3, prepare), batch=8)
    assert record.training
    assert all(torch.equal(v, before[k]) for k, v in record.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def _fails_at(call: int, prepare):
    calls = iter(range(100))

    def failing(batch):
        if next(calls) == call:
            torch.rand(1)
            raise RuntimeError("halfway")
        return prepare(batch)

    return failing


def test_its_price_is_one_pass_an_image_and_two_for_each_reconstruction():
    model, images = net(), data()
    assert (
        price(strongest_patches, model, images, "4").forward,
        price(strongest_patches, model, images, "4").backward,
    ) == (23, 0)
    table = strongest_patches(model, images, "4", maps=[0])
    found = price(reconstruct, model, images, "4", table[0])
    assert (found.forward, found.backward) == (9, 9)


def test_the_table_says_what_it_is():
    text = repr(strongest_patches(net(), data(), "4", maps=[0], count=2))
    assert text.startswith("Sequential, 4: strongest activations in 23 images")
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: strongest_patches(net(), data(), "4", maps=[4]), "4 has maps 0 to 3, got 4"),
        (lambda: strongest_patches(net(), data(), "4", count=0), "count must be at least 1, got 0"),
        (lambda: strongest_patches(net(), data(), "nowhere"), "no node 'nowhere'"),
        (lambda: strongest_in_layers(net(), data(), []), "at least one layer and one image: got 0 layers and 23"),
        (lambda: plots.draw_patches([], [], None), "one reconstruction a patch, and at least one"),
        (lambda: plots.draw_ways(np.zeros((1, 2, 2)), {}, None), "no way back to draw"),
        (lambda: plots.draw_filters(np.zeros((4, 2, 3, 3)), None), r"\(1, h, w\) or \(3, h, w\), got \(2, 3, 3\)"),
        (lambda: plots.draw_filters(np.zeros((0, 1, 3, 3)), None), "no filters to draw"),
    ],
)
def test_what_cannot_be_found_or_drawn_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- pictures


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_signed_pictures_have_zero_as_mid_grey_and_each_its_own_scale():
    one, two = shaded([np.array([[[-2.0, 0.0, 1.0]]]), np.array([[[0.0, 0.5, np.nan]]])], signed=True)
    assert one[0, :, 0].tolist() == [0, 128, 191]
    assert two[0, :, 0].tolist() == [128, 255, 0]
    assert two[0, :, 3].tolist() == [255, 255, 0]


def test_unsigned_pictures_share_their_scale():
    one, two = shaded([np.array([[[1.0, 2.0]]]), np.array([[[3.0, np.nan]]])])
    assert [one[0, :, 0].tolist(), two[0, :, 0].tolist()] == [[0, 128], [255, 0]]
    assert shaded([np.full((3, 1, 1), 7.0)])[0].tolist() == [[[0, 0, 0, 255]]]


def test_filters_patches_and_ways_are_drawn_once_each(ax):
    filters = np.random.default_rng(0).normal(size=(7, 3, 5, 5))
    plots.draw_filters(filters, ax, columns=4)
    assert len(ax.images) == 7
    assert np.array_equal(ax.images[2].get_array(), shaded(filters, signed=True)[2])
    ax.clear()
    pieces = list(np.random.default_rng(1).normal(size=(5, 1, 4, 6)))
    plots.draw_patches(pieces, pieces[::-1], ax)
    assert len(ax.images) == 10
    assert np.array_equal(ax.images[5].get_array(), shaded(pieces[::-1], signed=True)[0])
    assert ax.images[5].get_extent()[0] > ax.images[2].get_extent()[1]  # right of all patches
    ax.clear()
    plots.draw_ways(pieces[0], {"deconvnet": pieces[1], "gradient": pieces[2]}, ax)
    assert [text.get_text() for text in ax.texts] == ["image", "deconvnet", "gradient"]
    assert len(ax.images) == 3
