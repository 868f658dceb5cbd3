"""Move through the layers and units of a network, and see the pixels that a unit sees."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from cnnlib.explorers.html import Explorer, Range, png
from cnnlib.models import zoo


@dataclass(frozen=True)
class Layer:
    """A layer to move to: its maps, and the side, step and first centre of its units' fields in input pixels."""

    name: str
    maps: int
    height: int
    width: int
    size: int
    stride: float
    offset: float

    def pixels(self, unit: int) -> tuple[float, float]:
        """First and last pixel, along one axis, that unit `unit` (counted from 0) sees; outside of the image is padding."""
        centre = self.offset + unit * self.stride
        return centre - (self.size - 1) / 2, centre + (self.size - 1) / 2


def layers_of(model: nn.Module, input_shape: tuple[int, int, int]) -> list[Layer]:
    """The stages of `model` that widen the field, each by its last map with a square field of known place."""
    from cnnlib.analysis import receptive_field
    from cnnlib.graph import trace

    graph = trace(model, input_shape)
    stages: dict[str, Layer] = {}
    for row in receptive_field(model, input_shape):
        shape = graph[row.name].shape
        if isinstance(row.size, int) and row.size > 1 and row.offset is not None and shape and len(shape) == 3:
            stages[graph[row.name].stage] = Layer(graph[row.name].stage, *shape, row.size, row.stride, row.offset)
    widest = 1
    found = []
    for layer in stages.values():
        if layer.size > widest:
            found.append(layer)
            widest = layer.size
    return found


SCRIPT = """
var L=data.layers[value('layer')];
['row','column'].forEach(function(n,k){var e=figure.querySelector('[name="'+n+'"]');
var most=(k?L.width:L.height)-1;if(Number(e.value)>most)e.value=most;e.max=most;e.disabled=most===0;show(n,e.value);});
show('layer',L.name);
var r=value('row'),c=value('column'),h=(L.size-1)/2,y=L.offset+r*L.stride,x=L.offset+c*L.stride;
var f=figure.querySelector('rect.field');
f.setAttribute('x',x-h);f.setAttribute('y',y-h);f.setAttribute('width',L.size);f.setAttribute('height',L.size);
figure.querySelector('.reading').textContent=L.name+', '+L.maps+' map'+(L.maps>1?'s':'')+' of '+L.height+'\\u00d7'+L.width+
': the unit in row '+r+', column '+c+' sees '+L.size+'\\u00d7'+L.size+' pixels, rows '+(y-h)+' to '+(y+h)+' and columns '+(x-h)+' to '+(x+h)+
(L.height*L.width>1?'. Its neighbour sees as many, '+L.stride+' pixel'+(L.stride>1?'s':'')+' further on.':'. It is the only unit of its map.');
figure.querySelector('svg').setAttribute('aria-label','An image with a square over the '+L.size+' by '+L.size+' pixels that a unit of '+L.name+' sees');
"""


def explore_receptive_field(
    model: nn.Module, input_shape: tuple[int, int, int], picture: ArrayLike, *, caption: str = ""
) -> Explorer:
    """Three sliders, layer, row and column, over the receptive fields of any `model` on `picture`, (H, W) of uint8.

    ValueError for a picture of another size than `input_shape`, or a model without a layer of known square field.
    """
    image = np.asarray(picture)
    if image.shape[:2] != tuple(input_shape[1:]):
        raise ValueError(
            f"the picture must be as high and wide as input_shape, {input_shape[1:]}, got {image.shape[:2]}"
        )
    layers = layers_of(model, input_shape)
    if not layers:
        raise ValueError(
            "this network has no layer with a square field of known place; see receptive_field(...) for why"
        )
    first = layers[0]
    start = (
        f"{_drawing(image, first, 0, 0)}"
        f'<p class="reading" aria-live="polite" data-value>{html.escape(first.name)}: a unit sees {first.size}×{first.size} '
        "pixels.</p>"
    )
    return Explorer(
        name="receptive-field",
        title="What a unit sees",
        controls=[
            Range("layer", "Layer", 0, len(layers) - 1, 0),
            Range("row", "Row of the unit", 0, first.height - 1, 0),
            Range("column", "Column of the unit", 0, first.width - 1, 0),
        ],
        first=start,
        data={"layers": [asdict(layer) for layer in layers]},
        script=" ".join(SCRIPT.split("\n")),
        caption=caption,
    )


