"""The few assignments to measure when a budget changes: optima of all surrogates, and neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.config import SearchConfig
from raysearch.errors import ConfigError, DataError
from raysearch.records import BitAssignment, Budget, CostModel, QuantizerSetup, SearchTrial, SensitivityTable
from raysearch.search.evaluator import Evaluator
from raysearch.search.problem.limits import make_limits
from raysearch.search.problem.space import IntArray
from raysearch.search.problem.surrogates import SURROGATES, Surrogate, make_surrogate
from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.search.solvers.local_search import descend
from raysearch.search.summary import completed, ranked
from raysearch.search.trials import TrialMaker
from raysearch.search.warm_starts import NamedChoices


def measured_candidates(
    table: SensitivityTable,
    setup: QuantizerSetup,
    budgets: Sequence[Budget],
    evaluator: Evaluator,
    settings: SearchConfig,
    *,
    first: BitAssignment,
    count: int = 4,
) -> tuple[SearchTrial, ...]:
    """Measure `first`, the other surrogates' optima and the best neighbours of `first`, `count` in all.

    A neighbour differs in one group, or in two of which one goes up and one down; it keeps every budget, and
    those of the least prediction come first. Work: `count` assignments measured on all samples.

    Args:
        table: what every option does alone and in pairs.
        setup: groups and their widths.
        budgets: limits that must all hold.
        evaluator: measures the assignments.
        settings: the surrogate, whose answer `first` is and whose predictions order the neighbours, and
            whether more of the measured value is better.
        first: the surrogate's own answer.
        count: the most assignments.

    Returns:
        The complete trials, best measured value first.

    Raises:
        ConfigError: `count` is below 1, or the surrogate is unknown.
        BudgetError: the budgets cannot be met.
    """
    if count < 1:
        raise ConfigError(f"{count} assignments cannot be measured; take at least 1.")
    model = CostModel(setup)
    maker = TrialMaker.of(table, model, budgets, settings.surrogate)
    solver = BudgetSolver(maker.space, make_limits(maker.space, budgets, model))
    start = maker.space.choices(first)
    proposals = [(settings.surrogate, start), *_optima(table, solver, but=settings.surrogate)]
    proposals += [("neighbour", choices) for choices in _neighbours(maker.surrogate, solver, start, count)]
    distinct: dict[bytes, NamedChoices] = {}
    for source, choices in proposals:
        distinct.setdefault(choices.tobytes(), (source, choices))
    chosen = list(distinct.values())[:count]
    assignments = {number: maker.space.assignment(choices) for number, (_, choices) in enumerate(chosen)}
    results = evaluator(assignments)
    trials = []
    for number, (source, _) in enumerate(chosen):
        trials.append(maker.make(number, assignments[number], source, results[number]))
    return tuple(ranked(completed(trials), settings.maximize))


def _optima(table: SensitivityTable, solver: BudgetSolver, but: str) -> list[NamedChoices]:
    """The optima of the other surrogates that the table can give."""
    optima = []
    for name in SURROGATES:
        if name == but:
            continue
        try:
            surrogate = make_surrogate(name, table, solver.space)
        except (ConfigError, DataError):
            continue  # of another matrix, or not finite
        best = solver.exact(surrogate.option_costs).choices
        optima.append((name, descend(surrogate, solver, best)))
    return optima


def _neighbours(surrogate: Surrogate, solver: BudgetSolver, start: IntArray, count: int) -> list[IntArray]:
    """The `count` feasible neighbours of least prediction."""
    options = np.argwhere(solver.space.valid).tolist()
    singles = [(row, column) for row, column in options if column != start[row]]
    neighbours = [_moved(start, [move]) for move in singles]
    # Of the swaps, those of neighbouring widths: their number grows with the square of the groups.
    up = [(row, column) for row, column in singles if column == start[row] + 1]
    down = [(row, column) for row, column in singles if column == start[row] - 1]
    for raised in up:
        for lowered in down:
            neighbours.append(_moved(start, [raised, lowered]))
    if not neighbours:
        return []
    feasible = solver.keep_feasible(np.stack(neighbours))
    if not len(feasible):
        return []
    order = np.argsort(surrogate.predict(feasible), kind="stable")[:count]
    return [feasible[index] for index in order]


def _moved(start: IntArray, moves: Sequence[tuple[int, int]]) -> IntArray:
    """Choices with other options of some groups."""
    choices = start.copy()
    for row, column in moves:
        choices[row] = column
    return choices
