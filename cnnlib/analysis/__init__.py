"""What can be read off a network; each analysis reads the one traced graph (`cnnlib.graph`) and returns rows."""

import importlib

_EXPORTS = {
    "cost": "cnnlib.analysis.costs",
    "connections": "cnnlib.analysis.costs",
    "compare": "cnnlib.analysis.differences",
    "receptive_field": "cnnlib.analysis.fields",
    "receptive_field_by_gradient": "cnnlib.analysis.field_by_gradient",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cnnlib.analysis' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
