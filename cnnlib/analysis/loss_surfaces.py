"""The loss around a network's weights, along directions through the space of all weights (Li et al. 2018, arXiv:1712.09913).

A surface is f(x, y) = L(w + x d + y e). Two networks can be compared only if a step means the same in both: the function
of a network with batch norm or ReLU does not change when a filter and what follows it are scaled, the loss along a fixed
step does. The paper's answer is filter normalisation (section 4): each filter of a random direction gets the length of the
network's own filter. Biases and the parameters of normalisations do not move.

Units: loss in nats, error from 0 to 1; x and y count directions. Standard errors are those of a stratified draw without
replacement: how far the value of the whole split may lie from that of the images looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlib import tables
from cnnlib.analysis.folding import Folded
from cnnlib.analysis.prices import Passes, priced
from cnnlib.data import Preprocess, Split
from cnnlib.errors import unknown
from cnnlib.graph import Graph, Node, check_input_shape, trace
from cnnlib.progress import progress
from cnnlib.tracing import borrowed

BATCH_NORM = {
    "running": "the statistics that training left, at every point (the paper's)",
    "re-estimated": "statistics estimated anew at each point, the mean over the batches",
    "batch": "each batch normalised by its own statistics, as in training",
}
NORMALISE = ("filter", "layer", "none")
BATCH = {"cpu": 32, "cuda": 1024}  # a batch of small images that stays in the cache is the quickest on a CPU


# ---------------------------------------------------------------------------------------------------------------
# Directions


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction through weight space: `steps` is what a step of 1 adds to each of the named tensors; the rest stays."""

    steps: dict[str, Tensor]
    label: str

    def __neg__(self) -> Direction:
        return Direction({name: -step for name, step in self.steps.items()}, f"-({self.label})")

    @property
    def length(self) -> float:
        """The Euclidean length of a step of 1."""
        return math.sqrt(sum(float(step.double().square().sum()) for step in self.steps.values()))

    def __repr__(self) -> str:
        return f"Direction({self.label}: {len(self.steps)} tensors, length {self.length:.4g})"


