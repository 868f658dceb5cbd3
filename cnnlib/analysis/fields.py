"""Receptive fields: which pixels a value can depend on, by geometry alone.

Araujo, Norris, Sim 2019, Computing receptive fields of convolutional neural networks (Distill), carried over to any
graph: along each axis, a position of a map sees an interval of pixels, and every operation says which positions of its
input a position of its output reads. Branches that meet see the union.

Convention. Pixel 0 is the first of the image and its centre is 0; borders are not clipped, so that a field may be
larger than the image. `size` is the number of pixels from the first to the last that are seen, `stride` the distance
between the fields of neighbours, `offset` the centre of the field of feature 0, `padding` how far that field reaches
beyond the first pixel. The channels of a map are not told apart: after a concatenation each sees what any sees.
Pooling windows count like kernels. Normalisation counts as a function of single values: the
statistics that group, instance and layer norm take over a map are noted, not counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction

from torch import nn

from cnnlib import tables
from cnnlib.errors import listed
from cnnlib.graph import Graph, Node, trace

WHOLE_IMAGE = math.inf

# ---------------------------------------------------------------------------------------------------------------
# One axis: which pixels each position sees


@dataclass(frozen=True)
class Track:
    """Position n of a map sees the pixels lo(n) .. hi(n).

    The pattern repeats: with q, r = divmod(n, period), lo(n) = los[r] + q * shift. Only upsampling makes periods
    beyond 1. A phase that sees nothing (the gaps of a transposed convolution) is None in both.
    """

    los: tuple[int | None, ...] = (0,)
    his: tuple[int | None, ...] = (0,)
    shift: int = 1

    @property
    def period(self) -> int:
        return len(self.los)

    @property
    def stride(self) -> Fraction:
        return Fraction(self.shift, self.period)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(hi - lo + 1 for lo, hi in zip(self.los, self.his) if lo is not None)

    def at(self, n: int) -> tuple[int, int] | None:
        """The first and the last pixel that position n sees."""
        turns, phase = divmod(n, self.period)
        lo, hi = self.los[phase], self.his[phase]
        return None if lo is None else (lo + turns * self.shift, hi + turns * self.shift)

    def over(self, positions: Iterable[int]) -> tuple[int, int] | None:
        """The first and the last pixel that any of the positions sees."""
        seen = [pixels for n in positions if (pixels := self.at(n))]
        return (min(lo for lo, _ in seen), max(hi for _, hi in seen)) if seen else None

    def read(self, taps: Callable[[int], Iterable[int]], ahead: int, every: int) -> Track:
        """The track of a map whose position n reads the positions `taps(n)`, where `taps(n + every)` is `taps(n) + ahead`."""
        turns = self.period // math.gcd(self.period, ahead)
        seen = [self.over(taps(n)) for n in range(every * turns)]
        los, his = (tuple(pixels and pixels[i] for pixels in seen) for i in (0, 1))
        return Track(los, his, self.shift * (ahead * turns // self.period))

    def fixed(self, positions: Iterable[int]) -> Track:
        """The track of one value that reads all these positions."""
        lo, hi = self.over(positions) or (None, None)
        return Track((lo,), (hi,), 0)

    def _stretched(self, period: int) -> Track:
        seen = [self.at(n) for n in range(period)]
        los, his = (tuple(pixels and pixels[i] for pixels in seen) for i in (0, 1))
        return Track(los, his, self.shift * (period // self.period))

    def union(self, other: Track, extent: int) -> tuple[Track, str]:
        """The track of a map that reads both at the same position, and why their centres differ if they do."""
        reason = ""
        if self.stride == other.stride:
            period = math.lcm(self.period, other.period)
        else:
            period = max(extent, 1)
            reason = f"strides {number(self.stride)} and {number(other.stride)} meet"
        a, b = (self._stretched(period), other._stretched(period)) if not reason else (self, other)
        los, his = [], []
        for n in range(period):
            first, second = a.at(n), b.at(n)
            both = [pixels for pixels in (first, second) if pixels]
            if len(both) == 2 and sum(first) != sum(second) and not reason:
                reason = f"branches meet {number(Fraction(abs(sum(first) - sum(second)), 2))} pixels off centre"
            los.append(min((lo for lo, _ in both), default=None))
            his.append(max((hi for _, hi in both), default=None))
        shift = a.shift if self.stride == other.stride else round(self.stride * period)
        return Track(tuple(los), tuple(his), shift), reason


def number(value: Fraction | float) -> int | float:
    """A whole number as int, any other as float."""
    if math.isinf(value):
        return value
    return int(value) if value == int(value) else float(value)


def _window(kernel: int, stride: int, before: int, dilation: int) -> Callable[[Track], Track]:
    span = range(0, (kernel - 1) * dilation + 1, dilation)
    ends = (0, (kernel - 1) * dilation)

    def step(track: Track) -> Track:
        offsets = ends if track.period == 1 else span
        return track.read(lambda n: [n * stride - before + o for o in offsets], stride, 1)

    return step


def _spread(kernel: int, stride: int, before: int, dilation: int) -> Callable[[Track], Track]:
    """A transposed convolution: position n reads those i with i * stride - before + tap * dilation = n."""

    def taps(n: int) -> list[int]:
        return [
            (n + before - t * dilation) // stride for t in range(kernel) if (n + before - t * dilation) % stride == 0
        ]

    return lambda track: track.read(taps, 1, stride)


def _divided(inputs: int, outputs: int) -> Callable[[Track], Track]:
    """Adaptive pooling: window n of m runs from floor(n k / m) to ceil((n + 1) k / m) of k inputs."""
    common = math.gcd(inputs, outputs)
    return lambda track: track.read(
        lambda n: range(n * inputs // outputs, -(-(n + 1) * inputs // outputs)), inputs // common, outputs // common
    )


def _interpolated(scale: Fraction, mode: str, corners: bool, inputs: int, outputs: int) -> Callable[[Track], Track]:
    step = 1 / scale
    if corners and outputs > 1:
        step = Fraction(inputs - 1, outputs - 1)

    def taps(n: int) -> list[int]:
        if mode == "nearest":
            return [math.floor(n * step)]
        if mode == "nearest-exact":
            return [math.floor((n + Fraction(1, 2)) * step)]
        source = n * step if corners else (n + Fraction(1, 2)) * step - Fraction(1, 2)
        below = math.floor(source)
        if source == below:
            return [below]
        return [below - 1, below, below + 1, below + 2] if mode == "bicubic" else [below, below + 1]

    return lambda track: track.read(taps, step.numerator, step.denominator)


# ---------------------------------------------------------------------------------------------------------------
# A value: where the two axes of the image are in its shape, and what each sees

# A factor of one axis of a tensor: which image axes (0: height, 1: width) its index tells, and how many values it has.
Factor = tuple[frozenset[int], int]
Layout = tuple[tuple[Factor, ...], ...]
_PLAIN: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Axis:
    """What a value sees along one axis of the image; `whole` says why it is everything, `crooked` why there is no centre."""

    track: Track = Track()
    whole: str = ""
    crooked: str = ""


@dataclass(frozen=True)
class State:
    """A value during the walk. `pooled`: 1 if a window as large as the map made it one position, 2 if pooling that is
    global by definition did."""

    layout: Layout
    axes: tuple[Axis, Axis]
    pooled: int = 0
    note: str = ""

    def homes(self, a: int) -> list[int]:
        """The axes of the tensor whose index tells something about image axis a."""
        return [d for d, factors in enumerate(self.layout) if any(a in labels for labels, _ in factors)]

    def home(self, a: int) -> int | None:
        """The one axis of the tensor that is image axis a, or None if it is split, merged or gone."""
        homes = self.homes(a)
        if len(homes) != 1:
            return None
        only = {a}
        rest = [n for labels, n in self.layout[homes[0]] if labels != only]
        mine = [n for labels, n in self.layout[homes[0]] if labels == only]
        return homes[0] if len(mine) == 1 and math.prod(rest) == 1 else None

    def extent(self, a: int) -> int:
        """How many positions the map has along image axis a, as far as its factors tell."""
        return math.prod(n for factors in self.layout for labels, n in factors if a in labels)

    @property
    def positional(self) -> bool:
        """Whether the value is a map or a sequence of positions, not one value nor flattened with the channels."""
        if len(self.layout) < 3:
            return False
        for a in (0, 1):
            if not self.homes(a):
                return False
            for d in self.homes(a):
                if any(not labels and n > 1 for labels, n in self.layout[d]):
                    return False
        return True

    def with_axis(self, a: int, axis: Axis) -> State:
        return replace(self, axes=(axis, self.axes[1]) if a == 0 else (self.axes[0], axis))

    def seeing_all(self, a: int, reason: str) -> State:
        return self.with_axis(a, replace(self.axes[a], whole=self.axes[a].whole or reason))

    def without(self, a: int) -> State:
        """The same with no index left for image axis a."""
        layout = tuple(tuple((labels - {a}, n) for labels, n in factors) for factors in self.layout)
        return replace(self, layout=layout)

    def collapsed(self, a: int, dims: Iterable[int], why: str) -> State:
        """A value that reads all positions along the axes `dims` of the tensor."""
        dims = set(dims)
        homes = set(self.homes(a))
        if not homes & dims:
            return self
        if not homes <= dims:
            return self.seeing_all(
                a, f"{why} reads part of the positions, in an order that is not followed: an upper bound"
            )
        axis = self.axes[a]
        track = axis.track.fixed(range(self.extent(a)))
        return self.with_axis(a, replace(axis, track=track, crooked="")).without(a)

    def fitted(self, shape: tuple[int, ...]) -> State:
        """The same for a tensor of another shape: where an axis changed its length, its positions are no longer known."""
        if len(shape) != len(self.layout):
            everything = frozenset(a for a in (0, 1) if self.homes(a))
            return replace(self, layout=tuple(((everything, n),) for n in shape))
        layout = []
        for factors, n in zip(self.layout, shape):
            if math.prod(m for _, m in factors) != n:
                factors = ((frozenset().union(*(labels for labels, _ in factors)), n),)
            layout.append(factors)
        return replace(self, layout=tuple(layout))


def _regrouped(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """The factors of the same values, in the same order, on axes of another shape."""
    waiting = [factor for factors in layout for factor in factors]
    everything = frozenset().union(*(labels for labels, _ in waiting)) if waiting else _PLAIN
    result: list[tuple[Factor, ...]] = []
    for i, wanted in enumerate(shape):
        taken: list[Factor] = []
        missing = wanted
        if wanted == 1 and waiting and waiting[0][1] == 1:
            taken.append(waiting.pop(0))
        while missing > 1:
            labels, n = waiting.pop(0)
            if missing % n == 0:
                taken.append((labels, n))
                missing //= n
            elif n % missing == 0:
                taken.append((labels, missing))
                waiting.insert(0, (labels, n // missing))
                missing = 1
            else:
                return (*result, *(((everything, n),) for n in shape[i:]))
        result.append(tuple(taken))
    if waiting and result:
        result[-1] = (*result[-1], *waiting)
    return tuple(result)


def _slid(
    state: State, node: Node, n_axes: int, steps: Iterable[Callable[[Track], Track]], still: Iterable[bool]
) -> State:
    """A window over the last `n_axes` axes: one step of the track an axis; `still` says where nothing moves.

    Positions that are not on an axis of their own are lost where the window moves.
    """
    shape = node.full_shape
    first = len(shape) - n_axes
    steps, still = list(steps), list(still)
    layout = list(state.fitted(shape).layout)
    for a in (0, 1):
        d = state.home(a)
        if d is not None and d >= first:
            axis = state.axes[a]
            state = state.with_axis(a, replace(axis, track=steps[d - first](axis.track)))
            layout[d] = ((frozenset({a}), shape[d]),)
        elif any(d >= first and not still[d - first] for d in state.homes(a)):
            state = state.seeing_all(a, f"{node.name} mixes positions in an order that is not followed: an upper bound")
    return replace(state, layout=tuple(layout))


def _channels_mixed(state: State, node: Node, d: int) -> State:
    """All values along axis d are read: nothing for channels, every position if positions lie there."""
    for a in (0, 1):
        state = state.collapsed(a, [d], node.name)
    layout = list(state.layout)
    layout[d] = ((_PLAIN, node.full_shape[d]),)
    return replace(state, layout=tuple(layout))


# ---------------------------------------------------------------------------------------------------------------
# The rules: state of the first input, or of all, to the state of the output


def _same(node: Node, state: State) -> State:
    return state.fitted(node.full_shape)


def _conv(node: Node, state: State) -> State:
    attrs, n = node.attrs, len(node.attrs["kernel"])
    state = _channels_mixed(state, node, len(node.full_shape) - n - 1)
    pads = [before for before, _ in attrs["padding"]]
    make = _window if node.kind == "conv" else _spread
    sizes = list(zip(attrs["kernel"], attrs["stride"], pads, attrs["dilation"]))
    state = _slid(state, node, n, [make(*size) for size in sizes], [k == s == 1 and not p for k, s, p, _ in sizes])
    return replace(state, pooled=0 if max(attrs["kernel"]) > 1 else state.pooled)


def _pool(node: Node, state: State) -> State:
    attrs, n = node.attrs, len(node.attrs["kernel"])
    before = state.extent(0) * state.extent(1)
    sizes = [(k, s, p, d) for k, s, (p, _), d in zip(*(attrs[x] for x in ("kernel", "stride", "padding", "dilation")))]
    state = _slid(state, node, n, [_window(*size) for size in sizes], [k == s == 1 for k, s, _, _ in sizes])
    after = state.extent(0) * state.extent(1)
    covers = node.kind == "avg_pool" and after == 1 < before
    return replace(state, pooled=max(state.pooled, 1) if covers else 0)


def _adaptive(node: Node, state: State) -> State:
    sizes = list(zip(node.attrs["input_size"], node.attrs["output_size"]))
    state = _slid(state, node, len(sizes), [_divided(n, m) for n, m in sizes], [n == m for n, m in sizes])
    uneven = [f"{n} to {m}" for n, m in sizes if n % m]
    note = f"windows of unequal size ({', '.join(dict.fromkeys(uneven))} positions)" if uneven else ""
    # Fixed output sizes belong to the head, until another convolution shows that the map goes on.
    return replace(state, note=note, pooled=2 if all(m == 1 for _, m in sizes) else max(state.pooled, 1))


def _norm(node: Node, state: State) -> State:
    note = ""
    if node.kind in ("group_norm", "instance_norm"):
        note = "its statistics are taken over the whole map and not counted"
    elif node.kind == "layer_norm" and "axes" in node.attrs:
        last = range(len(node.full_shape) - node.attrs["axes"], len(node.full_shape))
        if any(set(state.homes(a)) & set(last) and state.extent(a) > 1 for a in (0, 1)):
            note = "its statistics are taken over the whole map and not counted"
    return replace(_same(node, state), note=note)


def _linear(node: Node, state: State) -> State:
    return _channels_mixed(state, node, len(node.full_shape) - 1)


def _pad(node: Node, state: State) -> State:
    pads = [before for before, _ in node.attrs["padding"]]
    moves = [any(pair) for pair in node.attrs["padding"]]
    return _slid(state, node, len(pads), [_window(1, 1, p, 1) for p in pads], [not move for move in moves])


def _upsample(node: Node, state: State) -> State:
    attrs, n = node.attrs, len(node.attrs["scale"])
    outputs = node.full_shape[-n:]
    inputs = [round(size / scale) for size, scale in zip(outputs, attrs["scale"])]
    if state.pooled == 2 and max(outputs) > 1:
        spread = [a for a in (0, 1) if state.home(a) is not None and state.extent(a) == 1]
        for a in spread:
            state = state.seeing_all(a, f"{node.name} spreads a pooled value over the map")
        state = replace(state, pooled=0)
    if attrs["mode"] == "area":
        steps = [_divided(i, o) for i, o in zip(inputs, outputs)]
    else:
        steps = [
            _interpolated(scale, attrs["mode"], attrs["align_corners"], i, o)
            for scale, i, o in zip(attrs["scale"], inputs, outputs)
        ]
    if attrs["antialias"] and min(attrs["scale"]) < 1:
        for a in (0, 1):
            state = state.seeing_all(a, f"{node.name} shrinks with a filter that is not followed: an upper bound")
    return _slid(state, node, n, steps, [scale == 1 for scale in attrs["scale"]])


def _shuffle(node: Node, state: State) -> State:
    r = node.attrs["factor"]
    apart = node.kind == "pixel_shuffle"
    step = _interpolated(Fraction(r), "nearest", False, 1, r) if apart else _window(r, r, 0, 1)
    layout = list(state.layout)
    layout[-3] = ((_PLAIN, node.full_shape[-3]),)
    return _slid(replace(state, layout=tuple(layout)), node, 2, [step, step], [False, False])


def _permute(node: Node, state: State) -> State:
    return replace(state, layout=tuple(state.layout[d] for d in node.attrs["dims"]))


def _reshape(node: Node, state: State) -> State:
    if tuple(math.prod(n for _, n in factors) for factors in state.layout) == node.full_shape:
        return state
    return replace(state, layout=_regrouped(state.layout, node.full_shape))


def _cut(node: Node, state: State, index: tuple) -> State:
    layout: list[tuple[Factor, ...]] = []
    d = 0
    for what in index:
        if what[0] == "new":
            layout.append(())
            continue
        factors = state.layout[d]
        labels = frozenset().union(*(found for found, _ in factors)) if factors else _PLAIN
        n = math.prod(m for _, m in factors)
        for a in labels:
            axis = state.axes[a]
            on_its_own = state.home(a) == d
            if what[0] == "at":
                positions = [what[1]] if on_its_own else range(state.extent(a))
                known = "" if on_its_own else f"{node.name} picks one position of several"
                track = axis.track.fixed(positions) if on_its_own else axis.track
                state = state.with_axis(a, replace(axis, track=track, crooked=axis.crooked or known))
            elif what[0] == "slice" and on_its_own:
                state = state.with_axis(a, replace(axis, track=_window(1, what[2], -what[1], 1)(axis.track)))
            elif what[0] == "gather":
                state = state.with_axis(
                    a, replace(axis, crooked=axis.crooked or f"{node.name} picks positions by index")
                )
        if what[0] != "at":
            size = node.full_shape[len(layout)]
            whole = what[0] == "slice" and what[1:] == (0, 1) and size == n
            alone = len(labels) == 1 and state.home(next(iter(labels))) == d and what[0] == "slice"
            layout.append(factors if whole else ((labels, size),) if alone or labels else ((_PLAIN, size),))
            if labels and not whole and not alone:
                # Two equal factors mark positions that are no longer on an axis of their own.
                layout[-1] = ((labels, size), (labels, 1))
        d += 1
    return replace(state, layout=tuple(layout))


def _slice(node: Node, state: State) -> State:
    return _cut(node, state, node.attrs["index"])


def _item(node: Node, state: State, source: Node) -> State:
    if source.kind == "split":
        return _cut(node, state, source.attrs["index"][node.attrs["index"]])
    return state.fitted(node.full_shape)


def _scrambled(state: State, dims: Iterable[int], shape: tuple[int, ...], why: str) -> State:
    """Positions along these axes are still separate, but no longer in order."""
    state = state.fitted(shape)
    layout = list(state.layout)
    for d in dims:
        labels = frozenset().union(*(found for found, _ in layout[d])) if layout[d] else _PLAIN
        if labels and shape[d] > 1:
            layout[d] = ((labels, shape[d]), (labels, 1))
            for a in labels:
                state = state.with_axis(a, replace(state.axes[a], crooked=state.axes[a].crooked or why))
    return replace(state, layout=tuple(layout))


def _gather(node: Node, state: State) -> State:
    dim = node.attrs["dim"]
    if dim is None or len(node.full_shape) != len(state.layout):
        return _unknown(node, state)
    return _scrambled(state, [dim], node.full_shape, f"{node.name} picks positions by index")


def _moved(node: Node, state: State) -> State:
    return _scrambled(state, node.attrs["dims"], node.full_shape, f"{node.name} moves positions around")


def _softmax(node: Node, state: State) -> State:
    for a in (0, 1):
        if node.attrs["dim"] in state.homes(a) and state.extent(a) > 1:
            state = state.seeing_all(a, f"{node.name} normalises over the positions")
    return state


def _reduction(node: Node, state: State) -> State:
    dims, keep = node.attrs["dims"], node.attrs["keepdim"]
    touched = any(set(state.homes(a)) & set(dims) for a in (0, 1))
    for a in (0, 1):
        state = state.collapsed(a, dims, node.name)
    layout = [
        ((_PLAIN, 1),) if d in dims else factors for d, factors in enumerate(state.layout) if keep or d not in dims
    ]
    return replace(state, layout=tuple(layout), pooled=2 if touched else state.pooled)


def _expand(node: Node, state: State) -> State:
    shape = node.full_shape
    missing = len(shape) - len(state.layout)
    layout = [((_PLAIN, 1),)] * missing + list(state.layout)
    for d, (factors, n) in enumerate(zip(layout, shape)):
        here = math.prod(m for _, m in factors)
        if here != n:
            labels = frozenset().union(*(found for found, _ in factors)) if factors else _PLAIN
            for a in labels:
                state = state.seeing_all(a, f"{node.name} repeats positions")
            layout[d] = ((labels, n),)
    return replace(state, layout=tuple(layout))


def _unknown(node: Node, state: State) -> State:
    for a in (0, 1):
        state = state.seeing_all(a, f"no rule for {node.op} at {node.name}: an upper bound")
    return state.fitted(node.full_shape)


_RULES: dict[str, Callable[[Node, State], State]] = {
    **dict.fromkeys(["activation", "elementwise", "batch_norm", "local_response_norm"], _same),
    **dict.fromkeys(["dropout", "identity", "copy", "split", "constant"], _same),
    **dict.fromkeys(["group_norm", "instance_norm", "layer_norm"], _norm),
    **dict.fromkeys(["conv", "conv_transpose"], _conv),
    **dict.fromkeys(["max_pool", "avg_pool"], _pool),
    **dict.fromkeys(["adaptive_max_pool", "adaptive_avg_pool"], _adaptive),
    **dict.fromkeys(["flatten", "reshape"], _reshape),
    **dict.fromkeys(["mean", "sum", "extremum"], _reduction),
    **dict.fromkeys(["pixel_shuffle", "pixel_unshuffle"], _shuffle),
    **dict.fromkeys(["roll", "flip"], _moved),
    "linear": _linear,
    "pad": _pad,
    "upsample": _upsample,
    "permute": _permute,
    "slice": _slice,
    "gather": _gather,
    "softmax": _softmax,
    "expand": _expand,
}


def _widened(state: State, ndim: int) -> Layout:
    return (((_PLAIN, 1),),) * (ndim - len(state.layout)) + state.layout


def _joined(node: Node, states: list[State], names: list[str], along: int | None = None) -> State:
    """Several values that are read at the same position (added, multiplied, concatenated): the union of what they see."""
    shape = node.full_shape
    layouts = [_widened(state, len(shape)) for state in states]
    states = [replace(state, layout=layout) for state, layout in zip(states, layouts)]
    layout: list[tuple[Factor, ...]] = []
    for d, n in enumerate(shape):
        fits = [found[d] for found in layouts if math.prod(m for _, m in found[d]) == n]
        labels = frozenset().union(*(found for each in layouts for found, _ in each[d]))
        labelled = [factors for factors in fits if any(found for found, _ in factors)]
        if labels and not labelled:
            layout.append(((labels, n), (labels, 1)) if along == d else ((labels, n),))
        else:
            layout.append((labelled or fits or [((_PLAIN, n),)])[0])
    joined = State(tuple(layout), states[0].axes, min(state.pooled for state in states))
    for a in (0, 1):
        here = [(state.homes(a), state.extent(a) if state.homes(a) else 0) for state in states]
        extent = max(n for _, n in here)
        side_by_side = along is not None and along in joined.homes(a)
        # A pooled value that meets a map is read at every position; where the positions lie, the map alone says.
        spread = [
            (n < extent or (state.pooled == 2 and joined.pooled < 2)) and not side_by_side
            for state, (_, n) in zip(states, here)
        ]
        maps = [state.axes[a] for state, other in zip(states, spread) if not other] or [s.axes[a] for s in states]
        axis = maps[0]
        for other in maps[1:]:
            track, reason = (axis.track, "") if other.track == axis.track else axis.track.union(other.track, extent)
            crooked = axis.crooked or other.crooked or (f"{reason} at {node.name}" if reason else "")
            axis = Axis(track, axis.whole or other.whole, crooked)
        if any(spread):
            axis = replace(
                axis, whole=axis.whole or f"{names[spread.index(True)]} is spread over the map at {node.name}"
            )
        orders = {tuple(homes) for (homes, _), other in zip(here, spread) if not other}
        if len(orders) > 1:
            why = f"positions meet in different order at {node.name}: an upper bound"
            axis = replace(axis, whole=axis.whole or why)
        joined = joined.with_axis(a, axis)
    return joined


def _cat(node: Node, states: list[State], names: list[str]) -> State:
    dim = node.attrs["dim"]
    if node.kind == "stack":
        states = [replace(s, layout=(*s.layout[:dim], ((_PLAIN, 1),), *s.layout[dim:])) for s in states]
        return _joined(node, states, names)
    joined = _joined(node, states, names, along=dim)
    for a in (0, 1):
        if dim in joined.homes(a):
            axis = joined.axes[a]
            why = f"{node.name} puts maps side by side"
            different = any(state.axes[a].track != axis.track for state in states)
            whole = axis.whole or (f"{why}: an upper bound" if different else "")
            joined = joined.with_axis(a, replace(axis, crooked=axis.crooked or why, whole=whole))
    return joined


def _matmul(node: Node, states: list[State], inputs: list[Node]) -> State:
    """A matrix of fixed weights mixes what lies along one axis; a product of two computed matrices mixes positions."""
    live = [i for i, source in enumerate(inputs) if source.live]
    if len(live) == 1 and node.op != "einsum" and len(inputs[live[0]].full_shape) == len(node.full_shape):
        left = (live[0] == 0) != (node.op == "rmatmul")
        return _channels_mixed(states[0], node, len(node.full_shape) - (1 if left else 2))
    return _attention(node, states)


def _attention(node: Node, states: list[State]) -> State:
    state = states[0]
    for a in (0, 1):
        if any(s.homes(a) for s in states):
            state = state.seeing_all(a, f"every position reads every other at {node.name}")
            for other in states:
                if other.axes[a].whole:
                    state = state.seeing_all(a, other.axes[a].whole)
    return state.fitted(node.full_shape)


def _step(node: Node, graph: Graph, states: dict[str, State]) -> State:
    inputs = [graph[name] for name in node.inputs]
    live = [source for source in inputs if source.live]
    given = [states[source.name] for source in live]
    names = [source.name for source in live]
    if node.kind in ("cat", "stack"):
        return _cat(node, given, names)
    if node.kind == "matmul":
        return _matmul(node, given, inputs)
    if node.kind == "attention":
        return _attention(node, given)
    if node.kind == "item":
        return _item(node, given[0], live[0])
    if node.kind in ("add", "mul", "elementwise"):
        return _joined(node, given, names)
    if node.kind == "overwrite" and not (len(live) == 1 and inputs[0].live):
        return _unknown(node, given[0])
    if node.kind in _RULES and len(live) == 1:
        return _RULES[node.kind](node, given[0])
    return _same(node, given[0]) if node.kind == "overwrite" else _unknown(node, given[0])


# ---------------------------------------------------------------------------------------------------------------
# Rows

Both = int | float | tuple[int | float, int | float]


@dataclass(frozen=True)
class FieldRow:
    """The field of one operation's values, in pixels; a pair (height, width) where the axes differ.

    `size` is `math.inf` where a value sees the whole image whatever its size. `stride`, `offset` and `padding` are
    None where they have no meaning; `note` says why.
    """

    name: str
    kind: str
    size: Both
    stride: Both | None
    offset: Both | None
    padding: Both | None
    note: str = ""

    def axis(self, column: str, axis: int) -> int | float | None:
        """A column's value along height (0) or width (1)."""
        value = getattr(self, column)
        return value[axis] if isinstance(value, tuple) else value


