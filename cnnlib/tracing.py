"""Two ways from a network to a torch.fx.Graph whose nodes know their shapes.

`symbolic` lets torch.fx run forward on stand-ins, so that the batch size stays open; shapes are then propagated on
meta tensors. `recorded` runs one real forward pass, on meta tensors or on copies of the weights, and notes what was
called. Both run inside `borrowed`, which lends the network out and takes it back as it was.

Every node has in its meta `scope` (the path of the module that called it) and `value` (what it returned, with a
`Spec` for each tensor).
"""

from __future__ import annotations

import operator
import random
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from cnnlib.errors import listed
from cnnlib.operations import Spec, is_leaf, op_name

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
_REFILL = {dict: dict.update, OrderedDict: OrderedDict.update, list: list.extend, set: set.update}
_FX_KNOWS = ("torch", "_operator", "math", "builtins")


class Unreadable(Exception):
    """This way of tracing does not fit the network; the message says why, another way may do."""


# ---------------------------------------------------------------------------------------------------------------
# Lending the network out


def on_meta(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and type without values."""
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def copied(tensor: Tensor) -> Tensor:
    """The same values in memory of their own."""
    return tensor.detach().clone()


@contextmanager
def borrowed(model: nn.Module, twin: Callable[[Tensor], Tensor] | None, training: bool = False) -> Iterator[None]:
    """Lend the network out with each tensor replaced by its `twin` (None: by itself), without hooks, in evaluation mode.

    Afterwards everything that a module holds is what it was before, also after an exception: parameters, buffers and
    plain attributes are the same objects with the same values and gradients, and so are hooks, each module's mode and
    the random state. Nobody else may use the network in the meantime.
    """
    twins: dict[int, Tensor] = {}

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) not in twins:
            made = twin(tensor)
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            twins[id(tensor)] = made
        return twins[id(tensor)]

    saved = []
    for module in model.modules():
        held = vars(module).copy()
        inner = [(value, value.copy() if value else None) for value in held.values() if type(value) in _REFILL]
        saved.append((module, held, inner))
    with _random_state():
        try:
            for module, held, _ in saved:
                state = vars(module)
                state["training"] = training
                for name in _HOOKS:
                    if held.get(name):
                        state[name] = type(held[name])()
                if twin is None:
                    continue
                for tensors in (state["_parameters"], state["_buffers"]):
                    for key, tensor in tensors.items():
                        if tensor is not None:
                            tensors[key] = stand_in(tensor)
                for key, value in held.items():
                    if isinstance(value, Tensor):
                        state[key] = stand_in(value)
            yield
        finally:
            for module, held, inner in saved:
                state = vars(module)
                state.clear()
                state.update(held)
                for container, content in inner:
                    if content is None and not container:
                        continue
                    container.clear()
                    if content is not None:
                        _REFILL[type(container)](container, content)


@contextmanager
def _random_state() -> Iterator[None]:
    """Put every random generator that a forward pass may draw from back where it was."""
    numpy = sys.modules.get("numpy")
    before = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        if numpy:
            numpy.random.set_state(before[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)


def tensor_names(model: nn.Module) -> dict[int, str]:
    """The path of every parameter, buffer and plain tensor attribute, by the identity of the tensor."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for key, value in (*module._buffers.items(), *vars(module).items()):
            if isinstance(value, Tensor):
                names.setdefault(id(value), dot + key)
    return names


def specs(value: Any) -> Any:
    """The same nest of values with a Spec for each tensor."""
    if isinstance(value, Tensor):
        return Spec(tuple(value.shape))
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, list | tuple):
        return tuple(specs(v) for v in value)
    if isinstance(value, dict):
        return {k: specs(v) for k, v in value.items()}
    return value


def _shapes(args: Any) -> str:
    found: list[str] = []
    map_aggregate(args, lambda a: found.append(listed(a.shape) or "a number") if isinstance(a, Tensor) else None)
    return ", ".join(found) or "its arguments"


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _complaint(scope: str, operation: str, args: Any, error: BaseException) -> str:
    where = f"{scope} ({operation})" if scope else operation
    return f"{where} cannot take {_shapes(args)}: {_sentence(error)}"


