"""AlexNet and ZFNet: the papers' equations written out a second time, torchvision's and pytorchcv's weights, sizes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from pytorchcv.model_provider import get_model
from torch import Tensor, nn
from torch.nn import functional as F

import cnnlib
from cnnlib.models.blocks import local_response_norm

STAGES_2012 = (
    "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 "
    "flatten fc6 relu6 drop6 fc7 relu7 drop7 fc8"
)
SIZES = {"alexnet": 227, "alexnet_ungrouped": 227, "caffenet": 227, "zfnet": 224, "zfnet_wide": 224}


def loud(name: str) -> nn.Sequential:
    """The network in float64 for 10 classes with random weights that keep the signal as large as the image."""
    torch.manual_seed(0)
    model = cnnlib.build(name, num_classes=10).double().eval()
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return model


def image(side: int) -> Tensor:
    """Contrast so high that every constant of the normalisation counts."""
    return 100 * torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def normalised(a: Tensor, k: float, n: int, alpha: float, beta: float) -> Tensor:
    """Section 3.3 of the AlexNet paper, map by map."""
    maps = a.shape[1]
    b = [
        a[:, i] / (k + alpha * (a[:, max(0, i - n // 2) : min(maps - 1, i + n // 2) + 1] ** 2).sum(dim=1)) ** beta
        for i in range(maps)
    ]
    return torch.stack(b, dim=1)


def towers(x: Tensor, weight: Tensor, bias: Tensor, gpus: int, stride: int, padding: int) -> Tensor:
    """A convolution in which each of `gpus` equal parts of the maps sees its own part of the input only."""
    parts = zip(x.chunk(gpus, 1), weight.chunk(gpus), bias.chunk(gpus))
    return torch.cat([F.conv2d(a, w, b, stride, padding) for a, w, b in parts], dim=1)


def written_out(name: str, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The logits of `name`, from its paper's or Caffe's description."""
    pool_first = name in ("caffenet", "zfnet", "zfnet_wide")
    constants = {"k": 1, "n": 5, "alpha": 1e-4 / 5, "beta": 0.75} if name == "caffenet" else {}
    constants = constants or {"k": 2, "n": 5, "alpha": 1e-4, "beta": 0.75}
    (s1, p1), (s2, p2) = ((2, 1), (2, 0)) if name.startswith("zfnet") else ((4, 0), (1, 2))
    gpus = 2 if name in ("alexnet", "caffenet") else 1

    def pool(a: Tensor) -> Tensor:
        # Windows may stick out at the end, which matters in ZFNet only: zeros there change no maximum of rectified maps.
        sides = 2 if name.startswith("zfnet") and a.shape[-1] % 2 == 0 else 0
        a = F.pad(a, (0, sides // 2, 0, sides // 2))
        return a.unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(4, 5))

    def reduced(a: Tensor) -> Tensor:
        return normalised(pool(a), **constants) if pool_first else pool(normalised(a, **constants))

    x = reduced(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], s1, p1).clamp(min=0))
    x = reduced(towers(x, w["conv2.weight"], w["conv2.bias"], gpus, s2, p2).clamp(min=0))
    x = F.conv2d(x, w["conv3.weight"], w["conv3.bias"], padding=1).clamp(min=0)
    x = towers(x, w["conv4.weight"], w["conv4.bias"], gpus, 1, 1).clamp(min=0)
    x = pool(towers(x, w["conv5.weight"], w["conv5.bias"], gpus, 1, 1).clamp(min=0)).reshape(len(x), -1)
    x = (x @ w["fc6.weight"].T + w["fc6.bias"]).clamp(min=0)
    x = (x @ w["fc7.weight"].T + w["fc7.bias"]).clamp(min=0)
    return x @ w["fc8.weight"].T + w["fc8.bias"]


