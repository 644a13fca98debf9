"""What a search found: the best trial, the front, and what the winner is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from raysearch.config import SearchConfig
from raysearch.errors import ConfigError, DataError, RunError
from raysearch.records import SearchResult, SearchTrial, SensitivityTable
from raysearch.search.pareto import pareto_front
from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import FloatArray, OptionSpace
from raysearch.search.problem.surrogates import SURROGATES, make_surrogate


def summarise(
    trials: Sequence[SearchTrial],
    optimum: Solution,
    warm_values: Mapping[str, float],
    agreement: Mapping[str, float],
    settings: SearchConfig,
) -> SearchResult:
    """The result of trials.

    Args:
        trials: all trials in number order; each keeps every budget.
        optimum: the assignment of least predicted value, as far as it was found, and the proven bound.
        warm_values: warm start's name → measured value, NaN when it was not measured or failed; a warm
            start that equals another has no trial of its own, yet a value.
        agreement: see `surrogate_agreement`.
        settings: what was measured and whether more of it is better, the front's cost, what predicts.

    Raises:
        RunError: no trial is complete.
    """
    done = completed(trials)
    if not done:
        raise RunError(f"none of the {len(trials)} trials gave a finite {settings.objective}.")
    better = max if settings.maximize else min
    reasons = {name: value for name, value in warm_values.items() if math.isfinite(value)}
    for trial in done:
        reasons[trial.source] = better(trial.value, reasons.get(trial.source, trial.value))
    front_cost = settings.front_kind or "size"
    return SearchResult(
        best=best_of(done, settings.maximize),
        trials=tuple(trials),
        front=measured_front(done, front_cost, settings.maximize),
        lower_bound=optimum.lower_bound,
        reasons=reasons,
        agreement=agreement,
        objective=settings.objective,
        maximize=settings.maximize,
        front_cost=front_cost,
        surrogate=settings.surrogate,
        gap=optimum.gap,
    )


def completed(trials: Sequence[SearchTrial]) -> list[SearchTrial]:
    """The trials that were measured on all samples and keep every budget."""
    return [trial for trial in trials if trial.is_complete and trial.is_feasible]


def best_of(trials: Sequence[SearchTrial], maximize: bool = False) -> SearchTrial:
    """The best measured value; equal ones by size, then by number."""
    return min(trials, key=_rank(maximize))


def ranked(trials: Sequence[SearchTrial], maximize: bool = False) -> list[SearchTrial]:
    """Best measured value first; equal ones by size, then by number."""
    return sorted(trials, key=_rank(maximize))


def _rank(maximize: bool) -> Callable[[SearchTrial], tuple[float, float, int]]:
    sign = -1 if maximize else 1
    return lambda trial: (sign * trial.value, trial.costs["size"], trial.number)


def measured_front(
    trials: Sequence[SearchTrial], cost: str = "size", maximize: bool = False
) -> tuple[SearchTrial, ...]:
    """The trials that no other beats in both value and a cost, by cost; of equal ones the first.

    Args:
        trials: complete trials.
        cost: the kind of cost.
        maximize: whether more of the value is better.
    """
    sign = -1 if maximize else 1
    in_order = sorted(trials, key=lambda trial: trial.number)
    return tuple(pareto_front(in_order, lambda trial: (trial.costs[cost], sign * trial.value)))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's ρ: Pearson's correlation of the ranks, equal values sharing their mean rank.

    Returns:
        NaN for fewer than two pairs, or when one side is constant.

    Example:
        >>> rank_correlation([1, 2, 3, 3], [10, 20, 40, 30])
        0.9486832980505138
    """
    if len(one) < 2:
        return math.nan
    a = _ranks(np.asarray(one, dtype=np.float64))
    b = _ranks(np.asarray(other, dtype=np.float64))
    a = a - a.mean()
    b = b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def surrogate_agreement(
    trials: Sequence[SearchTrial], table: SensitivityTable, space: OptionSpace, maximize: bool = False
) -> Mapping[str, float]:
    """Surrogate → rank correlation of its predictions with what was measured, each assignment once.

    1 means that the surrogate orders the assignments as the measurement does; for an objective that is
    maximised, the measured values count negated. Only complete trials count: all of them rest on the same
    samples. Most lie near the optimum, where order is hardest to tell: over random assignments it would be
    higher. A surrogate that the table cannot give (a trace that is not finite, or of another matrix) is left
    out.

    Args:
        trials: of one search.
        table: what the surrogates are made of.
        space: the options.
        maximize: whether more of the measured value is better.
    """
    done = {trial.assignment.digest(): trial for trial in trials if trial.is_complete}
    if not done:
        return {}
    sign = -1 if maximize else 1
    choices = np.stack([space.choices(trial.assignment) for trial in done.values()])
    values = [sign * trial.value for trial in done.values()]
    agreement = {}
    for name in SURROGATES:
        try:
            surrogate = make_surrogate(name, table, space)
        except (ConfigError, DataError):
            continue
        agreement[name] = rank_correlation(surrogate.predict(choices).tolist(), values)
    return agreement


def _ranks(values: FloatArray) -> FloatArray:
    """1 for the least value, equal ones sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    ranks: FloatArray = (last - (counts - 1) / 2)[place]
    return ranks