def _drawing(image: np.ndarray, layer: Layer, row: int, column: int) -> str:
    """The picture as SVG with the square that the unit in `row` and `column` of `layer` sees."""
    height, width = image.shape[:2]
    margin = round(0.06 * max(height, width), 1)
    box = f"{-margin} {-margin} {width + 2 * margin} {height + 2 * margin}"
    # Pixel i is drawn from i to i + 1, so that its left edge has the number of its centre.
    (top, _), (left, _) = layer.pixels(row), layer.pixels(column)
    return (
        f'<svg role="img" viewBox="{box}" width="360" aria-label="An image with a square over the {layer.size} by '
        f'{layer.size} pixels that a unit of {html.escape(layer.name)} sees"><image href="{png(image)}" width="{width}" '
        f'height="{height}" style="image-rendering:pixelated"/><rect class="field" x="{left}" y="{top}" '
        f'width="{layer.size}" height="{layer.size}" fill="#d9822b" fill-opacity=".25" stroke="#d9822b" '
        f'stroke-width="{max(height, width) / 80}"/></svg>'
    )


def play_receptive_field(
    networks: Mapping[str, nn.Module | str] | None = None, picture: ArrayLike | None = None
) -> Any:
    """The same explorer with a kernel behind it, as an ipywidgets box: choose a network, then layer, row and column.

    `networks` maps a label to a module of your own or to a name of the zoo, all of which are offered by default. The
    picture, (H, W) of uint8, is scaled to the network's input by repeating pixels; by default it is a grey checkerboard.
    A module of your own is read at the picture's own size.
    """
    import ipywidgets
    import torch

    offered = dict(networks or {name: name for name in zoo.list_models()})
    network = ipywidgets.Dropdown(options=list(offered), description="Network")
    sliders = {name: ipywidgets.IntSlider(description=name, max=0) for name in ("Layer", "Row", "Column")}
    drawing, told = ipywidgets.HTML(), ipywidgets.HTML()
    state: dict[str, Any] = {}

    def choose(_: object = None) -> None:
        chosen = offered[network.value]
        image = np.asarray(
            picture if picture is not None else np.indices((16, 16)).sum(0) % 2 * 60 + 150, dtype=np.uint8
        )
        if isinstance(chosen, str):
            shape = zoo.card(chosen).input_shape
            rows, columns = (np.arange(side) * image.shape[i] // side for i, side in enumerate(shape[1:]))
            image = image[rows][:, columns]
            with torch.device("meta"):
                chosen = zoo.build(chosen)
        else:
            shape = (next(p.shape[1] for p in chosen.parameters() if p.dim() == 4), *image.shape)
        state.update(image=image, layers=layers_of(chosen, shape))
        sliders["Layer"].max = max(len(state["layers"]) - 1, 0)
        show()

    def show(_: object = None) -> None:
        if not state["layers"]:
            drawing.value, told.value = "", "This network has no layer with a square field of known place."
            return
        layer = state["layers"][min(sliders["Layer"].value, len(state["layers"]) - 1)]
        sliders["Row"].max, sliders["Column"].max = layer.height - 1, layer.width - 1
        drawing.value = _drawing(state["image"], layer, sliders["Row"].value, sliders["Column"].value)
        told.value = f"{html.escape(layer.name)}: {layer.size}×{layer.size} pixels, effective stride {layer.stride:g}"

    choose()
    network.observe(choose, names="value")
    for slider in sliders.values():
        slider.observe(show, names="value")
    return ipywidgets.VBox([network, *sliders.values(), told, drawing])
