"""The inverse question: the least cost at which a metric drops no more than allowed.

1. The float model is measured, and what stands at both ends: the surrogate's optimum without a limit, the
   widest and the cheapest assignment.
2. The limit on the cost is searched by sections: the surrogate's optimum at `NUM_PROBES` limits between the
   greatest known to fail and the least known to hold, all measured, `MAX_SECTIONS` times at most.
3. The ordinary study runs at the found limit, then at lower ones: `FIRST_STEP` of the way to the least cost,
   the same again after a success, half of it after a failure.
4. Of the best, single groups are lowered while the drop stays allowed.

The drop is not monotone in the cost, so the answer is the cheapest assignment that was measured and holds,
not a proven least. Work: 4 + enqueued + `NUM_PROBES`·`MAX_SECTIONS` assignments at most, then `num_trials`
and the warm starts of every study; all on all samples, but for what the studies' races stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raysearch.errors import BudgetError, RunError
from raysearch.records import (
    BitAssignment,
    Budget,
    CostModel,
    LeastCost,
    MaxDrop,
    QuantizerSetup,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    excesses,
)
from raysearch.search.agreement import surrogate_agreement
from raysearch.search.ask_tell import OnBatch
from raysearch.search.feasibility import best_cost
from raysearch.search.least_cost_log import LeastSoFar, Remembered
from raysearch.search.problem.space import OptionSpace
from raysearch.search.problem.surrogates import make_surrogate
from raysearch.search.racing import MeasureShards, Race
from raysearch.search.study import search_assignment
from raysearch.search.summary import completed, measured_front
from raysearch.seeding import derive_seed

NUM_PROBES = 3
MAX_SECTIONS = 5
FIRST_STEP = 0.08
NUM_STUDIES = 4
MAX_LOWERED = 8


def check_minimized(kind: str, budgets: Sequence[Budget], setup: QuantizerSetup) -> None:
    """Refuse a kind of cost that cannot be minimised here.

    Raises:
        BudgetError: the setup does not have it, it grows as the model shrinks, or it is the same everywhere.
    """
    model = CostModel(setup)
    model.require(kind)
    if Budget(kind, 1.0, False, kind).at_least:
        raise BudgetError(f"'{kind}' cannot be minimised: the more of it, the smaller the model. Take bops.")
    if model.lowest[kind] >= model.highest[kind]:
        raise BudgetError(
            f"'{kind}' cannot be minimised: it is {model.lowest[kind]:.6g} for every assignment. Allow more "
            "widths (placement.weight_bit_widths, placement.activation_bit_widths), or minimise another kind."
        )


def minimize_cost(
    table: SensitivityTable,
    setup: QuantizerSetup,
    budgets: Sequence[Budget],
    measure: MeasureShards,
    num_shards: int,
    kind: str,
    max_drop: MaxDrop,
    *,
    maximize: bool = False,
    num_trials: int = 64,
    batch_size: int = 8,
    surrogate: str = "response",
    seed: int = 0,
    racing_error: float = 0.05,
    enqueue: Sequence[BitAssignment] = (),
    on_batch: OnBatch | None = None,
    **study: Any,
) -> tuple[SearchResult, LeastCost]:
    """Find the least cost of a kind whose measured metric drops at most so much against the float model.

    The trials depend on the arguments alone. An interrupted search is run again: what was measured is then
    answered by whoever remembers it.

    Args:
        table: what every option does alone and in pairs.
        setup: groups and their widths.
        budgets: limits that must hold as well; there may be none.
        measure: measures assignments on some shards, the float model (no group named) too.
        num_shards: shards in all.
        kind: the cost.
        max_drop: the most that the metric may get worse.
        maximize: whether more of the metric is better.
        num_trials: trials of all studies together, warm starts included.
        batch_size: trials asked for before their values are told.
        surrogate: one of `SURROGATES`.
        seed: the run's seed.
        racing_error: see `Race`.
        enqueue: assignments to measure at the beginning.
        on_batch: told all trials so far.
        study: other options of `search_assignment`.

    Returns:
        The result, whose best trial is the cheapest that holds (equal ones by value) and whose `reasons` are
        the best values of the sources at no more than its cost; and what it costs and drops.

    Raises:
        BudgetError: the budgets cannot be met, or the kind cannot be minimised.
        RunError: every end drops more than allowed, with the least drop measured.
    """
    check_minimized(kind, budgets, setup)
    space, model = OptionSpace(setup), CostModel(setup)
    scores = make_surrogate(surrogate, table, space)
    race = Race(Remembered(measure), num_shards, racing_error, maximize)
    float_value = race({0: BitAssignment({})})[0].value
    found = LeastSoFar(
        space, model, scores, tuple(budgets), race, kind, max_drop, maximize, float_value, on_batch
    )
    floor = best_cost(space, model, kind, budgets)
    _ends(found, floor, enqueue)
    _sections(found, floor)
    options = {"batch_size": batch_size, "surrogate": surrogate, **study}
    share = math.ceil(num_trials / NUM_STUDIES)
    result = _studies(found, table, floor, {**options, "num_trials": share}, seed)
    _lower(found, batch_size)
    return _summary(found, result, table)


def _ends(found: LeastSoFar, floor: float, enqueue: Sequence[BitAssignment]) -> None:
    free = found.decoder(found.model.highest[found.kind])
    widest = free.optimum(-found.space.widths.astype(np.float64)).choices
    named = [("unlimited", found.optimum(free)), ("widest", widest)]
    if floor > 0:
        named.append(("cheapest", found.optimum(found.decoder(floor))))
    named += [(f"enqueued {i}", found.space.choices(a)) for i, a in enumerate(enqueue)]
    found.measure(named)
    if found.best() is None:
        drops = [(found.drop(trial), trial.source) for trial in completed(found.trials)]
        least, source = min(drops, default=(math.nan, "none"))
        allowed = found.max_drop.allowed(found.float_value)
        raise RunError(
            f"no assignment keeps {found.max_drop.text}: {found.max_drop.metric} is {found.float_value:.6g} "
            f"for the float model and may get worse by {allowed:.6g}; the least drop measured is {least:.6g} "
            f"({source}), before training. Allow more than that, wider bit-widths, or a looser budget."
        )


def _sections(found: LeastSoFar, floor: float) -> None:
    low = floor
    for _ in range(MAX_SECTIONS):
        high = found.cheapest().costs[found.kind]
        limits = [low + (high - low) * (i + 1) / (NUM_PROBES + 1) for i in range(NUM_PROBES)]
        probes = [found.optimum(found.decoder(limit)) for limit in limits if limit > 0]
        if high <= floor or not found.measure([("section", choices) for choices in probes]):
            return
        held = found.cheapest().costs[found.kind]
        low = max([low, *(limit for limit in limits if limit < held)])


def _studies(
    found: LeastSoFar, table: SensitivityTable, floor: float, options: Mapping[str, Any], seed: int
) -> SearchResult:
    """The study at the least cost so far, then below it; the last one that held anything."""
    result = _study(
        found, table, found.cheapest().costs[found.kind], options, derive_seed(seed, "least-cost", 0)
    )
    step = FIRST_STEP
    for index in range(1, NUM_STUDIES):
        cost = found.cheapest().costs[found.kind]
        limit = cost - step * (cost - floor)
        if not floor < limit < cost:
            break
        lower = _study(found, table, limit, options, derive_seed(seed, "least-cost", index))
        if found.cheapest().costs[found.kind] < cost:
            result = lower
        else:
            step /= 2
    return result


def _study(
    found: LeastSoFar, table: SensitivityTable, limit: float, options: Mapping[str, Any], seed: int
) -> SearchResult:
    before = len(found.trials)

    def own(trials: Sequence[SearchTrial]) -> list[SearchTrial]:
        # The study's limit is none of the user's budgets, and its sampler's notes are of its own numbers.
        return [
            replace(
                trial,
                number=before + trial.number,
                excess=excesses(found.budgets, found.model, trial.costs),
                system_attrs={},
            )
            for trial in trials
        ]

    def told(trials: tuple[SearchTrial, ...]) -> None:
        if found.on_batch is not None:
            found.on_batch((*found.trials, *own(trials)))

    budgets = [*found.budgets, found.limit(limit)]
    result = search_assignment(
        table,
        found.space.setup,
        budgets,
        found.race,
        seed=seed,
        on_batch=told,
        maximize=found.maximize,
        objective=found.max_drop.metric,
        **options,
    )
    found.add(own(result.trials))
    return result


def _lower(found: LeastSoFar, batch_size: int) -> None:
    """Lower one group of the best by one width, the least predicted harm first, while that holds."""
    for _ in range(MAX_LOWERED):
        best = found.cheapest()
        now = found.space.choices(best.assignment)
        steps = [now - np.eye(len(now), dtype=np.int64)[row] for row in np.flatnonzero(now)]
        decoder = found.decoder(best.costs[found.kind])
        steps = [choices for choices in steps if decoder.is_feasible(choices)]
        steps.sort(key=lambda choices: float(found.surrogate.predict(choices)))
        made = found.measure([("lowered", choices) for choices in steps[:batch_size]])
        if not made or found.cheapest().costs[found.kind] >= best.costs[found.kind]:
            return


def _summary(
    found: LeastSoFar, result: SearchResult, table: SensitivityTable
) -> tuple[SearchResult, LeastCost]:
    best, sign = found.cheapest(), -1 if found.maximize else 1
    done = completed(found.trials)
    reasons: dict[str, float] = {}
    for trial in sorted(done, key=lambda t: -sign * t.value):
        if trial.costs[found.kind] <= best.costs[found.kind]:
            reasons[trial.source] = trial.value
    whole = replace(
        result,
        best=best,
        trials=tuple(found.trials),
        front=measured_front(done, found.kind, found.maximize),
        reasons=reasons,
        agreement=surrogate_agreement(found.trials, table, found.space, found.maximize),
        front_cost=found.kind,
    )
    drop = found.drop(best)
    least = LeastCost(
        found.kind,
        best.costs[found.kind],
        found.max_drop.metric,
        found.max_drop.text,
        found.max_drop.allowed(found.float_value),
        found.float_value,
        best.value,
        drop,
    )
    return whole, least
