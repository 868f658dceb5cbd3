"""Laws of loss surfaces: filters keep their length, scales do not matter, the middle is the network, nothing is touched."""

from __future__ import annotations

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.analysis import direction_to, grid, loss_surface, price, random_directions, trajectory
from cnnlib.analysis.loss_surfaces import BATCH_NORM, Direction, LossSurface, Point, filters, stratified_mean
from cnnlib.data import Preprocess, Split

SHAPE = (3, 8, 8)
POLICIES = list(BATCH_NORM)


def some_split(images: int = 24, shape=SHAPE, classes: int = 4) -> Split:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, *shape), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.arange(images) * classes // images)  # sorted by class, as some sets are


SPLIT = some_split()


class Own(nn.Module):
    """A branch, a layer that runs twice, operations in place, a grouped and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.shared = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False)
        self.wide_norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 2, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.scale = nn.Parameter(torch.ones(1, 6, 1, 1))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        x = self.shared(torch.relu_(self.shared(x)))
        x = x + self.wide_norm(self.wide(x))
        x = self.up(self.down(x)) * self.scale
        return self.head(self.drop(x.mean((2, 3))))


def own(seed: int = 0) -> Own:
    torch.manual_seed(seed)
    model = Own().double()
    with torch.no_grad():
        for norm in (model.stem_norm, model.wide_norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
    return model.eval()


def look(model, **options) -> LossSurface:
    return loss_surface(model, options.pop("split", SPLIT), **{"xs": grid(3), "images": None, **options})


def plain_loss(model, split=SPLIT, preprocess=Preprocess()) -> tuple[float, float]:  # noqa: B008
    with torch.no_grad():
        scores = model(preprocess(split.images).to(next(model.parameters()).dtype))
    wrong = (scores.argmax(1) != split.labels).double().mean()
    return float(F.cross_entropy(scores, split.labels)), float(wrong)


# --- directions


def test_each_filter_of_a_direction_has_the_length_of_the_networks_filter_and_nothing_else_moves():
    model = own()
    for direction in random_directions(model, SHAPE):
        moved = {"stem.weight", "shared.weight", "wide.weight", "down.weight", "up.weight", "head.weight"}
        assert set(direction.steps) == moved
        for name, step in direction.steps.items():
            how = {"transposed": True, "groups": 2} if name == "up.weight" else {}
            weight = model.get_parameter(name).detach()
            assert torch.allclose(filters(step, **how).norm(dim=1), filters(weight, **how).norm(dim=1), rtol=1e-12)
            assert not torch.allclose(step, weight)


def test_a_filter_is_what_one_output_map_is_computed_with():
    for layer in (nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Linear(4, 6)):
        transposed = isinstance(layer, nn.ConvTranspose2d)
        rows = filters(layer.weight.detach(), transposed, getattr(layer, "groups", 1))
        assert rows.shape[0] == 6
        x = torch.rand(1, 4) if isinstance(layer, nn.Linear) else torch.rand(1, 4, 5, 5)
        for number in range(6):
            output = layer(x)[0, number].sum()
            (gradient,) = torch.autograd.grad(output, layer.weight)
            touched = filters(gradient, transposed, getattr(layer, "groups", 1)).abs().sum(1)
            assert touched.nonzero().flatten().tolist() == [number]


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet110", "plain110", "densenet40_k12", "small_alexnet"])
def test_the_filters_of_a_network_of_the_zoo_keep_their_length(name):
    model, shape = cnnlib.build(name), cnnlib.models.zoo.card(name).input_shape
    (direction,) = random_directions(model, shape, 1, seed=3)
    layers = {m.weight: n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert set(direction.steps) == {f"{path}.weight" for path in layers.values()}
    for path, step in direction.steps.items():
        weight = model.get_parameter(path).detach()
        assert torch.allclose(filters(step).norm(dim=1), filters(weight).norm(dim=1), rtol=2e-6)


def test_a_filter_of_zeros_does_not_move():
    model = own()
    with torch.no_grad():
        model.stem.weight[2] = 0
    for direction in random_directions(model, SHAPE):
        assert direction.steps["stem.weight"][2].abs().max() == 0
        assert direction.steps["stem.weight"][1].abs().max() > 0


def test_layer_normalisation_keeps_the_length_of_each_layer_and_none_leaves_the_draw():
    model = own()
    (by_layer,) = random_directions(model, SHAPE, 1, normalise="layer")
    (raw,) = random_directions(model, SHAPE, 1, normalise="none")
    for name, step in by_layer.steps.items():
        assert step.norm().item() == pytest.approx(model.get_parameter(name).norm().item(), rel=1e-12)
        assert torch.allclose(step / step.norm(), raw.steps[name] / raw.steps[name].norm())


def test_the_first_of_two_directions_is_the_one_that_comes_alone_and_a_seed_repeats_them():
    one, two = random_directions(own(), SHAPE, 1, seed=5), random_directions(own(), SHAPE, 2, seed=5)
    other = random_directions(own(), SHAPE, 1, seed=6)
    for name in one[0].steps:
        assert torch.equal(one[0].steps[name], two[0].steps[name])
        assert not torch.allclose(one[0].steps[name], two[1].steps[name])
        assert not torch.allclose(one[0].steps[name], other[0].steps[name])


# --- what the method is for


def _scaled(model: Own, layer: str, norm: str, factors: torch.Tensor) -> Own:
    """The same function with other weights: filters scaled, and the statistics of the norm behind them with them."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_submodule(layer).weight.mul_(factors.view(-1, 1, 1, 1))
        other.get_submodule(norm).running_mean.mul_(factors)
        other.get_submodule(norm).running_var.mul_(factors**2)
    return other


