"""Laws of paths: blocks of any network are found, the binomial law counts them, and along all of them everything adds up."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.analysis import (
    along_path,
    central_lengths,
    gradient_by_path_length,
    path_lengths,
    price,
    residual_blocks,
    share_of_paths,
    unrolled,
)
from cnnlib.analysis.path_gradients import gradients_along
from cnnlib.models import resnet
from cnnlib.models.preact_resnet import UNITS, cifar_preact

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """x + F(x) as a reader may write it: a method of the tensor, in place, or with the terms turned round."""

    def __init__(self, how: str, branch: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.how = how
        self.branch = branch
        self.skip = skip or nn.Identity()

    def forward(self, x):
        if self.how == "in place":
            out = self.branch(x)
            out += self.skip(x)
            return out
        if self.how == "turned":
            return self.skip(x) + self.branch(x)
        if self.how == "method":
            return self.branch(x).add(self.skip(x))
        return torch.add(self.branch(x), self.skip(x), alpha=1)


HOWS = ("in place", "turned", "method", "function")


def linear_net(blocks: int = 4, width: int = 3) -> nn.Sequential:
    """A residual network without any non-linear function or bias, its second block with a projection."""
    torch.manual_seed(3)
    conv = lambda a, b, k: nn.Conv2d(a, b, k, padding=k // 2, bias=False)  # noqa: E731
    units: list[nn.Module] = [conv(3, width, 1)]
    for i in range(blocks):
        out = width + (i == 1)
        branch = nn.Sequential(conv(width, width, 3), conv(width, out, 3))
        units.append(Residual(HOWS[i % 4], branch, conv(width, out, 1) if i == 1 else None))
        width = out
    return nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5, bias=False)).double()


def data(n: int = 4, shape: tuple[int, ...] = SHAPE, classes: int = 5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=generator), torch.randint(classes, (n,), generator=generator)


def trained_like(model: nn.Module) -> nn.Module:
    """Statistics and factors of batch norm as a training leaves them: anything but 0 and 1."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
    return model


# ---------------------------------------------------------------------------------------------------------------
# Finding blocks


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet20", 9),
        ("resnet110", 54),
        ("resnet50", 16),
        ("preact_resnet110", 54),
        ("preact_resnet164", 54),
        ("resnext50_32x4d", 16),
        ("se_resnet50", 16),
        ("vit_b_16", 24),
        ("convnext_tiny", 18),
        ("plain20", 0),
        ("highway19", 0),
        ("vgg_a", 0),
        ("googlenet", 0),
        ("densenet40_k12", 0),
    ],
)
def test_every_network_of_the_zoo_has_the_blocks_that_its_paper_draws(name, modules):
    with torch.device("meta"):
        model = cnnlib.build(name)
    graph = cnnlib.trace(model, cnnlib.card(name).input_shape)
    assert len(residual_blocks(graph)) == modules
    assert path_lengths(graph) == path_lengths(modules)


@pytest.mark.parametrize("unit", UNITS)
def test_every_order_of_bn_relu_and_addition_has_the_same_blocks(unit):
    graph = cnnlib.trace(cifar_preact(14, unit=unit), (3, 32, 32))
    assert [b.name for b in residual_blocks(graph)] == [f"layer{s}.{i}" for s in (1, 2, 3) for i in (0, 1)]


@pytest.mark.parametrize("option", "ABC")
def test_a_skip_is_named_by_what_it_does(option):
    graph = cnnlib.trace(resnet.cifar_resnet(14, shortcut=option), (3, 32, 32))
    kinds = [block.kind for block in residual_blocks(graph)]
    wide = {"A": "padding", "B": "projection", "C": "projection"}[option]
    same = "projection" if option == "C" else "identity"
    assert kinds == [same, same, wide, same, wide, same]


def test_torchvisions_resnet_is_read_like_ours():
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.resnet18()
        ours = cnnlib.build("resnet18")
    found = [residual_blocks(cnnlib.trace(model, (3, 64, 64))) for model in (theirs, ours)]
    for name in ("name", "kind", "shape_in", "shape_out"):
        assert [getattr(b, name) for b in found[0]] == [getattr(b, name) for b in found[1]]


