from dataclasses import replace

import numpy as np
import pytest

from raysearch.records import CostModel, low_rank, parse_budgets
from raysearch.records.low_rank import LowRank
from raysearch.search import BudgetSolver, OptionSpace, make_limits, make_surrogate
from raysearch.search.solvers.local_search import descend
from raysearch.search.solvers.quadratic import bound_convex, bound_cross_terms, solve_quadratic
from tests.support.search_problems import make_hardware_setup, make_setup, make_table


def problem(setup, texts, seed, coupling=1.0):
    space, model = OptionSpace(setup), CostModel(setup)
    surrogate = make_surrogate("response", make_table(setup, seed, coupling), space)
    return surrogate, BudgetSolver(space, make_limits(space, parse_budgets(texts), model))


CASES = [(seed, kind) for seed in range(5) for kind in ("avg_bits<=3.5", "pairs", "bops<=60%")]


@pytest.mark.parametrize(("seed", "kind"), CASES)
def test_small_instances_are_solved_and_proven_as_by_brute_force(seed, kind):
    if kind == "pairs":
        setup = make_hardware_setup(3, seed)
        model = CostModel(setup)
        middle = (model.lowest["latency"] + 2 * model.highest["latency"]) / 3
        texts = ["avg_bits<=6", f"latency<={middle}s"]
    else:
        setup, texts = make_setup(4, (2, 4, 8), (4, 8), seed), [kind]
    surrogate, solver = problem(setup, texts, seed)
    values = surrogate.predict(solver.feasible_choices(10**6))
    found = solve_quadratic(surrogate, solver, seed=seed, num_restarts=2)
    assert solver.is_feasible(found.choices)
    assert found.value == pytest.approx(values.min(), rel=1e-9)
    assert found.gap <= 1e-9
    tolerance = 1e-9 * values.max()
    assert bound_cross_terms(surrogate, solver) <= values.min() + tolerance
    assert bound_convex(surrogate, solver, found.choices) <= values.min() + tolerance


def test_a_large_instance_has_a_bound_and_the_same_answer_twice():
    setup = make_setup(25, (2, 3, 4, 8), (8,), 3)
    surrogate, solver = problem(setup, ["avg_bits<=4"], 3, coupling=0.3)
    first = solve_quadratic(surrogate, solver, num_restarts=4, max_nodes=500)
    again = solve_quadratic(surrogate, solver, num_restarts=4, max_nodes=500)
    assert first.choices.tolist() == again.choices.tolist()
    assert (first.value, first.lower_bound) == (again.value, again.lower_bound)
    assert 0 < first.lower_bound <= first.value
    additive = solver.exact(surrogate.option_costs).choices
    assert first.value <= float(surrogate.predict(additive))


def test_an_indefinite_form_is_still_bounded():
    setup = make_setup(4, (2, 4, 8), (8,), 1)
    surrogate, solver = problem(setup, ["avg_bits<=4"], 1)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(surrogate.gram.shape) * np.abs(surrogate.gram).max() * 0.3
    gram = surrogate.gram + noise + noise.T
    form = type(surrogate)("response", surrogate.space, 0.5 * np.diag(gram).reshape(-1, 3), gram)
    values = form.predict(solver.feasible_choices(10**6))
    found = solve_quadratic(form, solver, num_restarts=2)
    assert found.value == pytest.approx(values.min())
    assert bound_convex(form, solver, found.choices) <= values.min() + 1e-9
    assert bound_cross_terms(form, solver) <= values.min() + 1e-9


@pytest.mark.parametrize("texts", [["avg_bits<=4"], ["avg_bits<=4.5", "bops<=40%"]])
def test_a_factor_gives_what_its_matrix_gives(texts):
    setup = make_setup(6, (2, 4, 8), (4, 8), 4)
    surrogate, solver = problem(setup, texts, 4)
    values, vectors = np.linalg.eigh(surrogate.gram)
    factor = LowRank(vectors * np.sqrt(values.clip(0)))
    form = replace(surrogate, gram=factor)
    every = solver.feasible_choices(10**6)
    exact = surrogate.predict(every)
    assert form.predict(every) == pytest.approx(exact, rel=1e-9)
    rows = [0, 3, 4]
    for ask in (low_rank.row_sums, low_rank.sums_among, low_rank.among):
        assert ask(factor, rows) == pytest.approx(ask(surrogate.gram, rows), abs=1e-9 * exact.max())
    assert low_rank.entry(factor, 1, 2) == pytest.approx(surrogate.gram[1, 2])
    assert low_rank.diagonal(factor) == pytest.approx(np.diag(surrogate.gram))
    assert factor @ np.arange(factor.shape[0]) == pytest.approx(surrogate.gram @ np.arange(factor.shape[0]))
    found = solve_quadratic(form, solver)
    assert solver.is_feasible(found.choices)
    assert found.lower_bound <= exact.min() * (1 + 1e-9)
    assert exact.min() <= found.value * (1 + 1e-9)
    additive = solver.exact(surrogate.option_costs).choices
    assert found.value <= float(surrogate.predict(additive))
    assert found.value <= 1.1 * exact.min()
    # It never ends worse than it began, wherever that is, with costs beside the form too.
    extra = 0.1 * form.option_costs
    for start in every[:: max(1, len(every) // 20)]:
        end = descend(form, solver, start, extra)
        assert solver.is_feasible(end)
        total = [float(form.predict(choices)) + form.space.total(extra, choices) for choices in (end, start)]
        assert total[0] <= total[1] * (1 + 1e-9)
