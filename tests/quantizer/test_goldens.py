import pytest
import torch
from torch import Tensor

from raysearch.errors import DataError
from raysearch.quantizer import (
    AsymmetricRangeQuantizer,
    RangeQuantizer,
    SymmetricRangeQuantizer,
    grid_levels,
    make_quantizer,
    tune_range,
)
from raysearch.records import QuantizationPoint, QuantizerSpec
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


def point(golden: Golden, mode: str, logarithmic: bool = False) -> QuantizationPoint:
    axis = 0 if len(numbers(golden.scale or golden.low)) > 1 else None
    signed = golden.signed if mode == "symmetric" else None
    spec = QuantizerSpec(mode, signed, golden.narrow, golden.half, logarithmic)  # type: ignore[arg-type]
    return QuantizationPoint(golden.name, "weight", (), (3, 5), axis, spec=spec)


def run(quantizer: RangeQuantizer, golden: Golden) -> tuple[Tensor, Tensor]:
    quantizer.num_bits = golden.bits
    assert quantizer.levels == golden.levels
    x = torch.tensor(numbers(golden.x)).reshape(3, 5).requires_grad_()
    y = quantizer(x)
    y.backward(torch.tensor(numbers(golden.g)).reshape(3, 5))
    assert x.grad is not None
    return y.detach(), x.grad


def check(golden: Golden, y: Tensor, dx: Tensor, step: Tensor) -> None:
    expected = torch.tensor(numbers(golden.codes)).reshape(3, 5) * step
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    grad = torch.tensor(numbers(golden.g))
    grad[list(golden.blocked)] = 0
    torch.testing.assert_close(dx, grad.reshape(3, 5), rtol=0, atol=1e-6)


def near(found: Tensor | None, expected: str) -> None:
    assert found is not None
    torch.testing.assert_close(found.reshape(-1), column(expected).reshape(-1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("bits", LEVELS)
def test_g1_to_g5_levels(bits: int) -> None:
    signed, narrow, unsigned, unsigned_narrow, asymmetric = LEVELS[bits]
    assert grid_levels(bits, signed=True) == signed
    assert grid_levels(bits, signed=True, narrow_range=True) == narrow
    assert grid_levels(bits, signed=False) == unsigned
    assert grid_levels(bits, signed=False, narrow_range=True) == unsigned_narrow
    # An asymmetric grid ignores the narrow range.
    spec = QuantizerSpec("asymmetric", narrow_range=True)
    quantizer = make_quantizer(QuantizationPoint("a", "activation", (), (3,), spec=spec), learning="range")
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
    at = QuantizationPoint("a", "weight", (), (3,), spec=QuantizerSpec("symmetric"))
    symmetric = make_quantizer(at, learning="range")
    assert isinstance(symmetric, SymmetricRangeQuantizer)
    symmetric.set_min_max(8, torch.tensor([low]), torch.tensor([high]))
    assert symmetric.signed == signed
    near(symmetric.scale.detach(), str(scale))
    at = QuantizationPoint("a", "weight", (), (3,), spec=QuantizerSpec("asymmetric"))
    asymmetric = make_quantizer(at, learning="range")
    assert isinstance(asymmetric, AsymmetricRangeQuantizer)
    asymmetric.set_min_max(8, torch.tensor([low]), torch.tensor([high]))
    near(asymmetric.input_low.detach(), str(start))
    near(asymmetric.input_range.detach(), str(span))


def test_extremes_that_are_not_finite_are_refused_by_name() -> None:
    quantizer = make_quantizer(QuantizationPoint("a.input", "activation", (), (3,)), learning="range")
    assert isinstance(quantizer, RangeQuantizer)
    with pytest.raises(DataError, match=r"'a\.input' are not finite"):
        quantizer.set_min_max(8, torch.tensor([0.0]), torch.tensor([float("inf")]))


@pytest.mark.parametrize("golden", SYMMETRIC, ids=lambda g: g.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_g16_to_g21_symmetric(golden: Golden, sign: int) -> None:
    quantizer = make_quantizer(point(golden, "symmetric"), learning="range")
    assert isinstance(quantizer, SymmetricRangeQuantizer)
    with torch.no_grad():
        quantizer.scale.copy_(sign * column(golden.scale).reshape(quantizer.scale.shape))
    y, dx = run(quantizer, golden)
    check(golden, y, dx, column(golden.scale) / golden.levels[1])
    assert quantizer.scale.grad is not None
    near(sign * quantizer.scale.grad, golden.d_scale)


@pytest.mark.parametrize("golden", SYMMETRIC, ids=lambda g: g.name)
def test_a_logarithmic_scale_has_the_same_values_and_the_chain_rules_gradient(golden: Golden) -> None:
    quantizer = make_quantizer(point(golden, "symmetric", True), learning="range")
    assert isinstance(quantizer, SymmetricRangeQuantizer)
    scale = column(golden.scale).reshape(quantizer.scale.shape)
    with torch.no_grad():
        quantizer.scale.copy_(scale.log())
    y, dx = run(quantizer, golden)
    check(golden, y, dx, column(golden.scale) / golden.levels[1])
    assert quantizer.scale.grad is not None
    near(quantizer.scale.grad / scale, golden.d_scale)


@pytest.mark.parametrize("golden", ASYMMETRIC, ids=lambda g: g.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_g22_to_g25_asymmetric(golden: Golden, sign: int) -> None:
    quantizer = make_quantizer(point(golden, "asymmetric"), learning="range")
    assert isinstance(quantizer, AsymmetricRangeQuantizer)
    low, span = (column(text).reshape(quantizer.input_low.shape) for text in (golden.low, golden.span))
    with torch.no_grad():
        quantizer.input_low.copy_(low)
        quantizer.input_range.copy_(sign * span)
    levels = golden.levels[1] + 1
    tuned = tune_range(low, span, levels)
    near(tuned[0], golden.tuned_low)
    near(tuned[1], golden.tuned_span)
    y, dx = run(quantizer, golden)
    check(golden, y, dx, column(golden.tuned_span) / (levels - 1))
    assert quantizer.input_low.grad is not None
    assert quantizer.input_range.grad is not None
    near(quantizer.input_low.grad, golden.d_low)
    near(sign * quantizer.input_range.grad, golden.d_span)
