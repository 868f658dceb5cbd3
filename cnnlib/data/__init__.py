"""Floor 1: data sets as whole tensors, and augmentation on whole batches.

Images are uint8 (N, C, H, W), labels int64 (N,). `load_data("fashion_mnist_mini")` needs no network; the others are
looked for in `cnnlib.paths.cache_dir()` and fetched there once.
"""

from cnnlib.data.augment import Batches, Cutout, HorizontalFlip, Preprocess, RandomCrop, crop, cutout, flip
from cnnlib.data.sets import DataSet, Split, list_data, load_data

__all__ = [
    "Batches",
    "Cutout",
    "DataSet",
    "HorizontalFlip",
    "Preprocess",
    "RandomCrop",
    "Split",
    "crop",
    "cutout",
    "flip",
    "list_data",
    "load_data",
]
