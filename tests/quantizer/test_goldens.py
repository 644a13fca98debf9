"""The golden values of the reference, for the grids, ranges and fake-quantized values that are its own."""

import numpy as np
import pytest
import torch
from torch import Tensor

from raysearch.quantizer import (
    Quantizer,
    asymmetric_from_min_max,
    grid_levels,
    make_quantizer,
    symmetric_from_min_max,
    tune_range,
)
from raysearch.records import Granularity, QuantizationPoint, QuantizerRange, QuantizerSpec
from tests.support.quantizer_goldens import ASYMMETRIC, SYMMETRIC, Golden, numbers

LEVELS = {
    # bits: signed, signed narrow, unsigned, unsigned narrow, asymmetric
    2: ((-2, 1), (-1, 1), (0, 3), (0, 2), (0, 3)),
    3: ((-4, 3), (-3, 3), (0, 7), (0, 6), (0, 7)),
    4: ((-8, 7), (-7, 7), (0, 15), (0, 14), (0, 15)),
    6: ((-32, 31), (-31, 31), (0, 63), (0, 62), (0, 63)),
    8: ((-128, 127), (-127, 127), (0, 255), (0, 254), (0, 255)),
}
TUNED = {
    "G6": (-0.5, 1.5, 256, -0.5, 1.5),
    "G7": (-1.0, 2.0, 16, -1.1428572, 2.1428571),
    "G8": (0.3, 1.0, 256, 0.0, 1.3),
    "G9": (-2.0, 1.0, 256, -2.0, 2.0),
    "G10": (-0.01, 3.0, 4, -0.01, 3.0),
}
MIN_MAX = {
    "G11": (-0.5, 0.7, 0.7, True, -0.5, 1.2),
    "G12": (0.0, 2.0, 2.0, False, 0.0, 2.0),
    "G13": (-0.02, 0.03, 0.1, True, -0.02, 0.05),
    "G14": (-3.0, -1.0, 3.0, True, -3.0, 2.0),
    "G15": (-0.0001, 5.0, 5.0, True, -0.0001, 5.0001),
}


def column(text: str) -> Tensor:
    return torch.tensor(numbers(text)).reshape(-1, 1)


def assert_near(value: Tensor, expected: str) -> None:
    torch.testing.assert_close(value.reshape(-1), column(expected).reshape(-1), rtol=0, atol=2e-6)


def quantizer_of(golden: Golden, mode: str, value: QuantizerRange) -> Quantizer:
    signed = golden.signed if mode == "symmetric" else None
    spec = QuantizerSpec(mode, signed, golden.narrow, golden.half)  # type: ignore[arg-type]
    granularity = Granularity(0 if value.scale.size > 1 else None)
    point = QuantizationPoint(golden.name, "weight", (), (3, 5), granularity, spec=spec)
    quantizer = make_quantizer(point)
    quantizer.set_range(golden.bits, value)
    return quantizer


def assert_golden(golden: Golden, quantizer: Quantizer, step: Tensor) -> None:
    """Values as the reference's; gradients too, but for values less than half a step beyond an end."""
    assert quantizer.levels == golden.levels
    x = torch.tensor(numbers(golden.x)).reshape(3, 5).requires_grad_()
    upstream = torch.tensor(numbers(golden.g)).reshape(3, 5)
    values = quantizer(x)
    codes = torch.tensor(numbers(golden.codes)).reshape(3, 5)
    torch.testing.assert_close(values.detach(), codes * step, rtol=0, atol=1e-6)
    values.backward(upstream)
    passed = torch.ones(15)
    passed[list(golden.blocked)] = 0
    # LSQ judges the rounded code, so the half step beyond an end still passes gradient.
    error = (values - x).abs().detach()
    is_clear = (passed.reshape(3, 5) > 0) | (error > step / 2)
    assert x.grad is not None
    torch.testing.assert_close(
        x.grad[is_clear], (upstream * passed.reshape(3, 5))[is_clear], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("bits", LEVELS)
def test_g1_to_g5_levels(bits: int) -> None:
    signed, narrow, unsigned, unsigned_narrow, asymmetric = LEVELS[bits]
    assert grid_levels(bits, signed=True) == signed
    assert grid_levels(bits, signed=True, narrow_range=True) == narrow
    assert grid_levels(bits, signed=False) == unsigned
    assert grid_levels(bits, signed=False, narrow_range=True) == unsigned_narrow
    # An asymmetric grid ignores the narrow range.
    spec = QuantizerSpec("asymmetric", narrow_range=True)
    quantizer = make_quantizer(QuantizationPoint("a", "activation", (), (3,), spec=spec))
    assert quantizer.levels_at(bits, signed=False) == asymmetric
    if bits == 8:
        assert grid_levels(8, signed=True, half_range=True) == (-64, 63)
        assert grid_levels(8, signed=False, half_range=True) == (0, 127)


@pytest.mark.parametrize("name", TUNED)
def test_g6_to_g10_tuned_ranges(name: str) -> None:
    low, span, levels, tuned_low, tuned_span = TUNED[name]
    found = tune_range(torch.tensor(low), torch.tensor(span), levels)
    torch.testing.assert_close(torch.stack(found), torch.tensor([tuned_low, tuned_span]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MIN_MAX)
def test_g11_to_g15_min_max(name: str) -> None:
    low, high, scale, signed, start, span = MIN_MAX[name]
    extremes = torch.tensor([low]), torch.tensor([high])
    symmetric, is_signed = symmetric_from_min_max(*extremes)
    assert is_signed == signed
    assert_near(symmetric, str(scale))
    asymmetric = asymmetric_from_min_max(*extremes)
    assert_near(asymmetric[0], str(start))
    assert_near(asymmetric[1], str(span))


@pytest.mark.parametrize("golden", SYMMETRIC, ids=lambda g: g.name)
def test_g16_to_g21_symmetric(golden: Golden) -> None:
    step = column(golden.scale) / golden.levels[1]
    scale = step.reshape(-1).numpy()
    value = QuantizerRange(scale, np.zeros(scale.shape, np.int32), golden.signed)
    assert_golden(golden, quantizer_of(golden, "symmetric", value), step)


@pytest.mark.parametrize("golden", ASYMMETRIC, ids=lambda g: g.name)
def test_g22_to_g25_asymmetric(golden: Golden) -> None:
    low, span = column(golden.low), column(golden.span)
    levels = golden.levels[1] + 1
    tuned = tune_range(low, span, levels)
    assert_near(tuned[0], golden.tuned_low)
    assert_near(tuned[1], golden.tuned_span)
    step = column(golden.tuned_span) / (levels - 1)
    scale = step.reshape(-1).numpy()
    zero_point = torch.round(-column(golden.tuned_low) / step).reshape(-1).numpy().astype(np.int32)
    assert_golden(golden, quantizer_of(golden, "asymmetric", QuantizerRange(scale, zero_point, False)), step)
