"""Plain and residual networks: the paper's constructions, torchvision's and pytorchcv's networks, the depth rule."""

from __future__ import annotations

import pytest
import torch
import torchvision
from peers import apart, assert_same_function, copy_in_order, count, scramble
from pytorchcv.models.resnet import ResNet as PeerResNet
from pytorchcv.models.resnet_cifar import CIFARResNet
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.models.resnet import blocks_per_stage, cifar_plain, cifar_resnet, option_a

V1_5 = ["resnet50_v1_5", "resnet101_v1_5", "resnet152_v1_5"]
CIFAR = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202"]


def torchvision_net(name: str, **options) -> nn.Module:
    return getattr(torchvision.models, name.removesuffix("_v1_5"))(**options)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", *CIFAR])
def test_every_shortcut_option_has_its_count(name):
    for option, params, _ in cnnlib.card(name).published["shortcuts"]["rows"]:
        with torch.device("meta"):
            assert count(cnnlib.build(name, shortcut=option)) == params, option


@pytest.mark.parametrize("name", ["resnet18", "resnet34", *V1_5])
def test_torchvisions_weights_fit_to_the_key_both_ways(name):
    with torch.device("meta"):
        ours, theirs = cnnlib.build(name), torchvision_net(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 70), ("resnet34", 33), ("resnet50_v1_5", 70), ("resnet101_v1_5", 33)]
)
def test_torchvisions_networks_give_the_same_logits(name, size):
    theirs = scramble(torchvision_net(name, num_classes=7))
    ours = cnnlib.build(name, num_classes=7).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_function(ours, theirs, 3, size, size)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_a_step_in_training_mode_leaves_torchvisions_running_statistics():
    theirs = torchvision_net("resnet18", num_classes=7).double().train()
    ours = cnnlib.build("resnet18", num_classes=7).double().train()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@pytest.mark.parametrize(
    "name",
    [
        *["resnet20", "resnet34", "resnet50", "resnet50_v1_5", "plain20", "resnext29_8x64d", "resnext50_32x4d"],
        *["preact_resnet110", "preact_resnet164", "preact_resnet200", "se_resnet50"],
    ],
)
def test_every_batch_norm_has_torchs_constants(name):
    with torch.device("meta"):
        norms = [m for m in cnnlib.build(name).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def peer_resnet50(conv1_stride: bool) -> nn.Module:
    """pytorchcv's two ResNet-50s: the stride in the first 1x1, or in the 3x3."""
    channels = [[w] * n for w, n in zip((256, 512, 1024, 2048), (3, 4, 6, 3))]
    model = PeerResNet(channels, 64, bottleneck=True, conv1_stride=conv1_stride, num_classes=7)
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs is 7x7 and takes 224 only
    return model


def test_resnet50_strides_in_the_first_1x1_and_v1_5_in_the_3x3():
    paper, later = (scramble(peer_resnet50(conv1_stride)) for conv1_stride in (True, False))
    ours = copy_in_order(paper, cnnlib.build("resnet50", num_classes=7))
    assert_same_function(ours, paper, 3, 70, 70)
    ours_later = cnnlib.build("resnet50_v1_5", num_classes=7).double().eval()
    ours_later.load_state_dict(ours.state_dict(), strict=True)  # key by key the same, and another function:
    assert apart(ours, ours_later, 3, 70, 70) > 0.01
    assert_same_function(ours_later, copy_in_order(ours_later, later), 3, 70, 70)


def test_cifar_networks_with_projections_are_pytorchcvs():
    theirs = scramble(CIFARResNet([[16] * 3, [32] * 3, [64] * 3], 16, bottleneck=False))
    assert_same_function(copy_in_order(theirs, cnnlib.build("resnet20", shortcut="B")), theirs, 3, 32, 32)


def by_hand(model: nn.Sequential, x: torch.Tensor, zeros: str | None) -> torch.Tensor:
    """The CIFAR network of section 4.2 a second time, from its parameters alone; `zeros` None leaves shortcuts out."""
    weights = model.state_dict()

    def conv_bn(x: torch.Tensor, conv: str, bn: str, stride: int) -> torch.Tensor:
        x = F.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = weights[f"{bn}.running_mean"], weights[f"{bn}.running_var"]
        return F.batch_norm(x, mean, var, weights[f"{bn}.weight"], weights[f"{bn}.bias"], eps=1e-5)

    x = conv_bn(x, "conv1", "bn1", 1).relu()
    for stage in (1, 2, 3):
        for unit in range(sum(f"layer{stage}.{n}.conv1.weight" in weights for n in range(300))):
            stride = 2 if stage > 1 and unit == 0 else 1
            name = f"layer{stage}.{unit}"
            y = conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            y = conv_bn(y, f"{name}.conv2", f"{name}.bn2", 1)
            x = x[:, :, ::stride, ::stride]
            none = torch.zeros_like(x)
            if stride == 2:
                half = none[:, : none.shape[1] // 2]
                x = torch.cat([half, x, half] if zeros == "split" else [x, none], dim=1)
            x = (y if zeros is None else y + x).relu()
    return x.mean(dim=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("zeros", ["append", "split"])
def test_option_a_adds_every_second_pixel_and_zeros_where_it_says(zeros):
    model = scramble(cnnlib.build("resnet20", zeros=zeros))
    x = torch.randn(2, 3, 17, 17, dtype=torch.float64)
    torch.testing.assert_close(model(x), by_hand(model, x, zeros), rtol=1e-10, atol=1e-10)


def test_zeros_appended_and_zeros_split_are_different_functions():
    appended, split = (scramble(cnnlib.build("resnet20", zeros=zeros)) for zeros in ("append", "split"))
    split.load_state_dict(appended.state_dict(), strict=True)
    assert apart(appended, split, 3, 32, 32) > 0.01


def test_plain_networks_are_the_residual_ones_without_the_additions():
    plain = scramble(cnnlib.build("plain20"))
    x = torch.randn(2, 3, 17, 17, dtype=torch.float64)
    torch.testing.assert_close(plain(x), by_hand(plain, x, None), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("plain", "residual"), [("plain18", "resnet18"), ("plain34", "resnet34"), ("plain20", "resnet20")]
)
def test_plain_and_option_a_have_the_same_parameters_to_the_key(plain, residual):
    with torch.device("meta"):
        ours, theirs = cnnlib.build(plain), cnnlib.build(residual, shortcut="A")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_option_c_has_thirteen_projections_more_than_b_in_resnet34():
    with torch.device("meta"):
        projections = {
            option: sum("downsample.0." in key for key in cnnlib.build("resnet34", shortcut=option).state_dict())
            for option in "ABC"
        }
    extra = cnnlib.models.zoo.papers()["resnet_options"]["extra_projections_of_C_in_34"]["value"]
    assert projections == {"A": 0, "B": 3, "C": 3 + extra}


def test_option_c_with_identities_for_its_extra_projections_is_option_b():
    b = scramble(cnnlib.build("resnet20", shortcut="B"))
    c = cnnlib.build("resnet20", shortcut="C").double().eval()
    left_out = c.load_state_dict(b.state_dict(), strict=False)
    assert not left_out.unexpected_keys
    for unit in (unit for stage in (c.layer1, c.layer2, c.layer3) for unit in stage):
        conv, bn = unit.downsample
        if conv.in_channels == conv.out_channels:
            nn.init.dirac_(conv.weight)
            bn.running_var.fill_(1 - bn.eps)
    assert_same_function(c, b, 3, 32, 32)


def test_a_deeper_residual_net_whose_new_blocks_are_zero_is_the_same_function():
    shallow, deep = scramble(cifar_resnet(20)), cifar_resnet(32).double().eval()
    deep.load_state_dict(shallow.state_dict(), strict=False)
    for stage in (deep.layer1, deep.layer2, deep.layer3):
        for unit in stage[3:]:  # resnet20 has three blocks a stage
            nn.init.zeros_(unit.conv1.weight)
            nn.init.zeros_(unit.conv2.weight)
    assert_same_function(deep, shallow, 3, 32, 32)


def test_a_deeper_plain_net_must_learn_identities_to_be_the_same_function():
    shallow, deep = scramble(cifar_plain(20)), cifar_plain(32).double().eval()
    deep.load_state_dict(shallow.state_dict(), strict=False)
    new = [unit for stage in (deep.layer1, deep.layer2, deep.layer3) for unit in stage[3:]]
    for unit in new:
        for conv, bn in ((unit.conv1, unit.bn1), (unit.conv2, unit.bn2)):
            nn.init.dirac_(conv.weight)
            bn.running_var.fill_(1 - bn.eps)
    assert_same_function(deep, shallow, 3, 32, 32)
    for unit in new:  # where zero weights, enough for a residual net, leave nothing of the image
        nn.init.zeros_(unit.conv1.weight)
        nn.init.zeros_(unit.conv2.weight)
    logits = deep(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(("name", "field"), [("resnet50", 483), ("resnet50_v1_5", 427), ("resnet18", 435)])
def test_the_gradient_reaches_as_far_as_the_published_receptive_field(name, field):
    assert cnnlib.card(name).published["receptive_field"]["value"] == field
    model = cnnlib.build(name, num_classes=2).double().eval()
    # Positive weights everywhere, and a mean instead of the maximum, so that no path is cut or cancelled.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    model.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    x = torch.ones(1, 3, 33, 640, dtype=torch.float64, requires_grad=True)
    y = model[: list(dict(model.named_children())).index("layer4") + 1](x)
    y[0, 0, 0, y.shape[3] // 2].backward()
    assert (x.grad.abs().sum(dim=(0, 1, 2)) > 0).sum() == field


def test_weights_start_as_he_over_the_outputs_and_the_last_bias_at_zero():
    torch.manual_seed(0)
    model = cnnlib.build("resnet18")
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 20000):
        variance = 2 / (conv.kernel_size[0] ** 2 * conv.out_channels)
        assert conv.weight.var().item() == pytest.approx(variance, rel=0.1)
        assert abs(conv.weight.mean().item()) < 0.1 * variance**0.5
    assert not model.fc.bias.any()
    assert model.fc.weight.abs().max().item() == pytest.approx(512**-0.5, rel=1e-3)


def test_option_a_keeps_an_equal_shape_as_it_is():
    assert isinstance(option_a(16, 16, 1), nn.Identity)
    x = torch.randn(1, 3, 5, 5)
    padded = option_a(3, 7, 2)(x)
    assert padded.shape == (1, 7, 3, 3)
    assert torch.equal(padded[:, :3], x[:, :, ::2, ::2])
    assert not padded[:, 3:].any()


@pytest.mark.parametrize(
    ("depth", "layers", "text"),
    [
        (21, 2, r"depth must be 6n \+ 2 with n >= 1 \(8, 14, 20, ...\), got 21; the nearest are 20 and 26"),
        (2, 2, r"depth must be 6n \+ 2 with n >= 1 \(8, 14, 20, ...\), got 2; the least is 8"),
        (163, 3, r"depth must be 9n \+ 2 with n >= 1 \(11, 20, 29, ...\), got 163; the nearest are 155 and 164"),
    ],
)
def test_a_depth_that_does_not_divide_is_refused_with_the_nearest_that_do(depth, layers, text):
    with pytest.raises(ValueError, match=text):
        blocks_per_stage(depth, layers)


def test_a_shortcut_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"shortcut must be A \(zero padding\), B .* or C .*, got 'D'"):
        cnnlib.build("resnet20", shortcut="D")
    with pytest.raises(ValueError, match=r"no side for the zeros of shortcut A 'front'; there are append, split"):
        cnnlib.build("resnet20", zeros="front")
    with pytest.raises(ValueError, match=r"zeros='split' belongs to shortcut='A', got shortcut='B'"):
        cnnlib.build("resnet34", zeros="split")
