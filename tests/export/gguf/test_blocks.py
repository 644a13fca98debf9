"""Blocks of GGUF's types, against the reader of the package gguf."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.errors import ExportError
from raysearch.export.gguf.blocks import pack_blocks
from raysearch.export.stored_scales import split_scales
from raysearch.records.block_types import BLOCK_TYPES, BlockType

gguf = pytest.importorskip("gguf")

ROWS = 3


def draw(block_type: BlockType, seed: int):
    """Codes, scales and minima of a weight of two blocks a row, over all that the type holds."""
    random = np.random.default_rng(seed)
    inputs = 2 * block_type.block_size
    bits = block_type.num_bits
    if block_type.has_minima:
        low, high = 0, 2**bits
    else:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = random.integers(low, high, (ROWS, inputs)).astype(np.int16)

    def products(least: int) -> np.ndarray:
        # From the subnormal numbers of float16 to its greatest.
        steps = (2.0 ** random.uniform(-24, 9, (ROWS, 2, 1))).astype(np.float16).astype(np.float32)
        integers = random.integers(least, block_type.highest_scale + 1, (ROWS, 2, block_type.groups))
        return (steps * integers.astype(np.float32)).reshape(ROWS, -1)

    return codes, products(1), products(0) if block_type.has_minima else None


@pytest.mark.parametrize("name", BLOCK_TYPES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_ggml_reads_the_values_that_were_packed_bit_for_bit(name: str, seed: int) -> None:
    block_type = BLOCK_TYPES[name]
    codes, scale, minimum = draw(block_type, seed)
    packed = pack_blocks(block_type, codes, scale, minimum)
    assert packed.shape == (ROWS, block_type.row_bytes(codes.shape[1]))
    values = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name.upper()])
    expected = codes.astype(np.float32) * np.repeat(scale, block_type.group_size, axis=1)
    if minimum is not None:
        expected = expected - np.repeat(minimum, block_type.group_size, axis=1)
    assert np.array_equal(values, expected)


def test_sizes_are_those_of_ggml() -> None:
    for name, block_type in BLOCK_TYPES.items():
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
        assert sizes == (block_type.block_size, block_type.block_bytes)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_codes_beyond_the_type_are_refused(name: str) -> None:
    block_type = BLOCK_TYPES[name]
    codes, scale, minimum = draw(block_type, 0)
    codes[1, 5] = 2**block_type.num_bits
    with pytest.raises(ExportError, match=f"'fc' has codes from .* which {name} does not hold"):
        pack_blocks(block_type, codes, scale, minimum, "fc")


def test_rows_without_entire_blocks_are_refused() -> None:
    codes, scale = np.zeros((2, 300), np.int8), np.ones((2, 19), np.float32)
    with pytest.raises(ExportError, match="'fc' has rows of 300 inputs, and q6_k has blocks of 256"):
        pack_blocks(BLOCK_TYPES["q6_k"], codes, scale, name="fc")


@pytest.mark.parametrize("name", ["q4_0", "q6_k", "q3_k"])
def test_scales_that_are_no_products_are_refused(name: str) -> None:
    block_type = BLOCK_TYPES[name]
    codes, scale, _ = draw(block_type, 1)
    scale[0, 0] = np.nextafter(scale[0, 0], np.float32(np.inf))
    with pytest.raises(ExportError, match="'fc' has scales that are no integers"):
        pack_blocks(block_type, codes, scale, name="fc")


def test_a_divisor_that_is_no_float16_is_divided_further() -> None:
    step = np.float32(1 + 2**-10)  # all 11 bits of a float16
    scale = step * np.full((1, 16), 3, np.float32)
    halves, integers = split_scales(scale, 127)
    assert halves[0] == step
    assert (integers == 3).all()


def test_minima_may_all_be_zero() -> None:
    halves, integers = split_scales(np.zeros((1, 8), np.float32), 63)
    assert np.isfinite(halves).all()
    assert not integers.any()


def test_scales_beyond_float16_are_refused() -> None:
    with pytest.raises(ExportError, match="'fc' has scales that are no integers"):
        split_scales(np.full((1, 1), 70000, np.float32), 1, "fc")
