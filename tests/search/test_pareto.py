"""The front against comparing every pair."""

import doctest

from hypothesis import given
from hypothesis import strategies as st

from raysearch.search import pareto
from raysearch.search.pareto import pareto_front

points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)))


def test_example_in_the_docstring_holds():
    assert doctest.testmod(pareto).failed == 0


@given(points)
def test_exactly_the_points_that_no_other_beats(items):
    front = pareto_front(items, lambda point: point)
    beaten = {(a, b) for a, b in items for c, d in items if c <= a and d <= b and (c, d) != (a, b)}
    assert front == sorted(set(items) - beaten)


@given(points)
def test_of_equal_ones_the_first(items):
    numbered = list(enumerate(items))
    for index, point in pareto_front(numbered, lambda item: item[1]):
        assert index == items.index(point)
