import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.errors import ExportError, StorageError
from raysearch.export import packing
from raysearch.export.packing import pack_codes, packed_length, unpack_codes


@st.composite
def streams(draw):
    bits = draw(st.integers(2, 8))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return bits, draw(st.lists(st.integers(low, high) | st.sampled_from([low, high]), max_size=70))


def dense(codes, bits):
    """The stream by its definition: one big number, code i shifted by b·i."""
    whole = sum((code + 2 ** (bits - 1)) << (bits * i) for i, code in enumerate(codes))
    return whole.to_bytes((len(codes) * bits + 7) // 8, "little")


@given(streams())
def test_the_stream_is_what_the_definition_says_and_reads_back(stream):
    bits, codes = stream
    packed = pack_codes(np.array(codes, np.int8), bits)
    assert packed.tobytes() == dense(codes, bits)
    assert packed.size == packed_length(len(codes), bits)
    assert unpack_codes(packed, bits, len(codes)).tolist() == codes


@given(streams())
@settings(max_examples=40)
def test_chunks_join_without_a_seam(stream):
    bits, codes = stream
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK", 8)
        packed = pack_codes(np.array(codes, np.int8), bits)
        assert packed.tobytes() == dense(codes, bits)
        assert unpack_codes(packed, bits, len(codes)).tolist() == codes


def test_any_shape_is_packed_in_row_major_order():
    codes = np.arange(-4, 4, dtype=np.int8).reshape(2, 2, 2)
    assert pack_codes(codes.transpose(2, 0, 1), 3).tobytes() == dense(
        codes.transpose(2, 0, 1).flatten().tolist(), 3
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("beyond", ["low", "high"])
def test_a_code_that_does_not_fit_is_refused(bits, beyond):
    code = -(2 ** (bits - 1)) - 1 if beyond == "low" else 2 ** (bits - 1)
    with pytest.raises(ExportError, match=rf"'conv' has codes from .*{bits} bits hold"):
        pack_codes(np.array([0, code], np.int16), bits, "conv")


@pytest.mark.parametrize("bits", [1, 9])
def test_other_widths_are_refused(bits):
    with pytest.raises(ExportError, match="2–8"):
        pack_codes(np.zeros(3, np.int8), bits)
    with pytest.raises(StorageError, match="2–8"):
        unpack_codes(np.zeros(1, np.uint8), bits, 3)


@pytest.mark.parametrize("count", [-1, 2, 6, 10**15])
def test_a_length_that_does_not_fit_is_refused_before_anything_is_allocated(count):
    with pytest.raises(StorageError, match="'fc' holds 2 bytes"):
        unpack_codes(np.zeros(2, np.uint8), 3, count, "fc")


def test_bits_beyond_the_last_code_are_refused():
    stream = pack_codes(np.zeros(5, np.int8), 3)
    stream[-1] |= 0x80
    with pytest.raises(StorageError, match="beyond its last code"):
        unpack_codes(stream, 3, 5)


@given(streams(), st.integers(1, 3))
@settings(max_examples=40)
def test_rows_are_streams_of_their_own_in_whole_words(stream, num_rows):
    bits, codes = stream
    rows = np.stack([np.roll(np.array(codes, np.int8), shift) for shift in range(num_rows)])
    words = packing.pack_rows(rows, bits)
    assert words.shape == (num_rows, -(-len(codes) * bits // 32))
    for row, packed in zip(rows.tolist(), words, strict=True):
        assert packed.tobytes() == dense(row, bits).ljust(4 * words.shape[1], b"\0")
