"""What a network costs: rows that add up to the model, and other tools that count the same."""

from __future__ import annotations

import json
import math
import random
from collections import OrderedDict

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import cnnlib
from cnnlib.analysis import connections, cost
from cnnlib.analysis.costs import CONNECTIONS, FREE, MACS, VIEWS, Totals
from cnnlib.graph import KINDS, trace
from cnnlib.models.zoo import papers

PUBLISHED = {name: table for name, table in papers().items() if name.startswith("torchvision/")}


def on_meta(name: str, **options) -> nn.Module:
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"aux_logits": False} if name in ("googlenet", "inception_v3") and "aux_logits" not in options else {}
    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None, **options).eval()


def shape_of(name: str) -> tuple[int, int, int]:
    return tuple(PUBLISHED[name]["input_shape"]["value"])


# ---------------------------------------------------------------------------------------------------------------
# Published figures


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_networks_cost_what_is_published(name):
    published = PUBLISHED[name]
    model = on_meta(name.removeprefix("torchvision/"))
    table = cost(model, shape_of(name))
    layers = table.total("conv", "linear")
    assert table.params == published["params"]["value"]
    assert layers.macs == published["macs"]["value"]
    if "activations" in published:
        assert layers.activations == published["activations"]["value"]
        assert table.macs == layers.macs


def test_lenet_has_the_papers_parameters_and_connections():
    published = papers()["lenet5_1998"]
    model = cnnlib.build("lenet5_1998")
    table = cost(model, (1, 32, 32))
    assert table.params == published["params"]["value"]
    links = connections(model, (1, 32, 32))
    assert int(links) == links.total == table.connections == published["connections"]["value"]
    columns = published["stages"]["columns"]
    rows = {row[0]: dict(zip(columns, row)) for row in published["stages"]["rows"]}
    assert links.by_stage == {name: row["connections"] for name, row in rows.items()}
    assert {name: totals.params for name, totals in table.by_stage().items()} == {
        name: row["params"] for name, row in rows.items()
    }


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_heads_that_evaluation_leaves_out_are_reported_and_not_lost(name):
    published = PUBLISHED[f"torchvision/{name}"]
    table = cost(on_meta(name, aux_logits=True), shape_of(f"torchvision/{name}"))
    assert table.params == published["params_with_heads"]["value"]
    assert table.params - table.total("unused").params == published["params"]["value"]
    assert table.total("unused") == Totals(params=table.total("unused").params)
    assert table.macs == published["macs"]["value"]


# ---------------------------------------------------------------------------------------------------------------
# Other counters


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *[("alexnet", 224), ("resnet18", 224), ("googlenet", 96), ("densenet121", 64), ("inception_v3", 299)],
        *[("mobilenet_v2", 224), ("shufflenet_v2_x1_0", 224), ("efficientnet_b0", 224), ("convnext_tiny", 224)],
        *[("swin_t", 224), ("vit_b_16", 224)],
    ],
)
def test_two_flops_a_mac_is_what_torch_counts(name, size):
    model = on_meta(name)
    counter = FlopCounterMode(display=False)
    # The same convention as ours needs the layer's plain way through attention.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter, torch.no_grad():
            model(torch.empty(1, 3, size, size, device="meta"))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert 2 * cost(model, (3, size, size)).macs == counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v2", "vgg11"])
def test_convolutions_and_linear_layers_are_what_fvcore_and_torchinfo_count(name):
    from fvcore.nn import FlopCountAnalysis
    from torchinfo import summary

    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(weights=None, **options).eval()
    table = cost(model, (3, 64, 64))
    ours = {kind: table.total(kind).macs for kind in ("conv", "linear")}

    theirs = FlopCountAnalysis(model, torch.rand(1, 3, 64, 64)).unsupported_ops_warnings(False).by_operator()
    assert ours == {"conv": theirs["conv"], "linear": theirs["linear"]}

    layers = [layer for layer in summary(model, (1, 3, 64, 64), verbose=0).summary_list if layer.is_leaf_layer]
    for kind, layer_type in (("conv", nn.Conv2d), ("linear", nn.Linear)):
        counted = 0
        for layer in layers:
            if isinstance(layer.module, layer_type):
                # torchinfo adds one product for each bias and position.
                bias = 0 if layer.module.bias is None else math.prod(layer.output_size)
                counted += layer.macs - bias
        assert counted == ours[kind]


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "swin_t"])
def test_torchvisions_own_metadata_agree(name):
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    table = cost(on_meta(name), (3, 224, 224))
    assert table.params == meta["num_params"]
    # Printed in thousandths of 10^9; torchvision counts with operators of its own choice.
    assert table.macs / 1e9 == pytest.approx(meta["_ops"], abs=0.002)


