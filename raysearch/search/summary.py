"""What a search found: the best trial, the front, and what the winner is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raysearch.errors import RunError
from raysearch.records import SearchResult, SearchTrial
from raysearch.search.pareto import pareto_front
from raysearch.search.problem.solution import Solution


def summarise(
    trials: Sequence[SearchTrial],
    optimum: Solution,
    warm_values: Mapping[str, float],
    *,
    agreement: Mapping[str, float],
    objective: str = "divergence",
    maximize: bool = False,
    front_cost: str = "size",
    surrogate: str = "",
) -> SearchResult:
    """The result of trials.

    Args:
        trials: all trials in number order; each keeps every budget.
        optimum: the assignment of least predicted value, as far as it was found, and the proven bound.
        warm_values: warm start's name → measured value, NaN when it was not measured or failed; a warm
            start that equals another has no trial of its own, yet a value.
        agreement: see `surrogate_agreement`.
        objective: what was measured.
        maximize: whether more is better.
        front_cost: the cost of the front.
        surrogate: the name of what predicts.

    Raises:
        RunError: no trial is complete.
    """
    done = completed(trials)
    if not done:
        raise RunError(f"none of the {len(trials)} trials gave a finite {objective}.")
    better = max if maximize else min
    reasons = {name: value for name, value in warm_values.items() if math.isfinite(value)}
    for trial in done:
        reasons[trial.source] = better(trial.value, reasons.get(trial.source, trial.value))
    return SearchResult(
        best=best_of(done, maximize),
        trials=tuple(trials),
        front=measured_front(done, front_cost, maximize),
        lower_bound=optimum.lower_bound,
        reasons=reasons,
        agreement=agreement,
        objective=objective,
        maximize=maximize,
        front_cost=front_cost,
        surrogate=surrogate,
        gap=optimum.gap,
    )


def completed(trials: Sequence[SearchTrial]) -> list[SearchTrial]:
    """The trials that were measured on all samples and keep every budget."""
    return [t for t in trials if t.state == "COMPLETE" and all(excess <= 0 for excess in t.excess.values())]


def best_of(trials: Sequence[SearchTrial], maximize: bool = False) -> SearchTrial:
    """The best measured value; equal ones by size, then by number."""
    return ranked(trials, maximize)[0]


def ranked(trials: Sequence[SearchTrial], maximize: bool = False) -> list[SearchTrial]:
    """Best measured value first; equal ones by size, then by number."""
    sign = -1 if maximize else 1
    return sorted(trials, key=lambda t: (sign * t.value, t.costs["size"], t.number))


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
