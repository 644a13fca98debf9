"""Granularity: shapes of scales, what is refused, and that setups keep their text and their fingerprint."""

import json

import pytest

from raysearch.errors import PlacementError
from raysearch.records import (
    PER_TENSOR,
    Granularity,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    QuantizerSpec,
    Site,
)


@pytest.mark.parametrize(
    ("granularity", "kind", "scale_shape", "text"),
    [
        (PER_TENSOR, "per_tensor", (1,), "per tensor"),
        (Granularity.per_channel(), "per_channel", (6, 1, 1), "per channel of axis 0"),
        (Granularity.per_channel(-2), "per_channel", (1, 100, 1), "per channel of axis -2"),
        (
            Granularity.per_group(32),
            "per_group",
            (6, 4, 1),
            "per group of 32 along axis 1, per channel of axis 0",
        ),
        (
            Granularity.per_group(3, axis=-2, group_axis=0),
            "per_group",
            (2, 100, 1),
            "per group of 3 along axis 0, per channel of axis -2",
        ),
    ],
)
def test_a_scale_for_each_channel_and_group(granularity, kind, scale_shape, text):
    shape = (6, 100, 3)
    assert granularity.kind == kind
    assert granularity.scale_shape(shape) == scale_shape
    product = 1
    for size in scale_shape:
        product *= size
    assert granularity.num_scales(shape) == product
    assert str(granularity) == text
    batch = granularity.normalized(shape).behind_batch()
    assert batch.num_scales((1, *shape)) == product


@pytest.mark.parametrize("fields", [(0, 1, None), (0, None, 4), (0, 1, 0), (0, 0, 4), (None, 1, 4)], ids=str)
def test_groups_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match="group"):
        Granularity(*fields)


def test_an_axis_that_does_not_exist_is_refused_by_name():
    with pytest.raises(PlacementError, match=r"'fc.weight' of shape \(2, 3\) has no axis 2"):
        Granularity(2).normalized((2, 3), "fc.weight")
    with pytest.raises(PlacementError, match="no axis 1"):
        Granularity.per_group(4).scale_shape((8,))


def setup_of(granularity):
    site = Site("fc", "parameter", "weight")
    spec = QuantizerSpec("asymmetric")
    point = QuantizationPoint("fc.weight", "weight", (site,), (4, 8), granularity, 32, "", spec)
    return QuantizerSetup({point.id: point}, {"g": QuantizerGroup("g", (point.id,), (4, 8))})


def test_the_text_and_the_fingerprint_of_a_setup_are_those_of_before():
    entry = json.loads(setup_of(Granularity(0)).to_json())["points"][0]
    assert list(entry) == ["id", "kind", "sites", "shape", "axis", "macs", "input_point", "spec"]
    assert entry["axis"] == 0
    # Written by the version that had an axis instead of a granularity.
    assert setup_of(Granularity(0)).fingerprint() == "d830ba0edfc7e7b4"
    assert setup_of(PER_TENSOR).fingerprint() == "06ae2219923fbb77"


@pytest.mark.parametrize("granularity", [PER_TENSOR, Granularity(1), Granularity.per_group(2)], ids=str)
def test_a_setup_goes_round(granularity):
    setup = setup_of(granularity)
    assert QuantizerSetup.from_json(setup.to_json()) == setup
