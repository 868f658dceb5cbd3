"""Choose how many blocks a residual network has and how many are deleted, and see which paths are left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnlib.analysis.residual_paths import central_lengths, path_lengths
from cnnlib.explorers.html import Explorer, Range
from cnnlib.models.resnet import blocks_per_stage
from cnnlib.plots.style import INK, PALETTE

SHARE = 0.95
LEFT, RIGHT, TOP, BOTTOM = 8, 412, 24, 180  # of the axes, in units of the drawing
WIDTH, HEIGHT = 420, 226
TICKS = 5
DEPTHS = (20, 32, 44, 56, 110)

SCRIPT = """
var n=value('blocks'),field=figure.querySelector('[name="deleted"]');
if(Number(field.value)>n)field.value=n;field.max=n;
var gone=value('deleted'),left=n-gone,now=data.laws[left],all=data.laws[n];
show('blocks',n);show('deleted',gone);
var most=Math.max.apply(null,now.shares.concat(all.shares));
var step=(data.right-data.left)/(n+1),high=data.bottom-data.top;
var put=function(kind,shares,thin){figure.querySelectorAll('rect.'+kind).forEach(function(bar,k){
var share=k<shares.length?shares[k]:0;
bar.setAttribute('x',data.left+(k+thin/2)*step);bar.setAttribute('width',step*(1-thin));
bar.setAttribute('y',data.bottom-share/most*high);bar.setAttribute('height',share/most*high);});};
put('before',all.shares,0.1);put('now',now.shares,0.3);
figure.querySelectorAll('text.tick').forEach(function(t,i){var k=Math.round(i*n/(data.ticks-1));
t.textContent=n<data.ticks-1&&i>n?'':(n<data.ticks-1?i:k);
t.setAttribute('x',data.left+((n<data.ticks-1?i:k)+0.5)*step);});
figure.querySelector('text.top').textContent=(100*most).toFixed(1)+' % of paths';
var known=data.known[n]?', as '+data.known[n]:'';
var told=n+(n===1?' block':' blocks')+known+', '+gone+' deleted: '+
(gone?now.paths+' of '+all.paths+' paths are left, 1 in '+data.laws[gone].paths:now.paths+' paths')+'. '+
(now.low===now.high?'At least 95 % of them enter '+now.low+' of the blocks.'
:'At least 95 % of them enter '+now.low+' to '+now.high+' of the '+left+(gone?' blocks that are left.':' blocks.'));
figure.querySelector('.reading').textContent=told;
figure.querySelector('svg').setAttribute('aria-label','Bars: the share of paths by the number of blocks that they enter. '+told);
"""


def laws_of_paths(most: int) -> list[dict[str, Any]]:
    """For 0 .. `most` blocks in series: how many paths, the share of each length, and the range that holds 95 % of them."""
    laws = []
    for blocks in range(most + 1):
        counts = path_lengths(blocks)
        low, high = central_lengths(blocks, SHARE)
        shares = [float(f"{count / 2**blocks:.6g}") for count in counts]
        laws.append({"paths": f"{2**blocks:,}", "shares": shares, "low": low, "high": high})
    return laws


def explore_residual_paths(*, blocks: int = 54, most: int = 54, caption: str = "") -> Explorer:
    """Two sliders, blocks (up to `most`) and deleted blocks, over the paths that are left and their lengths.

    It starts with `blocks`, none deleted. ValueError unless 1 <= blocks <= most <= 128.
    """
    if not 1 <= blocks <= most <= 128:
        raise ValueError(f"wanted 1 <= blocks <= most <= 128, got blocks={blocks} and most={most}")
    laws = laws_of_paths(most)
    known = {3 * blocks_per_stage(depth, layers=2): f"ResNet-{depth}" for depth in DEPTHS}
    law = laws[blocks]
    start = (
        f'{_drawing(law["shares"], most)}<p class="reading" aria-live="polite">{blocks} blocks, 0 deleted: '
        f"{law['paths']} paths.</p>"
    )
    return Explorer(
        name="residual-paths",
        title="Paths through a residual network",
        controls=[
            Range("blocks", "Blocks", 1, most, blocks),
            Range("deleted", "Deleted blocks", 0, blocks, 0),
        ],
        first=start,
        data={
            "laws": laws,
            "known": {str(n): name for n, name in known.items()},
            "left": LEFT,
            "right": RIGHT,
            "top": TOP,
            "bottom": BOTTOM,
            "ticks": TICKS,
        },
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )


def _drawing(shares: Sequence[float], most: int) -> str:
    """The bars at the start as SVG: behind, all blocks; in front, those that are left."""
    n = len(shares) - 1
    step = (RIGHT - LEFT) / (n + 1)
    scale = (BOTTOM - TOP) / max(shares)

    def bars(kind: str, colour: str, thin: float) -> str:
        found = []
        for k in range(most + 1):
            share = shares[k] if k <= n else 0
            x, width, high = LEFT + (k + thin / 2) * step, step * (1 - thin), share * scale
            found.append(
                f'<rect class="{kind}" x="{x:.2f}" y="{BOTTOM - high:.2f}" width="{width:.2f}" height="{high:.2f}" '
                f'fill="{colour}"/>'
            )
        return "".join(found)

    ticks = "".join(
        f'<text class="tick" x="{LEFT + (round(i * n / (TICKS - 1)) + 0.5) * step:.2f}" y="{BOTTOM + 16}" '
        f'text-anchor="middle">{round(i * n / (TICKS - 1))}</text>'
        for i in range(TICKS)
    )
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" aria-label="Bars: the share of paths by the '
        f'number of blocks that they enter" font-size="13" fill="currentColor">{bars("before", INK + "55", 0.1)}'
        f'{bars("now", PALETTE["blue"], 0.3)}<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="{INK}"/>{ticks}'
        f'<text class="top" x="{LEFT}" y="{TOP - 8}">{100 * max(shares):.1f} % of paths</text>'
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">blocks whose branch a path enters; '
        "grey: before the deletion</text></svg>"
    )