@pytest.mark.parametrize("policy", POLICIES)
def test_rescaling_filters_before_batch_norm_changes_no_point_of_the_surface(policy):
    model = own()
    for norm in (model.stem_norm, model.wide_norm):
        norm.eps = 1e-14
    factors = torch.tensor([10, 0.1, 2, 1, 5, 0.5, 3, 0.3], dtype=torch.float64)
    other = _scaled(_scaled(model, "stem", "stem_norm", factors), "wide", "wide_norm", factors.flip(0))
    assert plain_loss(other) == pytest.approx(plain_loss(model), rel=1e-9)
    surfaces = [look(net, batch_norm=policy, batch=24).array() for net in (model, other)]
    assert np.allclose(*surfaces, rtol=1e-8)
    raw = [
        look(net, batch_norm=policy, batch=24, directions=random_directions(net, SHAPE, normalise="none")).array()
        for net in (model, other)
    ]
    assert not np.allclose(*raw, rtol=1e-2)


def test_a_layer_times_ten_and_the_next_one_through_ten_is_the_same_surface():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(10)
        other[0].bias.mul_(10)
        other[3].weight.div_(10)
    assert np.allclose(look(model).array(), look(other).array(), rtol=1e-10)
    raw = [look(net, directions=random_directions(net, SHAPE, normalise="none")).array() for net in (model, other)]
    assert not np.allclose(*raw, rtol=1e-2)


# --- the points


def test_the_middle_of_the_surface_is_the_network_as_it_is():
    model = own()
    centre = look(model).centre
    assert (centre.x, centre.y) == (0, 0)
    assert (centre.loss, centre.error) == pytest.approx(plain_loss(model), rel=1e-10)


def test_every_point_is_what_the_moved_network_gives():
    model = own()
    ways = random_directions(model, SHAPE, seed=4)
    surface = look(model, xs=(-0.5, 0.25), ys=(-1.0, 0.0, 2.0), seed=4)
    assert surface.array().shape == (3, 2)
    for point in surface:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for way, step in zip(ways, (point.x, point.y)):
                for name, d in way.steps.items():
                    moved.get_parameter(name).add_(d, alpha=step)
        assert (point.loss, point.error) == pytest.approx(plain_loss(moved), rel=1e-9)


def test_batch_statistics_are_those_of_training_mode_without_dropout():
    model = own()
    trained = copy.deepcopy(model)
    trained.stem_norm.train()
    trained.wide_norm.train()
    centre = look(model, xs=(0.0,), batch_norm="batch", batch=24).centre
    assert centre.loss == pytest.approx(plain_loss(trained)[0], rel=1e-10)
    assert centre.batch_norm == "batch"


def test_statistics_estimated_anew_are_the_mean_over_the_batches_and_do_not_depend_on_the_old_ones():
    model = own()
    surface = look(model, directions=1, batch_norm="re-estimated", batch=24)
    forgot = copy.deepcopy(model)
    forgot.stem_norm.reset_running_stats()
    forgot.wide_norm.reset_running_stats()
    assert look(forgot, directions=1, batch_norm="re-estimated", batch=24).points == surface.points
    by_hand = copy.deepcopy(forgot)
    for norm in (by_hand.stem_norm, by_hand.wide_norm):
        norm.momentum = None
        norm.train()
    plain_loss(by_hand)
    by_hand.eval()
    assert surface.centre.loss == pytest.approx(plain_loss(by_hand)[0], rel=1e-10)


