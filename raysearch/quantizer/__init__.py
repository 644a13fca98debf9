"""One quantizer: integer levels, affine maths, symmetric and asymmetric; tensors in, tensors out."""

from raysearch.quantizer.affine import SMALLEST_SCALE, AffineForm, dequantize, fake_quantize, quantize
from raysearch.quantizer.factory import make_quantizer, point_levels, successor
from raysearch.quantizer.latent import latent_weight
from raysearch.quantizer.levels import MAX_BITS, MIN_BITS, grid_levels, quant_levels, spec_levels
from raysearch.quantizer.quantizer import AsymmetricQuantizer, Quantizer, SymmetricQuantizer
from raysearch.quantizer.reference import (
    asymmetric_from_min_max,
    symmetric_from_min_max,
    tune_range,
)
from raysearch.quantizer.scale_formats import scale_steps, storable, storable_range, storable_through

__all__ = [
    "MAX_BITS",
    "MIN_BITS",
    "SMALLEST_SCALE",
    "AffineForm",
    "AsymmetricQuantizer",
    "Quantizer",
    "SymmetricQuantizer",
    "asymmetric_from_min_max",
    "dequantize",
    "fake_quantize",
    "grid_levels",
    "latent_weight",
    "make_quantizer",
    "point_levels",
    "quant_levels",
    "quantize",
    "scale_steps",
    "spec_levels",
    "storable",
    "storable_range",
    "storable_through",
    "successor",
    "symmetric_from_min_max",
    "tune_range",
]
