"""Pre-activation: figure 4's orders written out a second time, pytorchcv's networks, and the identity path."""

from __future__ import annotations

import pytest
import torch
from peers import apart, assert_same_function, copy_in_order, count, scramble
from pytorchcv.models.preresnet import PreResNet
from pytorchcv.models.preresnet_cifar import CIFARPreResNet
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.models.preact_resnet import UNITS, cifar_preact, cifar_preact_bottleneck
from cnnlib.models.resnet import cifar_resnet


def step(module: nn.Module) -> nn.Module:
    """pytorchcv's CIFAR networks stride in the 3x3 of a bottleneck, the authors' in the first 1x1: move it there."""
    for unit in (m for m in module.modules() if type(m).__name__ == "PreResUnit"):
        first, second = unit.body.conv1.conv, unit.body.conv2.conv
        first.stride, second.stride = second.stride, first.stride
    return module


def peer(n: int) -> nn.Module:
    return CIFARPreResNet([[width] * n for width in (64, 128, 256)], 16, bottleneck=True)


def test_bottlenecks_are_pytorchcvs_with_the_stride_in_the_first_1x1():
    theirs = scramble(step(peer(2)))
    ours = copy_in_order(theirs, cifar_preact_bottleneck(20))
    assert_same_function(ours, theirs, 3, 32, 32)
    assert apart(ours, step(theirs), 3, 32, 32) > 0.01


def test_preact_resnet164_is_pytorchcvs_with_the_stride_in_the_first_1x1():
    theirs = scramble(step(peer(18)))
    assert_same_function(copy_in_order(theirs, cnnlib.build("preact_resnet164")), theirs, 3, 32, 32)


def test_preact_resnet200_is_pytorchcvs():
    channels = [[w] * n for w, n in zip((256, 512, 1024, 2048), (3, 24, 36, 3))]
    theirs = scramble(PreResNet(channels, 64, bottleneck=True, conv1_stride=True, num_classes=3))
    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs is 7x7 and takes 224 only
    assert_same_function(copy_in_order(theirs, cnnlib.build("preact_resnet200", num_classes=3)), theirs, 3, 40, 40)


