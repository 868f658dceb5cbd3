"""What torch's operations are called here, and which numbers of them the analyses need.

`KINDS` is the whole vocabulary. An operation that is not listed below gets the kind `other`; analyses must not
take anything for granted about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

KINDS = {
    "input": "the batch of images",
    "output": "what forward returns",
    "parameter": "a trainable tensor that an operation reads directly",
    "constant": "a buffer, or a tensor that forward makes out of nothing",
    "conv": "convolution, 1d to 3d, grouped or not",
    "conv_transpose": "transposed convolution",
    "linear": "matrix of weights times the last axis",
    "matmul": "product of two computed matrices",
    "attention": "scaled dot-product attention",
    "recurrent": "recurrent layer",
    "embedding": "rows of a table of weights",
    "max_pool": "maximum over windows",
    "avg_pool": "mean, sum or norm over windows",
    "adaptive_max_pool": "maximum over windows that give a fixed output size",
    "adaptive_avg_pool": "mean over windows that give a fixed output size",
    "batch_norm": "normalisation by stored statistics of each channel",
    "layer_norm": "normalisation over the last axes of one example",
    "group_norm": "normalisation over groups of channels of one example",
    "instance_norm": "normalisation over each channel of one example",
    "local_response_norm": "normalisation over neighbouring channels",
    "activation": "non-linear function of each value",
    "elementwise": "another function of each value",
    "add": "sum or difference, value by value",
    "mul": "product or quotient, value by value",
    "softmax": "softmax or its logarithm",
    "dropout": "random zeros in training, nothing in evaluation",
    "identity": "nothing",
    "copy": "the same values in new memory or another type",
    "cat": "concatenation along an axis",
    "stack": "concatenation along a new axis",
    "split": "several slices at once",
    "item": "one of several results",
    "slice": "a part of each axis, or one index of it",
    "gather": "values picked by a tensor of indices",
    "overwrite": "a part of the values replaced by others",
    "expand": "repetition without copying",
    "flatten": "several axes as one",
    "reshape": "the same values on other axes",
    "permute": "axes in another order",
    "pad": "a border",
    "roll": "values shifted around the border",
    "flip": "an axis backwards",
    "upsample": "interpolation to more positions",
    "pixel_shuffle": "channels as positions",
    "pixel_unshuffle": "positions as channels",
    "mean": "mean over axes",
    "sum": "sum over axes",
    "extremum": "largest or smallest value over axes",
    "other": "an operation without a rule here",
}

_MODULES = {
    **dict.fromkeys(["Conv1d", "Conv2d", "Conv3d"], "conv"),
    **dict.fromkeys(["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"], "conv_transpose"),
    **dict.fromkeys(["Linear", "NonDynamicallyQuantizableLinear"], "linear"),
    "MultiheadAttention": "attention",
    **dict.fromkeys(["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"], "recurrent"),
    **dict.fromkeys(["Embedding", "EmbeddingBag"], "embedding"),
    **dict.fromkeys(["MaxPool1d", "MaxPool2d", "MaxPool3d"], "max_pool"),
    **dict.fromkeys(["AvgPool1d", "AvgPool2d", "AvgPool3d", "LPPool1d", "LPPool2d"], "avg_pool"),
    **dict.fromkeys(["AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d"], "adaptive_max_pool"),
    **dict.fromkeys(["AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d"], "adaptive_avg_pool"),
    **dict.fromkeys(["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"], "batch_norm"),
    **dict.fromkeys(["LayerNorm", "RMSNorm"], "layer_norm"),
    "GroupNorm": "group_norm",
    **dict.fromkeys(["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"], "instance_norm"),
    **dict.fromkeys(["LocalResponseNorm", "CrossMapLRN2d"], "local_response_norm"),
    **dict.fromkeys(["Softmax", "Softmax2d", "LogSoftmax", "Softmin"], "softmax"),
    **dict.fromkeys(["Identity", "Sequential"], "identity"),
    "Flatten": "flatten",
    "Unflatten": "reshape",
    **dict.fromkeys(["Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d"], "upsample"),
    "PixelShuffle": "pixel_shuffle",
    "PixelUnshuffle": "pixel_unshuffle",
}
_MODULE_FILES = {
    "torch.nn.modules.activation": "activation",
    "torch.nn.modules.dropout": "dropout",
    "torch.nn.modules.padding": "pad",
}


def _names(kind: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


_FUNCTIONS = {
    **_names("conv", "conv1d conv2d conv3d"),
    **_names("conv_transpose", "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_names("linear", "linear"),
    **_names("constant", "zeros ones empty full arange linspace eye tensor as_tensor scalar_tensor rand randn"),
    **_names("constant", "new_zeros new_ones new_empty new_full new_tensor zeros_like ones_like empty_like full_like"),
    **_names("constant", "rand_like randn_like"),
    **_names("overwrite", "set_item"),
    **_names("matmul", "matmul bmm mm rmatmul einsum"),
    **_names("attention", "scaled_dot_product_attention"),
    **_names("embedding", "embedding"),
    **_names("max_pool", "max_pool1d max_pool2d max_pool3d"),
    **_names("avg_pool", "avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d"),
    **_names("adaptive_max_pool", "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    **_names("adaptive_avg_pool", "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    **_names("batch_norm", "batch_norm"),
    **_names("layer_norm", "layer_norm rms_norm"),
    **_names("group_norm", "group_norm"),
    **_names("instance_norm", "instance_norm"),
    **_names("local_response_norm", "local_response_norm"),
    **_names("activation", "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish sigmoid tanh logsigmoid"),
    **_names("activation", "hardswish hardsigmoid hardtanh softplus softsign tanhshrink hardshrink softshrink"),
    **_names("activation", "threshold glu"),
    **_names("elementwise", "pow rpow exp expm1 log log1p log2 sqrt rsqrt square abs neg sign floor ceil round erf"),
    **_names("elementwise", "sin cos reciprocal clamp clip maximum minimum where lt le gt ge eq ne logical_and"),
    **_names("elementwise", "logical_or logical_not masked_fill isnan isfinite nan_to_num fmod remainder and or"),
    **_names("elementwise", "invert normalize _weight_norm"),
    **_names("add", "add radd iadd sub rsub isub subtract"),
    **_names("mul", "mul rmul imul multiply div rdiv truediv rtruediv itruediv divide true_divide floordiv"),
    **_names("softmax", "softmax log_softmax softmin"),
    **_names("dropout", "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout stochastic_depth"),
    **_names("identity", "detach requires_grad alias data"),
    **_names("copy", "contiguous clone to type float double half bfloat16 long int bool cpu cuda type_as"),
    **_names("cat", "cat concat concatenate"),
    **_names("stack", "stack"),
    **_names("split", "split chunk tensor_split unbind unsafe_split unsafe_chunk"),
    **_names("slice", "select narrow"),
    **_names("gather", "index_select gather take_along_dim"),
    **_names("expand", "expand expand_as broadcast_to repeat tile repeat_interleave"),
    **_names("flatten", "flatten ravel"),
    **_names("reshape", "reshape view view_as reshape_as unflatten squeeze unsqueeze"),
    **_names("permute", "permute transpose swapaxes swapdims movedim moveaxis t T mT adjoint"),
    **_names("pad", "pad"),
    **_names("roll", "roll"),
    **_names("flip", "flip fliplr flipud"),
    **_names("upsample", "interpolate upsample upsample_nearest upsample_bilinear"),
    **_names("pixel_shuffle", "pixel_shuffle"),
    **_names("pixel_unshuffle", "pixel_unshuffle"),
    **_names("mean", "mean"),
    **_names("sum", "sum"),
    **_names("extremum", "amax amin max min argmax argmin"),
}

# Names of the positional arguments, where torch's own functions do not tell them.
_SIGNATURES = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], "input weight bias stride padding dilation groups"),
    **dict.fromkeys(
        ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"],
        "input weight bias stride padding output_padding groups dilation",
    ),
    "linear": "input weight bias",
    **dict.fromkeys(
        ["max_pool1d", "max_pool2d", "max_pool3d"], "input kernel_size stride padding dilation ceil_mode return_indices"
    ),
    **dict.fromkeys(
        ["avg_pool1d", "avg_pool2d", "avg_pool3d"],
        "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    ),
    **dict.fromkeys(["lp_pool1d", "lp_pool2d"], "input norm_type kernel_size stride ceil_mode"),
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "instance_norm": "input running_mean running_var weight bias",
    "group_norm": "input num_groups weight bias eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "rms_norm": "input normalized_shape weight eps",
    "relu": "input inplace",
    "relu6": "input inplace",
    **dict.fromkeys(["elu", "celu"], "input alpha inplace"),
    **dict.fromkeys(["silu", "mish", "selu", "hardswish", "hardsigmoid"], "input inplace"),
    "leaky_relu": "input negative_slope inplace",
    "hardtanh": "input min_val max_val inplace",
    "glu": "input dim",
    **dict.fromkeys(["softmax", "log_softmax", "softmin"], "input dim"),
    **dict.fromkeys(["cat", "concat", "concatenate", "stack"], "tensors dim"),
    **dict.fromkeys(["split", "unsafe_split"], "input split_size_or_sections dim"),
    **dict.fromkeys(["chunk", "unsafe_chunk"], "input chunks dim"),
    "tensor_split": "input indices_or_sections dim",
    "unbind": "input dim",
    **dict.fromkeys(["select", "index_select", "gather"], "input dim index"),
    "take_along_dim": "input indices dim",
    "narrow": "input dim start length",
    **dict.fromkeys(["transpose", "swapaxes", "swapdims"], "input dim0 dim1"),
    **dict.fromkeys(["movedim", "moveaxis"], "input source destination"),
    "pad": "input pad mode value",
    "roll": "input shifts dims",
    "interpolate": "input size scale_factor mode align_corners recompute_scale_factor antialias",
    **dict.fromkeys(
        ["upsample", "upsample_nearest", "upsample_bilinear"], "input size scale_factor mode align_corners"
    ),
    **dict.fromkeys(["pixel_shuffle", "pixel_unshuffle"], "input factor"),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin"], "input dim keepdim"),
    "einsum": "equation operands",
    "stochastic_depth": "input p mode training",
}


@dataclass(frozen=True)
class Spec:
    """A tensor of which only the shape is known, batch included."""

    shape: tuple[int, ...]


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation for us: a layer of torch.nn that is not a container of others."""
    if not type(module).__module__.startswith("torch.nn.modules"):
        return False
    return isinstance(module, nn.MultiheadAttention) or not any(True for _ in module.children())


