"""LeNet-5: the paper's counts, its equations written a second time, and the inputs that it refuses."""

from __future__ import annotations

import math

import pytest
import torch

import cnnlib
from cnnlib.models.lenet import C3_SEES, PartialConv2d, ScaledTanh, Subsampling, target_bitmaps

PUBLISHED = cnnlib.card("lenet5_1998").published


def squash(value: float) -> float:
    return 1.7159 * math.tanh(2 * value / 3)


def test_every_layer_has_the_papers_number_of_parameters():
    model = cnnlib.build("lenet5_1998")
    columns = PUBLISHED["stages"]["columns"]
    for row in PUBLISHED["stages"]["rows"]:
        stage = dict(zip(columns, row))
        counted = sum(p.numel() for p in getattr(model, stage["stage"]).parameters())
        assert counted == stage["params"], stage["stage"]
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED["params"]["value"]


def test_every_layer_has_the_papers_shape():
    x = torch.zeros(1, 1, 32, 32)
    model = cnnlib.build("lenet5_1998")
    for stage, maps, size, *_ in PUBLISHED["stages"]["rows"]:
        x = getattr(model, stage)(x)
        assert x.numel() == maps * (size or 1) ** 2, stage


def test_table_one_has_sixty_links_and_no_two_maps_alike():
    assert [len(maps) for maps in C3_SEES] == [3] * 6 + [4] * 9 + [6]
    assert sum(map(len, C3_SEES)) == 60
    assert len(set(C3_SEES)) == 16
    # Each map of S2 feeds ten maps of C3 (its row of the table has ten crosses).
    assert [sum(source in maps for maps in C3_SEES) for source in range(6)] == [10] * 6
    # The contiguous ones wrap round: maps 0 to 5 start at 0 to 5, and so do maps 6 to 11.
    assert [set(maps) for maps in C3_SEES[:6]] == [{i % 6, (i + 1) % 6, (i + 2) % 6} for i in range(6)]
    assert [set(maps) for maps in C3_SEES[6:12]] == [{(i + j) % 6 for j in range(4)} for i in range(6)]
    assert [set(maps) for maps in C3_SEES[12:15]] == [{0, 1, 3, 4}, {1, 2, 4, 5}, {0, 2, 3, 5}]


def test_a_map_of_c3_sees_the_maps_of_table_one_and_no_other():
    layer = PartialConv2d(C3_SEES, 5)
    for source in range(6):
        x = torch.zeros(1, 6, 5, 5)
        silent = layer(x)
        x[0, source] = torch.rand(5, 5)
        moved = (layer(x) != silent).flatten()
        assert moved.tolist() == [source in maps for maps in C3_SEES]


def test_partial_convolution_equals_sixteen_convolutions():
    layer = PartialConv2d(C3_SEES, 5).double()
    x = torch.rand(2, 6, 14, 14, dtype=torch.float64)
    weights = [kernel for conv in layer.convs for kernel in conv.weight]
    biases = [bias for conv in layer.convs for bias in conv.bias]
    separate = [
        torch.nn.functional.conv2d(x[:, list(maps)], weight[None], bias[None])
        for maps, weight, bias in zip(C3_SEES, weights, biases)
    ]
    torch.testing.assert_close(layer.eval()(x), torch.cat(separate, dim=1))
    torch.testing.assert_close(layer.train()(x), torch.cat(separate, dim=1))


def test_training_and_evaluation_give_the_partial_convolution_the_same_gradients():
    layer = PartialConv2d(C3_SEES, 5).double()
    x = torch.rand(2, 6, 14, 14, dtype=torch.float64)
    y = torch.rand(2, 16, 10, 10, dtype=torch.float64)
    gradients = []
    for mode in (True, False):
        layer.zero_grad()
        (layer.train(mode)(x) * y).sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_subsampling_scales_the_sum_of_four_inputs():
    layer = Subsampling(2)
    with torch.no_grad():
        layer.coefficient.copy_(torch.tensor([0.5, -2.0]).view(2, 1, 1))
        layer.bias.copy_(torch.tensor([0.25, 1.0]).view(2, 1, 1))
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert layer(x).flatten().tolist() == [0.5 * (0 + 1 + 2 + 3) + 0.25, -2.0 * (4 + 5 + 6 + 7) + 1.0]


def test_the_squashing_function_takes_one_to_one():
    x = torch.tensor([-1.0, 0.0, 1.0, 10.0], dtype=torch.float64)
    expected = [squash(value) for value in x.tolist()]
    assert ScaledTanh()(x).tolist() == pytest.approx(expected)
    assert expected[2] == pytest.approx(1, abs=1e-4)
    assert expected[3] == pytest.approx(1.7159, abs=1e-4)


