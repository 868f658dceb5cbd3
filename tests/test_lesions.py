"""Laws of lesions: what is deleted is gone and nothing else, the same order changes nothing, the network stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from test_residual_paths import (
    SHAPE,
    Nested,
    Residual,
    Shy,
    along_path,
    data,
    linear_net,
    mixed,
    same,
    state,
    trained_like,
)
from torch import nn
from torch.nn import functional as F

import cnnlib
from cnnlib.analysis import (
    delete,
    delete_each,
    delete_several,
    path_lengths,
    permute_blocks,
    price,
    reorder_blocks,
    residual_blocks,
)
from cnnlib.analysis.editing import Editor, lent
from cnnlib.analysis.lesions import anatomy, kendall_tau
from cnnlib.models import resnet, small
from cnnlib.models.densenet import cifar_densenet
from cnnlib.models.preact_resnet import cifar_preact


def without(model: nn.Module, x: torch.Tensor, names, unit=None) -> torch.Tensor:
    """What the network answers when these parts are deleted."""
    graph = cnnlib.trace(model, tuple(x.shape[1:]))
    editor = Editor(graph)
    for part in anatomy(graph, unit).units:
        if part.name in names:
            part.delete(editor)
    with lent(graph), torch.no_grad():
        return editor.module()(x)


def by_hand(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return 100 * (model(x).argmax(1) != labels).double().mean().item()


class Nothing(nn.Module):
    """Zeros of the shape that the module behind it would give."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x) * 0


# ---------------------------------------------------------------------------------------------------------------
# What is deleted is gone, and nothing else


def theirs() -> nn.Module:
    """torchvision's basic blocks, which add and rectify in place, in a network of our size."""
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [2, 2, 2, 1], num_classes=10)


@pytest.mark.parametrize(
    ("make", "last"),
    [
        (lambda: resnet.cifar_resnet(14), "bn2"),
        (lambda: resnet.cifar_resnet(14, shortcut="C"), "bn2"),
        (lambda: cifar_preact(14), "branch"),
        (theirs, "bn2"),
    ],
    ids=["option A", "projections", "pre-activation", "torchvision, in place"],
)
def test_deleting_a_block_is_writing_the_network_without_its_branch(make, last):
    torch.manual_seed(0)
    model, (x, _) = trained_like(make()).eval(), data()
    for name in ("layer1.1", "layer2.0", "layer3.1"):
        cut = copy.deepcopy(model)
        block = cut.get_submodule(name)
        setattr(block, last, Nothing(getattr(block, last)))
        with torch.no_grad():
            torch.testing.assert_close(without(model, x, [name]), cut(x))


