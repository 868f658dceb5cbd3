"""An occlusion map is what the network itself answers for each hidden image, however little of it is computed."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from captum import attr
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.analysis import folded, occlusion_maps, price
from cnnlib.analysis.local import Local


class Net(nn.Module):
    """What makes the maps, and a last layer of five classes behind it that does not forget where things are."""

    def __init__(self, body: nn.Module, size: int = 20) -> None:
        super().__init__()
        self.body = body
        width = body(torch.zeros(1, 2, size, size)).flatten(1).shape[1]
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(torch.flatten(self.body(x), 1))


class Residual(nn.Module):
    """A sum of a branch of two convolutions and a shortcut that slides and picks, as option A does."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(4, 6, 3, stride, 1, bias=False), nn.BatchNorm2d(6)
        self.two, self.stride = nn.Conv2d(6, 6, 3, padding=1), stride

    def forward(self, x):
        y = self.two(F.relu(self.norm(self.one(x))))
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 1, 1)))


class InPlace(nn.Module):
    """Overwrites what it still reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.one(x)
        y.add_(0.3)
        z = F.relu(y)
        z += y
        return F.relu_(self.two(z)) - y


class Gate(nn.Module):
    """Squeeze and excitation: each channel is scaled by a mean over the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x * torch.sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x):
        return F.relu(self.conv(x)) if x.sum() > -1e9 else x


def sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


LOCAL = {
    "one convolution": lambda: nn.Conv2d(2, 4, 3, padding=1),
    "stride and dilation": lambda: sequence(nn.Conv2d(2, 4, (3, 5), (2, 1), (1, 0), (1, 2)), nn.ReLU()),
    "a deep stride": lambda: sequence(
        nn.Conv2d(2, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 2, 2, groups=2), nn.Tanh(), nn.Conv2d(4, 4, 2)
    ),
    "a stride that leaves out": lambda: sequence(nn.Conv2d(2, 4, 1, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)),
    "pooling beyond the border": lambda: sequence(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 2, ceil_mode=True)
    ),
    "same padding": lambda: sequence(nn.Conv2d(2, 4, 4, padding="same"), nn.ReLU(), nn.LocalResponseNorm(3)),
    "a residual block": lambda: sequence(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Residual(2)),
    "two residual blocks": lambda: sequence(
        nn.Conv2d(2, 4, 3), Residual(1), nn.Conv2d(6, 4, 1), nn.ReLU(inplace=True), Residual(2)
    ),
    "pre-activation": lambda: sequence(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    "in place": InPlace,
}
WHOLE = {
    "circular padding": lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
    "a mean over the map": lambda: Gate4(),
    "a norm over the map": lambda: sequence(nn.InstanceNorm2d(2), nn.Conv2d(2, 4, 3)),
    "a gate along a row": lambda: nn.GLU(3),
    "recorded": Decides,
}


class Gate4(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(8, 4, 1), Gate())


def lived_in(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = 0.5 * torch.randn(p.shape, generator=generator)
    for norm in model.modules():
        if getattr(norm, "running_mean", None) is not None:
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.3, 3, generator=generator)
    return model.double().eval()


def some_images(number: int = 1, shape: tuple[int, ...] = (2, 20, 20)) -> torch.Tensor:
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(3)).double()


