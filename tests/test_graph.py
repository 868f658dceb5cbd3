"""Any network becomes one graph, and is afterwards as it was."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.graph import KINDS, trace
from cnnlib.operations import is_leaf

SIZES = {
    **{name: 224 for name in ["alexnet", "vgg11_bn", "squeezenet1_1", "resnet50", "resnext50_32x4d", "googlenet"]},
    **{name: 224 for name in ["densenet121", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "mnasnet0_5"]},
    **{name: 224 for name in ["efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t", "maxvit_t"]},
    "inception_v3": 299,
}
HEADS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def on_meta(name: str, **options) -> nn.Module:
    """A torchvision network without values: enough for everything that reads shapes."""
    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None, **HEADS.get(name, {}), **options)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            block=Residual(8),
            head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5)),
        )
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        out += x
        return self.relu(out)


class PreActivation(nn.Module):
    """The shortcut leaves before the normalisation, whose result has the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.drop = nn.Dropout()

    def forward(self, x):
        return self.conv(self.drop(F.relu(self.bn(x)))) + x


class Branches(nn.Module):
    """Which branch runs depends on the size of the image: torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Conv2d(3, 4, 3, padding=1)
        self.large = nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.large(x) if x.shape[-1] > 16 else self.small(x)
        return self.head(F.relu(x).mean((2, 3)))


class ByValue(nn.Module):
    """Which branch runs depends on the values: only a real forward pass can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)
        self.two = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.two(x) if x.sum() > 0 else self.one(x)


# ---------------------------------------------------------------------------------------------------------------
# What a graph is


@pytest.mark.parametrize("name", SIZES)
def test_networks_of_torchvision_trace(name):
    model = on_meta(name)
    graph = trace(model, (3, SIZES[name], SIZES[name]))
    assert graph.output.shape == (1000,)
    assert graph.source == ("recorded" if name == "swin_t" else "fx")
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)
    seen = set()
    for node in graph:
        assert node.kind in KINDS
        assert node.kind != "other", f"{node.name} has no kind"
        assert seen.issuperset(node.inputs)
        seen.add(node.name)
    used = {p for node in graph for p in node.params}
    assert used.isdisjoint(graph.unused)
    assert used | set(graph.unused) == {p for p, _ in model.named_parameters()}
    auxiliary = ("aux1", "aux2", "AuxLogits")
    assert all(p.startswith(auxiliary) for p in graph.unused)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "densenet121", "convnext_tiny"])
def test_shapes_are_those_of_a_real_forward_pass(name):
    model = getattr(torchvision.models, name)(weights=None, **HEADS.get(name, {})).eval()
    graph = trace(model, (3, 64, 96))
    shapes: dict[str, list] = {}
    for path, module in model.named_modules():
        if is_leaf(module):
            module.register_forward_hook(
                lambda m, i, o, path=path: shapes.setdefault(path, []).append(tuple(o.shape[1:]))
            )
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 96))
    traced = {}
    for node in graph:
        traced.setdefault(node.name.split(":")[0], []).append(node.shape)
    assert shapes
    for path, found in shapes.items():
        assert traced[path] == found


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v3_small"])
def test_the_graph_runs_on_any_batch_and_gives_what_the_network_gives(name):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, **HEADS.get(name, {})).eval()
    graph = trace(model, (3, 64, 64))
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(graph.module(x), model(x))


def test_a_recorded_graph_runs_on_the_image_size_that_it_was_recorded_with():
    torch.manual_seed(0)
    model = Branches().eval()
    graph = trace(model, (3, 32, 32))
    assert graph.source == "recorded"
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(graph.module(x), model(x))
    swin = torchvision.models.swin_t(weights=None).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(trace(swin, (3, 64, 64)).module(x), swin(x))


def test_the_branch_that_runs_is_the_one_in_the_graph():
    model = Branches()
    assert "small" in trace(model, (3, 16, 16))
    large = trace(model, (3, 17, 17))
    assert "large" in large
    assert "small" not in large
    assert set(large.unused) == {"small.weight", "small.bias"}
    assert "two" in trace(ByValue(), (3, 8, 8))


