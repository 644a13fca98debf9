"""The least cost at which a metric drops no more than allowed.

1. The float model is measured, and both ends of the range of costs: the surrogate's optimum without a limit,
   the widest and the cheapest assignment.
2. The limit on the cost is searched by sections: the surrogate's optimum at `NUM_PROBES` limits between the
   greatest known to fail and the least known to hold, all measured, `MAX_SECTIONS` times at most.
3. The ordinary study runs at the limit that was found, then at lower ones: `FIRST_STEP` of the way to the
   least cost, the same again after a success, half of it after a failure.
4. Of the best, single groups are lowered while the drop stays allowed.

The drop is not monotone in the cost, so the answer is the cheapest assignment that was measured and holds,
not a proven least. Work: 4 + enqueued + `NUM_PROBES`·`MAX_SECTIONS` assignments at most, then `num_trials`
and the warm starts of every study; all on all samples, but for what the studies' races stop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raysearch.config import SearchConfig
from raysearch.config.search import NO_KIND
from raysearch.errors import BudgetError, ConfigError, RunError
from raysearch.records import (
    COST_KINDS,
    BitAssignment,
    Budget,
    CostModel,
    LeastCost,
    QuantizerSetup,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    excesses,
)
from raysearch.search.ask_tell import OnBatch, TrialLog
from raysearch.search.feasibility import best_cost
from raysearch.search.least_cost_log import DropLimit, LeastCostLog
from raysearch.search.problem.limits import make_limits
from raysearch.search.problem.space import IntArray
from raysearch.search.racing import Race
from raysearch.search.study import search_assignment
from raysearch.search.summary import completed, measured_front, surrogate_agreement
from raysearch.search.trials import TrialMaker
from raysearch.seeding import derive_seed

NUM_PROBES = 3
MAX_SECTIONS = 5
FIRST_STEP = 0.08
NUM_STUDIES = 4
MAX_LOWERED = 8


def check_minimized(kind: str, budgets: Sequence[Budget], setup: QuantizerSetup) -> None:
    """Refuse a kind of cost that cannot be minimised here.

    Args:
        kind: one of `COST_KINDS`.
        budgets: limits that must hold as well.
        setup: groups and their widths.

    Raises:
        BudgetError: the setup does not have it, it grows as the model shrinks, or it is the same everywhere.
    """
    model = CostModel(setup)
    model.require(kind)
    if not COST_KINDS[kind].can_be_minimized:
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
    race: Race,
    settings: SearchConfig,
    *,
    seed: int = 0,
    on_batch: OnBatch | None = None,
) -> tuple[SearchResult, LeastCost]:
    """Find the least cost of a kind whose measured metric drops at most so much against the float model.

    The trials depend on the arguments alone. An interrupted search is run again: what was measured is then
    answered by whoever remembers it.

    Args:
        table: what every option does alone and in pairs.
        setup: groups and their widths.
        budgets: limits that must hold as well; there may be none.
        race: measures assignments, the float model (no group named) too.
        settings: `minimize` and `max_drop`, and the studies' settings; `num_trials` is for all studies
            together, warm starts included.
        seed: the run's seed.
        on_batch: gets all trials so far.

    Returns:
        The result, whose best trial is the cheapest that holds (equal ones by value) and whose `reasons` are
        the best values of the sources at no more than its cost; and what it costs and drops.

    Raises:
        ConfigError: the settings do not say what may drop, or the cost to minimise.
        BudgetError: the budgets cannot be met, or the kind cannot be minimised.
        RunError: every end drops more than allowed, with the least drop measured.
    """
    kind, max_drop = settings.minimized_kind, settings.drop
    if kind is None or max_drop is None:
        raise ConfigError("the least cost needs search.minimize (a cost) and search.max_drop.")
    check_minimized(kind, budgets, setup)
    model = CostModel(setup)
    maker = TrialMaker.of(table, model, budgets, settings.surrogate)
    # The same assignment comes round in every study.
    race = race.memoized()
    float_value = race({0: BitAssignment({})})[0].value
    log = LeastCostLog(maker, race, kind, DropLimit(max_drop, float_value, settings.maximize), on_batch)
    floor = best_cost(maker.space, model, kind, budgets)
    _measure_ends(log, floor, [BitAssignment(bits) for bits in settings.enqueue])
    _search_sections(log, floor)
    result = _run_studies(log, table, floor, settings, seed)
    _lower_groups(log, settings.batch_size)
    return _summarise(log, result, table)


def _measure_ends(log: LeastCostLog, floor: float, enqueue: Sequence[BitAssignment]) -> None:
    """Measure what no search is needed for.

    Raises:
        RunError: none of it holds.
    """
    space = log.maker.space
    unlimited = log.solver_within(log.maker.model.highest[log.kind])
    widest = unlimited.exact(-space.widths.astype(np.float64)).choices
    proposals = [("unlimited", log.optimum(unlimited)), ("widest", widest)]
    if floor > 0:
        proposals.append(("cheapest", log.optimum(log.solver_within(floor))))
    proposals += [(f"enqueued {i}", space.choices(assignment)) for i, assignment in enumerate(enqueue)]
    log.measure(proposals)
    if log.best() is None:
        max_drop, float_value = log.limit.max_drop, log.limit.float_value
        drops = [(log.limit.drop(trial), trial.source) for trial in completed(log.trials)]
        least, source = min(drops, default=(math.nan, "none"))
        raise RunError(
            f"no assignment keeps {max_drop.text}: {max_drop.metric} is {float_value:.6g} for the float "
            f"model and may get worse by {max_drop.allowed(float_value):.6g}; the least drop measured is "
            f"{least:.6g} ({source}), before training. Allow more than that, wider bit-widths, or a looser "
            "budget."
        )


def _search_sections(log: LeastCostLog, floor: float) -> None:
    """Narrow the limit on the cost between what fails and what holds, by the surrogate's optima."""
    low = floor
    for _ in range(MAX_SECTIONS):
        high = log.least_cost()
        limits = [low + (high - low) * (i + 1) / (NUM_PROBES + 1) for i in range(NUM_PROBES)]
        probes = [("section", log.optimum(log.solver_within(limit))) for limit in limits if limit > 0]
        if high <= floor or not log.measure(probes):
            return
        # Every limit below the least that holds now has failed.
        least = log.least_cost()
        low = max([low, *(limit for limit in limits if limit < least)])


