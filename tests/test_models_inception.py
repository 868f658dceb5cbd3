"""The Inceptions and Xception: torchvision's, timm's and pytorchcv's weights and answers, and the figures counted again."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from pytorchcv.model_provider import get_model
from torch import Tensor, nn

import cnnlib
from cnnlib.models.branches import Branches, ConvBNReLU, read_branch
from cnnlib.models.inception_v4 import V1_B, LinearResidualModule, ResidualModule

LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
NAMES = (
    "bn_inception",
    "inception_v3",
    "inception_v4",
    "inception_resnet_v1",
    "inception_resnet_v2",
    "inception_resnet_v1_paper",
    "inception_resnet_v2_paper",
    "xception",
)


def shaken(model: nn.Module) -> nn.Module:
    """Float64, random weights that keep the signal up, random batch statistics: every constant counts."""
    generator = torch.Generator().manual_seed(0)
    model = model.double()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() > 1:
            tensor.normal_(0, (1 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0.0 if name.endswith(("bias", "mean")) else 1.0, 0.1, generator=generator)
    return model


def images(batch: int, side: int) -> Tensor:
    return torch.randn(batch, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, theirs: Tensor, within: float = 1e-9) -> bool:
    return bool((ours - theirs).abs().max() <= within * theirs.abs().max()) and bool(theirs.abs().max() > 0)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def torchvision_v3() -> nn.Module:
    return torchvision.models.inception_v3(num_classes=10, init_weights=False, dropout=0.0, transform_input=True)


# ---------------------------------------------------------------------------------------------------------------
# Other people's networks, weight by weight

PEERS = {
    "inception_v3": (torchvision_v3, {"transform_input": True}, 107),
    "inception_v4": (lambda: timm.create_model("inception_v4", num_classes=10), {}, 107),
    "inception_resnet_v2": (lambda: timm.create_model("inception_resnet_v2", num_classes=10), {}, 107),
    "xception": (lambda: timm.create_model("legacy_xception", num_classes=10), {}, 71),
}


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("name", PEERS)
def test_state_dicts_fit_strictly_and_logits_agree(name, ours_first):
    make, options, side = PEERS[name]
    ours, theirs = cnnlib.build(name, num_classes=10, dropout=0.0, **options), make()
    first, second = (ours, theirs) if ours_first else (theirs, ours)
    shaken(first)
    second.double().load_state_dict(first.state_dict(), strict=True)
    for model in (ours, theirs):
        model.eval()
        model._forward_pre_hooks.clear()  # small images: inception_v3 needs 299 for its head only
    with torch.no_grad():
        assert close(ours(images(1, side)), theirs(images(1, side)))
        if ours_first:
            return
        if name == "inception_v3":
            ours.AuxLogits = theirs.AuxLogits = None  # see the test of the head
        x = images(2, side + 20)
        out, expected = ours.train()(x), theirs.train()(x)
        assert close(out, expected if isinstance(expected, Tensor) else expected[0], within=1e-6)
    updated = theirs.state_dict()
    for key, tensor in ours.state_dict().items():  # one step of the running statistics: eps and momentum
        assert torch.allclose(tensor, updated[key], rtol=1e-6, atol=1e-9), key


def test_the_auxiliary_head_of_inception_v3_is_torchvisions():
    ours, theirs = cnnlib.build("inception_v3", num_classes=10), torchvision_v3()
    head, peer = shaken(ours.AuxLogits), theirs.AuxLogits.double()
    peer.load_state_dict(head.state_dict(), strict=True)
    x = torch.randn(2, 768, 17, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert close(head.eval()(x), peer.eval()(x))
    with torch.device("meta"):
        model = cnnlib.build("inception_v3").train()
    in_training = model(torch.empty(2, 3, 299, 299, device="meta"))
    assert in_training._fields == ("logits", "aux_logits")
    assert [out.shape for out in in_training] == [(2, 1000), (2, 1000)]
    assert model.aux_weight == 0.4


def test_the_head_of_inception_v3_sees_the_maps_of_mixed_6e():
    seen = {}
    with torch.device("meta"):
        model = cnnlib.build("inception_v3").train()
        model.Mixed_6e.register_forward_hook(lambda module, args, out: seen.update(last=out))
        model.AuxLogits.register_forward_pre_hook(lambda module, args: seen.update(head=args[0]))
        model(torch.empty(2, 3, 299, 299))
    assert seen["head"] is seen["last"]


@pytest.mark.parametrize(
    ("name", "peer"), [("bn_inception", "bninception"), ("inception_resnet_v1", "inceptionresnetv1")]
)
def test_layer_by_layer_the_logits_are_pytorchcvs(name, peer):
    ours, theirs = cnnlib.build(name, num_classes=10), shaken(get_model(peer, num_classes=10))
    ours.double()
    pairs = [[m for m in model.modules() if isinstance(m, LAYERS)] for model in (ours, theirs)]
    for mine, other in zip(*pairs, strict=True):
        mine.load_state_dict(other.state_dict(), strict=True)
        if isinstance(mine, nn.BatchNorm2d | nn.BatchNorm1d):
            assert (mine.eps, mine.momentum) == (other.eps, other.momentum)
    x = images(1, cnnlib.card(name).input_shape[1])
    with torch.no_grad():
        assert close(ours.eval()(x), theirs.eval()(x))


# ---------------------------------------------------------------------------------------------------------------
# BN-Inception: the names of the released network, and its sizes


def released_keys() -> set[str]:
    """The names in the public checkpoint: each layer's own name, `_bn` for its batch norm, stages joined by `_`."""
    stem = ["conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3"]
    inner = ["3x3_reduce", "3x3", "double_3x3_reduce", "double_3x3_1", "double_3x3_2"]
    layers = [*stem]
    for module in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        ends = [] if module in ("3c", "4e") else ["1x1", "pool_proj"]
        layers += [f"inception_{module}_{layer}" for layer in [*inner, *ends]]
    keys = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return (
        keys
        | {f"{layer}_bn.{part}" for layer in layers for part in statistics}
        | {"last_linear.weight", "last_linear.bias"}
    )


