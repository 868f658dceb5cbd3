"""A faster twin of a network for instruments that only look: batch normalisation folded into the layer before it.

In evaluation mode, batch normalisation with stored statistics is one factor and one summand a channel, which the
convolution or linear layer before it can take over: W' = W g / sqrt(v + eps), b' = (b - m) g / sqrt(v + eps) + beta.
That holds only where nothing else reads what the layer computes, which the graph says; in a pre-activation network
most norms stand behind a sum and stay.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cnnlib import tables
from cnnlib.graph import Graph, Node, trace
from cnnlib.tracing import borrowed


@dataclass(frozen=True)
class _Fold:
    """A layer of the twin, and where its weights come from: names of the network's tensors, None where there is none."""

    layer: nn.Module
    weight: str
    bias: str | None
    mean: str
    var: str
    scale: str | None
    shift: str | None
    eps: float

    def of(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The folded weight and bias."""
        weight, mean, var = tensors[self.weight], tensors[self.mean], tensors[self.var]
        bias, scale, shift = (n and tensors[n] for n in (self.bias, self.scale, self.shift))
        transposed = isinstance(self.layer, _ConvTransposeNd)
        if not transposed or self.layer.groups == 1:
            return fuse_conv_bn_weights(weight, bias, mean, var, self.eps, scale, shift, transposed)
        # A transposed convolution holds the outputs of one group only along its second axis.
        parts = zip(*(_chunks(t, self.layer.groups) for t in (weight, bias, mean, var, scale, shift)))
        folds = [fuse_conv_bn_weights(w, b, m, v, self.eps, s, t, True) for w, b, m, v, s, t in parts]
        return tuple(torch.cat(tensors) for tensors in zip(*folds))


def _chunks(tensor: Tensor | None, groups: int) -> tuple[Tensor | None, ...]:
    return (None,) * groups if tensor is None else tensor.chunk(groups)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers under all their names."""
    return dict((*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)))


class Folded(nn.Module):
    """A runnable twin of a network in evaluation mode: batch norm folded, channels last, without hooks or gradients.

    `pairs` are the folded (layer, norm); `kept` are the norms that stay, each with the reason; `memory_format` is the
    order in which images lie in memory (channels last, unless the network's own `view`s need the other). `graph` is
    the network's graph, with the twin's modules behind it; the folded norms in it do nothing.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        model = graph.model
        self._model = (model,)  # in a tuple, so that it is no part of this module
        self._names = {id(t): name for name, t in (*model.named_buffers(), *model.named_parameters())}
        self.pairs, self.kept = _foldable(graph)
        self.network = _twin(model)
        self._same, self._folds = self._plan()
        self.refold()
        # The same operations, run by the twin's own modules.
        self.graph = copy.copy(graph)
        self.graph.model = self.network
        vars(self.graph).pop("module", None)
        self.memory_format = self._layout(graph.input_shape)
        self.eval()

    def _plan(self) -> tuple[list[tuple[Tensor, str]], list[_Fold]]:
        """Rebuild the folded layers and norms of the twin; what is copied as it is, and what is folded."""
        (model,) = self._model
        folds, norms = [], {}
        for layer_name, norm_name in self.pairs:
            source, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
            layer = self.network.get_submodule(layer_name)
            # New parameters, since another layer may hold the same ones.
            layer.weight = nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
            layer.bias = nn.Parameter(norm.running_mean.detach().clone(), requires_grad=False)
            sources = (source.weight, source.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            names = (None if t is None else self._names[id(t)] for t in sources)
            folds.append(_Fold(layer, *names, norm.eps))
            norms[norm_name] = self.network.get_submodule(norm_name)
        for norm in norms.values():
            # Forward may hold the norm under several names; it becomes an identity under all of them.
            norm.__class__ = nn.Identity
            norm._parameters.clear()
            norm._buffers.clear()
        done = {id(p) for fold in folds for p in fold.layer.parameters()}
        sources = _tensors(model)
        same = {
            id(t): (t, self._names[id(sources[path])])
            for path, t in _tensors(self.network).items()
            if id(t) not in done
        }
        return list(same.values()), folds

    @torch.no_grad()
    def refold(self, values: Mapping[str, Tensor] | None = None) -> Folded:
        """Take over the network's weights and statistics as they are now; this twin afterwards.

        `values` replaces some of them by their names in the network, which stays as it is: the way to look at many
        points of weight space. ValueError names a tensor that the network does not have.
        """
        (model,) = self._model
        tensors = dict((*model.named_parameters(), *model.named_buffers()))
        for name in values or {}:
            if name not in tensors:
                raise tables.missing("parameter or buffer", name, tensors)
        tensors.update(values or {})
        for tensor, name in self._same:
            tensor.copy_(tensors[name])
        for fold in self._folds:
            weight, bias = fold.of(tensors)
            fold.layer.weight.copy_(weight)
            fold.layer.bias.copy_(bias)
        return self

    def _layout(self, shape: tuple[int, int, int]) -> torch.memory_format:
        """Channels last where forward can run on it: a network that calls `view` on its maps cannot."""
        by_layers = all(node.kind not in ("reshape", "other") for node in self.graph)
        if by_layers and self.graph.source == "fx":
            self._lay(torch.channels_last)
            return torch.channels_last
        first = next((t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()), torch.empty(0))
        # Two images, since views that merge the batch with another axis pass with one.
        probe = torch.zeros(2, *shape, device=first.device, dtype=first.dtype)
        for layout in (torch.channels_last, torch.contiguous_format):
            self._lay(layout)
            try:
                with borrowed(self.network, None), torch.no_grad():
                    self.network(probe.contiguous(memory_format=layout))
                break
            except RuntimeError:
                continue
        return layout

    def _lay(self, layout: torch.memory_format) -> None:
        for p in self.parameters():
            if p.ndim == 4:
                p.data = p.data.contiguous(memory_format=layout)

    def forward(self, x: Tensor) -> Any:
        """What the network computes for (N, C, H, W) in evaluation mode."""
        return self.network(x.contiguous(memory_format=self.memory_format))

    def train(self, mode: bool = True) -> Folded:
        """Stays in evaluation mode: folding holds for stored statistics only."""
        return super().train(False)

    def extra_repr(self) -> str:
        norms = {norm for _, norm in self.pairs}
        return f"batch norm: {len(norms)} of {len(norms) + len(self.kept)} folded"


def folded(model: nn.Module, input_shape: tuple[int, int, int]) -> Folded:
    """A runnable twin of the network for images of `input_shape` = (C, H, W), with batch norm folded where it can be.

    The network stays as it was. After its weights changed, `refold()` brings the twin up to date.
    """
    return Folded(trace(model, input_shape))


def _twin(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode without hooks and gradients."""
    with borrowed(model, torch.Tensor.detach):
        for module in model.modules():
            for hooks in ("_backward_hooks", "_backward_pre_hooks"):
                vars(module)[hooks] = OrderedDict()
        try:
            twin = copy.deepcopy(model)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"{type(model).__name__} cannot be copied: {error}; a network must be copyable by copy.deepcopy"
            ) from error
    return twin.requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------
