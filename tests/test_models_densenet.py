"""DenseNet: the paper's counts and widths, torchvision's and pytorchcv's weights, equation 2, and the depth rules."""

from __future__ import annotations

import pytest
import torch
import torchvision
from pytorchcv.models.densenet_cifar import CIFARDenseNet
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.models import densenet
from cnnlib.models.densenet import BottleneckLayer, DenseBlock, DenseLayer

IMAGENET = ["densenet121", "densenet161", "densenet169", "densenet201", "densenet264"]
CIFAR = [
    *["densenet40_k12", "densenet100_k12", "densenet100_k24"],
    *["densenet_bc100_k12", "densenet_bc190_k40", "densenet_bc250_k24"],
]
VERSIONS = ["densenet40_k12_2k", "densenet40_k12_halved"]


def scramble(model: nn.Module) -> nn.Module:
    """Random weights and statistics in float64, so that no layer can be left out unnoticed."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def torchvision_net(name: str, num_classes: int) -> nn.Module:
    if name == "densenet264":
        return torchvision.models.DenseNet(32, (6, 12, 64, 48), 64, num_classes=num_classes)
    return getattr(torchvision.models, name)(num_classes=num_classes)


@pytest.mark.parametrize("name", [*IMAGENET, *CIFAR, *VERSIONS])
def test_the_count_is_the_published_one(name):
    published = cnnlib.card(name).published
    with torch.device("meta"):
        assert count(cnnlib.build(name)) == published["params"]["value"]
        if "params_100_classes" in published:
            assert count(cnnlib.build(name, num_classes=100)) == published["params_100_classes"]["value"]


def test_the_other_versions_in_circulation_have_their_own_counts():
    for row in cnnlib.card("densenet40_k12").published["versions"]["rows"]:
        name = f"densenet{row.get('depth', 40)}_k{row.get('growth_rate', 12)}"
        with torch.device("meta"):
            assert count(cnnlib.build(name, version=row["version"])) == row["params"]
            if "entry" in row:
                assert count(cnnlib.build(row["entry"])) == row["params"]


@pytest.mark.parametrize("name", [*IMAGENET, *CIFAR, "densenet40_k12_halved"])
def test_every_stage_has_the_published_shape(name):
    card = cnnlib.card(name)
    with torch.device("meta"):
        model = cnnlib.build(name)
        x = torch.empty(1, *card.input_shape)
    shapes = {}
    stages = card.published["shapes"]["rows"]
    for stage in stages:
        model.get_submodule(stage).register_forward_hook(
            lambda module, args, out, stage=stage: shapes.update({stage: list(out.shape[1:])})
        )
    model.eval()(x)
    assert shapes == stages


@pytest.mark.parametrize("name", IMAGENET)
def test_torchvisions_weights_fit_to_the_key_both_ways(name):
    with torch.device("meta"):
        ours, theirs = cnnlib.build(name), torchvision_net(name, 1000)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(("name", "size"), [("densenet121", 65), ("densenet161", 29)])
def test_torchvisions_networks_give_the_same_logits(name, size):
    torch.manual_seed(0)
    theirs = scramble(torchvision_net(name, 7))
    ours = cnnlib.build(name, num_classes=7).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def peer(bottleneck: bool, initial: int, layers: int, k: int) -> nn.Module:
    """pytorchcv's CIFAR net; its transitions always halve."""
    channels, width = [], initial
    for block in range(3):
        width = width if block == 0 else width // 2
        channels.append([width + k * (layer + 1) for layer in range(layers)])
        width = channels[-1][-1]
    return CIFARDenseNet(channels=channels, init_block_channels=initial, bottleneck=bottleneck)


@pytest.mark.parametrize(
    ("name", "bottleneck", "initial", "layers"),
    [("densenet40_k12_halved", False, 24, 12), ("densenet_bc100_k12", True, 24, 16)],
)
def test_pytorchcvs_networks_give_the_same_logits(name, bottleneck, initial, layers):
    torch.manual_seed(0)
    theirs = scramble(peer(bottleneck, initial, layers, 12))
    ours = cnnlib.build(name).double().eval()
    values = list(theirs.state_dict().values())
    keys = list(ours.state_dict())
    assert [v.shape for v in values] == [v.shape for v in ours.state_dict().values()]
    ours.load_state_dict(dict(zip(keys, values)))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)


def test_the_plain_network_is_the_equations_written_out():
    torch.manual_seed(0)
    model = scramble(densenet.cifar_densenet(10, 4, num_classes=3))
    weights = model.state_dict()

    def bn_relu(x, name):
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale = weights[f"{name}.weight"] / (var + 1e-5).sqrt()
        return (x * scale[:, None, None] + (weights[f"{name}.bias"] - mean * scale)[:, None, None]).clamp(min=0)

    image = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    x = F.conv2d(image, weights["features.conv0.weight"], padding=1)
    assert x.shape[1] == 16
    for block in (1, 2, 3):
        for layer in (1, 2):
            name = f"features.denseblock{block}.denselayer{layer}"
            new = F.conv2d(bn_relu(x, f"{name}.norm1"), weights[f"{name}.conv1.weight"], padding=1)
            x = torch.cat([x, new], dim=1)
        if block < 3:
            name = f"features.transition{block}"
            x = F.conv2d(bn_relu(x, f"{name}.norm"), weights[f"{name}.conv.weight"])
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    x = bn_relu(x, "features.norm4").mean(dim=(2, 3))
    logits = x @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(model(image), logits)