class Overwriting(nn.Module):
    """A ReLU writes over x before it is split, so that the skip carries the rectified x; then another one over the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.cut = ()

    def forward(self, x):
        x = x * 1.5
        for i, conv in enumerate(self.convs):
            out = conv(self.relu(x))
            out += x
            if i in self.cut:
                out = x * 1.0
            x = out
        return self.relu(x).mean((2, 3))


def test_what_writes_over_its_input_is_read_where_it_writes():
    torch.manual_seed(0)
    model, (x, _) = Overwriting().eval(), data()
    blocks = residual_blocks(cnnlib.trace(model, SHAPE))
    assert [block.kind for block in blocks] == ["identity", "identity"]
    for i, block in enumerate(blocks):
        found = without(model, x, [block.name])
        model.cut = (i,)
        with torch.no_grad():
            torch.testing.assert_close(found, model(x))
        model.cut = ()


def test_deleting_one_block_leaves_half_of_the_paths():
    model, x = linear_net(), data()[0].double()
    names = [block.name for block in residual_blocks(cnnlib.trace(model, SHAPE))]
    for gone in names:
        left = [path for path in paths(names) if gone not in path]
        assert len(left) == sum(path_lengths(len(names))) // 2
        total = sum(along_path(model, x, path) for path in left)
        torch.testing.assert_close(without(model, x, [gone]), total)


def paths(names):
    found = [()]
    for name in names:
        found += [(*path, name) for path in found]
    return found


def test_without_all_blocks_only_the_path_of_skips_is_left():
    model, x = linear_net(), data()[0].double()
    names = [block.name for block in residual_blocks(cnnlib.trace(model, SHAPE))]
    torch.testing.assert_close(without(model, x, names), along_path(model, x, ()))


def test_a_layer_that_keeps_the_shape_is_left_out_with_what_stands_right_behind_it():
    torch.manual_seed(0)
    model, (x, _) = small.small_vgg(in_channels=3).eval(), data(shape=(3, 28, 28))
    found = anatomy(cnnlib.trace(model, (3, 28, 28)))
    assert found.kind == "layer"
    assert [part.name for part in found.units] == [f"conv{s}_{n}" for s in (1, 2, 3) for n in (2, 3)]
    assert list(found.kept) == ["conv1_1", "conv2_1", "conv3_1", "fc4", "fc5"]
    assert found.kept["conv2_1"] == "changes 16x14x14 to 32x14x14"
    for gone in (["conv1_2"], ["conv2_2", "conv2_3"]):
        cut = copy.deepcopy(model)
        for name in gone:
            setattr(cut, name, nn.Identity())
            setattr(cut, name.replace("conv", "relu"), nn.Identity())
        with torch.no_grad():
            torch.testing.assert_close(without(model, x, gone), cut(x))


def test_a_plain_layer_goes_with_its_batch_norm_and_its_relu():
    torch.manual_seed(0)
    model, (x, _) = trained_like(resnet.cifar_plain(14)).eval(), data()
    cut = copy.deepcopy(model)
    cut.layer2[1].conv1 = cut.layer2[1].bn1 = nn.Identity()  # its ReLU changes nothing behind another one
    with torch.no_grad():
        torch.testing.assert_close(without(model, x, ["layer2.1.conv1"]), cut(x))


def test_new_maps_of_a_dense_layer_are_zero_for_all_that_read_them():
    torch.manual_seed(0)
    model, (x, _) = trained_like(cifar_densenet(13, 4)).eval(), data()
    found = anatomy(cnnlib.trace(model, SHAPE))
    assert found.kind == "maps"
    assert [part.name for part in found.units] == [
        f"features.denseblock{b}.denselayer{n}" for b in (1, 2, 3) for n in (1, 2, 3)
    ]
    for name in ("features.denseblock1.denselayer1", "features.denseblock3.denselayer3"):
        cut = copy.deepcopy(model)
        cut.get_submodule(name).conv1.weight.data.zero_()
        with torch.no_grad():
            torch.testing.assert_close(without(model, x, [name]), cut(x))


def test_torchvisions_densenet_has_the_same_parts_as_ours():
    import torchvision

    with torch.device("meta"):
        theirs, ours = torchvision.models.densenet121(), cnnlib.build("densenet121")
    names = [[part.name for part in anatomy(cnnlib.trace(m, (3, 64, 64))).units] for m in (theirs, ours)]
    assert names[0] == names[1]
    assert len(names[0]) == 58


class Pairwise(nn.Module):
    """x = cat(x, f(x)) twice, as a reader may write a dense block, and f the same layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(c, 2, 3, padding=1) for c in (3, 5))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x), inplace=True)], 1)
        return x.mean((2, 3))


def test_dense_layers_are_found_however_they_are_written():
    model, (x, _) = Pairwise(), data()
    found = anatomy(cnnlib.trace(model, SHAPE))
    assert (found.kind, len(found.units)) == ("maps", 2)
    answer = without(model, x, [found.units[0].name])
    assert not answer[:, 3:5].any()
    torch.testing.assert_close(answer[:, :3], x.mean((2, 3)))


