"""Put quantizers into a model, hold them, and strip them off again."""

from raysearch.controller.attach import attach_activation, attach_weight, detach_all
from raysearch.controller.controller import QuantizationController
from raysearch.controller.create import create_controller
from raysearch.controller.stripped import StrippedWeight, stripped_quantizers, stripped_weights

__all__ = [
    "QuantizationController",
    "StrippedWeight",
    "attach_activation",
    "attach_weight",
    "create_controller",
    "detach_all",
    "stripped_quantizers",
    "stripped_weights",
]
