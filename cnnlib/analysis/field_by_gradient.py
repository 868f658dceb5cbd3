"""Receptive fields measured: the pixels on which the gradient of one value does not vanish.

The network is run once more from its traced graph, with what could hide a dependence taken out: all weights positive
and divided by their fan-in, in float64; normalisation, dropout and activation functions left away; max pooling as mean
over the same windows. Each axis of the image is probed on a strip that is longer than twice the field and one pixel
wide, with windows cut to that axis; where they cannot be cut, because borders and crops must match, the strip is as wide
as the image. Going backward, gradients are set to one wherever they are not zero, so that deep networks neither overflow
nor fade out. Nothing here reads the sizes that `fields` derives, except to choose how long the first strip is; a strip
that turns out too short is doubled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from cnnlib.analysis.fields import WHOLE_IMAGE, FieldRow, both, fields_of, number
from cnnlib.errors import listed
from cnnlib.graph import Graph, Node, trace
from cnnlib.operations import op_name

LONGEST_STRIP = 2**14

_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "local_response_norm")
_PASSED = frozenset([*_NORMS, "dropout", "identity", "copy", "activation"])
_ARRANGED = ("cat", "stack", "split", "item", "slice", "gather", "expand", "flatten", "reshape", "permute")
_AS_TRACED = frozenset([*_ARRANGED, "constant", "mean", "sum"])

_SLIDING = (
    "conv",
    "conv_transpose",
    "max_pool",
    "avg_pool",
    "adaptive_max_pool",
    "adaptive_avg_pool",
    "upsample",
    "pad",
)
_SHUFFLES = ("pixel_shuffle", "pixel_unshuffle")
_RUNS = _PASSED | _AS_TRACED | {*_SLIDING, *_SHUFFLES, "input", "output", "linear", "add", "mul", "elementwise"}


class _NoStrip(Exception):
    """The strip does not fit through the network."""


def _positive(shape: tuple[int, ...], fan_in: int) -> Tensor:
    return torch.full(shape, 1 / fan_in, dtype=torch.float64)


def _nonzero(gradient: Tensor) -> Tensor:
    return gradient.ne(0).to(gradient.dtype)


class _Probe:
    """The part of a network up to one node, as a positive linear function that keeps its windows along one axis."""

    def __init__(self, graph: Graph, name: str, axis: int) -> None:
        self.cut = True
        self.graph = graph.upto(name)
        self.name = name
        self.axis = axis
        self.fx_graph: fx.Graph = self.graph.fx_node(self.graph.output.name).graph
        self.node_of = {self.graph.fx_node(node.name): node for node in self.graph}
        self.modules = dict(graph.model.named_modules(remove_duplicate=False))
        for node in self.graph:
            if node.live and node.kind not in _RUNS and not (node.kind == "softmax" and node.attrs["dim"] == 1):
                raise self._refuse(node, "lets positions depend on each other in a way that has no strip")

    def _along(self, values: tuple[Any, ...], elsewhere: Any) -> tuple[Any, ...]:
        """The setting of a window with that of the other axis taken out."""
        return tuple(value if d == self.axis or not self.cut else elsewhere for d, value in enumerate(values))

    def _refuse(self, node: Node, why: str) -> ValueError:
        return ValueError(f"the field of {self.name} cannot be probed by gradient: {node.name} ({node.op}) {why}")

    def _windows(self, node: Node) -> tuple[tuple[int, ...], ...]:
        a = node.attrs
        if len(a["kernel"]) != 2:
            raise self._refuse(node, f"slides along {len(a['kernel'])} axes, not along height and width")
        kernel, stride, dilation = (self._along(a[key], 1) for key in ("kernel", "stride", "dilation"))
        return kernel, stride, self._along(a["padding"], (0, 0)), dilation

    def _conv(self, node: Node, x: Tensor) -> Tensor:
        kernel, stride, padding, dilation = self._windows(node)
        groups, outputs = node.attrs["groups"], node.attrs["out_channels"]
        inputs = node.attrs["in_channels"] // groups
        if node.kind == "conv_transpose":
            weight = _positive((inputs * groups, outputs // groups, *kernel), inputs * math.prod(kernel))
            extra = self._along(node.attrs["output_padding"], 0)
            before = tuple(p for p, _ in padding)
            return F.conv_transpose2d(x, weight, None, stride, before, extra, groups, dilation)
        weight = _positive((outputs, inputs, *kernel), inputs * math.prod(kernel))
        return F.conv2d(_bordered(x, padding), weight, None, stride, 0, dilation, groups)

    def _pool(self, node: Node, x: Tensor) -> Tensor:
        kernel, stride, padding, dilation = self._windows(node)
        if max(dilation) == 1:
            return F.avg_pool2d(x, kernel, stride, tuple(p for p, _ in padding), node.attrs["ceil_mode"])
        weight = _positive((x.shape[1], 1, *kernel), math.prod(kernel))
        return F.conv2d(_bordered(x, padding), weight, None, stride, 0, dilation, x.shape[1])

    def _adaptive(self, node: Node, x: Tensor) -> Tensor:
        sizes = list(zip(node.attrs["input_size"], node.attrs["output_size"]))
        if all(m == 1 for _, m in sizes):
            return x.mean(dim=(2, 3), keepdim=True)
        n, m = sizes[self.axis]
        if n % m:
            raise self._refuse(node, f"has windows of unequal size ({n} to {m} positions)")
        window = self._along(tuple(max(n // m, 1) for n, m in sizes), 1)
        return F.avg_pool2d(x, window, window)

    def _shuffled(self, node: Node, x: Tensor) -> Tensor:
        """Channels to positions, or back, along the probe's axis alone; those of the other axis are merged, or repeated."""
        r = node.attrs["factor"]
        if not self.cut:
            return F.pixel_shuffle(x, r) if node.kind == "pixel_shuffle" else F.pixel_unshuffle(x, r)
        n, c, *size = x.shape
        if node.kind == "pixel_shuffle":
            parts = x.reshape(n, c // r**2, r, r, *size).sum(dim=3 - self.axis)
            size[self.axis] *= r
            return parts.movedim(2, 3 + self.axis).reshape(n, c // r**2, *size)
        size[self.axis : self.axis + 1] = [size[self.axis] // r, r]
        parts = x.reshape(n, c, *size).movedim(3 + self.axis, 2).repeat_interleave(r, dim=1)
        return parts.reshape(n, c * r**2, *parts.shape[3:])

    def _upsample(self, node: Node, x: Tensor) -> Tensor:
        if node.attrs["align_corners"]:
            raise self._refuse(node, "aligns the corners, so that its geometry changes with the length of a strip")
        scale = self._along(tuple(float(s) for s in node.attrs["scale"]), 1.0)
        return F.interpolate(x, scale_factor=scale, mode=node.attrs["mode"])

    def _computed(self, node: Node, fx_node: fx.Node, env: dict[fx.Node, Any], inputs: list[Any]) -> Any:
        live = [value for value, source in zip(inputs, self.graph.predecessors(node.name)) if source.live]
        kind = node.kind
        if kind == "parameter":
            return _positive(node.full_shape, 1)
        if kind in ("conv", "conv_transpose"):
            return self._conv(node, live[0])
        if kind in ("max_pool", "avg_pool"):
            return self._pool(node, live[0])
        if kind in ("adaptive_max_pool", "adaptive_avg_pool"):
            return self._adaptive(node, live[0])
        if kind == "activation" and "halves" in node.attrs:
            return sum(live[0].chunk(2, node.attrs["halves"]))
        if kind in _PASSED or (kind == "softmax" and node.attrs["dim"] == 1):
            return live[0]
        if kind == "linear":
            width = node.attrs["in_features"]
            return F.linear(live[0], _positive((node.attrs["out_features"], width), width))
        if kind in ("add", "mul", "elementwise"):
            # A product depends on the same pixels as the sum of its factors, and squaring at every gate would overflow.
            return sum(live) if live else inputs[0]
        if kind == "upsample":
            return self._upsample(node, live[0])
        if kind in _SHUFFLES:
            return self._shuffled(node, live[0])
        if kind == "pad":
            pads = node.attrs["padding"]
            rest = len(pads) - 2
            return _bordered(live[0], (*pads[:rest], *self._along(pads[rest:], (0, 0))))
        if kind in _AS_TRACED:
            return self._traced(fx_node, env)
        raise AssertionError(f"{kind} is in _RUNS and has no rule")

    def _traced(self, fx_node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        args, kwargs = map_aggregate((fx_node.args, fx_node.kwargs), lambda a: env[a] if isinstance(a, fx.Node) else a)
        if fx_node.op == "call_module":
            return self.modules[fx_node.target].forward(*args, **kwargs)
        if fx_node.op == "call_method":
            # What stands in for `contiguous` does not copy, so that a view may not be one here.
            method = "reshape" if fx_node.target == "view" else fx_node.target
            return getattr(args[0], method)(*args[1:], **kwargs)
        if fx_node.op == "get_attr":
            value = self.graph.tensor(self.node_of[fx_node].name)
            return torch.ones_like(value, dtype=torch.float64) if value.is_floating_point() else value
        return fx_node.target(*args, **kwargs)

    def run(self, length: int, width: int) -> tuple[Tensor, Tensor]:
        """A strip of ones, and the value of the node on it, ready to be differentiated."""
        shape = (length, width) if self.axis == 0 else (width, length)
        strip = torch.ones(1, self.graph.input_shape[0], *shape, dtype=torch.float64, requires_grad=True)
        env: dict[fx.Node, Any] = {}
        origin: dict[fx.Node, fx.Node] = {}
        for fx_node in self.fx_graph.nodes:
            node = self.node_of.get(fx_node)
            try:
                if fx_node.op == "placeholder":
                    value = strip
                elif fx_node.op == "output":
                    break
                elif node is None:
                    value = self._traced(fx_node, env)
                else:
                    inputs = [env[self.graph.fx_node(name)] for name in node.inputs]
                    value = self._computed(node, fx_node, env, inputs)
            except (RuntimeError, IndexError) as error:
                where = node.name if node else op_name(fx_node.target)
                raise _NoStrip(
                    f"{where} cannot take a strip of {listed(shape)}: {str(error).splitlines()[0]}"
                ) from error
            if isinstance(value, Tensor) and value.requires_grad and value is not strip:
                value.register_hook(_nonzero)
            env[fx_node] = value
            if node is not None and node.name in self.graph.overwriting:
                # All names of the overwritten value now mean the new one.
                first = origin[fx_node] = origin.get(fx_node.args[0], fx_node.args[0])
                env[first] = value
                env.update({other: value for other, made in origin.items() if made is first})
        value = env[self.graph.fx_node(self.name)]
        if not value.numel():
            raise _NoStrip(f"{self.name} is empty on a strip of {listed(shape)}")
        return strip, value


def _bordered(x: Tensor, pads: tuple[tuple[int, int], ...]) -> Tensor:
    flat = [n for pair in reversed(pads) for n in pair]
    return F.pad(x, flat) if any(flat) else x


def _seen(strip: Tensor, value: Tensor, axis: int, position: int) -> tuple[int, int] | None:
    """The first and the last pixel along the strip that one position of the value depends on."""
    unit = value.select(2 + axis, position)
    (gradient,) = torch.autograd.grad(unit[..., unit.shape[-1] // 2].sum(), strip, retain_graph=True)
    pixels = gradient.ne(0).any(dim=3 - axis).any(dim=1)[0].nonzero().flatten()
    return (int(pixels[0]), int(pixels[-1])) if len(pixels) else None


def _finer(graph: Graph, axis: int) -> int:
    """After how many positions the pattern of fields surely repeats: the product of all magnifications on the way."""
    repeat = 1
    for node in graph:
        if node.kind == "conv_transpose":
            repeat *= node.attrs["stride"][axis]
        elif node.kind == "upsample":
            repeat *= node.attrs["scale"][axis].numerator
        elif node.kind == "pixel_shuffle":
            repeat *= node.attrs["factor"]
    return repeat


def _run(probe: _Probe, length: int) -> tuple[Tensor, Tensor]:
    """A strip of this length and the value on it, one pixel wide, or else as wide as the image."""
    for cut, width in ((True, 1), (False, probe.graph.input_shape[2 - probe.axis])):
        probe.cut = cut
        try:
            return probe.run(length, width)
        except _NoStrip as error:
            complaint = error
    raise ValueError(f"the field of {probe.name} cannot be probed by gradient: {complaint}") from complaint


@dataclass(frozen=True)
class _Span:
    """What was measured along one axis."""

    size: float
    stride: Fraction | None = None
    offset: Fraction | None = None
    padding: Fraction | None = None


def _measured(probe: _Probe, length: int) -> _Span:
    """Size, stride, offset and padding along the probe's axis; the first strip has this length."""
    repeat = _finer(probe.graph, probe.axis)
    covered, positions_before = 0, 0
    while length <= LONGEST_STRIP:
        strip, value = _run(probe, length)
        positions = value.shape[2 + probe.axis] if value.ndim == 4 else 0
        if positions == positions_before:
            raise ValueError(
                f"the field of {probe.name} cannot be probed by gradient: its value ({listed(value.shape)}) is no map "
                "that grows with the image; name an operation before the global pooling or flattening"
            )
        positions_before = positions
        middle = positions // 2 // repeat * repeat
        if middle + repeat < positions:
            seen = [_seen(strip, value, probe.axis, middle + i) for i in range(repeat + 1)]
            size = max((hi - lo + 1 for lo, hi in filter(None, seen)), default=0)
            inside = all(lo > 0 and hi < length - 1 for lo, hi in filter(None, seen))
            if inside and length > 2 * size:
                return _placed(seen[0], seen[repeat], size, middle, repeat)
            covered = covered + 1 if size > length * 7 / 8 else 0
            if covered == 2:
                return _Span(WHOLE_IMAGE)
        length *= 2
    return _Span(WHOLE_IMAGE)


def _placed(one: tuple[int, int] | None, next_one: tuple[int, int] | None, size: int, at: int, apart: int) -> _Span:
    """Stride and offset from two positions that lie one period of the pattern apart."""
    if one is None or next_one is None:
        return _Span(size)
    stride = Fraction(next_one[0] - one[0], apart)
    return _Span(size, stride, Fraction(sum(one), 2) - at * stride, at * stride - one[0])


def receptive_field_by_gradient(model: nn.Module, input_shape: tuple[int, int, int], at: str | None = None) -> FieldRow:
    """Size, stride, offset and padding of the field of the node `at`, measured by differentiating one position of it.

    `at` defaults to the last map, as in `receptive_field(...).final`. The network's weights are neither used nor
    changed. ValueError where an operation cannot run on a strip (attention, fixed interpolation sizes, ...).
    """
    graph = trace(model, input_shape)
    table = fields_of(graph)
    node = graph[at if at is not None else table.final.name]
    spans = []
    for axis, extent in enumerate(graph.input_shape[1:]):
        guess = 4 * extent
        if node.name in table and not math.isinf(known := table[node.name].axis("size", axis)):
            step = table[node.name].axis("stride", axis) or 1
            guess = 2 * known + math.ceil(step * (4 + 2 * _finer(graph, axis)))
        # A multiple of 64, for networks that halve the map and double it again.
        spans.append(_measured(_Probe(graph, node.name, axis), -(-guess // 64) * 64))
    columns = {
        name: both([None if (v := getattr(span, name)) is None else number(v) for span in spans])
        for name in ("size", "stride", "offset", "padding")
    }
    return FieldRow(node.name, node.kind, **columns, note="measured by gradient")