# ---------------------------------------------------------------------------------------------------------------
# Rows


def random_net(seed: int) -> tuple[nn.Module, int]:
    """A network with branches, groups, strides, shared layers and every arithmetic between; the number of its channels."""
    rng = random.Random(seed)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList()
            width = 4
            self.stem = nn.Conv2d(3, width, 3, padding=1)
            for _ in range(rng.randint(1, 4)):
                groups = rng.choice([1, 2, 4])
                self.layers.append(nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=rng.random() < 0.5))
            self.shared = nn.Conv2d(width, width, 1)
            self.norm = nn.BatchNorm2d(width)
            self.gain = nn.Parameter(torch.ones(width, 1, 1))
            self.spare = nn.Linear(2, 2)
            self.head = nn.Linear(2 * width, 5)
            self.order = [rng.choice(["add", "mul", "shared", "norm", "gain"]) for _ in self.layers]

        def forward(self, x):
            x = self.stem(x)
            for layer, step in zip(self.layers, self.order):
                y = layer(x)
                if step == "add":
                    y = y + x
                elif step == "mul":
                    y = y * torch.sigmoid(x)
                elif step == "shared":
                    y = self.shared(self.shared(y))
                elif step == "norm":
                    y = F.relu(self.norm(y))
                else:
                    y = self.gain * y
                x = y
            return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))

    torch.manual_seed(seed)
    return Net(), 3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 20), width=st.integers(1, 20))
def test_rows_add_up_to_the_model_and_to_torchs_count(seed, height, width):
    model, channels = random_net(seed)
    shape = (channels, height, width)
    table = cost(model, shape)
    assert table.params == sum(p.numel() for p in model.parameters())
    for column in ("params", "macs", "activations", "connections", "bytes"):
        total = getattr(table, column)
        assert total == sum(getattr(row, column) for row in table)
        assert total == sum(getattr(part, column) for part in table.by_kind().values())
        assert total == sum(getattr(part, column) for part in table.by_stage().values())
        assert total == sum(getattr(part, column) for part in table.by_stage(depth=2).values())
    assert table.bytes == 4 * table.activations
    assert len({row.name for row in table}) == len(table)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.rand(1, *shape))
    assert 2 * table.macs == counter.get_total_flops()


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 3),
    out=st.integers(1, 3),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    transposed=st.booleans(),
    functional=st.booleans(),
)
def test_convolutions_of_every_geometry_are_counted(
    channels, out, groups, kernel, stride, dilation, bias, transposed, functional
):
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = make(channels * groups, out * groups, kernel, stride, 1, groups=groups, dilation=dilation, bias=bias)

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = layer.weight, layer.bias

        def forward(self, x):
            if transposed:
                return F.conv_transpose2d(x, self.weight, self.bias, stride, 1, 0, groups, dilation)
            return F.conv2d(x, self.weight, self.bias, stride, 1, dilation, groups)

    model = Functional() if functional else nn.Sequential(layer)
    x = torch.rand(1, channels * groups, 12, 11)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        y = model(x)
    table = cost(model, tuple(x.shape[1:]))
    (row,) = table
    assert 2 * row.macs == counter.get_total_flops()
    assert row.macs == ((x if transposed else y).numel() * math.prod(kernel) * (out if transposed else channels))
    assert row.connections == row.macs + bias * y.numel()
    assert (row.params, row.activations) == (sum(p.numel() for p in model.parameters()), y.numel())


def test_every_kind_is_counted_or_free():
    assert set(MACS) | FREE | {"input", "output", "parameter", "recurrent", "other"} == set(KINDS)
    assert FREE.isdisjoint(MACS)
    assert set(VIEWS) <= FREE
    assert set(CONNECTIONS) <= set(KINDS)


def test_views_and_dropout_in_evaluation_store_nothing():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(), nn.Identity(), nn.Flatten(), nn.Linear(48, 2))
    assert [row.activations for row in cost(model, (3, 4, 4))] == [48, 0, 0, 0, 2]


def test_what_does_not_depend_on_the_image_is_no_activation():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(2, 3, 1, 1))

        def forward(self, x):
            return F.conv2d(x, F.normalize(self.weight.abs(), dim=1))

    table = cost(Net(), (3, 4, 4))
    assert [(row.name, row.params, row.activations) for row in table] == [
        ("abs", 6, 0),
        ("normalize", 0, 0),
        ("conv2d", 0, 32),
    ]


