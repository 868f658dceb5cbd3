"""Every network of the zoo against the published figures: counts, multiply-adds, shapes, receptive field; and it learns."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import cnnlib
from cnnlib.analysis import receptive_field, receptive_field_by_gradient
from cnnlib.analysis.costs import costs_of
from cnnlib.analysis.fields import fields_of
from cnnlib.models.zoo import ZOO, papers
from cnnlib.training import CrossEntropy, MaximumAPosteriori

NAMES = cnnlib.list_models()
# Of a family with one definition, the smallest member takes the step; the others differ in a row of numbers.
TOO_LONG = {"resnet1202", "preact_resnet1001", "plain110", "resnet110", "preact_resnet110", "fcn16s", "fcn32s"}


class Network:
    """A network of the zoo on the meta device, read once for all that is asked of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.card = cnnlib.card(name)
        self.graphs: dict[tuple[int, ...], cnnlib.graph.Graph] = {}

    @functools.cached_property
    def model(self) -> nn.Module:
        with torch.device("meta"):
            return cnnlib.build(self.name)

    def graph(self, shape) -> cnnlib.graph.Graph:
        shape = tuple(shape)
        if shape not in self.graphs:
            self.graphs[shape] = cnnlib.trace(self.model, shape)
        return self.graphs[shape]

    def published(self, quantity: str) -> dict:
        figure = self.card.published.get(quantity)
        if figure is None or figure.get("check") == "recalled":
            pytest.skip(f"data/papers has no confirmed {quantity} of {self.name}")
        return figure


@pytest.fixture(scope="module", params=NAMES)
def network(request) -> Network:
    """All tests of one network follow each other, so that it is built and traced once."""
    return Network(request.param)


def test_every_network_has_a_published_count_to_hold_against():
    assert [name for name in NAMES if "params" not in cnnlib.card(name).published] == []


def test_a_network_has_the_published_number_of_parameters(network):
    assert sum(p.numel() for p in network.model.parameters()) == network.published("params")["value"]


def test_a_network_takes_the_published_multiply_adds(network):
    figure = network.published("macs")
    table = costs_of(network.graph(figure.get("at", network.card.input_shape)))
    assert table.macs == figure["value"]
    assert table.params == sum(p.numel() for p in network.model.parameters())


def test_a_network_has_the_published_receptive_field(network):
    figure = network.published("receptive_field")
    final = fields_of(network.graph(figure.get("input", network.card.input_shape))).final
    if figure["value"] == "whole image":
        assert final.size == float("inf")
        return
    assert final.size == figure["value"]
    if "stride" in figure:
        assert final.stride == figure["stride"]
    if "padding" in figure and final.offset is not None:
        assert final.padding == figure["padding"]


def test_every_stage_has_the_published_shape(network):
    figure = network.published("shapes")
    graph = network.graph(figure.get("at", network.card.input_shape))
    for stage, shape in figure["rows"].items():
        last = [node for node in graph if node.name == stage or node.name.startswith(f"{stage}.")]
        assert last, f"{network.name} has no stage {stage}"
        assert list(last[-1].shape) == shape, stage


