"""How much of the signal, and of the gradient, arrives at each depth: "vanishing" and "exploding" as numbers.

A batch is sent through the traced network and its loss is sent back; at each operation the norms of the values that it
returned and of the loss's gradient with respect to them are noted. Both are root mean squares over the images, of one
image's values and of the gradient of that image's own loss (as if the others were not there), so that they do not
depend on the size of the batch. Depth is the number of layers with weights on the longest way from the image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from cnnlib import tables
from cnnlib.analysis.prices import Passes, priced
from cnnlib.graph import Graph, Node, trace
from cnnlib.progress import progress
from cnnlib.tracing import borrowed, copied

LAYERS = frozenset(["conv", "conv_transpose", "linear", "attention", "recurrent"])
AUXILIARY = 0.3  # what an auxiliary head's loss counts (Szegedy et al. 2014, section 5)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FlowRow:
    """One operation: norms of its values and of the loss's gradient at them, for one image.

    `depth` counts layers with weights up to it, itself included. Where it is the first to use weights to be trained,
    `weight` is their norm, `weight_gradient` that of the mean loss's gradient, and `update` the norm of their change
    since the moment before, divided by the norm they had; None elsewhere. `size` is the number of values of an image.
    """

    name: str
    kind: str
    depth: int
    size: int
    value: float
    gradient: float
    weight: float | None = None
    weight_gradient: float | None = None
    update: float | None = None

    @property
    def value_rms(self) -> float:
        """Root mean square of a single value."""
        return self.value / math.sqrt(self.size)

    @property
    def gradient_rms(self) -> float:
        """Root mean square of the gradient at a single value."""
        return self.gradient / math.sqrt(self.size)

    @property
    def relative(self) -> float | None:
        """Gradient of the weights by their norm: times the learning rate, the share that one plain SGD step changes."""
        if self.weight is None or self.weight_gradient is None or not self.weight:
            return None
        return self.weight_gradient / self.weight


@dataclass(frozen=True, repr=False)
class Flow(tables.NamedRows[FlowRow]):
    """The rows of one look, in the order of the operations; iterates them, `flow[name]` is one of them.

    `moment` counts the looks at a training from 0, `loss` is the mean over the images.
    """

    network: str
    moment: int
    images: int
    loss: float
    rows: tuple[FlowRow, ...]

    @property
    def layers(self) -> tuple[FlowRow, ...]:
        """The layers with weights (convolutions, linear layers, ...) alone."""
        return tuple(row for row in self.rows if row.kind in LAYERS)

    _COLUMNS = ("name", "kind", "depth", "value", "gradient", "weight", "weight_gradient", "update")

    def _lines(self) -> list[tuple[object, ...]]:
        return [
            tuple(f"{v:.3g}" if isinstance(v := getattr(row, column), float) else v for column in self._COLUMNS)
            for row in self.rows
        ]

    def _title(self) -> str:
        return f"{self.network}, {self.images} images, loss {self.loss:.4g}; norms of one image's values and gradients"

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[2:])

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[2:])


def _passes(model: nn.Module, images: Tensor, labels: Tensor, **_: Any) -> Passes:
    return Passes(tuple(images.shape[1:]), forward=len(images), backward=len(images), batch=len(images))


@priced(_passes)
def flow_through(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    loss: Loss | None = None,
    auxiliary: float = AUXILIARY,
    training: bool = True,
    seed: int = 0,
) -> Flow:
    """Norms of values and gradients at each operation, for `images` (N, C, H, W) in floats and `labels` (N,).

    The network is read as a training step sees it (batch statistics, dropout by `seed`, auxiliary heads), with
    `training=False` as in evaluation. `loss(answer, labels)` is a mean over the images, by default cross-entropy of the
    main answer and `auxiliary` times that of each further one. The network stays as it was. ValueError for images and
    labels that do not fit, and for a loss that no weight and no image can change.
    """
    check = _check(model, images, labels)
    graph = trace(model, tuple(images.shape[1:]), training=training, batch=len(images))
    return _look(model, graph, *check, loss or _cross_entropy(auxiliary), training, seed, 0, {})


def _passes_during(model: nn.Module, moments: Iterable[Any], images: Tensor, labels: Tensor, **_: Any) -> Passes:
    if not hasattr(moments, "__len__"):
        raise ValueError("how many moments a generator will give is not known before; give a list, or price one look")
    number = len(images) * len(moments)
    return Passes(tuple(images.shape[1:]), forward=number, backward=number, batch=len(images))


@priced(_passes_during)
def flow_during(
    model: nn.Module,
    moments: Iterable[Any],
    images: Tensor,
    labels: Tensor,
    *,
    loss: Loss | None = None,
    auxiliary: float = AUXILIARY,
    training: bool = True,
    seed: int = 0,
) -> Iterator[Flow]:
    """One `Flow` at each of `moments` of a training, with the update of the weights since the moment before.

    A moment that is a mapping is a state dict, which a copy of the network takes; at any other the network is looked at
    as it is then. So `flow_during(model, [None, *states], ...)` reads checkpoints, and
    `flow_during(model, itertools.chain([None], cnnlib.fit(model, data, recipe)), ...)` watches a training from its start,
    which goes as it would unwatched.
    """
    check = _check(model, images, labels)
    return _during(model, moments, *check, loss or _cross_entropy(auxiliary), training, seed)


def _during(
    model: nn.Module, moments: Iterable[Any], images: Tensor, labels: Tensor, loss: Loss, training: bool, seed: int
) -> Iterator[Flow]:
    before: dict[str, Tensor] = {}
    total = len(moments) if hasattr(moments, "__len__") else None
    for number, moment in enumerate(progress(moments, "gradient flow", total=total, unit="moment")):
        now = model
        if isinstance(moment, Mapping):
            now = copy.deepcopy(model)
            now.load_state_dict(moment)
        first = next(now.parameters())
        images, labels = images.to(first.device), labels.to(first.device)
        graph = trace(now, tuple(images.shape[1:]), training=training, batch=len(images))
        yield _look(now, graph, images, labels, loss, training, seed, number, before)
        before = {name: parameter.detach().clone() for name, parameter in now.named_parameters()}


def _check(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the network's device, the images in its type of number."""
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are floats (N, C, H, W), got {tuple(images.shape)} {images.dtype}; "
            "bytes go through the recipe's preprocess first"
        )
    if labels.shape[:1] != images.shape[:1] or not len(images):
        raise ValueError(
            f"one label an image, and at least one: got {len(images)} images and labels {tuple(labels.shape)}"
        )
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no weights, so that no gradient flows to any")
    return images.detach().to(first.device, first.dtype), labels.to(first.device)


