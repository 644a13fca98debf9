"""The search over schemes, which no cost orders, against every assignment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.config import SearchConfig
from raysearch.errors import BudgetError
from raysearch.records import (
    CostModel,
    Scheme,
    is_feasible,
    parse_budgets,
)
from raysearch.search import check_budgets, search_assignment, solve_ratio
from raysearch.search.evaluator import PlainEvaluator
from raysearch.search.optuna_bridge import write_journal
from raysearch.search.problem.limits import make_limits
from raysearch.search.problem.space import OptionSpace
from raysearch.search.problem.surrogates import make_surrogate
from raysearch.search.solvers.budget_solver import BudgetSolver
from tests.support.scheme_setups import scheme_setups, with_schemes
from tests.support.search_problems import every_assignment, make_setup, make_table

KINDS = st.sampled_from(["bpw", "size", "avg_bits"])


@given(scheme_setups(max_layers=2), KINDS, st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=40)
def test_exact_solutions_are_the_best_of_all_assignments(setup, kind, share, seed):
    model = CostModel(setup)
    low, high = model.lowest[kind], model.highest[kind]
    budgets = parse_budgets([f"{kind}<={low + share * (high - low):.12g}" + ("B" if kind == "size" else "")])
    every = [a for a in every_assignment(setup) if is_feasible(budgets, model, a)]
    if not every:
        with pytest.raises(BudgetError):
            check_budgets(budgets, setup)
        return
    check_budgets(budgets, setup)
    table = make_table(setup, seed)
    space = OptionSpace(setup)
    solver = BudgetSolver(space, make_limits(space, budgets, model))
    surrogate = make_surrogate("single-loss", table, space)
    values = [float(surrogate.predict(space.choices(assignment))) for assignment in every]
    solution = solver.exact(surrogate.option_costs)
    assert is_feasible(budgets, model, space.assignment(solution.choices))
    assert solution.value == pytest.approx(min(values), rel=1e-9)
    assert solution.lower_bound <= min(values) * (1 + 1e-9)
    assert is_feasible(budgets, model, space.assignment(solver.heuristic(surrogate.option_costs)))


@pytest.mark.parametrize("sampler", ["thompson", "tpe", "nsga2", "random"])
def test_every_sampler_keeps_a_budget_on_the_bits_stored(sampler, tmp_path):
    setup = with_schemes(make_setup(3), "2g4a", "3g4", "3", "4", "8")
    table = make_table(setup)
    budgets = parse_budgets(["bpw<=9"])
    rows = {option: row for row, option in enumerate(table.effects)}

    def measure(assignments):
        values = {}
        for number, assignment in assignments.items():
            chosen = [rows[option] for option in assignment.schemes.items()]
            values[number] = float(table.gram[np.ix_(chosen, chosen)].sum())
        return values

    result = search_assignment(
        table, setup, budgets, PlainEvaluator(measure), SearchConfig(num_trials=24, sampler=sampler)
    )
    model = CostModel(setup)
    assert all(is_feasible(budgets, model, trial.assignment) for trial in result.trials)
    assert all(trial.assignment.check(setup) is None for trial in result.trials)
    assert {"uniform 3", "uniform 3g4"} & set(result.reasons)
    write_journal(tmp_path / "study.journal", result.trials, setup, budgets)


def test_a_compression_ratio_takes_the_better_scheme_of_a_width():
    setup = with_schemes(make_setup(2), "2g4", "2", "4", "8g4", "8")
    names = [name for name in setup.groups if setup.group_kind(name) == "weight"]
    omegas = {(name, scheme): 1.0 / scheme.num_bits for name, scheme in setup.options()}
    omegas |= {(name, Scheme.of("8g4")): 0.01 for name in names}
    assignment = solve_ratio(setup, omegas, 0.27)
    assignment.check(setup)
    assert {str(assignment.schemes[name]) for name in names} == {"8g4"}