def filters(weight: Tensor, transposed: bool = False, groups: int = 1) -> Tensor:
    """A weight as (filters, numbers): a filter is all numbers that one output map is computed with.

    >>> filters(torch.zeros(16, 3, 5, 5)).shape
    torch.Size([16, 75])
    """
    if not transposed:
        return weight.reshape(len(weight), -1)
    # A transposed convolution's weight is (inputs, outputs of one group, ...).
    inputs, outputs = weight.shape[:2]
    by_group = weight.reshape(groups, inputs // groups, outputs, -1)
    return by_group.transpose(1, 2).reshape(groups * outputs, -1)


def _like_weight(rows: Tensor, weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """`filters` undone."""
    if not transposed:
        return rows.reshape(weight.shape)
    inputs, outputs = weight.shape[:2]
    return rows.reshape(groups, outputs, inputs // groups, -1).transpose(1, 2).reshape(weight.shape)


def _moving(graph: Graph) -> dict[str, tuple[bool, int]]:
    """The parameters that a direction moves, in their order: whether they are of a transposed convolution, and its groups.

    These are the weights of convolutions and matrices; not biases, scales and what belongs to a normalisation.
    """
    sizes = {name: p.shape for name, p in graph.model.named_parameters()}
    found: dict[str, tuple[bool, int]] = {}

    def take(name: str, node: Node) -> None:
        transposed = node.kind == "conv_transpose"
        layer = node.kind in ("conv", "conv_transpose", "linear")
        shape = sizes[name]
        # A matrix with one row is a filter of a layer; elsewhere, numbers along one axis only are biases and scales.
        matrix = len(shape) > 1 and (layer or sum(size > 1 for size in shape) > 1)
        if matrix and not node.kind.endswith("_norm"):
            found[name] = (transposed, int(node.attrs.get("groups", 1)) if transposed else 1)

    for node in graph:
        if node.kind in ("parameter", "constant"):
            continue
        for name in node.params:
            take(name, node)
    return {name: found[name] for name in sizes if name in found}


def random_directions(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    count: int = 2,
    *,
    seed: int = 0,
    normalise: str = "filter",
) -> tuple[Direction, ...]:
    """`count` Gaussian directions, each filter of the length of the network's own (section 4); images are (C, H, W).

    `normalise="layer"` gives each layer's tensor the length of the network's, "none" leaves the draw as it is (what the
    paper shows to mislead, section 3). Biases and normalisations stay. ValueError for a network without weights.
    """
    return _random_directions(trace(model, input_shape), count, seed, normalise)


def _random_directions(graph: Graph, count: int, seed: int, normalise: str) -> tuple[Direction, ...]:
    if normalise not in NORMALISE:
        raise unknown("normalisation of a direction", normalise, NORMALISE)
    _whole("seed", seed, 0)
    _whole("the number of directions", count, 1)
    moving = _moving(graph)
    if not moving:
        raise ValueError(f"{type(graph.model).__name__} has no weights of convolutions or matrices to move")
    parameters = dict(graph.model.named_parameters())
    # Drawn on the CPU, so that a seed means the same on every device.
    generator = torch.Generator().manual_seed(seed)
    how = {"filter": "filter-normalised", "layer": "layer-normalised", "none": "not normalised"}[normalise]
    made = []
    for number in range(count):
        steps = {}
        for name, (transposed, groups) in moving.items():
            weight = parameters[name].detach()
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight.device).double()
            if normalise == "filter":
                own, rows = (filters(t, transposed, groups) for t in (weight.double(), drawn))
                rows = rows * (own.norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True))
                drawn = _like_weight(rows, weight, transposed, groups)
            elif normalise == "layer":
                drawn = drawn * (weight.double().norm() / drawn.norm())
            steps[name] = drawn.to(weight.dtype)
        made.append(Direction(steps, f"random direction {number + 1}, {how}, seed {seed}"))
    return tuple(made)


def direction_to(model: nn.Module, state: Mapping[str, Tensor], label: str = "to another network") -> Direction:
    """The straight line from the network's weights (x = 0) to those of `state` (x = 1), a state dict of the same network.

    Everything moves, biases and the stored statistics of batch norm too (section 3, "1-dimensional linear interpolation").
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stored = model.state_dict().keys()
    steps = {}
    for name, tensor in own.items():
        if tensor.is_floating_point() and name in stored:
            there = _of_state(state, name, tensor)
            steps[name] = (there.double() - tensor.detach().double()).to(tensor.dtype)
    return Direction(steps, label)


def _of_state(state: Mapping[str, Tensor], name: str, like: Tensor, which: str = "the state") -> Tensor:
    there = state.get(name)
    if there is None or there.shape != like.shape:
        found = "missing" if there is None else f"of shape {tuple(there.shape)}"
        raise ValueError(
            f"{which} is not of this network: {name} is {found}, and has shape {tuple(like.shape)} here; "
            "take it from state_dict() of a network that was built alike"
        )
    return there.detach().to(like.device)


def grid(points: int = 21, span: float = 1.0) -> tuple[float, ...]:
    """`points` places from -span to span, 0 among them if their number is odd; exactly the same on both sides.

    >>> grid(5)
    (-1.0, -0.5, 0.0, 0.5, 1.0)
    """
    _whole("the number of points", points, 2)
    return tuple(span * (2 * i - (points - 1)) / (points - 1) for i in range(points))


# ---------------------------------------------------------------------------------------------------------------
# What comes out


@dataclass(frozen=True)
class Point:
    """Loss (nats) and error (0 to 1) at w + x d + y e, with their standard errors; y is None on a line.

    `batch_norm` is the policy (`BATCH_NORM`), or "none" where the network has no batch norm. A loss that is infinite
    or not a number is `math.inf`, and so is its standard error; such answers count as wrong.
    """

    x: float
    y: float | None
    loss: float
    loss_se: float
    error: float
    error_se: float
    batch_norm: str


@dataclass(frozen=True, repr=False)
class LossSurface:
    """The rows of `loss_surface`: `points` with x running fastest; iterates them.

    `images` of the `population` images of the split were looked at, in batches of `batch`; `axes` says what a step along
    x (and y) is; `ys` is empty on a line.
    """

    network: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    axes: tuple[str, ...]
    points: tuple[Point, ...]
    batch_norm: str
    images: int
    population: int
    batch: int
    seed: int

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def array(self, column: str = "loss") -> np.ndarray:
        """A column of the points: (len(xs),) on a line, (len(ys), len(xs)) on a plane."""
        if column not in (names := [field.name for field in fields(Point)]):
            raise unknown("column", column, names)
        values = np.array([getattr(point, column) for point in self.points])
        return values.reshape(len(self.ys), len(self.xs)) if self.ys else values

    def at(self, x: float, y: float = 0.0) -> Point:
        """The point that is nearest to (x, y)."""
        return min(self.points, key=lambda p: (p.x - x) ** 2 + ((p.y or 0.0) - y) ** 2)

    @property
    def centre(self) -> Point:
        """The network as it is, if 0 is on the grid; else the nearest point."""
        return self.at(0.0)

    @property
    def lowest(self) -> Point:
        return min(self.points, key=lambda point: point.loss)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; what is infinite is None."""
        found = asdict(self)
        for point in found["points"]:
            for key, value in point.items():
                point[key] = None if isinstance(value, float) and not math.isfinite(value) else value
        return found

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> LossSurface:
        """A surface as `to_dict` gave it away."""
        values = ("loss", "loss_se", "error", "error_se")
        points = tuple(
            Point(**{k: math.inf if v is None and k in values else v for k, v in point.items()})
            for point in found["points"]
        )
        lists = {key: tuple(found[key]) for key in ("xs", "ys", "axes")}
        return cls(**{**found, **lists, "points": points})

    _COLUMNS = tuple(field.name for field in fields(Point))

    def _shown(self) -> list[tuple[object, ...]]:
        shown = list(self.points)
        if len(shown) > 64:
            highest = max(self.points, key=lambda point: point.loss)
            shown = list(dict.fromkeys([self.points[0], self.lowest, self.centre, highest, self.points[-1]]))
            shown.sort(key=self.points.index)
        return [tuple(getattr(point, column) for column in self._COLUMNS) for point in shown]

    def _title(self) -> str:
        size = f"{len(self.xs)} x {len(self.ys)}" if self.ys else f"{len(self.xs)}"
        some = ", of which the first, last, lowest, central and highest" if len(self) > 64 else ""
        return (
            f"{self.network}: {size} points{some}; {self.images:,} of {self.population:,} images; "
            f"batch norm: {self.batch_norm}"
        )

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._shown(), right=self._COLUMNS[:-1])

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._shown(), right=self._COLUMNS[:-1])