def by_force(model, image, square, stride, value):
    """Probabilities (rows, columns, classes), one hidden image after another."""
    height, width = image.shape[1:]
    tops = [i * stride for i in range(-(-(height - square[0]) // stride) + 1)]
    lefts = [i * stride for i in range(-(-(width - square[1]) // stride) + 1)]
    rows = []
    for top, left in product(tops, lefts):
        hidden = image.clone()
        hidden[:, top : top + square[0], left : left + square[1]] = torch.as_tensor(value, dtype=image.dtype).view(
            -1, 1, 1
        )
        with torch.no_grad():
            rows.append(model(hidden[None]).softmax(1)[0])
    return torch.stack(rows).view(len(tops), len(lefts), -1)


def agree(model, images, square, stride, value, **options) -> None:
    pair = (square, square) if isinstance(square, int) else square
    labels = [i % 5 for i in range(len(images))]
    found = occlusion_maps(model, images, labels, square=square, stride=stride, value=value, **options)
    assert len(found) == len(images)
    for image, label, one in zip(images, labels, found):
        expected = by_force(model, image, pair, stride, value)
        torch.testing.assert_close(one.probability, expected[..., label], rtol=1e-11, atol=1e-13)
        assert torch.equal(one.answer, expected.argmax(-1))
        with torch.no_grad():
            unhidden = model(image[None]).softmax(1)[0]
        assert one.unhidden == pytest.approx(float(unhidden[label]), rel=1e-11)
        assert one.answer_unhidden == int(unhidden.argmax())


@pytest.mark.parametrize("name", LOCAL)
def test_a_map_by_crops_is_the_map_by_force(name):
    model = lived_in(Net(LOCAL[name]()))
    twin = folded(model, (2, 20, 20))
    assert Local(twin, (3, 3), range(18), range(18)).share, "nothing is computed on crops"
    for square, stride, value in ((3, 2, 0.5), ((4, 7), 3, [0.1, -2.0]), (1, 1, 9.0), (13, 5, 0.0)):
        agree(model, some_images(), square, stride, value)


@pytest.mark.parametrize("name", WHOLE)
def test_where_an_operation_looks_beyond_its_window_the_whole_network_runs(name):
    model = lived_in(Net(WHOLE[name]()))
    local = Local(folded(model, (2, 20, 20)), (3, 3), range(18), range(18))
    assert local.share == {}
    agree(model, some_images(), 4, 4, 0.5)


def test_a_network_whose_first_layers_alone_are_local_is_cut_there():
    model = lived_in(Net(sequence(nn.Conv2d(2, 4, 3), nn.ReLU(), Gate(), nn.Conv2d(4, 4, 3))))
    assert list(Local(folded(model, (2, 20, 20)), (3, 3), range(18), range(18)).share) == ["body.1"]
    agree(model, some_images(2), 3, 3, 0.5, batch=7)


@pytest.mark.parametrize(("name", "square", "stride"), [("resnet20", 9, 8), ("densenet22_k12", 7, 7)])
def test_maps_of_the_books_networks_are_those_by_force(name, square, stride):
    shape = cnnlib.card(name).input_shape
    agree(cnnlib.build(name).double().eval(), some_images(1, shape), square, stride, 0.2)


def test_float32_keeps_the_map_within_rounding():
    torch.manual_seed(0)
    model, image = cnnlib.build("resnet20").eval(), torch.rand(1, 3, 32, 32)
    (one,) = occlusion_maps(model, image, [2], square=12, stride=10, value=0.5)
    expected = by_force(model, image[0], (12, 12), 10, 0.5)[..., 2]
    torch.testing.assert_close(one.probability, expected, rtol=1e-5, atol=1e-6)


def test_the_mean_drop_of_a_pixel_is_what_captum_calls_its_attribution():
    model, image = lived_in(Net(LOCAL["a residual block"]())), some_images()
    (one,) = occlusion_maps(model, image, [3], square=(5, 4), stride=(3, 4), value=0.25)
    with torch.no_grad():
        theirs = attr.Occlusion(lambda x: model(x).softmax(1)[:, 3]).attribute(
            image, (2, 5, 4), strides=(2, 3, 4), baselines=0.25
        )
    torch.testing.assert_close(one.drop_by_pixel().float(), theirs[0, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("square", "stride"), [(3, 2), (7, 7), ((1, 20), (1, 9)), (20, 1), ((6, 5), (4, 5))])
def test_every_pixel_is_hidden_at_least_once_and_no_square_begins_beyond_the_image(square, stride):
    (one,) = occlusion_maps(lived_in(Net(nn.Identity())), some_images(), square=square, stride=stride)
    hidden = torch.zeros(20, 20)
    for row, column in product(range(len(one.tops)), range(len(one.lefts))):
        top, left, bottom, right = one.hidden(row, column)
        assert top < bottom <= 20
        assert left < right <= 20
        hidden[top:bottom, left:right] += 1
    assert hidden.min() >= 1
    assert one.probability.shape == one.answer.shape == (len(one.tops), len(one.lefts))


def test_a_square_of_the_images_own_colour_changes_nothing():
    image = torch.full((1, 2, 20, 20), 0.7, dtype=torch.double)
    (one,) = occlusion_maps(lived_in(Net(LOCAL["a residual block"]())), image, square=4, stride=4, value=0.7)
    torch.testing.assert_close(one.drop, torch.zeros_like(one.drop), rtol=0, atol=1e-14)
    assert one.label == one.answer_unhidden
    assert one.answers == {one.answer_unhidden: 25}


def test_a_network_that_looks_at_one_pixel_loses_its_answer_only_there():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return torch.stack([8 * x[:, 0, 4, 11], self.scale * x[:, 0, 4, 11] * 0 + 1], dim=1)

    (one,) = occlusion_maps(Looks(), torch.ones(1, 1, 12, 16), square=3, stride=1)
    hides = torch.tensor([[top <= 4 < top + 3 and left <= 11 < left + 3 for left in one.lefts] for top in one.tops])
    assert torch.equal(one.answer == 1, hides)
    assert one.lowest == (2, 9)
    assert "answer 0 at 131 of 140 places" in repr(one)


def test_several_images_are_the_same_as_one_after_another_whatever_the_batch():
    model, images = lived_in(Net(LOCAL["two residual blocks"]())), some_images(3)
    together = occlusion_maps(model, images, square=5, stride=4, batch=3)
    for image, one in zip(images, together):
        (alone,) = occlusion_maps(model, image, square=5, stride=4, batch=100)
        torch.testing.assert_close(one.probability, alone.probability, rtol=1e-12, atol=0)
        assert torch.equal(one.answer, alone.answer)
        assert one.label == alone.label


def state(model: nn.Module) -> tuple:
    return (
        {name: (id(t), t.clone(), t.grad) for name, t in model.state_dict(keep_vars=True).items()},
        [(m.training, list(m._forward_hooks), list(m._backward_hooks)) for m in model.modules()],
        torch.get_rng_state(),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_looking_does_not_touch_the_network_also_when_it_fails(fails):
    model = lived_in(Net(LOCAL["a residual block"]())).train()
    model.body[1].eval()
    model.body[0].register_forward_hook(lambda *_: pytest.fail("a hook of the reader ran"))
    model.head.weight.grad = torch.ones_like(model.head.weight)
    tensors, modules, random = state(model)
    calls = []

    def probabilities(scores):
        calls.append(1)
        if fails and len(calls) == 3:
            raise KeyboardInterrupt
        return scores.softmax(1)

    look = lambda: occlusion_maps(model, some_images(), square=4, stride=2, probabilities=probabilities, batch=8)  # noqa: E731
    if fails:
        with pytest.raises(KeyboardInterrupt):
            look()
    else:
        look()
    after, modules_after, random_after = state(model)
    assert all(
        after[k][0] == i and torch.equal(after[k][1], t) and after[k][2] is g for k, (i, t, g) in tensors.items()
    )
    assert modules == modules_after
    assert torch.equal(random, random_after)


def test_the_price_counts_each_place_and_the_image_itself():
    found = price(
        occlusion_maps, cnnlib.build("lenet5").eval(), some_images(2, (1, 32, 32)).float(), square=4, stride=3
    )
    assert found.forward == 2 * (1 + 11 * 11)
    assert found.backward == 0


ONE = some_images()
NET = Net(nn.Identity()).double()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: occlusion_maps(NET, ONE, square=21), r"square must fit into the image, 20x20; got 21x21"),
        (lambda: occlusion_maps(NET, ONE, square=0), "square must be a whole number of pixels, .* at least 1; got 0"),
        (lambda: occlusion_maps(NET, ONE, square=2, stride=3), "stride must be at most the square, 2x2, .* got 3x3"),
        (lambda: occlusion_maps(NET, ONE, square=2, stride=1.5), "stride must be a whole number"),
        (lambda: occlusion_maps(NET, ONE, [1, 2], square=9), "one an image: got 2 labels for 1 images"),
        (lambda: occlusion_maps(NET, ONE, [5], square=9), r"classes 0 \.\. 4 of the network; got 5"),
        (lambda: occlusion_maps(NET, ONE, square=9, value=[1, 2, 3]), "one for each of the 2 channels; got 3 numbers"),
        (lambda: occlusion_maps(NET, ONE[0, 0], square=9), r"images must be a tensor \(N, C, H, W\), .* \(20, 20\)"),
        (lambda: occlusion_maps(NET, ONE.byte(), square=9), r"images must be floats, .* got torch\.uint8"),
        (lambda: occlusion_maps(NET, ONE, square=9, batch=0), "batch must be at least 1; got 0"),
        (lambda: occlusion_maps(nn.Conv2d(2, 3, 1), ONE, square=9), r"scores \(N, classes\); for 1 images it returned"),
    ],
)
def test_what_cannot_be_hidden_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_map_is_the_same():
    model = lived_in(Net(LOCAL["two residual blocks"]()))
    (here,) = occlusion_maps(model, some_images(), square=5, stride=4)
    (there,) = occlusion_maps(copy.deepcopy(model).cuda(), some_images(), square=5, stride=4)
    torch.testing.assert_close(here.probability, there.probability)
    assert there.probability.device.type == "cpu"
