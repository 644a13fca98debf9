"""Where a quantizer sits in an eager model: parametrizations, pre-hooks and taps of function calls."""

from raysearch.hooks.attach import attach_activation, attach_weight, detach_all

__all__ = ["attach_activation", "attach_weight", "detach_all"]
