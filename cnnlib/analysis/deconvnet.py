"""From one activation back to the pixels that made it: the deconvnet, guided back-propagation and the plain gradient.

papers    Zeiler and Fergus 2013, Visualizing and understanding convolutional networks, section 2.1 (deconvnet);
          Springenberg et al. 2015, Striving for simplicity, section 3.4 (guided back-propagation, and the relation of the
          three); Simonyan et al. 2013, Deep inside convolutional networks (the gradient)

All three run the traced graph once forward and send a signal back through the same operations; they differ in what a
ReLU does with it (`rectified`, `guided`, `derivative`) and in local response normalisation. Everything else goes back by
its adjoint: a convolution by its transposed filters; max pooling by its switches, which put the signal where the maximum
was, and add up where windows overlap; a sum hands the signal to each summand, a concatenation cuts it into its parts,
and a value that is read twice gets the sum of what comes back. Biases have no part in it. Batch normalisation with
stored statistics is a scale for each channel, and the signal takes the same scale. Local response normalisation is left
out on the deconvnet's way back, as the paper's first version says, and differentiated by the other two.
An operation that is none of these (a sigmoid gate, attention, a product of two maps) has no rule in deconvnet and
guided back-propagation, and is an error that names it; the plain gradient takes whatever torch differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnnlib.analysis.prices import Passes, priced
from cnnlib.errors import listed
from cnnlib.graph import Graph, Node, trace
from cnnlib.operations import bind
from cnnlib.progress import progress
from cnnlib.tracing import borrowed, copied

# ---------------------------------------------------------------------------------------------------------------
# The three ways: data, of which the ReLU rule is the paper's difference


def rectified(signal: Tensor, fired: Tensor) -> Tensor:
    """The deconvnet's ReLU: what comes from above is rectified, whatever the unit below did."""
    return signal.clamp(min=0)


def derivative(signal: Tensor, fired: Tensor) -> Tensor:
    """The gradient's ReLU: the signal passes where the unit below fired (was above 0)."""
    return signal * fired


def guided(signal: Tensor, fired: Tensor) -> Tensor:
    """Guided back-propagation's ReLU: both, so that it passes where it is positive and the unit fired."""
    return signal.clamp(min=0) * fired