def op_name(target: Any) -> str:
    """The name of a function or method without the marks of its variants: `relu_`, `__add__` -> `relu`, `add`."""
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    name = name.split(".")[0]
    if name.startswith("__") and name.endswith("__"):
        return name[2:-2]
    return name.rstrip("_")


def kind_of_module(module: nn.Module) -> str:
    kind = _MODULES.get(type(module).__name__)
    return kind or _MODULE_FILES.get(type(module).__module__, "other")


def kind_of_function(op: str) -> str:
    return _FUNCTIONS.get(op, "other")


def bind(op: str, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name; those that have none here are left out."""
    bound = dict(zip(_SIGNATURES.get(op, "input").split(), args))
    bound.update(kwargs)
    if "axis" in bound:
        bound["dim"] = bound.pop("axis")
    return bound


# ---------------------------------------------------------------------------------------------------------------
# Numbers of an operation, the same for a layer and for a function. Axes are counted from 0 with the batch.


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * n
    return tuple(value) * (n if len(value) == 1 else 1)


def _window(given: dict[str, Any], n: int, kernel: Any) -> dict[str, Any]:
    """Kernel, stride, padding ((before, after) an axis) and dilation of a sliding window over n axes."""
    kernel = _tuple(kernel, n)
    stride = given.get("stride")
    stride = kernel if stride is None or stride == () or stride == [] else _tuple(stride, n)
    dilation = _tuple(given.get("dilation", 1), n)
    padding = given.get("padding", 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        pads = tuple((t // 2, t - t // 2) for t in total)
    elif padding == "valid":
        pads = ((0, 0),) * n
    else:
        pads = tuple((p, p) for p in _tuple(padding, n))
    return {"kernel": kernel, "stride": stride, "padding": pads, "dilation": dilation}


def _axis(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


def _axes(dim: Any, ndim: int) -> tuple[int, ...]:
    if dim is None or dim == () or dim == []:
        return tuple(range(ndim))
    return tuple(sorted(_axis(d, ndim) for d in ((dim,) if isinstance(dim, int) else dim)))


def _index(index: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """What `x[index]` does to each axis: ("slice", start, step), ("at", i), ("new",) or ("gather",)."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(1 for item in items if item is not None and item is not Ellipsis)
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    out, axis = [], 0
    for item in items:
        if item is None:
            out.append(("new",))
        elif item is Ellipsis:
            for _ in range(len(shape) - used):
                out.append(("slice", 0, 1))
                axis += 1
        else:
            if isinstance(item, slice):
                start, _, step = item.indices(shape[axis])
                out.append(("slice", start, step))
            elif isinstance(item, int) and not isinstance(item, bool):
                out.append(("at", _axis(item, shape[axis])))
            else:
                out.append(("gather",))
            axis += 1
    return tuple(out)


def _along(ndim: int, axis: int, what: tuple) -> tuple[Any, ...]:
    return tuple(what if i == axis else ("slice", 0, 1) for i in range(ndim))


def _ratios(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[Fraction, ...]:
    return tuple(Fraction(y, x) for x, y in zip(a[2:], b[2:]))


def _permutation(op: str, given: dict[str, Any], args: tuple, ndim: int) -> tuple[int, ...]:
    order = list(range(ndim))
    if op == "permute":
        dims = given.get("dims", args[1:])
        dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
        return tuple(_axis(d, ndim) for d in dims)
    if op in ("movedim", "moveaxis"):
        source, destination = (_tuple(given[k], 1) for k in ("source", "destination"))
        source, destination = ([_axis(d, ndim) for d in dims] for dims in (source, destination))
        order = [d for d in order if d not in source]
        for to, fro in sorted(zip(destination, source)):
            order.insert(to, fro)
        return tuple(order)
    if op == "T":
        return tuple(reversed(order))
    first, second = (given["dim0"], given["dim1"]) if "dim0" in given else (ndim - 2, ndim - 1)
    first, second = _axis(first, ndim), _axis(second, ndim)
    order[first], order[second] = order[second], order[first]
    return tuple(order)


def einsum_products(equation: str, shapes: list[tuple[int, ...]]) -> int | None:
    """How many products of two factors an einsum over two operands forms; None for other numbers of operands."""
    inputs = equation.replace(" ", "").split("->")[0].split(",")
    if len(inputs) != 2 or "." in equation:
        return None
    sizes = {letter: n for letters, shape in zip(inputs, shapes) for letter, n in zip(letters, shape)}
    return math.prod(sizes.values())


def _module_arguments(kind: str, module: nn.Module) -> dict[str, Any]:
    """A layer's settings under the names that the function of the same kind uses for its arguments."""
    given = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    if kind == "pad":
        given["pad"] = tuple(module.padding)
    if kind == "pixel_shuffle":
        given["factor"] = module.upscale_factor
    if kind == "pixel_unshuffle":
        given["factor"] = module.downscale_factor
    if type(module).__name__ == "Softmax2d":
        given["dim"] = -3
    return given


def attributes(kind: str, op: str, module: nn.Module | None, args: tuple, kwargs: dict, out: Any) -> dict[str, Any]:
    """The numbers that the analyses read of one operation; `args` and `kwargs` hold a Spec where a tensor was."""
    given = bind(op, args, kwargs) if module is None else _module_arguments(kind, module)
    first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Spec)), None)
    shape = first.shape if first else ()
    if kind == "split":
        given["parts"] = out
    while isinstance(out, tuple) and out:
        out = out[0]
    shape_out = out.shape if isinstance(out, Spec) else ()
    reader = _READERS.get(kind)
    return reader(op, given, args, shape, shape_out, module) if reader else {}