def test_a_point_does_not_remember_the_points_before_it():
    model = own()
    for policy in POLICIES:
        along = look(model, directions=1, batch_norm=policy)
        alone = look(model, directions=1, batch_norm=policy, xs=(1.0,))
        assert along.points[-1] == alone.points[0]


def test_without_batch_norm_the_policy_is_none_and_changes_nothing():
    model = cnnlib.build("lenet5").double()
    split = some_split(8, (1, 32, 32))
    found = [look(model, split=split, directions=1, batch_norm=policy) for policy in POLICIES]
    assert {point.batch_norm for surface in found for point in surface} == {"none"}
    assert found[0].points == found[1].points == found[2].points


@pytest.mark.parametrize("policy", POLICIES)
def test_exchanging_the_directions_transposes_the_surface_and_turning_one_round_mirrors_it(policy):
    model = own()
    d, e = random_directions(model, SHAPE)
    surface, swapped, mirrored = (
        look(model, directions=ways, batch_norm=policy).array() for ways in ((d, e), (e, d), (-d, e))
    )
    assert np.array_equal(swapped, surface.T)
    assert np.array_equal(mirrored, surface[:, ::-1])
    assert grid(7)[::-1] == tuple(-x for x in grid(7))


def test_the_same_seed_gives_the_same_surface_and_another_seed_another():
    model = own()
    first = look(model, images=8, seed=1)
    torch.rand(3)
    assert look(model, images=8, seed=1) == first
    assert look(model, images=8, seed=2).array().tolist() != first.array().tolist()


@pytest.mark.parametrize(("name", "options"), [
    ("resnet20", {}), ("plain20", {}), ("resnet56", {}), ("resnet110", {}), ("plain110", {}), ("densenet40_k12", {}),
])  # fmt: skip
def test_networks_with_and_without_shortcuts_have_a_surface(name, options):
    model = cnnlib.build(name, **options)
    before = copy.deepcopy(model.state_dict())
    split = some_split(8, (3, 32, 32))
    surface = look(model, split=split, directions=1, xs=(0.0, 0.5))
    assert surface.centre.loss == pytest.approx(plain_loss(model.eval(), split)[0], rel=1e-4)
    assert surface.points[1].loss != surface.centre.loss
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_line_to_another_network_ends_at_its_loss_with_its_statistics():
    model, other = own(), own(seed=9)
    line = look(model, directions=[direction_to(model, other.state_dict())], xs=(0.0, 0.5, 1.0))
    assert line.points[0].loss == pytest.approx(plain_loss(model)[0], rel=1e-10)
    assert line.points[-1].loss == pytest.approx(plain_loss(other)[0], rel=1e-10)


def test_a_loss_beyond_all_numbers_is_infinite_and_its_answers_are_wrong():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    beyond = Direction({"1.weight": torch.full_like(model[1].weight, 1e308).detach()}, "far")
    far = look(model, directions=[beyond], xs=(0, 1))
    assert far.points[0].loss < 10
    assert (far.points[1].loss, far.points[1].loss_se, far.points[1].error) == (math.inf, math.inf, 1.0)
    again = LossSurface.from_dict(json.loads(far.to_json()))
    assert again == far
    assert "Infinity" not in far.to_json()


# --- the standard error


def test_over_all_possible_draws_the_estimate_is_right_and_its_squared_standard_error_too():
    values = torch.tensor([1.0, 5.0, 2.0, 8.0, 3.0, 3.5, 0.0, 10.0, 4.0])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    population = torch.bincount(labels)
    draws = [
        torch.tensor(a + b) for a in itertools.combinations(range(4), 2) for b in itertools.combinations(range(4, 9), 3)
    ]
    found = np.array([stratified_mean(values[d], labels[d], population) for d in draws])
    assert found[:, 0].mean() == pytest.approx(float(values.mean()))
    assert (found[:, 1] ** 2).mean() == pytest.approx(found[:, 0].var())


def test_with_one_image_of_a_class_the_plain_standard_error_is_given():
    values, labels = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([0, 0, 1])
    mean, se = stratified_mean(values, labels, torch.tensor([4, 2]))
    assert mean == pytest.approx(7 / 3)
    assert se == pytest.approx(math.sqrt(0.5 * float(values.double().var()) / 3))


