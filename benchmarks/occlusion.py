"""How long occlusion maps take, beside Captum's Occlusion at its default and at its best number of images a pass.

ResNet-20 at 3x32x32 with a square of 8 pixels at every pixel, and ResNet-18 at 3x224x224 with one of 64 every 32; one image,
grey squares, one thread. All run interleaved on the same network with the same random image and weights; CPU seconds of
the process, medians. Captum's map of drops by pixel must be ours, else the run fails. Captum is given no gradients to
prepare, and its best setting is the fastest of those tried in the first round.

    python benchmarks/occlusion.py [--rounds 5]

Claim: at least 3 times faster than Captum's default and 1.5 times faster than its best setting on ResNet-20; at least
1.5 and 1.3 times on ResNet-18.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import captum
import torch
from captum.attr import Occlusion
from torch import Tensor

import cnnlib
from cnnlib.analysis import occlusion_maps

RUNS = (
    ("resnet20", 8, 1, (8, 16, 32, 64, 125), (3.0, 1.5)),
    ("resnet18", 64, 32, (2, 4, 8, 16, 36), (1.5, 1.3)),
)
VALUE, LABEL = 0.5, 3


def measure(name: str, square: int, stride: int, batches: tuple[int, ...], rounds: int) -> tuple[float, float]:
    """Prints the times of one network; how many times faster than Captum's default and than its best setting."""
    torch.manual_seed(0)
    model, shape = cnnlib.build(name).eval(), cnnlib.card(name).input_shape
    image = torch.rand(1, *shape)
    peer = Occlusion(lambda x: model(x).softmax(1)[:, LABEL])

    def by_cnnlib() -> Tensor:
        (found,) = occlusion_maps(model, image, [LABEL], square=square, stride=stride, value=VALUE)
        return found.drop_by_pixel()

    def by_captum(batch: int) -> Callable[[], Tensor]:
        sizes = dict(sliding_window_shapes=(shape[0], square, square), strides=(shape[0], stride, stride))

        def run() -> Tensor:
            with torch.no_grad():
                return peer.attribute(image, baselines=VALUE, perturbations_per_eval=batch, **sizes)[0, 0]

        return run

    tools = {"cnnlib": by_cnnlib} | {f"captum {batch}": by_captum(batch) for batch in (1, *batches)}
    expected = by_cnnlib()
    seconds: dict[str, list[float]] = {tool: [] for tool in tools}
    for tool, run in tools.items():
        start = time.process_time()
        apart = float((run() - expected).abs().max())
        seconds[tool].append(time.process_time() - start)
        if apart > 1e-5 * float(expected.abs().max()) + 1e-6:
            raise SystemExit(f"{tool} finds another map of {name}: {apart} apart")
    best = min((tool for tool in tools if tool not in ("cnnlib", "captum 1")), key=lambda tool: seconds[tool][0])
    kept = ("cnnlib", "captum 1", best)
    for tool in kept:
        seconds[tool].clear()
    for _ in range(rounds):
        for tool in kept:
            start = time.process_time()
            tools[tool]()
            seconds[tool].append(time.process_time() - start)
    middle = {tool: statistics.median(seconds[tool]) for tool in kept}
    places = (-(-(shape[1] - square) // stride) + 1) ** 2
    print(f"{name} at {shape[1]}x{shape[2]}, square {square}, {places} places, {rounds} rounds, equal maps:")
    for tool in kept:
        spread = f"{min(seconds[tool]):.3f} to {max(seconds[tool]):.3f}"
        print(f"  {tool:11} {middle[tool]:.3f} s ({spread}; {middle[tool] / middle['cnnlib']:.2f} times cnnlib's)")
    return middle["captum 1"] / middle["cnnlib"], middle[best] / middle["cnnlib"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each tool (default 5)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    missed = []
    for name, square, stride, batches, claim in RUNS:
        ratios = measure(name, square, stride, batches, rounds)
        if any(ratio < least for ratio, least in zip(ratios, claim)):
            missed.append(name)
    print(
        f"torch {torch.__version__}, captum {captum.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}"
    )
    if missed:
        raise SystemExit(f"the claim does not hold for {', '.join(missed)}")


if __name__ == "__main__":
    main()