def _run_studies(
    log: LeastCostLog, table: SensitivityTable, floor: float, settings: SearchConfig, seed: int
) -> SearchResult:
    """The study at the least cost so far, then below it; the last one that held anything."""
    share = math.ceil(settings.num_trials / NUM_STUDIES)
    study_settings = _study_settings(settings, share)
    first_seed = derive_seed(seed, "least-cost", 0)
    result = _run_study(log, table, log.least_cost(), study_settings, first_seed)
    step = FIRST_STEP
    for index in range(1, NUM_STUDIES):
        cost = log.least_cost()
        limit = cost - step * (cost - floor)
        if not floor < limit < cost:
            break
        study_seed = derive_seed(seed, "least-cost", index)
        lower = _run_study(log, table, limit, study_settings, study_seed)
        if log.least_cost() < cost:
            result = lower
        else:
            step /= 2
    return result


def _study_settings(settings: SearchConfig, num_trials: int) -> SearchConfig:
    """The settings of a study within a limit: one that asks for no least cost."""
    changes = {
        "num_trials": num_trials,
        "objective": settings.measured,
        "direction": "maximize" if settings.maximize else "minimize",
        "minimize": NO_KIND,
        "max_drop": None,
        # They have been measured at the beginning, and need not fit the limit.
        "enqueue": (),
    }
    return settings.model_copy(update=changes)