def stratified_mean(values: Tensor, labels: Tensor, population: Tensor) -> tuple[float, float]:
    """The mean of a population from a draw of it, and its standard error; `population` is how many each class has in all.

    Sum of W_c m_c, with W_c the share of class c; variance: the sum of W_c^2 (1 - n_c / N_c) s_c^2 / n_c (Cochran 1977,
    Sampling Techniques, 5.3 and 5.4), zero where all were looked at. Where a class gave fewer than two images its variance
    is unknown: then the plain mean, and (1 - n / N) s^2 / n, which is larger as a rule.
    """
    values, population = values.double(), population.double()
    n = torch.bincount(labels, minlength=len(population)).double()
    if bool(((n < 2) & (n < population)).any()):
        left = 1 - len(values) / population.sum()
        mean, variance = values.mean(), left * values.var() / len(values)
    else:
        share, at_least_1 = population / population.sum(), n.clamp(min=1)
        means = torch.bincount(labels, values, minlength=len(population)) / at_least_1
        squares = torch.bincount(labels, (values - means[labels]).square(), minlength=len(population))
        left = 1 - n / population.clamp(min=1)
        mean = (share * means).sum()
        variance = (share.square() * left * squares / (n - 1).clamp(min=1) / at_least_1).sum()
    if not mean.isfinite():
        return math.inf, math.inf
    return float(mean), float(variance.sqrt()) if variance.isfinite() else math.inf


# ---------------------------------------------------------------------------------------------------------------
# Going there