@pytest.mark.parametrize("name", ["alexnet", "alexnet_ungrouped", "caffenet", "zfnet"])
@torch.no_grad()
def test_logits_equal_the_equations_written_out(name):
    model, x = loud(name), image(SIZES[name])
    torch.testing.assert_close(model(x), written_out(name, model.state_dict(), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("constant", "wrong"), [("k", 1.0), ("alpha", 1e-4), ("beta", 0.5), ("size", 3)], ids=["k", "alpha", "beta", "n"]
)
@torch.no_grad()
def test_every_constant_of_the_normalisation_changes_the_maps(constant, wrong):
    right, other = local_response_norm(), local_response_norm()
    assert getattr(right, constant) != wrong
    setattr(other, constant, wrong)
    x = image(11).relu().expand(1, 3, 11, 11).repeat(1, 4, 1, 1)
    expected = normalised(x, k=2, n=5, alpha=1e-4, beta=0.75)
    torch.testing.assert_close(right(x), expected, rtol=1e-12, atol=1e-12)
    assert (other(x) - expected).abs().max() > 0.01 * expected.abs().max()


@pytest.mark.parametrize("name", SIZES)
def test_stages_stand_in_the_papers_order(name):
    with torch.device("meta"):
        stages = [stage for stage, _ in cnnlib.build(name).named_children()]
    expected = STAGES_2012
    if name in ("caffenet", "zfnet", "zfnet_wide"):
        expected = expected.replace("norm1 pool1", "pool1 norm1").replace("norm2 pool2", "pool2 norm2")
    assert stages == expected.split()


def test_dropout_is_one_half_unless_asked_otherwise():
    with torch.device("meta"):
        for name in [*SIZES, "alexnet_owt"]:
            for model, p in ((cnnlib.build(name), 0.5), (cnnlib.build(name, dropout=0.1), 0.1)):
                assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [p, p]


def test_conv1_makes_55x55_maps_of_227_pixels_but_not_of_the_papers_224():
    with torch.device("meta"):
        model = cnnlib.build("alexnet")
        assert model.conv1(torch.zeros(1, 3, 227, 227)).shape == (1, 96, 55, 55)
        assert model.conv1(torch.zeros(1, 3, 224, 224)).shape == (1, 96, 54, 54)
        with pytest.raises(ValueError, match="alexnet takes images of 227x227 only, got 224x224"):
            model(torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize("name", ["alexnet", "caffenet"])
def test_the_layers_of_two_towers_have_the_parameters_that_caffe_counts(name):
    with torch.device("meta"):
        model = cnnlib.build(name)
    counted = {stage: sum(p.numel() for p in layer.parameters()) for stage, layer in model.named_children()}
    counted = {stage: count for stage, count in counted.items() if count}
    assert counted == cnnlib.card("alexnet").published["layer_params"]["rows"]


def test_alexnet_starts_as_section_5_says():
    torch.manual_seed(0)
    model = cnnlib.build("alexnet", num_classes=100)
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        layer = model.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert layer.weight.mean().item() == pytest.approx(0, abs=3e-4)
        assert layer.bias.unique().tolist() == [1.0 if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0]


def test_caffenet_starts_as_its_prototxt_says():
    torch.manual_seed(0)
    model = cnnlib.build("caffenet", num_classes=100)
    deviations = {"conv1": 0.01, "conv3": 0.01, "fc6": 0.005, "fc7": 0.005, "fc8": 0.01}
    for name, deviation in deviations.items():
        assert model.get_submodule(name).weight.std().item() == pytest.approx(deviation, rel=0.03)
    ones = [n for n, layer in model.named_children() if hasattr(layer, "bias") and layer.bias.unique().tolist() == [1]]
    assert ones == ["conv2", "conv4", "conv5", "fc6", "fc7"]


def test_zfnet_starts_with_small_weights_and_no_biases():
    torch.manual_seed(0)
    for layer in cnnlib.build("zfnet", num_classes=100):
        if hasattr(layer, "weight"):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
            assert layer.bias.abs().max() == 0


@torch.no_grad()
def test_one_tower_is_pytorchcvs_but_for_the_division_of_alpha():
    model, x = loud("alexnet_ungrouped"), image(227)
    peer = get_model("alexnet", num_classes=10).double().eval()
    peer.load_state_dict(dict(zip(peer.state_dict(), model.state_dict().values())))
    assert (model(x) - peer(x)).abs().max() > 1e-3
    # pytorchcv hands the paper's alpha to torch, which divides it by n = 5.
    model.norm1.alpha = model.norm2.alpha = 1e-4
    torch.testing.assert_close(model(x), peer(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "peer_name"), [("zfnet", "zfnet"), ("zfnet_wide", "zfnetb")])
@torch.no_grad()
def test_zfnet_is_pytorchcvs_where_that_pools_before_it_normalises(name, peer_name):
    model, x = loud(name), image(224)
    peer = get_model(peer_name, num_classes=10).double().eval()
    peer.load_state_dict(dict(zip(peer.state_dict(), model.state_dict().values())))
    for stage, norm in ((peer.features.stage1, model.norm1), (peer.features.stage2, model.norm2)):
        stage.unit1.use_lrn = False
        stage.add_module("norm", norm)
    torch.testing.assert_close(model(x), peer(x), rtol=1e-9, atol=1e-9)


def test_owt_has_torchvisions_keys_both_ways():
    with torch.device("meta"):
        ours, theirs = cnnlib.build("alexnet_owt"), torchvision.models.alexnet()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    theirs.load_state_dict(ours.state_dict(), assign=True)


@torch.no_grad()
def test_owt_gives_torchvisions_logits_in_evaluation_and_in_training():
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(num_classes=10).double()
    ours = cnnlib.build("alexnet_owt", num_classes=10).double()
    ours.load_state_dict(theirs.state_dict())
    for side, training in ((224, False), (224, True), (131, False)):
        x = torch.randn(2, 3, side, side, dtype=torch.float64)
        logits = []
        for model in (ours, theirs):
            torch.manual_seed(7)  # so that both drop the same units
            logits.append(model.train(training)(x))
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-9)


def test_owt_takes_63_pixels_and_not_62():
    model = cnnlib.build("alexnet_owt", num_classes=2)
    assert model(torch.zeros(1, 3, 63, 63)).shape == (1, 2)
    with pytest.raises(ValueError, match="at least 63x63, got 62x62"):
        model(torch.zeros(1, 3, 62, 62))
    with pytest.raises(RuntimeError, match="too small"):
        model.features(torch.zeros(1, 3, 62, 62))