def test_a_look_at_all_images_has_no_standard_error_and_one_at_some_has():
    model = own()
    whole, part = look(model), look(model, images=12)
    assert all(point.loss_se == point.error_se == 0 for point in whole)
    assert all(point.loss_se > 0 for point in part)
    assert (part.images, part.population) == (12, 24)
    # The estimates are those of the losses of the images that were drawn.
    drawn = SPLIT.subset(12, seed=0)
    with torch.no_grad():
        losses = F.cross_entropy(model(Preprocess()(drawn.images).double()), drawn.labels, reduction="none")
    by_hand = [losses[drawn.labels == c] for c in range(4)]
    variance = sum((1 / 16) * (1 - 3 / 6) * float(own_class.var()) / 3 for own_class in by_hand)
    assert part.centre.loss == pytest.approx(float(losses.mean()), rel=1e-10)
    assert part.centre.loss_se == pytest.approx(math.sqrt(variance), rel=1e-10)


# --- the way of training


def _steps(model: Own, coordinates) -> tuple[list[dict], tuple[Direction, Direction]]:
    ways = random_directions(model, SHAPE, seed=8)
    states = []
    for place in coordinates:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for way, step in zip(ways, place):
            for name, d in way.steps.items():
                state[name] = state[name] + step * d
        states.append(state)
    return states, ways


PATH = [(1.0, 0.5), (0.75, 0.75), (0.5, -0.5), (0.25, -0.125), (0.0, 0.0)]


def test_a_plane_explains_a_path_that_lies_in_it_and_holds_every_checkpoint():
    model = own()
    states, _ = _steps(model, PATH)
    found = trajectory(model, SHAPE, states)
    assert sum(found.explained) == pytest.approx(1, abs=1e-12)
    assert found.positions[-1] == (0, 0)
    assert found.positions[0][0] > 0
    for state, position in zip(states, found.positions):
        for name in found.directions[0].steps:
            there = model.get_parameter(name) + sum(p * d.steps[name] for p, d in zip(position, found.directions))
            assert torch.allclose(there, state[name], atol=1e-10)
    x, y = found.positions[1]
    checkpoint = copy.deepcopy(model)
    checkpoint.load_state_dict(states[1])
    at = look(model, directions=found.directions, xs=(x,), ys=(y,)).points[0]
    assert at.loss == pytest.approx(plain_loss(checkpoint)[0], rel=1e-9)
    (xs, ys) = found.grids(9)
    assert all(xs[0] < p[0] < xs[-1] and ys[0] < p[1] < ys[-1] for p in found.positions)


def test_the_principal_components_are_those_of_a_singular_value_decomposition():
    states = [own(seed).state_dict() for seed in range(5)]
    model = own(4)
    found = trajectory(model, SHAPE, states)
    names = list(found.directions[0].steps)
    rows = np.stack([np.concatenate([s[n].numpy().ravel() for n in names]) for s in states])
    _, values, components = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    assert np.allclose(found.explained, (values**2 / (values**2).sum())[:2])
    for direction, component, along in zip(found.directions, components, zip(*found.positions)):
        mine = np.concatenate([direction.steps[n].numpy().ravel() for n in names])
        assert abs(mine @ component) == pytest.approx(1)
        assert np.allclose(along, (rows - rows[-1]) @ mine)
        assert direction.length == pytest.approx(1)


def test_checkpoints_on_a_line_span_no_plane():
    model = own()
    states, _ = _steps(model, [(1.0, 0.0), (0.5, 0.0), (0.0, 0.0)])
    with pytest.raises(ValueError, match="lie on a line and span no plane; use components=1"):
        trajectory(model, SHAPE, states)
    line = trajectory(model, SHAPE, states, components=1)
    assert line.explained == pytest.approx((1.0,))


# --- looking does not touch


