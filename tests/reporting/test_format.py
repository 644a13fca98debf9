import doctest

import pytest

from raysearch.reporting import format as formats
from raysearch.reporting.format import number, quantity, seconds, signed, size


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
    assert (size(2e9), size(0), size(float("nan"))) == ("2.00 GB", "0 B", "–")
    assert (quantity("bops", 2.5e12), quantity("bops", 12.0), quantity("size", 1500.0)) == (
        "2.50 T", "12", "1.50 kB",
    )  # fmt: skip
    assert (seconds(1.23), seconds(150), seconds(9000)) == ("1.2 s", "2.5 min", "2.5 h")
    assert (signed(0.5), signed(-0.5), signed(0.0), signed(float("nan"))) == ("+0.5", "−0.5", "0", "–")
