"""SE-ResNet-50: timm's copy of the authors' network, and why pytorchcv's is another one."""

from __future__ import annotations

import pytest
import timm
import torch
from peers import apart, assert_same_function, copy_in_order, count, scramble
from pytorchcv.models.seresnet import SEResNet
from torch import nn

import cnnlib
from cnnlib.analysis import receptive_field
from cnnlib.models.se_resnet import SqueezeExcitation


def peer() -> nn.Module:
    model = SEResNet([[w] * n for w, n in zip((256, 512, 1024, 2048), (3, 4, 6, 3))], 64, True, True, num_classes=7)
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs is 7x7 and takes 224 only
    for unit in (m for m in model.modules() if type(m).__name__ == "SEResUnit"):
        gate = unit.se
        del unit.se
        unit.se = gate  # after the projection, as ours: that order is how weights are copied
    return model


def test_timms_weights_fit_to_the_key_and_give_the_same_logits_both_ways():
    theirs = scramble(timm.create_model("legacy_seresnet50", num_classes=7))
    ours = cnnlib.build("se_resnet50", num_classes=7).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for size in (70, 71, 72):  # where the max pool's window hangs over the edge, and where not
        assert_same_function(ours, theirs, 3, size, size)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_pytorchcvs_has_the_same_parameters_and_differs_by_the_max_pool_alone():
    theirs = scramble(peer())
    ours = cnnlib.build("se_resnet50", num_classes=7)
    assert count(theirs) == count(ours)
    ours = copy_in_order(theirs, ours)
    assert apart(ours, theirs, 3, 70, 70) > 1e-3
    ours.pool0 = nn.MaxPool2d(3, stride=2, padding=1)
    assert_same_function(ours, theirs, 3, 70, 70)


def test_a_map_is_weighed_by_equations_2_to_4():
    gate = SqueezeExcitation(8, reduction=4).double()
    u = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    z = u.flatten(2).sum(dim=2) / 30
    w1, w2 = gate.fc1.weight[:, :, 0, 0], gate.fc2.weight[:, :, 0, 0]
    s = 1 / (1 + torch.exp(-((z @ w1.T + gate.fc1.bias).clamp(min=0) @ w2.T + gate.fc2.bias)))
    torch.testing.assert_close(gate(u), u * s[:, :, None, None])


def test_with_the_gates_cut_the_receptive_field_is_that_of_the_convolutions():
    with torch.device("meta"):
        model = cnnlib.build("se_resnet50")
    published = cnnlib.card("se_resnet50").published
    assert receptive_field(model, (3, 224, 224)).final.size == float("inf")
    for block in (m for m in model.modules() if hasattr(m, "se_module")):
        block.se_module = nn.Identity()
    final, figure = receptive_field(model, (3, 224, 224)).final, published["receptive_field_of_the_convolutions"]
    assert (final.size, final.stride, final.padding) == tuple(figure[key] for key in ("value", "stride", "padding"))


def test_the_extra_parameters_are_those_of_the_gates():
    extra = sum(n * (2 * c * (c // 16) + c // 16 + c) for n, c in zip((3, 4, 6, 3), (256, 512, 1024, 2048)))
    params = {name: cnnlib.card(name).published["params"]["value"] for name in ("se_resnet50", "resnet50")}
    assert params["se_resnet50"] - params["resnet50"] == extra


def test_a_reduction_that_leaves_no_unit_is_refused():
    with pytest.raises(ValueError, match=r"reduction must .* between 1 and 256, got 512; the paper's is 16"):
        cnnlib.build("se_resnet50", reduction=512)
