"""How much CPU time an epoch takes: `cnnlib.fit` beside a loop in the style of torchvision's reference scripts.

The reference reads PIL images through a DataLoader, augments and converts them one by one, and takes `.item()` of loss
and accuracies at every step, with torch's default SGD. Both see the same images in the same order with the same crops
and flips, start from the same weights, and must end in the same weights and the same loss (to float32 rounding), else
the run fails. One interleaved run on one thread; CPU seconds of the process (the DataLoader has no workers, so that its
work is counted), medians.

    python benchmarks/training_loop.py [--rounds 5]

Claim: at least 3 times less CPU time for LeNet-5, and at least 1.2 times less for ResNet-20.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import cnnlib
from cnnlib.data import DataSet, HorizontalFlip, Preprocess, RandomCrop, Split
from cnnlib.training import Constant, Recipe


class ToldCrop(transforms.RandomCrop):
    """torchvision's RandomCrop, which draws as it always does and then cuts where it is told."""

    told: tuple[int, int] = (0, 0)

    def get_params(self, picture: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        *_, height, width = transforms.RandomCrop.get_params(picture, size)
        return (*self.told, height, width)


class ToldFlip(transforms.RandomHorizontalFlip):
    """torchvision's RandomHorizontalFlip, which draws as it always does and then does as it is told."""

    told: bool = False

    def forward(self, picture: Image.Image) -> Image.Image:
        self.p = 2.0 if self.told else -1.0
        return super().forward(picture)


class Pictures(Dataset):
    """A data set of torchvision's kind: bytes become a PIL image, which is augmented and converted, one at a time."""

    def __init__(self, split: Split, recipe: Recipe, draws: list[tuple[int, int, int, bool]]) -> None:
        self.images = split.images.permute(0, 2, 3, 1).squeeze(3)
        self.labels = split.labels
        self.draws = draws
        preprocess = recipe.preprocess
        self.crop = ToldCrop(split.images.shape[2:], padding=recipe.augment[0].padding)
        self.flip = ToldFlip()
        self.transform = transforms.Compose(
            [
                self.crop,
                self.flip,
                transforms.Pad(preprocess.pad),
                transforms.PILToTensor(),
                transforms.ConvertImageDtype(torch.float),
                transforms.Normalize(preprocess.mean, preprocess.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        index, top, left, self.flip.told = self.draws[place]
        self.crop.told = (top, left)
        picture = Image.fromarray(self.images[index].numpy())
        return self.transform(picture), int(self.labels[index])


def draws_of(recipe: Recipe, n: int) -> list[tuple[int, int, int, bool]]:
    """Order, crops and flips of the first epoch, as `fit` draws them."""
    order = torch.Generator().manual_seed(recipe.seed)
    found = []
    for batch in torch.randperm(n, generator=order).split(recipe.batch_size):
        offsets = recipe.augment[0].draw(batch, order).tolist()
        mirrored = recipe.augment[1].draw(batch, order).tolist()
        found += [(index, *offset, flip) for index, offset, flip in zip(batch.tolist(), offsets, mirrored)]
    return found


def accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...]) -> list[Tensor]:
    """Per cent of right answers among the k largest outputs."""
    with torch.no_grad():
        _, answers = output.topk(max(topk), dim=1)
        right = answers.t() == target[None]
        return [right[:k].flatten().sum(dtype=torch.float32) * (100 / len(target)) for k in topk]


def by_reference(model: nn.Module, pictures: Pictures, recipe: Recipe) -> float:
    """One epoch; the mean training loss."""
    loader = DataLoader(pictures, batch_size=recipe.batch_size, shuffle=False, num_workers=0)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    criterion = nn.CrossEntropyLoss()
    model.train()
    meters = {"loss": 0.0, "acc1": 0.0, "acc5": 0.0}
    for images, target in loader:
        output = model(images)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        acc1, acc5 = accuracy(output, target, topk=(1, 5))
        for name, value in (("loss", loss), ("acc1", acc1), ("acc5", acc5)):
            meters[name] += value.item() * len(target)
    return meters["loss"] / len(pictures)


def by_cnnlib(model: nn.Module, data: DataSet, recipe: Recipe) -> float:
    """One epoch; the mean training loss."""
    (epoch,) = cnnlib.fit(model, data, recipe, device="cpu")
    return epoch.train_loss


def compare(recipe: Recipe, data: DataSet, rounds: int, tolerance: float) -> dict[str, list[float]]:
    """CPU seconds of each round, after one round to warm up; AssertionError where the two differ."""
    pictures = Pictures(data.train, recipe, draws_of(recipe, len(data.train)))
    seconds: dict[str, list[float]] = {"cnnlib": [], "reference": []}
    for turn in range(rounds + 1):
        ours, theirs = recipe.build(), recipe.build()
        started = time.process_time()
        our_loss = by_cnnlib(ours, data, recipe)
        between = time.process_time()
        their_loss = by_reference(theirs, pictures, recipe)
        ended = time.process_time()
        assert abs(our_loss - their_loss) <= tolerance * their_loss, (our_loss, their_loss)
        for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values()):
            difference = float((one - other).abs().max() / other.abs().max().clamp(min=1e-3))
            assert difference <= tolerance, (name, difference)
        if turn:
            seconds["cnnlib"].append(between - started)
            seconds["reference"].append(ended - between)
    return seconds


def colours(n: int) -> DataSet:
    """Random colour images of CIFAR's size, since only the time matters; one test image, so that testing costs nothing."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n,), generator=generator)
    return DataSet(
        "colours", train=Split(images, labels), test=Split(images[:1], labels[:1]), classes=tuple("0123456789")
    )


def clothes(n: int) -> DataSet:
    """The first images of the embedded set, with one test image."""
    train = cnnlib.load_data("fashion_mnist_mini").train
    return DataSet(
        "clothes",
        train=Split(train.images[:n], train.labels[:n]),
        test=Split(train.images[:1], train.labels[:1]),
        classes=tuple("0123456789"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    shared = Recipe(epochs=1, lr=0.01, weight_decay=5e-4, schedule=Constant())
    lenet = shared.but(
        model="lenet5",
        augment=(RandomCrop(2), HorizontalFlip()),
        preprocess=Preprocess(pad=2, mean=(0.286,), std=(0.353,)),
    )
    resnet = shared.but(
        model="resnet20",
        augment=(RandomCrop(4), HorizontalFlip()),
        preprocess=Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)),
    )
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, medians of {rounds} rounds")
    failed = False
    # Rounding differs between memory formats, and batch norm over ten layers magnifies it.
    for recipe, data, least, tolerance in ((lenet, clothes(2560), 3.0, 1e-3), (resnet, colours(512), 1.2, 2e-2)):
        seconds = compare(recipe, data, rounds, tolerance)
        ours, theirs = (statistics.median(seconds[name]) for name in ("cnnlib", "reference"))
        n = len(data.train)
        print(
            f"{recipe.model:10} cnnlib {n / ours:8,.0f} images per CPU second, reference {n / theirs:8,.0f}, "
            f"ratio {theirs / ours:.2f} (at least {least})"
        )
        failed |= theirs / ours < least
    if failed:
        raise SystemExit("a ratio is below its claim")


if __name__ == "__main__":
    main()
