from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.errors import ConfigError
from raysearch.records import (
    BitAssignment,
    CostModel,
    LatencyProfile,
    LiveTensor,
    QuantizerSpec,
    packed_bytes,
)
from tests.support.small_records import assignments, setups, small_setup


def test_costs_by_hand():
    costs = CostModel(small_setup()).costs(BitAssignment({"ga": 4, "gx": 8, "gb": 3}))
    assert costs == {
        "avg_bits": (10 * 4 + 6 * 3) / 16,
        "act_bits": 8.0,
        # 40 bits in 5 bytes and two scales; 18 bits in 3 bytes and one scale.
        "size": (5 + 8) + (3 + 4),
        "bpw": 8 * 20 / 16,
        # a is fed by float, b by x at 8 bits.
        "bops": 100 * 4 * 32 + 30 * 3 * 8,
        "effective": 8 * 130 / (100 * 32 + 30 * 8),
    }


def test_what_is_not_named_counts_as_float():
    costs = CostModel(small_setup()).costs(BitAssignment({"gb": 8}))
    assert costs["avg_bits"] == (10 * 32 + 6 * 8) / 16
    assert costs["size"] == 40 + (6 + 4)
    assert costs["bops"] == 100 * 32 * 32 + 30 * 8 * 32


def test_references():
    model = CostModel(small_setup())
    assert model.reference == {"size": 4 * 16, "bops": (100 + 30) * 8 * 8}


@given(st.integers(1, 16))
def test_packed_bytes_rounds_up(bits):
    point = small_setup().points["b"]
    assert 8 * (packed_bytes(point, bits) - 4) - 6 * bits in range(8)


def option_costs(model, kind):
    """What each option (group, width) adds to a cost, the other groups at their lowest widths."""
    lowest = BitAssignment.extreme(model.setup, 0)
    at_lowest = model.costs(lowest)[kind]
    raised = {
        (group, bits): BitAssignment({**lowest.bits, group: bits}) for group, bits in model.setup.options()
    }
    return {option: model.costs(assignment)[kind] - at_lowest for option, assignment in raised.items()}


@given(setups(), st.data())
def test_separable_option_costs_add_up(setup, data):
    model = CostModel(setup)
    assignment = data.draw(assignments(setup))
    costs = model.costs(assignment)
    for kind in ("avg_bits", "act_bits", "size"):
        options = option_costs(model, kind)
        total = model.lowest[kind] + sum(options[option] for option in assignment.bits.items())
        assert total == pytest.approx(costs[kind], rel=1e-12)
    options = option_costs(model, "bops")
    total = model.lowest["bops"] + sum(options[option] for option in assignment.bits.items())
    assert total <= costs["bops"] * (1 + 1e-12)


@given(setups(), st.data())
def test_costs_grow_with_every_width(setup, data):
    model = CostModel(setup)
    low, high = data.draw(assignments(setup)), data.draw(assignments(setup))
    upper = BitAssignment({g: max(bits, high.bits[g]) for g, bits in low.bits.items()})
    for kind, cost in model.costs(low).items():
        if kind == "effective":  # the more, the smaller the model
            assert model.lowest[kind] <= model.costs(upper)[kind] <= cost <= model.highest[kind]
            continue
        assert model.lowest[kind] <= cost <= model.costs(upper)[kind] <= model.highest[kind]


def measured_setup(levels):
    tensors = (
        LiveTensor("in", 7, "x", 0, 3),
        LiveTensor("float", 2, "", 1, 2),
        LiveTensor("late", 11, "x", 3, 4),
    )
    profile = LatencyProfile({"a": levels, "b": levels}, other_seconds=0.5)
    return replace(small_setup(), tensors=tensors, latency=profile)


def test_memory_is_the_fullest_step():
    model = CostModel(measured_setup({"float": 3, "8": 2}))
    # Steps 1 and 2: 7 values of x and 2 floats; step 3: 18 of x in two tensors, each in whole bytes.
    for bits, expected in ((8, 7 + 11), (4, max(4 + 8, 4 + 6)), (2, max(2 + 8, 2 + 3))):
        assert model.costs(BitAssignment({"gx": bits}))["activation_memory"] == expected
    assert model.reference["activation_memory"] == 4 * 18


def test_latency_takes_the_measured_level_else_that_of_8_bits():
    model = CostModel(measured_setup({"float": 3, "8": 2, "w3a4": 1}))
    assert model.costs(BitAssignment({}))["latency"] == 6.5
    # a reads float; b reads x.
    assert model.costs(BitAssignment({"ga": 4, "gx": 8, "gb": 3}))["latency"] == 0.5 + 3 + 2
    assert model.costs(BitAssignment({"ga": 2, "gx": 4, "gb": 3}))["latency"] == 0.5 + 3 + 1
    assert (model.lowest["latency"], model.highest["latency"]) == (4.5, 5.5)
    assert model.reference["latency"] == 6.5


@pytest.mark.parametrize(
    "levels", [{"8": 1.0}, {"float": 1.0}, {"float": 1.0, "8": -1.0}, {"float": 1.0, "8": float("nan")}]
)
def test_a_profile_with_a_hole_is_refused(levels):
    with pytest.raises(ConfigError, match="'fc'"):
        LatencyProfile({"fc": levels})


def test_an_asymmetric_weight_stores_its_zero_points():
    point = small_setup().points["a"]
    asymmetric = replace(point, spec=QuantizerSpec("asymmetric"))
    assert packed_bytes(asymmetric, 4) == packed_bytes(point, 4) + 2
    assert packed_bytes(asymmetric, 32) == packed_bytes(point, 32)
