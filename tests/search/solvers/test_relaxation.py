import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.records import CostModel, parse_budgets
from raysearch.search import BudgetSolver, OptionSpace, make_limits
from raysearch.search.solvers.milp import solve_milp
from raysearch.search.solvers.relaxation import relax
from tests.support.search_problems import make_hardware_setup, make_setup

from .test_budget_solver import instances, parts


@given(instances(), st.sampled_from([0.0, 0.1, 0.5, 2.0]))
@settings(max_examples=40, deadline=None)
def test_the_bound_holds_and_no_choice_within_the_room_is_left_out(instance, room):
    setup, model, budgets, seed = instance
    space, solver = parts(setup, model, budgets)
    costs = np.random.default_rng(seed).exponential(size=space.valid.shape)
    costs[~space.valid] = 0.0
    feasible = solver.feasible_choices(100_000)
    values = costs[space.rows, feasible].sum(axis=1)
    found = relax(space, solver.limits, costs)
    assert found is not None
    assert found.bound <= values.min()
    kept, edges = found.within(room)
    products = set(zip(edges.first.tolist(), edges.second.tolist(), strict=True))
    for choices in feasible[values <= found.bound + room - 1e-9]:
        assert kept[space.rows, choices].all()
        flat = space.flat(choices)
        assert {(int(flat[i]), int(flat[j])) for i, j in edges.pairs} <= products


def test_every_kept_option_has_a_kept_product_with_each_group_it_is_coupled_with():
    setup = make_setup(30, (2, 3, 4, 8), (2, 4, 8), 3)
    space, model = OptionSpace(setup), CostModel(setup)
    limits = make_limits(space, parse_budgets(["bops<=30%", "avg_bits<=4.5"]), model)
    costs = np.random.default_rng(0).lognormal(0, 2, (len(space.rows), 1)) * 4.0**-space.widths
    found = relax(space, limits, costs)
    kept, edges = found.within(0.02 * found.bound)
    assert 0 < kept.sum() < space.valid.sum()
    for first, second in edges.pairs:
        which = [i for i, pair in enumerate(edges.pairs) if pair == (first, second)]
        mine = np.isin(edges.which, which)
        width = space.widths.shape[1]
        assert set(edges.first[mine] % width) == set(np.flatnonzero(kept[first]))
        assert set(edges.second[mine] % width) == set(np.flatnonzero(kept[second]))


@pytest.mark.parametrize("texts", [["bops<=30%", "avg_bits<=4.5"], ["effective>=1.6"]])
def test_what_the_relaxation_leaves_out_changes_no_optimum_of_coupled_budgets(texts):
    setup = make_setup(20, (2, 3, 4, 8), (2, 4, 8), 5)
    space, model = OptionSpace(setup), CostModel(setup)
    limits = make_limits(space, parse_budgets(texts), model)
    costs = np.random.default_rng(0).lognormal(0, 2, (len(space.rows), 1)) * 4.0**-space.widths
    costs[~space.valid] = 0.0
    found = BudgetSolver(space, limits).exact(costs)
    whole = solve_milp(space, limits, costs, rel_gap=0.0)
    assert found.lower_bound <= whole.value * (1 + 1e-9)
    assert found.value <= whole.value * (1 + 1e-4)
    assert found.gap <= 1e-3


def test_of_limits_that_nothing_keeps_there_is_none():
    setup = make_hardware_setup(2, 1)
    space, model = OptionSpace(setup), CostModel(setup)
    (limit, *_) = make_limits(space, parse_budgets(["avg_bits<=4"]), model)
    assert relax(space, [limit.scaled(0.01)], np.zeros(space.valid.shape)) is None
