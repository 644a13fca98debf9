"""Codes and scales as the blocks of GGUF's quantized types.

n  blocks    k  groups of a block    s  inputs of a group

The layouts are those of ggml's block_q4_0 … block_q6_K (https://github.com/ggml-org/ggml, ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from raysearch.errors import ExportError
from raysearch.export.stored_scales import split_scales
from raysearch.records.block_types import BlockType

Bytes = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.signedinteger] | npt.NDArray[np.unsignedinteger]


def pack_blocks(
    block_type: BlockType, codes: Codes, scale: Floats, minimum: Floats | None = None, name: str = "codes"
) -> Bytes:
    """A weight in blocks: what ggml makes of them is code·scale − minimum, in float32, bit for bit.

    Args:
        block_type: the type.
        codes: [rows, inputs]; −2^(b−1) … 2^(b−1)−1, or 0 … 2^b−1 where the type has minima.
        scale: of each group, [rows, groups]; of one block all d·c, d a float16 and c integers.
        minimum: of each group in the same way, 0 or more, where the type has minima.
        name: the weight, for messages.

    Returns:
        [rows, bytes of a row].

    Raises:
        ExportError: rows hold no entire blocks, codes are beyond the type, or scales are none of it.
    """
    rows, inputs = codes.shape
    if inputs % block_type.block_size:
        raise ExportError(
            f"'{name}' has rows of {inputs} inputs, and {block_type.name} has blocks of "
            f"{block_type.block_size}; give it another type."
        )
    offset = 0 if block_type.has_minima else 1 << (block_type.num_bits - 1)
    unsigned_nks = (codes.astype(np.int16) + offset).reshape(-1, block_type.groups, block_type.group_size)
    if unsigned_nks.min(initial=0) < 0 or unsigned_nks.max(initial=0) >= 1 << block_type.num_bits:
        raise ExportError(
            f"'{name}' has codes from {int(codes.min())} to {int(codes.max())}, which {block_type.name} does "
            f"not hold. Strip the model anew with the assignment that it is exported with."
        )
    highest = block_type.highest_scale
    d_n, c_nk = split_scales(scale.reshape(-1, block_type.groups), highest, name)
    if block_type.has_minima:
        assert minimum is not None
        e_n, m_nk = split_scales(minimum.reshape(-1, block_type.groups), highest, name)
        parts = _WITH_MINIMA[block_type.name](unsigned_nks.astype(np.uint8), d_n, c_nk, e_n, m_nk)
    else:
        parts = _SYMMETRIC[block_type.name](unsigned_nks.astype(np.uint8), d_n, c_nk)
    blocks: Bytes = np.concatenate([part.reshape(len(unsigned_nks), -1) for part in parts], axis=1)
    return blocks.reshape(rows, -1)


def _halves(values_n: npt.NDArray[np.float16]) -> Bytes:
    return values_n.astype("<f2")[:, None].view(np.uint8)


def _nibbles(first: Bytes, second: Bytes) -> Bytes:
    """Two values of 4 bits a byte."""
    return (first & 0xF) | (second << 4)


def _bit_planes(bits_nis: Bytes) -> Bytes:
    """Bit i of byte s of each block from [n, 8, s]."""
    return np.packbits(bits_nis, axis=1, bitorder="little")


def _fourfold(first: Bytes, second: Bytes, third: Bytes, fourth: Bytes) -> Bytes:
    """Four values of 2 bits a byte."""
    packed: Bytes = first | (second << 2) | (third << 4) | (fourth << 6)
    return packed


def _quarters(values: Bytes) -> Bytes:
    """Four values of 2 bits a byte, of 128 neighbours those 32 apart: [n, 256] → [n, 64]."""
    fields = values.reshape(len(values), 2, 4, 32)
    return _fourfold(fields[:, :, 0], fields[:, :, 1], fields[:, :, 2], fields[:, :, 3])


def _q4_0(codes_nks: Bytes, d_n: npt.NDArray[np.float16], c_nk: Bytes) -> list[Bytes]:
    pairs = codes_nks.reshape(len(d_n), 2, 16)
    return [_halves(d_n), _nibbles(pairs[:, 0], pairs[:, 1])]


def _q5_0(codes_nks: Bytes, d_n: npt.NDArray[np.float16], c_nk: Bytes) -> list[Bytes]:
    top = np.packbits(codes_nks.reshape(len(d_n), 32) >> 4, axis=1, bitorder="little")
    pairs = codes_nks.reshape(len(d_n), 2, 16)
    return [_halves(d_n), top, _nibbles(pairs[:, 0], pairs[:, 1])]


def _q8_0(codes_nks: Bytes, d_n: npt.NDArray[np.float16], c_nk: Bytes) -> list[Bytes]:
    # Back to two's complement.
    return [_halves(d_n), codes_nks ^ 0x80]


def _q6_k(codes_nks: Bytes, d_n: npt.NDArray[np.float16], c_nk: Bytes) -> list[Bytes]:
    halves = codes_nks.reshape(len(d_n), 2, 2, 64)
    low = _nibbles(halves[:, :, 0], halves[:, :, 1])
    high = _quarters(codes_nks.reshape(len(d_n), 256) >> 4)
    return [low, high, c_nk, _halves(d_n)]


def _q3_k(codes_nks: Bytes, d_n: npt.NDArray[np.float16], c_nk: Bytes) -> list[Bytes]:
    flat = codes_nks.reshape(len(d_n), 256)
    top = _bit_planes((flat >> 2).reshape(len(d_n), 8, 32))
    stored = c_nk + 32
    low = _nibbles(stored[:, :8], stored[:, 8:])
    fields = (stored >> 4).reshape(len(d_n), 4, 4)
    high = _fourfold(fields[:, 0], fields[:, 1], fields[:, 2], fields[:, 3])
    return [top, _quarters(flat & 3), low, high, _halves(d_n)]


def _q2_k(
    codes_nks: Bytes, d_n: npt.NDArray[np.float16], c_nk: Bytes, e_n: npt.NDArray[np.float16], m_nk: Bytes
) -> list[Bytes]:
    return [
        _nibbles(c_nk, m_nk),
        _quarters(codes_nks.reshape(len(d_n), 256)),
        _halves(d_n),
        _halves(e_n),
    ]


def _q4_k(
    codes_nks: Bytes, d_n: npt.NDArray[np.float16], c_nk: Bytes, e_n: npt.NDArray[np.float16], m_nk: Bytes
) -> list[Bytes]:
    pairs = codes_nks.reshape(len(d_n), 4, 2, 32)
    low = _nibbles(pairs[:, :, 0], pairs[:, :, 1])
    return [_halves(d_n), _halves(e_n), _six_bits(c_nk, m_nk), low]


def _q5_k(
    codes_nks: Bytes, d_n: npt.NDArray[np.float16], c_nk: Bytes, e_n: npt.NDArray[np.float16], m_nk: Bytes
) -> list[Bytes]:
    *head, low = _q4_k(codes_nks & 0xF, d_n, c_nk, e_n, m_nk)
    top = _bit_planes(codes_nks >> 4)
    return [*head, top, low]


def _six_bits(c_nk: Bytes, m_nk: Bytes) -> Bytes:
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    first = (c_nk[:, :4] & 0x3F) | ((c_nk[:, 4:] >> 4) << 6)
    second = (m_nk[:, :4] & 0x3F) | ((m_nk[:, 4:] >> 4) << 6)
    packed: Bytes = np.concatenate([first, second, _nibbles(c_nk[:, 4:], m_nk[:, 4:])], axis=1)
    return packed


_SYMMETRIC: dict[str, Callable[..., list[Bytes]]] = {
    "q3_k": _q3_k,
    "q4_0": _q4_0,
    "q5_0": _q5_0,
    "q6_k": _q6_k,
    "q8_0": _q8_0,
}
_WITH_MINIMA: dict[str, Callable[..., list[Bytes]]] = {"q2_k": _q2_k, "q4_k": _q4_k, "q5_k": _q5_k}