def _run_study(
    log: LeastCostLog, table: SensitivityTable, limit: float, settings: SearchConfig, seed: int
) -> SearchResult:
    """One study within a limit on the cost; its trials go into the log."""
    num_before = len(log.trials)
    maker = log.maker

    def renumber(trial: SearchTrial) -> SearchTrial:
        # The study's limit is none of the user's budgets, and its sampler's notes are of its own numbers.
        excess = excesses(maker.budgets, maker.model, trial.costs)
        return replace(trial, number=num_before + trial.number, excess=excess, system_attrs={})

    def pass_on(trials: tuple[SearchTrial, ...]) -> None:
        if log.on_batch is not None:
            log.on_batch((*log.trials, *map(renumber, trials)))

    budgets = [*maker.budgets, log.cost_budget(limit)]
    result = search_assignment(
        table,
        maker.space.setup,
        budgets,
        log.evaluator,
        settings,
        seed=seed,
        log=TrialLog(on_batch=pass_on),
    )
    log.add([renumber(trial) for trial in result.trials])
    return result


def _lower_groups(log: LeastCostLog, batch_size: int) -> None:
    """Give one group of the best a cheaper option, the least predicted harm first, while that holds."""
    surrogate = log.maker.surrogate
    for _ in range(MAX_LOWERED):
        best = log.cheapest()
        cost = best.costs[log.kind]
        choices = log.maker.space.choices(best.assignment)
        solver = log.solver_within(cost)
        feasible = [step for step in _lowered(log, choices) if solver.is_feasible(step)]
        feasible.sort(key=lambda step: float(surrogate.predict(step)))
        trials = log.measure([("lowered", step) for step in feasible[:batch_size]])
        if not trials or log.least_cost() >= cost:
            return


def _lowered(log: LeastCostLog, choices: IntArray) -> list[IntArray]:
    """The choices with one group lowered: by one width, or to the next cheaper one of its schemes."""
    maker = log.maker
    limits = make_limits(maker.space, [log.cost_budget(log.least_cost())], maker.model)
    change = np.max([limit.changes(choices) for limit in limits], axis=0)
    steps = []
    for row, schemes in enumerate(maker.space.allowed):
        column = int(choices[row]) - 1
        if not all(scheme.is_plain for scheme in schemes):
            # Neighbours may cost as much or more: scales take bits too.
            cheaper = [place for place in range(len(schemes)) if change[row, place] < 0]
            column = max(cheaper, key=lambda place: int(change[row, place]), default=-1)
        if column >= 0:
            step = choices.copy()
            step[row] = column
            steps.append(step)
    return steps


def _summarise(
    log: LeastCostLog, result: SearchResult, table: SensitivityTable
) -> tuple[SearchResult, LeastCost]:
    """The last study's result with all trials of the search, and what was found."""
    best = log.cheapest()
    cost = best.costs[log.kind]
    done = completed(log.trials)
    maximize = log.limit.maximize
    sign = -1 if maximize else 1
    reasons: dict[str, float] = {}
    # From the worst value to the best, so that each source's best one stays.
    for trial in sorted(done, key=lambda trial: -sign * trial.value):
        if trial.costs[log.kind] <= cost:
            reasons[trial.source] = trial.value
    combined = replace(
        result,
        best=best,
        trials=tuple(log.trials),
        front=measured_front(done, log.kind, maximize),
        reasons=reasons,
        agreement=surrogate_agreement(log.trials, table, log.maker.space, maximize),
        front_cost=log.kind,
    )
    least = LeastCost(
        kind=log.kind,
        cost=cost,
        metric=log.limit.max_drop.metric,
        max_drop=log.limit.max_drop.text,
        allowed=log.limit.max_drop.allowed(log.limit.float_value),
        float_value=log.limit.float_value,
        value=best.value,
        drop=log.limit.drop(best),
        direction="maximize" if maximize else "minimize",
    )
    return combined, least
