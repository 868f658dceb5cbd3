"""The page on unrolled paths: its published figures, what its prose says of deletions and gradients, and its explorer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cnnlib
from cnnlib import analysis, published
from cnnlib.models import resnet


def figure(name: str) -> float:
    return published.find(f"veit_2016.{name}").value


def test_the_published_ranges_agree_with_the_binomial_law():
    blocks = figure("blocks")
    usual = analysis.share_of_paths(blocks, figure("usual_from"), figure("usual_to"))
    assert 100 * usual > figure("usual_share")
    effective = analysis.share_of_paths(blocks, figure("effective_from"), figure("effective_to"))
    assert round(100 * effective, 2) == figure("effective_share")
    for end in ("from", "to"):  # two convolutions a block
        assert figure(f"effective_layers_{end}") == 2 * figure(f"effective_{end}")


def test_the_blocks_of_the_published_network_are_those_of_its_graph():
    with torch.device("meta"):
        net = cnnlib.build("resnet110")
    assert len(analysis.residual_blocks(cnnlib.trace(net, (3, 32, 32)))) == figure("blocks")


def fresh(depth: int, images: torch.Tensor) -> nn.Module:
    """A network with random weights whose normalisations have the statistics of these images."""
    torch.manual_seed(3)
    net = resnet.cifar_resnet(depth).double()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    return net.eval()


def test_in_fresh_networks_the_gradient_of_a_path_grows_with_few_blocks_and_falls_with_many():
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(8)
    ends = {}
    for depth in (20, 110):
        rows = analysis.gradient_by_path_length(fresh(depth, images), images, labels, draws=1)
        ends[depth] = rows[-1].mean / rows[0].mean
    assert ends[20] > 1
    assert ends[110] < 1e-6


def test_a_deletion_that_the_page_calls_harmless_takes_as_many_paths_as_any_other():
    graph = cnnlib.trace(cnnlib.build("resnet20"), (3, 32, 32))
    paths = analysis.unrolled(graph)
    for block in analysis.residual_blocks(graph):
        assert sum(block.name not in path for path in paths) == len(paths) // 2


@pytest.mark.site
@pytest.mark.browser
def test_the_explorer_on_the_page_says_how_many_paths_are_left(reader):
    shown = reader().open("book/residual_paths").locator('[data-explorer="residual-paths"]')
    for blocks, deleted in ((54, 0), (54, 20), (9, 1), (9, 9), (1, 0)):
        for name, value in (("blocks", blocks), ("deleted", deleted)):
            shown.locator(f'[name="{name}"]').evaluate(
                "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
            )
        told = shown.locator(".reading").inner_text()
        assert f"{sum(analysis.path_lengths(blocks - deleted)):,}" in told
        low, high = analysis.central_lengths(blocks - deleted)
        assert (f"enter {low} to {high} of" if low < high else f"enter {low} of") in told
