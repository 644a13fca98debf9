"""Integer codes of 2–8 bits as a little-endian bit stream, offset-binary, without padding but the last byte.

Code q at width b is stored as the unsigned number q + 2^(b−1) in bits b·i … b·i + b − 1 of the stream; bit k
of the stream is bit k mod 8 of byte ⌊k/8⌋. Unused bits of the last byte are 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raysearch.errors import ExportError, StorageError
from raysearch.quantizer import MAX_BITS, MIN_BITS

# A multiple of 8, so that every chunk but the last ends on a byte; bounds the memory of the bit matrix.
_CHUNK = 1 << 20


def packed_length(num_codes: int, num_bits: int) -> int:
    """Bytes of a stream: ⌈num_codes·num_bits / 8⌉."""
    return (num_codes * num_bits + 7) // 8


def pack_codes(
    codes: npt.NDArray[np.signedinteger], num_bits: int, name: str = "codes"
) -> npt.NDArray[np.uint8]:
    """Pack codes in row-major order.

    Args:
        codes: integers in −2^(b−1) … 2^(b−1)−1, any shape.
        num_bits: b, 2–8.
        name: the weight, for messages.

    Returns:
        uint8, shape [⌈n·b/8⌉].

    Raises:
        ExportError: the width is outside 2–8, or a code does not fit it.

    Example:
        >>> pack_codes(np.array([-2, 1, 0]), 2).tolist()
        [44]
    """
    if not MIN_BITS <= num_bits <= MAX_BITS:
        raise ExportError(f"'{name}' has {num_bits} bits; packed codes have {MIN_BITS}–{MAX_BITS}.")
    flat = np.asarray(codes).reshape(-1)
    half = 1 << (num_bits - 1)
    if flat.size and not (-half <= int(flat.min()) and int(flat.max()) < half):
        raise ExportError(
            f"'{name}' has codes from {int(flat.min())} to {int(flat.max())}; {num_bits} bits hold {-half} "
            f"to {half - 1}. Strip the model anew with the assignment that it is exported with."
        )
    stream = np.empty(packed_length(flat.size, num_bits), np.uint8)
    for start in range(0, flat.size, _CHUNK):
        part = (flat[start : start + _CHUNK].astype(np.int16) + half).astype(np.uint8)
        bits = np.unpackbits(part[:, None], axis=1, count=num_bits, bitorder="little")
        packed = np.packbits(bits.reshape(-1), bitorder="little")
        at = start * num_bits // 8
        stream[at : at + packed.size] = packed
    return stream


def pack_rows(
    codes: npt.NDArray[np.signedinteger], num_bits: int, name: str = "codes"
) -> npt.NDArray[np.int32]:
    """Pack each row of a matrix as a stream of its own, filled up with zeros to whole 32-bit words.

    Args:
        codes: integers in −2^(b−1) … 2^(b−1)−1, [rows, n].
        num_bits: b, 2–8.
        name: the weight, for messages.

    Returns:
        int32, [rows, ⌈n·b/32⌉].

    Raises:
        ExportError: as `pack_codes`.
    """
    num_rows, length = codes.shape
    # The lowest code is stored as 0. So many codes of any width fill whole words.
    filled = np.pad(codes, ((0, 0), (0, -length % 32)), constant_values=-(1 << (num_bits - 1)))
    words = pack_codes(filled, num_bits, name).view("<i4").reshape(num_rows, -1)
    return np.ascontiguousarray(words[:, : -(-length * num_bits // 32)])


def unpack_codes(
    stream: npt.NDArray[np.uint8], num_bits: int, num_codes: int, name: str = "codes"
) -> npt.NDArray[np.int8]:
    """Read what `pack_codes` wrote; the length is checked before anything is allocated.

    Args:
        stream: uint8, shape [⌈n·b/8⌉].
        num_bits: b, 2–8.
        num_codes: n.
        name: the weight, for messages.

    Returns:
        int8, shape [num_codes].

    Raises:
        StorageError: the width is outside 2–8, the stream has another length, or unused bits are set.
    """
    if not MIN_BITS <= num_bits <= MAX_BITS:
        raise StorageError(f"'{name}' has {num_bits} bits; packed codes have {MIN_BITS}–{MAX_BITS}.")
    if num_codes < 0 or stream.shape != (packed_length(num_codes, num_bits),):
        raise StorageError(
            f"'{name}' holds {stream.size} bytes, but {num_codes} codes of {num_bits} bits take "
            f"{packed_length(max(num_codes, 0), num_bits)}. The file is damaged; retrieve or export it again."
        )
    spare = 8 * stream.size - num_codes * num_bits
    if spare and int(stream[-1]) >> (8 - spare):
        raise StorageError(
            f"'{name}' has bits set beyond its last code. The file is damaged; retrieve or export it again."
        )
    codes = np.empty(num_codes, np.int8)
    for start in range(0, num_codes, _CHUNK):
        count = min(_CHUNK, num_codes - start)
        at = start * num_bits // 8
        part = stream[at : at + packed_length(count, num_bits)]
        bits = np.unpackbits(part, count=count * num_bits, bitorder="little").reshape(count, num_bits)
        values = np.packbits(bits, axis=1, bitorder="little")[:, 0].astype(np.int16)
        codes[start : start + count] = values - (1 << (num_bits - 1))
    return codes
