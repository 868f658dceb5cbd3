"""Make fashion_mnist_mini.npz from the four official files of Fashion-MNIST.

usage: python data/make_fashion_mnist_mini.py FOLDER [OUT.npz]

FOLDER holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each as
it is or with .gz. Taken are the first 500 training and the first 100 test images of each of the ten classes, in the
official order: 5,000 and 1,000 images, 28 x 28 bytes each. No random number is drawn. Prints the file's sha256.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np


def read_idx(folder: Path, name: str) -> np.ndarray:
    """The array of bytes in an idx file: two zeros, the type 8 (bytes), the number of axes, their sizes, the bytes."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.is_file():
        content = plain.read_bytes()
    elif packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    else:
        raise SystemExit(
            f"{folder} has neither {name} nor {name}.gz; give the folder of Fashion-MNIST's official files"
        )
    zeros, kind, axes = int.from_bytes(content[:2], "big"), content[2], content[3]
    if zeros != 0 or kind != 8:
        raise SystemExit(f"{folder / name} is no idx file of bytes; download it again")
    shape = np.frombuffer(content, ">u4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def first_of_each(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images of each class, still in the order of the file."""
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == digit)[:count] for digit in range(10)]))
    return images[chosen], labels[chosen]


def main(folder: Path, out: Path) -> None:
    arrays = {}
    for split, prefix, count in (("train", "train", 500), ("test", "t10k", 100)):
        images = read_idx(folder, f"{prefix}-images-idx3-ubyte")
        labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte")
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = first_of_each(images, labels, count)
    np.savez_compressed(out, **arrays)
    print(f"{hashlib.sha256(out.read_bytes()).hexdigest()}  {out.name}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent / "fashion_mnist_mini.npz"
    main(Path(sys.argv[1]), target)
