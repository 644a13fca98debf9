import numpy as np
import pytest

from raysearch.errors import BudgetError
from raysearch.records import CostModel, parse_budgets
from raysearch.search import BudgetSolver, OptionSpace, make_limits, make_surrogate
from raysearch.search.warm_starts import FRACTIONS, warm_starts
from tests.support.search_problems import make_setup, make_table


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts", [["avg_bits<=5"], ["avg_bits<=5", "bops<=50%"], ["size<=60%", "act_bits<=6"]]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_at_every_share_of_the_budgets_each_is_the_exact_optimum_of_its_surrogate(texts, seed):
    setup = make_setup(4, (2, 4, 8), (4, 8), seed)
    space, table = OptionSpace(setup), make_table(setup, seed)
    solver = BudgetSolver(space, make_limits(space, parse_budgets(texts), CostModel(setup)))
    response = make_surrogate("response", table, space)
    starts, _ = warm_starts(table, response, solver)
    found = {start.source: start.choices for start in starts}
    seen = 0
    for fraction in (1.0, *FRACTIONS):
        try:
            scaled = solver.scaled(fraction)
        except BudgetError:
            continue
        every = scaled.feasible_choices(100_000)
        for name in ("quadratic", "additive", "hawq", "weight-error", "single-loss"):
            choices = found[name if fraction == 1 else f"{name} {fraction:.0%}"]
            assert scaled.is_feasible(choices)
            if name == "quadratic":
                best, value = response.predict(every).min(), response.predict(choices)
            else:
                costs = make_surrogate("response" if name == "additive" else name, table, space).option_costs
                best, value = space.take(costs, every).sum(axis=1).min(), space.take(costs, choices).sum()
            # The mixed-integer program of several budgets stops at a gap of 1e-4.
            assert value <= best * (1 + (1e-9 if scaled.is_single else 1e-4)) + 1e-15, (name, fraction)
            seen += 1
    assert seen >= 10


def test_the_tightest_share_comes_last_and_none_is_required():
    setup = make_setup(4, (2, 4, 8), (8,))
    space, table = OptionSpace(setup), make_table(setup)
    solver = BudgetSolver(space, make_limits(space, parse_budgets(["avg_bits<=6"]), CostModel(setup)))
    starts, _ = warm_starts(table, make_surrogate("hawq", table, space), solver)
    shares = [int(s.source.split()[-1].rstrip("%")) for s in starts if not s.required]
    assert shares == sorted(shares, reverse=True)
    assert [s.required for s in starts] == sorted((s.required for s in starts), reverse=True)
    assert {s.source for s in starts if s.required} >= {"quadratic", "hawq", "additive", "greedy"}
    assert np.all([solver.is_feasible(s.choices) for s in starts])
