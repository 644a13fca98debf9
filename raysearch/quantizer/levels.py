"""Integer levels of a bit-width."""

from __future__ import annotations

from raysearch.errors import PlacementError
from raysearch.records import QuantizerSpec

MIN_BITS = 2
MAX_BITS = 8


def quant_levels(num_bits: int, *, signed: bool) -> tuple[int, int]:
    """(quant_min, quant_max) of a quantizer of the default kind.

    Signed (weights): −2^(b−1) … 2^(b−1)−1, but narrow at 8 bits (−127 … 127), as the NNCF reference
    builds them: integer kernels multiply u8 by s8, where −128 gains nothing and can saturate.
    Unsigned (activations, with a zero point): 0 … 2^b−1.

    Raises:
        PlacementError: the bit-width is outside 2–8.

    Example:
        >>> quant_levels(2, signed=True), quant_levels(8, signed=True), quant_levels(4, signed=False)
        ((-2, 1), (-127, 127), (0, 15))
    """
    return grid_levels(num_bits, signed=signed, narrow_range=signed and num_bits == MAX_BITS)


def grid_levels(
    num_bits: int, *, signed: bool, narrow_range: bool = False, half_range: bool = False
) -> tuple[int, int]:
    """(quant_min, quant_max) of any grid.

    Signed: −2^(b−1) … 2^(b−1)−1, narrow from one more. Unsigned: 0 … 2^b−1, narrow to one less. Half range
    uses b − 1 for b. An asymmetric grid is an unsigned one that is never narrow.

    Args:
        num_bits: b, 2–8.
        signed: whether codes have a sign.
        narrow_range: one level less.
        half_range: the levels of b − 1 bits.

    Raises:
        PlacementError: the bit-width is outside 2–8, or no level above 0 is left.

    Example:
        >>> grid_levels(4, signed=True, narrow_range=True), grid_levels(8, signed=False, half_range=True)
        ((-7, 7), (0, 127))
    """
    if not MIN_BITS <= num_bits <= MAX_BITS:
        raise PlacementError(f"the bit-width {num_bits} is outside {MIN_BITS}–{MAX_BITS}.")
    bits = num_bits - half_range
    if signed:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        low += narrow_range
    else:
        low, high = 0, 2**bits - 1
        high -= narrow_range
    if high < 1:
        kinds = [name for name, on in (("narrow", narrow_range), ("half", half_range)) if on]
        raise PlacementError(
            f"{num_bits} bits with {' and '.join(kinds)} range have no level above 0; use more bits or the "
            f"full range."
        )
    return low, high


def spec_levels(
    spec: QuantizerSpec | None, num_bits: int, *, signed: bool, name: str = ""
) -> tuple[int, int]:
    """(quant_min, quant_max) of a spec at a width; None is the default grid of weights or activations.

    Args:
        spec: the kind of quantizer. Its narrow range holds at every width, and not for asymmetric grids.
        num_bits: 2–8.
        signed: the sign in force of a symmetric quantizer.
        name: the quantizer, for messages.

    Raises:
        PlacementError: the width is outside 2–8, or no level above 0 is left.
    """
    try:
        if spec is None:
            return quant_levels(num_bits, signed=signed)
        symmetric = spec.mode == "symmetric"
        return grid_levels(
            num_bits,
            signed=signed and symmetric,
            narrow_range=spec.narrow_range and symmetric,
            half_range=spec.half_range,
        )
    except PlacementError as error:
        raise PlacementError(f"the quantizer '{name}': {error}" if name else str(error)) from error
