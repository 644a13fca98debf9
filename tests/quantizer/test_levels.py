import pytest

from raysearch.errors import PlacementError
from raysearch.quantizer import quant_levels


@pytest.mark.parametrize("bits", range(2, 8))
def test_signed_levels_use_the_whole_grid_below_eight_bits(bits: int) -> None:
    low, high = quant_levels(bits, signed=True)
    assert (low, high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def test_eight_signed_bits_are_narrow_and_unsigned_ones_start_at_zero() -> None:
    assert quant_levels(8, signed=True) == (-127, 127)
    assert [quant_levels(b, signed=False) for b in (2, 8)] == [(0, 3), (0, 255)]


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(PlacementError, match=f"{bits} is outside 2–8"):
        quant_levels(bits, signed=True)