def test_the_branch_and_the_skip_hold_what_lies_between_source_and_sum():
    graph = cnnlib.trace(resnet.cifar_resnet(8, shortcut="B"), (3, 32, 32))
    first, second, _ = residual_blocks(graph)
    assert [graph[n].kind for n in first.branch] == ["conv", "batch_norm", "activation", "conv", "batch_norm"]
    assert [graph[n].kind for n in first.shortcut] == ["identity"]
    assert [graph[n].kind for n in second.shortcut] == ["conv", "batch_norm"]
    assert (second.skip_after, second.branch_after) == ("layer1.0", "layer1.0")
    assert not second.keeps_shape
    assert first.keeps_shape


class Two(nn.Module):
    """Two sums in one module, the second a difference; and a ReLU that writes over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = x + F.relu(self.a(x), inplace=True)
        return x - self.b(x)


class Parallel(nn.Module):
    """(x + f(x)) + g(x): two branches beside each other, three paths."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return (x + self.f(x)) + self.g(x)


class Nested(nn.Module):
    """A skip over two blocks (residual networks of residual networks)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (Residual("turned", nn.Conv2d(3, 3, 3, padding=1)) for _ in range(2))

    def forward(self, x):
        return x + self.two(self.one(x))


class NotOne(nn.Module):
    """Sums that are no blocks: of two computed branches, of a value with itself, of x and a gate, and of a fixed tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.offset = nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, x):
        x = F.relu(self.a(x)) + F.relu(self.b(x))
        x = x + x
        x = x + self.offset
        gate = torch.sigmoid(self.a(x))
        return self.b(x) * gate + x * (1 - gate)


def test_sums_are_blocks_only_where_one_side_is_carried():
    assert [b.name for b in residual_blocks(cnnlib.trace(Two(), SHAPE))] == ["add", "sub"]
    assert residual_blocks(cnnlib.trace(NotOne(), SHAPE)) == ()


def test_a_value_minus_x_is_no_block_since_x_would_arrive_with_the_wrong_sign():
    class Turned(Two):
        def forward(self, x):
            return self.a(x) - x

    assert residual_blocks(cnnlib.trace(Turned(), SHAPE)) == ()


def test_blocks_beside_and_inside_each_other_are_counted_path_by_path():
    parallel, nested = (cnnlib.trace(net, SHAPE) for net in (Parallel(), Nested()))
    assert unrolled(parallel) == ((), ("add",), ("add:2",))
    assert path_lengths(parallel) == [1, 2]
    assert path_lengths(nested) == [1, 1, 2, 1]
    assert unrolled(nested) == ((), ("add",), ("one", "add"), ("two", "add"), ("one", "two", "add"))


# ---------------------------------------------------------------------------------------------------------------
# Counting


@pytest.mark.parametrize("blocks", range(9))
def test_the_binomial_law_is_what_enumeration_counts(blocks):
    counts = [0] * (blocks + 1)
    for taken in itertools.product((0, 1), repeat=blocks):
        counts[sum(taken)] += 1
    assert path_lengths(blocks) == counts
    assert sum(counts) == 2**blocks


def test_unrolling_lists_each_set_of_blocks_once_as_often_as_the_law_says():
    graph = cnnlib.trace(cnnlib.build("resnet20"), (3, 32, 32))
    paths = unrolled(graph)
    assert len(set(paths)) == len(paths) == 2**9
    lengths = [len(path) for path in paths]
    assert [lengths.count(k) for k in range(10)] == path_lengths(9)
    assert lengths == sorted(lengths)


def test_the_paper_counts_of_resnet110():
    assert sum(path_lengths(54)) == 18014398509481984
    assert share_of_paths(54, 19, 35) == pytest.approx(0.9801656732719317, rel=1e-12)
    assert share_of_paths(54, 5, 17) == pytest.approx(0.004536670150778743, rel=1e-12)
    low, high = central_lengths(54, 0.95)
    assert share_of_paths(54, low, high) >= 0.95 > share_of_paths(54, low + 1, high)


# ---------------------------------------------------------------------------------------------------------------
# Everything adds up