@pytest.mark.parametrize("layer", [DenseLayer, BottleneckLayer])
def test_a_layer_reads_every_layer_before_it_and_none_after(layer):
    torch.manual_seed(0)
    block = scramble(DenseBlock(layer, layers=4, channels=3, growth_rate=2, dropout=0.0))
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    out = block(x)
    assert out.shape == (1, 3 + 4 * 2, 5, 5)
    torch.testing.assert_close(out[:, :3], x)
    for source, module in enumerate(block.values()):
        with torch.no_grad():
            before = block(x)
            hook = module.register_forward_hook(lambda module, args, out: out + 1)
            changed = (block(x) != before).flatten(2).any(dim=2)[0]
            hook.remove()
        first = 3 + 2 * source
        assert not changed[:first].any()
        assert changed[first:].all()


def test_dropout_follows_every_convolution_but_the_first():
    model = cnnlib.build("densenet_bc100_k12", dropout=0.2)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert rates == [0.2] * (len(convolutions) - 1)
    sequence = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Dropout)]
    assert [isinstance(m, nn.Dropout) for m in sequence[1:]] == [False, True] * len(rates)
    assert not any(isinstance(m, nn.Dropout) for m in cnnlib.build("densenet_bc100_k12").modules())


def test_theta_keeps_that_share_of_the_maps():
    for theta, kept in ((1.0, 216), (0.5, 108), (0.7, 151)):
        assert cnnlib.build("densenet_bc100_k12", theta=theta).features.transition1.conv.out_channels == kept


def test_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    model = cnnlib.build("densenet121", num_classes=10)
    conv = model.features.denseblock4.denselayer1.conv1.weight
    assert float(conv.std()) == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    conv = model.features.denseblock4.denselayer1.conv2.weight
    assert float(conv.std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)
    assert not model.classifier.bias.any()
    assert float(model.classifier.weight.abs().max()) == pytest.approx(1024**-0.5, rel=0.01)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and not m.bias.any() and m.momentum == 0.1 and m.eps == 1e-5 for m in norms)


@pytest.mark.parametrize(
    ("depth", "bottleneck", "text"),
    [
        (41, False, r"depth must be 3N \+ 4 with N >= 1 without a bottleneck, got 41; the nearest are 40 and 43"),
        (101, True, r"depth must be 6N \+ 4 with N >= 1 with a bottleneck, got 101; the nearest are 100 and 106"),
        (4, True, r"got 4; the nearest are 10 and 16"),
    ],
)
def test_a_depth_off_the_rule_is_refused_with_the_nearest_right_ones(depth, bottleneck, text):
    build = densenet.cifar_densenet_bc if bottleneck else densenet.cifar_densenet
    with pytest.raises(ValueError, match=text):
        build(depth, 12)


def test_the_names_count_the_layers_except_that_264_has_265():
    for depth, (blocks, _, _) in densenet.IMAGENET.items():
        assert densenet.depth_of(blocks) == (265 if depth == 264 else depth)
    for depth, bottleneck in ((40, False), (100, False), (100, True), (190, True), (250, True)):
        blocks = (densenet.layers_per_block(depth, bottleneck),) * 3
        assert densenet.depth_of(blocks, bottleneck) == depth
    with torch.device("meta"):
        model = cnnlib.build("densenet264")
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 265


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"theta": 0.0}, r"theta must be in \(0, 1\], the share of maps that a transition keeps; got 0.0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_share_outside_its_range_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        cnnlib.build("densenet121", **options)


def test_an_unknown_version_or_depth_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no version 'tutorial' of the plain DenseNet; there are paper, 2k, halved"):
        cnnlib.build("densenet40_k12", version="tutorial")
    with pytest.raises(ValueError, match="table 1 has the depths 121, 161, 169, 201, 264, got 122"):
        densenet.imagenet_densenet(122)


@pytest.mark.parametrize("name", ["densenet121", "densenet40_k12"])
def test_the_least_size_is_the_least(name):
    least = cnnlib.card(name).least
    model = cnnlib.build(name, num_classes=5)
    assert model(torch.randn(2, 3, least, least)).shape == (2, 5)
    with pytest.raises(ValueError, match=f"at least {least}x{least}"):
        model(torch.randn(2, 3, least - 1, least - 1))
    model._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match=r"too small|non-positive|greater than zero"):
        model(torch.randn(2, 3, least - 1, least - 1))
