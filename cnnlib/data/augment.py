"""Augmentation of a whole batch at once, on the device where it lies.

Each kind is two things: a pure function that is told where to cut (`crop`, `flip`, `cutout`), and a small frozen object
that draws this from a generator and calls it (`RandomCrop`, `HorizontalFlip`, `Cutout`). The draws are made on the
generator's device, so that one CPU generator gives the same pictures on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W): pad by `padding` zeros, then cut image n at row and column `offsets[n]`.

    `offsets` (N, 2) counts from the upper left corner of the padded image, 0 .. 2 * padding.
    """
    _check_offsets(offsets, len(images), 0, 2 * padding)
    padded = F.pad(images, (padding,) * 4)
    return _cut(padded, torch.arange(len(images)), offsets, images.shape[2:])


def _cut(padded: Tensor, places: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """(M, C, H', W') -> (N, C, *size): the part of image `places[n]` whose upper left corner is `offsets[n]`."""
    # On a CPU a row is copied as one item, which is far quicker than its pixels one by one.
    if _has_numpy(padded):
        return _cut_by_rows(padded, places, offsets, size)
    return _cut_by_gather(padded, places.to(padded.device), offsets.to(padded.device), size)


def _has_numpy(images: Tensor) -> bool:
    return images.device.type == "cpu" and images.dtype != torch.bfloat16 and not images.requires_grad


def _cut_by_rows(padded: Tensor, places: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    (channels, below, beside), (height, width) = padded.shape[1:], size
    pixels = padded.contiguous().numpy()
    # Item i is the `width` pixels from pixel i on; the items overlap.
    row = np.dtype((np.void, width * pixels.itemsize))
    rows = np.ndarray((pixels.size - width + 1,), row, pixels.data, 0, (pixels.itemsize,))
    top, left = offsets.numpy().T
    corners = places.numpy() * (channels * below * beside) + top * beside + left
    steps = np.arange(channels)[:, None] * (below * beside) + np.arange(height) * beside
    cut = rows[corners[:, None, None] + steps].view(pixels.dtype)
    return torch.from_numpy(cut.reshape(len(places), channels, height, width))


def _cut_by_gather(padded: Tensor, places: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    (channels, _, beside), (height, width) = padded.shape[1:], size
    rows = offsets[:, 0, None] + torch.arange(height, device=padded.device)
    columns = offsets[:, 1, None] + torch.arange(width, device=padded.device)
    pixels = (rows[:, :, None] * beside + columns[:, None, :]).view(len(places), 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).index_select(0, places).gather(2, pixels).view(len(places), channels, height, width)


def flip(images: Tensor, which: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W): images n with `which[n]` are mirrored left to right."""
    if which.shape != (len(images),) or which.dtype != torch.bool:
        raise ValueError(f"flip wants one truth value an image, ({len(images)},) bool, got {_kind(which)}")
    which = which.to(images.device)
    chosen = which.nonzero().view(-1)
    mirrored = images.index_select(0, chosen).flip(3)
    if _has_numpy(images):
        flipped = images.clone()
        flipped.numpy()[chosen.numpy()] = mirrored.numpy()
        return flipped
    return images.index_copy(0, chosen, mirrored)


def cutout(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W): a square of `size` pixels around `centres[n]` (row, column) is set to zero.

    DeVries and Taylor 2017; what would lie outside the image is left out, so a square at the border is smaller.
    """
    _check_offsets(centres, len(images), 0, max(images.shape[2:]) - 1)
    centres = centres.to(images.device)
    first = centres - size // 2
    rows = torch.arange(images.shape[2], device=images.device) - first[:, 0, None]
    columns = torch.arange(images.shape[3], device=images.device) - first[:, 1, None]
    hole = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    return images.masked_fill(hole[:, None], 0)


def _check_offsets(offsets: Tensor, n: int, least: int, most: int) -> None:
    if offsets.shape != (n, 2) or offsets.dtype != torch.int64:
        raise ValueError(f"one row and column an image is wanted, ({n}, 2) int64, got {_kind(offsets)}")
    if n and not (least <= int(offsets.min()) and int(offsets.max()) <= most):
        raise ValueError(f"rows and columns must lie in {least} .. {most}, got {offsets.min()} .. {offsets.max()}")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class RandomCrop:
    """Pad by `padding` zeros and cut the old size out anywhere, each place equally likely: a shift of +-`padding` pixels."""

    padding: int = 4

    def __post_init__(self) -> None:
        _at_least("RandomCrop's padding", self.padding, 1, "leave RandomCrop out to crop nothing")

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(N, 2) offsets for `crop`."""
        size = (len(images), 2)
        return torch.randint(0, 2 * self.padding + 1, size, generator=generator, device=generator.device)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return crop(images, self.draw(images, generator), self.padding)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror each image left to right with probability `p`."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(
                f"HorizontalFlip's p must be a probability above 0, got {self.p!r}; leave it out for no flips"
            )

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) truth values for `flip`."""
        return torch.rand(len(images), generator=generator, device=generator.device) < self.p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return flip(images, self.draw(images, generator))


@dataclass(frozen=True)
class Cutout:
    """Blank a square of `size` pixels around a pixel drawn uniformly (DeVries and Taylor 2017)."""

    size: int = 8

    def __post_init__(self) -> None:
        _at_least("Cutout's size", self.size, 1, "leave Cutout out to blank nothing")

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(N, 2) centres for `cutout`."""
        axes = [
            torch.randint(0, pixels, (len(images),), generator=generator, device=generator.device)
            for pixels in images.shape[2:]
        ]
        return torch.stack(axes, dim=1)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return cutout(images, self.draw(images, generator), self.size)


def _at_least(what: str, number: object, least: int, way_out: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"{what} must be a whole number of at least {least}, got {number!r}; {way_out}")


@dataclass(frozen=True)
class Preprocess:
    """What stands between stored bytes and the network: x / 255, `pad` zeros on each side, then (x - mean) / std.

    `mean` and `std` have one number a channel, or one for all, in units of the full range 0 .. 1.
    """

    pad: int = 0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
            if not numbers or not all(isinstance(number, int | float) for number in numbers):
                raise ValueError(f"Preprocess's {name} must be one number a channel, got {value!r}; e.g. {name}=(0.5,)")
            object.__setattr__(self, name, tuple(float(number) for number in numbers))
        _at_least("Preprocess's pad", self.pad, 0, "0 pads nothing")
        if min(self.std) <= 0:
            raise ValueError(f"Preprocess's std must be above 0, got {self.std}; (1.0,) scales nothing")

    @classmethod
    def between(cls, low: float, high: float, pad: int = 0) -> Preprocess:
        """The affine map of byte 0 to `low` and byte 255 to `high`.

        >>> Preprocess.between(-0.1, 1.175)(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist()
        [[[[-0.10000000149011612, 1.1749999523162842]]]]
        """
        if not low < high:
            raise ValueError(f"Preprocess.between wants low < high, got {low!r} and {high!r}; swap them")
        return cls(pad, (low / (low - high),), (1 / (high - low),))

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, C, H + 2 pad, W + 2 pad) float32."""
        if len(self.mean) not in (1, images.shape[1]) or len(self.std) not in (1, images.shape[1]):
            raise ValueError(
                f"Preprocess has {len(self.mean)} means and {len(self.std)} standard deviations, and the images have "
                f"{images.shape[1]} channels; give one number a channel, or one for all"
            )
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        x = F.pad(images, (self.pad,) * 4) if self.pad else images
        # in place after the one copy, since this runs on every image of every epoch
        return x.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)


class Batches:
    """Cuts augmented batches out of a set of images (M, C, H, W).

    A `RandomCrop` that comes first, and a `HorizontalFlip` right after it, are done while the images are taken, from a
    copy that is padded (and mirrored) once; the pictures are those of one step after the other.
    """

    # A mirrored copy saves a third of the time of an augmented batch; a set this large does without.
    MIRRORED_UP_TO = 2**30

    def __init__(self, images: Tensor, steps: tuple[Augmentation, ...]) -> None:
        self.size = images.shape[2:]
        self.count = len(images)
        self.crop, self.flip, self.steps = None, None, steps
        self.source = images
        if steps and type(steps[0]) is RandomCrop:
            self.crop, self.steps = steps[0], steps[1:]
            self.source = F.pad(images, (self.crop.padding,) * 4)
            small = 2 * self.source.numel() * self.source.element_size() <= self.MIRRORED_UP_TO
            if small and len(steps) > 1 and type(steps[1]) is HorizontalFlip:
                self.flip, self.steps = steps[1], steps[2:]
                self.source = torch.cat([self.source, self.source.flip(3)])

    def __call__(self, places: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) -> (N, C, H, W): the images at `places`, augmented with draws from `generator`."""
        if self.crop:
            offsets = self.crop.draw(places, generator)
            if self.flip:
                mirrored = self.flip.draw(places, generator)
                # the mirror image of a crop is the crop of the mirror image, as far from its other edge
                offsets[:, 1] = torch.where(mirrored, 2 * self.crop.padding - offsets[:, 1], offsets[:, 1])
                places = places + self.count * mirrored.to(places.device)
            batch = _cut(self.source, places, offsets, self.size)
        else:
            batch = self.source.index_select(0, places.to(self.source.device))
        for step in self.steps:
            batch = step(batch, generator)
        return batch
