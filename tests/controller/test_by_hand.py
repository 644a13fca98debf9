"""The records of a controller that is built by hand."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from raysearch.controller import WeightQuantizer
from raysearch.controller.by_hand import ranges_of, setup_of
from raysearch.quantizer import make_quantizer
from raysearch.records import Granularity, QuantizationPoint, QuantizerRange, QuantizerSpec, Scheme, Site

SITE = Site("", "parameter", "weight")
POINT = QuantizationPoint("weight", "weight", (SITE,), (3, 256), Granularity.per_channel(0))


@pytest.mark.parametrize("scheme", ["4", "4g64a", "q4_k"])
def test_the_records_say_of_which_kind_a_quantizer_is(scheme):
    point = POINT.at(Scheme.of(scheme))
    quantizer = make_quantizer(point)
    has_minima = point.grid_spec.mode == "minimum"
    scale = np.full(point.num_scales, 0.125, np.float32)
    minimum = np.arange(point.num_scales, dtype=np.float32) if has_minima else None
    zero_point = np.zeros(point.num_scales, np.int32)
    quantizer.set_range(4, QuantizerRange(scale, zero_point, not has_minima, minimum=minimum))
    part = WeightQuantizer(quantizer, nn.Linear(256, 3), (SITE,))
    setup = setup_of({"weight": part}, {}, {}, {"weight": (3, 256)})
    (made,) = setup.points.values()
    assert made.grid_spec.mode == point.grid_spec.mode
    assert (made.num_zero_points, made.minimum_bytes) == (point.num_zero_points, point.minimum_bytes)
    (value,) = ranges_of({"weight": quantizer}).ranges.values()
    assert np.array_equal(value.scale, scale)
    assert (value.minimum is None) == (minimum is None)
    # What reads them gets the same quantizer again.
    again = make_quantizer(made)
    again.set_range(4, value)
    if minimum is not None:
        assert np.array_equal(again.minimum.flatten().numpy(), minimum)


def test_a_quantizer_that_is_not_of_the_default_kind_says_so():
    quantizer = make_quantizer(POINT.at(Scheme.of("4a")))
    quantizer.spec = None
    part = WeightQuantizer(quantizer, nn.Linear(256, 3), (SITE,))
    (made,) = setup_of({"weight": part}, {}, {}, {"weight": (3, 256)}).points.values()
    assert made.spec == QuantizerSpec("asymmetric")
