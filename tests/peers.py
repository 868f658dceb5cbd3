"""What the tests of several families need to hold our networks against other people's."""

from __future__ import annotations

import torch
from torch import nn

LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random affine maps and statistics in float64, evaluation mode, so that no layer can be left out unnoticed."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def copy_in_order(source: nn.Module, target: nn.Module) -> nn.Module:
    """`target` with the weights and statistics of `source`, layer by layer in the order of the modules."""
    pair = [[m for m in model.modules() if isinstance(m, LAYERS)] for model in (source, target)]
    assert [type(m) for m in pair[0]] == [type(m) for m in pair[1]]
    for theirs, ours in zip(*pair):
        ours.load_state_dict(theirs.state_dict(), strict=True)
    return target.double().eval()


def assert_same_function(ours: nn.Module, theirs: nn.Module, *shape: int) -> None:
    """Logits agree in float64 on two random images of `shape`, and are no trivial number."""
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine, other = ours(x), theirs(x)
    assert mine.std() > 1e-3
    torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def apart(ours: nn.Module, theirs: nn.Module, *shape: int) -> float:
    """How far the logits are apart on two random images of `shape`, as a part of their size."""
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine, other = ours(x), theirs(x)
    return ((mine - other).norm() / other.norm()).item()
