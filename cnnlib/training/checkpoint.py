"""A file that is either the old checkpoint or the new one, whole, whatever happens to the process or the power."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cnnlib.training.recipe import differences


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a file beside `path`, and put it in `path`'s place only when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)
    if os.name == "posix":  # the new name must be on the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: Path, state: dict[str, Any]) -> None:
    """Put `state` (tensors and plain values) in the place of the checkpoint at `path`."""
    write_whole(path, lambda stream: torch.save(state, stream))


def load(path: Path, identity: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
    """The state saved at `path`, or None where there is none.

    `identity` is what the run is: recipe (as JSON), data digest, shapes of the network, device. ValueError where the
    file is of another run, naming what differs, or is damaged.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        there = state["identity"]
    except Exception as error:  # a damaged file may make the reader stumble anywhere
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the checkpoint {path} cannot be read ({reason}); delete it to start anew") from error
    if there != identity:
        differs = differences(there["recipe"], identity["recipe"])
        for name, phrase in (
            ("data", "it was trained on other data"),
            ("network", "its network has other parameters"),
            ("device", f"it was made on {there['device']} and this is {identity['device']}"),
        ):
            if there[name] != identity[name]:
                differs.append(phrase)
        raise ValueError(
            f"the checkpoint {path} is of another run: {'; '.join(differs)}; "
            "give another file, or delete this one to start anew"
        )
    return state
