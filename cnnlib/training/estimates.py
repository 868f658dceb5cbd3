"""What a training run will take, said before it is started: memory, counted on the graph, and time, of a few real steps.

Memory is that of the tensors: weights, their gradients, what the optimiser keeps, the values that the way back needs,
the gradients on their way, and the images, all of which lie on the device. Which values the way back needs follows from
what each operation differentiates: a convolution needs what came in, a ReLU what went out, an addition nothing; the
table is `NEEDED`. Not counted are the process itself, the workspace of a convolution and what an allocator holds back.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from cnnlib.data import Batches, DataSet, Split, load_data
from cnnlib.graph import Graph, Node, trace
from cnnlib.training.engine import Plan, _one_epoch, _Randomness, _score, pick_device, plan_for
from cnnlib.training.recipe import Recipe

TIMED_STEPS = 4
TIMED_SECONDS = 2.0
TESTED_AT_ONCE = 1000

# What the way back through an operation needs: "in" and "out" are the values themselves, "" is nothing.
NEEDED = {
    **dict.fromkeys(["conv", "conv_transpose", "linear", "matmul", "mul", "recurrent", "other"], "in"),
    **dict.fromkeys(["batch_norm", "layer_norm", "group_norm", "instance_norm", "local_response_norm"], "in"),
    **dict.fromkeys(["max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "elementwise"], "in"),
    **dict.fromkeys(["softmax"], "out"),
    **dict.fromkeys(["attention"], "in out"),
}
# Of the functions of each value, these are differentiated by their result; the others by what came in.
BY_RESULT = frozenset(["relu", "sigmoid", "tanh", "celu"])
SAME_MEMORY = frozenset(["identity", "split", "item", "slice", "expand", "flatten", "reshape", "permute", "copy"])


def kept_for_the_way_back(graph: Graph, *, value: int = 4, mask: int = 4) -> int:
    """Bytes that autograd keeps of one image, the image included, for a network traced with `training=True`.

    `value` is the bytes of a value, `mask` those of an entry of dropout's mask: 4 on a CPU, 1 on a GPU.
    """
    trained = {name for name, parameter in graph.model.named_parameters() if parameter.requires_grad}
    asked: set[str] = set()  # nodes through which a gradient will pass
    kept: set[str] = set()
    extra = 0
    home: dict[str, str] = {}
    for node in graph:
        shares = node.kind in SAME_MEMORY or node.name in graph.overwriting or _drops_nothing(node, graph)
        home[node.name] = home[node.inputs[0]] if shares and node.inputs else node.name
        weighted = bool(trained & {*node.params, *_parameters(node, graph)}) or node.kind == "parameter"
        if weighted or any(name in asked for name in node.inputs):
            asked.add(node.name)
            if node.live and node.kind != "output":
                needs, more = _needs(node, graph, value, mask)
                extra += more
                if "in" in needs:
                    kept |= {home[name] for name in node.inputs if graph[name].live}
                if "out" in needs:
                    kept.add(home[node.name])
    return value * sum(math.prod(graph[name].shape or ()) for name in kept) + extra


def _parameters(node: Node, graph: Graph) -> set[str]:
    """A layer that is used again is no longer the first to use its parameters, but needs its input all the same."""
    if node.kind in ("input", "output", "parameter", "constant") or node.name.split(":")[0] != node.module:
        return set()
    module = graph.model.get_submodule(node.module)
    return {f"{node.module}.{name}" for name, _ in module.named_parameters()}


def _drops_nothing(node: Node, graph: Graph) -> bool:
    """Dropout with probability 0 hands its input on."""
    return node.kind == "dropout" and node.attrs.get("p") == 0


def _needs(node: Node, graph: Graph, value: int, mask: int) -> tuple[str, int]:
    """What of a node is kept, in the words of `NEEDED`, and the bytes that it adds of its own."""
    size = math.prod(node.shape or ())
    if node.kind == "activation":
        return "out" if node.op.lower().strip("_") in BY_RESULT else "in", 0
    if node.kind == "dropout":
        return "", 0 if _drops_nothing(node, graph) else size * mask
    if node.kind in ("max_pool", "adaptive_max_pool"):
        return "in", 8 * size  # where each maximum stood, as int64
    if node.kind == "adaptive_avg_pool" and math.prod(node.attrs["output_size"]) == 1:
        return "", 0  # a mean, whose gradient is the same everywhere
    if node.kind == "local_response_norm":
        # The sums over neighbouring maps, the divisor, and the squares with maps of zeros around them.
        around = getattr(graph.model.get_submodule(node.module), "size", 5) - 1
        return "in", value * (2 * size + size * (node.shape[0] + around) // node.shape[0])
    if node.kind == "mul" and len([name for name in node.inputs if graph[name].live]) < 2:
        return "", 0
    return NEEDED.get(node.kind, ""), 0


@dataclass(frozen=True, repr=False)
class RunCost:
    """What a recipe takes on one device: bytes of memory by what they hold, and seconds.

    `activations` are the values kept for the way back, `passing` the gradients on their way, `images` both splits as
    bytes and one batch of floats. `step_seconds` is a training step, `test_seconds` one look at the test set.
    """

    model: str
    data: str
    device: str
    epochs: int
    batch_size: int
    train_images: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    passing: int
    images: int
    step_seconds: float
    test_seconds: float

    @property
    def memory(self) -> int:
        """All bytes together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.passing + self.images

    @property
    def steps(self) -> int:
        """Steps of an epoch; the last may be of fewer images."""
        return math.ceil(self.train_images / self.batch_size)

    @property
    def epoch_seconds(self) -> float:
        """One epoch with its look at the test set."""
        return self.step_seconds * self.train_images / min(self.batch_size, self.train_images) + self.test_seconds

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.epochs * self.epoch_seconds

    def __repr__(self) -> str:
        state = self.weights + self.gradients + self.optimizer
        return (
            f"{self.model} on {self.data} ({self.device}): {self.epochs} epoch{'s' * (self.epochs > 1)} of {self.steps:,} "
            f"step{'s' * (self.steps > 1)} with {self.batch_size} images take about {duration(self.seconds)} "
            f"({duration(self.epoch_seconds)} an epoch) and {_bytes(self.memory)} of memory: "
            f"{_bytes(self.activations)} of activations, {_bytes(self.passing)} of gradients on their way, "
            f"{_bytes(self.images)} of images, {_bytes(state)} of weights with their gradients and the optimiser's state"
        )