Reader = Callable[[str, dict[str, Any], tuple, tuple[int, ...], tuple[int, ...], "nn.Module | None"], dict[str, Any]]


def _read_conv(op, given, args, shape, out, module) -> dict[str, Any]:
    weight = tuple(module.weight.shape) if module is not None else given["weight"].shape
    groups = given.get("groups", 1)
    transposed = "transpose" in op.lower()
    channels = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    bias = (module.bias if module is not None else given.get("bias")) is not None
    window = _window(given, len(weight) - 2, weight[2:])
    if transposed:
        window["output_padding"] = _tuple(given.get("output_padding", 0), len(weight) - 2)
    return {**window, "groups": groups, "in_channels": channels[0], "out_channels": channels[1], "bias": bias}


def _read_linear(op, given, args, shape, out, module) -> dict[str, Any]:
    weight = tuple(module.weight.shape) if module is not None else given["weight"].shape
    bias = (module.bias if module is not None else given.get("bias")) is not None
    return {"in_features": weight[-1], "out_features": weight[0] if len(weight) > 1 else 1, "bias": bias}


def _read_matmul(op, given, args, shape, out, module) -> dict[str, Any]:
    tensors = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg]) if isinstance(a, Spec)]
    shapes = [t.shape for t in tensors]
    if op == "einsum":
        return {"equation": args[0], "products": einsum_products(args[0], shapes)}
    other = next((v for v in given.values() if isinstance(v, Spec) and v is not tensors[0]), None)
    left, right = shapes if len(shapes) == 2 else (shapes[0], other.shape if other else shapes[0])
    if op == "rmatmul":
        left, right = right, left
    return {"left": left, "right": right, "products": math.prod(out) * left[-1]}