def one_step(
    model: nn.Module, shape: tuple[int, int, int], classes: int, distances: bool
) -> tuple[float, float, list[str]]:
    """Loss on a batch of four before and after one small step of plain descent, and the parameters without a gradient.

    Four, since of two values batch norm leaves nothing but which is larger, and at the least size a map is one pixel.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, *shape, generator=generator)
    y = torch.tensor([0, classes - 1, 1, classes - 2])
    criterion = MaximumAPosteriori() if distances else CrossEntropy()

    def loss() -> torch.Tensor:
        torch.manual_seed(2)  # the same dropout before and after
        out = model(x)
        heads = [h for h in out if isinstance(h, torch.Tensor)] if isinstance(out, tuple) else [out]
        if heads[0].dim() == 4:  # a map of scores
            heads = [h.flatten(2).mean(2) for h in heads]
        return sum(criterion.loss(head, y) for head in heads)

    model.train()
    before = loss()
    before.backward()
    silent = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in model.parameters() if p.grad is not None))
    state = copy.deepcopy(model.state_dict())
    for size in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        model.load_state_dict(state)
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= size * p.grad / norm.float()
            after = loss().item()
        if after < before.item():
            break
    return before.item(), after, silent


@pytest.mark.parametrize("row", [r for r in ZOO if r.name not in TOO_LONG], ids=lambda r: r.name)
def test_one_step_at_the_least_size_lowers_the_loss_and_reaches_every_parameter(row):
    torch.manual_seed(0)
    size = (row.least, row.least) if row.least else row.size
    model = cnnlib.build(row.name, **({} if row.name == "lenet5_1998" or row.classes < 100 else {"num_classes": 10}))
    classes = 10 if row.classes >= 100 else row.classes
    before, after, silent = one_step(model, (row.channels, *size), classes, row.name == "lenet5_1998")
    assert after < before
    assert silent == []


OWN_SIZE = (
    "alexnet_owt",
    "nin",
    "googlenet_bn",
    "highway19",
    "resnet18",
    "preact_resnet110",
    "resnet20",
    "densenet40_k12",
    "mobilenet_v1",
)


@pytest.mark.parametrize("name", OWN_SIZE)
def test_one_step_at_the_papers_size_lowers_the_loss_and_reaches_every_parameter(name):
    torch.manual_seed(0)
    card = cnnlib.card(name)
    before, after, silent = one_step(cnnlib.build(name, num_classes=10), card.input_shape, 10, distances=False)
    assert after < before
    assert silent == []


# One network of each family whose field has an end.
FAMILIES = (
    *(
        "lenet5_1998",
        "alexnet",
        "zfnet",
        "vgg_a",
        "nin",
        "googlenet",
        "bn_inception",
        "xception",
        "highway19",
        "plain18",
    ),
    *("resnet20", "preact_resnet110", "resnext29_8x64d", "densenet40_k12", "mobilenet_v1", "convnext_tiny"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_field_measured_by_gradient_is_the_field_by_geometry(name):
    model, shape = cnnlib.build(name), cnnlib.card(name).input_shape
    measured, computed = receptive_field_by_gradient(model, shape), receptive_field(model, shape).final
    assert measured.size == computed.size
    if computed.offset is not None and measured.offset is not None:
        assert (measured.stride, measured.offset) == (computed.stride, computed.offset)


@pytest.mark.parametrize("row", [r for r in ZOO if r.least and r.least > 1], ids=lambda r: r.name)
def test_below_the_least_size_the_error_names_it(row):
    model = Network(row.name).model.train()
    too_small = torch.zeros(2, row.channels, row.least - 1, row.least - 1, device="meta")
    rule = rf"at least {row.least}x{row.least}\b.*, got {row.least - 1}x{row.least - 1}"
    with pytest.raises(ValueError, match=rule):
        model(too_small)


def test_a_network_takes_less_where_its_auxiliary_head_keeps_quiet():
    with torch.device("meta"):
        for model in (cnnlib.build("inception_v3").eval(), cnnlib.build("inception_v3", aux_logits=False).train()):
            assert model(torch.zeros(2, 3, 75, 75)).shape == (2, 1000)
            with pytest.raises(ValueError, match="at least 75x75, got 74x74"):
                model(torch.zeros(2, 3, 74, 74))
        with pytest.raises(ValueError, match=r"at least 299x299 in training.*75x75 without.*got 298x298"):
            cnnlib.build("inception_v3").train()(torch.zeros(2, 3, 298, 298))


def test_a_network_that_pads_takes_the_size_at_which_its_last_map_is_one_pixel():
    with torch.device("meta"):
        for name, maps in (("resnet50", 2048), ("resnet20", 64), ("mobilenet_v1", 1024), ("se_resnet50", 2048)):
            size = cnnlib.card(name).least
            graph = cnnlib.trace(cnnlib.build(name), (3, size, size))
            last = [node.shape for node in graph if node.live and node.shape and len(node.shape) == 3]
            assert {shape[1:] for shape in last if shape[0] == maps} == {(1, 1)}, name


@pytest.mark.parametrize("row", [r for r in ZOO if r.name != "lenet5_1998"], ids=lambda r: r.name)
def test_classes_and_channels_can_be_changed(row):
    with torch.device("meta"):
        model = cnnlib.build(row.name, num_classes=7, in_channels=2).eval()
        size = (row.least, row.least) if row.least else row.size
        out = model(torch.zeros(1, 2, *size))
    assert out.shape[1] == 7


def test_references_of_the_zoo_stand_in_the_bibliography():
    from cnnlib.paths import checkout

    text = (checkout() / "book" / "references.bib").read_text(encoding="utf-8")
    assert [row.reference for row in ZOO if f"{{{row.reference}," not in text] == []


def test_no_name_and_no_alias_is_taken_twice():
    names = [*NAMES, *(alias for row in ZOO for alias in row.aliases)]
    assert len(names) == len(set(names))


def test_the_published_tables_name_their_source():
    for name in NAMES:
        for quantity, figure in papers().get(name, {}).items():
            if isinstance(figure, dict) and "value" in figure:
                assert figure.get("source"), f"{name}.{quantity}"
                assert figure.get("check") in ("computed", "repo", "library", "text", "recalled"), f"{name}.{quantity}"
