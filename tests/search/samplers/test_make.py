"""The names of samplers and surrogates in the settings are those that there are."""

from __future__ import annotations

import pytest

from raysearch.records import CostModel, parse_budgets
from raysearch.search import SAMPLERS, SURROGATES, BudgetSolver, OptionSpace, make_limits, make_surrogate
from raysearch.search.optuna_bridge import quiet_optuna
from raysearch.search.samplers import SamplerInputs, check_sampler, make_samplers
from tests.support.search_problems import make_setup, make_table

SETUP = make_setup(2, (2, 4))
TABLE = make_table(SETUP, is_rounded=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_the_settings_is_made(name):
    space = OptionSpace(SETUP)
    solver = BudgetSolver(space, make_limits(space, parse_budgets(["avg_bits<=3.5"]), CostModel(SETUP)))
    inputs = SamplerInputs(make_surrogate("response", TABLE, space), solver, seed=0, num_trials=10)
    check_sampler(name)
    with quiet_optuna():
        assert make_samplers(name, inputs)(0) is not None


@pytest.mark.parametrize("name", [name for name in SURROGATES if name != "fisher"])
def test_every_surrogate_of_the_settings_is_made(name):
    surrogate = make_surrogate(name, TABLE, OptionSpace(SETUP))
    assert surrogate.name == name
    assert (surrogate.option_costs[surrogate.space.valid & surrogate.space.is_weight[:, None]] > 0).all()
