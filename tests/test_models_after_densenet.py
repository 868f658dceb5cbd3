"""ViT, ConvNeXt and MobileNet: the published counts, the same logits as torchvision and pytorchcv, their own equations."""

from __future__ import annotations

import pytest
import torch
import torchvision
from pytorchcv.models.mobilenet import mobilenet_w1, mobilenet_w3d4
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import cnnlib
from cnnlib.models.convnext import CNBlock, StochasticDepth
from cnnlib.models.mobilenet import mobilenet_v1
from cnnlib.models.vit import Encoder, SelfAttention

NAMES = ["vit_b_16", "convnext_tiny", "mobilenet_v1"]


def scramble(model: nn.Module) -> nn.Module:
    """Random values in float64 for all that would start at zero, one or nearly so, statistics included."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if "var" in name or (value.ndim == 1 and name.endswith("weight")):
            nn.init.uniform_(value, 0.5, 1.5)
        elif value.is_floating_point() and (value.ndim == 1 or "scale" in name or "token" in name or "head" in name):
            nn.init.normal_(value, std=0.3)
    return model.double().eval()


@pytest.mark.parametrize("name", NAMES)
def test_counts_of_parameters_and_multiply_adds_are_the_published_ones(name):
    card = cnnlib.card(name)
    with torch.device("meta"):
        model = cnnlib.build(name).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *card.input_shape))
    assert sum(p.numel() for p in model.parameters()) == card.published["params"]["value"]
    assert counter.get_total_flops() == 2 * card.published["macs"]["value"]


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_has_the_published_shape(name):
    card = cnnlib.card(name)
    stages = card.published["shapes"]["rows"]
    shapes = {}
    with torch.device("meta"):
        model = cnnlib.build(name).eval()
        for stage in stages:
            model.get_submodule(stage).register_forward_hook(
                lambda module, args, out, stage=stage: shapes.update({stage: list(out.shape[1:])})
            )
        model(torch.empty(1, *card.input_shape))
    assert shapes == stages


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 224), ("convnext_tiny", 64)])
def test_torchvisions_networks_give_the_same_logits_both_ways(name, size):
    torch.manual_seed(0)
    theirs = scramble(getattr(torchvision.models, name)(num_classes=5))
    ours = cnnlib.build(name, num_classes=5).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    theirs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize(("width", "peer"), [(1.0, mobilenet_w1), (0.75, mobilenet_w3d4)])
def test_pytorchcvs_mobilenets_give_the_same_logits(width, peer):
    torch.manual_seed(0)
    theirs = scramble(peer(num_classes=5))
    ours = cnnlib.build("mobilenet_v1", num_classes=5, width=width).double().eval()
    assert [v.shape for v in ours.state_dict().values()] == [v.shape for v in theirs.state_dict().values()]
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values())))
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)


def test_attention_is_equations_six_and_seven_head_by_head():
    torch.manual_seed(0)
    layer = SelfAttention(width=6, heads=3).double()
    nn.init.normal_(layer.in_proj_bias)
    z = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = torch.empty(2, 5, 6, dtype=torch.float64)
    for n in range(2):
        for head in range(3):
            rows = [slice(part * 6 + head * 2, part * 6 + head * 2 + 2) for part in range(3)]
            q, k, v = (z[n] @ layer.in_proj_weight[r].T + layer.in_proj_bias[r] for r in rows)
            scores = torch.exp(q @ k.T / 2**0.5)
            expected[n, :, head * 2 : head * 2 + 2] = scores / scores.sum(dim=1, keepdim=True) @ v
    torch.testing.assert_close(layer(z), layer.out_proj(expected))


def test_without_positions_the_encoder_does_not_know_the_order_of_the_patches():
    torch.manual_seed(0)
    encoder = Encoder(tokens=5, layers=2, width=6, heads=3, mlp=12, dropout=0.0).double()
    z, order = torch.randn(1, 5, 6, dtype=torch.float64), [0, 3, 1, 4, 2]
    assert not torch.allclose(encoder(z[:, order]), encoder(z)[:, order])
    nn.init.zeros_(encoder.pos_embedding)
    torch.testing.assert_close(encoder(z[:, order]), encoder(z)[:, order])


def test_vit_takes_the_papers_size_only():
    with torch.device("meta"):
        model = cnnlib.build("vit_b_16", num_classes=5)
    with pytest.raises(ValueError, match="vit_b_16 takes images of 224x224 only, got 32x32"):
        model(torch.empty(1, 3, 32, 32, device="meta"))


def test_a_block_of_convnext_is_its_equation_position_by_position():
    torch.manual_seed(0)
    block = scramble(CNBlock(4, drop_path=0.0))
    depthwise, _, norm, first, _, second, _ = block.block
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    padded = F.pad(x, (3, 3, 3, 3))
    for i, j in ((0, 0), (4, 7), (8, 3)):
        window = padded[0, :, i : i + 7, j : j + 7]
        u = (window * depthwise.weight[:, 0]).sum(dim=(1, 2)) + depthwise.bias
        u = (u - u.mean()) / (u.var(correction=0) + 1e-6).sqrt() * norm.weight + norm.bias
        u = first.weight @ u + first.bias
        u = u * (1 + torch.erf(u / 2**0.5)) / 2
        u = second.weight @ u + second.bias
        torch.testing.assert_close(block(x)[0, :, i, j], x[0, :, i, j] + block.layer_scale.flatten() * u)


def test_the_rate_of_stochastic_depth_grows_from_zero_to_a_tenth():
    with torch.device("meta"):
        model = cnnlib.build("convnext_tiny")
    rates = [m.p for m in model.modules() if isinstance(m, StochasticDepth)]
    assert rates == pytest.approx([0.1 * i / 17 for i in range(18)])


def test_stochastic_depth_drops_whole_images_keeps_the_mean_and_is_nothing_in_evaluation():
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 2, 2)
    ratios = layer(x).flatten(1)
    assert (ratios == ratios[:, :1]).all()
    assert sorted(set(ratios[:, 0].tolist())) == pytest.approx([0, 4 / 3])
    assert float(ratios.mean()) == pytest.approx(1, abs=4 * (1 / 3 / 4000) ** 0.5)
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match=r"drop_path must be in \[0, 1\), got 1"):
        cnnlib.build("convnext_tiny", drop_path=1.0)


def test_mobilenets_stages_see_as_much_as_the_published_table_says():
    published = cnnlib.card("mobilenet_v1").published["receptive_fields"]
    with torch.device("meta"):
        model = mobilenet_v1()
    size, stride, sizes, strides = 1, 1, [], []
    for stage in range(14):
        for conv in model.get_submodule(f"conv{stage}"):
            if isinstance(conv, nn.Conv2d):
                size += (conv.kernel_size[0] - 1) * stride
                stride *= conv.stride[0]
        sizes.append(size)
        strides.append(stride)
    assert (sizes, strides) == (published["values"], published["strides"])


def test_a_width_that_leaves_no_map_is_refused():
    with pytest.raises(ValueError, match=r"width must leave at least one of 32 maps .* got 0.01"):
        cnnlib.build("mobilenet_v1", width=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_weights_start_as_the_model_files_say(name):
    torch.manual_seed(0)
    model = cnnlib.build(name)
    if name == "vit_b_16":
        layer = model.encoder.layers.encoder_layer_3
        assert float(layer.mlp[0].weight.abs().max()) == pytest.approx((6 / (768 + 3072)) ** 0.5, rel=0.01)
        assert float(layer.self_attention.in_proj_weight.abs().max()) == pytest.approx((6 / (4 * 768)) ** 0.5, rel=0.01)
        assert float(model.encoder.pos_embedding.std()) == pytest.approx(0.02, rel=0.02)
        assert not model.class_token.any()
        assert float(model.heads.head.weight.std()) == pytest.approx(0.02, rel=0.02)
    elif name == "convnext_tiny":
        assert float(model.features[5][0].block[3].weight.std()) == pytest.approx(0.02, rel=0.02)
        assert (model.features[5][0].layer_scale == 1e-6).all()
    else:
        assert float(model.conv9.depthwise.weight.std()) == pytest.approx((2 / 9) ** 0.5, rel=0.05)
        assert float(model.conv9.pointwise.weight.std()) == pytest.approx((2 / 512) ** 0.5, rel=0.02)
