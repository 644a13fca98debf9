"""The contract of quantizers, for each of them."""

from typing import ClassVar

import numpy as np
import pytest

from raysearch.errors import PlacementError
from raysearch.quantizer import AsymmetricQuantizer, SymmetricQuantizer
from raysearch.quantizer.quantizer import MinimumQuantizer
from raysearch.records import QuantizerRange, QuantizerSpec
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


class TestMinimumQuantizer(QuantizerContract):
    quantizer_type = MinimumQuantizer
    SPECS: ClassVar = {"minimum": QuantizerSpec("minimum")}

    def is_made_for(self, kind: str, spec: str) -> bool:
        return kind == "weight"

    def test_minima_and_the_mode_go_together(self, kind: str, spec: str) -> None:
        without = QuantizerRange(np.ones(3, np.float32), np.zeros(3, np.int32), False)
        with pytest.raises(PlacementError, match=r"'a\.b' is of the mode 'minimum' and its range has none"):
            self.make(kind, spec).set_range(4, without)
