"""Folding changes the speed of a network and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.analysis import folded


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network with statistics and weights as after training: nothing at its neutral value."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = 0.4 * torch.randn(p.shape, generator=generator) + (p.ndim == 1)
    for norm in model.modules():
        if getattr(norm, "running_mean", None) is not None:
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.3, 3, generator=generator)
    return model.eval()


def apart(model: nn.Module, twin: nn.Module, x: torch.Tensor) -> float:
    """The largest difference of the outputs, relative to the largest output."""
    with torch.no_grad():
        expected, got = model(x), twin(x)
    return float((expected - got).abs().max() / expected.abs().max())


def images(channels: int = 3, size: int = 8, number: int = 3) -> torch.Tensor:
    return torch.randn(number, channels, size, size, generator=torch.Generator().manual_seed(1)).double()


class Chain(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class Branch(nn.Module):
    """The norm and the sum both read the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


class SameTwice(nn.Module):
    """One convolution and one norm, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(F.relu(self.norm(self.conv(x)))))


class OneConvTwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.two(self.conv(self.one(self.conv(x))))


class TwoConvsOneNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.one(x)) * self.norm(self.two(x))


class TiedWeights(nn.Module):
    """Two convolutions hold the same weights; only one has a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(F.relu(self.norm(self.one(x))))


class ReadsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv.weight.mean()


class InPlace(nn.Module):
    """What the convolution computed is overwritten before the norm reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        y.add_(1)
        return self.norm(y)


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        norm = self.norm
        return F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, False)


class Views(nn.Module):
    """Flattens with `view`, which needs the maps in the usual order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 5)

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)))
        return self.fc(y.view(y.size(0), -1))


class Decides(nn.Module):
    """Forward depends on values, so that the graph is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        if x.abs().sum() < 0:
            return x
        return F.relu(self.norm(self.conv(x)))


class Listed(nn.Module):
    """Forward reaches its layers through a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.steps = [self.conv, self.norm]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


FOLD = {
    "plain": Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    "no bias": Chain(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.1)),
    "no scale": Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
    "groups": Chain(nn.Conv2d(3, 6, 3, groups=3, dilation=2, stride=2), nn.BatchNorm2d(6)),
    "same padding": Chain(nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"), nn.BatchNorm2d(4)),
    "transposed": Chain(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)),
    "transposed in groups": Chain(nn.ConvTranspose2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)),
    "linear": Chain(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)),
    "linear without scale": Chain(nn.Flatten(), nn.Linear(192, 5, bias=False), nn.BatchNorm1d(5, affine=False)),
    "three axes": Chain(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4)),
    "the same twice": SameTwice(),
    "two convolutions, one norm": TwoConvsOneNorm(),
    "tied weights": TiedWeights(),
    "view": Views(),
    "recorded": Decides(),
    "through a list": Listed(),
}
KEEP = {
    "first": (Chain(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), "follows input"),
    "behind a function": (Chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), "follows layers.1"),
    "no statistics": (Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), "no statistics"),
    "another axis": (
        Chain(nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3)),
        "outputs along another axis",
    ),
    "a branch": (Branch(), "read by others too"),
    "one convolution, two norms": (OneConvTwoNorms(), "also runs before something else"),
    "weights read elsewhere": (ReadsWeights(), "computed, or read elsewhere"),
    "computed weights": (
        Chain(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        "computed, or read elsewhere",
    ),
    "overwritten in place": (InPlace(), "follows add"),
    "a function": (Functions(), "called as a function"),
}


@pytest.mark.parametrize("name", FOLD)
def test_where_the_norm_alone_reads_a_layer_it_is_folded_and_nothing_changes(name):
    model = lived_in(copy.deepcopy(FOLD[name])).double()
    twin = folded(model, (3, 8, 8))
    assert twin.kept == {}
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in twin.modules())
    assert apart(model, twin, images()) < 1e-13


@pytest.mark.parametrize("name", KEEP)
def test_what_cannot_be_folded_stays_and_says_why(name):
    model, reason = KEEP[name]
    model = lived_in(copy.deepcopy(model)).double()
    twin = folded(model, (3, 8, 8))
    assert twin.pairs == ()
    assert len(twin.kept) == (2 if name == "one convolution, two norms" else 1)
    assert all(reason in said for said in twin.kept.values())
    assert apart(model, twin, images()) < 1e-13


