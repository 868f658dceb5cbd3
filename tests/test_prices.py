"""Laws of the price of a look: it counts what goes through, the network stays as it was, and it refuses to guess."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

import cnnlib
from cnnlib.analysis import cost, price
from cnnlib.analysis.prices import Passes, Price, priced
from cnnlib.progress import progress


@priced(lambda model, images: Passes((1, 32, 32), forward=images, backward=10))
def looks(model, images):
    """An instrument for these tests."""


def test_the_price_counts_the_passes_and_two_forward_for_each_back():
    model = cnnlib.build("lenet5")
    found = price(looks, model, 100)
    assert (found.forward, found.backward) == (100, 10)
    assert found.macs == 120 * cost(model, (1, 32, 32)).macs
    assert found.seconds > 0
    assert "100 images forward, 10 back" in str(found)


def test_asking_for_the_price_leaves_the_network_as_it_was():
    model = cnnlib.build("resnet20").train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    @priced(lambda model: Passes((3, 32, 32), forward=4, backward=4))
    def look(model):
        """Another."""

    price(look, model)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_what_is_not_priced_is_refused_by_name():
    with pytest.raises(ValueError, match="'cost' does not say what it sends through a network"):
        price(cost, cnnlib.build("lenet5"), (1, 32, 32))


@pytest.mark.parametrize(("seconds", "words"), [(1.25, "1.2 s"), (119, "119.0 s"), (120, "2.0 min"), (7200, "2.0 h")])
def test_a_duration_is_said_in_its_own_unit(seconds, words):
    assert f"about {words} here" in str(Price(1, 0, 10**9, seconds))


def test_progress_hands_on_every_step_and_says_nothing_of_a_quick_one(capsys):
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert list(itertools.islice(progress(itertools.count(), "counting on"), 2)) == [0, 1]
    assert capsys.readouterr().err == ""
