"""The search: warm starts first, then ask/tell in fixed batches, every trial within the budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raysearch.errors import ConfigError
from raysearch.records import (
    COST_KINDS,
    BitAssignment,
    Budget,
    CostModel,
    QuantizerSetup,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    check_achievable,
)
from raysearch.search.agreement import surrogate_agreement
from raysearch.search.ask_tell import BatchSearch, Evaluate, OnBatch
from raysearch.search.problem.limits import make_limits
from raysearch.search.problem.space import OptionSpace
from raysearch.search.problem.surrogates import make_surrogate
from raysearch.search.racing import Race
from raysearch.search.samplers.make import check_sampler, make_samplers
from raysearch.search.solvers.decoder import Decoder
from raysearch.search.summary import summarise
from raysearch.search.warm_starts import distinct, schedule, warm_starts

NUM_LEVELS = 8
"""Limits on the cost of a front between which the sampler changes from trial to trial."""


def search_assignment(
    table: SensitivityTable,
    setup: QuantizerSetup,
    budgets: Sequence[Budget],
    evaluate: Evaluate | Race,
    *,
    num_trials: int = 64,
    batch_size: int = 8,
    surrogate: str = "response",
    sampler: str = "auto",
    seed: int = 0,
    previous: Sequence[SearchTrial] = (),
    on_batch: OnBatch | None = None,
    enqueue: Sequence[BitAssignment] = (),
    objective: str = "divergence",
    maximize: bool = False,
    front: str | None = None,
    num_finalists: int = 4,
) -> SearchResult:
    """Find the assignment of best measured value within all budgets.

    The trials depend on the arguments alone, not on when or in which order values arrive; `batch_size` is
    one of the arguments. An assignment is measured once: a repeated proposal is answered from what is
    known. Every trial keeps every budget. The required warm starts (uniform widths that fit, greedy, the
    optimum of every surrogate, the user's own; see `warm_starts`) are measured on all samples, so the result
    is never worse than any of them on the measured objective. Optima at shares of the budgets take every
    second trial after them (`schedule`).

    Args:
        table: what every option does alone and in pairs.
        setup: groups and their widths.
        budgets: limits that must all hold.
        evaluate: measures one batch of new assignments; a `Race` stops those that cannot win.
        num_trials: trials in all, warm starts included; the required ones are run in any case.
        batch_size: trials asked for before their values are told.
        surrogate: one of `SURROGATES`.
        sampler: one of `SAMPLERS`, or "module:Class", see `make_samplers`.
        seed: the run's seed.
        previous: trials of an interrupted run with the same other arguments. Its complete batches are
            replayed, the values of an incomplete one are used when it is asked for again, and the search
            goes on bit for bit as it would have.
        on_batch: called after each batch.
        enqueue: assignments to measure besides the warm starts.
        objective: what `evaluate` measures, for records and messages.
        maximize: whether more of it is better.
        front: a kind of cost that is minimised as a second objective; the trials then spread over its whole
            range within the budgets, and none is stopped early.
        num_finalists: so many stopped assignments, the best by their estimates, are measured on all samples
            in the end.

    Returns:
        The best trial, all trials, the Pareto front, and what the winner is compared with.

    Raises:
        ConfigError: a name or a number is not allowed.
        BudgetError: no assignment meets the budgets, or an enqueued one exceeds them.
        StorageError: `previous` is of another search, or the table of another setup.
        RunError: more than half of the trials failed, or a value is missing.
    """
    if num_trials < 1 or batch_size < 1 or num_finalists < 0:
        raise ConfigError(
            f"num_trials ({num_trials}) and batch_size ({batch_size}) must be at least 1, and num_finalists "
            f"({num_finalists}) at least 0."
        )
    if front is not None and front not in COST_KINDS:
        raise ConfigError(f"the front's cost '{front}' is unknown; known: {', '.join(COST_KINDS)}.")
    check_sampler(sampler)
    model = CostModel(setup)
    check_achievable(budgets, model)
    space = OptionSpace(setup)
    decoder = Decoder(space, make_limits(space, budgets, model))
    scores = make_surrogate(surrogate, table, space)
    named, optimum = warm_starts(table, scores, decoder, enqueue, seed)
    levels: list[Decoder] = []
    if front is not None:
        widest = model.costs(space.assignment(decoder.decode(scores.option_costs)))[front]
        levels = _levels(space, budgets, model, front, widest)
    starts = distinct(named)
    total = max(num_trials, sum(start.required for start in starts))
    samplers = make_samplers(sampler, scores, decoder, seed, num_trials=total, levels=levels)
    search = BatchSearch(
        decoder, scores, model, budgets, samplers,
        sampler="thompson" if sampler == "auto" else sampler,
        maximize=maximize, front=front,
    )  # fmt: skip
    search.begin(schedule(starts), total, previous, batch_size)
    search.loop(evaluate, batch_size, on_batch)
    search.finish(evaluate, num_finalists, on_batch)
    known = search.known
    values = {s.source: known[s.choices.tobytes()].value for s in named if s.choices.tobytes() in known}
    return summarise(
        search.trials,
        optimum,
        values,
        agreement=surrogate_agreement(search.trials, table, space, maximize),
        objective=objective,
        maximize=maximize,
        front_cost=front or "size",
        surrogate=surrogate,
    )


def _levels(
    space: OptionSpace, budgets: Sequence[Budget], model: CostModel, front: str, widest: float
) -> list[Decoder]:
    """Decoders within the budgets and under limits on the front's cost, geometric from widest to least."""
    least = model.lowest[front]
    if widest <= least or not math.isfinite(widest):
        return []
    # The least itself leaves nothing to choose, so the last level lies above it.
    limits = np.geomspace(widest, least, NUM_LEVELS + 1)[:-1]
    return [
        Decoder(space, make_limits(space, [*budgets, Budget(front, x, False, f"{front}<={x:.6g}")], model))
        for x in map(float, limits)
    ]
