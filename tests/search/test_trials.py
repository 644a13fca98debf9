"""Records of measured assignments, and evaluators that stop nothing."""

from __future__ import annotations

import math

import pytest

from raysearch.records import BitAssignment, CostModel, TrialState, excesses, parse_budgets
from raysearch.search import Measured, PlainEvaluator, make_surrogate
from raysearch.search.trials import TrialMaker
from tests.support.search_problems import make_setup, make_table

SETUP = make_setup(3, (2, 4), (4, 8))
MODEL = CostModel(SETUP)
TABLE = make_table(SETUP)
BUDGETS = parse_budgets(["avg_bits<=3", "size<=40%"])
WIDEST = BitAssignment.extreme(SETUP, -1)


@pytest.mark.parametrize(
    ("measured", "state"),
    [
        (Measured(0.5, 8, {4: 0.4, 8: 0.5}), TrialState.COMPLETE),
        (Measured(0.5, 4, {4: 0.4}, stopped=True), TrialState.PRUNED),
        (Measured(math.inf, 4, {4: math.inf}), TrialState.FAIL),
        (Measured(math.nan, 4, stopped=True), TrialState.FAIL),
    ],
)
def test_a_record_says_what_was_measured_and_what_it_costs(measured, state):
    maker = TrialMaker.of(TABLE, MODEL, BUDGETS, "hawq")
    trial = maker.make(7, WIDEST, "greedy", measured)
    assert (trial.number, trial.assignment, trial.source, trial.state) == (7, WIDEST, "greedy", state)
    assert trial.costs == MODEL.costs(WIDEST)
    assert trial.excess == excesses(BUDGETS, MODEL, trial.costs)
    assert not trial.is_feasible
    surrogate = make_surrogate("hawq", TABLE, maker.space)
    assert trial.predicted == float(surrogate.predict(maker.space.choices(WIDEST)))
    assert (trial.is_complete, trial.is_stopped, trial.has_failed) == tuple(state == s for s in TrialState)
    if trial.has_failed:
        assert math.isnan(trial.value)
        assert trial.rounds == {}
    else:
        assert (trial.value, trial.rounds) == (measured.value, measured.rounds)


def test_a_function_of_values_is_an_evaluator_that_stops_nothing():
    evaluator = PlainEvaluator(lambda batch: {number: 2 * number for number in batch})
    results = evaluator({3: WIDEST, 4: WIDEST}, protected=(3,), best=WIDEST)
    assert results == {3: Measured(6.0), 4: Measured(8.0)}
