"""Where a quantizer sits in an eager model: parametrizations, pre-hooks and taps of function calls."""

from raysearch.hooks.attach import attach_activation, attach_weight, detach_all, replace_weight
from raysearch.hooks.checkpointed_blocks import checkpoint_blocks
from raysearch.hooks.float_values import put_floats
from raysearch.hooks.latent_weights import place_latent_weights
from raysearch.hooks.locations import float_weight

__all__ = [
    "attach_activation",
    "attach_weight",
    "checkpoint_blocks",
    "detach_all",
    "float_weight",
    "place_latent_weights",
    "put_floats",
    "replace_weight",
]
