"""Laws of the flow of signals and gradients: by hand on chains, conserved where it must be, and looking does not touch."""

from __future__ import annotations

import copy
import itertools
import math

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.analysis import flow_during, flow_through, price
from cnnlib.data import Preprocess
from cnnlib.models.towers import WAYS, tower
from cnnlib.plots import draw_flow, draw_flow_during
from cnnlib.plots.gradient_flow import QUANTITIES, by_depth

matplotlib.use("agg")


def batch(n: int = 6, shape=(1, 8, 8), classes: int = 10, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=draw).to(dtype), torch.randint(0, classes, (n,), generator=draw)


def dot(target):
    """A loss that is linear in the answer: each image's own is <answer, target>."""
    return lambda answer, labels: (answer * target).sum() / len(answer)


def chain(layers: int, width: int = 6, make=None) -> nn.Sequential:
    """Linear layers without biases over a flattened image of `width` values."""
    torch.manual_seed(1)
    stack = [nn.Linear(width, width, bias=False) for _ in range(layers)]
    for layer in stack:
        if make:
            make(layer.weight)
    return nn.Sequential(nn.Flatten(), *stack).double()


# --- by hand


def test_on_a_linear_chain_norms_are_those_of_products_of_its_matrices():
    model, target = chain(4), torch.randn(6, dtype=torch.float64)
    x, y = batch(5, (1, 2, 3), dtype=torch.float64)
    flow = flow_through(model, x, y, loss=dot(target))
    weights = [layer.weight.detach() for layer in model[1:]]
    for number, row in enumerate(flow.layers):
        forward = torch.linalg.multi_dot([*reversed(weights[: number + 1]), x.flatten(1).T])
        assert row.value == pytest.approx(float(forward.square().sum(0).mean().sqrt()), rel=1e-12)
        back = target
        for weight in reversed(weights[number + 1 :]):
            back = weight.T @ back
        assert row.gradient == pytest.approx(float(back.norm()), rel=1e-12)
        assert row.depth == number + 1


def test_along_a_singular_vector_the_gradient_shrinks_by_the_product_of_singular_values():
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    values = torch.tensor([0.9, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)

    def same(weight):
        weight.data = (u * values @ u.T).to(weight.dtype)

    model = chain(5, make=same)
    x, y = batch(3, (1, 2, 3), dtype=torch.float64)
    for k in (0, 3):
        rows = flow_through(model, x, y, loss=dot(u[:, k])).layers
        # weights were made in float32
        assert rows[0].gradient / rows[-1].gradient == pytest.approx(float(values[k]) ** 4, rel=1e-5)


def test_every_row_agrees_with_autograd_asked_directly():
    torch.manual_seed(0)
    model = tower("residual", 4, width=4)
    x, y = batch()
    flow = flow_through(model, x, y)
    values, gradients = {}, {}
    twin = copy.deepcopy(model).train()
    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):

            def note(module, _, result, name=name):
                values[name] = result.detach().norm() / math.sqrt(6)
                result.register_hook(lambda g: gradients.__setitem__(name, g.norm() * math.sqrt(6)))

            module.register_forward_hook(note)
    loss = F.cross_entropy(twin(x), y)
    loss.backward()
    assert flow.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert len(values) == 10
    for name in values:
        assert flow[name].value == pytest.approx(float(values[name]), rel=1e-4)
        assert flow[name].gradient == pytest.approx(float(gradients[name]), rel=1e-4)
    conv = twin.body[0].conv1
    row = flow["body.0.conv1"]
    assert row.weight == pytest.approx(float(conv.weight.detach().norm()), rel=1e-5)
    assert row.weight_gradient == pytest.approx(float(conv.weight.grad.norm()), rel=1e-4)
    assert row.relative == row.weight_gradient / row.weight
    assert row.gradient_rms == pytest.approx(row.gradient / math.sqrt(4 * 4 * 4))


# --- conservation and scale


def test_orthogonal_layers_conserve_values_and_gradients():
    model = chain(8, make=nn.init.orthogonal_)
    x, y = batch(5, (1, 2, 3), dtype=torch.float64)
    rows = flow_through(model, x, y, loss=dot(torch.ones(6, dtype=torch.float64))).rows
    for row in rows:
        assert row.value == pytest.approx(rows[0].value, rel=1e-6)
        assert row.gradient == pytest.approx(math.sqrt(6), rel=1e-6)


def test_through_an_identity_shortcut_the_gradient_arrives_whole_when_the_branch_is_silent():
    torch.manual_seed(0)
    model = tower("pre_activation", 6, width=4)
    for unit in model.body:
        nn.init.zeros_(unit.branch[-1].conv.weight)
    rows = flow_through(model, *batch())
    sums = [row for row in rows if row.kind == "add"]
    assert len(sums) == 3
    for row in sums:
        assert row.gradient == pytest.approx(sums[0].gradient, rel=1e-5)
        assert row.value == pytest.approx(sums[0].value, rel=1e-5)


