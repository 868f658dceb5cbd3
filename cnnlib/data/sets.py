"""The data sets: one row each, where their bytes come from, and how it is known that these are the right bytes.

A set is looked for under `cnnlib.paths.cache_dir()` in torchvision's own layout, so that a folder that torchvision
filled serves as it is. What is missing is fetched through torchvision into a folder beside the target, checked there,
and only then moved into place; a lock makes a second process wait instead of fetching too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnnlib.errors import unknown
from cnnlib.paths import cache_dir, data_dir


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64, on one device."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(
                f"a split's images are bytes (N, C, H, W) uint8, got {tuple(self.images.shape)} {self.images.dtype}; "
                "scaling to floats belongs to Preprocess"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"a split's labels are ({len(self.images)},) int64, one an image, got {tuple(self.labels.shape)} "
                f"{self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; itself where it lies there already."""
        return (
            self
            if self.images.device == torch.device(device)
            else Split(self.images.to(device), self.labels.to(device))
        )

    def subset(self, n: int, *, stratified: bool = True, seed: int = 0) -> Split:
        """`n` images drawn without replacement, in the order of the split; `stratified` keeps the classes' shares.

        A class of share s gives the whole part of n * s images, and the largest remainders one more each.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(self):
            raise ValueError(f"a subset has 1 .. {len(self)} images of this split, got {n!r}")
        generator = torch.Generator().manual_seed(seed)
        labels = self.labels.cpu()
        order = torch.randperm(len(self), generator=generator)
        if stratified:
            counts = torch.bincount(labels)
            shares = counts * n / len(self)
            quota = shares.floor().long()
            most_missed = torch.argsort(shares - quota, descending=True, stable=True)
            quota[most_missed[: n - int(quota.sum())]] += 1
            chosen = torch.cat([order[labels[order] == c][: quota[c]] for c in range(len(counts))])
        else:
            chosen = order[:n]
        chosen = chosen.sort().values.to(self.images.device)
        return Split(self.images[chosen], self.labels[chosen])


class DataSet:
    """A named set with its two splits, read when first asked for.

    `train` and `test` are splits, or functions that read them. `digest` identifies the bytes, `origin` says where they
    come from and `licence` under which terms; a digest that is not given is computed from the two splits.
    """

    def __init__(
        self,
        name: str,
        *,
        train: Split | Callable[[], Split],
        test: Split | Callable[[], Split],
        classes: tuple[str, ...],
        title: str = "",
        licence: str = "",
        origin: str = "",
        digest: str | Callable[[], str] | None = None,
    ) -> None:
        self.name, self.title, self.classes, self.licence, self.origin = name, title or name, classes, licence, origin
        self._train, self._test, self._digest = train, test, digest

    @functools.cached_property
    def train(self) -> Split:
        return self._train if isinstance(self._train, Split) else self._train()

    @functools.cached_property
    def test(self) -> Split:
        return self._test if isinstance(self._test, Split) else self._test()

    @functools.cached_property
    def digest(self) -> str:
        if self._digest is None:
            return _digest_of_splits(self.train, self.test)
        return self._digest if isinstance(self._digest, str) else self._digest()

    def to(self, device: torch.device | str) -> DataSet:
        """The same set with both splits on `device`."""
        return DataSet(
            self.name,
            train=self.train.to(device),
            test=self.test.to(device),
            classes=self.classes,
            title=self.title,
            licence=self.licence,
            origin=self.origin,
            digest=self.digest,
        )

    def __repr__(self) -> str:
        return f"DataSet({self.name!r}: {self.title}, {len(self.classes)} classes)"


def _digest_of_splits(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.cpu().contiguous().numpy().tobytes())
        digest.update(split.labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Row:
    """One line of the table below.

    `reader` and `fetcher` are functions of this file; `files` maps each file under the root to its checksum. A set that
    is a folder of images has `folder` instead, and `counts`, the images of its training and test folders.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    licence: str
    origin: str
    reader: str
    torchvision: str = ""
    files: dict[str, str] = field(default_factory=dict)
    folder: str = ""
    counts: tuple[int, int] = (0, 0)


_DIGITS = tuple("0123456789")
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The order of the folders' WordNet ids, n01440764 .. n03888257.
_IMAGENETTE = (
    *("tench", "English springer", "cassette player", "chain saw", "church"),
    *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
)
_IMAGENET_TERMS = "photos under ImageNet's terms of access (research, non-commercial); lists and tools Apache-2.0"

