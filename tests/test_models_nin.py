"""Network in network: its layers written out a second time, pytorchcv's weights, the smallest image."""

from __future__ import annotations

import pytest
import torch
from pytorchcv.model_provider import get_model
from torch import Tensor, nn
from torch.nn import functional as F

import cnnlib


def scramble(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.normal_(module.bias, std=0.2)
    return model.double().eval()


def windows(x: Tensor) -> list[list[Tensor]]:
    """3x3 windows with stride 2 that cover the map to its end, cut where they stick out; each (N, C, h, w)."""
    starts = range(0, x.shape[-1] - 1, 2)
    return [[x[:, :, i : i + 3, j : j + 3] for j in starts] for i in starts]


def pooled(x: Tensor, reduce) -> Tensor:
    return torch.stack([torch.stack([reduce(w) for w in row], dim=-1) for row in windows(x)], dim=-2)


@torch.no_grad()
def test_logits_equal_the_layers_written_out():
    torch.manual_seed(0)
    model = scramble(cnnlib.build("nin"))
    w = model.state_dict()
    x = images = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def layer(x: Tensor, name: str, padding: int = 0) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding).clamp(min=0)

    x = layer(layer(layer(x, "conv1", 2), "cccp1"), "cccp2")
    x = pooled(x, lambda window: window.amax(dim=(2, 3)))
    x = layer(layer(layer(x, "conv2", 2), "cccp3"), "cccp4")
    x = pooled(x, lambda window: window.mean(dim=(2, 3)))
    x = layer(layer(layer(x, "conv3", 1), "cccp5"), "cccp6")
    torch.testing.assert_close(model(images), x.mean(dim=(2, 3)), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_it_is_pytorchcvs_but_for_the_borders_of_pooling():
    torch.manual_seed(0)
    peer = scramble(get_model("nin_cifar10"))
    model = cnnlib.build("nin").double().eval()
    model.load_state_dict(dict(zip(model.state_dict(), peer.state_dict().values())))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert (model(x) - peer(x)).abs().max() > 1e-6
    for stage, pool in ((peer.features.stage2, "pool2"), (peer.features.stage3, "pool3")):
        getattr(stage, pool).padding, getattr(stage, pool).ceil_mode = 0, True
    torch.testing.assert_close(model(x), peer(x), rtol=1e-9, atol=1e-9)


def test_dropout_of_one_half_stands_behind_the_first_two_poolings():
    model = cnnlib.build("nin")
    stages = list(model.named_children())
    behind = [stages[i - 1][0] for i, (_, layer) in enumerate(stages) if isinstance(layer, nn.Dropout)]
    assert behind == ["pool1", "pool2"]
    assert {layer.p for _, layer in stages if isinstance(layer, nn.Dropout)} == {0.5}


def test_weights_start_as_he_says_and_biases_at_zero():
    torch.manual_seed(0)
    for layer in cnnlib.build("nin", num_classes=100):
        if isinstance(layer, nn.Conv2d):
            deviation = (2 / layer.weight[0].numel()) ** 0.5
            assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
            assert layer.bias.abs().max() == 0


def test_macs_add_up_to_the_published_total():
    with torch.device("meta"):
        model = cnnlib.build("nin")
    pixels = {"conv1": 32, "cccp1": 32, "cccp2": 32, "conv2": 16, "cccp3": 16, "cccp4": 16}
    macs = sum(
        layer.weight.numel() * pixels.get(name, 8) ** 2
        for name, layer in model.named_children()
        if isinstance(layer, nn.Conv2d)
    )
    assert macs == cnnlib.card("nin").published["macs"]["value"]


def test_4_pixels_are_enough_and_3_are_not():
    model = cnnlib.build("nin")
    assert model(torch.zeros(1, 3, 4, 4)).shape == (1, 10)
    with pytest.raises(ValueError, match="at least 4x4, got 3x3"):
        model(torch.zeros(1, 3, 3, 3))
    with pytest.raises(RuntimeError, match="too small"):
        model[:-2](torch.zeros(1, 3, 3, 3))
