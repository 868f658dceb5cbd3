"""Choose the depth, the width and the shortcut of a plain or residual network, and see where its numbers go."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlib.errors import unknown
from cnnlib.explorers.html import Choice, Explorer
from cnnlib.models import resnet

if TYPE_CHECKING:
    from cnnlib.analysis.costs import CostRow

WAYS = {
    "plain": "none: a plain network",
    "A": "A: zeros where maps are added",
    "B": "B: projections where the shape changes",
    "C": "C: projections everywhere",
}
FACTORS = (1, 2, 4, 8)
CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)
COLOURS = {"params": "#a5774a", "macs": "#2a9d9d"}


@dataclass(frozen=True)
class Design:
    """Depth of one network of the paper: `blocks` of `layers` layers in each stage, for square images of `side` pixels."""

    title: str
    blocks: tuple[int, ...]
    layers: int
    side: int

    @property
    def depth(self) -> int:
        """Layers with weights on the longest way: the blocks', the first and the last."""
        return self.layers * sum(self.blocks) + 2

    @property
    def usual(self) -> str:
        """The shortcut with which the paper's network of this depth is counted today."""
        return "A" if len(self.blocks) == 3 else "B"


def _cifar(depth: int) -> Design:
    n = resnet.blocks_per_stage(depth, layers=2)
    return Design(f"CIFAR, {depth} layers", (n, n, n), 2, 32)


def _imagenet(depth: int) -> Design:
    expansion, blocks = resnet.BLOCKS[depth]
    return Design(f"ImageNet, {depth} layers", blocks, 2 if expansion == 1 else 3, 224)


DESIGNS = {d.title: d for d in (*map(_cifar, CIFAR_DEPTHS), *map(_imagenet, resnet.BLOCKS))}


