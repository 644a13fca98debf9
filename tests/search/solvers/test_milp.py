import subprocess
import sys

import numpy as np
import pytest

from raysearch.errors import BudgetError
from raysearch.records import CostModel, parse_budgets
from raysearch.search import BudgetSolver, OptionSpace, make_limits
from raysearch.search.problem.limits import Limit
from raysearch.search.solvers.milp import solve_milp
from tests.support.search_problems import Divergence, make_hardware_setup, make_setup, make_table, search

NOISY = """
import ctypes, os
from raysearch.search.solvers.milp import quiet_stdout
print("before")
ctypes.CDLL(None).puts(b"kept")
with quiet_stdout():
    ctypes.CDLL(None).puts(b"noise of a library")
    os.write(1, b"noise of a descriptor")
print("after")
"""


@pytest.mark.process
def test_what_a_library_prints_stays_off_standard_output():
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["after", "before", "kept"]


def test_forty_groups_under_three_budgets_are_proven_and_the_same_twice():
    setup = make_setup(20, (2, 3, 4, 5, 6, 8), (2, 4, 8), 0)
    space, model = OptionSpace(setup), CostModel(setup)
    limits = make_limits(space, parse_budgets(["avg_bits<=4.2", "size<=3kB", "bops<=30%"]), model)
    costs = np.random.default_rng(0).lognormal(0, 2, (len(space.rows), 1)) * 4.0**-space.widths
    solver = BudgetSolver(space, limits)
    first, again = solver.exact(costs), solver.exact(costs)
    assert first.choices.tolist() == again.choices.tolist()
    assert first.lower_bound == again.lower_bound
    assert first.gap <= 1e-3
    assert solver.is_feasible(first.choices)
    assert first.value <= float(space.take(costs, solver.heuristic(costs)).sum())


def test_without_a_feasible_assignment_it_says_so():
    setup = make_setup(3)
    space = OptionSpace(setup)
    (limit,) = make_limits(space, parse_budgets(["avg_bits<=4"]), CostModel(setup))
    impossible = Limit("a budget", space, limit.cost, int(limit.use(space.lowest)) - 1)
    with pytest.raises(BudgetError, match="no assignment keeps a budget"):
        solve_milp(space, [impossible], np.zeros(space.valid.shape))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["auto", "tpe", "random"])
def test_a_search_with_coupled_widths_never_breaks_a_pair(sampler):
    setup = make_hardware_setup(3, 4)
    assert setup.broken_pairs({g.id: g.bit_widths[0] for g in setup.groups.values()}), "not all at the lowest"
    model, table = CostModel(setup), make_table(setup)
    limit = (model.lowest["latency"] + 2 * model.highest["latency"]) / 3
    budgets = parse_budgets([f"latency<={limit}s", "avg_bits<=6"])
    found = search(table, setup, budgets, Divergence(table), num_trials=14, sampler=sampler)
    for trial in found.trials:
        trial.assignment.check(setup)
        assert all(excess <= 0 for excess in trial.excess.values())
    assert len(found.trials) > 8
