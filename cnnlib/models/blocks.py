"""Parts that more than one paper needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cnnlib.errors import listed


@dataclass(frozen=True)
class InputGuard:
    """Refuses a batch that the network cannot take, before a layer deep inside fails with a sentence about matrices.

    `zoo.build` hangs it on a network as a forward pre-hook and `cnnlib.trace` asks it too; it computes nothing.
    `exact`: the network takes this height and width only; else any height and width of at least `least`.
    """

    name: str
    channels: int
    size: tuple[int, int]
    exact: bool
    least: int

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless `shape` is (N, C, H, W) as the network wants it."""
        wanted = (self.channels, *self.size) if self.exact else (self.channels, "H", "W")
        if len(shape) != 4:
            raise ValueError(
                f"{self.name} takes a batch of images (N, {', '.join(map(str, wanted))}), got a tensor of shape "
                f"({', '.join(map(str, shape))}); a single image needs a batch axis: x[None]"
            )
        _, channels, *size = shape
        if channels != self.channels:
            raise ValueError(
                f"{self.name} was built for {self.channels} input channel{'s' * (self.channels != 1)}, got images of "
                f"{channels}; build({self.name!r}, in_channels={channels}) if the network may be changed"
            )
        if self.exact and tuple(size) != self.size:
            raise ValueError(
                f"{self.name} takes images of {listed(self.size)} only, got {listed(size)}; "
                f"pad or resize them to {listed(self.size)}"
            )
        if min(size) < self.least:
            raise ValueError(
                f"{self.name} takes images of at least {self.least}x{self.least}, got {listed(size)}; "
                f"the paper's size is {listed(self.size)}"
            )

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.check(tuple(args[0].shape))


def init_fan_out(module: nn.Module) -> None:
    """He's normal with variance 2 / (k * k * outputs) and linear bias 0, as fb.resnet.torch and its descendants start.

    Batch norm starts at 1 and 0, and linear weights uniform in +-1 / sqrt(inputs), as in Torch; PyTorch does so unasked.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
