"""Connected components against the closure of the links by hand."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.records import components
from raysearch.records.components import connected_components

links = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)))


def test_example_in_the_docstring_holds():
    assert doctest.testmod(components).failed == 0


@given(links, st.permutations(range(10)))
def test_what_is_linked_is_together_and_in_order(pairs, items):
    result = connected_components(items, pairs)
    together = {item: {item} for item in items}
    for _ in items:
        for one, other in pairs:
            together[one] |= together[other]
            together[other] |= together[one]
    assert [set(component) for component in result] == [together[component[0]] for component in result]
    place = {item: index for index, item in enumerate(items)}
    assert sorted(item for component in result for item in component) == list(range(10))
    assert [component[0] for component in result] == sorted((c[0] for c in result), key=place.__getitem__)
    for component in result:
        assert list(component) == sorted(component, key=place.__getitem__)


@given(links)
def test_the_order_of_the_links_does_not_matter(pairs):
    turned = [(other, one) for one, other in reversed(pairs)]
    assert connected_components(range(10), pairs) == connected_components(range(10), turned)


def test_a_link_to_nothing_is_refused():
    with pytest.raises(KeyError):
        connected_components("ab", [("a", "c")])
