"""One frame for every explorer: self-contained HTML, no script from elsewhere, colours of the page that it stands in."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

CSS = """
.cnnlib-explorer{border:1px solid color-mix(in srgb,currentColor 30%,transparent);border-radius:.5rem;
padding:.9rem 1rem;margin:1rem 0;color:inherit;max-width:46rem}
.cnnlib-explorer .controls{display:grid;grid-template-columns:max-content minmax(7rem,1fr) minmax(4.5rem,max-content);
gap:.35rem .8rem;align-items:center;margin-bottom:.8rem}
.cnnlib-explorer input[type=range]{width:100%;min-width:0;accent-color:#3b8bc2}
.cnnlib-explorer select{font:inherit;color:inherit;background:transparent;max-width:100%}
.cnnlib-explorer select option{color:#222;background:#fff}
.cnnlib-explorer output{font-variant-numeric:tabular-nums}
.cnnlib-explorer svg,.cnnlib-explorer img{max-width:100%;height:auto;display:block;margin:0 auto}
.cnnlib-explorer img.pixels,.cnnlib-explorer svg image{image-rendering:pixelated}
.cnnlib-explorer .reading{margin:.8rem 0 0}
.cnnlib-explorer figcaption{font-size:.9em;opacity:.85;margin-top:.5rem}
@media(max-width:30rem){.cnnlib-explorer .controls{grid-template-columns:1fr auto;grid-auto-flow:dense}
.cnnlib-explorer .controls label{grid-column:1}.cnnlib-explorer .controls :is(output,span){grid-column:2}
.cnnlib-explorer .controls :is(input,select){grid-column:1/3}}
""".replace("\n", "")


@dataclass(frozen=True)
class Range:
    """A labelled slider over whole numbers `low` to `high`."""

    name: str
    label: str
    low: int
    high: int
    value: int

    def html(self, prefix: str) -> str:
        key = f"{prefix}-{self.name}"
        return (
            f'<label for="{key}">{html.escape(self.label)}</label>'
            f'<input type="range" id="{key}" name="{self.name}" min="{self.low}" max="{self.high}" step="1" '
            f'value="{self.value}"><output for="{key}" data-for="{self.name}">{self.value}</output>'
        )


@dataclass(frozen=True)
class Choice:
    """A labelled list of names to choose one from."""

    name: str
    label: str
    options: Sequence[str]
    value: int = 0

    def html(self, prefix: str) -> str:
        key = f"{prefix}-{self.name}"
        options = "".join(
            f'<option value="{i}"{" selected" if i == self.value else ""}>{html.escape(option)}</option>'
            for i, option in enumerate(self.options)
        )
        return f'<label for="{key}">{html.escape(self.label)}</label><select id="{key}" name="{self.name}">{options}</select><span></span>'


@dataclass(frozen=True)
class Explorer:
    """What an `explore_*` function returns: shown by a notebook or a web page as it stands, with no kernel behind it.

    `script` is the body of a function of `figure` (the element), `data` (the JSON) and `value(name)` (a control's
    number); it is called at the start and whenever a control moves. `first` is the picture and reading before that, so
    that the explorer says something where scripts do not run.
    """

    name: str
    title: str
    controls: Sequence[Range | Choice]
    first: str
    data: Any
    script: str
    caption: str = ""

    def _repr_html_(self) -> str:
        key = f"explorer-{self.name}"
        controls = "".join(control.html(key) for control in self.controls)
        data = json.dumps(self.data, separators=(",", ":"), sort_keys=True).replace("</", "<\\/")
        caption = f"<figcaption>{self.caption}</figcaption>" if self.caption else ""
        return (
            f'<figure class="cnnlib-explorer" data-explorer="{self.name}" aria-label="{html.escape(self.title)}">'
            f'<style>{CSS}</style><div class="controls">{controls}</div>{self.first}{caption}'
            f'<script type="application/json">{data}</script><script>'
            f"""(function(){{document.querySelectorAll('[data-explorer="{self.name}"]:not([data-ready])').forEach(function(figure){{"""
            "figure.dataset.ready='';var data=JSON.parse(figure.querySelector('script[type=\"application/json\"]').textContent);"
            "var value=function(name){return Number(figure.querySelector('[name=\"'+name+'\"]').value)};"
            "var show=function(name,text){var o=figure.querySelector('[data-for=\"'+name+'\"]');if(o)o.textContent=text};"
            f"var draw=function(){{{self.script}}};figure.addEventListener('input',draw);draw();}});}})();</script></figure>"
        )

    def __repr__(self) -> str:
        return f"<{self.title}: an explorer with {', '.join(control.label for control in self.controls)}>"


def png(picture: ArrayLike) -> str:
    """A data URI of an 8-bit PNG: (H, W) grey or (H, W, 3) colour, values 0 to 255."""
    from PIL import Image

    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        raise ValueError(f"a picture must be 8-bit (uint8), got {pixels.dtype}; scale to 0..255 and round first")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