def both(values: list[int | float | None]) -> Both | None:
    """Height's and width's value as one if they agree, as a pair if not, and None if one is missing."""
    if None in values:
        return None
    return values[0] if values[0] == values[1] else (values[0], values[1])


def _row(node: Node, state: State) -> FieldRow:
    sizes, strides, offsets, paddings, notes = [], [], [], [], []
    for a in (0, 1):
        axis = state.axes[a]
        track = axis.track
        pixels = track.at(0)
        placed = state.home(a) is not None
        sizes.append(WHOLE_IMAGE if axis.whole else max(track.sizes, default=0))
        strides.append(number(track.stride) if placed else None)
        centred = placed and not axis.whole and not axis.crooked and pixels is not None
        offsets.append(number(Fraction(sum(pixels), 2)) if centred else None)
        paddings.append(-pixels[0] if centred else None)
        notes += [axis.whole or axis.crooked]
        if not axis.whole and len(set(track.sizes)) > 1:
            notes.append(f"the size changes with the position, from {min(track.sizes)}")
        if not placed and not axis.whole:
            notes.append("flattened" if state.homes(a) else "one value for all positions")
    note = "; ".join(dict.fromkeys(filter(None, [*notes, state.note])))
    return FieldRow(node.name, node.kind, both(sizes), both(strides), both(offsets), both(paddings), note)


