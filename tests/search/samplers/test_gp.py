import pytest

from raysearch.records import CostModel
from raysearch.search import BudgetSolver, OptionSpace, make_limits, make_surrogate
from raysearch.search.samplers.make import SamplerInputs, make_samplers
from tests.contracts.sampler_contract import BUDGETS, SamplerContract


class TestGp(SamplerContract):
    sampler = "gp"
    num_trials = 12
    first_resumed = 1

    def test_it_warns_where_it_is_slow(self):
        setup = self.problem.setup
        space = OptionSpace(setup)
        solver = BudgetSolver(space, make_limits(space, BUDGETS, CostModel(setup)))
        scores = make_surrogate("response", self.problem.table, space)
        with pytest.warns(UserWarning, match="'gp' with 101 trials"):
            make_samplers("gp", SamplerInputs(scores, solver, seed=0, num_trials=101))
