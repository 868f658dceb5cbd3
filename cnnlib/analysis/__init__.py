"""What can be read off a network; each analysis reads the one traced graph (`cnnlib.graph`) and returns rows."""

from cnnlib.lazy import exports

_EXPORTS = {
    "cost": "costs",
    "connections": "costs",
    "compare": "differences",
    "folded": "folding",
    "loss_surface": "loss_surfaces",
    "random_directions": "loss_surfaces",
    "direction_to": "loss_surfaces",
    "trajectory": "loss_surfaces",
    "grid": "loss_surfaces",
    "price": "prices",
    "send_back": "deconvnet",
    "through_deconvnet": "deconvnet",
    "guided_backprop": "deconvnet",
    "plain_gradient": "deconvnet",
    "first_filters": "deconvnet",
    "strongest_patches": "top_patches",
    "pictures_of": "top_patches",
    "reconstruct": "top_patches",
    "receptive_field": "fields",
    "receptive_field_by_gradient": "field_by_gradient",
    "along_path": "path_gradients",
    "central_lengths": "residual_paths",
    "delete": "lesions",
    "delete_each": "lesions",
    "delete_several": "lesions",
    "gradient_by_path_length": "path_gradients",
    "path_lengths": "residual_paths",
    "permute_blocks": "lesions",
    "reorder_blocks": "lesions",
    "residual_blocks": "residual_paths",
    "share_of_paths": "residual_paths",
    "unrolled": "residual_paths",
}
__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = exports(__name__, _EXPORTS)