def test_a_linear_network_is_the_sum_over_all_its_paths():
    net = linear_net()
    x, _ = data()
    paths = unrolled(cnnlib.trace(net, SHAPE))
    assert len(paths) == 16
    total = sum(along_path(net, x.double(), path) for path in paths)
    torch.testing.assert_close(total, net(x.double()).detach(), rtol=1e-12, atol=1e-12)


def test_a_path_of_a_linear_network_is_the_product_of_what_it_passes():
    net = linear_net()
    x = data()[0].double()
    names = [block.name for block in residual_blocks(cnnlib.trace(net, SHAPE))]
    assert names == ["1", "2", "3", "4"]
    value = net[0](x)
    for i in range(1, 5):
        value = net[i].branch(value) if str(i) in ("2", "4") else net[i].skip(value)
    torch.testing.assert_close(along_path(net, x, ("2", "4")), net[5:](value).detach())


def test_with_a_nonlinear_function_paths_no_longer_add_up():
    net = nn.Sequential(Residual("turned", nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())), nn.ReLU(), nn.Flatten())
    x = data()[0]
    total = sum(along_path(net, x, path) for path in unrolled(cnnlib.trace(net, SHAPE)))
    assert not torch.allclose(total, net(x), atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        linear_net,
        lambda: trained_like(cifar_preact(8)).double(),
        lambda: trained_like(resnet.cifar_resnet(14)).double(),
    ],
    ids=["linear", "pre-activation", "ReLU after the sum"],
)
def test_the_gradients_along_all_paths_add_up_to_the_whole_gradient_in_every_network(make):
    net = make()
    x, y = data()
    graph = cnnlib.trace(net, SHAPE)
    paths = [None, *(frozenset(path) for path in unrolled(graph))]
    found: dict[int, torch.Tensor] = {}
    gradients_along(graph, x, y, paths, lambda number, gradient: found.__setitem__(number, gradient))
    net.eval()
    own = x.double().requires_grad_()
    (whole,) = torch.autograd.grad(F.cross_entropy(net(own), y, reduction="sum"), own)
    torch.testing.assert_close(found[0], whole)
    torch.testing.assert_close(sum(found[i] for i in range(1, len(paths))), whole)


def test_a_sampled_norm_is_the_mean_of_the_images_own_gradients():
    net = linear_net()
    x, y = data()
    rows = gradient_by_path_length(net, x, y, draws=100, batch=3)
    assert [row.length for row in rows] == [0, 1, 2, 3, 4]
    assert [row.paths for row in rows] == [len(row.norms) for row in rows] == path_lengths(4)
    norms = []
    for image, label in zip(x.double(), y):
        image = image[None].requires_grad_()
        answer = net(image)
        # Along one path of a linear network, with the slopes of the loss at the whole network's answer.
        slope = torch.autograd.grad(F.cross_entropy(answer, label[None]), answer, retain_graph=True)[0]
        value = net[0](image)
        for i in range(1, 5):
            value = net[i].branch(value)
        norms.append(torch.autograd.grad(net[5:](value), image, slope)[0].norm().item())
    assert rows[4].norms[0] == pytest.approx(sum(norms) / len(norms))
    assert rows[4].std is None
    assert rows.full > 0
    assert math.fsum(rows.shares()) == pytest.approx(1)
    low, high = rows.effective(0.9)
    assert sum(rows.shares()[low : high + 1]) >= 0.9


def test_samples_depend_on_the_seed_and_not_on_the_batch():
    net = trained_like(cifar_preact(20))
    x, y = data(shape=(3, 8, 8))
    one, two, other = (
        gradient_by_path_length(net, x, y, draws=2, seed=seed, batch=batch)
        for seed, batch in ((0, 100), (0, 1), (1, 100))
    )
    for a, b in zip(one, two):
        assert a.norms == pytest.approx(b.norms, rel=1e-4)
    assert [row.norms for row in one] != [row.norms for row in other]
    assert "share of gradient" in repr(one)
    assert "<table>" in one._repr_html_()


# ---------------------------------------------------------------------------------------------------------------
# The reader's network, and restoration


