import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.records import BitAssignment, CostModel, packed_bytes

from .samples import assignments, setups, small_setup


def test_costs_by_hand():
    costs = CostModel(small_setup()).costs(BitAssignment({"ga": 4, "gx": 8, "gb": 3}))
    assert costs == {
        "avg_bits": (10 * 4 + 6 * 3) / 16,
        "act_bits": 8.0,
        # 40 bits in 5 bytes and two scales; 18 bits in 3 bytes and one scale.
        "size": (5 + 8) + (3 + 4),
        # a is fed by float, b by x at 8 bits.
        "bops": 100 * 4 * 32 + 30 * 3 * 8,
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


@given(setups(), st.data())
def test_separable_option_costs_add_up(setup, data):
    model = CostModel(setup)
    assignment = data.draw(assignments(setup))
    costs = model.costs(assignment)
    for kind in ("avg_bits", "act_bits", "size"):
        options = model.option_costs(kind)
        total = model.lowest[kind] + sum(options[option] for option in assignment.bits.items())
        assert total == pytest.approx(costs[kind], rel=1e-12)
    options = model.option_costs("bops")
    total = model.lowest["bops"] + sum(options[option] for option in assignment.bits.items())
    assert total <= costs["bops"] * (1 + 1e-12)


@given(setups(), st.data())
def test_costs_grow_with_every_width(setup, data):
    model = CostModel(setup)
    low, high = data.draw(assignments(setup)), data.draw(assignments(setup))
    upper = BitAssignment({g: max(bits, high.bits[g]) for g, bits in low.bits.items()})
    for kind, cost in model.costs(low).items():
        assert model.lowest[kind] <= cost <= model.costs(upper)[kind] <= model.highest[kind]
