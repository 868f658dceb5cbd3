"""How long the cost table of ResNet-152 takes, beside fvcore's and torchinfo's.

All three read the same torchvision network at 3x224x224 in one interleaved run on one thread; CPU seconds of the
process, medians. Their multiply-adds of convolutions and linear layers must be equal, else the run fails.

    python benchmarks/cost_table.py [--rounds 7]

Claim: at least 3 times faster than fvcore, and at least 1.2 times faster than torchinfo.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import fvcore
import torch
import torchinfo
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn

from cnnlib.analysis import cost

SHAPE = (3, 224, 224)


def by_cnnlib(model: nn.Module) -> dict[str, int]:
    totals = cost(model, SHAPE).by_kind()
    return {"conv": totals["conv"].macs, "linear": totals["linear"].macs}


def by_fvcore(model: nn.Module) -> dict[str, int]:
    counted = FlopCountAnalysis(model, torch.zeros(1, *SHAPE)).unsupported_ops_warnings(False).by_operator()
    return {"conv": int(counted["conv"]), "linear": int(counted["linear"])}


def by_torchinfo(model: nn.Module) -> dict[str, int]:
    totals = {"conv": 0, "linear": 0}
    for layer in torchinfo.summary(model, (1, *SHAPE), verbose=0).summary_list:
        kind = {nn.Conv2d: "conv", nn.Linear: "linear"}.get(type(layer.module))
        if kind:
            # torchinfo counts a bias as one more product at each position.
            totals[kind] += layer.macs - (layer.module.bias is not None) * math.prod(layer.output_size)
    return totals


TOOLS: dict[str, Callable[[nn.Module], dict[str, int]]] = {
    "cnnlib": by_cnnlib,
    "fvcore": by_fvcore,
    "torchinfo": by_torchinfo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each tool (default 7)")
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    model = torchvision.models.resnet152(weights=None).eval()

    counted = {name: tool(model) for name, tool in TOOLS.items()}  # also the warm-up
    if any(found != counted["cnnlib"] for found in counted.values()):
        raise SystemExit(f"the tools count differently: {counted}")
    seconds: dict[str, list[float]] = {name: [] for name in TOOLS}
    for _ in range(rounds):
        for name, tool in TOOLS.items():
            start = time.process_time()
            tool(model)
            seconds[name].append(time.process_time() - start)

    middle = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"cost table of ResNet-152 at 3x224x224: {sum(counted['cnnlib'].values()):,} multiply-adds by every tool")
    print(f"median CPU seconds of {rounds} interleaved runs on one thread:")
    for name, tool_seconds in middle.items():
        spread = f"{min(seconds[name]):.3f} to {max(seconds[name]):.3f}"
        ratio = f"{tool_seconds / middle['cnnlib']:.1f} times cnnlib's"
        print(f"  {name:10} {tool_seconds:.3f}  ({spread}; {ratio})")
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, torchinfo {torchinfo.__version__}"
    print(f"{versions}, fvcore {fvcore.__version__}, Python {platform.python_version()}, {platform.machine()}")


if __name__ == "__main__":
    main()
