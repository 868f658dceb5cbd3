"""The training loop: a network, data and a recipe in, one `Epoch` after another out.

The data lie on the device as bytes; a batch is cut out by index, augmented and scaled there. Nothing is printed, and
nothing waits for the device inside an epoch except a look at the losses every 64 steps.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlib.data import Batches, DataSet, Preprocess, Split
from cnnlib.training import checkpoint as checkpoints
from cnnlib.training.parts import CrossEntropy
from cnnlib.training.recipe import Recipe

LOOK_EVERY = 64


@dataclass(frozen=True)
class Epoch:
    """What one epoch did; accuracies from 0 to 1, `lr` that of its last step.

    Training loss and accuracy are means over the epoch, on augmented images and while the weights change. `seconds` is
    the training part alone. Two epochs are equal if they learned the same, however long it took.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float = field(compare=False)
    images_per_second: float = field(compare=False)


@dataclass(frozen=True)
class Score:
    """How a network did on a split: mean loss, and `correct` of `images`."""

    loss: float
    correct: int
    images: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.images


@dataclass(frozen=True)
class Plan:
    """What a device does best: autocast to `dtype` (None: float32), channels-last images, a fused optimiser step."""

    device: torch.device
    dtype: torch.dtype | None
    channels_last: bool
    fused: bool

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def images(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def reproducible(self) -> contextlib.AbstractContextManager:
        """The same convolution kernels in every run; a CPU has them anyway."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """`device` as given, else the first CUDA GPU, else an Apple GPU, else the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def plan_for(device: torch.device) -> Plan:
    """The plan for a kind of device.

    Channels-last and a fused optimiser step pay on both (a step of LeNet-5 takes 0.83, of the 1998 net 0.5, of a
    ResNet-20 0.8 of its time on one CPU core), bfloat16 only where tensor cores take it; a compiled step has not earned
    its minutes of compiling on networks of this size.
    """
    if device.type == "cuda":
        return Plan(device, torch.bfloat16 if torch.cuda.is_bf16_supported() else None, channels_last=True, fused=True)
    return Plan(device, None, channels_last=device.type == "cpu", fused=device.type == "cpu")


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode again after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def scores(
    model: nn.Module,
    images: Tensor,
    preprocess: Preprocess,
    *,
    batch_size: int = 1000,
    device: torch.device | str | None = None,
) -> Tensor:
    """(N, C, H, W) uint8 -> what the network returns for them, float32 on the CPU; the network stays as it was."""
    plan = plan_for(_home(model, device))
    with _evaluating(model), plan.autocast():
        parts = [
            model(plan.images(preprocess(batch.to(plan.device)))).float().cpu() for batch in images.split(batch_size)
        ]
    return torch.cat(parts)


def evaluate(
    model: nn.Module,
    split: Split,
    preprocess: Preprocess,
    criterion: Any = CrossEntropy(),  # noqa: B008  (frozen)
    *,
    batch_size: int = 1000,
    device: torch.device | str | None = None,
) -> Score:
    """Loss and number of right answers on a split; modes, weights and random state of the network stay as they were."""
    plan = plan_for(_home(model, device))
    split = split.to(plan.device)
    with _evaluating(model):
        return _score(model, split, preprocess, criterion, plan, batch_size)


def _home(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Where the network lies, unless told otherwise; ValueError where the two differ."""
    first = next(model.parameters(), None)
    home = pick_device(device) if first is None else first.device
    if device is not None and torch.device(device).type != home.type:
        raise ValueError(f"the network lies on {home} and device={str(device)!r} was asked for; move it: model.to(...)")
    return home


def _score(
    model: nn.Module, split: Split, preprocess: Preprocess, criterion: Any, plan: Plan, batch_size: int
) -> Score:
    loss = torch.zeros((), device=plan.device)
    correct = torch.zeros((), dtype=torch.int64, device=plan.device)
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size)):
        with plan.autocast():
            output = model(plan.images(preprocess(images)))
        output = output.float()
        loss += criterion.loss(output, labels) * len(labels)
        correct += (criterion.scores(output).argmax(1) == labels).sum()
    return Score(float(loss) / len(split), int(correct), len(split))


def fit(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    *,
    device: torch.device | str | None = None,
    checkpoint: str | Path | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place on `data.train` and test it on `data.test`, yielding one `Epoch` after another.

    Nothing happens until it is iterated: `history = list(cnnlib.fit(model, data, recipe))`. At each yield the network is
    in evaluation mode. With `checkpoint`, a file, each epoch is saved there before it is yielded; a run that was stopped,
    even by `kill -9`, starts again after its last whole epoch, yields the epochs that it had before once more, and ends
    in the same weights as if it had never stopped. Under one seed a CPU repeats a run bit for bit. ValueError where
    recipe and data do not fit or the checkpoint is of another run; FloatingPointError when the loss is no number.
    """
    if recipe.data is not None and recipe.data != data.name:
        raise ValueError(
            f"the recipe is for the data set {recipe.data!r}, got {data.name!r}; "
            f"load_data({recipe.data!r}), or recipe.but(data={data.name!r})"
        )
    if recipe.train_images is not None and recipe.train_images > len(data.train):
        raise ValueError(
            f"the recipe wants {recipe.train_images:,} training images and {data.name!r} has {len(data.train):,}; "
            "leave train_images out for all"
        )
    return _fit(model, data, recipe, plan_for(pick_device(device)), None if checkpoint is None else Path(checkpoint))


def _fit(model: nn.Module, data: DataSet, recipe: Recipe, plan: Plan, path: Path | None) -> Iterator[Epoch]:
    model.to(plan.device)
    if plan.channels_last:
        model.to(memory_format=torch.channels_last)
    train, test = data.train, data.test.to(plan.device)
    if recipe.train_images is not None:
        train = train.subset(recipe.train_images, seed=0)
    train = train.to(plan.device)
    cut = Batches(train.images, recipe.augment)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = recipe.optimizer(weights, recipe.lr, recipe.weight_decay, plan.fused)
    randomness = _Randomness(recipe.seed, plan.device)
    history: list[Epoch] = []
    with contextlib.ExitStack() as stack:
        # Only the loop wants this order of the weights; whoever takes a view of them later does not.
        stack.callback(model.to, memory_format=torch.contiguous_format)
        if path is not None:
            identity = {
                "recipe": recipe.to_json(),
                "data": data.digest,
                "network": [[name, list(value.shape)] for name, value in model.state_dict().items()],
                "device": plan.device.type,
            }
            stack.enter_context(_sole_user(path))
            state = checkpoints.load(path, identity, plan.device)
            if state is not None:
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
                randomness.load(state["randomness"])
                history = [Epoch(**epoch) for epoch in state["history"]]
        model.eval()
        yield from history
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            model.train()
            with randomness.own(), plan.reproducible():
                record = _one_epoch(model, train, cut, test, recipe, plan, optimizer, randomness.order, epoch)
            history.append(record)
            if path is not None:
                state = {
                    "identity": identity,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "randomness": randomness.state(),
                    "history": [asdict(record) for record in history],
                }
                checkpoints.save(path, state)
            yield record


def _one_epoch(
    model: nn.Module,
    train: Split,
    cut: Batches,
    test: Split,
    recipe: Recipe,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    epoch: int,
) -> Epoch:
    started = time.perf_counter()
    batches = torch.randperm(len(train), generator=order).to(plan.device).split(recipe.batch_size)
    losses = torch.zeros(len(batches), device=plan.device)
    correct = torch.zeros((), dtype=torch.int64, device=plan.device)
    lr = recipe.lr
    for step, batch in enumerate(batches):
        lr = recipe.lr_at(epoch - 1 + step / len(batches), 1 / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = lr
        x = plan.images(recipe.preprocess(cut(batch, order)))
        labels = train.labels[batch]
        with plan.autocast():
            output = model(x)
        output = output.float()
        loss = recipe.criterion.loss(output, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            losses[step] = loss
            correct += (recipe.criterion.scores(output).argmax(1) == labels).sum()
        if step % LOOK_EVERY == LOOK_EVERY - 1 or step == len(batches) - 1:
            _check(losses[: step + 1], epoch, len(batches), recipe)
    sizes = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
    train_loss = float(losses.cpu().double() @ sizes) / len(train)
    train_accuracy = int(correct) / len(train)
    seconds = time.perf_counter() - started
    model.eval()
    with torch.no_grad():
        tested = _score(model, test, recipe.preprocess, recipe.criterion, plan, 1000)
    speed = len(train) / seconds
    return Epoch(epoch, lr, train_loss, train_accuracy, tested.loss, tested.accuracy, seconds, speed)


def _check(losses: Tensor, epoch: int, steps: int, recipe: Recipe) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        lr = recipe.lr_at(epoch - 1 + step / steps, 1 / steps)
        value = float(losses[step])
        raise FloatingPointError(
            f"the loss became {'nan' if math.isnan(value) else value} in epoch {epoch}, step {step + 1} of {steps}, at "
            f"learning rate {lr:.3g}; lower the learning rate, or warm up for longer"
        )


class _Randomness:
    """The random states of one run: `order` for shuffling and augmentation, and torch's own for dropout and the like.

    torch's own state is put in place only while an epoch runs, so that the caller's random numbers are left alone.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.order = torch.Generator().manual_seed(seed)
        with self._callers_kept():
            torch.manual_seed(seed)
            self._states = self._read()

    def _callers_kept(self) -> contextlib.AbstractContextManager:
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def _read(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        with self._callers_kept():
            torch.set_rng_state(self._states["cpu"])
            if "cuda" in self._states:
                torch.cuda.set_rng_state(self._states["cuda"], self.device)
            yield
            self._states = self._read()

    def state(self) -> dict[str, Tensor]:
        return {"order": self.order.get_state(), **self._states}

    def load(self, state: dict[str, Tensor]) -> None:
        self.order.set_state(state["order"])
        self._states = {name: value for name, value in state.items() if name != "order"}


@contextlib.contextmanager
def _sole_user(path: Path) -> Iterator[None]:
    """Hold the checkpoint for this run; ValueError if another one, of any process, trains with it at this moment."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another run is training with the checkpoint {path} at this moment; wait for it, or give another file"
        ) from None
    try:
        yield
    finally:
        lock.release()