def _read_attention(op, given, args, shape, out, module) -> dict[str, Any]:
    tensors = [a.shape for a in args if isinstance(a, Spec)]
    tensors += [given[k].shape for k in ("query", "key", "value") if isinstance(given.get(k), Spec)]
    query, key, value = tensors[:3]
    if module is None:
        return {"query": query, "key": key, "value": value, "heads": query[1] if len(query) > 3 else 1}
    return {
        **{"query": query, "key": key, "value": value, "heads": module.num_heads, "embed_dim": module.embed_dim},
        "extra": (module.bias_k is not None) + bool(module.add_zero_attn),
        "bias": module.in_proj_bias is not None,
    }


def _read_pool(op, given, args, shape, out, module) -> dict[str, Any]:
    n = int(op[-2])
    divisor = given.get("divisor_override")
    window = _window(given, n, given["kernel_size"])
    return {**window, "ceil_mode": bool(given.get("ceil_mode", False)), "divisor": divisor}


def _read_adaptive(op, given, args, shape, out, module) -> dict[str, Any]:
    n = int(op[-2])
    size = out or shape
    return {"input_size": shape[len(shape) - n :], "output_size": size[len(size) - n :]}


def _read_norm(op, given, args, shape, out, module) -> dict[str, Any]:
    affine = [t for t in (given.get("weight"), given.get("bias")) if isinstance(t, Spec)]
    bias = isinstance(given.get("bias"), Spec) if module is None else getattr(module, "bias", None) is not None
    normalized = given.get("normalized_shape")
    found = {"affine": bool(affine) if module is None else getattr(module, "weight", None) is not None, "bias": bias}
    return {**found, "axes": len(normalized)} if normalized is not None else found


