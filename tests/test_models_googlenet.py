"""GoogLeNet: table 1 counted again, the equations written out a second time, torchvision's weights both ways."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import cnnlib
from cnnlib.models.zoo import papers

MODULES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
WIDTHS = ("conv1", "reduce3", "conv3", "reduce5", "conv5", "pool_proj")


def shaken(model: nn.Module) -> nn.Module:
    """Float64, random weights that keep the signal up, random batch statistics: every constant counts."""
    generator = torch.Generator().manual_seed(0)
    model = model.double()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.001, 0.01, generator=generator)  # small beside eps = 1e-3
        elif tensor.dim() > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0.1, 0.1, generator=generator)
    return model


def images(batch: int, side: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(batch, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()) and bool(theirs.abs().max() > 0)


def table_1() -> dict[str, dict]:
    table = papers()["googlenet_table1"]
    return {row[0]: dict(zip(table["columns"], row)) for row in table["rows"]}


def normalised(a: Tensor) -> Tensor:
    """Caffe's response normalisation, map by map: n = 5, alpha = 1e-4 divided by n, beta = 0.75, k = 1."""
    maps = a.shape[1]
    near = [(a[:, max(0, i - 2) : min(maps - 1, i + 2) + 1] ** 2).sum(dim=1) for i in range(maps)]
    return torch.stack([a[:, i] / (1 + 1e-4 / 5 * near[i]) ** 0.75 for i in range(maps)], dim=1)


