"""How many images one core augments: whole batches beside torchvision's transforms on PIL images in a DataLoader.

Random crop with padding 4 and horizontal flip on random colour images of CIFAR's size, bytes in and bytes out; then the
same with scaling to normalised floats. The peers are torchvision's transforms of both generations, called as its
reference scripts call them (`Compose`, `DataLoader`), without workers, so that all their work is counted. They draw as
they always do and then cut where they are told, so that all ways see the same crops and flips: their images must be
equal to ours, bytes exactly, floats to rounding, else the run fails. One interleaved run on one thread; CPU seconds of
the process, medians.

    python benchmarks/augmentation.py [--rounds 7]

Claim: at least 50 times as many augmented images per CPU second as either peer.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from cnnlib.data import Batches, HorizontalFlip, Preprocess, RandomCrop

PADDING, SIZE, BATCH = 4, 32, 128
SCALE = Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
CROP, FLIP = RandomCrop(PADDING), HorizontalFlip()

Told = list[tuple[int, int, bool]]


class Crop1(v1.RandomCrop):
    told = (0, 0)

    def get_params(self, picture: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        *_, height, width = v1.RandomCrop.get_params(picture, size)
        return (*self.told, height, width)


class Flip1(v1.RandomHorizontalFlip):
    told = False

    def forward(self, picture: Image.Image) -> Image.Image:
        self.p = 2.0 if self.told else -1.0
        return super().forward(picture)


class Crop2(v2.RandomCrop):
    told = (0, 0)

    def make_params(self, inputs: list) -> dict:
        return super().make_params(inputs) | {"top": self.told[0], "left": self.told[1]}


class Flip2(v2.RandomHorizontalFlip):
    told = False

    def forward(self, *inputs):
        self.p = 2.0 if self.told else -1.0
        return super().forward(*inputs)


class Pictures(Dataset):
    """A data set of torchvision's kind: bytes become a PIL image, which is transformed, one at a time."""

    def __init__(self, images: Tensor, told: Told, generation: int, floats: bool) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.told = told
        if generation == 1:
            self.crop, self.flip = Crop1(SIZE, padding=PADDING), Flip1()
            last = [v1.ConvertImageDtype(torch.float), v1.Normalize(SCALE.mean, SCALE.std)] if floats else []
            self.transform = v1.Compose([self.crop, self.flip, v1.PILToTensor(), *last])
        else:
            self.crop, self.flip = Crop2(SIZE, padding=PADDING), Flip2()
            last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(SCALE.mean, SCALE.std)] if floats else []
            self.transform = v2.Compose([self.crop, self.flip, v2.PILToTensor(), *last])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        top, left, self.flip.told = self.told[index]
        self.crop.told = (top, left)
        return self.transform(Image.fromarray(self.images[index]))


def by_cnnlib(batches: Batches, floats: bool) -> Iterator[Tensor]:
    """All batches, taken by index as in training, augmented, and scaled if `floats`."""
    generator = torch.Generator().manual_seed(0)
    for places in torch.arange(batches.count).split(BATCH):
        batch = batches(places, generator)
        yield SCALE(batch) if floats else batch


def by_torchvision(pictures: Pictures) -> Iterator[Tensor]:
    yield from DataLoader(pictures, batch_size=BATCH, shuffle=False, num_workers=0)


def draws(images: Tensor) -> Told:
    """The crops and flips that `by_cnnlib` makes."""
    generator = torch.Generator().manual_seed(0)
    told: Told = []
    for batch in images.split(BATCH):
        offsets = CROP.draw(batch, generator).tolist()
        told += [(top, left, flip) for (top, left), flip in zip(offsets, FLIP.draw(batch, generator).tolist())]
    return told


def timed(run: Callable[[], Iterator[Tensor]]) -> float:
    """CPU seconds; each batch is let go before the next is made, as in training."""
    started = time.process_time()
    for _ in run():
        pass
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    size = (64 * BATCH, 3, SIZE, SIZE)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    told = draws(images)
    print(f"{platform.machine()}, torch {torch.__version__}, torchvision {torchvision.__version__}, one thread")
    failed = False
    batches = Batches(images, (CROP, FLIP))
    for floats in (False, True):
        peers = {f"transforms v{number}": Pictures(images, told, number, floats) for number in (1, 2)}
        ways = {"cnnlib": partial(by_cnnlib, batches, floats)}
        ways |= {name: partial(by_torchvision, pictures) for name, pictures in peers.items()}
        results = {name: torch.cat(list(way())) for name, way in ways.items()}
        for name, theirs in results.items():
            ours = results["cnnlib"]
            same = torch.allclose(ours, theirs, atol=1e-5) if floats else torch.equal(ours, theirs)
            assert same, f"{name} makes other images"
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(timed(way))
        middle = {name: statistics.median(taken) for name, taken in seconds.items()}
        print("crop, flip and scaling to floats" if floats else "crop and flip, bytes to bytes")
        for name, taken in middle.items():
            ratio = taken / middle["cnnlib"]
            print(f"  {name:14} {len(images) / taken:9,.0f} images per CPU second, {ratio:5.1f} times cnnlib's time")
            failed |= not floats and name != "cnnlib" and ratio < 50
    if failed:
        raise SystemExit("a ratio for crop and flip is below its claim of 50")


if __name__ == "__main__":
    main()
