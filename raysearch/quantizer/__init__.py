"""One quantizer: integer levels, affine maths, symmetric and asymmetric; tensors in, tensors out."""

from raysearch.quantizer.affine import dequantize, fake_quantize, quantize
from raysearch.quantizer.levels import MAX_BITS, MIN_BITS, quant_levels
from raysearch.quantizer.quantizer import AsymmetricQuantizer, Quantizer, SymmetricQuantizer

__all__ = [
    "MAX_BITS",
    "MIN_BITS",
    "AsymmetricQuantizer",
    "Quantizer",
    "SymmetricQuantizer",
    "dequantize",
    "fake_quantize",
    "quant_levels",
    "quantize",
]
