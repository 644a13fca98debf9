import numpy as np
import pytest
from hypothesis import given, settings
from scipy.optimize import Bounds, LinearConstraint, milp

from raysearch.search.solvers.dominance import solve_exactly
from raysearch.search.solvers.knapsack import Knapsack
from raysearch.search.solvers.milp import quiet_stdout
from tests.support.hawq_v3 import instances as published

from .test_knapsack import brute_force, instances

PUBLISHED = list(published())


def solve(sizes, costs, capacity):
    valid = np.ones(sizes.shape, dtype=bool)
    return solve_exactly(sizes, valid, capacity, costs, Knapsack(sizes, valid, capacity).solve(costs))


def by_milp(instance):
    """The same in HiGHS, to a gap of 0."""
    rows, columns = instance.sizes.shape
    one = np.kron(np.eye(rows), np.ones(columns))
    scale = instance.capacity
    with quiet_stdout():
        found = milp(
            instance.costs.ravel(),
            constraints=[
                LinearConstraint(one, 1, 1),
                LinearConstraint(instance.sizes.ravel() / scale, ub=1 + 1e-12),
            ],
            bounds=Bounds(0, 1),
            integrality=np.ones(rows * columns),
            options={"mip_rel_gap": 0},
        )
    return found.fun


@pytest.mark.parametrize("instance", PUBLISHED, ids=[i.name for i in PUBLISHED])
def test_the_published_instances_of_hawq_v3_are_solved_to_their_optimum(instance):
    found = solve(instance.sizes, instance.costs, instance.capacity)
    rows = np.arange(len(instance.sizes))
    assert instance.sizes[rows, found.choices].sum() <= instance.capacity
    assert found.value == pytest.approx(instance.costs[rows, found.choices].sum(), rel=1e-12)
    assert found.gap == 0.0
    assert found.value == pytest.approx(by_milp(instance), rel=1e-6)
    if instance.name == "resnet50 size .25":
        assert found.value == pytest.approx(0.07495, abs=5e-6)  # less than what was published
    assert len(PUBLISHED) == 18


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
