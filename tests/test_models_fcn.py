"""FCN: the release's layers written out a second time, where scores land, what is trained, and VGG's weights in it."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cnnlib
from cnnlib.models.fcn import transplant, upsampling

NAMES = ["fcn32s", "fcn16s", "fcn8s"]
TRUNK = [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random values in float64 for every layer that one of the three has, also for the kernels of upsampling."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name in NAMES:
        with torch.device("meta"):
            model = cnnlib.build(name)
        for key, value in model.state_dict().items():
            if key not in tensors:
                fan = value[0].numel() if value.ndim > 1 else 100
                tensors[key] = torch.randn(value.shape, dtype=torch.float64) * (2 / fan) ** 0.5
    return tensors


def written_out(name: str, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The scores of `name` as voc-fcnNs/net.py describes them."""
    height, width = x.shape[2:]

    def conv(x: Tensor, layer: str, padding: int = 0) -> Tensor:
        return F.conv2d(F.pad(x, [padding] * 4), w[f"{layer}.weight"], w[f"{layer}.bias"])

    def up(x: Tensor, layer: str, factor: int) -> Tensor:
        """Each value spreads its kernel over the output, `factor` pixels after its neighbour's."""
        kernel = w[f"{layer}.weight"]
        size = kernel.shape[-1]
        out = x.new_zeros(1, kernel.shape[1], (x.shape[2] - 1) * factor + size, (x.shape[3] - 1) * factor + size)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                spread = torch.einsum("c,cdhw->dhw", x[0, :, i, j], kernel)
                out[0, :, i * factor : i * factor + size, j * factor : j * factor + size] += spread
        return out

    pools = {}
    for s, widths in enumerate(TRUNK, start=1):
        for i, _ in enumerate(widths, start=1):
            x = conv(x, f"conv{s}_{i}", 100 if (s, i) == (1, 1) else 1).clamp(min=0)
        # Caffe's windows stick out at the end; zeros there change no maximum of rectified maps.
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)).unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
        pools[s] = x
    x = conv(conv(x, "fc6").clamp(min=0), "fc7").clamp(min=0)
    x = conv(x, "score_fr")
    if name == "fcn32s":
        return up(x, "upscore", 32)[:, :, 19 : 19 + height, 19 : 19 + width]
    x = up(x, "upscore2", 2)
    x = x + conv(pools[4], "score_pool4")[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
    if name == "fcn16s":
        return up(x, "upscore16", 16)[:, :, 27 : 27 + height, 27 : 27 + width]
    x = up(x, "upscore_pool4", 2)
    x = x + conv(pools[3], "score_pool3")[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
    return up(x, "upscore8", 8)[:, :, 31 : 31 + height, 31 : 31 + width]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_scores_equal_the_release_written_out(name, weights):
    with torch.device("meta"):
        model = cnnlib.build(name).eval()
    model.load_state_dict({key: weights[key] for key in model.state_dict()}, assign=True)
    x = torch.randn(1, 3, 5, 14, dtype=torch.float64)
    torch.testing.assert_close(model(x), written_out(name, weights, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_scores_come_in_the_images_own_size_from_one_pixel_upwards(name):
    with torch.device("meta"):
        model = cnnlib.build(name).eval()
        for height in [*range(1, 34), 63, 64, 65, 224, 375, 500]:
            width = 2 * height % 61 + 1
            assert model(torch.zeros(1, 3, height, width)).shape == (1, 21, height, width)


def test_crops_are_where_the_centres_of_pixels_coincide():
    # Pixel x of the image has its centre at a x + b on another map (a convolution or pooling of kernel k, stride s and
    # padding p: a / s and (b + p - (k - 1) / 2) / s; its transpose the other way round).
    def down(at: tuple[Fraction, Fraction], k: int, s: int, p: int = 0) -> tuple[Fraction, Fraction]:
        a, b = at
        return a / s, (b + p - Fraction(k - 1, 2)) / s

    def up(at: tuple[Fraction, Fraction], k: int, s: int) -> tuple[Fraction, Fraction]:
        a, b = at
        return a * s, b * s + Fraction(k - 1, 2)

    pools, at = {}, down((Fraction(1), Fraction(0)), 3, 1, 100)
    for s in range(1, 6):
        pools[s] = at = down(at, 2, 2)
    score = down(at, 7, 1)
    upscore2 = up(score, 4, 2)
    upscore_pool4 = up(upscore2, 4, 2)
    assert up(score, 64, 32) == (1, 19)
    assert pools[4][1] - upscore2[1] == 5
    assert up(upscore2, 32, 16) == (1, 27)
    assert pools[3][1] - upscore_pool4[1] == 9
    assert up(upscore_pool4, 16, 8) == (1, 31)


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
@torch.no_grad()
def test_upsampling_interpolates_each_class_by_itself(factor):
    layer = upsampling(3, factor).double()
    maps = torch.randn(1, 3, 5, 7, dtype=torch.float64)
    half = factor // 2
    inside = layer(maps)[:, :, half:-half, half:-half]
    expected = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    # Beyond the outermost centres the layer fades to zero and interpolate repeats.
    cut = slice(half, -half)
    torch.testing.assert_close(inside[:, :, cut, cut], expected[:, :, cut, cut], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_of_upsampling_are_fixed_and_counted_apart(name):
    published = cnnlib.card(name).published
    with torch.device("meta"):
        model = cnnlib.build(name)
    fixed = {n: p.numel() for n, p in model.named_parameters() if not p.requires_grad}
    assert set(fixed) == {n for n, _ in model.named_parameters() if n.startswith("upscore")}
    assert sum(fixed.values()) == published["trainable"]["fixed"]
    stored = sum(p.numel() for p in model.parameters())
    assert stored == published["params"]["value"]
    assert stored - sum(fixed.values()) == published["trainable"]["value"]


@pytest.mark.parametrize(
    ("name", "learned"), [("fcn16s", {"upscore2.weight"}), ("fcn8s", {"upscore2.weight", "upscore_pool4.weight"})]
)
def test_upsampling_before_the_last_is_trained_on_request(name, learned):
    with torch.device("meta"):
        model = cnnlib.build(name, learn_upsampling=True)
    assert {n for n, p in model.named_parameters() if n.startswith("upscore") and p.requires_grad} == learned


def test_dropout_stands_behind_fc6_and_fc7():
    with torch.device("meta"):
        model = cnnlib.build("fcn8s")
    stages = list(model.named_children())
    behind = [stages[i - 2][0] for i, (_, layer) in enumerate(stages) if isinstance(layer, nn.Dropout)]
    assert behind == ["fc6", "fc7"]
    assert model.drop6.p == model.drop7.p == 0.5


@torch.no_grad()
def test_every_layer_with_weights_starts_as_glorot_and_bengio_say():
    torch.manual_seed(0)
    for name, layer in cnnlib.build("fcn8s").named_children():
        if isinstance(layer, nn.Conv2d):
            outputs, inputs, *kernel = layer.weight.shape
            bound = (6 / ((inputs + outputs) * kernel[0] * kernel[1])) ** 0.5
            assert 0.98 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6), name
            assert layer.bias.abs().max() == 0, name


@torch.no_grad()
def test_a_trunk_with_vggs_weights_computes_vggs_units():
    torch.manual_seed(0)
    vgg, fcn = cnnlib.build("vgg_d", num_classes=2).eval(), cnnlib.build("fcn8s").eval()
    for layer in vgg.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.bias, std=0.01)
    transplant(vgg, fcn)
    # The paper's start: no class scores yet, anywhere.
    assert fcn(torch.randn(1, 3, 2, 3)).abs().max() == 0
    # With VGG's own border an image of 224 leaves one position for fc6: the unit of the classifier.
    fcn.conv1_1.padding = (1, 1)
    x = torch.randn(1, 3, 224, 224)
    units = vgg.classifier[:-1](vgg.features(x).flatten(1))
    y = x
    for name in fcn.trunk[:-1]:
        y = fcn.get_submodule(name)(y)
    assert y.shape == (1, 4096, 1, 1)
    assert units.abs().max() > 0
    torch.testing.assert_close(y.flatten(1), units, rtol=1e-4, atol=1e-5 * units.abs().max().item())


def test_a_trunk_refuses_another_column():
    with torch.device("meta"):
        fcn = cnnlib.build("fcn32s")
        for other in ("vgg_a", "vgg_c", "vgg16_bn"):
            with pytest.raises(ValueError, match="takes the weights of VGG's column D"):
                transplant(cnnlib.build(other), fcn)