def test_a_layer_times_c_makes_what_follows_c_times_larger_and_gradients_before_it_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), *(nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU()) for _ in range(4)))
    x, y = batch(5, (1, 2, 3))
    loss = dot(torch.ones(6))
    before = flow_through(model, x, y, loss=loss)
    with torch.no_grad():
        model[2][0].weight *= 10
    after = flow_through(model, x, y, loss=loss)
    for number, (one, other) in enumerate(zip(before.layers, after.layers)):
        assert other.value == pytest.approx(one.value * (10 if number >= 1 else 1), rel=1e-4)
        assert other.gradient == pytest.approx(one.gradient * (10 if number < 1 else 1), rel=1e-4)


def test_behind_batch_norm_the_scale_of_weights_does_not_matter_and_their_gradient_shrinks_with_it():
    """Ioffe and Szegedy 2015, section 3.3."""
    torch.manual_seed(0)
    model = tower("batch_norm", 4, width=4).double()
    x, y = batch(dtype=torch.float64)
    before = flow_through(model, x, y)
    with torch.no_grad():
        model.body[0].conv1.weight *= 10
    after = flow_through(model, x, y)
    for one, other in zip(before, after):
        if one.name == "body.0.conv1":
            assert other.weight_gradient == pytest.approx(one.weight_gradient / 10, rel=1e-3)
        else:
            assert other.value == pytest.approx(one.value, rel=1e-3)
            assert other.gradient == pytest.approx(one.gradient, rel=1e-3)


def test_a_loss_times_c_makes_gradients_c_times_larger_and_twice_the_images_change_nothing():
    torch.manual_seed(0)
    model = tower("plain", 3, width=4)
    x, y = batch()
    one = flow_through(model, x, y)
    three = flow_through(model, x, y, loss=lambda answer, labels: 3 * F.cross_entropy(answer, labels))
    twice = flow_through(model, torch.cat([x, x]), torch.cat([y, y]))
    for a, b, c in zip(one, three, twice):
        assert b.gradient == pytest.approx(3 * a.gradient, rel=1e-4)
        assert b.value == pytest.approx(a.value, rel=1e-5)
        assert (c.value, c.gradient) == pytest.approx((a.value, a.gradient), rel=1e-4)


def test_sigmoids_lose_at_least_a_quarter_of_the_weights_norm_a_layer():
    """The derivative of a sigmoid is at most 1/4, so a layer hands back at most its largest singular value by 4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), *(nn.Sequential(nn.Linear(6, 6), nn.Sigmoid()) for _ in range(5)))
    rows = flow_through(model, *batch(5, (1, 2, 3), classes=6)).layers
    for number, (one, other) in enumerate(itertools.pairwise(rows), start=2):
        largest = float(torch.linalg.matrix_norm(model[number][0].weight.detach(), 2))
        assert one.gradient <= other.gradient * largest / 4 * (1 + 1e-5)


# --- any network


class Own(nn.Module):
    """A branch, a layer used twice, tied weights, an in-place function, a parameter read directly, a dead end, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.tied = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.tied.weight = self.twice.weight
        self.relu = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.frozen = nn.BatchNorm2d(4).requires_grad_(False)
        self.drop = nn.Dropout(0.5)
        self.dead = nn.Conv2d(4, 4, 1)
        self.end = nn.Linear(4, 10)

    def forward(self, x):
        x -= 0.1
        x = self.relu(self.stem(x))
        x = self.twice(self.twice(x)) * self.scale + self.tied(x)
        self.dead(x)
        return self.end(self.drop(self.frozen(x)).mean((2, 3)))


