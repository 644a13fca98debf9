from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.errors import BudgetError
from raysearch.search.solvers.knapsack import Knapsack, lagrange


@st.composite
def instances(draw):
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    unit = draw(st.sampled_from([1, 8, 10**14]))
    entries = st.integers(0, 40).map(lambda size: size * unit)
    sizes = np.array(
        draw(st.lists(st.lists(entries, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    )
    valid = np.array(
        draw(
            st.lists(
                st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=rows, max_size=rows
            )
        )
    )
    valid[:, 0] = True
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    costs = rng.choice([-1.0, 0.0, 0.25, 3.0, 7.5], size=sizes.shape) * rng.choice([1, rng.uniform()])
    least = sum(int(row[ok].min()) for row, ok in zip(sizes, valid, strict=True))
    return sizes, valid, costs, least + draw(st.integers(0, 60)) * unit + draw(st.integers(0, unit - 1))


def brute_force(sizes, valid, costs, capacity):
    rows = range(len(sizes))
    options = [np.flatnonzero(ok) for ok in valid]
    feasible = [c for c in product(*options) if sum(int(sizes[r, c[r]]) for r in rows) <= capacity]
    return min(sum(costs[r, c[r]] for r in rows) for c in feasible)


@given(instances())
def test_exact_where_the_sizes_have_a_common_unit(instance):
    sizes, valid, costs, capacity = instance
    knapsack = Knapsack(sizes, valid, capacity)
    assert knapsack.exact
    choices = knapsack.solve(costs)
    rows = np.arange(len(sizes))
    assert valid[rows, choices].all()
    assert sizes[rows, choices].sum() <= capacity
    best = brute_force(*instance)
    assert costs[rows, choices].sum() == pytest.approx(best)
    dual = lagrange(costs, sizes, valid, capacity)
    rounding = 1e-14 * np.abs(costs).sum()  # of the brute force's own sums
    assert dual.bound <= best + rounding
    assert dual.feasible_cost >= best - rounding


def test_the_dual_bounds_the_optimum_where_price_times_capacity_is_large():
    base = 10**14
    sizes = np.array([[base, base + 1]])
    dual = lagrange(np.array([[5.9329, 0.1]]), sizes, sizes > 0, base)
    assert dual.bound <= 5.9329
    assert dual.bound == pytest.approx(5.9329)
    assert dual.feasible_cost == 5.9329


@given(instances(), st.integers(10**12, 10**16), st.integers(0, 2**32))
def test_the_dual_does_not_depend_on_what_every_option_of_a_group_takes(instance, base, seed):
    sizes, valid, _, capacity = instance
    costs = np.random.default_rng(seed).uniform(0, 10, sizes.shape)
    dual = lagrange(costs, sizes, valid, capacity)
    assert lagrange(costs, sizes + base, valid, capacity + base * len(sizes)) == dual
    best = brute_force(sizes, valid, costs, capacity)
    assert dual.bound <= best + 1e-14 * costs.sum()
    assert dual.feasible_cost >= best - 1e-14 * costs.sum()


@given(instances())
def test_a_coarse_grid_is_feasible_and_bounded(instance):
    sizes, valid, costs, capacity = instance
    knapsack = Knapsack(sizes, valid, capacity, num_steps=3)
    choices = knapsack.solve(costs)
    rows = np.arange(len(sizes))
    assert sizes[rows, choices].sum() <= capacity
    best = brute_force(*instance)
    assert costs[rows, choices].sum() >= best - 1e-9


def test_no_slack_leaves_the_smallest():
    sizes = np.array([[3, 5], [7, 2]])
    choices = Knapsack(sizes, sizes > 0, 5).solve(np.array([[9.0, 0.0], [0.0, 9.0]]))
    assert choices.tolist() == [0, 1]


def test_ties_go_to_the_wider():
    sizes = np.array([[2, 4, 8]])
    assert Knapsack(sizes, sizes > 0, 5).solve(np.zeros((1, 3))).tolist() == [1]


def test_below_the_smallest_names_both_numbers():
    sizes = np.array([[3, 5]])
    with pytest.raises(BudgetError, match=r"allows 2, the least is\s3"):
        Knapsack(sizes, sizes > 0, 2)


def test_costs_must_be_finite():
    sizes = np.array([[3, 5]])
    with pytest.raises(ValueError, match="finite"):
        Knapsack(sizes, sizes > 0, 4).solve(np.array([[0.0, np.nan]]))