class PlainBottleneck(resnet.Bottleneck):
    """(N, C, H, W) -> (N, 4w, H/s, W/s): the three layers of a bottleneck and no shortcut; the paper has none such."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x))


def _plain_bottleneck(channels: int, width: int, stride: int) -> PlainBottleneck:
    convs = (
        resnet.conv1x1(channels, width, stride),
        resnet.conv3x3(width, width),
        resnet.conv1x1(width, 4 * width),
    )
    return PlainBottleneck(*convs, nn.Identity())


def residual_network(design: Design, way: str = "A", factor: int = 1) -> nn.Sequential:
    """(N, 3, side, side) -> (N, classes): the paper's network with `factor` times the maps in each stage.

    The first layer keeps its maps, as in wide residual networks (Zagoruyko and Komodakis 2016). ValueError for a way that
    is none of WAYS.
    """
    if way not in WAYS:
        raise unknown("shortcut", way, WAYS)
    if way == "plain":
        block = resnet.PlainBlock if design.layers == 2 else _plain_bottleneck
    else:
        whole = resnet.BasicBlock if design.layers == 2 else resnet.bottleneck
        block = partial(whole, shortcut=resnet.shortcut_of(way))
    cifar = len(design.blocks) == 3
    stem = resnet.cifar_stem(3) if cifar else resnet.imagenet_stem(3)
    widths = tuple(factor * width for width in (resnet.CIFAR_WIDTHS if cifar else resnet.WIDTHS))
    expansion = 1 if design.layers == 2 else 4
    layers = resnet.stages(block, expansion, design.blocks, 16 if cifar else 64, widths)
    return resnet.network(stem, layers, expansion * widths[-1], 10 if cifar else 1000)


@dataclass(frozen=True)
class Part:
    """A stage, or what stands before or behind all: parameters, those of its shortcuts, projections, MACs; its maps."""

    name: str
    maps: tuple[int, ...]
    params: int
    macs: int
    on_shortcuts: int = 0
    projections: int = 0


def _part(name: str, rows: list[CostRow]) -> Part:
    aside = [row for row in rows if ".downsample" in row.name]
    return Part(
        name,
        rows[-1].output_shape or (),
        sum(row.params for row in rows),
        sum(row.macs for row in rows),
        sum(row.params for row in aside),
        sum(row.kind == "conv" for row in aside),
    )


@cache
def _pieces(stages: int, layers: int, side: int, way: str, factor: int) -> tuple[Part, ...]:
    """Stem, then first and second block of each stage, then the end, as the instrument counts them without memory."""
    from cnnlib.analysis import cost

    with torch.device("meta"):
        net = residual_network(Design("", (2,) * stages, layers, side), way, factor)
    rows = list(cost(net, (3, side, side)))
    groups: dict[str, list[CostRow]] = {}
    for row in rows:
        first, *rest = row.name.split(".")
        ends = "conv1" if not groups or (first in ("bn1", "relu", "maxpool") and not rest) else "fc"
        groups.setdefault(f"{first}.{rest[0]}" if first.startswith("layer") else ends, []).append(row)
    return tuple(_part(name, group) for name, group in groups.items())


def residual_numbers(design: Design, way: str = "A", factor: int = 1) -> tuple[Part, ...]:
    """The stages of a network and what stands before and behind them; blocks of one stage cost the same from the second on.

    >>> sum(part.params for part in residual_numbers(DESIGNS["CIFAR, 20 layers"]))
    269722
    """
    stem, *blocks, end = _pieces(len(design.blocks), design.layers, design.side, way, factor)
    parts = [stem]
    for count, first, further in zip(design.blocks, blocks[::2], blocks[1::2]):
        n = count - 1
        parts.append(
            Part(
                first.name.partition(".")[0],
                first.maps,
                first.params + n * further.params,
                first.macs + n * further.macs,
                first.on_shortcuts + n * further.on_shortcuts,
                first.projections + n * further.projections,
            )
        )
    return (*parts, end)


SCRIPT = """
var d=data.designs[value('depth')],key=d.kind+' '+data.ways[value('shortcut')]+' '+data.factors[value('width')],pieces=data.pieces[key];
var words=function(v){return v.toLocaleString('en-US')},rows=[pieces[0].slice()];
d.blocks.forEach(function(n,i){var a=pieces[1+2*i],b=pieces[2+2*i];
rows.push([a[0],a[1]].concat([2,3,4,5].map(function(k){return a[k]+(n-1)*b[k]})));});
rows.push(pieces[pieces.length-1].slice());
var sum=function(k){return rows.reduce(function(s,r){return s+r[k]},0)},total=[2,3,4,5].map(sum);
figure.querySelector('tbody').innerHTML=rows.map(function(r,i){
var bar=function(k,c){return '<td style="text-align:right"><span data-part="'+r[0]+'" data-what="'+(k===2?'params':'macs')+'">'+words(r[k])+
'</span><div style="height:.45rem;margin-left:auto;background:'+c+';width:'+(100*r[k]/total[k-2]).toFixed(1)+'%"></div></td>'};
var n=d.blocks[i-1];
return '<tr><th scope="row" style="text-align:left">'+r[0]+'<br><small style="font-weight:normal">'+(n?n+(n>1?' blocks, ':' block, '):'')+r[1]+'</small></th>'+
bar(2,data.colours.params)+bar(3,data.colours.macs)+'</tr>';}).join('');
var base=d.base,times=function(k){return (total[k]/base[k]).toFixed(2)};
figure.querySelector('.reading').textContent=d.depth+' layers with weights on the longest way, '+words(total[0])+' parameters and '+words(total[1])+
' multiply-adds: '+times(0)+' and '+times(1)+' times those of the paper\\u2019s residual network of this depth. '+
(data.ways[value('shortcut')]==='plain'?(d.tried?'There is no shortcut.':'There is no shortcut; the paper has no plain network of this depth.'):
'The shortcuts hold '+words(total[2])+' parameters in '+total[3]+' projection'+(total[3]===1?'':'s')+'.');
"""


def explore_residual_networks(
    design: str = "CIFAR, 20 layers", shortcut: str = "A", width: int = 1, *, caption: str = ""
) -> Explorer:
    """Three lists, depth, width and shortcut, over the stages of the network: maps, parameters and multiply-adds.

    ValueError for a start that the lists do not offer.
    """
    if design not in DESIGNS:
        raise unknown("network", design, DESIGNS)
    if shortcut not in WAYS:
        raise unknown("shortcut", shortcut, WAYS)
    if width not in FACTORS:
        raise ValueError(f"width must be one of {', '.join(map(str, FACTORS))} times the paper's, got {width}")
    kinds = sorted({_kind(d) for d in DESIGNS.values()})
    pieces = {
        f"{'-'.join(map(str, kind))} {way} {factor}": [
            [p.name.partition(".")[0], _maps(p), p.params, p.macs, p.on_shortcuts, p.projections]
            for p in _pieces(*kind, way, factor)
        ]
        for kind in kinds
        for way in WAYS
        for factor in FACTORS
    }
    designs = [
        {
            "kind": "-".join(map(str, _kind(d))),
            "blocks": d.blocks,
            "depth": d.depth,
            "base": _totals(residual_numbers(d, d.usual)),
            "tried": _tried_plain(d),
        }
        for d in DESIGNS.values()
    ]
    return Explorer(
        name="residual-networks",
        title="Where a residual network keeps its parameters and does its work",
        controls=[
            Choice("depth", "Network", list(DESIGNS), list(DESIGNS).index(design)),
            Choice("width", "Maps in each stage", [_times(f) for f in FACTORS], FACTORS.index(width)),
            Choice("shortcut", "Shortcut", list(WAYS.values()), list(WAYS).index(shortcut)),
        ],
        first=_table(DESIGNS[design], shortcut, width),
        data={"designs": designs, "pieces": pieces, "ways": list(WAYS), "factors": FACTORS, "colours": COLOURS},
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )


def _kind(design: Design) -> tuple[int, int, int]:
    return len(design.blocks), design.layers, design.side


def _tried_plain(design: Design) -> bool:
    """Plain networks of the paper: 18 and 34 layers, and CIFAR's 20, 32, 44, 56 and 110 (figure 6)."""
    return design.depth in ((20, 32, 44, 56, 110) if len(design.blocks) == 3 else (18, 34))