def test_branches_beside_each_other_are_no_dense_layers():
    with torch.device("meta"):
        graph = cnnlib.trace(cnnlib.build("googlenet"), (3, 224, 224))
    assert anatomy(graph).kind == "layer"


# ---------------------------------------------------------------------------------------------------------------
# Errors as rows


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet.cifar_resnet(14),
        lambda: cifar_preact(14),
        lambda: resnet.cifar_plain(14),
        lambda: cifar_densenet(10, 4),
        lambda: mixed(Shy()),
    ],
    ids=["residual", "pre-activation", "plain", "dense", "recorded"],
)
def test_the_rows_are_the_errors_of_the_whole_pass_without_each_part(make):
    torch.manual_seed(0)
    model, (x, y) = trained_like(make()), data(12)
    found = delete_each(model, x, y, batch=5)
    graph = cnnlib.trace(model, SHAPE)
    parts = [part.name for part in anatomy(graph).units]
    assert [row.deleted for row in found] == [(name,) for name in parts]
    for row in found:
        if graph.source == "fx":
            answer = without(model, x, row.deleted)
        else:
            answer = torch.cat([without(model, image[None], row.deleted) for image in x])
        assert row.after == pytest.approx(100 * (answer.argmax(1) != y).double().mean().item())
        assert row.before == found.before
        assert row.harm == row.after - row.before
    assert found.before == pytest.approx(by_hand(model, x, y))
    assert found.images == 12


def test_several_sets_are_different_follow_the_seed_and_agree_with_deleting_them_by_name():
    torch.manual_seed(0)
    model, (x, y) = trained_like(resnet.cifar_resnet(14)), data(12)
    found = delete_several(model, x, y, counts=[1, 3, 6], draws=3, seed=5)
    assert [(row.count, len(row.draws)) for row in found] == [(1, 3), (3, 3), (6, 1)]
    for row in found:
        assert len({draw.deleted for draw in row.draws}) == len(row.draws)
        assert all(len(draw.deleted) == row.count for draw in row.draws)
    assert found[2].std is None
    draws = found[1].draws
    assert found[1].mean == pytest.approx(sum(draw.after for draw in draws) / 3)
    assert delete(model, x, y, draws[0].deleted) == draws[0]
    again = delete_several(model, x, y, counts=[3], draws=3, seed=5)
    assert again[0] == found[1]
    assert delete_several(model, x, y, counts=[3], draws=3, seed=6)[0] != found[1]


def test_each_set_of_one_is_each_part():
    torch.manual_seed(0)
    model, (x, y) = trained_like(resnet.cifar_plain(14)), data()
    alone = {row.deleted: row.after for row in delete_each(model, x, y)}
    drawn = delete_several(model, x, y, counts=[1], draws=99)
    assert {draw.deleted: draw.after for draw in drawn[0].draws} == alone


# ---------------------------------------------------------------------------------------------------------------
# Exchanging blocks


def test_the_order_that_was_there_changes_nothing():
    torch.manual_seed(0)
    model, (x, y) = trained_like(cifar_preact(20)), data(12)
    names = [f"layer{s}.{i}" for s in (1, 2, 3) for i in (1, 2)]
    kept = reorder_blocks(model, x, y, {name: name for name in names})
    assert kept.after == kept.before == pytest.approx(by_hand(model, x, y))
    assert kept.kendall_tau == 1
    assert permute_blocks(model, x, y, swaps=[0], draws=1)[0].after == kept.before


def exchanged(model: nn.Module, place: str, other: str) -> nn.Module:
    cut = copy.deepcopy(model)
    for name in ("conv1", "bn1", "conv2", "bn2"):
        setattr(cut.get_submodule(place), name, copy.deepcopy(model.get_submodule(f"{other}.{name}")))
        setattr(cut.get_submodule(other), name, copy.deepcopy(model.get_submodule(f"{place}.{name}")))
    return cut


