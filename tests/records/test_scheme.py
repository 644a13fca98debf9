"""Schemes as text, numbers and records."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.errors import PlacementError
from raysearch.records.scheme import Scheme

SCHEMES = st.builds(Scheme, st.integers(2, 8), st.integers(0, 10**6), st.booleans())


@given(SCHEMES)
def test_what_is_written_is_read_back(scheme):
    assert Scheme.of(str(scheme)) == scheme
    assert Scheme.of(scheme.as_json) == scheme
    assert Scheme.of(scheme) is scheme


@given(SCHEMES)
def test_a_plain_scheme_is_a_number_in_json(scheme):
    assert isinstance(scheme.as_json, int) == scheme.is_plain
    assert scheme.is_plain == (scheme == Scheme(scheme.num_bits))


@given(st.text(alphabet="0123456789ga -+.", max_size=8))
def test_any_text_is_read_as_it_is_written_or_refused(text):
    with contextlib.suppress(PlacementError):
        assert str(Scheme.of(text)) == text


@pytest.mark.parametrize(
    "value", ["", "4g", "g64", "4a64", "04", "4g064", "4G64", "4 ", "four", True, 4.0, None]
)
def test_what_is_no_scheme_is_refused_with_how_to_write_one(value):
    with pytest.raises(PlacementError, match="4g64"):
        Scheme.of(value)


@pytest.mark.parametrize("value", [1, 9, "16g128", "1a"])
def test_widths_outside_2_to_8_are_refused(value):
    with pytest.raises(PlacementError, match="2–8"):
        Scheme.of(value)


def test_a_type_of_gguf_is_a_scheme_of_its_name():
    scheme = Scheme.of("Q6_K")
    assert scheme == Scheme.of("q6_k") == Scheme.of(scheme.as_json)
    assert (scheme.num_bits, scheme.group_size, str(scheme)) == (6, 16, "q6_k")
    assert not scheme.is_plain
    assert Scheme.of("4g32") != Scheme.of("q4_0")
    with pytest.raises(PlacementError, match="write 'q6_k' for the scheme"):
        Scheme(5, 16, block_type="q6_k")


def test_schemes_ascend_by_width_then_by_how_much_they_store_beside_the_codes():
    ascending = ["2g16", "3", "3a", "3g64", "3g64a", "3g32", "q3_k", "8"]
    assert [str(scheme) for scheme in sorted(map(Scheme.of, reversed(ascending)))] == ascending


@given(SCHEMES)
def test_a_plain_scheme_is_the_key_of_its_width(scheme):
    table = {scheme.num_bits: "width"}
    assert (scheme == scheme.num_bits) == (scheme in table) == scheme.is_plain
    assert scheme != str(scheme)


@given(SCHEMES, st.lists(SCHEMES, min_size=1, max_size=5))
def test_the_nearest_scheme_is_the_same_one_else_of_the_nearest_width(scheme, others):
    assert scheme.nearest([*others, scheme]) == scheme
    least = min(abs(other.num_bits - scheme.num_bits) for other in others)
    assert abs(scheme.nearest(others).num_bits - scheme.num_bits) == least
    assert scheme.nearest(others) == scheme.nearest(others[::-1])


@pytest.mark.parametrize("value", [[], {}, None, 4.0, True, [4]])
def test_what_is_no_scheme_is_refused_whatever_its_type(value):
    with pytest.raises(PlacementError, match="is no scheme"):
        Scheme.of(value)
