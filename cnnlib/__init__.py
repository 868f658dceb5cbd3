"""The networks of *From LeNet to DenseNet*, exact to the last parameter, and the instruments that read them.

>>> import cnnlib
>>> cnnlib.card("lenet5_1998").year
1998

Names are resolved when they are first used, so that `import cnnlib` costs next to nothing.
"""

from cnnlib.lazy import exports

__version__ = "0.1.0"

_EXPORTS = {
    "list_models": "models.zoo",
    "build": "models.zoo",
    "card": "models.zoo",
    "load_pretrained": "models.pretrained",
    "trace": "graph",
    "load_data": "data",
    "fit": "training",
    "Recipe": "training",
    "analysis": None,
}
__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = exports(__name__, _EXPORTS)
