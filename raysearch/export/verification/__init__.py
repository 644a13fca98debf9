"""A target's outputs and codes against those of the stripped module."""

from raysearch.export.verification.code_flips import count_flips
from raysearch.export.verification.verify import (
    Reference,
    check_close,
    check_equal,
    compare,
    reference_outputs,
)
from raysearch.export.verification.worst_layer import compare_layers

__all__ = [
    "Reference",
    "check_close",
    "check_equal",
    "compare",
    "compare_layers",
    "count_flips",
    "reference_outputs",
]
