"""Floor 5: `explore_*` return self-contained HTML, for the static page and notebooks; `play_*` are ipywidgets with a kernel."""

import importlib

_EXPORTS = {
    "explore_receptive_field": "fields",
    "layers_of": "fields",
    "play_receptive_field": "fields",
    "explore_feature_maps": "maps",
    "explore_claims": "claims",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cnnlib.explorers' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"cnnlib.explorers.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value
