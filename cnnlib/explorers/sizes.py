"""Change input, stride and padding of the first layer and the pooling window, and follow the size of the maps."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from torch import nn

from cnnlib.explorers.html import Explorer, Range


@dataclass(frozen=True)
class Window:
    """A layer that slides a window: `kernel`, `stride` and `padding` in positions, `maps` that it puts out."""

    name: str
    kind: str
    maps: int
    kernel: int
    stride: int
    padding: int

    def output(self, side: int) -> int:
        """The side of the output: floor((side + 2 padding - kernel) / stride) + 1, or 0 where no window fits."""
        return max((side + 2 * self.padding - self.kernel) // self.stride + 1, 0)

    def left_over(self, side: int) -> int:
        """The rows at the far border that no window reaches; 0 where they come out even."""
        return (side + 2 * self.padding - self.kernel) % self.stride


def windows_of(model: nn.Module, input_shape: tuple[int, int, int]) -> list[Window]:
    """The convolutions and max poolings of a chain, in order.

    ValueError for a branch, and for a window that is not square, is dilated or rounds up.
    """
    from cnnlib.graph import trace

    graph = trace(model, input_shape)
    found = []
    for node in graph:
        if sum(source.live for source in graph.predecessors(node.name)) > 1:
            raise ValueError(f"{node.name} joins branches; sizes are followed along a chain, such as AlexNet")
        if node.kind not in ("conv", "max_pool"):
            continue
        a = node.attrs
        (kernel, *_), (stride, *_), ((padding, _), *_) = a["kernel"], a["stride"], a["padding"]
        same = (
            all(len(set(a[key])) == 1 for key in ("kernel", "stride", "padding", "dilation"))
            and len(set(a["padding"][0])) == 1
        )
        if not same or a["dilation"][0] != 1 or a.get("ceil_mode"):
            raise ValueError(
                f"the window of {node.name} is not square, is dilated or rounds up; the formula is another"
            )
        kind = "conv" if node.kind == "conv" else "pool"
        found.append(Window(node.name, kind, node.shape[0], kernel, stride, padding))
    return found


def changed(windows: Sequence[Window], stride: int, padding: int, pool: int) -> list[Window]:
    """The same layers with another stride and padding in the first, and `pool` for each window of pooling."""
    first, *rest = windows
    return [
        replace(first, stride=stride, padding=padding),
        *(replace(w, kernel=pool) if w.kind == "pool" else w for w in rest),
    ]


def sides(windows: Sequence[Window], side: int) -> list[int]:
    """The side of the maps after each layer; 0 from the layer on whose window does not fit.

    >>> sides([Window("conv1", "conv", 96, 11, 4, 0), Window("pool1", "pool", 96, 3, 2, 0)], 227)
    [55, 27]
    """
    found = []
    for window in windows:
        side = window.output(side) if side else 0
        found.append(side)
    return found


SCRIPT = """
var side=value('side'),rows='',fits=true,w=null;show('side',side);show('stride',value('stride'));show('padding',value('padding'));show('pool',value('pool'));
data.layers.forEach(function(l,i){
var k=l.kind==='pool'?value('pool'):l.kernel,s=i?l.stride:value('stride'),p=i?l.padding:value('padding');
var n=side+2*p-k,o=fits&&n>=0?Math.floor(n/s)+1:0,left=fits&&n>=0?n%s:0;
rows+='<tr><td>'+l.name+'</td><td>'+(fits?'('+side+(p?' + 2\\u00b7'+p:'')+' \\u2212 '+k+') / '+s+' + 1':'')+'</td><td data-side="'+l.name+'">'+(o||'does not fit')+'</td><td>'+(o?left||'':'')+'</td></tr>';
if(!o)fits=false;side=o;});
figure.querySelector('tbody').innerHTML=rows;
var last=data.layers[data.layers.length-1],v=last.maps*side*side;
figure.querySelector('.reading').textContent=fits?'The last maps hold '+last.maps+' \\u00b7 '+side+' \\u00b7 '+side+' = '+v.toLocaleString('en')+' values, and '+data.linear+' has '+((v+1)*data.units).toLocaleString('en')+' parameters.':'The maps shrink to nothing before the end.';
"""


def explore_output_sizes(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    least: int,
    most: int,
    caption: str = "",
) -> Explorer:
    """Four sliders over the sizes of a chain such as AlexNet: input side from `least` to `most`, the first layer's stride and
    padding, the window of all poolings; the table shows the formula of each layer, its output and the rows left over.
    """
    from cnnlib.graph import trace

    windows = windows_of(model, input_shape)
    side = input_shape[1]
    if not least <= side <= most:
        raise ValueError(f"the sides to choose from must include the network's own {side}, got {least} to {most}")
    linear = next(node for node in trace(model, input_shape) if node.kind == "linear")
    units = linear.attrs["out_features"]
    rows, at = [], side
    for window, after in zip(windows, sides(windows, side)):
        padded = f" + 2·{window.padding}" if window.padding else ""
        formula = f"({at}{padded} − {window.kernel}) / {window.stride} + 1"
        rows.append(
            f'<tr><td>{html.escape(window.name)}</td><td>{formula}</td><td data-side="{html.escape(window.name)}">{after}</td>'
            f"<td>{window.left_over(at) or ''}</td></tr>"
        )
        at = after
    values = windows[-1].maps * at**2
    first = (
        "<table><thead><tr><th>layer</th><th>output size</th><th>=</th><th>rows left over</th></tr></thead>"
        f'<tbody>{"".join(rows)}</tbody></table><p class="reading" aria-live="polite" data-value>The last maps hold '
        f"{windows[-1].maps} · {at} · {at} = {values:,} values, and {linear.name} has {(values + 1) * units:,} parameters.</p>"
    )
    pools = [w.kernel for w in windows if w.kind == "pool"]
    return Explorer(
        name="output-sizes",
        title="How large the maps are",
        controls=[
            Range("side", "Side of the input", least, most, side),
            Range("stride", f"Stride of {windows[0].name}", 1, 6, windows[0].stride),
            Range("padding", f"Padding of {windows[0].name}", 0, 5, windows[0].padding),
            Range("pool", "Window of all poolings", 2, 5, pools[0] if pools else 2),
        ],
        first=first,
        data={"layers": [asdict(w) for w in windows], "linear": linear.name, "units": units},
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )
