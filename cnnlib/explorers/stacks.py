"""A stack of 3x3 convolutions against the one large convolution that sees as much."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cnnlib.explorers.html import Choice, Explorer, Range

CHANNELS = (1, 3, 16, 32, 64, 128, 256, 512)
SIDES = (7, 14, 28, 56, 112, 224)
MOST_LAYERS = 7


@dataclass(frozen=True)
class Layers:
    """What convolutions in a row cost that keep channels and size: field (pixels), parameters with biases, MACs, ReLUs."""

    field: int
    parameters: int
    macs: int
    relus: int


def stack_numbers(layers: int, channels: int, side: int) -> tuple[Layers, Layers]:
    """A stack of `layers` 3x3 convolutions on maps of `side` x `side`, and the single one with the same field.

    >>> small, large = stack_numbers(3, 1, 1)
    >>> small.field, large.field, small.parameters, large.parameters
    (7, 7, 30, 50)
    """
    field = 2 * layers + 1
    small, large = (weights * channels**2 for weights in (9 * layers, field**2))
    return (
        Layers(field, small + layers * channels, small * side**2, layers),
        Layers(field, large + channels, large * side**2, 1),
    )


SCRIPT = """
var n=value('layers'),C=data.channels[value('channels')],H=data.sides[value('side')],k=2*n+1;
show('layers',n);
var words=function(v){return v.toLocaleString('en-US')};
var rows=[['small',9*n*C*C,n*C,n],['large',k*k*C*C,C,1]];
var most=Math.max(rows[0][1]+rows[0][2],rows[1][1]+rows[1][2]);
rows.forEach(function(r){var put=function(what,text){figure.querySelector('[data-'+r[0]+'="'+what+'"]').textContent=text};
put('field',k+'\\u00d7'+k);put('parameters',words(r[1]+r[2]));put('macs',words(r[1]*H*H));put('relus',words(r[3]));
figure.querySelector('rect.'+r[0]).setAttribute('width',300*(r[1]+r[2])/most);});
figure.querySelector('[data-large="name"]').textContent='one '+k+'\\u00d7'+k;
figure.querySelector('[data-small="name"]').textContent=n+(n>1?' layers':' layer')+' of 3\\u00d73';
var g=figure.querySelector('g.nest'),s='',u=120/(2*data.most+1);
for(var i=n;i>=0;i--){var w=(2*i+1)*u;s+='<rect x="'+(60-w/2)+'" y="'+(60-w/2)+'" width="'+w+'" height="'+w+
'" fill="#3b8bc2" fill-opacity="'+(i?0.16:0.9)+'" stroke="#3b8bc2"/>';}
g.innerHTML=s;
var ratio=rows[1][1]/rows[0][1];
figure.querySelector('svg').setAttribute('aria-label','Nested squares of up to '+k+' by '+k+
' pixels, one for each layer, and two bars: the parameters of the stack and of the single layer');
figure.querySelector('.reading').textContent=n===1?'One layer of 3\\u00d73 is its own large filter: nothing is saved yet.':
'Both see '+k+'\\u00d7'+k+'. The single layer has '+ratio.toFixed(2)+' times the weights and multiply-adds of the stack, '+
Math.round(100*(ratio-1))+' % more; the stack bends its output '+n+' times, the single layer once.';
"""

_WORDS = {"field": "field, pixels", "parameters": "parameters", "macs": "multiply-adds", "relus": "ReLUs"}


def explore_stack(layers: int = 3, channels: int = 64, side: int = 56, *, caption: str = "") -> Explorer:
    """Three controls, number of 3x3 layers, channels and size of the maps, over a stack and its one large rival.

    ValueError for a start that the controls do not offer.
    """
    if not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"the stack has 1 to {MOST_LAYERS} layers, got {layers}")
    for what, value, offered in (("channels", channels, CHANNELS), ("side", side, SIDES)):
        if value not in offered:
            raise ValueError(f"{what} must be one of {', '.join(map(str, offered))}, got {value}")
    both = dict(zip(("small", "large"), stack_numbers(layers, channels, side)))
    return Explorer(
        name="stack",
        title="A stack of small filters against one large filter",
        controls=[
            Range("layers", "3×3 layers", 1, MOST_LAYERS, layers),
            Choice("channels", "Channels C", [str(c) for c in CHANNELS], CHANNELS.index(channels)),
            Choice("side", "Size of the maps", [f"{s}×{s}" for s in SIDES], SIDES.index(side)),
        ],
        first=_drawing(both, layers),
        data={"channels": CHANNELS, "sides": SIDES, "most": MOST_LAYERS},
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )


def _drawing(both: dict[str, Layers], layers: int) -> str:
    """Squares, bars and table for a start, so that the explorer says something where scripts do not run."""
    field = both["small"].field
    unit = 120 / (2 * MOST_LAYERS + 1)
    nest = "".join(
        f'<rect x="{60 - (2 * i + 1) * unit / 2:g}" y="{60 - (2 * i + 1) * unit / 2:g}" width="{(2 * i + 1) * unit:g}" '
        f'height="{(2 * i + 1) * unit:g}" fill="#3b8bc2" fill-opacity="{0.16 if i else 0.9}" stroke="#3b8bc2"/>'
        for i in range(layers, -1, -1)
    )
    most = max(numbers.parameters for numbers in both.values())
    bars = "".join(
        f'<text x="140" y="{y - 4}" font-size="11" fill="currentColor">{words}</text><rect class="{name}" x="140" '
        f'y="{y}" width="{300 * both[name].parameters / most:g}" height="16" fill="{colour}"/>'
        for name, words, y, colour in (
            ("small", "parameters of the stack", 34, "#3b8bc2"),
            ("large", "parameters of the single layer", 84, "#d9822b"),
        )
    )
    names = {"small": f"{layers} layer{'s' if layers > 1 else ''} of 3×3", "large": f"one {field}×{field}"}
    head = "".join(f'<th scope="col" data-{name}="name">{words}</th>' for name, words in names.items())
    cells = {name: asdict(numbers) for name, numbers in both.items()}
    cells = {n: {k: f"{v}×{v}" if k == "field" else f"{v:,}" for k, v in row.items()} for n, row in cells.items()}
    body = "".join(
        f'<tr><th scope="row">{words}</th>'
        + "".join(f'<td style="text-align:right" data-{name}="{what}">{cells[name][what]}</td>' for name in both)
        + "</tr>"
        for what, words in _WORDS.items()
    )
    return (
        '<svg role="img" viewBox="0 0 450 120" width="450" aria-label="Nested squares of up to '
        f"{field} by {field} pixels, one for each layer, and two bars: the parameters of the stack and of the single "
        f'layer"><g class="nest">{nest}</g>{bars}</svg>'
        f'<table style="width:100%;font-variant-numeric:tabular-nums"><thead><tr><td></td>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table><p class="reading" aria-live="polite">Both see {field}×{field} pixels.</p>'
    )
