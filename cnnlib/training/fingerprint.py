"""A digest of what a network computes, without its weights: two networks with one fingerprint can share a checkpoint.

The parameters are set to fixed numbers that depend on their place and shape alone, and the network is asked, in float64
and evaluation mode, what it makes of two fixed images. Kernel, stride, padding, width, wiring, activation, the epsilon
of a norm: whatever changes the answer changes the digest; whatever merely rewrites the code does not. What shows in
training only (dropout, the momentum of batch norm) is added by its numbers.
"""

from __future__ import annotations

import copy
import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module, input_shape: tuple[int, int, int]) -> str:
    """The fingerprint of `model` for images of `input_shape` = (C, H, W); the network itself is not touched."""
    # NumPy promises the same numbers from this generator in all versions; torch and Python's hash do not.
    draw = np.random.RandomState(0)
    twin = copy.deepcopy(model).to("cpu", torch.float64).eval()
    lines = []
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(_fixed(name, parameter.shape, draw))
            lines.append(f"{name} {tuple(parameter.shape)}")
        for name, buffer in twin.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(_fixed(name, buffer.shape, draw))
            lines.append(f"{name} {tuple(buffer.shape)}")
        image = torch.from_numpy(draw.uniform(-1, 1, (2, *input_shape)))
        answer = _flat(twin(image))
    largest = float(answer.abs().max())
    if not (math.isfinite(largest) and largest > 0):
        raise ValueError(
            f"{type(model).__name__} answers {largest} to the probe, so its fingerprint would say nothing; "
            "does its forward depend on its input?"
        )
    for module in twin.modules():
        kind = type(module).__name__
        if "Dropout" in kind or "DropPath" in kind or "StochasticDepth" in kind:
            lines.append(f"{kind} {getattr(module, 'p', None)}")
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            lines.append(f"{kind} {module.momentum}")
    # Six digits of the largest answer: far coarser than float64's rounding, far finer than any change of the network.
    lines += [f"{number:.6f}" for number in (answer / largest + 0.0).tolist()]
    return hashlib.sha256("\n".join(lines).replace("-0.000000", "0.000000").encode()).hexdigest()[:16]


def _fixed(name: str, shape: torch.Size, draw: np.random.RandomState) -> Tensor:
    """Numbers that keep the size of a signal through many layers."""
    noise = torch.from_numpy(draw.uniform(-1, 1, tuple(shape)))
    if name.endswith("running_var") or (len(shape) <= 1 and name.endswith("weight")):
        return 1 + 0.2 * noise
    if len(shape) <= 1:
        return 0.1 * noise
    return noise * math.sqrt(6 / math.prod(shape[1:]))


def _flat(answer: object) -> Tensor:
    if isinstance(answer, Tensor):
        return answer.flatten()
    parts = answer.values() if isinstance(answer, dict) else answer
    return torch.cat([_flat(part) for part in parts if part is not None])
