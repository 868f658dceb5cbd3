"""Floor 4: `draw_*` functions, rows in, Axes out; `STYLE` is the one style sheet of the book."""

from cnnlib.lazy import exports

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
    "draw_pyramid": "vgg",
    "draw_columns": "vgg",
    "draw_shares": "vgg",
}
__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = exports(__name__, _EXPORTS)
