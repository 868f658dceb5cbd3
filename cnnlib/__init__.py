"""The networks of *From LeNet to DenseNet*, exact to the last parameter, and the instruments that read them.

>>> import cnnlib
>>> cnnlib.card("lenet5_1998").year
1998

Names are resolved when they are first used, so that `import cnnlib` costs next to nothing.
"""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "list_models": "cnnlib.models.zoo",
    "build": "cnnlib.models.zoo",
    "card": "cnnlib.models.zoo",
    "load_pretrained": "cnnlib.models.pretrained",
    "trace": "cnnlib.graph",
    "load_data": "cnnlib.data",
    "fit": "cnnlib.training",
    "Recipe": "cnnlib.training",
    "analysis": None,
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cnnlib' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = _EXPORTS[name]
    value = importlib.import_module(f"cnnlib.{name}") if home is None else getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
