"""The layers of a network: a convolution with the normalisation and activation around it is one unit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from cnnlib.graph import Node
from cnnlib.plots.networks.branches import Flow, Split, Step, Tangle
from cnnlib.plots.networks.parts import ADAPTIVE, MERGES, POOLS, WINDOWS, Fork, Item, Mesh, Unit

# Kinds that rearrange values and compute none; a drawing leaves them out.
_SILENT = frozenset(
    ["identity", "copy", "flatten", "reshape", "permute", "item", "expand", "input", "parameter", "constant", "output"]
)
_NORMS = {
    "batch_norm": "BN",
    "layer_norm": "LN",
    "group_norm": "GN",
    "instance_norm": "IN",
    "local_response_norm": "LRN",
}
_ACTIVATIONS = {
    **{name.lower(): name for name in ("ReLU", "ReLU6", "GELU", "SiLU", "ELU", "SELU", "CELU", "PReLU", "GLU")},
    **{"leakyrelu": "leaky ReLU", "leaky_relu": "leaky ReLU", "hardswish": "hard swish", "hardsigmoid": "hard sigmoid"},
}
ACTIVATIONS = frozenset([*_ACTIVATIONS.values(), "sigmoid", "tanh"])


class Units:
    """Turns the steps of a `Flow` into units, forks and meshes."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.graph = flow.graph
        self.sources = flow.sources
        # Modules that hold a layer; the others are only tokens around one.
        self.holders = {""}
        for node in self.graph:
            if node.live and not self._is_token(node) and node.kind not in _SILENT:
                path = self._parent(node)
                while path:
                    self.holders.add(path)
                    path = path.rpartition(".")[0]

    def united(self, series: Sequence[Step]) -> list[Item]:
        """Nodes gathered into units, branch by branch; a chain of nodes in a series keeps to one habit of order."""
        found: list[Item] = []
        for plain, run in groupby(series, key=lambda item: isinstance(item, str)):
            if plain:
                self._unite([self.graph[name] for name in run], found)
                continue
            for item in run:
                item = self._fork(item) if isinstance(item, Split) else self._mesh(item)
                last = found[-1] if found else None
                if (
                    isinstance(item, Unit)
                    and item.kind == "attention"
                    and isinstance(last, Unit)
                    and last.kind == "split"
                ):
                    # One product split into queries, keys and values.
                    item = replace(item, nodes=(*found.pop().nodes, *item.nodes))
                found.append(item)
        return found

    def _fork(self, fork: Split) -> Item:
        branches = []
        left: list[str] = []
        for branch in fork.branches:
            series = self.united(branch)
            if all(isinstance(item, Unit) and not item.kind for item in series):
                left += [name for item in series for name in item.names]
                series = []
            branches.append(tuple(series))
        inside = [name for branch in branches for item in branch for name in item.names]
        path = self.flow.common(inside or [fork.merge])
        if not fork.merge:
            shape = next((branch[-1].shape for branch in reversed(branches) if branch), ())
            return Fork(tuple(branches), "", shape=shape, nodes=tuple(left), path=path)
        merge = self.graph[fork.merge]
        shape = merge.shape or ()
        attention = self._attention(merge, inside, left)
        if attention:
            return replace(attention, path=self.flow.path(merge))
        if not any(branches):
            # All branches only hand on: x + x, or the halves of one value.
            return replace(self._unit(merge, []), nodes=(*left, merge.name), detail=self.merge_word(merge))
        detail = self.merge_word(merge) if merge.kind not in MERGES or merge.op.endswith("sub") else ""
        return Fork(tuple(branches), merge.kind, detail, (), shape, (*left, merge.name), path)

    def merge_word(self, node: Node) -> str:
        words = {"add": "−" if "sub" in node.op else "+", "mul": "÷" if "div" in node.op else "×", "cat": "concat"}
        return words.get(node.kind, node.op.lower() if node.kind == "elementwise" else node.kind.replace("_", " "))

    def _attention(self, merge: Node, inside: list[str], left: list[str]) -> Unit | None:
        """Softmax of products of one value with itself, written out or as torch's one function."""
        nodes = [self.graph[name] for name in inside]
        small = {"matmul", "softmax", "mul", "dropout", "split", "slice", "add", "elementwise", *_SILENT}
        written_out = merge.kind == "matmul" and any(n.kind == "softmax" for n in nodes)
        if not (merge.kind == "attention" and not inside) and not (written_out and {n.kind for n in nodes} <= small):
            return None
        scores = next((n.shape for n in nodes if n.kind == "softmax"), ())
        heads = merge.attrs.get("heads") or (scores[0] if len(scores) == 3 else 1)
        nodes_in = tuple(sorted([*inside, *left, merge.name], key=self.flow.position.__getitem__))
        return Unit("attention", detail=_attention_words(heads), shape=merge.shape or (), nodes=nodes_in)

    def _unite(self, nodes: list[Node], found: list[Item]) -> None:
        """Append the units of nodes in a row, chain by chain."""
        starts = [i for i, node in enumerate(nodes) if not i or nodes[i - 1].name not in self.sources[node.name]]
        for start, end in zip(starts, [*starts[1:], len(nodes)]):
            last = found[-1] if found else None
            follows = last is None or last.names[-1] in self.sources[nodes[start].name]
            if follows:
                self._unite_chain(nodes[start:end], found)
            else:
                apart: list[Item] = []
                self._unite_chain(nodes[start:end], apart)
                found += apart

    def _unite_chain(self, nodes: list[Node], found: list[Item]) -> None:
        """Append the units of a chain of nodes; a first token may belong to a merge at the end of `found`."""
        waiting: list[Node] = []  # tokens for the layer that comes next
        habit = ""
        fresh = True  # nothing of this chain is placed yet
        for node in nodes:
            last = found[-1] if found else None
            if self._is_silent(node):
                if fresh or waiting or not isinstance(last, Unit) or not self._belongs(node, last):
                    waiting.append(node)
                else:
                    found[-1] = self._extended(last, node)
            elif self._is_token(node):
                if fresh and not waiting and isinstance(last, Fork | Mesh) and self._closes(node, last):
                    after = _scaled((*last.after, self._token(node)))
                    found[-1] = replace(last, after=after, nodes=(*last.nodes, node.name))
                    continue
                if not habit:
                    habit = "after" if not fresh else "before" if node.kind in _NORMS else "activation before"
                is_norm = node.kind in _NORMS
                ahead = fresh or waiting or habit == ("before" if is_norm else "activation before")
                if not ahead and isinstance(last, Unit) and self._belongs(node, last):
                    found[-1] = self._extended(last, node)
                else:
                    waiting.append(node)
                fresh = False
            else:
                tokens = [token for token in waiting if self._is_token(token)]
                takes = node.kind not in POOLS and all(self._under(t, node, habit == "before") for t in tokens)
                if tokens and not takes:
                    self._settle(waiting, found)
                    waiting = []
                found.append(self._unit(node, [], [n for n in waiting]))
                waiting, fresh = [], False
        self._settle(waiting, found)

    def _settle(self, waiting: list[Node], found: list[Item]) -> None:
        """Place tokens that no layer takes: on the unit before them where they belong to it, else on their own."""
        waiting = list(waiting)
        while waiting and isinstance(found[-1] if found else None, Unit):
            if self._is_token(waiting[0]) and not self._belongs(waiting[0], found[-1]):
                break
            found[-1] = self._extended(found[-1], waiting.pop(0))
        if not waiting:
            return
        last = found[-1] if found else None
        tokens = [node for node in waiting if self._is_token(node)]
        if tokens:
            found.append(self._unit(tokens[0], [n.name for n in waiting if n is not tokens[0]]))
        else:
            shape = waiting[-1].shape or ()
            if isinstance(last, Fork | Mesh):
                found[-1] = replace(last, nodes=(*last.nodes, *(n.name for n in waiting)), shape=shape)
            else:
                found.append(
                    Unit("", shape=shape, nodes=tuple(n.name for n in waiting), path=self.flow.path(waiting[0]))
                )

    def _extended(self, unit: Item, node: Node) -> Item:
        shape = node.shape or unit.shape
        if self._is_silent(node):
            return replace(unit, nodes=(*unit.nodes, node.name), shape=shape)
        after = _scaled((*unit.after, self._token(node)))
        return replace(unit, after=after, nodes=(*unit.nodes, node.name), shape=shape)

    def _unit(self, node: Node, then: Sequence[str], first: Sequence[Node] = ()) -> Unit:
        before = tuple(self._token(n) for n in first if self._is_token(n))
        nodes = (*(n.name for n in first), node.name)
        base = {"before": before, "nodes": nodes, "shape": node.shape or (), "path": self.flow.path(node)}
        if self._is_token(node):
            unit = Unit(node.kind, after=(self._token(node),), **base)
        else:
            unit = Unit(node.kind, **_numbers(node, self._source_shape(node), self._foreign(node)), **base)
            if node.kind in MERGES and len(self.sources[node.name]) > 1:
                unit = replace(unit, detail=self.merge_word(node))
        for name in then:
            unit = self._extended(unit, self.graph[name])
        return unit

    def _source_shape(self, node: Node) -> tuple[int, ...]:
        return next((self.graph[n].shape or () for n in node.inputs if self.graph[n].live), ())

    def _foreign(self, node: Node) -> str:
        """The last name of a parameter or buffer that the operation reads besides its input."""
        names = [n for n in node.inputs if not self.graph[n].live]
        while names and self.graph[names[0]].inputs:  # what an expanded parameter is made of
            names = self.graph[names[0]].inputs
        return names[0].split(":")[0].rpartition(".")[2] if names else ""

    def _is_silent(self, node: Node) -> bool:
        if node.kind == "cat":
            return len(node.inputs) == 1
        if node.kind == "pad":
            return self._source_shape(node)[:1] == (node.shape or ())[:1]
        if node.kind == "dropout":
            return node.attrs.get("p") == 0
        if node.kind in ADAPTIVE:  # to the size that is there
            return self._source_shape(node) == node.shape
        return node.kind in _SILENT

    def _is_token(self, node: Node) -> bool:
        if node.kind in ("add", "mul"):
            return len(self.sources[node.name]) == 1
        if node.kind == "dropout":
            return not self._is_silent(node)
        if node.kind == "slice":  # a crop
            return len(node.shape or ()) == 3 and node.shape[0] == self._source_shape(node)[0]
        return node.kind in _NORMS or node.kind in ("activation", "elementwise", "softmax", "overwrite")

    def _token(self, node: Node) -> str:
        if node.kind in _NORMS:
            return "RMS" if "rms" in node.op.lower() else _NORMS[node.kind]
        if node.kind == "activation":
            return _ACTIVATIONS.get(node.op.lower(), node.op.lower())
        if node.kind not in ("add", "mul"):
            return {"dropout": "dropout", "slice": "crop"}.get(node.kind, node.op.lower())
        args = self.graph.fx_node(node.name).args
        numbers = [a for a in args if isinstance(a, int | float)]
        number = self._foreign(node) or (f"{numbers[0]:.3g}" if numbers else "")
        if not number:  # the same value twice
            return "doubled" if node.kind == "add" else "squared"
        if node.kind == "add":
            if "sub" not in node.op:
                return f"+ {number}"
            return f"{number} −" if args and args[0] in numbers else f"− {number}"
        return f"{'÷' if 'div' in node.op else '×'} {number}"

    def _parent(self, node: Node) -> str:
        """The module that uses the node: around a layer, or the one that calls a function."""
        own = node.name.split(":")[0] == node.module
        return node.module.rpartition(".")[0] if own else node.module

    def _lifted(self, node: Node) -> str:
        path = self._parent(node)
        while path not in self.holders:
            path = path.rpartition(".")[0]
        return path

    def _under(self, token: Node, layer: Node, beside: bool = False) -> bool:
        """Whether the module around the token is also around the layer; `beside`: or the module around that."""
        above, path = self._lifted(token), self._parent(layer)
        if beside and "." in above:
            above = above.rpartition(".")[0]
        return not above or path == above or path.startswith(above + ".")

    def _belongs(self, token: Node, unit: Unit) -> bool:
        main = next((self.graph[n] for n in unit.nodes if self.graph[n].kind == unit.kind), None)
        return main is not None and self._under(token, main)

    def _closes(self, token: Node, item: Fork | Mesh) -> bool:
        """Whether a token directly behind a merge is part of the same block."""
        name = item.nodes[-1] if isinstance(item, Fork) and item.nodes else item.names[-1]
        merge = self.graph[name]
        above = self._lifted(token)
        if token.kind in _NORMS:
            return merge.kind == "add" and above == merge.module
        return not above or merge.module == above or merge.module.startswith(above + ".")

    def _mesh(self, tangle: Tangle) -> Mesh:
        """Units of single nodes; tokens with one reader join the unit before them."""
        names = tangle.names
        readers: dict[str, list[str]] = {name: [] for name in names}
        for name in names:
            for source in self.sources[name]:
                if source in readers:
                    readers[source].append(name)
        unit_of: dict[str, int] = {}
        parts: list[list[str]] = []
        ahead: list[list[str]] = []  # what only hands the input on, with the first part after it
        waiting: list[str] = []
        for name in names:
            node, sources = self.graph[name], self.sources[name]
            before = unit_of.get(sources[0], -1) if sources else -1
            silent = len(sources) == 1 and self._is_silent(node) and name != names[-1]
            token = len(sources) == 1 and before >= 0 and readers[sources[0]] == [name] and self._is_token(node)
            if silent and before < 0:
                unit_of[name] = -1
                waiting.append(name)
            elif silent or token:
                unit_of[name] = before
                parts[before].append(name)
            else:
                unit_of[name] = len(parts)
                parts.append([name])
                ahead.append(waiting)
                waiting = []
        links: dict[tuple[int, int], None] = {}
        for name in names:
            for source in self.sources[name]:
                pair = (unit_of.get(source, -1), unit_of[name])
                if pair[0] != pair[1]:
                    links[pair] = None
        units = tuple(
            self._unit(self.graph[part[0]], part[1:], [self.graph[name] for name in first])
            for part, first in zip(parts, ahead)
        )
        return Mesh(units, tuple(links), shape=units[-1].shape, path=self.flow.common(names[:-1]))