def test_with_a_hundred_classes_the_counts_are_the_published_ones():
    for name in ("preact_resnet164", "preact_resnet1001"):
        published = cnnlib.card(name).published
        with torch.device("meta"):
            assert count(cnnlib.build(name, num_classes=100)) == published["params_100_classes"]["value"]
            model = cnnlib.build(name)
        norms = sum(count(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        assert count(model) - norms == published["params_without_batch_norm"]["value"]


# Figure 4, one function a drawing: c, b, r are the unit's convolutions, its batch norms and relu, in the drawing's order.
def figure_a(x, s, c, b, r):
    return r(s(x) + b[1](c[1](r(b[0](c[0](x))))))


def figure_b(x, s, c, b, r):
    return r(b[1](s(x) + c[1](r(b[0](c[0](x))))))


def figure_c(x, s, c, b, r):
    return s(x) + r(b[1](c[1](r(b[0](c[0](x))))))


def figure_d(x, s, c, b, r):
    return s(x) + b[1](c[1](r(b[0](c[0](r(x))))))


def figure_e(x, s, c, b, r):
    return s(x) + c[1](r(b[1](c[0](r(b[0](x))))))


def lecture_b(x, s, c, b, r):
    return r(s(x) + r(b[1](c[1](r(b[0](c[0](x)))))))


DRAWN = {
    "original": figure_a,
    "bn_after_addition": figure_b,
    "relu_before_addition": figure_c,
    "relu_only_preactivation": figure_d,
    "full_preactivation": figure_e,
    "relu_before_and_after_addition": lecture_b,
}


def test_every_order_has_its_drawing():
    assert list(DRAWN) == list(UNITS)
    printed = cnnlib.models.zoo.papers()["preact_table2"]["rows"]
    assert [row[0] for row in printed] == list(UNITS)[:5]


@pytest.mark.parametrize("order", UNITS)
def test_every_order_computes_its_drawing_in_every_unit(order):
    model = scramble(cifar_preact(14, unit=order))
    units = [unit for stage in (model.layer1, model.layer2, model.layer3) for unit in stage]
    for number, unit in enumerate(units):
        convs = [m for m in unit.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in unit.modules() if isinstance(m, nn.BatchNorm2d)]
        assert (len(convs), len(norms)) == (2, 2)
        channels, out, stride = convs[0].in_channels, convs[1].out_channels, convs[0].stride[0]
        assert stride == (2 if out != channels else 1)

        def shortcut(x, stride=stride, extra=out - channels):
            return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, extra))

        x = torch.randn(2, channels, 8, 8, dtype=torch.float64)
        drawn = DRAWN[order](x, shortcut, convs, norms, torch.relu)
        if number == 0 and UNITS[order].before:
            # The appendix: the network's first unit splits after the activation.
            before = norms[0](x).relu() if order == "full_preactivation" else x.relu()
            drawn = drawn - shortcut(x) + before
        torch.testing.assert_close(unit(x), drawn, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", UNITS)
def test_every_order_has_the_layers_of_the_original(order):
    """Each of them only moves batch norms and ReLUs: also over the whole network nothing is added or lost."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear)

    def inventory(unit: str) -> list[int]:
        with torch.device("meta"):
            model = cnnlib.build("preact_resnet110", unit=unit)
        assert count(model) == cnnlib.card("preact_resnet110").published["params"]["value"]
        return [sum(isinstance(m, kind) for m in model.modules()) for kind in kinds]

    expected = inventory("original")
    if order == "relu_before_and_after_addition":
        expected[2] += 54  # lecture B has a third ReLU in each of the 54 units
    assert inventory(order) == expected


def test_the_original_order_is_resnet_110s():
    theirs = scramble(cifar_resnet(20))
    assert_same_function(copy_in_order(theirs, cifar_preact(20, unit="original")), theirs, 3, 32, 32)
    paper = cnnlib.card("resnet110").published["params"]["value"]
    assert cnnlib.card("preact_resnet110").published["params"]["value"] == paper


def test_with_silent_branches_full_preactivation_carries_the_image_to_the_last_unit_unchanged():
    model = scramble(cifar_preact(20)).float()
    for unit in model.layer1:
        nn.init.zeros_(unit.branch[-1].conv.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(model.layer1[1:](x), x)  # equation 4 with every F = 0
    assert torch.equal(model.layer1(x), model.layer1[0].before(x))


@pytest.mark.parametrize("order", ["relu_before_addition", "relu_before_and_after_addition"])
def test_a_relu_at_the_end_of_the_branch_lets_activations_only_grow(order):
    unit = scramble(cifar_preact(8, unit=order)).layer1[0]
    x = torch.rand(4, 16, 8, 8, dtype=torch.float64)
    assert (unit(x) - x).min() >= 0
    other = scramble(cifar_preact(8, unit="original")).layer1[0]
    assert (other(x) - x).min() < 0


def test_a_bottleneck_net_takes_every_order_too():
    for order in UNITS:
        with torch.device("meta"):
            model = cifar_preact_bottleneck(11, unit=order)
            assert model(torch.empty(1, 3, 32, 32)).shape == (1, 10)
            norms = [m.num_features for m in model.layer1[0].shortcut.modules() if isinstance(m, nn.BatchNorm2d)]
        # The projection has a batch norm where the branch ends in one.
        assert norms == ([] if order in ("bn_after_addition", "full_preactivation") else [64])


def test_an_order_or_a_depth_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"no residual unit 'preactivation'; did you mean 'full_preactivation'\?"):
        cnnlib.build("preact_resnet110", unit="preactivation")
    with pytest.raises(ValueError, match=r"depth must be 9n \+ 2 .* got 112; the nearest are 110 and 119"):
        cifar_preact_bottleneck(112)