class Breaks:
    """A criterion that fails after some batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def loss(self, output, target):
        return F.cross_entropy(output, target)

    def scores(self, output):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("in the middle")
        return output


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("breaks", [False, True])
def test_the_network_is_afterwards_bit_for_bit_as_before_also_after_an_error(policy, breaks):
    model = own()
    model.train()
    model.wide_norm.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.stem.weight.requires_grad_(False)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    held = {name: (id(t), t._version, t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    if breaks:
        with pytest.raises(RuntimeError, match="in the middle"):
            look(model, batch_norm=policy, criterion=Breaks(4))
    else:
        look(model, batch_norm=policy)
    after = model.state_dict(keep_vars=True)
    assert {name: (id(t), t._version) for name, t in after.items()} == {n: h[:2] for n, h in held.items()}
    assert all(torch.equal(t, held[name][2]) for name, t in after.items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.down.weight.grad is None
    assert not model.stem.weight.requires_grad
    assert not seen
    assert len(model._forward_hooks) == 1
    assert model.stem_norm.momentum == 0.1


def test_a_criterion_of_ones_own_is_averaged_over_the_images():
    from cnnlib.training.parts import CrossEntropy

    model = own()
    smooth = look(model, directions=1, xs=(0.0,), criterion=CrossEntropy(label_smoothing=0.1)).centre
    with torch.no_grad():
        scores = model(Preprocess()(SPLIT.images).double())
    assert smooth.loss == pytest.approx(float(F.cross_entropy(scores, SPLIT.labels, label_smoothing=0.1)), rel=1e-9)


def test_the_price_counts_the_points_and_the_second_pass_for_statistics():
    model = own()
    assert price(loss_surface, model, SPLIT, xs=grid(3), images=10).forward == 90
    assert price(loss_surface, model, SPLIT, directions=1, xs=grid(3), images=10).forward == 30
    twice = price(loss_surface, model, SPLIT, directions=1, xs=grid(3), images=10, batch_norm="re-estimated")
    assert twice.forward == 60


def test_the_rows_as_a_table_name_policy_and_images():
    line, plane = look(own(), directions=1, images=12, name="mine"), look(own(), xs=grid(9))
    assert str(line).startswith("mine: 3 points; 12 of 24 images; batch norm: running")
    assert len(str(line).splitlines()) == 3 + 3
    assert len(str(plane).splitlines()) < 10
    assert "<table>" in plane._repr_html_()
    assert plane.lowest.loss == plane.array().min()
    assert isinstance(plane.points[0], Point)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_the_surface_is_the_same():
    model = own()
    here = look(model).array()
    there = look(model.cuda()).array()
    assert np.allclose(here, there, rtol=1e-6)


class Functional(nn.Module):
    """A batch norm that is called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        return F.batch_norm(self.conv(x), self.mean, self.var).mean((2, 3))


def _forgetful():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.AvgPool2d(6), nn.Flatten()
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: look(own(), batch_norm="batches"), "no batch-norm policy 'batches'; did you mean 'batch'"),
        (lambda: look(own(), directions=3), "one or two directions, got 3"),
        (lambda: look(own(), directions=1, ys=(0.0,)), "ys belong to a second direction, and there is one"),
        (lambda: look(own(), xs=(1.0, 0.0)), r"xs must be finite numbers that rise, got \(1.0, 0.0\)"),
        (lambda: look(own(), images=1), "images must be a whole number of at least 2, got 1"),
        (lambda: look(own(), seed=-1), "seed must be a whole number of at least 0, got -1"),
        (lambda: look(own(), directions=["x"]), "must be 1, 2 or a sequence of Direction, got 'x'"),
        (
            lambda: look(own(), directions=random_directions(nn.Sequential(nn.Conv2d(3, 4, 3)), SHAPE)),
            "no parameter or buffer '0.weight'",
        ),
        (
            lambda: look(own(), directions=[Direction({"stem.weight": torch.zeros(1)}, "short")]),
            r"stem.weight has shape \(8, 3, 3, 3\), the direction \(1,\)",
        ),
        (
            lambda: look(nn.Sequential(nn.Conv2d(3, 4, 3))),
            r"must return scores \(N, classes\).*got shape \(24, 4, 6, 6\)",
        ),
        (lambda: look(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))), r"labels 0 to 3 of the split, got shape"),
        (
            lambda: look(Functional(), batch_norm="batch"),
            "batch_norm is called as a function; use batch_norm='running'",
        ),
        (lambda: look(_forgetful()), "needs stored statistics, and 1 keeps none; use batch_norm='batch'"),
        (lambda: random_directions(nn.Sequential(nn.ReLU()), SHAPE), "no weights of convolutions or matrices to move"),
        (lambda: random_directions(own(), SHAPE, normalise="filters"), "did you mean 'filter'"),
        (
            lambda: direction_to(own(), {}),
            r"the state is not of this network: scale is missing, and has shape \(1, 6, 1, 1\) here",
        ),
        (lambda: trajectory(own(), SHAPE, [own().state_dict()] * 2), "2 components need at least 3 checkpoints, got 2"),
        (lambda: trajectory(own(), SHAPE, [], components=3), "components must be 1 .* or 2 .*, got 3"),
        (lambda: trajectory(own(), SHAPE, [own().state_dict()] * 3), "checkpoints do not differ in their weights"),
        (
            lambda: trajectory(own(1), SHAPE, [own(s).state_dict() for s in range(3)]),
            "must hold the last checkpoint, and stem.weight differs",
        ),
        (lambda: look(own()).array("losses"), "no column 'losses'; did you mean 'loss'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_rule_and_a_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_network_with_batch_norm_as_a_function_or_without_statistics_is_read_where_it_can_be():
    assert look(Functional().double(), directions=1).centre.batch_norm == "running"
    assert look(_forgetful().double(), directions=1, batch_norm="batch").centre.batch_norm == "batch"
