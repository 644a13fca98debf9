"""How well each surrogate ranks the assignments that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from raysearch.errors import ConfigError, DataError
from raysearch.records import SearchTrial, SensitivityTable
from raysearch.search.problem.space import FloatArray, OptionSpace
from raysearch.search.problem.surrogates import SURROGATES, make_surrogate


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
    a, b = (_ranks(np.asarray(side, dtype=np.float64)) for side in (one, other))
    a, b = a - a.mean(), b - b.mean()
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
    """
    done = {trial.assignment.digest(): trial for trial in trials if trial.state == "COMPLETE"}
    if not done:
        return {}
    choices = np.stack([space.choices(trial.assignment) for trial in done.values()])
    values = [-trial.value if maximize else trial.value for trial in done.values()]
    found = {}
    for name in SURROGATES:
        try:
            surrogate = make_surrogate(name, table, space)
        except (ConfigError, DataError):
            continue
        found[name] = rank_correlation(surrogate.predict(choices).tolist(), values)
    return found


def _ranks(values: FloatArray) -> FloatArray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    ranks: FloatArray = (last - (counts - 1) / 2)[place]
    return ranks