def test_attention_is_told_apart_from_its_projections():
    tokens, width, heads = 7, 12, 3

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(width, heads, batch_first=True)

        def forward(self, x):
            x = x.flatten(2).transpose(1, 2)
            return self.attend(x, x, x)[0]

    table = cost(Net(), (width, 1, tokens))
    assert table["attend.in_proj"].macs == tokens * width * 3 * width
    assert table["attend"].macs == 2 * tokens * tokens * width
    assert table["attend.out_proj"].macs == tokens * width * width
    assert table["attend.in_proj"].params == 3 * width * (width + 1)
    assert table["attend.out_proj"].params == width * (width + 1)
    assert table.total("attention").macs == table["attend"].macs


def test_products_by_einsum_and_at_are_counted():
    class Net(nn.Module):
        def forward(self, x):
            x = x[:, 0]
            y = torch.einsum("nij,nkj->nik", x, x)
            return y @ x

    table = cost(Net(), (1, 5, 7))
    assert [row.macs for row in table if row.kind == "matmul"] == [5 * 5 * 7, 5 * 5 * 7]


def test_additions_are_connections_and_fixed_terms_are_not():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3, 1, 1))
            self.register_buffer("mean", torch.zeros(3, 1, 1))

        def forward(self, x):
            x = (x - self.mean) + 1
            return x + self.bias + torch.relu(x)

    assert [row.connections for row in cost(Net(), (3, 2, 2)) if row.kind == "add"] == [0, 0, 12, 12]


# ---------------------------------------------------------------------------------------------------------------
# The table as text and data


def test_the_table_reads_well_and_its_columns_add_up():
    table = cost(cnnlib.build("lenet5"), (1, 32, 32))
    lines = repr(table).splitlines()
    assert lines[0] == "Sequential on 1x32x32, one image; macs = multiply-adds"
    columns = lines[1].split()
    assert columns == ["name", "kind", "output_shape", "params", "macs", "activations"]
    numbers = [[int(cell.replace(",", "")) for cell in line.split()[-3:]] for line in lines[3:]]
    *rows, total = numbers
    assert [sum(column) for column in zip(*rows)] == total == [table.params, table.macs, table.activations]
    assert "<caption>Sequential on 1x32x32" in table._repr_html_()


def test_the_table_as_json_holds_rows_and_totals():
    table = cost(cnnlib.build("lenet5"), (1, 32, 32))
    data = json.loads(table.to_json())
    assert data["totals"]["macs"] == table.macs == sum(row["macs"] for row in data["rows"])
    assert data["rows"][0]["output_shape"] == [6, 28, 28]
    assert data["input_shape"] == [1, 32, 32]


def test_rows_and_stages_have_the_names_of_the_graph():
    model = on_meta("resnet18")
    table = cost(model, (3, 224, 224))
    graph = trace(model, (3, 224, 224))
    assert [row.name for row in table] == [n.name for n in graph if n.kind not in ("input", "output")]
    assert list(table.by_stage()) == [
        *["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "flatten", "fc"]
    ]
    assert table["layer1.0.conv1"].output_shape == (64, 56, 56)


def test_equal_networks_have_equal_tables():
    assert cost(cnnlib.build("lenet5"), (1, 32, 32)) == cost(cnnlib.build("lenet5"), (1, 32, 32))


# ---------------------------------------------------------------------------------------------------------------
# Errors


def test_an_operation_with_weights_and_no_formula_is_an_error_that_names_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = nn.LSTM(4, 6)

        def forward(self, x):
            return self.memory(x[:, 0])[0]

    with pytest.raises(ValueError, match=r"memory \(LSTM, 5x6\) has weights and no cost formula"):
        cost(Net(), (1, 5, 4))

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3))

        def forward(self, x):
            return torch.cdist(x[:, 0], self.weight.view(1, 1, 3))

    with pytest.raises(ValueError, match=r"cdist \(cdist, 5x1\) has weights"):
        cost(Odd(), (1, 5, 3))


def test_an_unknown_operation_without_weights_is_said_to_be_uncounted():
    class Net(nn.Module):
        def forward(self, x):
            return torch.fft.fft2(x).abs()

    table = cost(Net(), (1, 4, 4))
    assert table.uncounted == ("fft_fft2",)
    assert "without the macs of fft_fft2" in repr(table)


def test_a_wrong_row_gives_the_nearest_name():
    with pytest.raises(ValueError, match=r"no row 'outputs'; did you mean 'output'\?"):
        cost(cnnlib.build("lenet5"), (1, 32, 32))["outputs"]


def test_counting_leaves_the_network_as_it_was():
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 2, 3), bn=nn.BatchNorm2d(2), head=nn.Flatten()))
    model.bn.eval()
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    cost(model, (3, 5, 5))
    with pytest.raises(ValueError, match="conv"):
        cost(model, (3, 2, 2))
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == i and torch.equal(after[name], t) for name, (i, t) in before.items())
    assert [m.training for m in model] == [True, False, True]