# fmt: off
SETS = (
    Row("fashion_mnist_mini", "Fashion-MNIST, 5,000 + 1,000 of its images", _CLOTHES, "MIT, Copyright (c) 2017 Zalando SE",
        "the first 500 training and 100 test images of each class of github.com/zalandoresearch/fashion-mnist",
        "_read_npz", files={
            "fashion_mnist_mini.npz": "sha256:1064eff4cef408fe773c6040772d7cb7c114c2d2b60accb705d268cbecb8d44e"}),
    Row("fashion_mnist", "Fashion-MNIST", _CLOTHES, "MIT, Copyright (c) 2017 Zalando SE",
        "github.com/zalandoresearch/fashion-mnist", "_read_idx", "FashionMNIST", {
            "FashionMNIST/raw/train-images-idx3-ubyte": "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "FashionMNIST/raw/train-labels-idx1-ubyte": "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "FashionMNIST/raw/t10k-images-idx3-ubyte": "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "FashionMNIST/raw/t10k-labels-idx1-ubyte": "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"}),
    Row("mnist", "MNIST", _DIGITS, "usually given as CC BY-SA 3.0 (LeCun, Cortes, Burges)",
        "yann.lecun.com/exdb/mnist", "_read_idx", "MNIST", {
            "MNIST/raw/train-images-idx3-ubyte": "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "MNIST/raw/train-labels-idx1-ubyte": "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "MNIST/raw/t10k-images-idx3-ubyte": "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "MNIST/raw/t10k-labels-idx1-ubyte": "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"}),
    Row("cifar10", "CIFAR-10", _CIFAR10, "none stated; cite Krizhevsky 2009", "www.cs.toronto.edu/~kriz/cifar.html",
        "_read_cifar", "CIFAR10", {
            "cifar-10-batches-py/batches.meta": "sha256:f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
            "cifar-10-batches-py/data_batch_1": "sha256:54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
            "cifar-10-batches-py/data_batch_2": "sha256:766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
            "cifar-10-batches-py/data_batch_3": "sha256:0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
            "cifar-10-batches-py/data_batch_4": "sha256:3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
            "cifar-10-batches-py/data_batch_5": "sha256:d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
            "cifar-10-batches-py/test_batch": "sha256:f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"}),
    Row("cifar100", "CIFAR-100", (), "none stated; cite Krizhevsky 2009", "www.cs.toronto.edu/~kriz/cifar.html",
        "_read_cifar", "CIFAR100", {  # the checksums that torchvision knows
            "cifar-100-python/meta": "md5:7973b15100ade9c7d40fb424638fde48",
            "cifar-100-python/train": "md5:16019d7e3df5f24257cddd939b257f8d",
            "cifar-100-python/test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"}),
    Row("imagenette", "Imagenette at 160 px, the central square", _IMAGENETTE, _IMAGENET_TERMS,
        "github.com/fastai/imagenette (v2, 160 px)", "_read_folder", "Imagenette",
        folder="imagenette2-160", counts=(9469, 3925)),
    Row("imagenette128", "Imagenette squashed to 128 px", _IMAGENETTE, _IMAGENET_TERMS,
        "github.com/fastai/imagenette (v2), resized to 128 x 128", "_read_folder",
        folder="imagenette2-128", counts=(9469, 3925)),
)
# fmt: on

_ROWS = {row.name: row for row in SETS}


def list_data() -> list[str]:
    """The names that `load_data` takes."""
    return list(_ROWS)


def _row(name: str) -> Row:
    if name not in _ROWS:
        raise unknown("data set", name, _ROWS)
    return _ROWS[name]


def known_digest(name: str) -> str | None:
    """The digest of a set whose files are known one by one, without reading it; None for a folder of images."""
    row = _row(name)
    if not row.files:
        return None
    return hashlib.sha256("".join(f"{path} {sum}\n" for path, sum in sorted(row.files.items())).encode()).hexdigest()


def load_data(name: str, *, download: bool = True) -> DataSet:
    """The data set `name`, checked against its checksums, and fetched first if it is not here and `download` allows it.

    FileNotFoundError, saying where it was looked for, when it is neither here nor to be had; ValueError for an unknown
    name or a damaged file.

    >>> data = load_data("fashion_mnist_mini")
    >>> data.train.images.shape, data.test.labels.bincount().tolist()
    (torch.Size([5000, 1, 28, 28]), [100, 100, 100, 100, 100, 100, 100, 100, 100, 100])
    """
    row = _row(name)
    root = data_dir() if row.reader == "_read_npz" else cache_dir()
    if not _complete(row, root):
        _obtain(row, root, download)
    reader = globals()[row.reader]
    return DataSet(
        row.name,
        train=lambda: reader(row, root, True),
        test=lambda: reader(row, root, False),
        classes=row.classes or _class_names(row, root),
        title=row.title,
        licence=row.licence,
        origin=row.origin,
        digest=known_digest(name) or (lambda: _digest_of_folder(root / row.folder)),
    )


# --- is it here, and is it whole?


def _complete(row: Row, root: Path) -> bool:
    """Whether all files of the set are under `root`; ValueError if one is there and is not what it should be."""
    if row.folder:
        return (root / row.folder).is_dir() and _check_counts(row, root)
    present = [path for path in row.files if (root / path).is_file()]
    for path in present:
        _check_file(row, root, path)
    return len(present) == len(row.files)


def _check_file(row: Row, root: Path, path: str) -> None:
    kind, expected = row.files[path].split(":")
    with open(root / path, "rb") as stream:
        found = hashlib.file_digest(stream, kind).hexdigest()
    if found != expected:
        raise ValueError(
            f"{root / path} is damaged: its {kind} should be {expected} and is {found}; "
            f"delete the file and call load_data({row.name!r}) again"
        )


def _check_counts(row: Row, root: Path) -> bool:
    for split, expected in zip(("train", "val"), row.counts):
        found = sum(1 for _ in (root / row.folder / split).glob("*/*"))
        if found != expected:
            raise ValueError(
                f"{root / row.folder / split} is damaged: it should hold {expected:,} images and holds {found:,}; "
                f"delete {root / row.folder} and lay it out again"
            )
    return True


def _digest_of_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*/*")):
        digest.update(
            f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return digest.hexdigest()


# --- fetching


def _obtain(row: Row, root: Path, download: bool) -> None:
    """Fetch the set into `root`: beside the target first, checked there, then moved file by file."""
    wanted = [f"{row.folder}/train/CLASS/*", f"{row.folder}/val/CLASS/*"] if row.folder else list(row.files)
    way_out = (
        f"set CNNLIB_DATA to a folder that holds {wanted[0]}"
        + (f" and {len(wanted) - 1} more ({', '.join(wanted[1:])})" if wanted[1:] else "")
        + ("; or call this once with a network" if row.torchvision else "; it is not offered for download")
        + "; or use load_data('fashion_mnist_mini'), a smaller set of clothes that needs neither"
    )
    if row.reader == "_read_npz":
        raise FileNotFoundError(f"{root / wanted[0]} travels with cnnlib and is not there; install cnnlib again")
    if not (download and row.torchvision):
        why = "" if not row.torchvision else ", and download=False forbids fetching it"
        raise FileNotFoundError(f"data set {row.name!r} is not under {root}{why}; {way_out}")

    from filelock import FileLock

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{row.name}.lock")
        lock.acquire()
    except OSError as error:
        raise FileNotFoundError(
            f"data set {row.name!r} is not under {root}, where nothing can be written ({error}); {way_out}"
        ) from error
    # The lock is held by one process only, so a folder that a killed one left behind can be cleared.
    part = root / f".{row.name}.part"
    try:
        if _complete(row, root):
            return
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            _fetch(row, part)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise FileNotFoundError(
                f"data set {row.name!r} is not under {root} and could not be fetched ({reason}); {way_out}"
            ) from error
        if not _complete(row, part):
            raise FileNotFoundError(
                f"what torchvision fetched for {row.name!r} lacks some of {', '.join(wanted)}; {way_out}"
            )
        for path in [row.folder] if row.folder else row.files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(part / path, root / path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        lock.release()


def _fetch(row: Row, folder: Path) -> None:
    """Let torchvision download and unpack the set into `folder`, giving a silent server up after 30 seconds."""
    from torchvision import datasets

    options = {"split": "train", "size": "160px"} if row.torchvision == "Imagenette" else {}
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        getattr(datasets, row.torchvision)(folder, download=True, **options)
    finally:
        socket.setdefaulttimeout(before)


# --- reading


def _read_npz(row: Row, root: Path, train: bool) -> Split:
    prefix = "train" if train else "test"
    with np.load(root / next(iter(row.files))) as arrays:
        images, labels = arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"]
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())


def _read_idx(row: Row, root: Path, train: bool) -> Split:
    from torchvision import datasets

    stored = getattr(datasets, row.torchvision)(root, train=train)
    return Split(stored.data.unsqueeze(1), stored.targets.long())


def _read_cifar(row: Row, root: Path, train: bool) -> Split:
    from torchvision import datasets

    stored = getattr(datasets, row.torchvision)(root, train=train)
    images = torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(stored.targets))


def _class_names(row: Row, root: Path) -> tuple[str, ...]:
    from torchvision import datasets

    return tuple(getattr(datasets, row.torchvision)(root, train=False).classes)


def _read_folder(row: Row, root: Path, train: bool) -> Split:
    from torchvision.datasets import ImageFolder

    folder = root / row.folder / ("train" if train else "val")
    listing = ImageFolder(folder)
    images, labels = None, torch.tensor(listing.targets)
    for n, (path, _) in enumerate(listing.samples):
        image = _central_square(path)
        if images is None:
            images = torch.empty((len(listing), 3, *image.shape[:2]), dtype=torch.uint8)
        if image.shape[:2] != images.shape[2:]:
            raise ValueError(
                f"{path} has a central square of {image.shape[0]} pixels and the images before it have "
                f"{images.shape[2]}; a set of whole tensors needs one size"
            )
        images[n] = torch.from_numpy(image).permute(2, 0, 1)
    return Split(images, labels)


def _central_square(path: str) -> np.ndarray:
    """(S, S, 3): the image's central square, S its shorter side."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path} is damaged ({error}); delete the data set's folder and lay it out again") from error
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]