def _read_cat(op, given, args, shape, out, module) -> dict[str, Any]:
    ndim = len(out) if out else 0
    return {"dim": _axis(given.get("dim", 0), ndim)}


def _read_split(op, given, args, shape, out, module) -> dict[str, Any]:
    dim = _axis(given.get("dim", 0), len(shape))
    if op == "unbind":
        return {"index": tuple(_along(len(shape), dim, ("at", i)) for i in range(shape[dim]))}
    sizes = [part.shape[dim] for part in given["parts"]]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return {"index": tuple(_along(len(shape), dim, ("slice", start, 1)) for start in starts)}


def _read_slice(op, given, args, shape, out, module) -> dict[str, Any]:
    if op == "getitem":
        return {"index": _index(args[1], shape)}
    axis = _axis(given["dim"], len(shape))
    if op == "select":
        return {"index": _along(len(shape), axis, ("at", _axis(given["index"], shape[axis])))}
    start = given["start"]
    return {"index": _along(len(shape), axis, ("slice", _axis(start, shape[axis]), 1))}


def _read_gather(op, given, args, shape, out, module) -> dict[str, Any]:
    dim = given.get("dim")
    return {"dim": None if dim is None else _axis(dim, len(shape))}


def _read_permute(op, given, args, shape, out, module) -> dict[str, Any]:
    return {"dims": _permutation(op, given, args, len(shape))}


