"""Floor 5: `explore_*` return self-contained HTML, for the static page and notebooks; `play_*` are ipywidgets with a kernel."""

from cnnlib.lazy import exports

_EXPORTS = {
    "explore_receptive_field": "fields",
    "layers_of": "fields",
    "play_receptive_field": "fields",
    "explore_effective_field": "effective_fields",
    "explore_growth": "growth",
    "explore_feature_maps": "maps",
    "explore_gradient_flow": "gradient_flow",
    "explore_claims": "claims",
    "explore_stack": "stacks",
    "stack_numbers": "stacks",
    "explore_output_sizes": "sizes",
    "explore_loss_surfaces": "loss_surfaces",
    "explore_deconvnet": "deconvnet",
    "explore_occlusion": "occlusion",
    "explore_residual_paths": "residual_paths",
    "laws_of_paths": "residual_paths",
    "explore_residual_networks": "residual_networks",
    "residual_numbers": "residual_networks",
}
__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = exports(__name__, _EXPORTS)