def test_both_ways_of_tracing_find_the_same_operations():
    class Plain(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    class Checked(Plain):
        def forward(self, x):
            assert bool(x.shape[0] > 0)  # torch.fx stops here
            return self.inner(x)

    lenets = [(cnnlib.build(name), (1, 32, 32)) for name in ("lenet5_1998", "lenet5")]
    for inner, shape in [*lenets, (small_net(), (3, 8, 8)), (PreActivation(), (3, 8, 8))]:
        ways = [trace(way(inner), shape) for way in (Plain, Checked)]
        assert [graph.source for graph in ways] == ["fx", "recorded"]
        symbolic, recorded = (
            [(n.name, n.kind, n.shape, n.params, n.inputs) for n in graph if n.kind not in ("parameter", "constant")]
            for graph in ways
        )
        assert symbolic == recorded


def test_names_are_paths_and_second_uses_are_numbered():
    graph = trace(small_net(), (3, 8, 8))
    names = [node.name for node in graph]
    assert names == [
        *["input", "stem.0", "stem.1", "stem.2", "block.conv1", "block.bn1", "block.relu", "block.conv2", "block.add"],
        *["block.relu:2", "head.0", "head.1", "head.2", "head.3", "output"],
    ]
    assert graph["block.add"].inputs == ("block.conv2", "stem.2")
    assert graph["block.add"].stage == "block"
    assert graph["block.add"].module == "block"
    assert [n.name for n in graph.predecessors("block.add")] == ["block.conv2", "stem.2"]
    assert [n.name for n in graph.successors("stem.2")] == ["block.conv1", "block.add"]
    assert "block.add" not in graph.ancestors("block.bn1")


def test_a_function_does_not_take_the_name_of_a_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()
            self.output = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.output(self.relu(F.relu(x)))

    assert [n.name for n in trace(Net(), (3, 4, 4))] == ["input", "relu()", "relu", "output", "output()"]


def test_a_table_of_the_graph_is_its_text():
    text = repr(trace(cnnlib.build("lenet5"), (1, 32, 32)))
    assert text.splitlines()[:5] == [
        "Sequential on 1x32x32: 14 nodes by torch.fx",
        "name      kind        shape     inputs",
        "--------  ----------  --------  -------",
        "input     input       1x32x32",
        "c1.0      conv        6x28x28   input",
    ]
    assert "<td" in trace(cnnlib.build("lenet5"), (1, 32, 32))._repr_html_()


def test_values_are_what_the_layers_put_out():
    torch.manual_seed(0)
    model = small_net().train()
    graph = trace(model, (3, 8, 8))
    x = torch.rand(2, 3, 8, 8)
    found = graph.values(x, ["stem.1", "block.add", "head.3"])
    model.eval()
    with torch.no_grad():
        assert torch.equal(found["stem.1"], model.stem[1](model.stem[0](x)))
        assert torch.equal(found["head.3"], model(x))
        assert torch.equal(F.relu(found["block.add"]), model.block(model.stem(x)))


def test_a_graph_up_to_a_node_computes_that_node():
    torch.manual_seed(0)
    model = small_net().eval()
    part = trace(model, (3, 8, 8)).upto("block.add")
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(part.module(x), part.values(x, ["block.add"])["block.add"])
    assert part.output.inputs == ("block.add",)
    assert "head.3" not in part
    assert "head.3.weight" in part.unused


def test_an_edited_copy_leaves_the_network_alone():
    torch.manual_seed(0)
    model = small_net().eval()
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        before = model(x)
        edited = copy.deepcopy(trace(model, (3, 8, 8)).module)
        add = next(n for n in edited.graph.nodes if n.meta.get("scope") == "block" and n.op == "call_function")
        add.replace_all_uses_with(add.args[1])
        edited.recompile()
        assert not torch.equal(edited(x), before)
        assert torch.equal(model(x), before)


def test_the_fingerprint_knows_the_network_but_not_its_weights():
    graph = trace(small_net(), (3, 8, 8))
    other = small_net()
    nn.init.zeros_(other.stem[0].weight)
    assert trace(other, (3, 8, 8)).fingerprint == graph.fingerprint
    other.head[3] = nn.Linear(8, 6)
    assert trace(other, (3, 8, 8)).fingerprint != graph.fingerprint
    assert trace(small_net(), (3, 8, 9)).fingerprint != graph.fingerprint


# ---------------------------------------------------------------------------------------------------------------
# Ways to write a network


def test_a_value_that_is_overwritten_in_place_is_read_from_its_last_writer():
    class Net(nn.Module):
        def forward(self, x):
            y = x * 2
            y.add_(x)
            F.relu(y, inplace=True)
            return y + 1

    graph = trace(Net(), (3, 4, 4))
    assert graph["add"].inputs == ("mul", "input")
    assert graph["relu"].inputs == ("add",)
    assert graph["add:2"].inputs == ("relu",)
    assert graph.overwriting == {"add", "relu"}


def test_an_item_that_is_set_is_an_operation():
    class Net(nn.Module):
        def forward(self, x):
            y = torch.zeros_like(x)
            y[:, 0] = x[:, 1]
            return y

    graph = trace(Net(), (3, 4, 4))
    assert graph.source == "recorded"
    assert graph["set_item"].kind == "overwrite"
    assert graph["output"].inputs == ("set_item",)
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(graph.module(x), Net()(x))


def test_shared_modules_and_shared_weights_belong_to_their_first_use():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1)
            self.b = nn.Conv2d(3, 3, 3, padding=1)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    graph = trace(Net(), (3, 4, 4))
    assert graph["a"].params == ("a.weight", "a.bias")
    assert graph["a:2"].params == ()
    assert graph["b"].params == ("b.bias",)
    assert graph["a:2"].attrs == graph["a"].attrs


