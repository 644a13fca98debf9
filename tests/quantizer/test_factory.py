"""From a point to its quantizer: what does not exist is refused, and where the sign comes from."""

import numpy as np
import pytest
import torch

from raysearch.errors import PlacementError
from raysearch.quantizer import make_quantizer, point_levels
from raysearch.records import Granularity, QuantizationPoint, QuantizerRange, QuantizerSpec

ROWS = Granularity.per_channel(0)


def weight(granularity: Granularity = ROWS, spec: QuantizerSpec | None = None) -> QuantizationPoint:
    return QuantizationPoint("a.b", "weight", (), (3, 4, 5), granularity, spec=spec)


def test_what_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(PlacementError, match=r"'a\.b' of shape \(3, 4, 5\) has no axis 3"):
        make_quantizer(weight(Granularity(3)))
    with pytest.raises(PlacementError, match=r"'a\.input' .* per group of 2 along axis 1.*for weights"):
        make_quantizer(QuantizationPoint("a.input", "activation", (), (3, 4), Granularity.per_group(2)))
    with pytest.raises(PlacementError, match=r"'a\.b': 2 bits with half range have no level above 0"):
        point_levels(weight(spec=QuantizerSpec(half_range=True)), 2)
    with pytest.raises(PlacementError, match=r"'a\.b': the bit-width 9 is outside 2–8"):
        point_levels(weight(), 9)


def test_the_scale_of_an_activation_has_the_batch_before_it() -> None:
    channels = QuantizationPoint("a.input", "activation", (), (3, 4), Granularity(-1))
    assert make_quantizer(channels).scale.shape == (1, 1, 4)
    assert make_quantizer(weight(Granularity(-1))).scale.shape == (1, 1, 5)


def test_the_sign_comes_from_the_data_unless_the_spec_says() -> None:
    ones, zeros = np.ones(1, np.float32), np.zeros(1, np.int32)
    for forced, is_data_signed, levels in (
        (None, False, (0, 15)),
        (None, True, (-8, 7)),
        (False, True, (0, 15)),
    ):
        point = QuantizationPoint("a", "activation", (), (3,), spec=QuantizerSpec(signed=forced))
        quantizer = make_quantizer(point)
        quantizer.set_range(4, QuantizerRange(ones, zeros, is_data_signed))
        assert quantizer.levels == levels
        again = make_quantizer(point)
        again.load_state_dict(quantizer.state_dict())
        assert again.levels == levels
        assert torch.equal(again(torch.ones(1)), quantizer(torch.ones(1)))