def _cross_entropy(auxiliary: float) -> Loss:
    def loss(answer: Any, labels: Tensor) -> Tensor:
        main, *further = _tensors(answer)
        return F.cross_entropy(main, labels) + sum(auxiliary * F.cross_entropy(head, labels) for head in further)

    return loss


def _tensors(answer: Any) -> list[Tensor]:
    if isinstance(answer, Tensor):
        return [answer]
    parts = answer.values() if isinstance(answer, Mapping) else answer
    return [tensor for part in parts if part is not None for tensor in _tensors(part)]


class _Noting(fx.Interpreter):
    """Runs a traced network and notes, at each named node, the norm of its result and, later, that of its gradient."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.names = {graph.fx_node(node.name): node.name for node in graph if node.live and node.kind != "output"}
        self.values: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        name = self.names.get(node)
        if name is not None:
            first = result if isinstance(result, Tensor) else None
            if isinstance(result, tuple) and node.op == "call_module":
                first = next((part for part in result if isinstance(part, Tensor)), None)  # attention and its weights
            if first is not None and first.is_floating_point():
                self.values[name] = _norm(first)
                if first.requires_grad:
                    first.register_hook(lambda gradient: self._note(name, gradient))
        return result

    def _note(self, name: str, gradient: Tensor) -> None:
        self.gradients[name] = _norm(gradient)


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64 if tensor.device.type != "mps" else None)


def _look(
    model: nn.Module,
    graph: Graph,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    training: bool,
    seed: int,
    moment: int,
    before: Mapping[str, Tensor],
) -> Flow:
    weights: dict[str, tuple[float, float | None, float | None]] = {}
    root = math.sqrt(len(images))
    with borrowed(model, copied, training), torch.enable_grad():
        torch.manual_seed(seed)
        noting = _Noting(graph)
        # A copy that is no leaf, which a network may write into.
        answer = noting.run(images.clone().requires_grad_().clone())
        value = loss(answer, labels)
        if not (isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad):
            raise ValueError(
                f"the loss must be a single number that depends on the network, got {value!r}; "
                "loss(answer, labels) returns a mean over the images"
            )
        value.backward()
        parameters = dict(model.named_parameters())
        for node in graph:
            trained = _weights(node, parameters)
            if trained:
                weights[node.name] = _weight_norms(trained, before)
    rows, depth = [], {}
    for node in graph:
        deepest = max((depth[name] for name in node.inputs), default=0)
        depth[node.name] = deepest + (node.kind in LAYERS)
        if node.name in noting.values:
            gradient = float(noting.gradients[node.name]) * root if node.name in noting.gradients else 0.0
            size = math.prod(node.shape or ())
            norms = float(noting.values[node.name]) / root, gradient
            rows.append(FlowRow(node.name, node.kind, depth[node.name], size, *norms, *weights.get(node.name, ())))
    return Flow(type(model).__name__, moment, len(images), float(value.detach()), tuple(rows))


def _weights(node: Node, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices and filters that a node is the first to use; its vectors where it has no others, as norms have."""
    used = {name: parameters[name] for name in node.params if parameters[name].requires_grad}
    return {name: p for name, p in used.items() if p.dim() > 1} or used


def _weight_norms(
    trained: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> tuple[float, float | None, float | None]:
    def together(tensors: Iterable[Tensor]) -> float:
        return math.hypot(*(float(_norm(tensor)) for tensor in tensors))

    norm = together(trained.values())
    gradients = [parameter.grad for parameter in trained.values() if parameter.grad is not None]
    gradient = together(gradients) if gradients else 0.0
    if not before:
        return norm, gradient, None
    had = together(before[name] for name in trained)
    changed = together(parameter.detach() - before[name].to(parameter.device) for name, parameter in trained.items())
    return norm, gradient, changed / had if had else math.nan
