"""VGG: table 1 written out a second time, torchvision's weights both ways, the start that the paper recommends."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import cnnlib
from cnnlib.models.vgg import vgg

TORCHVISION = {
    **{"vgg_a": "vgg11", "vgg_b": "vgg13", "vgg_d": "vgg16", "vgg_e": "vgg19"},
    **{name: name for name in ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")},
}
WEIGHT_LAYERS = {"vgg_a": 11, "vgg_a_lrn": 11, "vgg_b": 13, "vgg_c": 16, "vgg_d": 16, "vgg_e": 19}


def scramble(model: nn.Module) -> nn.Module:
    """Random biases, scales and statistics in float64, so that no layer can be left out unnoticed."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
    return model.double().eval()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_keys_fit_both_ways(name):
    with torch.device("meta"):
        ours, theirs = cnnlib.build(name), getattr(torchvision.models, TORCHVISION[name])()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    theirs.load_state_dict(ours.state_dict(), assign=True)


@pytest.mark.parametrize("name", TORCHVISION)
@torch.no_grad()
def test_the_convolutions_give_torchvisions_maps(name):
    torch.manual_seed(0)
    with torch.device("meta"):
        ours, theirs = cnnlib.build(name), getattr(torchvision.models, TORCHVISION[name])()
    ours, theirs = ours.features.to_empty(device="cpu"), theirs.features.to_empty(device="cpu")
    for layer in theirs:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    scramble(theirs)
    scramble(ours).load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-9)
    if name.endswith("_bn"):
        # In training the batch's statistics and the momentum of the running ones count too.
        torch.testing.assert_close(ours.train()(x), theirs.train()(x), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_logits_are_torchvisions_in_evaluation_and_in_training():
    torch.manual_seed(0)
    theirs = scramble(torchvision.models.vgg11(num_classes=10))
    with torch.device("meta"):
        ours = cnnlib.build("vgg11", num_classes=10)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    # 224 leaves 7x7 maps; of 96 pixels' 3x3 both make 7x7 by taking means.
    for side, training in ((224, False), (96, True)):
        x = torch.randn(2, 3, side, side, dtype=torch.float64)
        logits = []
        for model in (ours, theirs):
            torch.manual_seed(7)  # so that both drop the same units
            logits.append(model.train(training)(x))
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-9)


@torch.no_grad()
def test_averaging_to_7x7_changes_nothing_at_the_papers_size():
    with torch.device("meta"):
        model = cnnlib.build("vgg_d")
    maps = torch.randn(1, 512, 7, 7)
    assert torch.equal(model.avgpool(maps), maps)


@torch.no_grad()
def test_column_c_has_its_1x1_convolutions_where_table_1_puts_them():
    torch.manual_seed(0)
    features = scramble(vgg_features("vgg_c"))
    kernels = [layer.kernel_size[0] for layer in features if isinstance(layer, nn.Conv2d)]
    assert kernels == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]
    x = expected = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    convolutions = [layer for layer in features if isinstance(layer, nn.Conv2d)]
    for number, layer in enumerate(convolutions, start=1):
        border = 1 if layer.weight.shape[-1] == 3 else 0
        expected = F.conv2d(F.pad(expected, [border] * 4), layer.weight, layer.bias).clamp(min=0)
        if number in (2, 4, 7, 10, 13):
            expected = expected.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    torch.testing.assert_close(features(x), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_lrn_is_a_with_alexnets_normalisation_behind_the_first_rectifier():
    torch.manual_seed(0)
    plain, normed = scramble(vgg_features("vgg_a")), scramble(vgg_features("vgg_a_lrn"))
    normed.load_state_dict(dict(zip(normed.state_dict(), plain.state_dict().values())))
    # So loud an image that every constant counts.
    x = 300 * torch.randn(1, 3, 32, 32, dtype=torch.float64)
    a = plain[:2](x)
    maps = a.shape[1]
    around = [a[:, max(0, i - 2) : min(maps, i + 3)].square().sum(dim=1) for i in range(maps)]
    b = a / (2 + 1e-4 * torch.stack(around, dim=1)) ** 0.75
    assert (b - a / 2**0.75).abs().max() > 0.1 * a.abs().max()
    torch.testing.assert_close(normed(x), plain[2:](b), rtol=1e-9, atol=1e-9)


def vgg_features(name: str) -> nn.Sequential:
    """The convolutional part of an entry with fresh weights, without the 123.6 million of its fully connected layers."""
    with torch.device("meta"):
        features = cnnlib.build(name).features.to_empty(device="cpu")
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return features


@pytest.mark.parametrize("name", WEIGHT_LAYERS)
def test_weight_layers_and_their_parameters_are_those_of_tables_1_and_2(name):
    printed = cnnlib.card(name).published["printed_params"]
    with torch.device("meta"):
        model = cnnlib.build(name)
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules()) == WEIGHT_LAYERS[name]
    convolutions, fully_connected = (
        sum(p.numel() for p in part.parameters()) for part in (model.features, model.classifier)
    )
    assert convolutions == printed["convolutions"]
    assert fully_connected == printed["fully_connected"]
    assert round((convolutions + fully_connected) / 1e6) == printed["value"]


def test_the_columns_start_as_glorot_and_bengio_say():
    torch.manual_seed(0)
    model = cnnlib.build("vgg_c", num_classes=10)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs, inputs, *kernel = layer.weight.shape
            bound = (6 / ((inputs + outputs) * Tensor(kernel).prod().item())) ** 0.5
            assert 0.99 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6)
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
            assert layer.bias.abs().max() == 0


def test_the_versions_with_batch_norm_start_as_torchvisions():
    torch.manual_seed(0)
    model = cnnlib.build("vgg11_bn", num_classes=10)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            deviation = (2 / (layer.out_channels * 9)) ** 0.5
        elif isinstance(layer, nn.Linear):
            deviation = 0.01
        else:
            continue
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.04)
        assert layer.bias.abs().max() == 0


def test_32_pixels_are_enough_and_31_are_not():
    with torch.device("meta"):
        model = cnnlib.build("vgg_a", num_classes=2)
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
        with pytest.raises(ValueError, match="at least 32x32, got 31x31"):
            model(torch.zeros(1, 3, 31, 31))
        with pytest.raises(RuntimeError, match="too small"):
            model.features(torch.zeros(1, 3, 31, 31))


def test_a_column_that_the_table_lacks_is_refused():
    with pytest.raises(ValueError, match="no column of table 1 'F'; there are A, A-LRN, B, C, D, E"):
        vgg("F")