@pytest.mark.parametrize(
    ("name", "done", "stay"),
    [("resnet20", 19, 0), ("preact_resnet110", 55, 54), ("densenet22_k12", 0, 21), ("lenet5", 0, 0)],
)
def test_networks_of_the_book_fold_as_far_as_their_wiring_lets_them(name, done, stay):
    model, shape = cnnlib.build(name).eval(), cnnlib.card(name).input_shape
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    twin = folded(model, shape)
    assert (len(twin.pairs), len(twin.kept)) == (done, stay)
    assert f"{done} of {done + stay} folded" in repr(twin)
    assert apart(model, twin, torch.randn(2, *shape)) < 1e-5


def test_refolding_is_folding_anew():
    model = lived_in(cnnlib.build("resnet20"))
    twin = folded(model, (3, 32, 32))
    order = [p.stride() for p in twin.parameters()]
    lived_in(model, seed=5)
    assert twin.refold() is twin
    anew = folded(model, (3, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), anew.parameters(), strict=True))
    assert order == [p.stride() for p in twin.parameters()]


@pytest.mark.parametrize(
    "name", ["tied weights", "two convolutions, one norm", "the same twice", "transposed in groups"]
)
def test_other_points_of_weight_space_are_seen_without_going_there(name):
    model = lived_in(copy.deepcopy(FOLD[name])).double()
    there = lived_in(copy.deepcopy(FOLD[name]), seed=7).double()
    before = copy.deepcopy(model.state_dict())
    twin = folded(model, (3, 8, 8))
    twin.refold(dict((*there.named_parameters(), *there.named_buffers())))
    assert apart(there, twin, images()) < 1e-13
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    one = next(iter(dict(model.named_parameters())))
    twin.refold({one: dict(there.named_parameters())[one]})
    with torch.no_grad():
        dict(model.named_parameters())[one].copy_(dict(there.named_parameters())[one])
    assert apart(model, twin, images()) < 1e-13


def test_a_tensor_that_the_network_does_not_have_is_refused_by_name():
    twin = folded(cnnlib.build("lenet5"), (1, 32, 32))
    with pytest.raises(ValueError, match=r"no parameter or buffer 'c1\.wieght'"):
        twin.refold({"c1.wieght": torch.zeros(1)})


def test_images_lie_channels_last_unless_the_network_cannot_read_them_so():
    assert folded(cnnlib.build("resnet20"), (3, 32, 32)).memory_format == torch.channels_last
    assert folded(Views(), (3, 8, 8)).memory_format == torch.contiguous_format


def test_the_network_is_not_touched_and_the_twin_is_its_own():
    model = cnnlib.build("resnet20").train()
    model.layer1.eval()
    seen = []
    handle = model.conv1.register_forward_hook(lambda *_: seen.append(1))
    back = model.conv1.register_full_backward_hook(lambda *_: seen.append(2))
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    held = {name: id(t) for name, t in model.state_dict(keep_vars=True).items()}
    values = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()

    twin = folded(model, (3, 32, 32))
    twin.train()(torch.zeros(1, 3, 32, 32, requires_grad=True)).sum().backward()
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()

    assert seen == []
    assert not twin.training
    assert not any(p.requires_grad for p in twin.parameters())
    assert held == {name: id(t) for name, t in model.state_dict(keep_vars=True).items()}
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in values.items())
    assert modes == [m.training for m in model.modules()]
    assert [p.grad is not None for p in model.parameters()] == [True] + [False] * (len(list(model.parameters())) - 1)
    assert list(model.conv1._forward_hooks) == [handle.id]
    assert list(model.conv1._backward_hooks) == [back.id]
    assert torch.equal(random, torch.get_rng_state())


def test_a_network_that_cannot_be_copied_is_refused_and_left_as_it_was():
    model = cnnlib.build("lenet5").train()
    model.held = (i for i in range(3))
    with pytest.raises(ValueError, match=r"Sequential cannot be copied: .* must be copyable by copy\.deepcopy"):
        folded(model, (1, 32, 32))
    assert model.training
    assert next(model.held) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_twin_stands_where_the_network_does():
    model = cnnlib.build("resnet20").cuda().eval().double()
    twin = folded(model, (3, 32, 32))
    assert {p.device.type for p in twin.parameters()} == {"cuda"}
    assert apart(model, twin, torch.randn(2, 3, 32, 32, device="cuda", dtype=torch.double)) < 1e-12