def written_out(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and the logits of the heads behind 4d and 4a, from table 1 and figure 3."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = w[f"{name}.conv.weight"]
        return F.conv2d(x, weight, w[f"{name}.conv.bias"], stride, weight.shape[-1] // 2).clamp(min=0)

    def pool(x: Tensor) -> Tensor:  # 3x3, stride 2, one more row and column of windows at the end
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, 2)

    def module(x: Tensor, name: str) -> Tensor:
        one = conv(x, f"{name}.branch1")
        three = conv(conv(x, f"{name}.branch2.0"), f"{name}.branch2.1")
        five = conv(conv(x, f"{name}.branch3.0"), f"{name}.branch3.1")
        assert w[f"{name}.branch3.1.conv.weight"].shape[-2:] == (5, 5)
        return torch.cat([one, three, five, conv(F.max_pool2d(x, 3, 1, 1), f"{name}.branch4.1")], dim=1)

    def head(x: Tensor, name: str) -> Tensor:
        x = conv(F.avg_pool2d(x, 5, 3), f"{name}.conv").flatten(1)
        x = (x @ w[f"{name}.fc1.weight"].T + w[f"{name}.fc1.bias"]).clamp(min=0)
        return x @ w[f"{name}.fc2.weight"].T + w[f"{name}.fc2.bias"]

    x = normalised(pool(conv(x, "conv1", 2)))
    x = pool(normalised(conv(conv(x, "conv2"), "conv3")))
    x = pool(module(module(x, "inception3a"), "inception3b"))
    x = module(x, "inception4a")
    early = head(x, "aux1")
    x = module(module(module(x, "inception4b"), "inception4c"), "inception4d")
    late = head(x, "aux2")
    x = module(module(pool(module(x, "inception4e")), "inception5a"), "inception5b")
    return x.mean(dim=(2, 3)) @ w["fc.weight"].T + w["fc.bias"], late, early


@pytest.fixture(scope="module")
def paper_net() -> nn.Module:
    return shaken(cnnlib.build("googlenet", num_classes=10, dropout=0.0, dropout_aux=0.0))


def test_googlenet_computes_what_its_paper_and_caffes_release_describe(paper_net):
    x = images(1, 224, scale=30)
    with torch.no_grad():
        expected = written_out(paper_net.state_dict(), x)
        logits = paper_net.eval()(x)
        in_training = paper_net.train()(x)
    assert close(logits, expected[0])
    assert in_training._fields == ("logits", "aux_logits2", "aux_logits1")
    assert all(close(ours, theirs) for ours, theirs in zip(in_training, expected))


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_the_widths_are_those_of_table_1(name):
    table = table_1()
    weights = cnnlib.build(name).state_dict()
    for row in MODULES:
        layers = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
        ours = [weights[f"inception{row}.{layer}.conv.weight"].shape[0] for layer in layers]
        assert ours == [table[row][width] for width in WIDTHS]


def test_the_rows_of_table_1_are_recounted_and_those_that_contradict_their_widths_are_the_marked_ones():
    printed, recounted = table_1(), papers()["googlenet"]["table1_recounted"]
    with torch.device("meta"):
        model = cnnlib.build("googlenet", aux_logits=False)
    cost = cnnlib.analysis.cost(model, (3, 224, 224)).by_stage()
    stages = {"conv1": ["conv1"], "conv2": ["conv2", "conv3"], "linear": ["fc"]} | {
        m: [f"inception{m}"] for m in MODULES
    }
    assert [row[0] for row in recounted["rows"]] == [row for row in printed if row in stages]
    for values in recounted["rows"]:
        row = dict(zip(recounted["columns"], values))
        ours = [module for stage in stages[row["row"]] for module in model.get_submodule(stage).modules()]
        weights = sum(m.weight.numel() for m in ours if isinstance(m, nn.Conv2d | nn.Linear))
        params = sum(cost[stage].params for stage in stages[row["row"]])
        macs = sum(cost[stage].macs for stage in stages[row["row"]])
        assert (row["weights"], row["parameters"], row["macs"]) == (weights, params, macs)
        assert row["weights_k"] == pytest.approx(weights / 1024, abs=0.051)
        table = printed[row["row"]]
        assert row["printed_parameters_fit"] == (abs(table["printed_params_k"] * 1024 / weights - 1) < 0.005)
        assert row["printed_operations_fit"] == (abs(table["printed_ops_m"] * 1e6 - macs) < 1e6)
    sums = recounted["printed_sums"]
    assert sum(row["printed_params_k"] or 0 for row in printed.values()) == pytest.approx(sums["parameters_k"])
    assert sum(row["printed_ops_m"] or 0 for row in printed.values()) == sums["operations_m"]


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_parameters_with_and_without_heads_are_the_published_ones(name):
    published = cnnlib.card(name).published
    with torch.device("meta"):
        whole, bare = cnnlib.build(name), cnnlib.build(name, aux_logits=False)
    count = {key: sum(p.numel() for p in m.parameters()) for key, m in [("whole", whole), ("bare", bare)]}
    assert count == {"whole": published["params"]["value"], "bare": published["params_without_heads"]["value"]}
    if name == "googlenet":
        heads = published["params_of_heads"]
        assert [sum(p.numel() for p in head.parameters()) for head in (whole.aux1, whole.aux2)] == [
            heads["aux1"],
            heads["aux2"],
        ]


@pytest.mark.parametrize(("name", "dropout"), [("googlenet", 0.4), ("googlenet_bn", 0.2)])
def test_dropout_and_the_weight_of_the_heads_are_the_published_ones(name, dropout):
    with torch.device("meta"):
        model = cnnlib.build(name)
    rates = {path: m.p for path, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {"dropout": dropout, "aux1.dropout": 0.7, "aux2.dropout": 0.7}
    assert model.aux_weight == 0.3


def test_googlenet_starts_as_caffes_release():
    torch.manual_seed(0)
    model = cnnlib.build("googlenet")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = (3 / module.weight[0].numel()) ** 0.5
            assert module.weight.abs().max() <= bound * 1.000001
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
            classifier = name in ("fc", "aux1.fc2", "aux2.fc2")
            assert torch.all(module.bias == (0 if classifier else torch.tensor(0.2)))


def test_googlenet_bn_starts_as_torchvisions():
    torch.manual_seed(0)
    model = cnnlib.build("googlenet_bn")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1)
        if isinstance(module, nn.Linear):
            assert torch.all(module.bias == 0)


def peer(**options) -> nn.Module:
    return torchvision.models.googlenet(num_classes=10, init_weights=False, dropout=0.0, dropout_aux=0.0, **options)


@pytest.mark.parametrize("ours_first", [True, False])
def test_googlenet_bn_is_torchvisions_in_evaluation_and_in_training(ours_first):
    ours = cnnlib.build("googlenet_bn", num_classes=10, dropout=0.0, dropout_aux=0.0, transform_input=True)
    theirs = peer(transform_input=True)
    first, second = (ours, theirs) if ours_first else (theirs, ours)
    shaken(first)
    second.double().load_state_dict(first.state_dict(), strict=True)
    x = images(2, 97)
    with torch.no_grad():
        assert close(ours.eval()(x), theirs.eval()(x))
        for a, b in zip(ours.train()(x), theirs.train()(x), strict=True):
            assert close(a, b)
    updated = theirs.state_dict()
    for name, tensor in ours.state_dict().items():  # one step of the running statistics: eps and momentum
        assert torch.allclose(tensor, updated[name], rtol=1e-9, atol=1e-12), name


def test_transform_input_needs_three_channels():
    with pytest.raises(ValueError, match=r"3 channels.*in_channels=1; leave it out"):
        cnnlib.build("googlenet_bn", in_channels=1, transform_input=True)


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_without_heads_training_returns_logits_alone(name):
    model = cnnlib.build(name, aux_logits=False, num_classes=5).train()
    assert model(torch.randn(2, 3, 224, 224)).shape == (2, 5)
    assert not any(key.startswith("aux") for key in model.state_dict())


def test_weights_of_torchvision_do_not_fit_the_papers_network():
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        cnnlib.build("googlenet", num_classes=10).load_state_dict(peer().state_dict())


def test_googlenet_refuses_other_sizes_and_googlenet_bn_takes_15():
    with torch.device("meta"):
        small = cnnlib.build("googlenet_bn").train()
        assert small(torch.empty(2, 3, 15, 15)).logits.shape == (2, 1000)
        with pytest.raises(ValueError, match="at least 15x15, got 14x14"):
            small(torch.empty(2, 3, 14, 14))
        small._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError):
            small(torch.empty(2, 3, 14, 14))
        with pytest.raises(ValueError, match="224x224 only, got 225x225"):
            cnnlib.build("googlenet")(torch.empty(2, 3, 225, 225))
