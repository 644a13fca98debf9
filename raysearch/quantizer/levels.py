"""Integer levels of a bit-width."""

from raysearch.errors import PlacementError

MIN_BITS = 2
MAX_BITS = 8


def quant_levels(num_bits: int, *, signed: bool) -> tuple[int, int]:
    """(quant_min, quant_max) of a quantizer.

    Signed (weights): −2^(b−1) … 2^(b−1)−1, but narrow at 8 bits (−127 … 127), as the NNCF reference
    builds them: integer kernels multiply u8 by s8, where −128 gains nothing and can saturate.
    Unsigned (activations, with a zero point): 0 … 2^b−1.

    Raises:
        PlacementError: the bit-width is outside 2–8.

    Example:
        >>> quant_levels(2, signed=True), quant_levels(8, signed=True), quant_levels(4, signed=False)
        ((-2, 1), (-127, 127), (0, 15))
    """
    if not MIN_BITS <= num_bits <= MAX_BITS:
        raise PlacementError(f"the bit-width {num_bits} is outside {MIN_BITS}–{MAX_BITS}.")
    if not signed:
        return 0, 2**num_bits - 1
    top = 2 ** (num_bits - 1) - 1
    return (-top if num_bits == MAX_BITS else -top - 1), top
