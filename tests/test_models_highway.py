"""Highway networks: equation 3 and its limits, the release layer by layer, the facts that are printed."""

from __future__ import annotations

import pytest
import torch
from peers import count, scramble
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.models.highway import Highway, highway_conv

NAMES = ["highway19", "highway32", "highway_fc"]


def highways(model: nn.Module) -> list[Highway]:
    return [m for m in model.modules() if isinstance(m, Highway)]


def test_a_layer_is_equation_3():
    layer = highway_conv(4, 3, gate_bias=-1.0).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    h = F.conv2d(x, layer.transform.weight, layer.transform.bias, padding=1).clamp(min=0)
    t = 1 / (1 + torch.exp(-F.conv2d(x, layer.gate.weight, layer.gate.bias, padding=1)))
    torch.testing.assert_close(layer(x), h * t + x * (1 - t))


def test_a_closed_gate_carries_and_an_open_one_transforms():
    layer = highway_conv(4, 3, gate_bias=-1.0)
    x = torch.randn(2, 4, 6, 6)
    nn.init.constant_(layer.gate.bias, -200.0)
    assert torch.equal(layer(x), x)  # equation 4
    nn.init.constant_(layer.gate.bias, 200.0)
    assert torch.equal(layer(x), layer.transform(x).relu())


@pytest.mark.parametrize("name", NAMES)
def test_gates_start_below_zero_and_other_biases_at_zero(name):
    for model, bias in ((cnnlib.build(name), -2.0), (cnnlib.build(name, gate_bias=-4.0), -4.0)):
        gates = {id(layer.gate.bias) for layer in highways(model)}
        for parameter in (p for p in model.parameters() if p.dim() == 1):
            assert (parameter == (bias if id(parameter) in gates else 0.0)).all()


@pytest.mark.parametrize("name", NAMES)
def test_weights_start_uniform_with_variance_one_over_the_inputs(name):
    torch.manual_seed(0)
    for weight in (p for p in cnnlib.build(name).parameters() if p.dim() > 1 and p.numel() > 8000):
        fan = weight[0].numel()
        assert weight.var().item() * fan == pytest.approx(1, rel=0.05)
        assert weight.abs().max().item() == pytest.approx((3 / fan) ** 0.5, rel=0.01)


@pytest.mark.parametrize("name", ["highway19", "highway32"])
def test_the_last_layer_starts_normal_with_deviation_a_twentieth(name):
    torch.manual_seed(0)
    assert cnnlib.build(name, num_classes=100).ip2.weight.std().item() == pytest.approx(0.05, rel=0.03)


def by_hand(model: nn.Sequential, x: torch.Tensor, plain: dict[int, int], last: int) -> torch.Tensor:
    """A convolutional net a second time, from its weights: `plain` maps the plain layers but the last to their stage."""
    weights = model.state_dict()
    conv = lambda x, name: F.conv2d(  # noqa: E731
        x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=weights[f"{name}.weight"].shape[3] // 2
    )
    for number in range(1, last):
        if plain.get(number, 1) > 1:
            x = F.max_pool2d(x, 2)
        if number in plain:
            x = conv(x, f"conv{number}.0").relu()
        else:
            t = conv(x, f"conv{number}.gate").sigmoid()
            x = t * conv(x, f"conv{number}.transform").relu() + (1 - t) * x
    x = conv(x, f"conv{last}.0").relu().mean(dim=(2, 3))
    return x @ weights["ip2.weight"].T + weights["ip2.bias"]


@pytest.mark.parametrize(
    ("name", "plain", "last"), [("highway19", {1: 1, 6: 2, 12: 3}, 18), ("highway32", {1: 1, 11: 2, 21: 3}, 31)]
)
def test_the_convolutional_nets_compute_their_layers(name, plain, last):
    model = scramble(cnnlib.build(name))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = by_hand(model, x, plain, last)
    assert expected.std() > 1e-4
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_highway19_is_the_release_layer_by_layer():
    model = cnnlib.build("highway19")
    widths = [32] * 5 + [80] * 6 + [128] * 6 + [100]
    convs = [getattr(model, f"conv{number}") for number in range(1, 19)]
    firsts = [conv.transform if isinstance(conv, Highway) else conv[0] for conv in convs]
    assert [conv.out_channels for conv in firsts] == widths
    assert [conv.kernel_size for conv in firsts] == [(3, 3)] * 17 + [(1, 1)]
    assert [number for number, conv in enumerate(convs, start=1) if not isinstance(conv, Highway)] == [1, 6, 12, 18]
    order = [name for name, _ in model.named_children() if not name.startswith("conv")]
    assert order == ["drop1", "pool1", "drop2", "pool2", "drop3", "pool3", "drop4", "flatten", "ip2"]
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert count(model) // 1000 == 2256  # the paper prints ~2.3M


def test_highway32_has_the_four_printed_facts():
    model = cnnlib.build("highway32")
    layers = [m for m in model.modules() if isinstance(m, Highway)]
    kernels = [layer.transform.kernel_size[0] for layer in layers]
    assert len(layers) + 3 + 1 + 1 == 32  # highway, plain, 1x1 and linear layers
    assert kernels == [1, 3, 1, 3, 1, 3, 1, 3, 1] * 3
    assert all(layer.gate.kernel_size == layer.transform.kernel_size for layer in layers)
    assert max(layer.gate.out_channels for layer in layers) < 128  # thinner than highway19
    assert count(model) == pytest.approx(1.25e6, rel=0.02)


@pytest.mark.parametrize("depth", [10, 20, 50, 100])
def test_the_fully_connected_net_has_one_plain_layer_and_5100_parameters_a_highway_layer(depth):
    published = cnnlib.card("highway_fc").published
    assert depth in published["depths"]["value"]
    with torch.device("meta"):
        model = cnnlib.build("highway_fc", depth=depth)
    assert {count(layer) for layer in highways(model)} == {published["params_a_layer"]["value"]}
    assert len(highways(model)) == depth - 1
    assert count(model) == 784 * 50 + 50 + (depth - 1) * 5100 + 510


@pytest.mark.parametrize(("activation", "f"), [("relu", torch.relu), ("tanh", torch.tanh)])
def test_the_fully_connected_net_computes_its_layers(activation, f):
    model = scramble(cnnlib.build("highway_fc", depth=4, activation=activation))
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    y = f(model.layer1[0](x.flatten(1)))
    for layer in (model.layer2, model.layer3, model.layer4):
        t = layer.gate(y).sigmoid()
        y = f(layer.transform(y)) * t + y * (1 - t)
    torch.testing.assert_close(model(x), model.output(y))


def test_what_the_fully_connected_net_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"depth must be at least 2, .* \(the paper: 10, 20, 50, 100\), got 1"):
        cnnlib.build("highway_fc", depth=1)
    with pytest.raises(ValueError, match=r"activation must be relu or tanh, as in section 3.1, got 'gelu'"):
        cnnlib.build("highway_fc", activation="gelu")
    with pytest.raises(ValueError, match=r"highway_fc takes images of 28x28 only, got 32x32"):
        cnnlib.build("highway_fc")(torch.zeros(1, 1, 32, 32))