class Deciding(nn.Module):
    """Decides by values, which only a recorded pass can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.end = nn.Linear(2, 10)

    def forward(self, x):
        x = self.conv(x)
        if float(x.detach().sum()) > -1e9:
            x = x * 2
        return self.end(x.mean((2, 3)))


def test_a_network_of_the_readers_own_is_read_branch_reuse_and_all():
    torch.manual_seed(0)
    flow = flow_through(Own(), *batch())
    assert [(row.name, row.depth) for row in flow.layers] == [
        ("stem", 1),
        ("twice", 2),
        ("twice:2", 3),
        ("tied", 2),
        ("dead", 4),
        ("end", 4),
    ]
    assert flow["dead"].gradient == 0
    assert flow["twice"].weight is not None
    assert flow["twice:2"].weight is None
    assert flow["frozen"].weight is None
    assert flow["mul"].weight == pytest.approx(2)  # the norm of the four ones
    # In place: the values before are those of the convolution, the values after are cut.
    assert flow["stem"].value > flow["relu"].value
    assert "twice" in repr(flow)
    assert "<table>" in flow._repr_html_()


def test_a_network_that_must_be_recorded_runs_on_every_number_of_images():
    torch.manual_seed(0)
    model = Deciding()
    assert cnnlib.trace(model, (1, 8, 8)).source == "recorded"
    x, y = batch(7)
    flow = flow_through(model, x, y)
    assert flow.loss == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-5)
    assert flow["conv"].gradient > 0


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_joining_layers_has_a_gradient_at_every_layer(way):
    torch.manual_seed(0)
    flow = flow_through(tower(way, 6, width=4), *batch())
    assert all(row.gradient > 0 and row.value > 0 and row.weight > 0 for row in flow.layers)
    stem = 1 + 6 + 1
    assert max(row.depth for row in flow.layers) == stem


def test_auxiliary_heads_add_their_share_of_the_gradient():
    torch.manual_seed(0)
    model = tower("auxiliary", 6, width=4)
    x, y = batch()
    without, with_heads = (flow_through(model, x, y, auxiliary=share) for share in (0.0, 0.3))
    assert with_heads["stem.conv"].gradient > without["stem.conv"].gradient
    assert without["heads.aux1.fc"].gradient == 0
    # Behind the last head only the main answer speaks.
    last = "body3.1.conv"
    assert with_heads[last].gradient == pytest.approx(without[last].gradient, rel=1e-5)
    assert {row.name for row in flow_through(model, x, y, training=False)} == {
        row.name for row in with_heads if not row.name.startswith("heads")
    }


def test_googlenet_of_the_zoo_has_its_heads_in_the_flow():
    torch.manual_seed(0)
    flow = flow_through(cnnlib.build("googlenet_bn"), *batch(2, (3, 64, 64), classes=1000))
    assert {"aux1.fc2", "aux2.fc2", "fc"} <= {row.name for row in flow.layers}
    assert flow["conv1.conv"].gradient > 0


# --- looking does not touch


def snapshot(model: nn.Module):
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.grad for parameter in model.parameters()],
        [id(parameter) for parameter in model.parameters()],
        [dict(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state(),
    )


def same(one, other) -> bool:
    return (
        all(torch.equal(one[0][key], other[0][key]) for key in one[0])
        and one[1:2] == other[1:2]
        and all(a is b for a, b in zip(one[2], other[2]))
        and one[3:5] == other[3:5]
        and torch.equal(one[5], other[5])
    )


def mixed() -> nn.Module:
    torch.manual_seed(0)
    model = Own().train()
    model.frozen.eval()
    model.stem.register_forward_hook(lambda *_: None)
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    return model


def test_the_network_and_the_images_are_afterwards_as_they_were():
    model, (x, y) = mixed(), batch()
    images, before = x.clone(), snapshot(model)
    flow_through(model, x, y)
    list(flow_during(model, [None, model.state_dict()], x, y))
    price(flow_through, model, x, y)
    assert same(snapshot(model), before)
    assert torch.equal(x, images)
    assert x.grad is None


def test_so_they_are_after_an_error_in_the_middle():
    model, (x, y) = mixed(), batch()
    before = snapshot(model)

    def fails(answer, labels):
        torch.rand(3)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        flow_through(model, x, y, loss=fails)
    assert same(snapshot(model), before)


def test_dropout_is_drawn_by_the_seed_alone():
    model, (x, y) = mixed(), batch()
    one = flow_through(model, x, y, seed=1)
    torch.rand(5)
    assert flow_through(model, x, y, seed=1) == one
    assert flow_through(model, x, y, seed=2) != one


# --- during a training


def recipe(**fields):
    return cnnlib.Recipe(
        **{"epochs": 2, "batch_size": 50, "train_images": 200, "lr": 0.05, "preprocess": Preprocess(), **fields}
    )


def test_a_training_that_is_watched_goes_as_it_would_unwatched():
    data = cnnlib.load_data("fashion_mnist_mini")
    x, y = batch(8, (1, 28, 28))
    watched, alone = (tower_from(0) for _ in range(2))
    history = list(cnnlib.fit(alone, data, recipe(), device="cpu"))
    seen = []

    def noting():
        yield None
        for epoch in cnnlib.fit(watched, data, recipe(), device="cpu"):
            seen.append(epoch)
            yield epoch

    flows = list(flow_during(watched, noting(), x, y))
    assert [flow.moment for flow in flows] == [0, 1, 2]
    assert seen == history
    assert all(torch.equal(value, alone.state_dict()[key]) for key, value in watched.state_dict().items())
    assert flows[0] == flow_through(tower_from(0), x, y)
    assert all(row.update is None for row in flows[0])
    assert all(row.update > 0 for flow in flows[1:] for row in flow.layers)


def tower_from(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return tower("residual", 2, width=4)


def test_checkpoints_tell_the_same_as_watching_and_an_update_is_the_change_by_what_was_there():
    x, y = batch(8, (1, 28, 28))
    start, end = tower_from(0).state_dict(), tower_from(0).state_dict()
    end["body.0.conv1.weight"] = 1.5 * end["body.0.conv1.weight"]
    model = tower_from(3)
    before = snapshot(model)
    first, second = flow_during(model, [start, end], x, y)
    assert same(snapshot(model), before)
    assert first == flow_through(tower_from(0), x, y)
    assert second["body.0.conv1"].update == pytest.approx(0.5, rel=1e-5)
    assert second["body.0.conv2"].update == 0


# --- price, refusals, figures


def test_the_price_counts_the_images_of_every_moment():
    model, (x, y) = tower("plain", 2, width=4), batch()
    assert (price(flow_through, model, x, y).forward, price(flow_through, model, x, y).backward) == (6, 6)
    assert price(flow_during, model, [None] * 4, x, y).forward == 24
    with pytest.raises(ValueError, match="is not known before; give a list"):
        price(flow_during, model, iter([None]), x, y)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda m, x, y: flow_through(m, (x * 255).byte(), y),
            "images are floats .* go through the recipe's preprocess",
        ),
        (lambda m, x, y: flow_through(m, x, y[:3]), "one label an image, and at least one: got 6 images"),
        (lambda m, x, y: flow_through(nn.ReLU(), x, y), "has no weights"),
        (lambda m, x, y: flow_through(m, x, y, loss=lambda a, t: a), "the loss must be a single number"),
        (lambda m, x, y: flow_through(m, x, y, loss=lambda a, t: t.float().mean()), "that depends on the network"),
        (lambda m, x, y: flow_through(m, x, y)["stem.cnov"], "did you mean 'stem.conv'"),
        (lambda m, x, y: tower("residul", 4), "no way of joining layers 'residul'; did you mean 'residual'?"),
        (lambda m, x, y: tower("residual", 5), "residual layers come in numbers of 2, 4, 6, ..., got 5"),
        (lambda m, x, y: tower("auxiliary", 4), "auxiliary layers come in numbers of 3, 6, 9, ..., got 4"),
        (lambda m, x, y: tower("dense", 4, activation="tanh"), "dense has the ReLU of its paper"),
        (lambda m, x, y: tower("plain", 4, activation="rleu"), "no activation 'rleu'; did you mean 'relu'?"),
        (lambda m, x, y: by_depth(flow_through(m, x, y), "gradeint"), "no quantity 'gradeint'"),
        (lambda m, x, y: by_depth(flow_through(m, x, y), "update"), "has 'update' above zero at moment 0"),
        (lambda m, x, y: draw_flow_during([], None), "at least one"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_rule(call, said):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=said):
        call(tower("plain", 2, width=4), *batch())


@pytest.fixture
def axes():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.mark.parametrize("what", [name for name in QUANTITIES if name != "update"])
def test_a_drawn_flow_holds_every_layer_at_its_depth(what, axes):
    torch.manual_seed(0)
    flow = flow_through(tower("highway", 2, width=4), *batch())
    assert draw_flow(flow, axes, what=what) is axes
    dots = np.sort(axes.collections[0].get_offsets(), axis=0)
    assert np.allclose(dots, np.sort([(row.depth, getattr(row, what)) for row in flow.layers], axis=0), rtol=1e-9)
    line = axes.lines[0]
    pair = [getattr(row, what) for row in flow.layers if row.depth == 2]
    assert len(pair) == 2
    assert line.get_ydata()[1] == pytest.approx(math.sqrt(pair[0] * pair[1]))
    assert axes.get_yscale() == "log"


def test_a_drawn_training_has_a_cell_for_each_layer_and_moment(axes):
    x, y = batch(8, (1, 28, 28))
    flows = list(flow_during(tower_from(0), [tower_from(seed).state_dict() for seed in range(3)], x, y))
    draw_flow_during(flows, axes, what="update")
    table = axes.images[0].get_array()
    assert table.shape == (4, 3)
    assert np.ma.getmaskarray(table)[:, 0].all()
    assert table[2, 1] == pytest.approx(flows[1].layers[2].update)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_flow_is_the_same():
    torch.manual_seed(0)
    model = tower("residual", 4, width=4)
    x, y = batch()
    here = flow_through(model, x, y)
    there = flow_through(model.cuda(), x, y)
    for one, other in zip(here, there):
        assert other.gradient == pytest.approx(one.gradient, rel=1e-2)
