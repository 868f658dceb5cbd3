"""A network with some of its operations cut out, moved or replaced, without a change to the network itself.

The edits are made on a copy of the traced torch.fx graph; the copy calls the network's own layers with copies of their
weights, in evaluation mode. Operations that write over their input are read where they write, so that what an edit
leaves without a reader can be dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from cnnlib.graph import Graph
from cnnlib.tracing import borrowed, copied

ADDED = "_cnnlib_"  # begins the name of what an edit adds to the network


class Editor:
    """An editable copy of a traced network; `module()` is what it has become, to be made and run inside `lent`.

    Values are named as in the graph: those that its nodes compute.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._fx = fx.Graph()
        self._new: dict[str, fx.Node] = {}
        self._added: dict[str, nn.Module] = {}
        self._old_of: dict[fx.Node, fx.Node] = {}
        name_of = {graph.fx_node(node.name): node.name for node in graph}
        origin: dict[fx.Node, fx.Node] = {}
        latest: dict[fx.Node, fx.Node] = {}
        made: dict[fx.Node, fx.Node] = {}

        def current(node: fx.Node) -> fx.Node:
            return made[latest.get(origin.get(node, node), node)]

        for old in graph.fx_node(graph.output.name).graph.nodes:
            if old.op == "output":
                continue
            made[old] = self._fx.node_copy(old, current)
            self._old_of[made[old]] = old
            if old in name_of:
                self._new[name_of[old]] = made[old]
                if name_of[old] in graph.overwriting:
                    first = origin[old] = origin.get(old.args[0], old.args[0])
                    latest[first] = old
        (main, *_) = graph.output.inputs
        self._output = self._fx.output(self._new[main])
        # What has no reader from the beginning acts by writing into a value that others see.
        self._roots = {node for node in self._fx.nodes if not node.users}

    def replace(self, reader: str, operand: str, make: Callable[[fx.Graph, fx.Node], fx.Node]) -> None:
        """Let `reader` read, instead of the value of `operand`, what `make(graph, value)` adds to the graph."""
        at, value = self._new[reader], self._new[operand]
        with self._fx.inserting_before(at):
            other = make(self._fx, value)
        at.args = map_arg(at.args, lambda node: other if node is value else node)
        at.kwargs = map_arg(at.kwargs, lambda node: other if node is value else node)

    def zero(self, reader: str, operand: str, like: str | None = None) -> None:
        """Let `reader` read zeros instead of `operand`; `like` is a value of the same shape that is computed anyway."""
        same = like is not None and self.graph[like].full_shape == self.graph[operand].full_shape
        shape = self._new[like if same else operand]
        self.replace(reader, operand, lambda graph, _: graph.call_function(torch.zeros_like, (shape,)))

    def through(self, reader: str, operand: str, module: nn.Module) -> None:
        """Let `reader` read what `module` makes of `operand`."""
        key = f"{ADDED}{len(self._added)}"
        self._added[key] = module
        self.replace(reader, operand, lambda graph, value: graph.call_module(key, (value,)))

    def bypass(self, first: str, last: str) -> None:
        """Let all that read `last` read what goes into `first`, its one computed input."""
        (operand,) = (name for name in self.graph[first].inputs if self.graph[name].live)
        value = self._new[operand]
        self._new[last].replace_all_uses_with(value)
        self._new[last] = value

    def move(self, branch: Sequence[str], source: str, result: str, place: str, reader: str, operand: str) -> None:
        """Let `reader` read, instead of `operand`, what `branch` (from `source` to `result`) makes of `place`."""
        inside = set(branch)
        name_of = {self.graph.fx_node(node.name): node.name for node in self.graph}

        def copy(graph: fx.Graph, _: fx.Node) -> fx.Node:
            done = {self._new[source]: self._new[place]}
            before = _before(graph, self._new[reader])

            def visit(node: fx.Node) -> fx.Node:
                if node not in done:
                    name = name_of.get(self._old_of.get(node))
                    outside = name is not None and self.graph[name].live and name not in inside
                    if outside and node not in before:
                        raise ValueError(
                            f"the branch from {source} to {result} also reads {name}, which is not yet computed "
                            f"at {reader}; it can be moved to later places only"
                        )
                    for read in () if outside else node.all_input_nodes:
                        visit(read)
                    done[node] = node if outside else graph.node_copy(node, lambda n: done[n])
                return done[node]

            return visit(self._new[result])

        self.replace(reader, operand, copy)

    def module(self, start: str | None = None, also: Sequence[str] = ()) -> fx.GraphModule:
        """The edited network, in evaluation mode, without what nothing reads any more; an editor gives one only.

        With `start` it takes this value instead of the image; ValueError if it then still needs the image. With `also`
        it returns a tuple: its answer, and these values.
        """
        nodes = self._fx.nodes
        (image,) = (node for node in nodes if node.op == "placeholder")
        if also:
            copies = []
            for name in also:
                with self._fx.inserting_after(self._new[name]):  # before something writes over it
                    copies.append(self._fx.call_method("clone", (self._new[name],)))
            self._output.args = ((self._output.args[0], *copies),)
        if start is not None:
            with self._fx.inserting_before(next(iter(nodes))):
                given = self._fx.placeholder("start")
            self._new[start].replace_all_uses_with(given)
        for node in reversed(nodes):
            if not node.users and node not in self._roots and node.op != "placeholder":
                self._fx.erase_node(node)
        if start is not None:
            if image.users:
                raise ValueError(f"{self.graph.output.name} is not computed from {start} alone")
            self._fx.erase_node(image)
        self._fx.lint()
        graph, root = self.graph, dict(self._added)
        held = {graph.fx_node(n.name).target: n.name for n in graph if graph.fx_node(n.name).op == "get_attr"}
        for node in nodes:
            if node.op == "get_attr":
                root[node.target] = graph.tensor(held[node.target])
            elif node.op == "call_module" and node.target not in root:
                root[node.target] = graph.model.get_submodule(node.target)
        made = fx.GraphModule(root, self._fx, class_name=type(graph.model).__name__)
        made.training = False
        return made


def _before(graph: fx.Graph, end: fx.Node) -> set[fx.Node]:
    found = set()
    for node in graph.nodes:
        if node is end:
            break
        found.add(node)
    return found


def lent(graph: Graph) -> AbstractContextManager[None]:
    """Inside, the modules that editors of this graph make may be made and run; the network is lent out meanwhile."""
    return borrowed(graph.model, copied)


def batches(graph: Graph, images: Tensor, labels: Tensor, batch: int) -> list[tuple[Tensor, Tensor]]:
    """Images and labels in parts that the graph can run: one image each where the network had to be recorded with one."""
    if batch < 1:
        raise ValueError(f"batch must be at least 1, the images that go through the network at once, got {batch}")
    size = batch if graph.source == "fx" else 1
    return list(zip(images.split(size), labels.split(size)))


def home(graph: Graph) -> Mapping[str, Any]:
    """Device and type of the images that the network takes."""
    first = next((p for p in graph.model.parameters() if p.dtype.is_floating_point), torch.empty(0))
    return {"device": first.device, "dtype": first.dtype}


def check_data(images: Tensor, labels: Tensor) -> None:
    """ValueError unless images are floats (N, C, H, W) and labels whole numbers (N,)."""
    if images.dim() != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(
            f"images must be at least one, (N, C, H, W) in floating point as the network takes them, got "
            f"{tuple(images.shape)} {images.dtype}; a recipe's preprocess(images) makes them"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be ({len(images)},) whole numbers, one an image, got {tuple(labels.shape)} {labels.dtype}"
        )
