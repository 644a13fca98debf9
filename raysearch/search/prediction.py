"""The best assignment by a prediction alone: nothing is measured, so no study is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raysearch.records import (
    Budget,
    CostModel,
    QuantizerSetup,
    SearchTrial,
    SensitivityTable,
)
from raysearch.search.evaluator import Measured
from raysearch.search.problem.limits import make_limits
from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.search.solvers.knapsack import FINE_STEPS
from raysearch.search.summary import best_of
from raysearch.search.trials import TrialMaker
from raysearch.search.warm_starts import NamedChoices, required_starts


def best_predicted(
    table: SensitivityTable, setup: QuantizerSetup, budgets: Sequence[Budget], surrogate: str
) -> SearchTrial:
    """The assignment of least prediction within all budgets.

    Work: of an additive surrogate one exact solution; of `response` the required warm starts of a search.

    Args:
        table: what every option does alone and in pairs.
        setup: groups and their widths.
        budgets: limits that must all hold, after `check_budgets`.
        surrogate: one of `SURROGATES`.

    Returns:
        A trial whose `value` and `predicted` are both the prediction.

    Raises:
        ConfigError: the surrogate is unknown.
        BudgetError: no assignment meets the budgets.
        StorageError: the table is of another setup.
    """
    model = CostModel(setup)
    maker = TrialMaker.of(table, model, budgets, surrogate)
    solver = BudgetSolver(maker.space, make_limits(maker.space, budgets, model))
    trials = []
    for number, (source, choices) in enumerate(_proposals(table, maker, solver)):
        predicted = float(maker.surrogate.predict(choices))
        trials.append(maker.make(number, maker.space.assignment(choices), source, Measured(predicted)))
    return best_of(trials)


def _proposals(table: SensitivityTable, maker: TrialMaker, solver: BudgetSolver) -> Iterator[NamedChoices]:
    surrogate = maker.surrogate
    if surrogate.gram is None:
        fine = solver.scaled(1.0, FINE_STEPS)
        yield surrogate.name, fine.exact(surrogate.option_costs).choices
        yield "greedy", solver.greedy(surrogate.option_costs)
        return
    starts, _ = required_starts(table, surrogate, solver)
    yield from starts