def test_checkpoints_of_bn_inception_have_the_released_names():
    torch.manual_seed(0)
    model, other = (
        cnnlib.build("bn_inception", num_classes=10).eval(),
        cnnlib.build("bn_inception", num_classes=10).eval(),
    )
    state = model.state_dict()
    assert set(state) == released_keys()
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(model(x), other(x))
    kept = dict(state)
    other.load_state_dict(state, strict=True)
    assert state.keys() == kept.keys()
    assert torch.equal(model(x), other(x))


def test_bn_inception_keeps_its_names_inside_another_network_and_misses_what_is_missing():
    outer = nn.Sequential(cnnlib.build("bn_inception", num_classes=10))
    state = outer.state_dict()
    assert set(state) == {f"0.{key}" for key in released_keys()}
    outer.load_state_dict(state, strict=True)
    del state["0.inception_3a_3x3_bn.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        outer.load_state_dict(state, strict=True)


def test_bn_inception_takes_exactly_the_sizes_at_which_its_branches_meet():
    with torch.device("meta"):
        guarded, bare = cnnlib.build("bn_inception").eval(), cnnlib.build("bn_inception").eval()
        bare._forward_pre_hooks.clear()
        for side in [29, *range(30, 41), 48, 62, 63, 70, 71, 222, 223, 230, 231]:
            x = torch.empty(1, 3, side, 64)
            try:
                bare(x)
            except RuntimeError:
                with pytest.raises(ValueError, match=r"at least 31x31|multiples of 32"):
                    guarded(x)
            else:
                assert guarded(x).shape == (1, 1000)


# ---------------------------------------------------------------------------------------------------------------
# The figures' own Inception-ResNets


def test_the_figures_inception_resnet_v1_is_the_release_without_its_last_module_and_its_512_units():
    torch.manual_seed(0)
    release = shaken(cnnlib.build("inception_resnet_v1", num_classes=10)).eval()
    paper = cnnlib.build("inception_resnet_v1_paper", num_classes=10).double().eval()
    missing, unexpected = paper.load_state_dict(
        {k: v for k, v in release.state_dict().items() if not k.startswith("logits")}, strict=False
    )
    assert missing == ["logits.weight", "logits.bias"]
    assert {key.split(".")[0] for key in unexpected} == {"block8", "last_linear", "last_bn"}
    x = images(1, 107)
    with torch.no_grad():
        maps = x
        for name, stage in release.named_children():
            if name == "block8":
                break
            maps = stage(maps)
        expected = maps.mean(dim=(2, 3)) @ paper.logits.weight.T + paper.logits.bias
        assert close(paper(x), expected)


def conv_bn(channels: int, maps: int, height: int, width: int) -> tuple[int, int]:
    """Weights of a convolution, and with the two of batch norm for each map."""
    weights = channels * maps * height * width
    return weights, weights + 2 * maps


def chain(channels: int, *layers: tuple[int, int, int]) -> tuple[list[int], int]:
    """Weights of the layers (height, width, maps) one after another, and parameters of all."""
    weights, params = [], 0
    for height, width, maps in layers:
        own, total = conv_bn(channels, maps, height, width)
        weights.append(own)
        params += total
        channels = maps
    return weights, params


def test_the_figures_inception_resnet_v2_has_the_parameters_and_operations_of_its_figures():
    """Figures 3, 7, 16 to 19, typed a second time: (grid of each layer, layers), grids as the figures print them."""
    total, macs = 0, 0

    def add(channels: int, layers: list[tuple[int, int, int]], grids: list[int], times: int = 1) -> None:
        nonlocal total, macs
        weights, params = chain(channels, *layers)
        total += times * params
        macs += times * sum(own * grid**2 for own, grid in zip(weights, grids, strict=True))

    def add_linear(channels: int, maps: int, grid: int, times: int) -> None:
        nonlocal total, macs
        total += times * (channels * maps + maps)
        macs += times * channels * maps * grid**2

    add(3, [(3, 3, 32), (3, 3, 32), (3, 3, 64)], [149, 147, 147])
    add(64, [(3, 3, 96)], [73])
    add(160, [(1, 1, 64), (3, 3, 96)], [73, 71])
    add(160, [(1, 1, 64), (7, 1, 64), (1, 7, 64), (3, 3, 96)], [73, 73, 73, 71])
    add(192, [(3, 3, 192)], [35])
    add(384, [(1, 1, 32)], [35], 5)
    add(384, [(1, 1, 32), (3, 3, 32)], [35, 35], 5)
    add(384, [(1, 1, 32), (3, 3, 48), (3, 3, 64)], [35] * 3, 5)
    add_linear(128, 384, 35, 5)
    add(384, [(3, 3, 384)], [17])
    add(384, [(1, 1, 256), (3, 3, 256), (3, 3, 384)], [35, 35, 17])
    add(1152, [(1, 1, 192)], [17], 10)
    add(1152, [(1, 1, 128), (1, 7, 160), (7, 1, 192)], [17] * 3, 10)
    add_linear(384, 1152, 17, 10)
    add(1152, [(1, 1, 256), (3, 3, 384)], [17, 8])
    add(1152, [(1, 1, 256), (3, 3, 288)], [17, 8])
    add(1152, [(1, 1, 256), (3, 3, 288), (3, 3, 320)], [17, 17, 8])
    add(2144, [(1, 1, 192)], [8], 5)
    add(2144, [(1, 1, 192), (1, 3, 224), (3, 1, 256)], [8] * 3, 5)
    add_linear(448, 2144, 8, 5)
    add_linear(2144, 1000, 1, 1)

    with torch.device("meta"):
        model = cnnlib.build("inception_resnet_v2_paper")
    published = cnnlib.card("inception_resnet_v2_paper").published
    assert count(model) == total == published["params"]["value"]
    assert cnnlib.analysis.cost(model, (3, 299, 299)).macs == macs == published["macs"]["value"]
    assert published["disagreement"]["values"] == {
        "figure_17": [1154, model.repeat_1[0].out_channels],
        "figure_19": [2048, model.repeat_2[0].out_channels],
    }


def test_a_residual_module_adds_its_scaled_branches_and_rectifies_and_the_last_one_does_neither():
    torch.manual_seed(0)
    module = shaken(ResidualModule(16, V1_B, scale=0.1)).eval()
    last = LinearResidualModule(16, V1_B).double().eval()
    last.load_state_dict(module.state_dict(), strict=True)
    x = torch.randn(2, 16, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        branches = torch.cat([module.branch0(x), module.branch1(x)], dim=1)
        residual = (
            torch.einsum("ncij,oc->noij", branches, module.conv2d.weight[:, :, 0, 0])
            + module.conv2d.bias[:, None, None]
        )
        assert close(module(x), (x + 0.1 * residual).clamp(min=0))
        assert close(last(x), x + residual)


def test_the_scales_of_the_residuals_are_the_releases():
    with torch.device("meta"):
        nets = {name: cnnlib.build(name) for name in NAMES if "resnet" in name}
    for name, net in nets.items():
        scales = [(type(m), m.scale) for m in net.modules() if isinstance(m, ResidualModule)]
        a, b, c = (10, 20, 9) if name == "inception_resnet_v2" else (5, 10, 5)
        expected = [(ResidualModule, s) for s, n in ((0.17, a), (0.10, b), (0.20, c)) for _ in range(n)]
        assert scales == expected + [(LinearResidualModule, 1.0)] * (not name.endswith("paper"))


# ---------------------------------------------------------------------------------------------------------------
# What is published, what is at the start, and the smallest images


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_operations_are_the_published_ones(name):
    card = cnnlib.card(name)
    with torch.device("meta"):
        model = cnnlib.build(name)
    assert count(model) == card.published["params"]["value"]
    assert cnnlib.analysis.cost(model, card.input_shape).macs == card.published["macs"]["value"]


def test_without_its_head_inception_v3_has_the_published_parameters_and_takes_75():
    with torch.device("meta"):
        model = cnnlib.build("inception_v3", aux_logits=False)
        model._forward_pre_hooks.clear()
        assert count(model) == cnnlib.card("inception_v3").published["params_without_heads"]["value"]
        assert model.train()(torch.empty(2, 3, 75, 75)).shape == (2, 1000)


def test_redundant_biases_of_bn_inception_are_as_many_as_published():
    with torch.device("meta"):
        model = cnnlib.build("bn_inception")
    biases = sum(m.bias.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    published = cnnlib.card("bn_inception").published
    assert biases == published["params_of_redundant_biases"]["value"]
    assert published["disagreement"]["values"] == [count(model), published["params_printed"]["value"]]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "xception"])
def test_the_least_size_is_the_least_that_trains(name):
    least = cnnlib.card(name).least
    with torch.device("meta"):
        model = cnnlib.build(name).train()
        model(torch.empty(2, 3, least, least))
        with pytest.raises(ValueError, match=f"at least {least}x{least}"):
            model(torch.empty(2, 3, least - 1, least - 1))
        model._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError):
            model(torch.empty(2, 3, least - 1, least - 1))


