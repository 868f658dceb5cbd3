"""ResNeXt: torchvision's and pytorchcv's networks, and the three equal forms of figure 3."""

from __future__ import annotations

import pytest
import torch
import torchvision
from peers import assert_same_function, copy_in_order, scramble
from pytorchcv.models.resnext_cifar import CIFARResNeXt
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.models.resnext import aggregated, cifar_resnext, imagenet_resnext


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnext101_64x4d"])
def test_torchvisions_weights_fit_to_the_key_both_ways(name):
    with torch.device("meta"):
        ours, theirs = cnnlib.build(name), getattr(torchvision.models, name)()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(("name", "size"), [("resnext50_32x4d", 70), ("resnext101_64x4d", 33)])
def test_torchvisions_networks_give_the_same_logits(name, size):
    theirs = scramble(getattr(torchvision.models, name)(num_classes=7))
    ours = cnnlib.build(name, num_classes=7).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_function(ours, theirs, 3, size, size)
    theirs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize(("cardinality", "d"), [(8, 64), (32, 4)])
def test_cifar_networks_are_pytorchcvs(cardinality, d):
    theirs = scramble(CIFARResNeXt([[w] * 3 for w in (256, 512, 1024)], 64, cardinality, d))
    assert_same_function(copy_in_order(theirs, cifar_resnext(29, cardinality, d)), theirs, 3, 32, 32)


def parts(cardinality: int):
    """A block with stride 2, an image, and its three layers cut into paths: weights of path i, and how to normalise."""
    block = scramble(aggregated(6, 64, 2, cardinality=cardinality, d=3))
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    paths = [slice(3 * i, 3 * i + 3) for i in range(cardinality)]

    def norm(bn: nn.BatchNorm2d, x: torch.Tensor, maps: slice = slice(None)) -> torch.Tensor:
        return F.batch_norm(x, bn.running_mean[maps], bn.running_var[maps], bn.weight[maps], bn.bias[maps], eps=1e-5)

    def path(maps: slice) -> torch.Tensor:
        y = norm(block.bn1, F.conv2d(x, block.conv1.weight[maps]), maps).relu()
        return norm(block.bn2, F.conv2d(y, block.conv2.weight[maps], stride=2, padding=1), maps).relu()

    return block, x, paths, path, norm


def test_figure_3a_a_sum_of_paths_is_the_same_function():
    block, x, paths, path, norm = parts(cardinality=5)
    total = sum(F.conv2d(path(maps), block.conv3.weight[:, maps]) for maps in paths)
    torch.testing.assert_close(block(x), (norm(block.bn3, total) + block.downsample(x)).relu())


def test_figure_3b_early_concatenation_is_the_same_function():
    block, x, paths, path, norm = parts(cardinality=5)
    together = torch.cat([path(maps) for maps in paths], dim=1)
    y = norm(block.bn3, F.conv2d(together, block.conv3.weight))
    torch.testing.assert_close(block(x), (y + block.downsample(x)).relu())


def test_one_path_of_64_maps_is_resnet_50():
    with torch.device("meta"):
        ours, resnet = imagenet_resnext(50, cardinality=1, d=64), cnnlib.build("resnet50_v1_5")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in resnet.state_dict().items()}


def test_a_depth_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"depth must be 9n \+ 2 .* got 30; the nearest are 29 and 38"):
        cifar_resnext(30, 8, 64)
    with pytest.raises(ValueError, match=r"ResNeXt has the depths 50, 101, 152, got 34"):
        imagenet_resnext(34, 32, 4)
