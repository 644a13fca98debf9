import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.search.solvers.dominance import solve_below, solve_exactly

from .test_knapsack import brute_force, instances


@given(instances())
@settings(max_examples=60)
def test_any_unit_of_size_is_exact(instance):
    sizes, valid, costs, capacity = instance
    if sizes.max() > 10**11 or capacity > 10**14:
        return  # the products below would not fit 64 bits
    odd = sizes * 7919 + np.where(sizes > 0, 1, 0)  # no common divisor left
    room = capacity * 7919 + len(sizes)
    least = np.argmin(np.where(valid, odd, np.iinfo(np.int64).max), axis=1)
    if odd[np.arange(len(odd)), least].sum() > room:
        return
    found = solve_exactly(odd, valid, room, costs, least)
    assert found.value == pytest.approx(brute_force(odd, valid, costs, room))
    assert found.gap == pytest.approx(0, abs=1e-12)


@given(instances())
@settings(max_examples=60)
def test_too_many_partial_solutions_leave_a_valid_bound(instance):
    sizes, valid, costs, capacity = instance
    known = np.argmin(np.where(valid, sizes, np.iinfo(np.int64).max), axis=1)
    found = solve_exactly(sizes, valid, capacity, costs, known, max_partial=1)
    best = brute_force(*instance)
    assert found.lower_bound <= best + 1e-9 <= found.value + 2e-9
    assert sizes[np.arange(len(sizes)), found.choices].sum() <= capacity


@given(instances(), st.integers(10**12, 10**16), st.integers(0, 2**32))
@settings(max_examples=60)
def test_no_optimum_is_pruned_where_sizes_are_large(instance, base, seed):
    sizes, valid, _, capacity = instance
    costs = np.random.default_rng(seed).uniform(0, 10, sizes.shape)
    least = np.argmin(np.where(valid, sizes, np.iinfo(np.int64).max), axis=1)
    small = solve_exactly(sizes, valid, capacity, costs, least)
    assert small.value == pytest.approx(brute_force(sizes, valid, costs, capacity))
    # The optimum's own value is known, so that a bound that is too high prunes it.
    large = solve_below(sizes + base, valid, capacity + base * len(sizes), costs, small.value)
    assert large.value == small.value
    assert large.choices.tolist() == small.choices.tolist()
