"""What training really keeps between the pass forward and the pass back, asked of autograd and not counted by us.

Nothing is computed: the network and the images are on torch's meta device, where tensors have sizes and no values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnlib.errors import listed
from cnnlib.tracing import borrowed, on_meta


def kept_bytes(model: nn.Module, input_shape: tuple[int, int, int], images: int = 2) -> int:
    """The bytes that one image's pass forward in training mode leaves for the pass back, images (C, H, W).

    Memory is counted once however often it is kept, and without the network's own parameters and buffers. Two batches
    are measured, of `images` and of twice as many, since what does not grow with the batch is no image's. The network
    is as it was afterwards. ValueError for a network that keeps nothing, since none of its parameters is trained.
    """
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    few, many = (_kept(model, (n, *input_shape)) for n in (images, 2 * images))
    if not many:
        raise ValueError(f"{type(model).__name__} keeps nothing: no parameter has requires_grad set")
    return (many - few) // images


def _kept(model: nn.Module, shape: tuple[int, ...]) -> int:
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"input_shape must be (C, H, W) in whole numbers of at least 1, got {listed(shape[1:])}")
    with borrowed(model, on_meta, training=True), torch.enable_grad(), torch.device("meta"):
        weights = list(model.parameters())
        own = {tensor.untyped_storage()._cdata for tensor in (*weights, *model.buffers())}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                sizes[storage._cdata] = storage.nbytes()
            return tensor

        images = torch.empty(shape, dtype=weights[0].dtype if weights else None)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = model(images)  # holds what is kept, so that no memory is used twice
        del result
    return sum(sizes.values())
