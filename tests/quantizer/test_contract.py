"""The contract of quantizers, for each of them."""

from typing import ClassVar

from raysearch.quantizer import AsymmetricQuantizer, SymmetricQuantizer
from raysearch.records import QuantizerSpec
from tests.contracts.quantizer_contract import QuantizerContract


class TestSymmetricQuantizer(QuantizerContract):
    quantizer_type = SymmetricQuantizer
    SPECS: ClassVar = {
        "default": None,
        "signed": QuantizerSpec(signed=True),
        "unsigned": QuantizerSpec(signed=False),
        "narrow": QuantizerSpec(signed=True, narrow_range=True),
        "narrow unsigned": QuantizerSpec(signed=False, narrow_range=True),
        "half": QuantizerSpec(signed=True, half_range=True),
        "logarithmic": QuantizerSpec(signed=True, logarithm_scale=True),
    }


class TestAsymmetricQuantizer(QuantizerContract):
    quantizer_type = AsymmetricQuantizer
    SPECS: ClassVar = {
        "default": None,
        "asymmetric": QuantizerSpec("asymmetric"),
        "asymmetric half": QuantizerSpec("asymmetric", half_range=True),
        "asymmetric logarithmic": QuantizerSpec("asymmetric", logarithm_scale=True),
    }
