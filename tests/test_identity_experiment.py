"""Laws of the identity experiment: it repeats itself, its losses mean what they say, and the shortcut makes it easy."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

from cnnlib.analysis import identity_runs, learn_identity
from cnnlib.plots import draw_identity

matplotlib.use("agg")


@pytest.fixture(scope="module")
def runs():
    return identity_runs((1, 2), seeds=range(5), steps=150)


def test_residual_blocks_learn_the_identity_and_plain_ones_have_not_come_near_it(runs):
    """He et al. 2015, section 3.1; the bounds are far from what five seeds gave."""
    final = {(run.way, run.blocks, run.seed): run.losses[-1] for run in runs}
    for blocks in (1, 2):
        for seed in range(5):
            assert final["residual", blocks, seed] < 0.01
            assert final["plain", blocks, seed] > 0.05


def test_more_plain_blocks_are_harder(runs):
    one, two = (np.mean([run.losses[-1] for run in runs if (run.way, run.blocks) == ("plain", n)]) for n in (1, 2))
    assert two > one


def test_it_repeats_itself_bit_for_bit_and_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    one = learn_identity("residual", 2, seeds=(3, 4), steps=20)
    torch.rand(7)
    state_after = torch.get_rng_state()
    assert learn_identity("residual", 2, seeds=(3, 4), steps=20) == one
    assert not torch.equal(state, state_after)  # by the line above alone
    assert torch.equal(torch.get_rng_state(), state_after)


def test_a_seed_has_numbers_of_its_own_whoever_is_trained_beside_it():
    (alone,) = learn_identity("plain", 1, seeds=(4,), steps=20)
    beside = learn_identity("plain", 1, seeds=(9, 4), steps=20)[1]
    assert alone.losses == pytest.approx(beside.losses, rel=1e-4)
    assert learn_identity("plain", 1, seeds=(5,), steps=20)[0].losses != alone.losses


@pytest.mark.parametrize("way", ["plain", "residual"])
def test_it_is_what_modules_of_torch_and_its_sgd_do(way):
    """One block, one seed, built from nn.Linear and nn.BatchNorm1d."""
    steps, width, seed = 12, 8, 2
    draw = torch.Generator().manual_seed(seed)
    linear = [nn.Linear(width, width, bias=False) for _ in range(2)]
    norm = [nn.BatchNorm1d(width) for _ in range(2)]
    for layer in linear:
        layer.weight.data = (torch.randn(width, width, generator=draw) * math.sqrt(2 / width)).T.contiguous()
    parameters = [p for module in (*linear, *norm) for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.1, 0.9)
    losses = []
    for _ in range(steps + 1):
        x = torch.randn(64, width, generator=draw).relu()
        f = norm[1](linear[1](norm[0](linear[0](x)).relu()))
        y = (f + x if way == "residual" else f).relu()
        loss = (y - x).square().mean() / x.square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (run,) = learn_identity(way, 1, seeds=(seed,), steps=steps, width=width)
    assert run.losses == pytest.approx(losses, rel=1e-3)


def test_runs_say_what_they_are_and_when_they_were_good_enough(runs):
    assert [(run.way, run.blocks, run.seed) for run in runs[:6]] == [
        *(("plain", 1, seed) for seed in range(5)),
        ("residual", 1, 0),
    ]
    assert all(len(run.losses) == 151 for run in runs)
    run = next(run for run in runs if run.way == "residual")
    step = run.steps_to(0.1)
    assert run.losses[step] <= 0.1 < min(run.losses[:step])
    assert run.steps_to(-1.0) is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: learn_identity("plane", 1), "no way 'plane'; did you mean 'plain'?"),
        (lambda: learn_identity("plain", 0), "blocks must be a whole number of at least 1, got 0"),
        (lambda: learn_identity("plain", 1, seeds=()), "the number of seeds must be a whole number of at least 1"),
        (lambda: learn_identity("plain", 1, steps=1.5), "steps must be a whole number of at least 1, got 1.5"),
        (lambda: learn_identity("plain", 1, lr=0), "lr must be a number above 0, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_rule(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_figure_has_a_curve_a_group_with_the_mean_of_its_logarithms(runs):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    assert draw_identity(runs, ax) is ax
    assert [line.get_label() for line in ax.lines] == [
        "plain, 1 block",
        "residual, 1 block",
        "plain, 2 blocks",
        "residual, 2 blocks",
    ]
    drawn = ax.lines[2].get_ydata()
    expected = np.exp(np.mean([np.log(run.losses) for run in runs if (run.way, run.blocks) == ("plain", 2)], axis=0))
    assert drawn == pytest.approx(expected)
    assert len(ax.collections) == 4
    plt.close(figure)
