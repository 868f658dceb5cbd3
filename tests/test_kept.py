"""What autograd keeps: by hand for small networks, quadratic and linear for a dense block, and nothing is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cnnlib.analysis import growth_table, kept_bytes
from cnnlib.models.densenet import DenseBlock, DenseLayer


def dense(layers: int) -> DenseBlock:
    return DenseBlock(DenseLayer, layers, 16, 12, 0.0)


class Recomputed(DenseBlock):
    """Each layer joins and normalises once more in the pass back."""

    def forward(self, x_0):
        x = [x_0]
        for h_l in self.values():
            x.append(checkpoint(lambda *maps, h=h_l: h(torch.cat(maps, 1)), *x, use_reentrant=False))
        return torch.cat(x, 1)


def test_a_convolution_keeps_its_input_and_a_relu_its_output():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    assert kept_bytes(model, (3, 10, 10)) == 4 * (3 + 8) * 100


def test_what_two_layers_keep_in_one_memory_counts_once():
    # The second convolution keeps what the ReLU keeps.
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert kept_bytes(model, (3, 10, 10)) == 4 * (3 + 8) * 100


@pytest.mark.parametrize("layers", [1, 2, 5, 9])
def test_a_dense_block_keeps_its_concatenations_and_what_the_relu_makes_of_them(layers):
    table = growth_table(16, 12, layers, size=8)
    copied = sum(row.copied for row in table)
    # Of the normalisation and the ReLU, which renew twice as many values, the first keeps its input only.
    assert kept_bytes(dense(layers), (16, 8, 8)) == 4 * 2 * copied
    assert sum(row.renewed for row in table) == 2 * copied


@pytest.mark.parametrize("layers", [2, 5, 9])
def test_a_block_that_computes_twice_keeps_new_maps_only(layers):
    assert kept_bytes(Recomputed(DenseLayer, layers, 16, 12, 0.0), (16, 8, 8)) == 4 * (16 + 12 * (layers - 1)) * 64


def test_looking_does_not_touch_the_network():
    torch.manual_seed(0)
    model = nn.Sequential(dense(2), nn.Dropout(), nn.BatchNorm2d(40)).eval()
    model[0].train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    with torch.no_grad():
        kept_bytes(model, (16, 8, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kept_bytes(nn.Linear(3, 2).requires_grad_(False), (1, 1, 3)), "Linear keeps nothing: no parameter"),
        (lambda: kept_bytes(nn.ReLU(), (3, 0, 3)), r"must be \(C, H, W\) .* at least 1, got 3x0x3"),
        (lambda: kept_bytes(nn.ReLU(), (3, 4, 4), images=0), "images must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