def _read_pad(op, given, args, shape, out, module) -> dict[str, Any]:
    pads = tuple(given["pad"])
    pairs = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)]
    return {"padding": tuple(reversed(pairs))}


def _read_roll(op, given, args, shape, out, module) -> dict[str, Any]:
    dims = given.get("dims", args[1:] if op == "flip" else None)
    if isinstance(dims, tuple | list) and len(dims) == 1 and not isinstance(dims[0], int):
        dims = dims[0]
    named = {"fliplr": (1,), "flipud": (0,)}
    return {"dims": _axes(named.get(op, dims), len(shape))}


def _read_upsample(op, given, args, shape, out, module) -> dict[str, Any]:
    mode = given.get("mode") or ("bilinear" if "bilinear" in op.lower() else "nearest")
    corners = bool(given.get("align_corners")) or op.lower().endswith("bilinear2d") or op == "upsample_bilinear"
    return {
        "scale": _ratios(shape, out),
        "mode": mode,
        "align_corners": corners,
        "antialias": bool(given.get("antialias")),
    }


def _read_factor(op, given, args, shape, out, module) -> dict[str, Any]:
    factor = given.get("factor", given.get("upscale_factor", given.get("downscale_factor")))
    return {"factor": factor}


def _read_reduction(op, given, args, shape, out, module) -> dict[str, Any]:
    dim = given.get("dim")
    if op in ("mean", "sum") and len(args) > 2 and all(isinstance(a, int) for a in args[1:]):
        dim = tuple(a for a in args[1:] if not isinstance(a, bool))
    return {"dims": _axes(dim, len(shape)), "keepdim": bool(given.get("keepdim", False))}


def _read_softmax(op, given, args, shape, out, module) -> dict[str, Any]:
    dim = given.get("dim")
    return {"dim": _axis(dim if dim is not None else 1, len(shape))}


def _read_dropout(op, given, args, shape, out, module) -> dict[str, Any]:
    p = given.get("p", args[1] if len(args) > 1 and isinstance(args[1], float) else 0.5)
    return {"p": p}


def _read_glu(op, given, args, shape, out, module) -> dict[str, Any]:
    return {"halves": _axis(given.get("dim", -1), len(shape))} if op.lower() == "glu" else {}


_READERS: dict[str, Reader] = {
    "conv": _read_conv,
    "conv_transpose": _read_conv,
    "linear": _read_linear,
    "matmul": _read_matmul,
    "attention": _read_attention,
    "max_pool": _read_pool,
    "avg_pool": _read_pool,
    "adaptive_max_pool": _read_adaptive,
    "adaptive_avg_pool": _read_adaptive,
    **dict.fromkeys(["batch_norm", "layer_norm", "group_norm", "instance_norm"], _read_norm),
    "activation": _read_glu,
    "cat": _read_cat,
    "stack": _read_cat,
    "split": _read_split,
    "slice": _read_slice,
    "gather": _read_gather,
    "permute": _read_permute,
    "pad": _read_pad,
    "roll": _read_roll,
    "flip": _read_roll,
    "upsample": _read_upsample,
    "pixel_shuffle": _read_factor,
    "pixel_unshuffle": _read_factor,
    "mean": _read_reduction,
    "sum": _read_reduction,
    "extremum": _read_reduction,
    "softmax": _read_softmax,
    "dropout": _read_dropout,
}