def test_exchanging_two_blocks_is_exchanging_their_layers():
    torch.manual_seed(0)
    model, (x, y) = trained_like(resnet.cifar_resnet(20)).eval(), data(40, classes=10)
    graph = cnnlib.trace(model, SHAPE)
    blocks = {block.name: block for block in residual_blocks(graph)}
    one, two = blocks["layer2.1"], blocks["layer2.2"]
    editor = Editor(graph)
    for a, b in ((one, two), (two, one)):
        editor.move(b.branch, b.source, b.residual, a.source, a.add, a.residual)
    cut = exchanged(model, "layer2.1", "layer2.2")
    with lent(graph), torch.no_grad():
        torch.testing.assert_close(editor.module()(x), cut(x))
    row = reorder_blocks(model, x, y, {"layer2.1": "layer2.2", "layer2.2": "layer2.1"})
    assert row.after == pytest.approx(by_hand(cut, x, y))
    assert row.order == ("layer1.0", "layer1.1", "layer1.2", "layer2.2", "layer2.1", "layer3.1", "layer3.2")


def test_exchanges_stay_within_one_shape_and_follow_the_seed():
    torch.manual_seed(0)
    model, (x, y) = trained_like(resnet.cifar_resnet(20)), data()
    found = permute_blocks(model, x, y, swaps=[1, 4], draws=3, seed=1)
    names = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]
    for row in found:
        assert sorted(row.order) == names
        assert all(a.split(".")[0] == b.split(".")[0] for a, b in zip(names, row.order))
        assert row.kendall_tau < 1
    assert list(found.kept) == ["layer2.0", "layer3.0"]
    assert found.rows == permute_blocks(model, x, y, swaps=[1, 4], draws=3, seed=1).rows
    assert found.rows[:3] == permute_blocks(model, x, y, swaps=[1], draws=3, seed=1).rows


def test_kendalls_tau_counts_turned_pairs():
    assert kendall_tau([3, 2, 1, 0]) == -1
    assert kendall_tau([0, 2, 1, 3]) == pytest.approx(1 - 2 / 6)
    with pytest.raises(ValueError, match=r"each of 0 \.\. n - 1 once"):
        kendall_tau([0, 0])


# ---------------------------------------------------------------------------------------------------------------
# Looking does not touch


@pytest.mark.parametrize("make", [Shy, lambda: trained_like(resnet.cifar_resnet(14))], ids=["recorded", "followed"])
def test_the_network_is_afterwards_as_before(make):
    model = mixed(make())
    before, (x, y) = state(model), data()
    delete_each(model, x, y)
    delete_several(model, x, y, counts=[1], draws=1)
    if not isinstance(model, Shy):
        permute_blocks(model, x, y, swaps=[1], draws=1)
    assert same(before, state(model))