def test_outputs_are_squared_distances_to_ten_different_bitmaps():
    bitmaps = target_bitmaps()
    assert bitmaps.shape == (10, 7 * 12)
    assert set(bitmaps.unique().tolist()) == {-1.0, 1.0}
    model = cnnlib.build("lenet5_1998")
    for digit in range(10):
        distance = model.output(bitmaps[digit][None])[0]
        assert distance[digit] == 0
        # Two bitmaps that differ in d pixels are 4d apart; no digit is mistaken for another by a few pixels.
        assert all(d >= 40 and d % 4 == 0 for i, d in enumerate(distance.tolist()) if i != digit)
    f6 = torch.rand(84, dtype=torch.float64)
    by_hand = sum((f6[j] - bitmaps[3, j]) ** 2 for j in range(84))
    assert model.double().output(f6[None])[0, 3] == pytest.approx(by_hand)


def test_the_bitmaps_are_no_parameters_but_travel_with_the_weights():
    model = cnnlib.build("lenet5_1998")
    assert "output.bitmaps" in model.state_dict()
    assert not any(name.startswith("output") for name, _ in model.named_parameters())


def test_weights_start_within_the_papers_bounds():
    model = cnnlib.build("lenet5_1998")
    for conv in model.c3[0].convs:
        fan_in = conv.weight[0].numel()
        assert conv.weight.abs().max() <= 2.4 / fan_in
        assert conv.weight.abs().max() > 0.8 * 2.4 / fan_in
    assert model.f6[0].weight.abs().max() <= 2.4 / 120


def test_a_digit_passes_through_the_written_out_network():
    torch.manual_seed(0)
    model = cnnlib.build("lenet5_1998").double()
    x = torch.rand(1, 1, 32, 32, dtype=torch.float64)
    f = torch.nn.functional
    act = lambda a: 1.7159 * torch.tanh(a * 2 / 3)  # noqa: E731
    c1 = act(f.conv2d(x, model.c1[0].weight, model.c1[0].bias))
    pool = lambda a: a[..., 0::2, 0::2] + a[..., 0::2, 1::2] + a[..., 1::2, 0::2] + a[..., 1::2, 1::2]  # noqa: E731
    s2 = act(pool(c1) * model.s2[0].coefficient + model.s2[0].bias)
    c3 = torch.zeros(1, 16, 10, 10, dtype=torch.float64)
    kernels = [(k, b) for conv in model.c3[0].convs for k, b in zip(conv.weight, conv.bias)]
    for out, (maps, (kernel, bias)) in enumerate(zip(C3_SEES, kernels)):
        for source, plane in zip(maps, kernel):
            c3[:, out] += f.conv2d(s2[:, source : source + 1], plane[None, None])[:, 0]
        c3[:, out] += bias
    s4 = act(pool(act(c3)) * model.s4[0].coefficient + model.s4[0].bias)
    c5 = act(s4.flatten(1) @ model.c5[0].weight.flatten(1).T + model.c5[0].bias)
    f6 = act(c5 @ model.f6[0].weight.T + model.f6[0].bias)
    y = torch.stack([((f6 - bitmap) ** 2).sum(dim=1) for bitmap in target_bitmaps().double()], dim=1)
    torch.testing.assert_close(model(x), y)


def test_the_modern_net_has_the_printed_count_and_linear_outputs():
    model = cnnlib.build("lenet5")
    counts = [sum(p.numel() for p in stage.parameters()) for stage in model]
    assert [c for c in counts if c] == [156, 2416, 48120, 10164, 850]
    assert sum(counts) == cnnlib.card("lenet5").published["params"]["value"]
    assert cnnlib.build("lenet5", num_classes=7, in_channels=3)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cnnlib.build("lenet5_1998", num_classes=26), "exactly 10 classes, .* got num_classes=26; build"),
        (lambda: cnnlib.build("lenet5_1998", in_channels=3), r"grey images \(1 input channel\), got in_channels=3"),
        (lambda: cnnlib.build("lenet-5"), "no model 'lenet-5'; did you mean 'lenet5'?"),
        (lambda: cnnlib.build("lenet5", depth=5), "lenet5 has no option 'depth'"),
        (lambda: cnnlib.build("lenet5", num_classes=0), "num_classes must be a whole number of at least 1, got 0"),
        (lambda: cnnlib.build("lenet5", in_channels=True), "in_channels must be a whole number"),
        (lambda: cnnlib.build("lenet5")(torch.zeros(1, 1, 28, 28)), "images of 32x32 only, got 28x28; pad or resize"),
        (lambda: cnnlib.build("lenet5")(torch.zeros(1, 3, 32, 32)), "built for 1 input channel, got images of 3"),
        (lambda: cnnlib.build("lenet5")(torch.zeros(1, 32, 32)), "a single image needs a batch axis"),
    ],
)
def test_bad_input_names_the_rule_the_value_and_a_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()