def _run_leaf(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A layer's result. Batch norm with stored statistics keeps the shape, and torch takes 1 ms on meta to find that out."""
    if isinstance(module, nn.BatchNorm2d) and not module.training and module.running_mean is not None and not kwargs:
        x = args[0]
        if x.is_meta and x.ndim == 4 and x.shape[1] == module.num_features:
            return torch.empty_like(x)  # not x itself: a recording tells values apart by their identity
    return module.forward(*args, **kwargs)


# ---------------------------------------------------------------------------------------------------------------
# The first way: torch.fx


class _Tracer(fx.Tracer):
    """torch.fx's tracer with our leaves, one open input, and the calling module noted on each node."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.path = [""]

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        node.meta["scope"] = self.path[-1]
        return node

    def call_module(self, m, forward, args, kwargs):
        self.path.append(self.path_of_module(m))
        try:
            if is_leaf(m):
                return self.create_proxy("call_module", self.path[-1], args, kwargs)
            return m.forward(*args, **kwargs)
        finally:
            self.path.pop()

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        name = self.names.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]


def symbolic(model: nn.Module, x: Tensor) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph by torch.fx, and the tensors that forward made out of nothing, by the name of their node's target.

    `model` is borrowed on meta and `x` is on meta. Raises Unreadable where forward depends on shapes or values.
    """
    names = tensor_names(model)
    if "forward" in vars(model):
        raise Unreadable("its forward is set on the object, where torch.fx does not look")
    tracer = _Tracer(names)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise Unreadable(_sentence(error)) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    known = set(names.values())
    constants: dict[str, Tensor] = {}
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in graph.nodes:
            args, kwargs = (
                map_aggregate(part, lambda a: values[a] if isinstance(a, fx.Node) else a)
                for part in (node.args, node.kwargs)
            )
            if node.op == "placeholder":
                value = x
            elif node.op == "get_attr":
                value = operator.attrgetter(node.target)(model)
                if node.target not in known and isinstance(value, Tensor):
                    if value.is_meta:
                        raise Unreadable("forward computes with tensors that are neither parameters nor buffers")
                    constants[node.target] = value
                    value = on_meta(value)
            elif node.op == "output":
                value = None
            else:
                try:
                    value = _evaluate(node, args, kwargs, modules)
                except Unreadable:
                    raise
                except Exception as error:
                    scope = node.target if node.op == "call_module" else node.meta["scope"]
                    what = type(modules[scope]).__name__ if node.op == "call_module" else op_name(node.target)
                    raise Unreadable(_complaint(scope, what, (args, kwargs), error)) from error
            values[node] = value
            node.meta["value"] = specs(value)
    return graph, constants


def _evaluate(node: fx.Node, args: tuple, kwargs: dict[str, Any], modules: dict[str, nn.Module]) -> Any:
    if node.op == "call_module":
        return _run_leaf(modules[node.target], args, kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    home = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
    if home not in _FX_KNOWS and not isinstance(node.target, type) and op_name(node.target) != "stochastic_depth":
        raise Unreadable(f"{node.target.__name__} is closed to torch.fx")
    # Without a tensor among its arguments, a function makes one on the default device.
    makes = not any(isinstance(a, Tensor) for a in (*args, *kwargs.values()))
    with torch.device("meta") if makes else nullcontext():
        return node.target(*args, **kwargs)


# ---------------------------------------------------------------------------------------------------------------
# The second way: one forward pass


def set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """`x[index] = value` as an operation that returns x."""
    x[index] = value
    return x


class _Recorder(TorchFunctionMode):
    """Notes each torch function that is called outside a leaf, and each leaf, as a node."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.path = [""]
        self.complaint: tuple[BaseException, str] | None = None
        self._in_leaf = False
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._names = tensor_names(model)
        self._nodes: dict[str, fx.Node] = {}
        self._made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._thread = threading.get_ident()

    def begin(self, x: Tensor) -> None:
        node = self.graph.placeholder("x")
        node.meta.update(scope="", value=specs(x))
        self._made[x] = (node, ())

    def end(self, result: Any) -> None:
        node = self.graph.output(self._arguments(result))
        node.meta.update(scope="", value=None)

    def _node_of(self, tensor: Tensor) -> fx.Node:
        if tensor in self._made:
            node, way = self._made[tensor]
            for step in way:
                node = self._add(self.graph.call_function(operator.getitem, (node, step)), node.meta["value"][step])
            self._made[tensor] = (node, ())
            return node
        name = self._names.get(id(tensor))
        if name is None:
            name = f"_constant{len(self.constants)}"
            self._names[id(tensor)] = name
            self.constants[name] = tensor
        if name not in self._nodes:
            # Read at the top, where every later node can use it.
            with self.graph.inserting_before(next(iter(self.graph.nodes))):
                self._nodes[name] = self._add(self.graph.get_attr(name), specs(tensor))
        return self._nodes[name]

    def _arguments(self, value: Any) -> Any:
        def node_or_value(a: Any) -> Any:
            if isinstance(a, Tensor):
                return self._node_of(a)
            # The graph shall run where the network lives, not where it was recorded.
            return self._device if isinstance(a, torch.device) and a.type == "meta" else a

        return map_aggregate(value, node_or_value)

    def _add(self, node: fx.Node, value: Any) -> fx.Node:
        node.meta.update(scope=self.path[-1], value=value)
        return node

    def _bind(self, value: Any, node: fx.Node, way: tuple[Any, ...] = ()) -> None:
        if isinstance(value, Tensor):
            self._made[value] = (node, way)
        elif isinstance(value, list | tuple):
            for i, part in enumerate(value):
                self._bind(part, node, (*way, i))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._in_leaf or threading.get_ident() != self._thread:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in ("numpy", "__array__") and isinstance(args[0], Tensor) and args[0] in self._made:
            raise Unreadable(f"{self.path[-1] or 'forward'} computes outside torch ({name}), where nothing can follow")
        before = None
        try:
            if name == "__setitem__":
                before = self._arguments(args)
            result = func(*args, **kwargs)
        except Exception as error:
            self.complaint = (error, _complaint(self.path[-1], op_name(func), (args, kwargs), error))
            raise
        if before is not None:
            self._bind(args[0], self._add(self.graph.call_function(set_item, before), specs(args[0])))
        elif _has_tensor(result):
            self._bind(result, self._add(self._call(func, name, args, kwargs), specs(result)))
        return result

    def _call(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> fx.Node:
        args, kwargs = self._arguments(args), self._arguments(kwargs)
        if name == "__get__":
            return self.graph.call_function(getattr, (args[0], func.__self__.__name__))
        # Tensor's own methods are noted as methods, so that the graph does not depend on how torch implements them.
        if getattr(Tensor, name, None) is func and args and isinstance(args[0], fx.Node):
            return self.graph.call_method(name, args, kwargs)
        return self.graph.call_function(func, args, kwargs)

    def call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What stands in for `Module.__call__` while recording; hooks are the reader's, not the network's."""
        if self._in_leaf or threading.get_ident() != self._thread:
            return module.forward(*args, **kwargs)
        path = self._paths.get(id(module))
        self.path.append(self.path[-1] if path is None else path)
        try:
            if path is None or not is_leaf(module):
                return module.forward(*args, **kwargs)
            self._in_leaf = True
            try:
                result = _run_leaf(module, args, kwargs)
            except Exception as error:
                self.complaint = (error, _complaint(path, type(module).__name__, (args, kwargs), error))
                raise
            finally:
                self._in_leaf = False
            node = self.graph.call_module(path, self._arguments(args), self._arguments(kwargs))
            self._bind(result, self._add(node, specs(result)))
            return result
        finally:
            self.path.pop()


def _has_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_tensor(v) for v in value)
    return isinstance(value, Tensor)


def recorded(model: nn.Module, x: Tensor, device: torch.device) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph of one forward pass on `x`, and the tensors that came from elsewhere, by the name of their node's target.

    `model` is borrowed on the device of `x`; `device` is where it lives. Raises Unreadable with the operation that failed.
    """
    recorder = _Recorder(model, device)
    recorder.begin(x)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # A lambda, since only a plain function becomes a method.
        with (
            mock.patch.object(nn.Module, "__call__", lambda module, *a, **k: recorder.call(module, *a, **k)),
            torch.no_grad(),
            torch.device(x.device),
            recorder,
        ):
            result = recorder.call(model, x)
        recorder.end(result)
    except Unreadable:
        raise
    except Exception as error:
        complaint = recorder.complaint
        raise Unreadable(complaint[1] if complaint and complaint[0] is error else _sentence(error)) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return recorder.graph, recorder.constants
