"""Floor 4: `draw_*` functions, rows in, Axes out; `STYLE` is the one style sheet of the book."""

import importlib

_EXPORTS = {
    "STYLE": "style",
    "INK": "style",
    "PALETTE": "style",
    "colour_of": "style",
    "diverging": "style",
    "draw_tiles": "tiles",
    "draw_stack": "stacks",
    "stages_of": "stacks",
    "draw_links": "stacks",
    "draw_history": "curves",
    "draw_spread": "curves",
    "draw_field_growth": "fields",
    "draw_fields_on": "fields",
    "draw_network": "networks",
    "describe": "networks",
    "outline": "networks",
    "draw_comparison": "comparisons",
    "comparison_size": "comparisons",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cnnlib.plots' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"cnnlib.plots.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value