def test_below_its_least_size_xception_runs_and_leaves_biases_without_a_gradient():
    """On a 1x1 grid the biases of block12 shift all that the next batch norm sees alike, which takes it out again."""
    torch.manual_seed(0)
    model = cnnlib.build("xception", num_classes=10).double().train()
    largest = {}
    for side in (cnnlib.card("xception").least, cnnlib.card("xception").least - 1):
        model._forward_pre_hooks.clear()
        model.zero_grad()
        model(images(2, side)).logsumexp(dim=1).sum().backward()
        largest[side] = max(
            model.block12.skipbn.bias.grad.abs().max(), model.block12.rep[5].bias.grad.abs().max()
        ).item()
    assert largest[39] > 1e-4
    assert largest[38] < 1e-12


def test_dropout_rates_are_the_published_ones():
    with torch.device("meta"):
        rates = {n: [m.p for m in cnnlib.build(n).modules() if isinstance(m, nn.Dropout)] for n in NAMES}
    kept = {name: [0.2] for name in NAMES if "resnet" in name or name == "inception_v4"}
    assert rates == {"bn_inception": [], "inception_v3": [0.5], "xception": [0.5]} | kept


def test_weights_start_as_the_model_files_say():
    torch.manual_seed(0)
    for name in ("bn_inception", "inception_v3", "inception_resnet_v1", "xception"):
        for path, module in cnnlib.build(name).named_modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            if module.bias is not None:
                assert torch.all(module.bias == 0), (name, path)
            weight = module.weight
            area = weight[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
            deviation = (2 / (area * weight.shape[1])) ** 0.5
            if name == "inception_v3":
                deviation = {"AuxLogits.conv1.conv": 0.01, "AuxLogits.fc": 0.001}.get(path, 0.1)
            elif name == "xception":
                if isinstance(module, nn.Linear):
                    continue  # PyTorch's own
                deviation = (2 / (area * weight.shape[0])) ** 0.5
            assert weight.std().item() == pytest.approx(deviation, rel=0.15), (name, path)


# ---------------------------------------------------------------------------------------------------------------
# The rows of text


def test_a_branch_reads_as_it_is_printed():
    (conv,), (pool,), side = read_branch("1x7/2V 64, max/2C, 1x3 256 | 3x1 128")
    assert conv == (None, (1, 7), 2, "V", 64)
    assert pool == ("max", (3, 3), 2, "C", None)
    assert [(step.kernel, step.maps) for step in side] == [((1, 3), 256), ((3, 1), 128)]


@pytest.mark.parametrize("text", ["3x3", "avg 32", "3 64", "3x3 /2 64", "min", ""])
def test_an_unreadable_layer_is_refused(text):
    with pytest.raises(ValueError, match=r"a layer of a branch reads .*got"):
        read_branch(text)


def test_only_the_end_of_a_branch_may_fork():
    with pytest.raises(ValueError, match="only the last layers of a branch may stand side by side"):
        read_branch("1x1 64 | 3x3 64, 1x1 32")


def test_branches_stand_in_the_order_of_their_rows_and_their_widths_add_up():
    rows = {"b": "1x1 4", "a": "avg, 1x1 6, 1x3 2 | 3x1 3", "pool": "max"}
    module = shaken(Branches(5, rows, ConvBNReLU)).eval()
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        y = module(x)
        inner = module.a_0(module.a_avg(x))
        assert torch.equal(y, torch.cat([module.b(x), module.a_1a(inner), module.a_1b(inner), module.pool(x)], dim=1))
    assert module.out_channels == y.shape[1] == 4 + 2 + 3 + 5