def _batches(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Batches of nearly one size, so that each counts the same when statistics are averaged."""
    return x.tensor_split(math.ceil(len(x) / size))


def _norms(graph: Graph, policy: str) -> list[nn.Module]:
    """The batch norms of the network, or ValueError where the policy does not fit them."""
    found = []
    for node in graph:
        if node.kind != "batch_norm":
            continue
        if graph.fx_node(node.name).op != "call_module":
            if policy != "running":
                raise ValueError(
                    f"batch_norm={policy!r} needs each batch norm to be a module; {node.name} is called as a function; "
                    "use batch_norm='running'"
                )
            continue
        norm = graph.model.get_submodule(node.module)
        if norm.running_mean is None and policy != "batch":
            raise ValueError(
                f"batch_norm={policy!r} needs stored statistics, and {node.module} keeps none; use batch_norm='batch'"
            )
        found.append(norm)
    return list(dict.fromkeys(found))


Move = Callable[[dict[str, Tensor]], None]


@contextmanager
def _running(graph: Graph) -> Iterator[tuple[Move, nn.Module, torch.memory_format]]:
    """A folded twin that can be moved."""
    twin = Folded(graph)
    with borrowed(twin.network, None):
        yield twin.refold, twin.network, twin.memory_format


@contextmanager
def _lent(graph: Graph, norms: list[nn.Module]) -> Iterator[tuple[Move, nn.Module, torch.memory_format]]:
    """The network on copies of its tensors that can be moved, its batch norms in training mode."""
    layout = Folded(graph).memory_format

    def copied(tensor: Tensor) -> Tensor:
        four = tensor.ndim == 4 and tensor.is_floating_point()
        return tensor.detach().clone(memory_format=layout if four else torch.preserve_format)

    with borrowed(graph.model, copied):
        own = {**dict(graph.model.named_parameters()), **dict(graph.model.named_buffers())}
        origin = {name: tensor.detach().clone() for name, tensor in own.items()}

        def move(values: dict[str, Tensor]) -> None:
            # Buffers too: a pass with a batch norm in training mode changes them.
            for name, tensor in own.items():
                tensor.copy_(values.get(name, origin[name]))

        for norm in norms:
            norm.training = True
        yield move, graph.model, layout


def _reestimate(network: nn.Module, norms: list[nn.Module], batches: tuple[Tensor, ...]) -> None:
    """Statistics of each batch norm anew, the mean over the batches; the batch norms end in evaluation mode."""
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    for x in batches:
        network(x)
    for norm in norms:
        norm.training = False


@dataclass(frozen=True)
class CrossEntropy:
    """The loss of a classifier with logits, one value an image; `loss` and `scores` are what a criterion must have."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    def scores(self, output: Tensor) -> Tensor:
        return output


def _per_image(criterion: Any, output: Tensor, labels: Tensor) -> Tensor:
    if type(criterion) is CrossEntropy:
        return F.cross_entropy(output, labels, reduction="none")
    return torch.vmap(lambda o, y: criterion.loss(o[None], y[None]))(output, labels)


def _passes(model: nn.Module, split: Split, preprocess: Preprocess | None = None, **options: Any) -> Passes:
    shape = tuple((preprocess or Preprocess())(split.images[:1]).shape[1:])
    plan = _Plan(split, **{k: v for k, v in options.items() if k in ("directions", "xs", "ys", "images", "batch_norm")})
    passes = len(plan.xs) * max(len(plan.ys), 1) * (2 if plan.batch_norm == "re-estimated" else 1)
    return Passes(shape, forward=passes * plan.images)


class _Plan:
    """The arguments of a look, checked: which points, how many images."""

    def __init__(
        self,
        split: Split,
        directions: Sequence[Direction] | int = 2,
        xs: Sequence[float] | None = None,
        ys: Sequence[float] | None = None,
        images: int | None = 500,
        batch_norm: str = "running",
    ) -> None:
        if batch_norm not in BATCH_NORM:
            raise unknown("batch-norm policy", batch_norm, BATCH_NORM)
        given = isinstance(directions, int)
        self.count = directions if given else len(directions)
        if isinstance(directions, bool) or self.count not in (1, 2):
            raise ValueError(
                f"a surface has one or two directions, got {self.count}; give a number, or a sequence of `Direction`s"
            )
        if ys is not None and self.count == 1:
            raise ValueError("ys belong to a second direction, and there is one; leave ys out, or give two directions")
        self.xs = _places("xs", xs)
        self.ys = _places("ys", ys if ys is not None else xs) if self.count == 2 else ()
        if images is not None:
            _whole("images", images, 2)
        self.images = len(split) if images is None else min(images, len(split))
        self.batch_norm = batch_norm


def _places(name: str, places: Sequence[float] | None) -> tuple[float, ...]:
    found = grid() if places is None else tuple(float(place) for place in places)
    if not found or not all(map(math.isfinite, found)) or any(b <= a for a, b in pairwise(found)):
        raise ValueError(f"{name} must be finite numbers that rise, got {places!r}; for example grid(21, span=1.0)")
    return found


def _whole(what: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")


@priced(_passes)
def loss_surface(
    model: nn.Module,
    split: Split,
    preprocess: Preprocess | None = None,
    *,
    directions: Sequence[Direction] | int = 2,
    xs: Sequence[float] | None = None,
    ys: Sequence[float] | None = None,
    images: int | None = 500,
    seed: int = 0,
    batch_norm: str = "running",
    criterion: Any = CrossEntropy(),
    batch: int | None = None,
    name: str | None = None,
) -> LossSurface:
    """Loss and error at w + x d + y e for every x of `xs` and y of `ys` (by default `grid()`), in evaluation mode.

    `directions` is 1 (a line) or 2 (a plane) filter-normalised random ones drawn from `seed`, or directions of your own.
    `images` of the split are looked at, drawn from `seed` with the classes' shares kept; None takes all. `batch_norm` is a
    word of `BATCH_NORM`; `batch` matters where batches are normalised by their own statistics (128 there, else the quickest).
    `criterion` has `loss(output, target)`, a mean, and `scores(output)`, of which the largest wins. The network stays as
    it was. ValueError for directions of another network.
    """
    plan = _Plan(split, directions, xs, ys, images, batch_norm)
    preprocess = preprocess or Preprocess()
    _whole("seed", seed, 0)
    if batch is not None:
        _whole("batch", batch, 1)
    first = next(model.parameters(), torch.empty(0))
    shape = check_input_shape(preprocess(split.images[:1]).shape[1:])
    graph = trace(model, shape)
    norms = _norms(graph, batch_norm)
    policy = batch_norm if any(node.kind == "batch_norm" for node in graph) else "none"
    ways = _random_directions(graph, directions, seed, "filter") if isinstance(directions, int) else tuple(directions)
    base = _base(graph.model, ways)

    drawn = split if plan.images == len(split) else split.subset(plan.images, seed=seed)
    # A split may be sorted by class, and a batch of one class has statistics of its own.
    mixed = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed)).to(drawn.images.device)
    pixels = preprocess(drawn.images[mixed]).to(first.device, first.dtype)
    labels = drawn.labels[mixed].to(first.device)
    population = torch.bincount(split.labels).cpu()
    size = batch or (BATCH.get(first.device.type, 1024) if policy in ("running", "none") else 128)

    on = _running(graph) if policy in ("running", "none") else _lent(graph, norms)
    points = []
    with on as (move, network, layout), torch.no_grad():
        parts = _batches(pixels.contiguous(memory_format=layout), size)
        places = [(x, y) for y in plan.ys or (None,) for x in plan.xs]
        for place in progress(places, f"Loss surface of {name or type(model).__name__}", unit="point"):
            move(_moved(base, ways, place))
            if policy == "re-estimated":
                _reestimate(network, norms, parts)
            losses, wrong = _answers(network, parts, labels, criterion, size)
            loss, loss_se = stratified_mean(losses, labels.cpu(), population)
            error, error_se = stratified_mean(wrong, labels.cpu(), population)
            points.append(Point(*place, loss, loss_se, error, error_se, policy))
    return LossSurface(
        network=name or type(model).__name__,
        xs=plan.xs,
        ys=plan.ys,
        axes=tuple(way.label for way in ways),
        points=tuple(points),
        batch_norm=policy,
        images=plan.images,
        population=len(split),
        batch=size,
        seed=seed,
    )


