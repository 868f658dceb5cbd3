"""Choose growth rate, layers, compression and bottleneck of a dense network, and see its depth, maps and parameters."""

from __future__ import annotations

from cnnlib.analysis.growth import growth_table
from cnnlib.explorers.html import Choice, Explorer, Range
from cnnlib.models.densenet import depth_of

# The page's own arithmetic is that of `growth_table`, row by row.
SCRIPT = """
var k0=value('k0'),k=value('k'),n=value('layers'),blocks=value('blocks'),percent=value('compression'),wide=value('kind')?4*k:0;
show('k0',k0);show('k',k);show('layers',n);show('blocks',blocks);show('compression',percent);
var c=k0,total=data.channels*data.kernel*data.kernel*k0,rows='',bars='',x=0,top=0,out,all=[];
for(var b=1;b<=blocks;b++){
if(b>1){out=Math.floor(percent/100*c);total+=2*c+c*out;rows+='<tr><td>transition '+(b-1)+'</td><td>'+c+'</td><td data-out="'+(b-1)+'">'+out+'</td><td>'+total.toLocaleString('en')+'</td></tr>';c=out;x+=1;}
var first=c,reads=[];
for(var l=1;l<=n;l++){total+=2*c+(wide?c*wide+2*wide+9*wide*k:9*c*k);reads.push(c);all.push([x,c]);c+=k;x+=1;top=Math.max(top,c);}
var said=reads.length>6?reads.slice(0,3).join(', ')+', \\u2026, '+reads[reads.length-1]:reads.join(', ');
rows+='<tr><td>block '+b+'</td><td data-reads="'+b+'" data-all="'+reads.join(' ')+'">'+said+'</td><td data-gives="'+b+'">'+c+'</td><td>'+total.toLocaleString('en')+'</td></tr>';
}
total+=2*c+c*data.classes+data.classes;
var depth=1+blocks*n*(wide?2:1)+(blocks-1)+1;
all.forEach(function(p){var h=100*p[1]/top,a=100*k/top;
bars+='<rect x="'+(p[0]+.1)*300/x+'" y="'+(100-h)+'" width="'+.8*300/x+'" height="'+h+'" fill="#3b8bc2"/><rect x="'+(p[0]+.1)*300/x+'" y="'+(100-h-a)+'" width="'+.8*300/x+'" height="'+a+'" fill="#d9822b"/>';});
figure.querySelector('svg').innerHTML=bars;
figure.querySelector('svg').setAttribute('aria-label','A bar for each of '+all.length+' layers: the maps that it reads and the '+k+' that it adds; the highest reaches '+top);
figure.querySelector('tbody').innerHTML=rows;
figure.querySelector('.reading').textContent='Depth, counted as in the paper: '+depth+'. With a '+data.kernel+'\\u00d7'+data.kernel+' convolution in front and a classifier of '+data.classes+' behind: '+total.toLocaleString('en')+' parameters.';
figure.querySelector('.reading').dataset.params=total;
figure.querySelector('.reading').dataset.depth=depth;
"""


def explore_growth(
    k0: int = 5,
    k: int = 4,
    layers: int = 4,
    *,
    blocks: int = 1,
    compression: int = 50,
    bottleneck: bool = False,
    image: tuple[int, int] = (3, 3),
    classes: int = 10,
    caption: str = "",
) -> Explorer:
    """Five sliders and a choice over a dense network's arithmetic: the maps of every layer, and the parameters so far.

    It starts with the lecture's block by default. `compression` is in percent; `image` = (channels, kernel) is the
    convolution in front, `classes` the classifier behind. ValueError for a start outside of the sliders.
    """
    ranges = [
        Range("k0", "Maps that enter (k0)", 1, 96, k0),
        Range("k", "Growth rate (k)", 1, 48, k),
        Range("layers", "Layers in a block", 1, 32, layers),
        Range("blocks", "Blocks", 1, 4, blocks),
        Range("compression", "Compression, %", 50, 100, compression),
    ]
    for control in ranges:
        if not control.low <= control.value <= control.high:
            raise ValueError(f"{control.label} goes from {control.low} to {control.high}, got {control.value}")
    table = growth_table(
        *(k0, k, (layers,) * blocks),
        compression=compression / 100,
        bottleneck=4 if bottleneck else 0,
        image=image,
        classes=classes,
    )
    lines: list[tuple[object, ...]] = []
    for row, sums in zip(table, table.so_far):
        if row.what == "transition":
            lines.append((f"transition {len(lines) // 2 + 1}", row.reads, row.gives, sums.params))
        elif row.what == "layer" and row.layer == layers:
            reads = ", ".join(str(layer.reads) for layer in table.block(row.block))
            lines.append((f"block {row.block}", reads, row.gives, sums.params))
    rows = "".join(
        f"<tr><td>{step}</td><td>{reads}</td><td>{gives}</td><td>{params:,}</td></tr>"
        for step, reads, gives, params in lines
    )
    depth = depth_of((layers,) * blocks, bottleneck)
    start = (
        '<svg role="img" viewBox="0 0 300 100" width="600" aria-label="A bar for each layer: the maps that it reads and those that '
        'it adds"></svg><table style="width:100%;text-align:left"><thead><tr><th>step</th><th>input maps of its layers</th>'
        f"<th>gives</th><th>parameters so far</th></tr></thead><tbody>{rows}</tbody></table>"
        f'<p class="reading" aria-live="polite" data-value>Depth, counted as in the paper: {depth}. {table.params:,} parameters.</p>'
    )
    return Explorer(
        name="growth",
        title="How a dense network grows",
        controls=[*ranges, Choice("kind", "Layer", ["3×3", "bottleneck: 1×1 to 4k maps, then 3×3"], int(bottleneck))],
        first=start,
        data={"channels": image[0], "kernel": image[1], "classes": classes},
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )
