"""One trace of any network: an ordered graph of operations with shapes, which all analyses read.

`trace` looks at the network in evaluation mode on one image: torch.fx where it can follow forward, else one recorded
forward pass (see `tracing`). The network is only borrowed: weights, buffers, gradients, hooks, each module's mode and
the random state are afterwards as before, also after an error.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from cnnlib import tables
from cnnlib.errors import listed
from cnnlib.models.blocks import InputGuard
from cnnlib.operations import KINDS, Spec, attributes, bind, kind_of_function, kind_of_module, op_name
from cnnlib.tracing import Unreadable, borrowed, copied, on_meta, recorded, symbolic


@dataclass(frozen=True)
class Node:
    """One operation.

    `name` is the module's path, or the calling module's path and the function (`layer1.0.add`); a module or function
    that is used again gets `:2`, and a function that has the name of a module gets `()`.
    `kind` is a word of `operations.KINDS`; `op` is torch's own name of the operation.
    `inputs` are the names of the nodes whose values it reads, in order; a value that was overwritten in place is read
    from the node that wrote it last.
    `shape` is the shape of the (first) result for one image, without the batch; `full_shape` is as traced.
    `module` is the path of the module that runs it; `params` are the parameters that it is the first to use.
    `attrs` are its numbers: kernel, stride, padding, groups, ...; see `operations`.
    `live`: its value depends on the image.
    """

    name: str
    kind: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...] | None
    full_shape: tuple[int, ...] | None
    module: str
    params: tuple[str, ...]
    attrs: dict[str, Any] = field(repr=False)
    live: bool

    def at_depth(self, depth: int) -> str:
        """The first `depth` components of the path: `features.denseblock1` at depth 2."""
        return ".".join(self.name.split(":")[0].split(".")[:depth])

    @property
    def stage(self) -> str:
        """The first component of the path: `layer1` of `layer1.0.add`."""
        return self.at_depth(1)


class Graph:
    """The operations of a network in the order in which they run.

    Iterates its `Node`s; `graph[name]` is one of them. `source` is "fx" or "recorded"; a recorded graph runs only on
    the batch size and image size that it was recorded with. `unused` are the parameters that forward never reads;
    `overwriting` are the operations that write their result over their first input.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        fx_nodes: dict[str, fx.Node],
        *,
        model: nn.Module,
        input_shape: tuple[int, ...],
        source: str,
        unused: tuple[str, ...],
        constants: dict[str, Tensor],
        overwriting: frozenset[str],
    ) -> None:
        self.nodes = nodes
        self.model = model
        self.input_shape = input_shape
        self.source = source
        self.unused = unused
        self._by_name = {node.name: node for node in nodes}
        self._fx_nodes = fx_nodes
        self._constants = constants
        self.overwriting = overwriting

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Node:
        if name not in self._by_name:
            raise tables.missing("node", name, self._by_name)
        return self._by_name[name]

    @property
    def input(self) -> Node:
        return next(node for node in self.nodes if node.kind == "input")

    @property
    def output(self) -> Node:
        """What forward returns; its `inputs` are all tensors in it, the main one first."""
        return self.nodes[-1]

    def predecessors(self, name: str) -> tuple[Node, ...]:
        """The nodes whose values `name` reads, in order."""
        return tuple(self._by_name[i] for i in self[name].inputs)

    @cached_property
    def _readers(self) -> dict[str, tuple[Node, ...]]:
        readers: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node)
        return {name: tuple(found) for name, found in readers.items()}

    def successors(self, name: str) -> tuple[Node, ...]:
        """The nodes that read the value of `name`, in order."""
        return self._readers[self[name].name]

    def ancestors(self, name: str) -> frozenset[str]:
        """All nodes that `name` depends on, itself included."""
        found: set[str] = set()
        waiting = [self[name].name]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting.extend(self._by_name[current].inputs)
        return frozenset(found)

    def fx_node(self, name: str) -> fx.Node:
        """The node of `graph.module.graph` behind a name, for whoever edits it."""
        return self._fx_nodes[self[name].name]

    def tensor(self, name: str) -> Tensor:
        """The parameter, buffer or constant behind a node of kind `parameter` or `constant`."""
        target = self.fx_node(name).target
        found = self._constants.get(target)
        return operator.attrgetter(target)(self.model) if found is None else found

    @cached_property
    def module(self) -> fx.GraphModule:
        """The network as a runnable torch.fx.GraphModule. It shares the network's modules and weights, and runs in
        their mode; edit a `copy.deepcopy` of it."""
        graph = self._fx_nodes[self.output.name].graph
        root: dict[str, Any] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                root[node.target] = self.model.get_submodule(node.target)
            elif node.op == "get_attr":
                known = node.target in self._constants
                root[node.target] = (
                    self._constants[node.target] if known else operator.attrgetter(node.target)(self.model)
                )
        module = fx.GraphModule(root, graph, class_name=type(self.model).__name__)
        module.training = self.model.training
        return module

    def upto(self, name: str) -> Graph:
        """The part of the graph that computes `name`, as a graph whose output is that value."""
        end = self[name]
        keep = self.ancestors(name)
        wanted = {self._fx_nodes[n] for n in keep}
        # Sizes and other numbers are no nodes here, but operations read them.
        waiting = list(wanted)
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if source not in wanted:
                    wanted.add(source)
                    waiting.append(source)
        graph = fx.Graph()
        new: dict[fx.Node, fx.Node] = {}
        old = self._fx_nodes[self.output.name].graph
        for node in old.nodes:
            if node in wanted or node.op == "placeholder":
                new[node] = graph.node_copy(node, lambda n: new[n])
        result = graph.output(new[self._fx_nodes[name]])
        result.meta.update(scope="", value=None)
        kept = [n for n in self.nodes if n.name in keep or n.kind == "input"]
        output = Node("output()", "output", "output", (name,), end.shape, end.full_shape, "", (), {}, end.live)
        fx_nodes = {n.name: new[self._fx_nodes[n.name]] for n in kept} | {"output()": result}
        used = {p for n in kept for p in n.params}
        return Graph(
            (*kept, output),
            fx_nodes,
            model=self.model,
            input_shape=self.input_shape,
            source=self.source,
            unused=tuple(p for p, _ in self.model.named_parameters() if p not in used),
            constants=self._constants,
            overwriting=self.overwriting & keep,
        )

    def values(self, x: Tensor, names: tuple[str, ...] | list[str]) -> dict[str, Tensor]:
        """What the named nodes compute for a batch of images (N, C, H, W), in evaluation mode, without gradients."""
        wanted = {self._fx_nodes[self[name].name]: name for name in names}
        found: dict[str, Tensor] = {}

        class Reader(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                result = super().run_node(node)
                if node in wanted:
                    # A later operation may overwrite it in place.
                    found[wanted[node]] = result.clone() if isinstance(result, Tensor) else result
                return result

        with borrowed(self.model, None), torch.no_grad():
            Reader(self.module).run(x)
        return found

    @property
    def fingerprint(self) -> str:
        """A digest of what the network computes: operations, their numbers, connections and shapes, but no weights."""
        sizes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        lines = [
            (
                n.kind,
                n.name,
                n.inputs,
                n.shape,
                sorted((k, str(v)) for k, v in n.attrs.items()),
                [sizes[p] for p in n.params],
            )
            for n in self.nodes
        ]
        return hashlib.sha256(repr((self.input_shape, lines)).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        rows = [(n.name, n.kind, n.shape, ", ".join(n.inputs)) for n in self.nodes]
        return tables.text(self._title(), ("name", "kind", "shape", "inputs"), rows)

    def _repr_html_(self) -> str:
        rows = [(n.name, n.kind, n.shape, ", ".join(n.inputs)) for n in self.nodes]
        return tables.html(self._title(), ("name", "kind", "shape", "inputs"), rows)

    def _title(self) -> str:
        how = "torch.fx" if self.source == "fx" else "one recorded forward pass"
        return f"{type(self.model).__name__} on {listed(self.input_shape)}: {len(self)} nodes by {how}"


def check_input_shape(input_shape: Any) -> tuple[int, int, int]:
    """The shape as (C, H, W), or ValueError."""
    try:
        shape = tuple(operator.index(n) for n in input_shape)
    except TypeError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        way_out = "leave the batch out" if len(shape) == 4 else "for example (3, 224, 224)"
        raise ValueError(
            f"input_shape must be three whole numbers of at least 1, (C, H, W); got {input_shape!r}; {way_out}"
        )
    return shape


def _check_model(model: Any, shape: tuple[int, int, int]) -> nn.Module:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        what = "a class" if isinstance(model, type) else type(model).__name__
        way_out = (
            "trace the nn.Module that it was made from" if isinstance(model, nn.Module) else "build the network first"
        )
        raise ValueError(f"a network must be an nn.Module with Python code, got {what}; {way_out}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"parameter {name} has no shape until the network has seen a batch; call it once on "
                f"torch.zeros(1, {', '.join(map(str, shape))}) first"
            )
    for hook in model._forward_pre_hooks.values():
        if isinstance(hook, InputGuard):
            hook.check((1, *shape))
    return model


def trace(
    model: nn.Module, input_shape: tuple[int, int, int], *, training: bool = False, batch: int | None = None
) -> Graph:
    """Read a network as a graph of operations, for images of `input_shape` = (C, H, W).

    The network is read in evaluation mode whatever its mode is; `training=True` reads it as it runs in training
    (auxiliary heads, dropout), on a batch of two. `batch` is another number of images, for a graph that shall run on as
    many although it had to be recorded. ValueError names the operation that cannot take its input.
    """
    shape = check_input_shape(input_shape)
    model = _check_model(model, shape)
    batch = batch or (2 if training else 1)
    first = next(model.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    floating = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    meta_x = torch.empty(batch, *shape, dtype=floating, device="meta")
    try:
        with borrowed(model, on_meta, training):
            graph, constants = symbolic(model, meta_x)
        source = "fx"
    except Unreadable:
        source = "recorded"
        try:
            with borrowed(model, on_meta, training):
                graph, constants = recorded(model, meta_x, device)
        except Unreadable:
            # Values decide something, or an operation has no meta version: run it, on copies.
            x = torch.rand(meta_x.shape, generator=torch.Generator().manual_seed(0)).to(device, floating)
            try:
                with borrowed(model, copied, training):
                    graph, constants = recorded(model, x, device)
            except Unreadable as error:
                raise ValueError(
                    f"{type(model).__name__} cannot be read at {listed(shape)}: {error}; "
                    "check the input shape against the first layers"
                ) from error.__cause__
    return _read(model, shape, graph, source, constants, batch)


# ---------------------------------------------------------------------------------------------------------------
# From torch.fx's nodes to ours


_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "ipow"}


def _first_spec(value: Any) -> Spec | None:
    if isinstance(value, Spec):
        return value
    if isinstance(value, tuple):
        return next((found for v in value if (found := _first_spec(v))), None)
    return None


def _one_image(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """A shape without its batch; where the batch is multiplied into an axis or stands elsewhere, it is taken out there."""
    if shape and shape[0] == batch:
        return shape[1:]
    if batch == 1:
        return shape
    if shape and shape[0] % batch == 0:
        return (shape[0] // batch, *shape[1:])
    if batch in shape:
        i = shape.index(batch)
        return (*shape[:i], *shape[i + 1 :])
    return shape


class _Names:
    """Gives out unique names; a function does not take the name of a module."""

    def __init__(self, paths: set[str]) -> None:
        self.paths = paths
        self.uses: dict[str, int] = {}

    def again(self, name: str) -> str:
        self.uses[name] = self.uses.get(name, 0) + 1
        return name if self.uses[name] == 1 else f"{name}:{self.uses[name]}"

    def function(self, scope: str, op: str) -> str:
        name = f"{scope}.{op}" if scope else op
        return self.again(f"{name}()" if name in self.paths else name)


def _read(
    model: nn.Module, shape: tuple[int, ...], graph: fx.Graph, source: str, constants: dict[str, Tensor], batch: int
) -> Graph:
    modules = dict(model.named_modules(remove_duplicate=False))
    canonical = {id(module): path for path, module in model.named_modules()}
    parameters = {id(p): name for name, p in model.named_parameters()}
    names = _Names(set(modules))
    name_of: dict[fx.Node, str] = {}
    nodes: list[Node] = []
    live: dict[str, bool] = {}
    owned: set[str] = set()
    overwriting: set[str] = set()
    parameter_of: dict[str, str] = {}
    # A value that was overwritten in place: the node that made it, and the node that wrote it last.
    origin: dict[fx.Node, fx.Node] = {}
    latest: dict[fx.Node, fx.Node] = {}

    def current(node: fx.Node) -> fx.Node:
        return latest.get(origin.get(node, node), node)

    def sources(node: fx.Node) -> list[fx.Node]:
        """The nodes whose tensors this one reads; tuples and named tuples that only pass them on are looked through."""
        found: list[fx.Node] = []

        def visit(a: Any) -> Any:
            if isinstance(a, fx.Node):
                a = current(a)
                if a in name_of:
                    found.append(a)
                elif isinstance(a.target, type) or isinstance(a.meta["value"], tuple | dict):
                    found.extend(sources(a))
            return a

        map_aggregate((node.args, node.kwargs), visit)
        return found

    for node in graph.nodes:
        value = node.meta["value"]
        spec = _first_spec(value)
        if node.op != "output" and (spec is None or isinstance(node.target, type)):
            continue
        inputs = sources(node) if node.op not in ("placeholder", "get_attr") else []
        module = modules[node.target] if node.op == "call_module" else None
        args, kwargs = map_aggregate(
            (node.args, node.kwargs), lambda a: a.meta["value"] if isinstance(a, fx.Node) else a
        )
        attrs: dict[str, Any] = {}
        params: list[str] = []
        scope = node.meta["scope"]
        if node.op == "placeholder":
            name, kind, op, scope = names.function("", "input"), "input", "input", ""
        elif node.op == "output":
            name, kind, op = names.function("", "output"), "output", "output"
        elif node.op == "get_attr":
            tensor = constants.get(node.target)
            tensor = operator.attrgetter(node.target)(model) if tensor is None else tensor
            parameter = parameters.get(id(tensor))
            name, op, scope = names.again(node.target), "get_attr", node.target.rpartition(".")[0]
            kind = "parameter" if parameter else "constant"
            if parameter:
                parameter_of[name] = parameter
        elif module is not None:
            scope = canonical[id(module)]
            name, kind, op = names.again(scope), kind_of_module(module), type(module).__name__
            params = [parameters[id(p)] for p in module.parameters()]
        else:
            op = op_name(args[1]) if node.target is getattr else op_name(node.target)
            kind = kind_of_function(op)
            if op == "getitem":
                kind = "slice" if isinstance(args[0], Spec) else "item"
                if kind == "slice" and any(
                    isinstance(i, Spec) for i in (args[1] if isinstance(args[1], tuple) else (args[1],))
                ):
                    kind = "gather"
            elif kind == "extremum" and sum(isinstance(a, Spec) for a in args) > 1:
                kind = "elementwise"
            name = names.function(scope, {"getitem": kind}.get(op, op))
        if kind == "item":
            attrs = {"index": args[1]}
        elif node.op in ("call_module", "call_function", "call_method"):
            attrs = attributes(kind, op, module, args, kwargs, value)
        name_of[node] = name
        input_names = tuple(name_of[n] for n in inputs)
        if kind == "output" and inputs:
            spec = _first_spec(inputs[0].meta["value"])
        params += [parameter_of[n] for n in input_names if n in parameter_of and kind != "output"]
        first_uses = tuple(p for p in dict.fromkeys(params) if p not in owned)
        owned.update(first_uses)
        live[name] = kind == "input" or (kind != "constant" and any(live[n] for n in input_names))
        full = spec.shape if spec else None
        one = full if full is None or not live[name] else _one_image(full, batch)
        nodes.append(Node(name, kind, op, input_names, one, full, scope, first_uses, attrs, live[name]))
        if inputs and _writes_in_place(node, module, op, args, kwargs):
            overwriting.add(name)
            first = origin.get(node.args[0], node.args[0])
            origin[node] = first
            latest[first] = node
    if not live[nodes[-1].name]:
        raise ValueError(
            f"the output of {type(model).__name__} does not depend on its input as far as torch can see; "
            "does forward return the tensor that it computes?"
        )
    unused = tuple(name for name in parameters.values() if name not in owned)
    fx_nodes = {name: node for node, name in name_of.items()}
    return Graph(
        tuple(nodes),
        fx_nodes,
        model=model,
        input_shape=shape,
        source=source,
        unused=unused,
        constants=constants,
        overwriting=frozenset(overwriting),
    )


def _writes_in_place(node: fx.Node, module: nn.Module | None, op: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return (node.target.endswith("_") and not node.target.endswith("__")) or op in _IN_PLACE
    written = getattr(node.target, "__name__", "")
    return (
        (written.endswith("_") and not written.endswith("__"))
        or written == "set_item"
        or op in _IN_PLACE
        or bool(bind(op, args, kwargs).get("inplace", False))
    )


__all__ = ["KINDS", "Graph", "Node", "check_input_shape", "trace"]
