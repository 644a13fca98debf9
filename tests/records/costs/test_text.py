import doctest

import pytest

from raysearch.records import COST_KINDS, BitAssignment, CostModel
from raysearch.records.costs import text as formats
from raysearch.records.costs.text import cost, cost_axis, cost_name, duration, number, signed, size
from tests.support.run_records import make_setup


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(formats).failed == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "True"),
        (-3, "−3"),
        (1e-7, "1e−07"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
        (0.0, "0"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_units():
    assert (size(2**31), size(0), size(float("nan"))) == ("2.00 GiB", "0 B", "–")
    assert [cost("bops", value) for value in (2.5e12, 12.0)] == ["2.50 T", "12"]
    assert [cost("latency", value) for value in (2.0, 2e-9, float("inf"))] == ["2 s", "2 ns", "∞"]
    assert [cost(kind, 1536.0) for kind in ("size", "activation_memory")] == ["1.50 KiB"] * 2
    assert (cost("effective", 1.5), cost("effective", float("nan"))) == ("1.5x", "–")
    assert (duration(1.23), duration(150), duration(9000)) == ("1.2 s", "2.5 min", "2.5 h")
    assert (signed(0.5), signed(-0.5), signed(0.0), signed(float("nan"))) == ("+0.5", "−0.5", "0", "–")


def test_every_kind_of_cost_has_a_name_and_an_axis():
    setup = make_setup(3)
    for kind in CostModel(setup).costs(BitAssignment.extreme(setup, -1)):
        assert cost_name(kind) != kind or kind in ("size", "latency")
        label, unit = cost_axis(kind)
        assert label.startswith(cost_name(kind))
        assert unit > 0


@pytest.mark.parametrize("kind", COST_KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_of_cost_is_printed_in_its_units(kind):
    units = dict(kind.display.units)
    assert list(units.values()) == sorted(units.values())
    assert kind.display.axis in ("", *units)
    for unit, factor in units.items():
        text = cost(kind.name, 1.5 * factor)
        assert text in (f"1.5{unit}", f"1.50{unit}")


def test_a_cost_of_another_version_is_printed_without_a_unit():
    assert cost("energy", 1500.0) == "1,500"
    assert (cost_name("energy"), cost_axis("energy")) == ("energy", ("energy", 1.0))