def _base(model: nn.Module, ways: Sequence[Direction]) -> dict[str, Tensor]:
    """The network's tensors that the directions move, or ValueError where they are another network's."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for way in ways:
        if not isinstance(way, Direction):
            raise ValueError(
                f"directions must be 1, 2 or a sequence of Direction, got {way!r}; see random_directions and direction_to"
            )
        for name, step in way.steps.items():
            if name not in own:
                raise tables.missing("parameter or buffer", name, own)
            if step.shape != own[name].shape:
                raise ValueError(
                    f"a direction must be of the same network: {name} has shape {tuple(own[name].shape)}, "
                    f"the direction {tuple(step.shape)}; make it with random_directions(model, ...)"
                )
    names = dict.fromkeys(name for way in ways for name in way.steps)
    return {name: own[name].detach().clone() for name in names}


def _moved(base: dict[str, Tensor], ways: Sequence[Direction], place: tuple[float, float | None]) -> dict[str, Tensor]:
    """w + (x d + y e): in this order, so that exchanging the two directions changes no bit."""
    moved = {}
    for name, weight in base.items():
        steps = [way.steps[name].to(weight.device) * step for way, step in zip(ways, place) if name in way.steps]
        moved[name] = weight + (steps[0] + steps[1] if len(steps) == 2 else steps[0])
    return moved


def _answers(
    network: Callable[[Tensor], Tensor], parts: Sequence[Tensor], labels: Tensor, criterion: Any, size: int
) -> tuple[Tensor, Tensor]:
    """Loss of each image and whether the answer is wrong (1.0 or 0.0), on the CPU."""
    losses, wrong = [], []
    for part, right in zip(parts, _batches(labels, size)):
        output = network(part)
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] <= int(right.max()):
            what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"a network must return scores (N, classes) for the labels 0 to {int(labels.max())} of the split, "
                f"got {what}; wrap it in a module that returns them"
            )
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        loss = _per_image(criterion, output, right)
        hit = (criterion.scores(output).argmax(1) == right) & loss.isfinite()
        losses.append(loss)
        wrong.append(~hit)
    return torch.cat(losses).double().cpu(), torch.cat(wrong).double().cpu()


# ---------------------------------------------------------------------------------------------------------------
# The way that training took


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Checkpoints in the plane (or on the line) that explains most of their variance; the last one is the origin.

    `directions` have length 1 and are orthogonal; `positions` are coordinates in them, one tuple a checkpoint; `explained`
    is the share (0 to 1) of the variance of all checkpoints along each direction.
    """

    directions: tuple[Direction, ...]
    positions: tuple[tuple[float, ...], ...]
    explained: tuple[float, ...]

    def grids(self, points: int = 21, margin: float = 0.25) -> tuple[tuple[float, ...], ...]:
        """`points` places along each direction that cover all checkpoints and the origin, with a margin on both sides."""
        _whole("the number of points", points, 2)
        found = []
        for along in zip(*self.positions):
            low, high = min(along), max(along)
            pad = margin * (high - low)
            step = (high - low + 2 * pad) / (points - 1)
            found.append(tuple(low - pad + i * step for i in range(points)))
        return tuple(found)

    def __repr__(self) -> str:
        shares = ", ".join(f"{100 * share:.1f} %" for share in self.explained)
        return f"Trajectory of {len(self.positions)} checkpoints; explained: {shares}"