class _Straight(torch.autograd.Function):
    """`y` on the way forward; on the way back the signal goes to `x` unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return signal, None


def left_out(x: Tensor, y: Tensor) -> Tensor:
    """Normalisation that happens forward only."""
    return _Straight.apply(x, y)


def differentiated(x: Tensor, y: Tensor) -> Tensor:
    """Normalisation as torch differentiates it, with the dependence on the neighbouring maps."""
    return y


def _itself(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Way:
    """A way back: what a ReLU does with (signal, where it fired), what local response normalisation does with (x, y),
    which signal an activation of a given value sends, and whether other non-linear operations are differentiated."""

    name: str
    relu: Callable[[Tensor, Tensor], Tensor]
    lrn: Callable[[Tensor, Tensor], Tensor]
    sends: Callable[[Tensor], Tensor]
    differentiates: bool = False


DECONVNET = Way("deconvnet", rectified, left_out, _itself)
GUIDED = Way("guided back-propagation", guided, differentiated, torch.ones_like)
GRADIENT = Way("plain gradient", derivative, differentiated, torch.ones_like, differentiates=True)

# ---------------------------------------------------------------------------------------------------------------
# Which operations have a rule

_ARRANGE = ("cat", "stack", "split", "item", "slice", "overwrite", "expand", "flatten", "reshape", "permute", "roll")
_MOVE = ("flip", "pad", "upsample", "pixel_shuffle", "pixel_unshuffle")
_PASS = ("input", "output", "parameter", "constant", "dropout", "identity", "copy")
_LINEAR = frozenset([*_ARRANGE, *_MOVE, *_PASS, "add", "mean", "sum", "adaptive_avg_pool"])
_SWITCHED = frozenset(["max_pool", "adaptive_max_pool"])
_LINEAR_IN_ONE = frozenset(["conv", "conv_transpose", "linear", "matmul", "mul", "gather", "batch_norm"])


def _is_relu(node: Node) -> bool:
    return node.kind == "activation" and node.op in ("ReLU", "relu")


def _has_rule(graph: Graph, node: Node) -> bool:
    if not node.live or node.kind in _LINEAR | _SWITCHED | {"local_response_norm"} or _is_relu(node):
        return True
    if node.kind == "avg_pool":
        return not node.op.lower().startswith("lp")
    if node.kind == "elementwise":
        return node.op == "neg"
    if node.kind not in _LINEAR_IN_ONE:
        return False
    # Linear in one factor, while the others do not depend on the image.
    live = [source for source in graph.predecessors(node.name) if source.live]
    if len(live) != 1:
        return False
    fx_node = graph.fx_node(node.name)
    if node.kind == "batch_norm":
        return _has_statistics(graph, fx_node, node)
    if node.kind == "mul" and node.op not in ("mul", "rmul", "imul", "multiply"):
        return "floor" not in node.op and fx_node.args[0] is graph.fx_node(live[0].name) and not node.op.startswith("r")
    return True


def _has_statistics(graph: Graph, fx_node: fx.Node, node: Node) -> bool:
    if fx_node.op == "call_module":
        return graph.model.get_submodule(fx_node.target).running_mean is not None
    given = bind(node.op, fx_node.args, fx_node.kwargs)
    return given.get("running_mean") is not None and not given.get("training", False)


def _check(graph: Graph, at: str, way: Way) -> None:
    """ValueError for an operation on the way from `at` to the image that the way back has no rule for."""
    if way.differentiates:
        return
    without = [node for node in graph if not _has_rule(graph, node)]
    if not without:
        return
    names = ", ".join(f"{node.name} ({node.op})" for node in without[:3]) + (", ..." if len(without) > 3 else "")
    before = [
        node.name
        for node in graph
        if node.live and node.kind not in ("input", "output") and not _beyond(graph, node.name, without)
    ]
    earlier = f"choose a layer before it, such as {before[-1]!r}, or " if before else ""
    raise ValueError(
        f"{way.name} has no rule for {names} on the way from {at} back to the image; {earlier}"
        "use plain_gradient, which differentiates everything"
    )


def _beyond(graph: Graph, name: str, nodes: Sequence[Node]) -> bool:
    below = graph.ancestors(name)
    return any(node.name in below for node in nodes)


# ---------------------------------------------------------------------------------------------------------------
# Forward with the rules in place, then torch's own way back


class _Relu(torch.autograd.Function):
    """max(x, 0) forward, the way's rule back; writes over x where the network does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Callable[[Tensor, Tensor], Tensor], over: bool) -> Tensor:
        ctx.fired = x > 0
        ctx.rule = rule
        if over:
            ctx.mark_dirty(x)
            return x.clamp_(min=0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rule(signal, ctx.fired), None, None


class _Forward(fx.Interpreter):
    """The network up to a layer, with the rules of a way in place of ReLU and local response normalisation."""

    def __init__(self, graph: Graph, way: Way) -> None:
        super().__init__(graph.module)
        self.way = way
        self.overwriting = graph.overwriting
        self.node_of = {graph.fx_node(node.name): node for node in graph}

    def run_node(self, n: fx.Node) -> Any:
        node = self.node_of.get(n)
        if node is None or not node.live:
            return super().run_node(n)
        if _is_relu(node):
            return _Relu.apply(self._first(n), self.way.relu, node.name in self.overwriting)
        if node.kind == "local_response_norm":
            return self.way.lrn(self._first(n), super().run_node(n))
        return super().run_node(n)

    def _first(self, n: fx.Node) -> Tensor:
        # Not of `n.args` alone: F.relu(input=x) is allowed.
        found = [a for a in (*n.args, *n.kwargs.values()) if isinstance(a, fx.Node)]
        return self.env[found[0]]


def as_images(model: nn.Module, images: Any) -> Tensor:
    """The images as a tensor (N, C, H, W) of the network's type on its device."""
    images = torch.as_tensor(images)
    if images.dim() != 4 or not len(images):
        raise ValueError(
            f"images must be (N, C, H, W) with N >= 1, got {tuple(images.shape)}; images[None] makes a batch of one"
        )
    alone = images if images.dtype.is_floating_point else images.float()  # a network without parameters
    first = next((p for p in model.parameters() if p.dtype.is_floating_point), alone)
    return images.detach().to(first.device, first.dtype)


def batch_size(graph: Graph, wanted: int) -> int:
    """The batch size that a traced network runs on: the wanted one, or 1 for a recorded graph."""

    if wanted < 1:
        raise ValueError(f"batch must be at least 1, got {wanted}")
    return wanted if graph.source == "fx" else 1


def _sent_back(
    graph: Graph, images: Tensor, signal: Callable[[Tensor, slice], Tensor], way: Way, batch: int, what: str
):
    """Yield (value, pixels) of each image in turn; `graph` ends at the layer, and the network is borrowed."""
    part = _Forward(graph, way)
    for parameter in graph.model.parameters():
        parameter.requires_grad_(False)
    steps = range(0, len(images), batch)
    for start in progress(steps, what, total=len(steps), unit="batch"):
        here = slice(start, start + batch)
        x = images[here].clone().requires_grad_()
        with torch.enable_grad():
            # A copy, which the network may overwrite.
            value = part.run(x.clone())
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ValueError(f"nothing goes back from {graph.output.inputs[0]}: torch knows no gradient of its values")
        (pixels,) = torch.autograd.grad(value, x, signal(value.detach(), here).to(value), allow_unused=True)
        yield value.detach(), torch.zeros_like(x) if pixels is None else pixels


def _part(model: nn.Module, input_shape: tuple[int, ...], at: str, way: Way) -> Graph:
    graph = trace(model, input_shape)
    node = graph[at]
    if not node.live or node.kind in ("input", "output"):
        raise ValueError(f"{at} is no layer that computes something of the image; choose one of the graph's operations")
    part = graph.upto(at)
    _check(part, at, way)
    return part


@priced(
    lambda model, images, at, signal, **options: Passes(
        tuple(images.shape[1:]), len(images), len(images), options.get("batch", 32)
    )
)
def send_back(
    model: nn.Module, images: Tensor, at: str, signal: Tensor, *, way: Way = DECONVNET, batch: int = 32
) -> Tensor:
    """The pixels (N, C, H, W) that a `signal` (N, *shape) at the node `at` is projected to, given what `images` switch.

    Signals of several maps or places at once go back together. ValueError for an operation without a rule.
    """
    images = as_images(model, images)
    part = _part(model, tuple(images.shape[1:]), at, way)
    wanted = (len(images), *part.output.shape)
    if tuple(signal.shape) != wanted:
        raise ValueError(f"the signal at {at} must be {listed(wanted)}, one for each value; got {listed(signal.shape)}")
    with borrowed(model, copied):
        pairs = _sent_back(part, images, lambda _, here: signal[here], way, batch_size(part, batch), way.name)
        return torch.cat([pixels for _, pixels in pairs])


# ---------------------------------------------------------------------------------------------------------------
# One activation of one map


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What one activation is projected to: `pixels` (C, H, W) on the CPU, zero outside of its receptive field.

    `map` and `position` (row, column) name the unit of the layer `at`, () for a layer of single units; `value` is its
    activation.
    """

    at: str
    way: str
    map: int
    position: tuple[int, ...]
    value: float
    pixels: Tensor = field(repr=False)


def check_maps(at: str, shape: tuple[int, ...] | None) -> None:
    """ValueError for a layer whose values are neither maps (C, H, W) nor units (C,)."""
    if shape is None or len(shape) not in (1, 3):
        raise ValueError(f"{at} must have maps (C, H, W) or units (C,), and has {listed(shape or ()) or 'a number'}")


def _units(maps: int | Sequence[int], count: int, positions: Sequence[tuple[int, ...]] | None, part: Graph, at: str):
    """The maps and positions of each image, in range."""
    check_maps(at, part.output.shape)
    channels, *extent = part.output.shape
    maps = [maps] * count if isinstance(maps, int) else [int(m) for m in maps]
    if count not in (1, len(maps)):
        raise ValueError(f"one map an image, or one image for all: got {len(maps)} maps and {count} images")
    for m in maps:
        if not 0 <= m < channels:
            raise ValueError(f"{at} has maps 0 to {channels - 1}, got {m}")
    if positions is None:
        return maps, None
    positions = [tuple(int(i) for i in p) for p in positions]
    if len(positions) != len(maps):
        raise ValueError(f"one position a map: got {len(positions)} positions and {len(maps)} maps")
    for p in positions:
        if len(p) != len(extent) or not all(0 <= i < n for i, n in zip(p, extent)):
            raise ValueError(
                f"a position in {at} is ({'row, column' if extent else ''}) within {listed(extent)}, got {p}"
            )
    return maps, positions


def _flat(positions: Sequence[tuple[int, ...]], width: int) -> list[int]:
    return [p[0] * width + p[1] if p else 0 for p in positions]


def _passes(model: nn.Module, images: Tensor, at: str, maps: Any = 0, **options: Any) -> Passes:
    count = len(images) if isinstance(maps, int) else max(len(images), len(maps))
    return Passes(tuple(images.shape[1:]), count, count, options.get("batch", 32))


@priced(_passes)
def project(
    model: nn.Module,
    images: Tensor,
    at: str,
    maps: int | Sequence[int],
    *,
    positions: Sequence[tuple[int, ...]] | None = None,
    way: Way = DECONVNET,
    batch: int = 32,
) -> list[Reconstruction]:
    """One activation of each image, sent back alone: that of map `maps[i]` of the node `at` at `positions[i]`.

    `images` are (N, C, H, W) as the network wants them, or one for all maps; a single map serves all images. Without
    positions, the strongest activation of the map is taken. ValueError for a map or place that is not there and for an
    operation without a rule.
    """
    images = as_images(model, images)
    part = _part(model, tuple(images.shape[1:]), at, way)
    maps, positions = _units(maps, len(images), positions, part, at)
    images = images.expand(len(maps), -1, -1, -1)
    width = part.output.shape[-1]
    chosen: list[int] = []
    values: list[float] = []

    def alone(value: Tensor, here: slice) -> Tensor:
        """All activations but the chosen one set to zero (section 2.1)."""
        own = torch.arange(len(value), device=value.device)
        which = torch.tensor(maps[here], device=value.device)
        flat = value.flatten(2) if value.dim() == 4 else value[..., None]
        one = flat[own, which]
        place = one.argmax(1) if positions is None else torch.tensor(_flat(positions[here], width), device=value.device)
        signal = torch.zeros_like(flat)
        signal[own, which, place] = way.sends(one[own, place])
        chosen.extend(place.tolist())
        values.extend(one[own, place].tolist())
        return signal.view_as(value)

    with borrowed(model, copied):
        found = _sent_back(part, images, alone, way, batch_size(part, batch), f"{way.name} from {at}")
        pixels = torch.cat([one.cpu() for _, one in found])
    spatial = len(part.output.shape) == 3
    places = [divmod(place, width) if spatial else () for place in chosen]
    return [Reconstruction(at, way.name, *row) for row in zip(maps, places, values, pixels)]


@priced(_passes)
def through_deconvnet(
    model: nn.Module, images: Tensor, at: str, maps: int | Sequence[int], **options: Any
) -> list[Reconstruction]:
    """The activation sent back through the deconvnet (Zeiler and Fergus 2013, section 2.1); `project` says the rest.

    The signal is the activation itself.
    """
    return project(model, images, at, maps, way=DECONVNET, **options)


@priced(_passes)
def guided_backprop(
    model: nn.Module, images: Tensor, at: str, maps: int | Sequence[int], **options: Any
) -> list[Reconstruction]:
    """The same by guided back-propagation (Springenberg et al. 2015, section 3.4), with a signal of 1."""
    return project(model, images, at, maps, way=GUIDED, **options)


@priced(_passes)
def plain_gradient(
    model: nn.Module, images: Tensor, at: str, maps: int | Sequence[int], **options: Any
) -> list[Reconstruction]:
    """The derivative of the activation by every pixel (Simonyan et al. 2013, section 3); `project` says the rest."""
    return project(model, images, at, maps, way=GRADIENT, **options)


# ---------------------------------------------------------------------------------------------------------------
# Learned filters


def first_filters(model: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    """The filters (n, C, h, w) of the first convolution that the image meets; ValueError for a network that has none."""
    graph = trace(model, input_shape)
    for node in graph:
        if node.live and node.kind == "conv" and len(node.attrs["kernel"]) == 2:
            fx_node = graph.fx_node(node.name)
            if fx_node.op == "call_module":
                return model.get_submodule(fx_node.target).weight.detach().clone().cpu()
            weights = [source for source in graph.predecessors(node.name) if source.kind == "parameter"]
            if weights:
                return graph.tensor(weights[0].name).detach().clone().cpu()
    raise ValueError(f"{type(model).__name__} has no convolution over height and width, hence no filters to show")