class Shy(nn.Module):
    """A network that torch.fx cannot follow: forward looks at a value, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual("in place", nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)))
        self.head = nn.Linear(3, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if float(x.sum()) > 1e9:
            raise RuntimeError("too bright")
        return self.head(self.block(x).mean((2, 3)))


def state(model: nn.Module):
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return tensors, modes, hooks, grads, torch.get_rng_state()


def same(one, other) -> bool:
    tensors = all(torch.equal(one[0][key], other[0][key]) for key in one[0])
    grads = all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one[3], other[3]))
    return tensors and grads and one[1] == other[1] and one[2] == other[2] and torch.equal(one[4], other[4])


def mixed(model: nn.Module) -> nn.Module:
    """Some modules in training mode, a hook, and gradients of a pass before."""
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.Conv2d)).eval()
    model.register_forward_hook(lambda *_: None)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


@pytest.mark.parametrize("make", [Shy, lambda: trained_like(cifar_preact(8))], ids=["recorded", "followed"])
def test_the_network_is_afterwards_as_before(make):
    model = mixed(make())
    before, (x, y) = state(model), data()
    gradient_by_path_length(model, x, y, draws=1)
    along_path(model, x, ())
    assert same(before, state(model))


def test_the_network_is_as_before_also_after_an_error_in_the_middle():
    model = mixed(trained_like(cifar_preact(8)))
    before, (x, y) = state(model), data()
    seen = []

    def stop(number, gradient):
        seen.append(number)
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradients_along(cnnlib.trace(model, SHAPE), x, y, [None, frozenset(), frozenset()], stop)
    assert seen == [0, 1, 2]
    assert same(before, state(model))


def test_a_network_that_had_to_be_recorded_gives_the_same_gradients():
    model = Shy()
    x, y = data()
    rows = gradient_by_path_length(model, x, y)
    twin = nn.Sequential(copy.deepcopy(model.block), nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.deepcopy(model.head))
    for a, b in zip(rows, gradient_by_path_length(twin, x, y)):
        assert a.norms == pytest.approx(b.norms, rel=1e-4)


def test_the_price_counts_every_pass_back():
    net, (x, y) = linear_net(), data()
    found = price(gradient_by_path_length, net, x, y, draws=3)
    assert found.forward == 4
    assert found.backward == 4 * (1 + 1 + 3 + 3 + 3 + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_network_on_the_gpu_is_read_there():
    net, (x, y) = linear_net().cuda(), data()
    on_cpu = gradient_by_path_length(copy.deepcopy(net).cpu(), x, y, draws=2)
    for a, b in zip(gradient_by_path_length(net, x, y, draws=2), on_cpu):
        assert a.norms == pytest.approx(b.norms)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: path_lengths(-1), "blocks must be a whole number of at least 0, or a traced network, got -1"),
        (lambda: share_of_paths(3, 2, 5), "lengths must be 0 <= low <= high <= 3, the number of blocks, got 2 and 5"),
        (lambda: central_lengths(3, 95), "share must be above 0 and at most 1, got 95; 0.95 is 95 %"),
        (lambda: unrolled(cnnlib.trace(cnnlib.build("resnet32"), (3, 32, 32))), "15 blocks have 32,768 paths"),
        (lambda: along_path(linear_net(), data()[0], ["5"]), "no residual block '5'"),
        (
            lambda: gradient_by_path_length(cnnlib.build("plain20"), *data(shape=(3, 32, 32))),
            "has no residual block: no addition",
        ),
        (
            lambda: gradient_by_path_length(nn.Sequential(Parallel(), nn.Flatten()), *data()),
            "does not follow the block before it alone",
        ),
        (lambda: gradient_by_path_length(linear_net(), *data(), draws=0), "draws must be at least 1"),
        (lambda: gradient_by_path_length(linear_net(), *data(), batch=0), "batch must be at least 1"),
        (
            lambda: gradient_by_path_length(linear_net(), data()[0].to(torch.uint8), data()[1]),
            r"floating point .* got \(4, 3, 8, 8\) torch.uint8",
        ),
        (lambda: gradient_by_path_length(linear_net(), data()[0], data()[1][:2]), r"labels must be \(4,\) whole"),
    ],
)
def test_what_has_no_answer_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
