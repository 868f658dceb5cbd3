"""Laws of what a run costs: the memory is what autograd keeps, the time that of real steps, and nothing is touched."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.data import Batches, DataSet, HorizontalFlip, Preprocess, RandomCrop, Split
from cnnlib.training import SGD, AdamW, Recipe, what_it_costs
from cnnlib.training.estimates import RunCost, kept_for_the_way_back


def kept_by_autograd(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes of all memory that the way back holds on to, parameters and buffers left out."""
    memory, alive = {}, []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        memory[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model.train()(x)
    for tensor in (*model.parameters(), *model.buffers()):
        memory.pop(tensor.untyped_storage().data_ptr(), None)
    assert output.requires_grad
    return sum(memory.values())


class Everything(nn.Module):
    """A branch, a layer that is used twice, gates, an in-place function, dropout, windows, a frozen norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.frozen = nn.BatchNorm2d(8).requires_grad_(False)
        self.relu = nn.ReLU(inplace=True)
        self.lrn = nn.LocalResponseNorm(5)
        self.drop = nn.Dropout(0.5)
        self.none = nn.Dropout(0.0)
        self.max = nn.MaxPool2d(2)
        self.mean = nn.AvgPool2d(2)
        self.end = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = self.drop(self.lrn(self.twice(self.twice(x))))
        gate = torch.sigmoid(self.frozen(x))
        y = torch.tanh(x) * gate + F.gelu(x) * (1 - gate)
        y = torch.cat([self.max(y), self.mean(self.none(y))], dim=1)
        return self.end(F.max_pool2d(F.leaky_relu(y), 2).flatten(1))


def frozen_stem() -> nn.Module:
    model = cnnlib.build("lenet5")
    model.c1.requires_grad_(False)
    return model


# --- memory


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Everything, (3, 16, 16)),
        (frozen_stem, (1, 32, 32)),
        *(
            (lambda name=name: cnnlib.build(name), cnnlib.card(name).input_shape)
            for name in (
                "lenet5",
                "small_vgg",
                "small_alexnet",
                "resnet20",
                "densenet22_k12",
                "highway19",
                "highway_fc",
            )
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_kept_for_the_way_back_is_what_autograd_keeps_within_two_percent(make, shape):
    model = make()
    counted = kept_for_the_way_back(cnnlib.trace(model, shape, training=True))
    assert counted == pytest.approx(kept_by_autograd(model, torch.rand(4, *shape)) / 4, rel=0.02)


def test_a_network_with_arithmetic_of_its_own_is_within_a_quarter():
    model = cnnlib.build("lenet5_1998")
    counted = kept_for_the_way_back(cnnlib.trace(model, (1, 32, 32), training=True))
    assert counted == pytest.approx(kept_by_autograd(model, torch.rand(4, 1, 32, 32)) / 4, rel=0.25)


def test_a_network_without_weights_to_train_keeps_nothing():
    model = cnnlib.build("lenet5").requires_grad_(False)
    assert kept_for_the_way_back(cnnlib.trace(model, (1, 32, 32), training=True)) == 0


def tiny(**fields) -> Recipe:
    return Recipe(
        **{
            "model": "lenet5",
            "data": "fashion_mnist_mini",
            "train_images": 256,
            "epochs": 3,
            "batch_size": 64,
            "preprocess": Preprocess(pad=2),
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("optimizer", "states"), [(SGD(momentum=0.0), 0), (SGD(momentum=0.9), 1), (AdamW(), 2)], ids=repr
)
def test_weights_gradients_and_optimiser_are_counted_in_bytes(optimizer, states):
    found = what_it_costs(tiny(optimizer=optimizer), device="cpu")
    assert found.weights == found.gradients == 4 * 61_706
    # Adam also counts its steps, a number a parameter.
    assert found.optimizer == pytest.approx(states * 4 * 61_706, abs=4 * 10)


def test_memory_is_the_sum_of_its_parts_and_activations_grow_with_the_batch():
    one, two = (what_it_costs(tiny(batch_size=size), device="cpu") for size in (64, 128))
    assert two.activations == 2 * one.activations
    assert two.passing == 2 * one.passing
    parts = ("weights", "gradients", "optimizer", "activations", "passing", "images")
    assert one.memory == sum(getattr(one, part) for part in parts)


@pytest.mark.parametrize("augment", [(), (RandomCrop(2),), (RandomCrop(2), HorizontalFlip())], ids=len)
def test_images_are_both_splits_the_copy_that_batches_are_cut_from_and_one_batch(augment):
    found = what_it_costs(tiny(augment=augment), device="cpu")
    data = cnnlib.load_data("fashion_mnist_mini")
    train = data.train.images[:256]
    copies = Batches(train, augment).source
    extra = 0 if copies is train else copies.numel()
    assert found.images == 256 * 28 * 28 + 1000 * 28 * 28 + extra + 64 * 32 * 32 * 4


# --- time


def test_the_time_is_that_of_a_real_run_within_a_factor_of_four():
    recipe = tiny(train_images=2000, epochs=1)
    found = what_it_costs(recipe, device="cpu")
    (epoch,) = cnnlib.fit(recipe.build(), cnnlib.load_data("fashion_mnist_mini"), recipe, device="cpu")
    assert found.steps == 32
    assert epoch.seconds / 4 < found.step_seconds * 2000 / 64 < 4 * epoch.seconds


def test_a_run_is_its_epochs_and_an_epoch_its_steps_and_a_look_at_the_test_set():
    found = RunCost("net", "set", "cpu", 10, 100, 250, *[10**6] * 6, step_seconds=2.0, test_seconds=1.0)
    assert found.steps == 3
    assert found.epoch_seconds == 2.5 * 2 + 1
    assert found.seconds == 60
    assert repr(found) == (
        "net on set (cpu): 10 epochs of 3 steps with 100 images take about 60.0 s (6.0 s an epoch) and 6 MB of memory: "
        "1 MB of activations, 1 MB of gradients on their way, 1 MB of images, 3 MB of weights with their gradients and "
        "the optimiser's state"
    )
    small = dataclasses.replace(found, train_images=40)
    assert small.steps == 1
    assert small.epoch_seconds == 3


# --- what it leaves alone, and what it refuses


def test_a_network_that_is_given_is_left_as_it_was_and_so_are_random_numbers():
    model = Everything().eval()
    model.norm.train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    shape = (300, 3, 16, 16)
    split = Split(torch.zeros(shape, dtype=torch.uint8), torch.zeros(300, dtype=torch.int64))
    data = DataSet("own", train=split, test=split, classes=("one",))
    found = what_it_costs(Recipe(epochs=1, batch_size=50), model, data, device="cpu")
    assert (found.model, found.data, found.steps) == ("Everything", "own", 6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_wild_learning_rate_does_not_stop_the_clock():
    assert what_it_costs(tiny(lr=1e30), device="cpu").step_seconds > 0


def test_what_cannot_be_told_is_refused_with_a_way_out(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="names no data set; give one"):
        what_it_costs(Recipe(model="lenet5"))
    with pytest.raises(ValueError, match="wants 5,001 training images and 'fashion_mnist_mini' has 5,000"):
        what_it_costs(tiny(train_images=5001))
    monkeypatch.setenv("CNNLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data set 'cifar10' is not under"):
        what_it_costs(Recipe(model="resnet20", data="cifar10"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_memory_is_what_the_allocator_saw_within_a_factor_of_two():
    recipe = tiny(model="resnet20", options={"in_channels": 1}, train_images=1024, batch_size=512, epochs=1)
    found = what_it_costs(recipe, device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    list(cnnlib.fit(recipe.build(), cnnlib.load_data("fashion_mnist_mini"), recipe, device="cuda"))
    peak = torch.cuda.max_memory_allocated() - before
    assert peak / 2 < found.memory < 2 * peak
