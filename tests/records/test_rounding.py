"""The rounding table: look-ups, its form on disk, and that nothing changes it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raysearch.errors import PlacementError, StorageError
from raysearch.records.granularity import PER_TENSOR, Granularity
from raysearch.records.rounding import RoundedWeight, RoundingTable
from raysearch.records.scheme import Scheme


def rounded(shape=(4, 6), granularity=None, signed=True, seed=0, num_bits=4, **changes):
    generator = np.random.default_rng(seed)
    granularity = granularity or Granularity.per_channel(0)
    count = granularity.num_scales(shape)
    low = -(2 ** (num_bits - 1)) if signed else 0
    high = low + 2**num_bits
    fields = {
        "codes": generator.integers(low, high, shape).astype(np.int8 if signed else np.uint8),
        "scale": generator.uniform(0.1, 1, count).astype(np.float32),
        "zero_point": np.zeros(count, np.int32)
        if signed
        else generator.integers(0, 16, count).astype(np.int32),
        "signed": signed,
        "granularity": granularity,
        "error_nearest": 2.5,
        "error": 1.25,
        "method": "gptq",
    }
    return RoundedWeight(**{**fields, **changes})


TABLE = RoundingTable(
    {
        ("a.weight", Scheme(4)): rounded(),
        ("a.weight", Scheme(2)): rounded(seed=1, num_bits=2, notes=("damping raised", "two")),
        ("b|odd.weight", Scheme(3)): rounded(
            (2, 3, 1, 2), PER_TENSOR, seed=2, num_bits=3, error_nearest=math.nan
        ),
        ("b|odd.weight", Scheme.of("4g4a")): rounded((3, 6), Granularity.per_group(4), signed=False, seed=3),
        ("c", Scheme(8)): rounded((3, 2, 4), Granularity.per_channel(1), seed=4),
    }
)


def test_the_table_comes_back_from_disk():
    again = RoundingTable.from_bytes(TABLE.to_bytes())
    assert set(again) == set(TABLE)
    for key, weight in TABLE.weights.items():
        other = again[key]
        for field in ("codes", "scale", "zero_point"):
            assert getattr(other, field).dtype == getattr(weight, field).dtype
            assert np.array_equal(getattr(other, field), getattr(weight, field))
        assert (other.signed, other.granularity, other.method, other.notes, other.error) == (
            weight.signed, weight.granularity, weight.method, weight.notes, weight.error,
        )  # fmt: skip
        assert np.array_equal(other.error_nearest, weight.error_nearest, equal_nan=True)
    assert again.digest() == TABLE.digest()


def test_a_key_may_be_a_width_a_text_or_a_scheme():
    assert TABLE["a.weight", 4] is TABLE["a.weight", "4"] is TABLE["a.weight", Scheme(4)]
    assert ("a.weight", 4) in TABLE
    assert ("a.weight", "4g64") not in TABLE
    assert TABLE.schemes("a.weight") == (Scheme(2), Scheme(4))
    assert TABLE.points() == ("a.weight", "b|odd.weight", "c")


def test_what_is_not_there_is_named():
    with pytest.raises(PlacementError, match=r"'a\.weight' at 2, 4, not at '8'"):
        TABLE["a.weight", 8]
    with pytest.raises(PlacementError, match=r"no weight 'z'.*3 weights"):
        TABLE["z", 4]


def test_nothing_can_be_written_to():
    weight = TABLE["a.weight", 4]
    for array in (weight.codes, weight.scale, weight.zero_point):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    codes = np.zeros((4, 6), np.int8)
    taken = rounded(codes=codes)
    codes[...] = 5
    assert not taken.codes.any()


@pytest.mark.parametrize("key", list(TABLE))
def test_values_are_codes_less_zero_point_times_scale(key):
    weight = TABLE[key]
    places = weight.granularity.normalized(weight.codes.shape)
    shape = places.scale_shape(weight.codes.shape)
    values = weight.values()
    assert values.dtype == np.float32
    for index in np.ndindex(*weight.codes.shape):
        at = [0] * len(shape)
        for axis in range(len(shape)):
            if places.axis == axis:
                at[axis] = index[axis]
            elif places.group_axis == axis:
                at[axis] = index[axis] // places.group_size
        place = int(np.ravel_multi_index(at, shape)) if places.axis is not None else 0
        expected = np.float32(int(weight.codes[index]) - int(weight.zero_point[place])) * weight.scale[place]
        assert values[index] == expected


def test_parts_are_taken_out_and_put_together():
    parts = [TABLE.of(point) for point in TABLE.points()]
    assert len(parts[0]) == 2
    assert RoundingTable.merge(parts).digest() == TABLE.digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": np.zeros((4, 6), np.uint8)},
        {"scale": np.zeros(4, np.float32)},
        {"scale": np.full(4, np.inf, np.float32)},
        {"scale": np.ones(3, np.float32)},
        {"zero_point": np.zeros(3, np.int32)},
    ],
)
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(ValueError, match=r"codes|scales"):
        rounded(**changes)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"x" + data, lambda data: b""])
def test_damaged_bytes_are_refused(damage):
    with pytest.raises(StorageError, match="damaged"):
        RoundingTable.from_bytes(damage(TABLE.to_bytes()))


def test_weights_with_the_same_note_are_told_together():
    few = "fewer calibration vectors than inputs, damping raised"
    dead = "inputs that are always 0, what reads them is rounded to nearest"
    weights = {("a", Scheme(2)): rounded(notes=(f"{few} (4 for 32)", f"{dead} (1 of 6)"))}
    for name in ("b", "c", "d", "e"):
        weights[name, Scheme(2)] = rounded(notes=(f"{few} (4 for 16)",))
        weights[name, Scheme(4)] = rounded(notes=(f"{few} (4 for 16)",))
    weights["f", Scheme(2)] = rounded()
    assert RoundingTable(weights).notes() == (
        f"Rounding of 5 weights (a, b, c and 2 more): {few}.",
        f"Rounding of a: {dead} (1 of 6).",
    )
