"""What a scheme makes of a quantization point."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.records import (
    PER_TENSOR,
    Granularity,
    QuantizationPoint,
    QuantizerSpec,
    Scheme,
    Site,
    packed_bytes,
)

SITE = Site("layer", "parameter", "weight")


def weight(*shape: int, axis: int | None = 0, spec: QuantizerSpec | None = None) -> QuantizationPoint:
    return QuantizationPoint("layer.weight", "weight", (SITE,), shape, Granularity(axis), spec=spec)


@pytest.mark.parametrize(
    ("point", "scheme", "group_axis", "channels", "scale_shape"),
    [
        (weight(10, 96), "4g48", 1, 48, (10, 2)),
        (weight(10, 96), "4g40", 1, 32, (10, 3)),
        # 8 channels of 9 positions each are 72 inputs; 7 are no divisor of 16, so 4 would be 36.
        (weight(10, 16, 3, 3), "4g72", 1, 8, (10, 2, 1, 1)),
        (weight(10, 16, 3, 3), "4g71", 1, 4, (10, 4, 1, 1)),
        (weight(16, 10, 3, axis=1), "4g24a", 0, 8, (2, 10, 1)),
        (weight(10, 4, axis=-2), "4g2", 1, 2, (10, 2)),
    ],
)  # fmt: skip
def test_a_group_spans_the_most_channels_that_divide_them_evenly(
    point, scheme, group_axis, channels, scale_shape
):
    granularity = point.at(scheme).granularity
    assert granularity == Granularity(point.granularity.axis % len(point.shape), group_axis, channels)
    assert granularity.scale_shape(point.shape) == scale_shape


@pytest.mark.parametrize(
    ("point", "scheme"),
    [
        (weight(10, 67), "4g64"),  # the only divisor below is 1
        (weight(10, 64), "4g64"),  # one group would be the row
        (weight(10, 8), "4g64"),
        (weight(10, 1, 3, 3), "4g16"),  # depthwise
        (weight(10, 4, 7, 7), "4g32"),  # a channel is more than a group
        (weight(10), "4g8"),
        (weight(10, 96, axis=None), "4g32"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_divided_keeps_its_granularity(point, scheme):
    assert point.at(scheme) == point


def test_a_plain_scheme_gives_the_point_itself_and_an_activation_takes_no_groups():
    point = weight(10, 96)
    assert point.at(4) is point.at(Scheme(3)) is point
    activation = QuantizationPoint("layer.input", "activation", (Site("layer", "input"),), (4, 96))
    assert activation.at("4g32").granularity == PER_TENSOR


def test_an_asymmetric_scheme_changes_the_mode_alone():
    spec = weight(10, 96, spec=QuantizerSpec("symmetric", signed=False, narrow_range=True)).at("4a").spec
    assert spec == QuantizerSpec("asymmetric", signed=None, narrow_range=True)
    stored = weight(10, 96).at("4g48a")
    assert (stored.spec, stored.num_scales, stored.num_zero_points) == (QuantizerSpec("asymmetric"), 20, 20)


@given(
    st.integers(1, 4),
    st.integers(1, 40),
    st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 200),
    st.booleans(),
)
def test_groups_hold_what_was_asked_or_half_of_it_at_least(rows, channels, kernel, group_size, transposed):
    shape = (channels, rows, *kernel) if transposed else (rows, channels, *kernel)
    point = weight(*shape, axis=int(transposed)).at(Scheme(4, group_size))
    size = point.granularity.group_size
    positions = 1
    for dim in kernel:
        positions *= dim
    possible = [c for c in range(1, channels + 1) if channels % c == 0 and c * positions <= group_size]
    if size is None:
        largest = max(possible, default=0)
        assert largest == channels or 2 * largest * positions < group_size
    else:
        assert size == max(possible) < channels
        assert group_size <= 2 * size * positions <= 2 * group_size


@pytest.mark.parametrize(
    ("inputs", "scheme", "scale_format", "name"),
    [
        (256, "q6_k", "float32", "q6_k"),
        (512, "q2_k", "float16", "q2_k"),
        (256, "q4_k", "float32", "q4_k"),
        (256, "q5_k", "float32", "q5_k"),
        (64, "4g32", "float16", "q4_0"),
        (32, "5", "float16", "q5_0"),  # a row of one block
        (64, "5", "float16", ""),
        (64, "4g32", "bfloat16", ""),
        (64, "4g32a", "float16", ""),
        (96, "q6_k", "float16", ""),  # a row of no blocks
    ],
)
def test_the_type_of_gguf_that_a_weight_is_stored_as(
    inputs: int, scheme: str, scale_format: str, name: str
) -> None:
    point = QuantizationPoint(
        "fc", "weight", (), (4, inputs), Granularity.per_channel(0), scale_format=scale_format
    )
    num_bits = Scheme.of(scheme).num_bits
    block_type = point.at(scheme).block_type(num_bits)
    if block_type is None:
        assert name == ""
    else:
        assert block_type.name == name
        assert packed_bytes(point.at(scheme), num_bits) == 4 * block_type.row_bytes(inputs)
