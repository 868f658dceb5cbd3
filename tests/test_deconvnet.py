"""Laws of the ways back from an activation to the pixels: adjoints, switches, three rules for a ReLU, nothing touched."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from captum import attr
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.analysis import guided_backprop, plain_gradient, price, receptive_field, send_back, through_deconvnet
from cnnlib.analysis.deconvnet import DECONVNET, GRADIENT, GUIDED, Way, differentiated, first_filters, project

WAYS = {"deconvnet": through_deconvnet, "guided": guided_backprop, "gradient": plain_gradient}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def conv(inputs: int, outputs: int, kernel: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def chain() -> nn.Sequential:
    """AlexNet's parts in small: overlapping pooling with ceil mode and padding, in-place ReLU, groups, dilation."""
    return nn.Sequential(
        conv(3, 8, 5, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        conv(8, 12, 3, padding=2, groups=2, dilation=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        conv(12, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 5),
    ).double()


class Branches(nn.Module):
    """A stem that is read twice, a sum, a concatenation, batch norm, a layer used twice, functions in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shared = conv(4, 4, 3, padding=1)
        self.narrow = conv(4, 3, 1)

    def forward(self, x):
        stem = F.relu(self.norm(self.stem(x)))
        y = F.relu_(self.shared(stem))
        y = self.shared(y) + stem
        y = torch.cat([F.relu(y), F.max_pool2d(self.narrow(stem), 3, 1, 1)], dim=1)
        return y[:, 1:].mean((2, 3))


def branches() -> Branches:
    model = Branches().double().eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(model.norm.weight)
    return model


def named_chain() -> tuple[nn.Sequential, torch.Tensor]:
    return chain(), torch.randn(2, 3, 23, 23, dtype=torch.float64)


# --- adjoints


LINEAR = {
    "strided": lambda: conv(3, 4, 3, stride=2, padding=1),
    "grouped and dilated": lambda: conv(3, 6, 3, groups=3, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
    "mean of overlapping windows": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "global mean": lambda: nn.AdaptiveAvgPool2d(2),
    "reflected border": lambda: nn.ReflectionPad2d(2),
    "upsampled": lambda: nn.Upsample(scale_factor=2),
    "units": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 11, 5)),
    "shuffled": lambda: nn.Sequential(conv(3, 8, 1), nn.PixelShuffle(2)),
}


@pytest.mark.parametrize("way", [DECONVNET, GUIDED, GRADIENT], ids=lambda way: way.name)
@pytest.mark.parametrize("kind", LINEAR)
def test_going_back_is_the_adjoint_of_going_forward_where_the_network_is_linear(kind, way):
    model = nn.Sequential(LINEAR[kind]()).double()
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    forward = model(x) - model(torch.zeros_like(x))  # less the biases
    y = torch.randn_like(forward)
    last = [node.name for node in cnnlib.trace(model, (3, 9, 11)) if node.kind not in ("input", "output")][-1]
    back = send_back(model, x, last, y, way=way)
    assert torch.allclose((back * x).sum(), (y * forward).sum(), atol=1e-10, rtol=0)


def test_batch_norm_goes_back_as_the_scale_of_each_channel():
    norm = nn.BatchNorm2d(3).double().eval()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    signal = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    back = send_back(nn.Sequential(norm), torch.randn_like(signal), "0", signal)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    assert torch.allclose(back, signal * scale.detach()[:, None, None], atol=1e-12, rtol=0)


# --- the deconvnet, written out by hand


def by_hand(model: nn.Sequential, x: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """Section 2.1 layer by layer: unpool with switches, rectify, filter with the transposed kernels."""
    layers, inputs, switches = list(model), [], []
    value = x
    for layer in layers:
        inputs.append(value)
        index = None
        if isinstance(layer, nn.MaxPool2d):
            settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
            value, index = F.max_pool2d(value, *settings, return_indices=True)
        else:
            value = layer(value.clone())
        switches.append(index)
    for layer, before, index in zip(layers[::-1], inputs[::-1], switches[::-1]):
        if isinstance(layer, nn.MaxPool2d):
            flat = torch.zeros_like(before).flatten(2)
            signal = flat.scatter_add(2, index.flatten(2), signal.flatten(2)).view_as(before)
        elif isinstance(layer, nn.ReLU):
            signal = signal.clamp(min=0)
        elif isinstance(layer, nn.Conv2d):
            settings = (layer.stride, layer.padding, layer.dilation)
            reach = F.conv2d(before, layer.weight, None, *settings, layer.groups).shape[2:]
            whole = [
                (n - 1) * s - 2 * p + d * (k - 1) + 1
                for n, s, p, d, k in zip(reach, layer.stride, layer.padding, layer.dilation, layer.kernel_size)
            ]
            extra = [side - n for side, n in zip(before.shape[2:], whole)]
            signal = F.conv_transpose2d(
                signal, layer.weight, None, layer.stride, layer.padding, extra, layer.groups, layer.dilation
            )
        elif isinstance(layer, nn.Linear):
            signal = signal @ layer.weight
        else:
            signal = signal.view_as(before)
    return signal.detach()


@pytest.mark.parametrize("at", ["2", "6", "7", "9"])
def test_the_deconvnet_unpools_by_switches_rectifies_and_filters_with_transposed_kernels(at):
    model, x = named_chain()
    signal = torch.randn(2, *cnnlib.trace(model, (3, 23, 23))[at].shape, dtype=torch.float64)
    found = send_back(model, x, at, signal)
    assert torch.allclose(found, by_hand(model[: int(at) + 1], x, signal), atol=1e-12, rtol=0)


def test_where_windows_overlap_the_switches_add_up():
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 2] = 1  # the maximum of all four 3x3 windows of stride 2
    signal = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]], dtype=torch.float64)
    back = send_back(nn.Sequential(nn.MaxPool2d(3, 2)), x, "0", signal)
    assert back[0, 0, 2, 2] == 15
    assert back.count_nonzero() == 1


def test_one_activation_alone_is_sent_and_it_is_the_strongest_of_its_map():
    model, x = named_chain()
    value = cnnlib.trace(model, (3, 23, 23)).values(x, ["7"])["7"]
    for image, one in enumerate(through_deconvnet(model, x, "7", 2)):
        row, column = one.position
        assert one.value == value[image, 2].max() == value[image, 2, row, column]
        signal = torch.zeros_like(value[image : image + 1])
        signal[0, 2, row, column] = one.value
        assert torch.equal(one.pixels, by_hand(model[:8], x[image : image + 1], signal)[0])


def test_the_reconstruction_lies_within_the_receptive_field():
    model, x = named_chain()
    field = receptive_field(model, (3, 23, 23))["6"]
    for position in [(0, 0), (1, 2), (2, 1)]:
        (one,) = through_deconvnet(model, x[:1], "6", 1, positions=[position])
        seen = one.pixels.ne(0).any(0).nonzero()
        assert len(seen)
        for axis in (0, 1):
            centre = field.offset + field.stride * position[axis]
            assert (seen[:, axis] - centre).abs().max() <= (field.size - 1) / 2


# --- the relation of the three


@pytest.mark.parametrize("make", [named_chain, lambda: (branches(), torch.randn(2, 2, 6, 6, dtype=torch.float64))])
def test_without_a_relu_the_three_are_one(make):
    model, x = make()
    graph = cnnlib.trace(model, tuple(x.shape[1:]))
    at = graph.output.inputs[0]
    linear = [replace(way, relu=lambda signal, fired: signal) for way in (DECONVNET, GUIDED, GRADIENT)]
    signal = torch.randn(2, *graph[at].shape, dtype=torch.float64)
    one, two, three = (send_back(model, x, at, signal, way=way) for way in linear)
    assert one.count_nonzero()
    assert torch.equal(one, two)
    assert torch.equal(two, three)


def test_at_one_relu_guided_is_the_deconvnet_where_the_unit_fired_and_the_gradient_where_the_signal_is_positive():
    model = nn.Sequential(nn.ReLU())
    x, signal = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64)
    deconv, guided, gradient = (send_back(model, x, "0", signal, way=way) for way in (DECONVNET, GUIDED, GRADIENT))
    assert torch.equal(guided, torch.where(x > 0, deconv, 0))
    assert torch.equal(guided, torch.where(signal > 0, gradient, 0))
    assert torch.equal(gradient, torch.where(x > 0, signal, 0))
    assert torch.equal(deconv, torch.where(signal > 0, signal, 0))


@pytest.mark.parametrize("way", WAYS)
def test_the_way_back_is_positively_homogeneous_and_only_the_gradient_is_linear(way):
    model, x = named_chain()
    rule = {"deconvnet": DECONVNET, "guided": GUIDED, "gradient": GRADIENT}[way]
    a, b = torch.randn(2, 2, 5, dtype=torch.float64)
    back = lambda signal: send_back(model, x, "9", signal, way=rule)  # noqa: E731
    assert torch.allclose(back(3 * a), 3 * back(a), atol=1e-12)
    assert torch.allclose(back(a) + back(b), back(a + b), atol=1e-12) == (way == "gradient")


def test_local_response_norm_is_left_out_by_the_deconvnet_and_differentiated_by_the_others():
    norm = nn.LocalResponseNorm(3, alpha=0.5, k=1.0)
    x, signal = torch.randn(2, 1, 6, 4, 4, dtype=torch.float64)
    model = nn.Sequential(norm)
    assert torch.equal(send_back(model, x, "0", signal), signal)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(norm(leaf), leaf, signal)
    for way in (GUIDED, GRADIENT, replace(DECONVNET, lrn=differentiated)):
        assert torch.equal(send_back(model, x, "0", signal, way=way), expected)


# --- peers


@pytest.mark.parametrize("make", [named_chain, lambda: (branches(), torch.randn(2, 2, 6, 6, dtype=torch.float64))])
def test_the_plain_gradient_is_that_of_autograd(make):
    model, x = make()
    model.eval()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 3].sum(), leaf)
    at = cnnlib.trace(model, tuple(x.shape[1:])).output.inputs[0]
    found = plain_gradient(model, x, at, 3)
    assert torch.allclose(torch.stack([one.pixels for one in found]), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("way", ["deconvnet", "guided"])
def test_captum_finds_the_same(way):
    model, x = named_chain()
    model[1].inplace = False
    method = attr.Deconvolution if way == "deconvnet" else attr.GuidedBackprop
    with pytest.warns(UserWarning, match="hooks"):
        expected = method(model).attribute(x.clone().requires_grad_(), target=4).detach()
    rule = replace(DECONVNET, sends=torch.ones_like) if way == "deconvnet" else GUIDED
    found = torch.stack([one.pixels for one in project(model, x, "9", 4, way=rule)])
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)
    assert found.count_nonzero()


# --- any network


class Own(nn.Module):
    """A reader's network that torch.fx cannot follow: the shape decides how often a layer is run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(1, 1, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        for _ in range(int(x.shape[-1] > 4) + 1):
            x = x.relu_() if x.shape[1] > 1 else torch.relu(self.conv(x))
        return x


@pytest.mark.parametrize("way", WAYS)
def test_a_recorded_network_goes_back_image_by_image(way):
    model = Own().double()
    graph = cnnlib.trace(model, (1, 6, 6))
    assert graph.source == "recorded"
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    together = WAYS[way](model, x, graph.output.inputs[0], 0)
    for i, one in enumerate(together):
        (alone,) = WAYS[way](model, x[i : i + 1], graph.output.inputs[0], 0)
        assert torch.equal(one.pixels, alone.pixels)
    assert model.calls == 0


ZOO = {
    "lenet5": "c3.1",
    "small_alexnet": "relu5",
    "small_vgg": "relu3_3",
    "resnet20": "layer2.0.relu",
    "googlenet": "inception3a.cat",
}


@pytest.mark.parametrize("name", ZOO)
def test_on_networks_of_the_zoo_the_batches_do_not_show_and_the_three_differ(name):
    model = cnnlib.build(name).double().eval()
    x = torch.rand(3, *cnnlib.card(name).input_shape, dtype=torch.float64)
    graph = cnnlib.trace(model, tuple(x.shape[1:]))
    at = next((n.name for n in graph if n.name == ZOO[name]), None) or pytest.fail(repr(graph))
    value = graph.upto(at).values(x[:1], [at])[at][0]
    strong = int(value.flatten(1).max(1).values.argmax())
    found = {}
    for way, function in WAYS.items():
        (found[way],) = function(model, x[:1], at, strong)
        assert found[way].pixels.count_nonzero()
    assert not torch.allclose(found["deconvnet"].pixels / found["deconvnet"].value, found["guided"].pixels)
    if name != "googlenet":
        together = through_deconvnet(model, x, at, [strong, 0, 1], batch=2)
        assert torch.allclose(together[0].pixels, found["deconvnet"].pixels, atol=1e-10)


def test_layer_of_units_has_no_positions():
    model, x = named_chain()
    found = guided_backprop(model, x[:1], "9", range(5))
    assert [(one.map, one.position) for one in found] == [(m, ()) for m in range(5)]
    assert torch.allclose(torch.tensor([one.value for one in found]).double(), model(x[:1].clone())[0], atol=1e-12)


# --- nothing is touched


def state_of(model: nn.Module):
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    return (
        tensors,
        [(id(m), m.training, len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()],
        [(id(p), p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
    )


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("way", [DECONVNET, GUIDED, GRADIENT], ids=lambda way: way.name)
def test_the_network_is_left_as_it_was_also_after_an_error(way, fails):
    model = branches().train()
    model.shared.eval()
    model.stem.weight.requires_grad_(False)
    model.narrow.register_forward_hook(lambda *_: pytest.fail("the reader's hook ran"))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    before, picture = state_of(model), x.detach().clone()
    at = cnnlib.trace(model, (2, 6, 6)).output.inputs[0]

    def broken(signal, fired):
        torch.rand(1)
        raise RuntimeError("thrown in the middle")

    if fails:
        with pytest.raises(RuntimeError, match="thrown in the middle"):
            project(model, x, at, 0, way=replace(way, relu=broken))
    else:
        project(model, x, at, 0, way=way)
    assert same(before, state_of(model))
    assert torch.equal(x, picture)
    assert x.grad is None


def test_the_same_twice_and_whatever_the_random_state():
    model, x = named_chain()
    first = through_deconvnet(model, x, "7", 1)
    torch.manual_seed(99)
    again = through_deconvnet(copy.deepcopy(model).train(), x, "7", 1)
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(first, again))


def test_its_price_is_one_pass_there_and_one_back_for_each_activation():
    model, x = named_chain()
    found = price(through_deconvnet, model, x[:1], "7", [0, 1, 2])
    assert (found.forward, found.backward) == (3, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_pictures_are_the_same():
    model, x = named_chain()
    here = through_deconvnet(model, x, "7", 1)
    there = through_deconvnet(copy.deepcopy(model).cuda(), x, "7", 1)
    assert all(torch.allclose(a.pixels, b.pixels, atol=1e-10) for a, b in zip(here, there))


# --- errors


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(1, 2, 3)
        self.gate = conv(1, 2, 3)

    def forward(self, x):
        return self.conv(x) * torch.sigmoid(self.gate(x))


class Quotient(nn.Module):
    def forward(self, x):
        return 1 / (x / 2 + 3.0)


@pytest.mark.parametrize(
    ("model", "at", "operation"),
    [
        (Gate(), "mul", r"sigmoid \(sigmoid\), mul \(mul\)"),
        (nn.Sequential(conv(1, 2, 3), nn.GELU()), "1", r"1 \(GELU\)"),
        (nn.Sequential(conv(1, 2, 3), nn.GroupNorm(1, 2)), "1", r"1 \(GroupNorm\)"),
        (nn.Sequential(conv(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)), "1", r"1 \(BatchNorm2d\)"),
        (nn.Sequential(conv(1, 2, 3), nn.LPPool2d(2, 2)), "1", r"1 \(LPPool2d\)"),
        (Quotient(), "truediv:2", "truediv:2"),
    ],
)
def test_an_operation_without_a_rule_is_named_and_the_gradient_takes_it(model, at, operation):
    x = torch.rand(1, 1, 8, 8)
    names = [node.name for node in cnnlib.trace(model, (1, 8, 8)) if node.kind not in ("input", "output")]
    at = at if at in names else names[-1]
    for function in (through_deconvnet, guided_backprop):
        with pytest.raises(
            ValueError, match=f"has no rule for .*{operation}.*choose a layer before it.*plain_gradient"
        ):
            function(model, x, at, 0)
    assert plain_gradient(model, x, at, 0)[0].pixels.count_nonzero()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: through_deconvnet(m, x, "7", 6), "7 has maps 0 to 5, got 6"),
        (
            lambda m, x: through_deconvnet(m, x, "7", [0, 1, 2]),
            "one map an image, or one image for all: got 3 maps and 2",
        ),
        (lambda m, x: through_deconvnet(m, x, "7", 0, positions=[(0, 0)]), "one position a map: got 1 positions and 2"),
        (
            lambda m, x: through_deconvnet(m, x[:1], "7", 0, positions=[(3, 0)]),
            r"\(row, column\) within 3x3, got \(3, 0\)",
        ),
        (lambda m, x: through_deconvnet(m, x[0], "7", 0), r"images must be \(N, C, H, W\).*images\[None\]"),
        (lambda m, x: through_deconvnet(m, x, "77", 0), "no node '77'"),
        (lambda m, x: through_deconvnet(m, x, "output", 0), "is no layer that computes something"),
        (lambda m, x: through_deconvnet(m, x, "7", 0, batch=0), "batch must be at least 1, got 0"),
        (lambda m, x: send_back(m, x, "7", torch.zeros(2, 6)), "the signal at 7 must be 2x6x3x3.*got 2x6"),
        (lambda m, x: first_filters(nn.Linear(3, 3), (1, 3, 3)), "Linear has no convolution"),
    ],
)
def test_what_cannot_be_sent_back_is_refused_with_the_rule(call, message):
    model, x = named_chain()
    with pytest.raises(ValueError, match=message):
        call(model, x)


# --- filters


@pytest.mark.parametrize("name", ["small_alexnet", "resnet20", "googlenet", "lenet5"])
def test_the_first_filters_are_the_weights_that_the_image_meets(name):
    model = cnnlib.build(name)
    found = first_filters(model, cnnlib.card(name).input_shape)
    weight = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight
    assert torch.equal(found, weight)
    assert found.data_ptr() != weight.data_ptr()


def test_filters_of_a_function_are_found_too():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.Parameter(torch.randn(3, 1, 2, 2))

        def forward(self, x):
            return F.conv2d(x, self.kernels)

    model = Own()
    assert torch.equal(first_filters(model, (1, 5, 5)), model.kernels)


def test_a_way_of_ones_own_is_a_row_of_data():
    model, x = named_chain()
    own = Way("signed", lambda signal, fired: signal, differentiated, torch.ones_like)
    (one,) = project(model, x[:1], "7", 0, way=own)
    assert one.way == "signed"