def test_functions_on_parameters_and_modules_called_by_forward_are_operations():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 3, 3, 3))
            self.conv = nn.Conv2d(4, 5, 1)
            self.scales = nn.ParameterList([nn.Parameter(torch.rand(5, 1, 1))])

        def forward(self, x):
            return self.conv.forward(F.conv2d(x, self.weight, stride=2)) * self.scales[0]

    graph = trace(Net(), (3, 9, 9))
    first, second = (n for n in graph if n.kind == "conv")
    assert (first.params, first.attrs["stride"], first.shape) == (("weight",), (2, 2), (4, 4, 4))
    assert (second.params, second.attrs["kernel"]) == (("conv.weight", "conv.bias"), (1, 1))
    assert graph["mul"].params == ("scales.0",)


def test_forward_may_take_star_arguments_and_options():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, *inputs, mask=None):
            x = self.conv(inputs[0])
            return x if mask is None else x * mask

    assert [n.kind for n in trace(Net(), (3, 4, 4))] == ["input", "conv", "output"]


@pytest.mark.parametrize(("name", "outputs"), [("googlenet", 3), ("inception_v3", 2)])
def test_in_training_the_auxiliary_heads_are_outputs(name, outputs):
    model = on_meta(name)
    graph = trace(model, (3, 299, 299), training=True)
    assert len(graph.output.inputs) == outputs
    assert graph.output.inputs[0] == "fc"
    assert all(graph[name].shape == (1000,) for name in graph.output.inputs)
    assert graph.unused == ()


def test_a_dictionary_of_outputs_has_its_first_entry_as_the_main_one():
    with torch.device("meta"):
        model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    graph = trace(model, (3, 64, 64))
    assert len(graph.output.inputs) == 2
    assert graph.output.shape == (21, 64, 64)
    assert graph.output.inputs[0] == "interpolate"


@pytest.mark.slow
def test_a_compiled_network_is_read_as_the_one_inside():
    model = small_net()
    assert trace(torch.compile(model), (3, 8, 8)).fingerprint == trace(model, (3, 8, 8)).fingerprint


def test_attention_and_weight_normalisation_trace():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 2, stride=2))
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.layer(self.conv(x).flatten(2).transpose(1, 2))

    graph = trace(Net(), (3, 8, 8))
    assert sum(n.kind == "attention" for n in graph) == 1
    assert graph.output.shape == (16, 8)
    assert graph.unused == ()


# ---------------------------------------------------------------------------------------------------------------
# Looking must not touch


def everything(model: nn.Module) -> list:
    """All that a look could change: values, identities, gradients, modes, hooks, attributes, random states."""
    state = []
    for path, module in model.named_modules():
        held = vars(module)
        state.append((path, module.training, id(module)))
        for key, value in held.items():
            if isinstance(value, dict):
                state.append((path, key, [(k, id(v)) for k, v in value.items()]))
            elif isinstance(value, list | set):
                state.append((path, key, list(map(id, value))))
            else:
                state.append((path, key, id(value)))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        gradient = None if tensor.grad is None else (id(tensor.grad), tensor.grad.numpy().tobytes())
        state.append((name, tensor.detach().numpy().tobytes(), tensor.requires_grad, tensor._version, gradient))
    state.append((torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())))
    return state