@dataclass(frozen=True)
class Place:
    """Where a map's positions lie: the axes of the tensor (batch included) that are height and width, and what each sees."""

    homes: tuple[int, int]
    axes: tuple[Axis, Axis]

    def pixels(self, row: int, column: int) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """First and last pixel, along height and along width, that the position sees, borders not clipped.

        None for a position that sees nothing; an axis that sees the whole image gives minus and plus infinity.
        """
        spans = [
            (-WHOLE_IMAGE, WHOLE_IMAGE) if axis.whole else axis.track.at(n) for axis, n in zip(self.axes, (row, column))
        ]
        return None if None in spans else (spans[0], spans[1])


@dataclass(frozen=True, repr=False)
class FieldTable(tables.NamedRows[FieldRow]):
    """The rows of `receptive_field`; iterates its rows, `table[name]` is one of them, `final` the one that papers quote.

    `places` are the maps among them: where each of their positions looks.
    """

    network: str
    input_shape: tuple[int, int, int]
    rows: tuple[FieldRow, ...]
    final_name: str | None
    places: dict[str, Place] = field(default_factory=dict, compare=False)

    @property
    def final(self) -> FieldRow:
        """The last map (or sequence of positions) before the global pooling or flattening that leads to the main output."""
        if self.final_name is None:
            raise ValueError(
                f"{self.network} makes no map out of its image, so that there is no last one; look at the rows"
            )
        return self[self.final_name]

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values; a size of infinity is the string "whole image"."""
        rows = [{**asdict(row), "size": _plain(row.size)} for row in self.rows]
        final = self.final_name
        return {"network": self.network, "input_shape": list(self.input_shape), "rows": rows, "final": final}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    _COLUMNS = ("name", "kind", "size", "stride", "offset", "padding", "note")

    def _lines(self) -> list[tuple[object, ...]]:
        lines = []
        for row in self.rows:
            numbers = (_plain(getattr(row, column)) for column in self._COLUMNS[2:6])
            lines.append((row.name, row.kind, *numbers, row.note))
        return lines

    def _title(self) -> str:
        last = f"; the last map is {self.final_name}" if self.final_name else ""
        return f"{self.network} on {listed(self.input_shape)}: receptive fields in pixels{last}"

    def __repr__(self) -> str:
        return tables.text(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[2:6])

    def _repr_html_(self) -> str:
        return tables.html(self._title(), self._COLUMNS, self._lines(), right=self._COLUMNS[2:6])


def _plain(value: Both | None) -> object:
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return "whole image" if value == WHOLE_IMAGE else value


def fields_of(graph: Graph) -> FieldTable:
    """The receptive fields of a traced network."""
    batch, channels, height, width = graph.input.full_shape
    layout = (((_PLAIN, batch),), ((_PLAIN, channels),), ((frozenset({0}), height),), ((frozenset({1}), width),))
    states = {graph.input.name: State(layout, (Axis(), Axis()))}
    rows = []
    for node in graph:
        if node.live and node.kind not in ("input", "output") and node.full_shape is not None:
            states[node.name] = _step(node, graph, states)
            rows.append(_row(node, states[node.name]))
    main = graph.ancestors(graph.output.inputs[0])
    maps = [
        row.name for row in rows if row.name in main and states[row.name].positional and not states[row.name].pooled
    ]
    places = {
        row.name: Place((state.home(0), state.home(1)), state.axes)
        for row in rows
        if (state := states[row.name]).home(0) is not None and state.home(1) is not None
    }
    final = maps[-1] if maps else None
    return FieldTable(type(graph.model).__name__, graph.input_shape, tuple(rows), final, places)


def receptive_field(model: nn.Module, input_shape: tuple[int, int, int]) -> FieldTable:
    """Size, stride and offset of the receptive field of each operation, for images of `input_shape` = (C, H, W).

    The input shape matters only where a layer's windows depend on it (adaptive pooling, interpolation to a fixed
    size). The network is left as it was. ValueError for a shape that does not fit.
    """
    return fields_of(trace(model, input_shape))