# Which norms can be folded


def _foldable(graph: Graph) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """The pairs (layer, norm) by their paths, and each norm that stays with the reason."""
    model = graph.model
    calls: dict[str, list[Node]] = {}
    for node in graph:
        if graph.fx_node(node.name).op == "call_module":
            calls.setdefault(node.module, []).append(node)
    read = {id(graph.tensor(n.name)) for n in graph if n.kind in ("parameter", "constant") and _is_held(graph, n)}
    norms = {n.module if _is_module(graph, n) else n.name: n for n in graph if n.kind == "batch_norm"}
    kept: dict[str, str] = {}
    layers: dict[str, set[str]] = {}
    for name, node in norms.items():
        reason = "it is called as a function" if not _is_module(graph, node) else None
        reason = reason or _norm_stays(model.get_submodule(name), read)
        for call in () if reason else calls[name]:
            reason = reason or _input_stays(graph, call, read)
            if not reason:
                layers.setdefault(name, set()).add(graph.predecessors(call.name)[0].module)
        if reason:
            kept[name] = reason
    # A layer that runs several times must meet the same norm each time; a norm that stays can keep another one there.
    waiting = True
    while waiting:
        waiting = False
        for name in [n for n in norms if n not in kept]:
            for layer in layers[name]:
                met = {n.module for call in calls[layer] for n in graph.successors(call.name)}
                if met != {name}:
                    kept[name] = f"{layer}, which it follows, also runs before something else"
                    waiting = True
    pairs = tuple((layer, name) for name in norms if name not in kept for layer in sorted(layers[name]))
    return pairs, {name: kept[name] for name in norms if name in kept}


def _is_module(graph: Graph, node: Node) -> bool:
    return graph.fx_node(node.name).op == "call_module"


def _is_held(graph: Graph, node: Node) -> bool:
    return graph.fx_node(node.name).op == "get_attr"


def _norm_stays(norm: nn.Module, read: set[int]) -> str | None:
    if norm.running_mean is None:
        return "it keeps no statistics, and normalises each batch by its own"
    if _held(norm) & read:
        return "forward also reads its weights by itself"
    return None


def _input_stays(graph: Graph, call: Node, read: set[int]) -> str | None:
    """Why the norm cannot be folded into what stands before this call of it."""
    before = graph.predecessors(call.name)[0]
    layer = graph.model.get_submodule(before.module) if _is_module(graph, before) else None
    if before.kind not in ("conv", "conv_transpose", "linear"):
        return f"it follows {before.name}, which is no convolution or linear layer"
    if layer is None or "weight" not in layer._parameters or _held(layer) & read:
        return f"the weights of {before.name} are computed, or read elsewhere"
    if isinstance(layer, nn.Linear) and len(before.full_shape) != 2:
        return f"{before.name} has its outputs along another axis"
    if len(graph.successors(before.name)) > 1:
        return f"{before.name} is read by others too"
    return None


def _held(module: nn.Module) -> set[int]:
    return {id(t) for t in (*module.parameters(), *module.buffers())}
