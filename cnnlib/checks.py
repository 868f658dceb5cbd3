"""What the rows of the claims ledger are checked with: small functions, one law each, that compute and never recall.

A network is named as the zoo names it, with the options of its builder; it is built on the meta device (shapes, no memory).
A published layer table is named as `data/papers/` names it: `alexnet_layers`, `vgg_table1.D`, `googlenet_table1`.
Units: parameters, MACs (one multiply-add each), values (numbers stored), shapes (channels, height, width).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cnnlib.errors import unknown

# --- arithmetic of single layers ---------------------------------------------------------------------------------


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Height or width after a convolution or pooling: floor((size - kernel + 2 padding) / stride) + 1.

    >>> output_size(227, kernel=11, stride=4)
    55
    """
    room = size - kernel + 2 * padding
    if room < 0:
        raise ValueError(f"a window of {kernel} does not fit into {size} pixels with padding {padding}")
    return room // stride + 1


def window_positions(size: int, kernel: int, stride: int = 1, padding: int = 0) -> float:
    """(size - kernel + 2 padding) / stride + 1 before rounding: a whole number where the windows fit exactly."""
    return (size - kernel + 2 * padding) / stride + 1


def sizes_unlike_torch(
    sizes: Sequence[int], kernels: Sequence[int], strides: Sequence[int], rounding: str = "floor"
) -> int:
    """In how many cases the output-size formula, rounded down or up, differs from what torch's convolution gives."""
    import torch

    round_ = {"floor": math.floor, "ceil": math.ceil}[rounding]
    differ = 0
    for size, kernel, stride in itertools.product(sizes, kernels, strides):
        for padding in range(kernel // 2 + 1):
            if size + 2 * padding < kernel:
                continue
            image, weight = torch.empty(1, 1, size, 1, device="meta"), torch.empty(1, 1, kernel, 1, device="meta")
            width = torch.conv2d(image, weight, stride=(stride, 1), padding=(padding, 0)).shape[2]
            differ += width != round_(window_positions(size, kernel, stride, padding))
    return differ


def conv_parameters(channels_in: int, channels_out: int, kernel: int, groups: int = 1, bias: bool = True) -> int:
    """Weights (and biases) of a convolution: kernel^2 * channels_in / groups * channels_out (+ channels_out)."""
    if channels_in % groups or channels_out % groups:
        raise ValueError(f"{groups} groups do not divide {channels_in} channels in and {channels_out} out")
    return kernel * kernel * (channels_in // groups) * channels_out + bias * channels_out


def receptive_field_of_stack(kernels: Sequence[int], strides: Sequence[int] | None = None) -> int:
    """Pixels that one unit sees through a stack of layers: each adds (kernel - 1) times the strides before it.

    >>> receptive_field_of_stack([3, 3])
    5
    """
    field, jump = 1, 1
    for kernel, stride in zip(kernels, strides or [1] * len(kernels), strict=True):
        field += (kernel - 1) * jump
        jump *= stride
    return field


def weights_of_stack(kernels: Sequence[int], channels: int = 1) -> int:
    """Weights, without biases, of a stack of square convolutions that keep the number of channels."""
    return sum(kernel * kernel * channels * channels for kernel in kernels)


def factorised_share(kernel: int, parts: Sequence[Sequence[int]]) -> float:
    """Weights of the parts (height, width) together, over those of the one kernel x kernel convolution they replace.

    >>> round(factorised_share(7, [[1, 7], [7, 1]]), 3)
    0.286
    """
    return sum(height * width for height, width in parts) / kernel**2


def bottleneck_weights(maps: Sequence[int], kernels: Sequence[int]) -> int:
    """Weights of convolutions in a row that lead from maps[0] to maps[1] to maps[2] ..."""
    pairs = zip(maps, maps[1:], kernels, strict=False)
    if len(kernels) != len(maps) - 1:
        raise ValueError(f"{len(maps)} numbers of maps need {len(maps) - 1} kernels between them, got {len(kernels)}")
    return sum(conv_parameters(before, after, kernel, bias=False) for before, after, kernel in pairs)


def ratio(top: float, bottom: float) -> float:
    """How many times `bottom` goes into `top`."""
    return top / bottom


def difference(first: float, second: float) -> float:
    """first - second."""
    return first - second


def scaled(value: float, factor: float) -> float:
    """A value in another unit."""
    return value * factor


def sign(value: float) -> int:
    """1, 0 or -1."""
    return (value > 0) - (value < 0)


def listed(values: Sequence[Any]) -> list[Any]:
    """Several values side by side, for a claim that names more than one."""
    return list(values)


def elementwise_ratio(top: Sequence[float], bottom: Sequence[float]) -> list[float]:
    """Each of `top` over its partner of `bottom`."""
    return [a / b for a, b in zip(top, bottom, strict=True)]


def topk_errors(label_ranks: Sequence[int], k: int = 5) -> list[int]:
    """For images whose true label is the scorer's 1st, 2nd, ... guess: 0 where it is among the first k, else 1."""
    import torch

    classes = max(*label_ranks, k) + 1
    scores = torch.arange(classes, 0, -1).repeat(len(label_ranks), 1)  # class i is guess i + 1
    labels = torch.tensor(label_ranks)[:, None] - 1
    hit = (scores.topk(k, dim=1).indices == labels).any(dim=1)
    return (~hit).int().tolist()


# --- growth, paths, depths ---------------------------------------------------------------------------------------


def dense_growth(k0: int, k: int, layer: int) -> int:
    """Input maps of layer 1, 2, ... of a dense block that starts with k0 maps and gains k a layer: k0 + k (layer - 1).

    >>> [dense_growth(5, 4, layer) for layer in (1, 2, 3, 4)]
    [5, 9, 13, 17]
    """
    return k0 + k * (layer - 1)


def dense_block_output(k0: int, k: int, layers: int) -> int:
    """Maps that leave a dense block: its input and the k maps of each of its layers, concatenated."""
    maps = [k0]
    for _ in range(layers):
        maps.append(k)
    return sum(maps)


def path_lengths(blocks: int) -> list[int]:
    """How many of the paths through a chain of residual blocks take 0, 1, ... of their branches.

    >>> path_lengths(3)
    [1, 3, 3, 1]
    """
    from cnnlib.analysis import residual_paths

    return residual_paths.path_lengths(blocks)


def path_count(blocks: int) -> int:
    """All paths through a chain of residual blocks."""
    return sum(path_lengths(blocks))


def path_lengths_share(blocks: int, shortest: int, longest: int) -> float:
    """The part of all paths that takes between `shortest` and `longest` of the residual branches, both included."""
    from cnnlib.analysis import residual_paths

    return residual_paths.share_of_paths(blocks, shortest, longest)


def residual_depth(blocks: Sequence[int], layers_per_block: int) -> int:
    """Layers with weights of a residual network: stem, blocks, classifier; projections are not counted."""
    return 1 + layers_per_block * sum(blocks) + 1


# --- published layer tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """One layer of a published table with what follows from it: `shape` after it, weights, biases, MACs."""

    name: str
    kind: str
    shape: tuple[int, ...]
    kernel: int
    weights: int
    biases: int
    macs: int

    @property
    def parameters(self) -> int:
        return self.weights + self.biases

    @property
    def values(self) -> int:
        return math.prod(self.shape)


def _vgg_rows(words: str) -> Iterator[dict[str, Any]]:
    """VGG's own notation: conv3-64 is a 3x3 convolution to 64 maps, FC-4096 a linear layer, pooling is 2x2/2."""
    block, conv, linear = 1, 0, 0
    for word in words.split():
        kind, _, maps = word.partition("-")
        if kind == "maxpool":
            yield {"layer": f"pool{block}", "kind": "pool", "kernel": 2, "stride": 2, "padding": 0}
            block, conv = block + 1, 0
        elif kind == "LRN":
            yield {"layer": f"lrn{block}", "kind": "norm"}
        elif kind == "FC":
            linear += 1
            yield {"layer": f"fc{linear}", "kind": "linear", "maps": int(maps)}
        else:
            conv, kernel = conv + 1, int(kind.removeprefix("conv"))
            yield {
                "layer": f"conv{block}_{conv}", "kind": "conv", "maps": int(maps),
                "kernel": kernel, "stride": 1, "padding": kernel // 2, "groups": 1,
            }  # fmt: skip


@functools.cache
def _layers(net: str, groups: int | None = None, widths: str = "") -> tuple[_Layer, ...]:
    """The layers of a published table; `groups` and `widths` ("conv3=512 conv4=1024") replace those of the table."""
    from cnnlib import published

    name, _, column = net.partition(".")
    rows = list(_vgg_rows(published.find(net).value)) if column else published.rows(name)
    wider = {layer: int(maps) for layer, maps in (word.split("=") for word in widths.split())}
    for layer in wider:
        if layer not in (names := [row["layer"] for row in rows]):
            raise unknown(f"layer in {net}", layer, names)
    shape = tuple(published.table(name)["input"])
    layers = [_Layer("input", "input", shape, 0, 0, 0, 0)]
    for row in rows:
        before, kernel, weights, biases = shape, row.get("kernel") or 0, 0, 0
        maps = wider.get(row["layer"], row.get("maps"))
        if row["kind"] in ("conv", "pool"):
            size = [output_size(s, kernel, row["stride"], row["padding"]) for s in before[1:]]
            shape = (maps if row["kind"] == "conv" else before[0], *size)
        if row["kind"] == "conv":
            weights = conv_parameters(before[0], maps, kernel, groups or row["groups"], bias=False)
            biases = maps
        elif row["kind"] == "linear":
            shape, weights, biases = (maps,), math.prod(before) * maps, maps
        layers.append(_Layer(row["layer"], row["kind"], shape, kernel, weights, biases, weights * math.prod(shape[1:])))
    return tuple(layers)


def _some(net: str, kinds: Sequence[str] = (), layers: Sequence[str] = (), **changed: Any) -> list[_Layer]:
    known = _layers(net, **changed)
    for layer in layers:
        if layer not in [row.name for row in known]:
            raise unknown(f"layer in {net}", layer, [row.name for row in known])
    return [row for row in known if (not kinds or row.kind in kinds) and (not layers or row.name in layers)]


def table_shape(net: str, layer: str) -> list[int]:
    """The output shape (channels, height, width) of a layer of a published table."""
    return list(_some(net, layers=[layer])[0].shape)


def table_widths(net: str, kinds: Sequence[str] = ("conv",)) -> list[int]:
    """The maps or units of the layers of some kinds, in order."""
    return [row.shape[0] for row in _some(net, kinds)]


def table_count(net: str, kinds: Sequence[str] = ("conv", "linear")) -> int:
    """How many layers of some kinds (conv, linear, pool, norm) a published table has."""
    return len(_some(net, kinds))


def table_kernels(net: str, kinds: Sequence[str] = ("conv",)) -> list[int]:
    """The window sizes that occur in layers of some kinds, each once, in rising order."""
    return sorted({row.kernel for row in _some(net, kinds)})


def table_entries(net: str) -> int:
    """How many networks a published table of configurations holds."""
    from cnnlib import published

    return sum(isinstance(entry, str) and " FC-" in entry for entry in published.table(net).values())


def table_parameters(
    net: str, kinds: Sequence[str] = (), layers: Sequence[str] = (), groups: int | None = None, widths: str = "",
    biases: bool = True,
) -> int:  # fmt: skip
    """Parameters of a published table, or of its layers of some kinds or names; `groups`, `widths` replace the table's."""
    rows = _some(net, kinds, layers, groups=groups, widths=widths)
    return sum(row.parameters if biases else row.weights for row in rows)


def table_macs(net: str, kinds: Sequence[str] = (), groups: int | None = None) -> int:
    """Multiply-adds of a published table at its own input size."""
    return sum(row.macs for row in _some(net, kinds, groups=groups))


def table_units(net: str, kinds: Sequence[str] = ("conv", "linear")) -> int:
    """Units ("neurons") of the layers of some kinds: the numbers in their outputs."""
    return sum(row.values for row in _some(net, kinds))


def stored_values(net: str, relu_copies: bool = False) -> int:
    """Numbers kept for one image: the input and each layer's output; with `relu_copies` each ReLU's output once more."""
    rows = _some(net)
    last = rows[-1].name
    copies = [row.values for row in rows if row.kind in ("conv", "linear") and row.name != last]
    return sum(row.values for row in rows) + relu_copies * sum(copies)


def stored_share(net: str, layers: Sequence[str]) -> float:
    """The part of all stored values that the outputs of some layers hold."""
    return sum(row.values for row in _some(net, layers=layers)) / stored_values(net)


def values_and_weights(net: str, layer: str) -> list[int]:
    """One row of a memory listing: values in the layer's output, and its weights without biases."""
    row = _some(net, layers=[layer])[0]
    return [row.values, row.weights]


# --- GoogLeNet's table -------------------------------------------------------------------------------------------

_BRANCHES = ("conv1", "conv3", "conv5", "pool_proj")


@functools.cache
def _googlenet(net: str = "googlenet_table1") -> dict[str, dict[str, Any]]:
    """The rows of GoogLeNet's table 1 by name, each with `maps_in`, `weights`, `biases` and `macs` worked out."""
    from cnnlib import published

    maps_in, found = published.table(net)["input"][0], {}
    for row in published.rows(net):
        if row["kind"] == "inception":
            convs = [
                (maps_in, row["conv1"], 1), (maps_in, row["reduce3"], 1), (row["reduce3"], row["conv3"], 3),
                (maps_in, row["reduce5"], 1), (row["reduce5"], row["conv5"], 5), (maps_in, row["pool_proj"], 1),
            ]  # fmt: skip
        elif row["kind"] == "conv" and row["reduce3"]:
            convs = [(maps_in, row["reduce3"], 1), (row["reduce3"], row["maps"], row["kernel"])]
        elif row["kind"] == "conv":
            convs = [(maps_in, row["maps"], row["kernel"])]
        else:
            convs = [(maps_in, row["maps"], 1)] if row["kind"] == "linear" else []
        weights = sum(conv_parameters(*conv, bias=False) for conv in convs)
        found[row["row"]] = row | {
            "maps_in": maps_in, "weights": weights, "biases": sum(conv[1] for conv in convs),
            "macs": weights * row["size"] ** 2,
        }  # fmt: skip
        maps_in = row["maps"]
    return found


def _googlenet_row(row: str) -> dict[str, Any]:
    if row not in (rows := _googlenet()):
        raise unknown("row of GoogLeNet's table 1", row, rows)
    return rows[row]


def googlenet_row(row: str) -> list[int]:
    """Weights (without biases) and multiply-adds of a row of GoogLeNet's table 1, from the row's own filter counts."""
    found = _googlenet_row(row)
    return [found["weights"], found["macs"]]


def googlenet_row_sizes(row: str) -> list[int]:
    """The output shape of a row by the output-size formula from the input on; pooling rounds up, padding is "same"."""
    from cnnlib import published

    size = published.table("googlenet_table1")["input"][1]
    for name, found in _googlenet().items():
        if found["kind"] == "avgpool":
            size = output_size(size, found["kernel"], found["stride"])
        elif found["kernel"]:
            size = math.ceil(size / found["stride"])
        if name == row:
            maps = sum(found[branch] for branch in _BRANCHES) if found["kind"] == "inception" else found["maps"]
            return [maps, size, size]
    raise unknown("row of GoogLeNet's table 1", row, _googlenet())


def separable_row(channels: int, multiplier: int, maps: int, kernel: int, size: int) -> list[int]:
    """Weights and multiply-adds of a depthwise convolution (`multiplier` filters a channel) and the 1x1 one after it."""
    weights = channels * multiplier * kernel * kernel + channels * multiplier * maps
    return [weights, weights * size * size]


def naive_inception_weights(row: str) -> int:
    """Weights of an inception module without its 1x1 reductions and projection: three convolutions of the whole input."""
    found = _googlenet_row(row)
    wide = [(found["maps_in"], found[branch], int(branch[-1])) for branch in _BRANCHES[:3]]
    return sum(conv_parameters(*conv, bias=False) for conv in wide)


def naive_inception_ratio(row: str) -> float:
    """Weights of an inception module without its reductions and projection, over those with them."""
    return naive_inception_weights(row) / _googlenet_row(row)["weights"]


def googlenet_parameters(heads: Sequence[str] = (), rows: Sequence[str] = (), biases: bool = True) -> int:
    """Parameters of GoogLeNet from its table's filter counts, with the auxiliary heads after the rows named."""
    from cnnlib import published

    table = _googlenet()
    total = sum(table[row]["weights"] + biases * table[row]["biases"] for row in rows or table)
    known = {head["after"]: head for head in published.rows("googlenet_heads")}
    for after in heads:
        if after not in known:
            raise unknown("auxiliary head after row", after, known)
        head = known[after]
        total += conv_parameters(_googlenet_row(after)["maps"], head["conv1"], 1)
        total += conv_parameters(head["conv1"], head["fc"], head["pooled_size"])
        total += conv_parameters(head["fc"], head["classes"], 1)
    return total


def googlenet_macs(rows: Sequence[str] = ()) -> int:
    """Multiply-adds of GoogLeNet at 224x224 from its table's filter counts, without the auxiliary heads."""
    table = _googlenet()
    return sum(table[row]["macs"] for row in rows or table)


def googlenet_column(column: str, unit: float = 1) -> float:
    """The sum of a column of GoogLeNet's table 1 (depth, printed_params_k, printed_ops_m), in `unit`s."""
    return sum(row[column] or 0 for row in _googlenet().values()) * unit


def googlenet_count(kinds: Sequence[str]) -> int:
    """How many rows of GoogLeNet's table 1 are of some kinds (inception, pool, avgpool, conv, linear)."""
    return sum(row["kind"] in kinds for row in _googlenet().values())


def googlenet_layers(pooling: bool = False) -> int:
    """Layers of GoogLeNet: those with weights on the longest way through, and the poolings between the rows too."""
    poolings = googlenet_count(["pool", "avgpool"])
    return int(googlenet_column("depth")) + pooling * poolings


def googlenet_branch(row: str, branch: int) -> list[int]:
    """The kernels that data meets one after the other in the 3x3 or the 5x5 branch of an inception module."""
    found = _googlenet_row(row)
    if branch not in (3, 5):
        raise unknown("branch with a reduction", branch, ("3", "5"))
    return [1, branch] if found[f"reduce{branch}"] else [branch]


def branches(row: str) -> int:
    """How many branches run side by side in an inception module: those that hand maps to the concatenation."""
    return sum(bool(_googlenet_row(row)[branch]) for branch in _BRANCHES)


def inception_widths() -> list[int]:
    """The maps that leave each inception module: 1x1 + 3x3 + 5x5 + pool projection."""
    modules = [row for row in _googlenet().values() if row["kind"] == "inception"]
    return [sum(row[branch] for branch in _BRANCHES) for row in modules]


# --- networks that exist -----------------------------------------------------------------------------------------


@functools.cache
def _built(model: str, options: tuple[tuple[str, Any], ...]) -> Any:
    import torch

    from cnnlib.models import zoo

    with torch.device("meta"):
        return zoo.build(model, **dict(options)).eval()


def _net(model: str, options: dict[str, Any] | None = None) -> Any:
    """The network in evaluation mode, without memory behind its weights, built once a process."""
    return _built(model, tuple(sorted((options or {}).items())))


def _input_shape(model: str, size: int | None = None) -> tuple[int, int, int]:
    from cnnlib.models import zoo

    channels, height, width = zoo.card(model).input_shape
    return (channels, size or height, size or width)


@functools.cache
def _calls(model: str, shape: tuple[int, int, int]) -> tuple[tuple[str, Any, tuple[int, ...]], ...]:
    """What one forward pass calls: (name, module, output shape without the batch axis)."""
    import torch

    net, calls, handles = _net(model), [], []

    def listen(name: str) -> Callable:
        def hook(module: Any, args: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor):
                calls.append((name, module, tuple(out.shape[1:])))

        return hook

    try:
        for name, module in net.named_modules():
            handles.append(module.register_forward_hook(listen(name)))
        with torch.no_grad():
            net(torch.empty(1, *shape, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(calls)


def _of_class(
    model: str, kinds: Sequence[str], part: str = "", options: dict[str, Any] | None = None
) -> list[tuple[str, Any]]:
    """The modules of some classes, by name, in a network or in one named part of it; there must be one at least."""
    inside = f"{part}." if part else ""
    named = [(name, module) for name, module in _net(model, options).named_modules() if f"{name}.".startswith(inside)]
    found = [(name, module) for name, module in named if type(module).__name__ in kinds]
    if not found:
        there = sorted({type(module).__name__ for _, module in named})
        raise ValueError(
            f"{part or model} has no layer of class {' or '.join(kinds)}; it has {', '.join(there) or 'nothing'}"
        )
    return found


def parameters(model: str, options: dict[str, Any] | None = None) -> int:
    """Trainable parameters of a network."""
    return sum(parameter.numel() for parameter in _net(model, options).parameters() if parameter.requires_grad)


def parameters_of(model: str, kind: str) -> int:
    """Trainable parameters in a network's layers of one class (Linear, Conv2d, BatchNorm2d, ...)."""
    return sum(
        parameter.numel() for _, module in _of_class(model, [kind]) for parameter in module.parameters(recurse=False)
    )


def macs(model: str, size: int | None = None, options: dict[str, Any] | None = None) -> int:
    """Multiply-adds of one forward pass of a network, at the paper's size or at size x size."""
    from cnnlib import analysis

    return analysis.cost(_net(model, options), _input_shape(model, size)).macs


def macs_of(model: str, kind: str) -> int:
    """Multiply-adds of a network's operations of one kind (conv, linear, ...)."""
    from cnnlib import analysis

    return analysis.cost(_net(model), _input_shape(model)).total(kind).macs


def connections(model: str) -> int:
    """LeCun's connections: for each unit the inputs that it reads, its bias included (section II-B)."""
    from cnnlib import analysis

    return int(analysis.connections(_net(model), _input_shape(model)))


def receptive_field(model: str) -> int:
    """Pixels that one unit of a network's last map sees, by the book's own instrument."""
    from cnnlib import analysis

    size = analysis.receptive_field(_net(model), _input_shape(model)).final.size
    return size[0] if isinstance(size, tuple) else size


def year(model: str) -> int:
    """The year of the paper that the zoo's network follows."""
    from cnnlib.models import zoo

    return zoo.card(model).year


def weight_layers(model: str, kinds: Sequence[str] = ("Conv2d", "Linear"), leave_out: str = "downsample") -> int:
    """Layers with weights, by class, without a shortcut's projection; a convolution split into groups of maps is one."""
    names = {name.partition(".convs.")[0] for name, _ in _of_class(model, kinds)}
    return sum(leave_out not in name.split(".") for name in names)


def stages(model: str) -> int:
    """How many named stages a network has that do more than reshape: LeCun's C1, S2, ..., F6 and the output."""
    import torch

    return sum(not isinstance(module, torch.nn.Flatten) for module in _net(model).children())


def stage_sizes(model: str) -> list[list[int]]:
    """Maps and height of each named stage in order; height 1 where there is none."""
    calls = _calls(model, _input_shape(model))
    return [[out[0], (*out, 1)[1]] for name, _, out in calls if name and "." not in name and name != "flatten"]


def widths(model: str, kinds: Sequence[str] = ("Conv2d", "Linear")) -> list[int]:
    """Maps or units of a network's layers of some classes, in the order of the forward pass."""
    return [out[0] for _, module, out in _calls(model, _input_shape(model)) if type(module).__name__ in kinds]


def layer_order(model: str, kinds: Sequence[str], first: int | None = None) -> list[str]:
    """The names of a network's layers of some classes, or of the `first` few, in the order of the forward pass."""
    return [name for name, module, _ in _calls(model, _input_shape(model)) if type(module).__name__ in kinds][:first]


def distinct(model: str, kind: str, attribute: str, part: str = "") -> list[int]:
    """The values that an attribute (kernel_size, stride, groups, ...) takes in layers of one class, each once."""
    values = [getattr(module, attribute) for _, module in _of_class(model, [kind], part)]
    return sorted({v for value in values for v in (value if isinstance(value, tuple) else (value,))})


def each(model: str, kind: str, attribute: str, part: str = "") -> list[int]:
    """The value of an attribute in each layer of one class, in order; a square (k, k) stands as k."""
    values = [getattr(module, attribute) for _, module in _of_class(model, [kind], part)]
    return [value[0] if isinstance(value, tuple) else value for value in values]


def count(model: str, kind: str, part: str = "", options: dict[str, Any] | None = None) -> int:
    """How many modules of a class (Inception, Bottleneck, Linear, ...) a network or a named part of it has."""
    return len(_of_class(model, [kind], part, options))


def has(model: str, kinds: Sequence[str]) -> list[int]:
    """How many modules of each of several classes a network has, 0 included."""
    names = [type(module).__name__ for module in _net(model).modules()]
    return [names.count(kind) for kind in kinds]


def projections(model: str, options: dict[str, Any] | None = None) -> int:
    """How many shortcuts of a residual network are projections: convolutions under the name downsample."""
    named = _net(model, options).named_modules()
    return sum("downsample" in name.split(".") and type(module).__name__ == "Conv2d" for name, module in named)


def output_shape(model: str, size: int | None = None) -> list[int]:
    """The shape that leaves a network for one image of the paper's size, or of size x size."""
    return list(_calls(model, _input_shape(model, size))[-1][2])


def stage_shape(model: str, stage: str, size: int | None = None) -> list[int]:
    """The shape that leaves one named part of a network."""
    shapes = {name: out for name, _, out in _calls(model, _input_shape(model, size))}
    if stage not in shapes:
        raise unknown(f"part of {model}", stage, shapes)
    return list(shapes[stage])


def stage_channels(model: str, stage: str) -> int:
    """The maps that leave one named part of a network."""
    return stage_shape(model, stage)[0]


def stage_lengths(models: Sequence[str], stage: str) -> list[int]:
    """How many blocks one stage of each of several networks has."""
    return [len(_net(model).get_submodule(stage)) for model in models]


def stage_volume_ratio(model: str, stages: Sequence[str]) -> list[float]:
    """Values that leave each stage, over those of the stage before it."""
    volumes = [math.prod(stage_shape(model, stage)) for stage in stages]
    return [after / before for before, after in itertools.pairwise(volumes)]


def dense_inputs(model: str, block: str) -> list[int]:
    """Input maps of each layer of a dense block, read off the network itself."""
    norms = [
        module for name, module in _of_class(model, ["BatchNorm2d"], f"features.{block}") if name.endswith("norm1")
    ]
    return [norm.num_features for norm in norms]


def c3_map_pairs(seen: bool = True) -> int:
    """Pairs (map of S2, map of C3) that LeNet-5's table I connects, or with `seen` false all pairs there could be."""
    from cnnlib.models.lenet import C3_SEES

    inputs = {index for maps in C3_SEES for index in maps}
    return sum(len(maps) for maps in C3_SEES) if seen else len(inputs) * len(C3_SEES)


def threes_per_block(models: Sequence[str], stage: str = "layer1") -> list[int]:
    """How many 3x3 convolutions the first residual block of a stage has in each of several networks."""
    return [each(model, "Conv2d", "kernel_size", f"{stage}.0").count(3) for model in models]


# --- the graph of a network --------------------------------------------------------------------------------------

_WORDS = {
    "batch_norm": "BN",
    "max_pool": "max",
    "avg_pool": "mean",
    "adaptive_avg_pool": "mean of all",
    "cat": "concatenate",
}


@functools.cache
def _traced(model: str, options: tuple[tuple[str, Any], ...]) -> Any:
    from cnnlib.graph import trace

    return trace(_built(model, options), _input_shape(model))


def _graph(model: str, options: dict[str, Any] | None = None) -> Any:
    """The operations of a network at the paper's size, traced once a process."""
    return _traced(model, tuple(sorted((options or {}).items())))


def _word(node: Any) -> str:
    """An operation as a drawing labels it: "3x3 conv", "1x1 conv/2", "3x3 max", "BN", "ReLU", "add"."""
    name = "ReLU" if node.op.lower() == "relu" else _WORDS.get(node.kind, node.kind)
    if node.kind == "activation" and name != "ReLU":
        name = node.op.lower()
    if "kernel" not in node.attrs:
        return name
    stride = max(node.attrs["stride"])
    return f"{'x'.join(map(str, node.attrs['kernel']))} {name}" + (f"/{stride}" if stride > 1 else "")


def _inside(model: str, block: str, options: dict[str, Any] | None = None) -> list[Any]:
    """The operations in a named part of a network, in the order of the forward pass; identities do nothing."""
    nodes = [node for node in _graph(model, options) if node.name.startswith(f"{block}.") and node.kind != "identity"]
    if not nodes:
        raise unknown(f"part of {model}", block, [name for name, _ in _net(model, options).named_modules() if name])
    return nodes


def block_steps(model: str, block: str, options: dict[str, Any] | None = None) -> list[str]:
    """The operations of a named block of a network, in the order of the forward pass, in words.

    >>> block_steps("plain20", "layer1.0")
    ['3x3 conv', 'BN', 'ReLU', '3x3 conv', 'BN', 'ReLU']
    """
    return [_word(node) for node in _inside(model, block, options)]


def ways(model: str, block: str, options: dict[str, Any] | None = None) -> list[str]:
    """The ways through a block that meet in its last addition or concatenation, each as its windows in order.

    >>> ways("googlenet", "inception3a")
    ['1x1 conv', '1x1 conv - 3x3 conv', '1x1 conv - 5x5 conv', '3x3 max - 1x1 conv']
    """
    inside = {node.name: node for node in _inside(model, block, options)}
    meetings = [node for node in inside.values() if node.kind in ("add", "cat")]
    if not meetings:
        raise ValueError(f"{block} of {model} has one way only: it adds and concatenates nothing")
    found = []
    for name in meetings[-1].inputs:
        way: list[str] = []
        while name in inside:
            if "kernel" in inside[name].attrs:
                way.insert(0, _word(inside[name]))
            name = inside[name].inputs[0]
        found.append(" - ".join(way) or "identity")
    return found


def operation_counts(model: str, kinds: Sequence[str]) -> list[int]:
    """How many operations of each of several kinds (conv, max_pool, add, cat, ...) one forward pass has."""
    from cnnlib.operations import KINDS

    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of operation", kind, KINDS)
    found = [node.kind for node in _graph(model)]
    return [found.count(kind) for kind in kinds]


def convolutions_before_pools(model: str) -> list[int]:
    """How many convolutions stand before each max pooling, counted from the one before it: VGG's groups."""
    runs = [0]
    for node in _graph(model):
        runs[-1] += node.kind == "conv"
        if node.kind == "max_pool":
            runs.append(0)
    return runs[:-1]


def distinct_stems(models: Sequence[str]) -> int:
    """In how many ways some networks begin: kernel, stride and maps of the first convolution."""
    firsts = [next(node for node in _graph(model) if node.kind == "conv") for model in models]
    return len({(_word(node), node.shape[0]) for node in firsts})


def networks_within(model: str, longest: int) -> int:
    """How many residual networks for CIFAR, with 1 to `longest` blocks in each of the three stages, are no larger than
    a given one of them, in parameters and in multiply-adds."""
    from cnnlib import analysis

    def costs(name: str) -> dict[str, Any]:
        return analysis.cost(_net(name), _input_shape(name)).by_stage(depth=2)

    blocks = costs("resnet56")
    room = costs(model).values()
    room_params, room_macs = sum(part.params for part in room), sum(part.macs for part in room)
    ends = [part for name, part in blocks.items() if not name.startswith("layer")]
    frame = sum(part.params for part in ends), sum(part.macs for part in ends)
    stages = []
    for stage in (1, 2, 3):
        rows = [blocks[f"layer{stage}.{block}"] for block in range(longest)]
        sums, params, macs = [], 0, 0
        for row in rows:
            params, macs = params + row.params, macs + row.macs
            sums.append((params, macs))
        stages.append(sums)
    return sum(
        frame[0] + sum(p for p, _ in chosen) <= room_params and frame[1] + sum(m for _, m in chosen) <= room_macs
        for chosen in itertools.product(*stages)
    )


def differing(a: str, b: str) -> list[str]:
    """What differs between two networks, each once: layers of b that a lacks, and what changed, by the book's comparison."""
    from cnnlib import analysis

    return sorted({row.in_b if row.in_a == "-" else row.what for row in analysis.compare(a, b)})


# --- small experiments, in float64, with their own random state --------------------------------------------------


def _random(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def pointwise_against_linear(kernel: int = 1, channels: int = 8, classes: int = 5, seed: int = 0) -> float:
    """Largest difference between a kernel x kernel convolution and one linear layer applied at every position.

    The linear layer has the convolution's weights at the kernel's centre: nothing is lost for 1x1 only.
    """
    import torch
    from torch.nn import functional as F

    made = {"generator": _random(seed), "dtype": torch.float64}
    x, weight = torch.randn(2, channels, 6, 6, **made), torch.randn(classes, channels, kernel, kernel, **made)
    bias = torch.randn(classes, **made)
    centre = weight[:, :, kernel // 2, kernel // 2]
    everywhere = F.linear(x.permute(0, 2, 3, 1), centre, bias).permute(0, 3, 1, 2)
    return (F.conv2d(x, weight, bias, padding=kernel // 2) - everywhere).abs().max().item()


def residual_against_identity(branch: float = 0.0, seed: int = 0) -> float:
    """Largest difference between relu(x) and a residual block whose branch weights are multiplied by `branch`."""
    import torch
    from torch.nn import functional as F

    made = {"generator": _random(seed), "dtype": torch.float64}
    x = torch.randn(2, 4, 6, 6, **made)
    first, second = (branch * torch.randn(4, 4, 3, 3, **made) for _ in range(2))
    y = F.relu(F.conv2d(F.relu(F.conv2d(x, first, padding=1)), second, padding=1) + x)
    return (y - F.relu(x)).abs().max().item()


def deeper_against_shallow(added: int, noise: float = 0.0, seed: int = 0) -> float:
    """Largest change of a network's output when `added` layers follow it that start as identities, disturbed by `noise`."""
    import torch
    from torch.nn import functional as F

    made = {"generator": _random(seed), "dtype": torch.float64}
    x, weight = torch.randn(2, 3, 8, 8, **made), torch.randn(4, 3, 3, 3, **made)
    shallow = deep = F.relu(F.conv2d(x, weight, padding=1))
    for _ in range(added):
        identity = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
        identity[range(4), range(4), 1, 1] = 1
        deep = F.relu(F.conv2d(deep, identity + noise * torch.randn(4, 4, 3, 3, **made), padding=1))
    return (deep - shallow).abs().max().item()


def smallest_residual(relu_before_addition: bool, channels: int = 8, seed: int = 0) -> float:
    """Smallest value of y - x of a block of two conv-BN layers on x >= 0; the second ReLU stands before or after the sum."""
    import torch
    from torch.nn import functional as F

    made = {"generator": _random(seed), "dtype": torch.float64}
    x = torch.rand(4, channels, 8, 8, **made)
    weights = [torch.randn(channels, channels, 3, 3, **made) for _ in range(2)]
    h = F.relu(F.batch_norm(F.conv2d(x, weights[0], padding=1), None, None, training=True))
    h = F.batch_norm(F.conv2d(h, weights[1], padding=1), None, None, training=True)
    h = F.relu(h) if relu_before_addition else h
    return (F.relu(x + h) - x).min().item()


def two_layer_block(channels: int, size: int, what: str = "shape") -> list[int] | int:
    """Shape after, or parameters of, two 3x3 convolutions with biases, each with a batch norm, on a square input."""
    import torch
    from torch import nn

    with torch.device("meta"):
        layers = [
            layer for _ in range(2) for layer in (nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        ]
        block = nn.Sequential(*layers)
        if what == "parameters":
            return sum(parameter.numel() for parameter in block.parameters())
        if what == "shape":
            return list(block(torch.empty(1, channels, size, size)).shape)
    raise unknown("property of the block", what, ("shape", "parameters"))


# --- blocks of the zoo with random weights -----------------------------------------------------------------------


def _live(model: str, block: str, weights: float, seed: int) -> tuple[Any, Any]:
    """A block of a network in float64 with normal weights of deviation `weights` / sqrt(inputs), and an x >= 0 for it.

    Its batch norms have random scales and shifts too, and stored means 0 and variances 1.
    """
    import copy

    import torch
    from torch import nn

    net = _net(model)
    names = [name for name, _ in net.named_modules() if name]
    if block not in names:
        raise unknown(f"part of {model}", block, names)
    made = {"generator": _random(seed), "dtype": torch.float64}
    alive = copy.deepcopy(net.get_submodule(block)).to_empty(device="cpu").double()
    for module in alive.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    with torch.no_grad():
        for parameter in alive.parameters():
            inputs = max(parameter[0].numel(), 1)
            parameter.copy_(weights * torch.randn(parameter.shape, **made) / inputs**0.5)
    first = next(module for module in alive.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    size = (first.in_channels, 6, 6) if isinstance(first, nn.Conv2d) else (first.in_features,)
    return alive, torch.rand(2, *size, **made)


def _branch(block: Any, x: Any) -> Any:
    """conv-BN-ReLU-conv-BN ... of a residual block, without what follows the last batch norm."""
    from torch.nn import functional as F

    number = 1
    while hasattr(block, f"conv{number}"):
        conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
        x = F.relu(x) if number > 1 else x
        x = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, groups=conv.groups)
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        number += 1
    return x


def _written_residual(block: Any, x: Any) -> Any:
    from torch.nn import functional as F

    return F.relu(_branch(block, x) + x)


def _written_plain(block: Any, x: Any) -> Any:
    from torch.nn import functional as F

    return F.relu(_branch(block, x))


def _written_highway(layer: Any, x: Any) -> Any:
    import torch
    from torch.nn import functional as F

    if isinstance(layer.gate, torch.nn.Linear):
        t, h = (F.linear(x, part.weight, part.bias) for part in (layer.gate, layer.transform))
    else:
        t, h = (F.conv2d(x, p.weight, p.bias, padding=p.padding) for p in (layer.gate, layer.transform))
    t = 1 / (1 + torch.exp(-t))
    return t * h.clamp(min=0) + (1 - t) * x


def _written_squeeze(block: Any, x: Any) -> Any:
    import torch

    z = x.mean(dim=(2, 3))
    z = (z @ block.fc1.weight.flatten(1).T + block.fc1.bias).clamp(min=0)
    s = 1 / (1 + torch.exp(-(z @ block.fc2.weight.flatten(1).T + block.fc2.bias)))
    return x * s[:, :, None, None]


_EQUATIONS = {
    "relu(F(x) + x)": _written_residual,
    "relu(F(x))": _written_plain,
    "T R + (1 - T) x": _written_highway,
    "x times sigmoid(W2 relu(W1 mean(x)))": _written_squeeze,
}


def against_equation(model: str, block: str, equation: str, seed: int = 0) -> float:
    """Largest difference between what a block of the zoo gives and an equation written out, both with the same weights."""
    import torch

    if equation not in _EQUATIONS:
        raise unknown("equation", equation, _EQUATIONS)
    alive, x = _live(model, block, 1.0, seed)
    with torch.no_grad():
        return (alive(x) - _EQUATIONS[equation](alive, x)).abs().max().item()


def distance_from_identity(model: str, block: str, weights: float = 0.0, seed: int = 0) -> float:
    """|y - x| / |x| of a block of the zoo for x >= 0, its weights normal with deviation `weights` / sqrt(inputs)."""
    import torch

    alive, x = _live(model, block, weights, seed)
    with torch.no_grad():
        return ((alive(x) - x).norm() / x.norm()).item()


def gate_at_start(model: str, gate_bias: float | None = None) -> list[float]:
    """What a fresh highway network multiplies H(x) and x with, T and 1 - T, where the gate's weights see nothing."""
    import torch

    from cnnlib.models import zoo
    from cnnlib.models.highway import Highway

    net = zoo.build(model, **({} if gate_bias is None else {"gate_bias": gate_bias}))
    gates = [torch.sigmoid(module.gate.bias).mean().item() for module in net.modules() if isinstance(module, Highway)]
    opened = sum(gates) / len(gates)
    return [opened, 1 - opened]


def parts_ratio(model: str, part: str, over: str) -> float:
    """Parameters of one named part of a network over those of another."""
    parts = [_net(model).get_submodule(name) for name in (part, over)]
    top, bottom = (sum(parameter.numel() for parameter in one.parameters()) for one in parts)
    return top / bottom


def grouped_against_paths(form: str, paths: int | None = None, block: str = "layer1.1", seed: int = 0) -> float:
    """Largest difference between ResNeXt-50's grouped block and its paths written one by one (figure 3 a and b).

    "sum": each path is 1x1, 3x3, 1x1, and their results are added; "concatenate": the paths end after the 3x3, and one
    1x1 reads them all. `paths` leaves out those after the first few; all must be there for the same function.
    """
    import torch
    from torch.nn import functional as F

    if form not in ("sum", "concatenate"):
        raise unknown("form of the block", form, ("sum", "concatenate"))
    alive, x = _live("resnext50_32x4d", block, 1.0, seed)

    def norm(maps: Any, bn: Any, own: slice) -> Any:
        return F.batch_norm(maps, bn.running_mean[own], bn.running_var[own], bn.weight[own], bn.bias[own])

    with torch.no_grad():
        width = alive.conv2.in_channels // alive.conv2.groups
        ends = []
        for number in range(alive.conv2.groups if paths is None else paths):
            own = slice(number * width, (number + 1) * width)
            h = F.relu(norm(F.conv2d(x, alive.conv1.weight[own]), alive.bn1, own))
            h = F.relu(norm(F.conv2d(h, alive.conv2.weight[own], padding=1), alive.bn2, own))
            ends.append(F.conv2d(h, alive.conv3.weight[:, own]) if form == "sum" else h)
        joined = torch.cat(ends, dim=1)
        total = sum(ends) if form == "sum" else F.conv2d(joined, alive.conv3.weight[:, : joined.shape[1]])
        y = F.relu(norm(total, alive.bn3, slice(None)) + x)
        return (alive(x) - y).abs().max().item()


def higher_or_lower(first: float, second: float) -> str:
    """Whether the first number is "higher" or "lower" than the second, or "equal" to it."""
    return {1: "higher", -1: "lower", 0: "equal"}[sign(first - second)]


def recorded(record: str, figure: str) -> Any:
    """A figure of a run that is kept in data/records/, once the record has been found whole.

    >>> recorded("stack_3x3-fashion_mnist_mini", "summary.seeds")
    5
    """
    from cnnlib.training import records

    return records.figure(record, figure)


# --- looking inside ----------------------------------------------------------------------------------------------


def same_class_by_chance(count: int, classes: int) -> float:
    """How many of `count` images, each drawn from one of `classes` equal classes, come from the most frequent one.

    >>> same_class_by_chance(2, 2)
    1.5
    """

    def at_most(most: int) -> float:
        ways = [1.0] + [0.0] * count  # the coefficients of (1 + x + ... + x^most / most!)^classes
        for _ in range(classes):
            ways = [sum(ways[n - i] / math.factorial(i) for i in range(min(n, most) + 1)) for n in range(count + 1)]
        return math.factorial(count) * ways[count] / classes**count

    return sum(1 - at_most(most) for most in range(count))


def _trained(record: str, images: int | None = None) -> tuple[Any, Any, Any]:
    """A trained network, the first images of the small test set (or all) as it takes them, and their labels."""
    from cnnlib.data import load_data
    from cnnlib.training import records

    known, test = records.load(record), load_data("fashion_mnist_mini").test
    return known.model().eval(), known.recipe.preprocess(test.images[:images]), test.labels[:images]


@functools.cache
def _seen(record: str) -> tuple[Any, Any, Any]:
    """As `_trained`, in float64."""
    net, inputs, labels = _trained(record)
    return net.double(), inputs.double(), labels


@functools.cache
def _strongest(record: str, at: str, images: int) -> Any:
    from cnnlib.analysis.top_patches import strongest_patches

    net, inputs, _ = _seen(record)
    return strongest_patches(net, inputs[:images], at)


def same_class_of_nine(record: str, at: str, images: int = 500) -> float:
    """Of the nine images that excite a map most, how many come from one class: the mean over the maps of a layer."""
    labels, table = _seen(record)[2], _strongest(record, at, images)
    nines = [[int(labels[patch.image]) for patch in table[m]] for m in table.maps if len(table[m]) == 9]
    return sum(max(nine.count(label) for label in nine) for nine in nines) / len(nines)


def nine_strongest(record: str, at: str, map: int, images: int = 500) -> list[int]:
    """The numbers of the nine test images that excite a map most, the strongest first."""
    return [patch.image for patch in _strongest(record, at, images)[map]]


def deconvnet_by_hand(record: str, image: int = 0, rectify: bool = True) -> float:
    """Largest difference between the deconvnet of `small_alexnet` back from its second ReLU and its steps written out.

    Unpooling adds each value at its switch, the ReLU rectifies the signal (here if `rectify`), the convolutions go back by
    transposed filters.
    """
    import torch
    from torch.nn import functional as F

    from cnnlib.analysis.deconvnet import send_back

    net, inputs, _ = _seen(record)
    x = inputs[image : image + 1]
    with torch.no_grad():
        first = net.relu1(net.conv1(x))
        pooled, switches = F.max_pool2d(first, 3, 2, return_indices=True)
        signal = net.relu2(net.conv2(net.norm1(pooled)))
        back = F.conv_transpose2d(signal.clamp(min=0), net.conv2.weight, padding=2)
        unpooled = (
            torch.zeros_like(first).flatten(2).scatter_add(2, switches.flatten(2), back.flatten(2)).view_as(first)
        )
        rectified = unpooled.clamp(min=0) if rectify else unpooled
        expected = F.conv_transpose2d(rectified, net.conv1.weight, padding=4)
    return (send_back(net, x, "relu2", signal) - expected).abs().max().item()


@functools.cache
def _occlusion(record: str, image: int, square: int, stride: int) -> Any:
    from cnnlib.analysis.occlusion import occlusion_maps

    net, inputs, labels = _seen(record)
    (found,) = occlusion_maps(net, inputs[image : image + 1], [int(labels[image])], square=square, stride=stride)
    return found


def occluded(record: str, image: int, square: int, stride: int = 1, least: bool = False) -> float:
    """Probability of a test image's class: of the image itself, or under a grey square where that is `least`."""
    found = _occlusion(record, image, square, stride)
    return float(found.probability.min()) if least else found.unhidden


def answers_under_square(record: str, image: int, square: int, stride: int = 1) -> list[int]:
    """At how many places of the square each answer is given, the most frequent first."""
    return list(_occlusion(record, image, square, stride).answers.values())


# --- residual networks -------------------------------------------------------------------------------------------


def training_error(record: str, epoch: int | None = None) -> float:
    """Error on the training images in an epoch (the last) of a recorded run, in %, the mean over its seeds.

    >>> training_error("plain20-fashion_mnist") > training_error("resnet20-fashion_mnist")
    True
    """
    from cnnlib.training import records

    runs = records.load(record).runs
    epochs = [run.final if epoch is None else run.history[epoch - 1] for run in runs]
    return sum(100 * (1 - found.train_accuracy) for found in epochs) / len(epochs)


def identity_error(way: str, blocks: int, steps: int = 150) -> float:
    """Squared error by squared input of plain or residual blocks that were trained to be the identity: mean of five seeds."""
    return _identity_error(way, blocks, steps)


@functools.cache
def _identity_error(way: str, blocks: int, steps: int) -> float:
    from cnnlib.analysis.identity_experiment import learn_identity

    runs = learn_identity(way, blocks, seeds=range(5), steps=steps)
    return sum(run.losses[-1] for run in runs) / len(runs)


def _fresh(model: str, batch_norm: bool, seed: int) -> tuple[Any, Any]:
    """A network with new random weights in float64, its batch norms taken out on request, and four random images."""
    import torch
    from torch import nn

    from cnnlib.models import zoo

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = zoo.build(model).double()
    for module in [] if batch_norm else list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return net, torch.randn(4, *_input_shape(model), generator=_random(seed), dtype=torch.float64)


def gradient_growth(model: str, batch_norm: bool = True, seed: int = 0) -> float:
    """Gradient at the output of the first convolution by that of the last, before training; without batch norm on request."""
    import torch

    from cnnlib.analysis.gradient_flow import flow_through

    net, images = _fresh(model, batch_norm, seed)
    layers = [row for row in flow_through(net, images, torch.arange(4)).layers if row.kind == "conv"]
    return layers[0].gradient / layers[-1].gradient


def loss_without_batch_norm(model: str, quiet: bool, seed: int = 0) -> float:
    """Loss of a residual network without batch norm before training, by that of guessing; `quiet`: branches start at zero."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    net, images = _fresh(model, False, seed)
    for module in net.modules():
        if quiet and hasattr(module, "conv2"):
            nn.init.zeros_(module.conv2.weight)
    with torch.no_grad():
        answer = net(images)
    return float(F.cross_entropy(answer, torch.arange(4))) / math.log(answer.shape[1])


def kept_megabytes(model: str) -> float:
    """What torch keeps of one image for the pass back, in training, in 10^6 bytes."""
    from cnnlib.analysis.kept import kept_bytes

    return kept_bytes(_net(model), _input_shape(model), images=1) / 1e6


@functools.cache
def _rises(record: str, block: int, images: int) -> tuple[float, ...]:
    """By how much the loss rises without each connection of a dense block, on the first images of the small test set."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from cnnlib.analysis.growth import connection_weights

    net, inputs, labels = _trained(record, images)
    links = [row for row in connection_weights(net, tuple(inputs.shape[1:])).block(block) if row.kind == "layer"]
    first = list(dict(net.features.named_children())).index(f"denseblock{block}")
    rest = nn.Sequential(net.features[first:], net.relu, net.avgpool, nn.Flatten(), net.classifier)
    found = []
    with torch.no_grad():
        x = net.features[:first](inputs)
        whole = F.cross_entropy(rest(x), labels)
        entering = {row.target: row.maps for row in links if row.source == 0}
        for row in links:
            weight = net.get_submodule(row.reader).weight
            end = entering[row.target] + row.source * row.maps if row.source else row.maps
            kept = weight[:, end - row.maps : end].clone()
            weight[:, end - row.maps : end] = 0
            found.append((F.cross_entropy(rest(x), labels) - whole).item())
            weight[:, end - row.maps : end] = kept
    return tuple(found)


def missed_connections(record: str, block: int = 3, images: int = 200, by: float = 0.0) -> list[int]:
    """How many connections of a dense block a trained network misses (its loss rises by more than `by`), and how many there are."""
    rises = _rises(record, block, images)
    return [sum(rise > by for rise in rises), len(rises)]


def blocks_that_refine(record: str, images: int = 200) -> int:
    """How many residual blocks of a trained network lower its error on the first images of the small test set, if of their stage
    all blocks behind them are deleted; a stage are the blocks in one module."""
    from cnnlib.analysis import delete, residual_blocks
    from cnnlib.graph import trace

    net, x, labels = _trained(record, images)
    names = [block.name for block in residual_blocks(trace(net, tuple(x.shape[1:])))]
    helped = 0
    for _, stage in itertools.groupby(names, key=lambda name: name.rpartition(".")[0]):
        stage = list(stage)
        errors = [delete(net, x, labels, stage[i:]).after for i in range(len(stage))]
        errors.append(delete(net, x, labels, []).after)
        helped += sum(after < before for before, after in itertools.pairwise(errors))
    return helped
