"""One quantizer: integer levels, affine maths, symmetric and asymmetric; tensors in, tensors out."""

from raysearch.quantizer.affine import AffineForm, dequantize, fake_quantize, quantize
from raysearch.quantizer.factory import Learning, make_quantizer, point_levels
from raysearch.quantizer.learned_range import (
    AsymmetricRangeQuantizer,
    RangeQuantizer,
    SymmetricRangeQuantizer,
)
from raysearch.quantizer.learned_step import AsymmetricQuantizer, StepQuantizer, SymmetricQuantizer
from raysearch.quantizer.levels import MAX_BITS, MIN_BITS, grid_levels, quant_levels, spec_levels
from raysearch.quantizer.quantizer import SMALLEST_SCALE, Quantizer
from raysearch.quantizer.reference import (
    asymmetric_from_min_max,
    fake_quantize_range,
    symmetric_from_min_max,
    tune_range,
)

__all__ = [
    "MAX_BITS",
    "MIN_BITS",
    "SMALLEST_SCALE",
    "AffineForm",
    "AsymmetricQuantizer",
    "AsymmetricRangeQuantizer",
    "Learning",
    "Quantizer",
    "RangeQuantizer",
    "StepQuantizer",
    "SymmetricQuantizer",
    "SymmetricRangeQuantizer",
    "asymmetric_from_min_max",
    "dequantize",
    "fake_quantize",
    "fake_quantize_range",
    "grid_levels",
    "make_quantizer",
    "point_levels",
    "quant_levels",
    "quantize",
    "spec_levels",
    "symmetric_from_min_max",
    "tune_range",
]
