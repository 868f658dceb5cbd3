"""What can be read off a network; each analysis reads the one traced graph (`cnnlib.graph`) and returns rows."""

from cnnlib.lazy import exports

_EXPORTS = {
    "cost": "costs",
    "connections": "costs",
    "compare": "differences",
    "folded": "folding",
    "price": "prices",
    "receptive_field": "fields",
    "receptive_field_by_gradient": "field_by_gradient",
}
__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = exports(__name__, _EXPORTS)
