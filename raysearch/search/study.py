"""The search: warm starts first, then ask/tell in fixed batches, every trial within the budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raysearch.config import SearchConfig
from raysearch.errors import BudgetError
from raysearch.records import (
    BitAssignment,
    Budget,
    CostModel,
    QuantizerSetup,
    SearchResult,
    SensitivityTable,
    check_achievable,
)
from raysearch.search.ask_tell import BatchSearch, Schedule, TrialLog
from raysearch.search.evaluator import Evaluator
from raysearch.search.problem.limits import make_limits
from raysearch.search.samplers.make import SamplerInputs, check_sampler, make_samplers
from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.search.summary import summarise, surrogate_agreement
from raysearch.search.trials import TrialMaker
from raysearch.search.warm_starts import distinct, schedule, warm_starts

NUM_LEVELS = 8
"""Limits on the cost of a front between which the sampler changes from trial to trial."""


def search_assignment(
    table: SensitivityTable,
    setup: QuantizerSetup,
    budgets: Sequence[Budget],
    evaluator: Evaluator,
    settings: SearchConfig,
    *,
    seed: int = 0,
    log: TrialLog | None = None,
) -> SearchResult:
    """Find the assignment of best measured value within all budgets.

    The trials depend on the arguments alone, not on when or in which order values arrive; the batch size is
    one of the settings. An assignment is measured once: a repeated proposal is answered from what is known.
    Every trial keeps every budget. The required warm starts (uniform widths that fit, greedy, the optimum of
    every surrogate, the user's own; see `warm_starts`) are measured on all samples, so the result is never
    worse than any of them on the measured objective. Optima at shares of the budgets take every second trial
    after them (`schedule`).

    With `settings.front` the trials spread over that cost's whole range within the budgets, and none is
    stopped early. Otherwise the best `settings.num_finalists` of the stopped assignments, by their estimates,
    are measured on all samples in the end.

    Args:
        table: what every option does alone and in pairs.
        setup: groups and their widths.
        budgets: limits that must all hold.
        evaluator: measures one batch of new assignments; a `Race` stops those that cannot win.
        settings: trials, sampler, surrogate, objective; what asks for the least cost is not looked at.
        seed: the run's seed.
        log: trials of an interrupted run with the same other arguments, and who is told of new ones. Its
            complete batches are replayed, the values of an incomplete one are used when it is asked for
            again, and the search goes on bit for bit as it would have.

    Returns:
        The best trial, all trials, the Pareto front, and what the winner is compared with.

    Raises:
        ConfigError: the sampler is unknown.
        BudgetError: no assignment meets the budgets, or an enqueued one exceeds them.
        StorageError: the logged trials are of another search, or the table of another setup.
        RunError: more than half of the trials failed, or a value is missing.
    """
    check_sampler(settings.sampler)
    model = CostModel(setup)
    check_achievable(budgets, model)
    maker = TrialMaker.of(table, model, budgets, settings.surrogate)
    solver = BudgetSolver(maker.space, make_limits(maker.space, budgets, model))
    enqueued = [BitAssignment(bits) for bits in settings.enqueue]
    starts, optimum = warm_starts(table, maker.surrogate, solver, enqueued, seed)
    plan = schedule(distinct(starts))
    num_required = sum(start.required for start in plan.values())
    total = max(settings.num_trials, num_required)
    levels = _levels(maker, solver, settings.front_kind)
    samplers = make_samplers(settings.sampler, SamplerInputs(maker.surrogate, solver, seed, total, levels))
    search = BatchSearch(solver, maker, samplers, settings, log or TrialLog())
    search.begin(Schedule(plan, total))
    search.loop(evaluator)
    search.finish(evaluator)
    # Warm starts that are the same assignment share a trial, and each has its value.
    values = {}
    for start in starts:
        measured = search.measured(start.choices)
        if measured is not None:
            values[start.source] = measured.value
    agreement = surrogate_agreement(search.trials, table, maker.space, settings.maximize)
    return summarise(search.trials, optimum, values, agreement, settings)


def _levels(maker: TrialMaker, solver: BudgetSolver, front: str | None) -> list[BudgetSolver]:
    """Solvers within the budgets and under limits on the front's cost, geometric from widest to least.

    A limit that the budgets leave no assignment for ends them.
    """
    if front is None:
        return []
    choices = solver.heuristic(maker.surrogate.option_costs)
    widest = maker.model.costs(maker.space.assignment(choices))[front]
    least = maker.model.lowest[front]
    if widest <= least or not math.isfinite(widest):
        return []
    # The least itself leaves nothing to choose, so the last level lies above it.
    limits = np.geomspace(widest, least, NUM_LEVELS + 1)[:-1]
    solvers = []
    for limit in limits.tolist():
        budgets = [*maker.budgets, Budget(front, limit, False, f"{front}<={limit:.6g}")]
        try:
            solvers.append(BudgetSolver(maker.space, make_limits(maker.space, budgets, maker.model)))
        except BudgetError:
            break
    return solvers