def _times(factor: int) -> str:
    return "the paper's" if factor == 1 else f"{factor} times the paper's"


def _maps(part: Part) -> str:
    return "×".join(map(str, part.maps))


def _totals(parts: tuple[Part, ...]) -> tuple[int, int]:
    return sum(part.params for part in parts), sum(part.macs for part in parts)


def _table(design: Design, way: str, factor: int) -> str:
    """The table and the reading of a start, so that the explorer says something where scripts do not run."""
    parts = residual_numbers(design, way, factor)
    params, macs = _totals(parts)
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{part.name}<br><small style="font-weight:normal">{count}{_maps(part)}'
        "</small></th>"
        + "".join(
            f'<td style="text-align:right"><span data-part="{part.name}" data-what="{what}">{value:,}</span>'
            f'<div style="height:.45rem;margin-left:auto;background:{COLOURS[what]};width:{100 * value / whole:.1f}%">'
            "</div></td>"
            for what, value, whole in (("params", part.params, params), ("macs", part.macs, macs))
        )
        + "</tr>"
        for part, count in zip(parts, ("", *(f"{n} block{'s' * (n > 1)}, " for n in design.blocks), ""))
    )
    head = "".join(
        f'<th scope="col" style="text-align:{side}">{html.escape(word)}</th>'
        for word, side in (("stage, its maps", "left"), ("parameters", "right"), ("multiply-adds", "right"))
    )
    return (
        '<div style="overflow-x:auto"><table style="width:100%;font-variant-numeric:tabular-nums"><thead><tr>'
        f'{head}</tr></thead><tbody>{rows}</tbody></table></div><p class="reading" aria-live="polite" data-value>'
        f"{design.depth} layers with weights on the longest way, {params:,} parameters and {macs:,} multiply-adds.</p>"
    )