class Busy(nn.Module):
    """A network that changes itself, draws random numbers and counts its calls."""

    def __init__(self, fails: bool = False, follows: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.frozen = nn.BatchNorm2d(4).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.plain = torch.ones(4, 1, 1)
        self.seen = []
        self.fails, self.follows = fails, follows

    def forward(self, x):
        x = self.frozen(self.bn(self.conv(x)))
        random.random()
        np.random.rand()
        self.last = x
        self.seen.append(x)
        self.plain.mul_(2)
        if not self.follows:
            self.calls += 1
            if x.sum() > 1e9:
                return x
        noise = torch.rand(4, 1, 1)
        if self.fails:
            x = F.conv2d(x, self.conv.weight)
        return x + noise + self.plain


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("follows", [False, True])
def test_looking_does_not_touch(training, fails, follows):
    model = Busy(fails, follows).train()
    model.frozen.eval()
    if not fails:
        model(torch.rand(2, 3, 8, 8)).sum().backward()
    ran = []
    model.conv.register_forward_hook(lambda *_: ran.append("conv"))
    model.register_forward_pre_hook(lambda *_: ran.append("root"))
    x = torch.rand(1, 3, 8, 8)
    before = everything(model)
    if fails:
        with pytest.raises(ValueError, match="conv2d"):
            trace(model, (3, 8, 8), training=training)
    else:
        graph = trace(model, (3, 8, 8), training=training)
        assert graph.source == ("fx" if follows else "recorded")
        if follows:
            graph.values(x, ["conv"])
    assert ran == []
    assert everything(model) == before


# ---------------------------------------------------------------------------------------------------------------
# Errors


def test_a_layer_that_cannot_take_its_input_is_named_with_the_shapes():
    model = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 8, 3), head=nn.Sequential(nn.Flatten(), nn.Linear(10, 2))))
    with pytest.raises(ValueError, match=r"Sequential cannot be read at 3x8x8: head\.1 \(Linear\) cannot take 1x288: "):
        trace(model, (3, 8, 8))
    with pytest.raises(ValueError, match=r"stem \(Conv2d\) cannot take 1x4x8x8: .*4 channels"):
        trace(model, (4, 8, 8))


def test_networks_of_the_zoo_give_their_own_error():
    with pytest.raises(ValueError, match="lenet5 takes images of 32x32 only, got 28x28; pad or resize them to 32x32"):
        trace(cnnlib.build("lenet5"), (1, 28, 28))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (
            (1, 3, 224, 224),
            r"input_shape must be three whole numbers .*, \(C, H, W\); got \(1, 3, 224, 224\); leave the",
        ),
        ((3, 224), r"got \(3, 224\); for example \(3, 224, 224\)"),
        ((3, 0, 224), r"got \(3, 0, 224\)"),
        (224, "got 224"),
        ("abc", "got 'abc'"),
        (None, "got None"),
    ],
)
def test_an_input_shape_is_channels_height_width(shape, text):
    with pytest.raises(ValueError, match=text):
        trace(small_net(), shape)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.lists(st.integers(-3, 300), max_size=5),
        st.tuples(st.floats(), st.integers(), st.integers()),
        st.text(max_size=4),
        st.none(),
        st.booleans(),
    )
)
def test_no_input_shape_gives_another_error_than_valueerror(shape):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.rand(1, 3, 9, 9))
    if isinstance(shape, list) and tuple(shape) == (3, 9, 9):
        assert trace(model, shape).output.shape == (2,)
    else:
        with pytest.raises(ValueError, match=r"\(C, H, W\)|cannot take"):
            trace(model, shape)


def test_what_is_no_readable_network_is_refused():
    with pytest.raises(
        ValueError, match=r"must be an nn\.Module with Python code, got a class; build the network first"
    ):
        trace(Residual, (3, 8, 8))
    with pytest.raises(ValueError, match="got function"):
        trace(on_meta, (3, 8, 8))
    with pytest.raises(ValueError, match=r"trace the nn\.Module that it was made from"):
        trace(torch.jit.trace(nn.Conv2d(3, 2, 1), torch.rand(1, 3, 4, 4)), (3, 4, 4))
    with pytest.raises(ValueError, match=r"parameter 0\.weight has no shape until .* torch.zeros\(1, 3, 8, 8\) first"):
        trace(nn.Sequential(nn.LazyConv2d(3, 3)), (3, 8, 8))


def test_what_leaves_torch_is_refused():
    class Net(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.detach().numpy() * 2)

    with pytest.raises(ValueError, match=r"forward computes outside torch \(numpy\)"):
        trace(Net(), (3, 4, 4))

    class Deaf(nn.Module):
        def forward(self, x):
            return torch.ones(3)

    with pytest.raises(ValueError, match="does not depend on its input"):
        trace(Deaf(), (3, 4, 4))


def test_a_wrong_node_gives_the_nearest_name():
    with pytest.raises(ValueError, match=r"no node 'block\.conv3'; did you mean 'block\.conv2'\?"):
        trace(small_net(), (3, 8, 8))["block.conv3"]
