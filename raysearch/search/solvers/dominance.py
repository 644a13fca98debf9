"""The multiple-choice knapsack without a grid: partial solutions that another one beats are dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray
from raysearch.search.solvers.knapsack import lagrange

MAX_PARTIAL = 50_000
"""Partial solutions that are kept a group; where there are more, the bound says what was left out."""

ROUNDING = 1e-12
"""Relative error of a sum of costs, which a bound allows for."""


def solve_exactly(
    sizes: IntArray,
    valid: BoolArray,
    capacity: int,
    costs: FloatArray,
    known: IntArray,
    max_partial: int = MAX_PARTIAL,
) -> Solution:
    """Min Σ_l c[l, x_l] subject to Σ_l s[l, x_l] ≤ S, whatever unit the sizes have.

    Groups are taken one after the other. Of the partial solutions those are dropped that another beats in
    both sums (Nemhauser and Ullmann 1969), that cannot be completed within S, and whose Lagrangian bound
    exceeds a known solution. So the result is the optimum; should more than `max_partial` remain, those of
    the greatest bounds are dropped, and the least bound of them bounds the optimum instead.

    Args:
        sizes: int64 [L, B].
        valid: bool [L, B], which entries are options.
        capacity: S.
        costs: [L, B].
        known: feasible choices [L].
        max_partial: partial solutions kept a group.
    """
    rows = np.arange(len(sizes))
    price, _ = lagrange(costs, sizes, valid, capacity)
    columns = [np.flatnonzero(ok) for ok in valid]
    size = [sizes[row, column] for row, column in enumerate(columns)]
    cost = [costs[row, column] for row, column in enumerate(columns)]
    rest = _after([float((c + price * s).min()) for c, s in zip(cost, size, strict=True)])
    least = _after([int(s.min()) for s in size])
    best = float(costs[rows, known].sum())
    slack = ROUNDING * float(np.abs(np.where(valid, costs, 0.0)).sum())
    used, value, dropped = np.zeros(1, dtype=np.int64), np.zeros(1), np.inf
    steps: list[tuple[IntArray, IntArray]] = []
    for row in range(len(rows)):
        grown, worth = (used[:, None] + size[row]).ravel(), (value[:, None] + cost[row]).ravel()
        bound = worth + rest[row + 1] - price * (capacity - grown)
        index = np.flatnonzero((grown + least[row + 1] <= capacity) & (bound <= best + slack))
        index = index[np.lexsort((worth[index], grown[index]))]
        before = np.concatenate([[np.inf], np.minimum.accumulate(worth[index])[:-1]])
        index = index[worth[index] < before]
        if len(index) > max_partial:
            order = np.sort(np.argsort(bound[index], kind="stable")[:max_partial])
            left = np.ones(len(index), dtype=bool)
            left[order] = False
            dropped = min(dropped, float(bound[index[left]].min()))
            index = index[order]
        used, value = grown[index], worth[index]
        steps.append((index // len(columns[row]), columns[row][index % len(columns[row])]))
    if not len(value) or float(value.min()) >= best:
        return Solution(known, best, min(best, dropped))
    return _trace(steps, int(np.argmin(value)), float(value.min()), dropped)


def _trace(steps: Sequence[tuple[IntArray, IntArray]], at: int, value: float, dropped: float) -> Solution:
    choices = np.zeros(len(steps), dtype=np.int64)
    for row in reversed(range(len(steps))):
        parent, column = steps[row]
        choices[row], at = column[at], int(parent[at])
    return Solution(choices, value, min(value, dropped))


def _after(values: Sequence[float]) -> list[float]:
    """Σ of the values from each place on, and 0 at the end."""
    sums = [values[0] * 0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]