def _attention_words(heads: int) -> str:
    return f"attention, {heads} head{'s' * (heads != 1)}"


def _numbers(node: Node, source: tuple[int, ...], foreign: str) -> dict[str, object]:
    """The fields of a unit that say what its main operation does."""
    attrs, shape = node.attrs, node.shape or ()
    window = {key: tuple(attrs.get(key, ())) for key in ("kernel", "stride", "padding", "dilation")}
    kind = node.kind
    if kind in ("conv", "conv_transpose"):
        groups = attrs["groups"]
        depthwise = groups > 1 and groups == attrs["in_channels"] == attrs["out_channels"]
        return {**window, "groups": "depthwise" if depthwise else groups, "width": attrs["out_channels"]}
    if kind == "linear":
        return {"width": attrs["out_features"], "reads": attrs["in_features"]}
    if kind in WINDOWS:
        return window
    if kind in ADAPTIVE:
        size = tuple(attrs["output_size"])
        what = ADAPTIVE[kind]
        return {"detail": f"global {what}" if set(size) == {1} else f"{what} to {'×'.join(map(str, size))}"}
    if kind == "mean":
        spatial = len(source) == 3 and attrs.get("dims") in ((2, 3), (1, 2))
        return {"detail": "global avg pool" if spatial else "mean"}
    if kind == "extremum":
        return {"detail": "maximum" if "max" in node.op else "minimum"}
    if kind == "attention":
        return {"detail": _attention_words(attrs["heads"])}
    if kind == "upsample":
        scale = "×".join(f"{float(s):g}" for s in dict.fromkeys(attrs["scale"]))
        return {"detail": f"{attrs['mode']} ×{scale}"}
    if kind == "cat" and foreign:
        return {"detail": f"with {foreign}"}
    if kind == "gather":
        return {"detail": f"pick {shape[0]}" if shape else "pick"}
    if kind == "pad":
        return {"detail": f"{shape[0] - source[0]} zero maps"}
    if kind == "slice":
        return {"detail": f"pick 1 of {source[0]}" if shape == source[1:] else "slice"}
    if kind in ("pixel_shuffle", "pixel_unshuffle"):
        return {"detail": f"{kind.replace('_', ' ')} {attrs['factor']}"}
    return {"detail": node.op.lower() if kind == "other" else kind.replace("_", " ")}


def _scaled(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Tokens with the numbers around an activation as one: `× 0.667`, `tanh`, `× 1.72` is `1.72 tanh(0.667 x)`."""
    found = list(tokens)
    for i in range(len(found) - 2):
        inner, outer = (re.fullmatch(r"× ([\d.]+)", found[k]) for k in (i, i + 2))
        if inner and outer:
            return (*found[:i], f"{outer[1]} {found[i + 1]}({inner[1]} x)", *_scaled(tuple(found[i + 3 :])))
    return tokens
