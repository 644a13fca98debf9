"""What a search found: the best trial, the front, and what the winner is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raysearch.errors import RunError
from raysearch.records import SearchResult, SearchTrial


def summarise(
    trials: Sequence[SearchTrial], lower_bound: float, warm_values: Mapping[str, float]
) -> SearchResult:
    """The result of trials.

    Args:
        trials: all trials in number order; each keeps every budget.
        lower_bound: the least additive surrogate value of any feasible assignment.
        warm_values: warm start's name → measured value, NaN when it was not measured or failed; a warm
            start that equals another has no trial of its own, yet a value.

    Raises:
        RunError: no trial is complete.
    """
    done = [trial for trial in trials if trial.state == "COMPLETE" and is_kept(trial)]
    if not done:
        raise RunError(f"none of the {len(trials)} trials gave a finite divergence.")
    reasons = {name: value for name, value in warm_values.items() if math.isfinite(value)}
    for trial in done:
        reasons[trial.source] = min(trial.value, reasons.get(trial.source, math.inf))
    return SearchResult(min(done, key=rank), tuple(trials), pareto_front(done), lower_bound, reasons)


def is_kept(trial: SearchTrial) -> bool:
    """Whether a trial keeps every budget."""
    return all(excess <= 0 for excess in trial.excess.values())


def rank(trial: SearchTrial) -> tuple[float, float, int]:
    """Least measured value first; equal ones by size, then by number."""
    return trial.value, trial.costs["size"], trial.number


def pareto_front(trials: Sequence[SearchTrial]) -> tuple[SearchTrial, ...]:
    """The trials that no other beats in both value and size, by size; equal ones once."""
    front: list[SearchTrial] = []
    for trial in sorted(trials, key=lambda t: (t.costs["size"], t.value, t.number)):
        if not front or trial.value < front[-1].value:
            front.append(trial)
    return tuple(front)
