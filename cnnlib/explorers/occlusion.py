"""Move a grey square over an image, and read what a network says of what is left."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from cnnlib.analysis.occlusion import OcclusionMap
from cnnlib.explorers.html import Choice, Explorer, Range, png
from cnnlib.plots.occlusion import LAID, PALE, answered, bitmap, coloured, extent_of

SIDE, SPACE = 220, 24  # of a picture and between the two, in units of the drawing
MARK = "#d9822b"

# Probabilities are stored in thousandths. The picture itself takes arrow keys, clicks and a dragged pointer: each sets the
# sliders, so that there is one place where the square is.
SCRIPT = """
var I=data.images[value('image')],r=value('row'),c=value('column'),kind=value('map');
var svg=figure.querySelector('svg'),q=function(s){return figure.querySelector(s)};
show('row',data.tops[r]);show('column',data.lefts[c]);
var t=data.tops[r],l=data.lefts[c],b=Math.min(t+data.square[0],data.size[0]),e=Math.min(l+data.square[1],data.size[1]);
var u=data.unit,place=function(n,x,y,w,h){n.setAttribute('x',x);n.setAttribute('y',y);n.setAttribute('width',w);n.setAttribute('height',h)};
figure.querySelectorAll('.picture').forEach(function(n){n.setAttribute('href',I.picture)});
q('.cells').setAttribute('href',kind?I.answers:I.probability);
place(q('.square'),l*u,t*u,(e-l)*u,(b-t)*u);place(q('.outline'),data.right+l*u,t*u,(e-l)*u,(b-t)*u);
var d=q('.centre');d.setAttribute('cx',data.right+(l+data.square[1]/2)*u);d.setAttribute('cy',(t+data.square[0]/2)*u);
var p=(I.p[r][c]/1000).toFixed(3),a=data.classes[I.a[r][c]];
q('.legend').innerHTML=kind?I.legend:data.legend;
var text='Square over rows '+t+' to '+(b-1)+' and columns '+l+' to '+(e-1)+': probability of '+data.classes[I.label]+' '+p+', answer '+a+
'. Nothing hidden: '+(I.unhidden/1000).toFixed(3)+', answer '+data.classes[I.answer]+'.';
q('.reading').textContent=text;
svg.setAttribute('aria-label',I.title+', '+text+' Arrow keys move the square.');
if(!svg.dataset.moves){svg.dataset.moves='yes';
var set=function(row,column){[['row',row],['column',column]].forEach(function(s){var n=q('[name="'+s[0]+'"]');n.value=Math.max(0,Math.min(Number(n.max),s[1]))});
figure.dispatchEvent(new Event('input'))};
svg.addEventListener('keydown',function(k){var m={ArrowUp:[-1,0],ArrowDown:[1,0],ArrowLeft:[0,-1],ArrowRight:[0,1]}[k.key];
if(m){k.preventDefault();set(value('row')+m[0],value('column')+m[1])}});
var near=function(starts,x){var best=0;starts.forEach(function(s,i){if(Math.abs(s-x)<Math.abs(starts[best]-x))best=i});return best};
var to=function(k){var o=svg.getBoundingClientRect(),f=svg.viewBox.baseVal.width/o.width,x=(k.clientX-o.left)*f,y=(k.clientY-o.top)*f;
if(x>data.right)x-=data.right;set(near(data.tops,y/u-data.square[0]/2),near(data.lefts,x/u-data.square[1]/2))};
svg.addEventListener('click',to);svg.addEventListener('pointermove',function(k){if(k.buttons===1&&k.pointerType==='mouse')to(k)});
svg.addEventListener('dragstart',function(k){k.preventDefault()});
}
"""


def explore_occlusion(
    found: Sequence[OcclusionMap],
    pictures: ArrayLike,
    classes: Sequence[str],
    *,
    titles: Sequence[str] | None = None,
    grey: float = 0.5,
    caption: str = "",
) -> Explorer:
    """A grey square that sliders, arrow keys or the pointer move over images: the probability and the answer at each place.

    `found[i]` is the map of `pictures[i]`, (1 or 3, H, W) as before preprocessing, 8-bit or in [0, 1]; all maps have one
    square at the same places. `classes` are their names, `titles` those of the images (by default the watched classes), and
    `grey` is the square's colour in [0, 1]. Beside the image stands the whole map, of the probability or of the answers.
    ValueError for maps and pictures that do not go together.
    """
    found = list(found)
    titles = [classes[one.label] for one in found] if titles is None else list(titles)
    if not found or len(found) != len(pictures) or len(found) != len(titles):
        raise ValueError(
            f"one picture and one title a map, and at least one: got {len(found)} maps, {len(pictures)} pictures and "
            f"{len(titles)} titles"
        )
    one = found[0]
    bitmaps = [bitmap(picture) for picture in pictures]
    for other, pixels, title in zip(found, bitmaps, titles):
        if (other.tops, other.lefts, other.square) != (one.tops, one.lefts, one.square):
            raise ValueError(f"all maps must have one square at the same places, and that of {title} has others")
        if pixels.shape[:2] != one.size or other.size != one.size:
            raise ValueError(
                f"all pictures must have the maps' {one.size[0]}x{one.size[1]} pixels, and {title} has "
                f"{pixels.shape[0]}x{pixels.shape[1]}"
            )
    unit = SIDE / one.size[1]
    data = {
        "images": [_image(*each, classes) for each in zip(found, bitmaps, titles)],
        "classes": list(classes),
        "tops": one.tops,
        "lefts": one.lefts,
        "square": one.square,
        "size": one.size,
        "unit": unit,
        "right": SIDE + SPACE,
        "legend": "Right: the probability, from dark (0) to bright (1).",
    }
    row, column = one.lowest
    return Explorer(
        name="occlusion",
        title="Hide a part of the image",
        controls=[
            Choice("image", "Image", titles),
            Range("row", "Square from row", 0, len(one.tops) - 1, row),
            Range("column", "from column", 0, len(one.lefts) - 1, column),
            Choice("map", "Map", ["probability of the right class", "answer"]),
        ],
        first=_drawing(data, one, row, column, unit, grey),
        data=data,
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )


def _image(found: OcclusionMap, pixels: Any, title: str, classes: Sequence[str]) -> dict[str, Any]:
    cells, colours = answered(found)
    grey = (pixels == pixels[..., :1]).all()
    named = ", ".join(
        f'<span style="white-space:nowrap"><span style="color:{colour}" aria-hidden="true">■</span> '
        f"{html.escape(classes[label])} ({found.answers[label]})</span>"
        for label, colour in colours.items()
    )
    return {
        "title": title,
        "picture": png(pixels[..., 0] if grey else pixels),
        "probability": png(coloured(found)),
        "answers": png(cells),
        "legend": f"Right: the answer, and at how many of {found.answer.numel()} places: {named}.",
        "label": found.label,
        "p": [[round(1000 * p) for p in line] for line in found.probability.tolist()],
        "a": found.answer.tolist(),
        "unhidden": round(1000 * found.unhidden),
        "answer": found.answer_unhidden,
    }


def _drawing(data: dict[str, Any], one: OcclusionMap, row: int, column: int, unit: float, grey: float) -> str:
    """The first image with its square where it costs most, and its map; what the script moves has a class."""
    height = one.size[0] * unit
    whole = data["right"] + SIDE
    first = data["images"][0]
    left, top, right, bottom = (end * unit for end in extent_of(one))
    up, start, end, last = (edge * unit for edge in one.hidden(row, column))
    box = f'y="{up:g}" width="{last - start:g}" height="{end - up:g}"'
    shade = f"rgb({', '.join([str(round(255 * grey))] * 3)})"
    picture = f'<image class="picture" href="{first["picture"]}" width="{SIDE}" height="{height:g}"'
    reading = (
        f"Nothing hidden: probability of {data['classes'][one.label]} {one.unhidden:.3f}, answer "
        f"{data['classes'][one.answer_unhidden]}. Least under the square drawn here: {float(one.probability.min()):.3f}."
    )
    return (
        f'<svg tabindex="0" role="application" viewBox="0 0 {whole} {height:g}" width="{whole}" style="cursor:crosshair" '
        f'aria-label="{html.escape(first["title"])} with a grey square; arrow keys move the square">'
        f'<defs><clipPath id="occlusion-map"><rect x="{data["right"]}" width="{SIDE}" height="{height:g}"/></clipPath></defs>'
        f'{picture}/><rect class="square" x="{start:g}" {box} fill="{shade}" stroke="{MARK}" stroke-width="2"/>'
        f'<rect x="{data["right"]}" width="{SIDE}" height="{height:g}" fill="#808080"/>'
        f'{picture} x="{data["right"]}" opacity="{PALE}"/>'
        f'<image class="cells" href="{first["probability"]}" x="{data["right"] + left:g}" y="{top:g}" '
        f'width="{right - left:g}" height="{bottom - top:g}" preserveAspectRatio="none" opacity="{LAID}" '
        f'clip-path="url(#occlusion-map)"/>'
        f'<rect class="outline" x="{data["right"] + start:g}" {box} fill="none" stroke="{MARK}" stroke-width="2"/>'
        f'<circle class="centre" cx="{data["right"] + (start + one.square[1] * unit / 2):g}" '
        f'cy="{up + one.square[0] * unit / 2:g}" r="3" fill="{MARK}"/></svg>'
        f'<p class="legend" style="text-align:center;font-size:.9em;margin:.4rem 0 0">{data["legend"]}</p>'
        f'<p class="reading" aria-live="polite" data-value>{html.escape(reading)}</p>'
    )