class Uncopyable(nn.Module):
    """A network that cannot be copied, and stops in the middle if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual("turned", nn.Conv2d(3, 3, 3, padding=1))
        self.fuse = Fuse()
        self.head = nn.Linear(3, 5)

    def __deepcopy__(self, memo):
        raise RuntimeError("there is only one of me")

    def forward(self, x):
        return self.head(self.fuse(self.block(x)).mean((2, 3)))


class Fuse(nn.PReLU):
    """A leaf for the trace, which blows when it is given more than `limit` images in all."""

    limit = 10**9

    def forward(self, x):
        if not x.is_meta:
            self.limit -= len(x)
        if self.limit < 0:
            raise RuntimeError("blown")
        return x


Fuse.__module__ = nn.PReLU.__module__  # so that the trace takes it as one layer


def test_a_network_that_cannot_be_copied_is_studied_too_and_is_as_before_also_after_an_error():
    model = mixed(Uncopyable())
    before, (x, y) = state(model), data()
    found = delete_each(model, x, y)
    assert [row.deleted for row in found] == [("block",)]
    assert same(before, state(model))
    model.fuse.limit = 5
    with pytest.raises(RuntimeError, match="blown"):
        delete_each(model, x, y)
    assert model.fuse.limit == 5
    assert same(before, state(model))


def test_the_price_is_a_pass_for_each_part_and_one_before():
    model, (x, y) = resnet.cifar_resnet(14), data()
    assert price(delete_each, model, x, y).forward == 4 * 7
    assert price(delete_several, model, x, y, counts=[1, 6], draws=3).forward == 4 * (1 + 3 + 1)
    assert price(permute_blocks, model, x, y, swaps=[1, 2], draws=3).forward == 4 * 7


def test_a_table_says_what_was_done_and_what_was_kept():
    model, (x, y) = small.small_vgg(in_channels=3), data(shape=(3, 28, 28))
    found = delete_each(model, x, y)
    assert repr(found).startswith("Sequential, 4 images, error ")
    assert "kept: conv1_1 changes 3x28x28 to 16x28x28; conv2_1" in repr(found)
    assert "<td" in found._repr_html_()
    assert found[0].deleted == ("conv1_2",)
    assert len(found) == 6
    for row in permute_blocks(resnet.cifar_resnet(20), *data(), swaps=[1], draws=1):
        assert row.cells[0] == "1"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_lesions_on_the_gpu_are_those_of_the_cpu():
    model, (x, y) = trained_like(resnet.cifar_resnet(14)), data()
    on_cpu = delete_each(model, x, y)
    assert delete_each(copy.deepcopy(model).cuda(), x, y).rows == on_cpu.rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, y: delete(small.small_vgg(in_channels=3), x, y, ["conv1_1"]),
            r"conv1_1 cannot be deleted: it changes 3x28x28 to 16x28x28; those that can be: conv1_2",
        ),
        (lambda x, y: delete(resnet.cifar_resnet(8), x, y, ["layer9"]), "no part that can be deleted 'layer9'"),
        (lambda x, y: delete_each(resnet.cifar_resnet(8), x, y, unit="blok"), "no kind of part 'blok'; did you mean"),
        (
            lambda x, y: delete_each(resnet.cifar_plain(8), x, y, unit="block"),
            "nothing of Sequential can be deleted as a part of kind 'block'",
        ),
        (
            lambda x, y: delete_each(nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 5)), x, y),
            "'layer' .*: 1 changes 2352 to 5",
        ),
        (lambda x, y: delete_several(resnet.cifar_resnet(8), x, y, counts=[4]), r"counts must be 1 \.\. 3, .* got 4"),
        (
            lambda x, y: delete_several(resnet.cifar_resnet(8), x, y, draws=0),
            "draws must be a whole number of at least 1",
        ),
        (
            lambda x, y: permute_blocks(resnet.cifar_resnet(8), x, y),
            "no two blocks .* layer1.0 is the only one of 16x28x28",
        ),
        (lambda x, y: permute_blocks(resnet.cifar_plain(8), x, y), "it has no residual blocks"),
        (lambda x, y: permute_blocks(resnet.cifar_resnet(14), x, y, swaps=[9]), "swaps must be at most 1, the pairs"),
        (
            lambda x, y: reorder_blocks(resnet.cifar_resnet(20), x, y, {"layer1.0": "layer2.0"}),
            "block layer2.0 cannot be exchanged: it changes",
        ),
        (
            lambda x, y: reorder_blocks(resnet.cifar_resnet(20), x, y, {"layer1.0": "layer2.1"}),
            r"layer2.1 \(32x14x14\) cannot stand in the place of layer1.0 \(16x28x28\)",
        ),
        (
            lambda x, y: reorder_blocks(resnet.cifar_resnet(20), x, y, {"layer1.0": "layer1.1"}),
            "layer1.1 would stand in two places",
        ),
        (lambda x, y: delete_each(nn.Sequential(Nested()), x, y), r"one score a class, \(N, classes\)"),
        (lambda x, y: delete_each(resnet.cifar_resnet(8), x[0], y), r"images must be at least one, \(N, C, H, W\)"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call(*data(shape=(3, 28, 28)))