def trajectory(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    states: Sequence[Mapping[str, Tensor]],
    *,
    components: int = 2,
) -> Trajectory:
    """The plane of a training run by principal components of its checkpoints (section 7); `model` holds the last of them.

    `states` are state dicts in the order of training. Only what random directions move is looked at, the weights without
    biases and normalisations. ValueError for too few checkpoints, or where they lie on a line and a plane is wanted.
    """
    if components not in (1, 2):
        raise ValueError(f"components must be 1 (a line) or 2 (a plane), got {components!r}")
    if len(states) <= components:
        raise ValueError(
            f"{components} component{'s' * (components > 1)} need at least {components + 1} checkpoints, got {len(states)}"
        )
    graph = trace(model, input_shape)
    parameters = {name: p.detach() for name, p in graph.model.named_parameters()}
    rows = {}
    gram = torch.zeros(len(states), len(states), dtype=torch.float64)
    for name in _moving(graph):
        stack = torch.stack(
            [_of_state(s, name, parameters[name], f"checkpoint {i}").double() for i, s in enumerate(states)]
        )
        if not torch.equal(stack[-1], parameters[name].double()):
            raise ValueError(
                f"the network must hold the last checkpoint, and {name} differs; model.load_state_dict(states[-1]) first"
            )
        rows[name] = (stack - stack[-1]).flatten(1)
        gram += (rows[name] @ rows[name].T).cpu()
    # The principal components of a few long rows: eigenvectors of the small matrix of their products.
    centring = torch.eye(len(states), dtype=torch.float64) - 1 / len(states)
    values, vectors = torch.linalg.eigh(centring @ gram @ centring)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = float(values.sum())
    if float(values[components - 1]) <= 1e-10 * total:
        raise ValueError(
            "the checkpoints do not differ in their weights"
            if not total or components == 1
            else "the checkpoints lie on a line and span no plane; use components=1, or more checkpoints"
        )
    weights = centring @ vectors[:, :components] / values[:components].sqrt()
    positions = gram @ weights
    # An eigenvector has no sign of its own: the first checkpoint lies on the positive side.
    sign = torch.where(positions[0] < 0, -1.0, 1.0).double()
    weights, positions = weights * sign, positions * sign + 0.0  # no -0.0
    directions = []
    for k in range(components):
        steps = {
            name: (weights[:, k].to(row.device) @ row).reshape(parameters[name].shape).to(parameters[name].dtype)
            for name, row in rows.items()
        }
        share = float(values[k]) / total
        directions.append(Direction(steps, f"principal component {k + 1}, {100 * share:.1f} % of the variance"))
    return Trajectory(
        directions=tuple(directions),
        positions=tuple(tuple(map(float, position)) for position in positions),
        explained=tuple(float(value) / total for value in values[:components]),
    )
