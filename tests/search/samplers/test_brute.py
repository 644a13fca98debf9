import pytest

from raysearch.errors import ConfigError
from raysearch.records import CostModel, is_feasible
from tests.contracts.sampler_contract import BUDGETS, Problem, SamplerContract
from tests.support.search_problems import every_assignment

SMALL = Problem.of_layers(3)
FEASIBLE = {
    assignment.digest()
    for assignment in every_assignment(SMALL.setup)
    if is_feasible(BUDGETS, CostModel(SMALL.setup), assignment)
}


class TestBrute(SamplerContract):
    sampler = "brute"
    problem = SMALL
    num_trials = len(FEASIBLE)
    depends_on_seed = False

    def test_it_measures_every_feasible_assignment_and_no_other(self, watched):
        assert {trial.assignment.digest() for trial in watched.result.trials} == FEASIBLE
        assert len(watched.result.trials) == len(FEASIBLE)

    def test_too_few_trials_are_refused(self):
        few = len(FEASIBLE) - 1
        with pytest.raises(ConfigError, match=rf"all {len(FEASIBLE)} assignments.*num_trials is {few}"):
            self.search(num_trials=few)

    def test_too_many_assignments_are_refused(self):
        with pytest.raises(ConfigError, match="lists every assignment"):
            Problem.of_layers(12, (2, 3, 4, 8)).search("brute")
