"""How long a point of a loss surface takes, beside a loop in the manner of tomgoldstein/loss-landscape.

That loop goes to a point by adding the directions to each parameter, and runs a data loader over a data set in evaluation
mode: images one by one through a transform and put together into batches of 128, as that project's CIFAR-10 loader does
by default. A second peer has the images as one float tensor already, so that only the network counts. Both and cnnlib
take the same directions, points and images on one thread, in one interleaved run; CPU seconds of the process, medians.
The losses must be equal and the errors the same, else the run fails.

    python benchmarks/loss_surface.py [--model resnet20] [--rounds 5] [--images 256] [--points 3]

Claim: at least 1.7 times faster than the loop, on ResNet-20 and on ResNet-56.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

import cnnlib
from cnnlib.analysis import grid, loss_surface, random_directions
from cnnlib.analysis.loss_surfaces import Direction
from cnnlib.data import Preprocess, Split

SHAPE = (3, 32, 32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
Points = list[tuple[float, float]]  # loss and error in the order of the grid


class Pictures(Dataset):
    """Images as torchvision's CIFAR-10 hands them out: a picture, then its transform."""

    def __init__(self, split: Split) -> None:
        self.pixels = split.images.permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(transforms.functional.to_pil_image(self.pixels[index])), self.labels[index]


def by_loop(model: nn.Module, loader: DataLoader, ways: tuple[Direction, ...], places: tuple[float, ...]) -> Points:
    """Each point: every parameter set anew, then a pass over the data."""
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = []
    for y in places:
        for x in places:
            state = {name: tensor.clone() for name, tensor in start.items()}
            for way, step in zip(ways, (x, y)):
                for name, direction in way.steps.items():
                    state[name] += direction * step
            model.load_state_dict(state)
            found.append(pass_over(model, loader))
    model.load_state_dict(start)
    return found


def pass_over(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    criterion = nn.CrossEntropyLoss()
    model.eval()
    loss, right, seen = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            scores = model(images)
            loss += criterion(scores, labels).item() * len(labels)
            right += int((scores.argmax(1) == labels).sum())
            seen += len(labels)
    return loss / seen, 1 - right / seen


def settled(name: str, split: Split, preprocess: Preprocess) -> nn.Module:
    """The network with statistics that fit its weights, so that its losses are finite."""
    torch.manual_seed(0)
    model = cnnlib.build(name)
    with torch.no_grad():
        for _ in range(20):
            model(preprocess(split.images))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20", help="a network of the zoo for 3x32x32 (default resnet20)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--images", type=int, default=256, help="images a point (default 256)")
    parser.add_argument("--points", type=int, default=3, help="points along each of two directions (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (options.images, *SHAPE), generator=generator, dtype=torch.uint8)
    split = Split(pixels, torch.arange(options.images) % 10)
    preprocess = Preprocess(mean=MEAN, std=STD)
    model = settled(options.model, split, preprocess)
    ways, places = random_directions(model, SHAPE), grid(options.points, 0.5)
    tensors = TensorDataset(preprocess(split.images), split.labels)

    tools: dict[str, Callable[[], Points]] = {
        "cnnlib": lambda: [
            (p.loss, p.error) for p in loss_surface(model, split, preprocess, directions=ways, xs=places, images=None)
        ],
        "loop, loader": lambda: by_loop(model, DataLoader(Pictures(split), batch_size=128), ways, places),
        "loop, tensor": lambda: by_loop(model, DataLoader(tensors, batch_size=128), ways, places),
    }
    found = {name: np.array(tool()) for name, tool in tools.items()}  # also the warm-up
    for name, values in found.items():
        if not np.allclose(values[:, 0], found["cnnlib"][:, 0], rtol=1e-4):
            raise SystemExit(f"the losses differ: {name} {values[:, 0]}, cnnlib {found['cnnlib'][:, 0]}")
        # An answer may turn where two scores are equal to the last digits.
        if np.abs(values[:, 1] - found["cnnlib"][:, 1]).max() > 1.5 / options.images:
            raise SystemExit(f"the errors differ: {name} {values[:, 1]}, cnnlib {found['cnnlib'][:, 1]}")
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(options.rounds):
        for name, tool in tools.items():
            start = time.process_time()
            tool()
            seconds[name].append(time.process_time() - start)

    points = options.points**2
    gap = max(np.abs(v[:, 0] / found["cnnlib"][:, 0] - 1).max() for v in found.values())
    print(f"loss surface of {options.model}: {points} points, {options.images} images of 3x32x32 each")
    print(
        f"losses of all three equal to {gap:.0e}; median CPU seconds of {options.rounds} interleaved runs on one thread:"
    )
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    for name, tool_seconds in middle.items():
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        speed = points * options.images / tool_seconds
        ratio = f"{tool_seconds / middle['cnnlib']:.2f} times cnnlib's"
        print(f"  {name:12} {tool_seconds:6.2f}  ({spread}; {speed:,.0f} images/s; {ratio})")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")


if __name__ == "__main__":
    main()