def duration(seconds: float) -> str:
    """Seconds in the unit that they are read in.

    >>> duration(0.0123), duration(95), duration(600), duration(9000)
    ('12 ms', '95.0 s', '10.0 min', '2.5 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def what_it_costs(
    recipe: Recipe,
    model: nn.Module | None = None,
    data: DataSet | None = None,
    *,
    device: torch.device | str | None = None,
) -> RunCost:
    """Memory and time of one run of `recipe` on this machine, from the graph and from a few real steps.

    `model` and `data` are by default those that the recipe names; a network that is given is copied, not trained.
    FileNotFoundError where the data are not here (nothing is fetched), ValueError where recipe and data do not fit.
    """
    plan = plan_for(pick_device(device))
    if data is None:
        if recipe.data is None:
            raise ValueError("this recipe names no data set; give one: what_it_costs(recipe, data=...)")
        data = load_data(recipe.data, download=False)
    count = len(data.train) if recipe.train_images is None else recipe.train_images
    if count > len(data.train):
        raise ValueError(
            f"the recipe wants {count:,} training images and {data.name!r} has {len(data.train):,}; "
            "leave train_images out for all"
        )
    network = (recipe.build() if model is None else copy.deepcopy(model)).to(plan.device)
    shape = tuple(recipe.preprocess(data.train.images[:1]).shape[1:])
    graph = trace(network, shape, training=True)
    value, mask = (2 if plan.dtype else 4), (1 if plan.device.type == "cuda" else 4)
    batch = min(recipe.batch_size, count)
    widest = max(_moved(node, graph) for node in graph)
    weights = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    gradients = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    timed = _timed(network, data, recipe, plan, batch, count)
    return RunCost(
        model=recipe.model or type(network).__name__,
        data=data.name,
        device=torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else plan.device.type,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        train_images=count,
        weights=weights,
        gradients=gradients,
        optimizer=timed.optimizer,
        activations=batch * kept_for_the_way_back(graph, value=value, mask=mask),
        passing=batch * widest * value,
        images=_image_bytes(data, recipe, count) + batch * math.prod(shape) * 4,
        step_seconds=timed.step,
        test_seconds=timed.test,
    )


def _moved(node: Node, graph: Graph) -> int:
    """Values of an operation's result and operands: the gradients of both are there at the same moment."""
    return sum(math.prod(graph[name].shape or ()) for name in (node.name, *node.inputs) if graph[name].live)


def _image_bytes(data: DataSet, recipe: Recipe, count: int) -> int:
    """The bytes of both splits, and of the padded and mirrored copy that batches are cut from."""
    images = torch.empty((count, *data.train.images.shape[1:]), dtype=torch.uint8, device="meta")
    copies = Batches(images, recipe.augment).source
    extra = copies.numel() if copies is not images else 0
    return images.numel() + extra + data.test.images.numel()


@dataclass(frozen=True)
class _Timed:
    step: float
    test: float
    optimizer: int


def _timed(network: nn.Module, data: DataSet, recipe: Recipe, plan: Plan, batch: int, count: int) -> _Timed:
    """Seconds of a training step and of a look at the test set, and the bytes of the optimiser's state."""
    # A tiny step is enough to time one, and leads no loss astray.
    gentle = recipe.but(lr=1e-5, warmup=0.0)
    most = max(1, min(TIMED_STEPS, count // batch))
    test = Split(data.test.images[:TESTED_AT_ONCE], data.test.labels[:TESTED_AT_ONCE]).to(plan.device)
    one = Split(test.images[:1], test.labels[:1])
    if plan.channels_last:
        network.to(memory_format=torch.channels_last)
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = gentle.optimizer(weights, gentle.lr, gentle.weight_decay, plan.fused)
    randomness = _Randomness(gentle.seed, plan.device)

    def step(number: int) -> float:
        train = Split(data.train.images[: number * batch], data.train.labels[: number * batch]).to(plan.device)
        cut = Batches(train.images, gentle.augment)
        network.train()
        with randomness.own(), plan.reproducible():
            epoch = _one_epoch(network, train, cut, one, gentle, plan, optimizer, randomness.order, 1)
        return epoch.seconds / number

    first = step(1)  # fills caches and picks kernels
    seconds = step(max(1, min(most, int(TIMED_SECONDS / first))))
    with torch.no_grad(), plan.reproducible():
        start = time.perf_counter()
        _score(network, test, gentle.preprocess, gentle.criterion, plan, TESTED_AT_ONCE)
        look = time.perf_counter() - start
    state = [t for held in optimizer.state.values() for t in held.values() if isinstance(t, torch.Tensor)]
    return _Timed(
        step=seconds,
        test=look * len(data.test) / len(test),
        optimizer=sum(t.numel() * t.element_size() for t in state),
    )
