"""The multiple-choice knapsack without a grid: partial solutions that another one beats are dropped.

Groups are taken one after the other. Of the partial solutions those are dropped that another beats in both
sums (Nemhauser and Ullmann 1969), that cannot be completed within the capacity, and whose Lagrangian bound
exceeds a known value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray
from raysearch.search.solvers.knapsack import ROUNDING, above_least, lagrange

MAX_PARTIAL = 50_000
"""Partial solutions that are kept a group; where there are more, the bound says what was left out."""


def solve_exactly(
    sizes: IntArray,
    valid: BoolArray,
    capacity: int,
    costs: FloatArray,
    known: IntArray,
    max_partial: int = MAX_PARTIAL,
) -> Solution:
    """Min Σ_l c[l, x_l] subject to Σ_l s[l, x_l] ≤ S, whatever unit the sizes have.

    The result is the optimum; should more than `max_partial` partial solutions remain, those of the greatest
    bounds are dropped, and the least bound of them bounds the optimum instead.

    Args:
        sizes: int64 [L, B].
        valid: bool [L, B], which entries are options.
        capacity: S.
        costs: [L, B].
        known: feasible choices [L], handed back where nothing is better.
        max_partial: partial solutions kept a group.
    """
    value = float(costs[np.arange(len(sizes)), known].sum())
    solution = solve_below(sizes, valid, capacity, costs, value, max_partial)
    if solution.value >= value:
        return Solution(known, value, min(value, solution.lower_bound))
    return solution


def solve_below(
    sizes: IntArray,
    valid: BoolArray,
    capacity: int,
    costs: FloatArray,
    known_value: float,
    max_partial: int = MAX_PARTIAL,
) -> Solution:
    """The same, of the solutions that cost no more than a known value, within rounding.

    Args:
        sizes: int64 [L, B].
        valid: bool [L, B], which entries are options.
        capacity: S.
        costs: [L, B].
        known_value: what some feasible choices cost.
        max_partial: partial solutions kept a group.

    Returns:
        The optimum, the one of least size among equal ones; where no solution is left, the value is ∞ and the
        choices are empty. Partial solutions beyond `max_partial` only bound it.
    """
    price = lagrange(costs, sizes, valid, capacity).price
    # Price times capacity is what rounds: without the least sizes it is of the costs' own magnitude.
    extras, slack = above_least(sizes, valid, capacity)
    columns = [np.flatnonzero(is_option) for is_option in valid]
    size = [extras[row, column] for row, column in enumerate(columns)]
    cost = [costs[row, column] for row, column in enumerate(columns)]
    # What the groups from each one on cost at least at this price; of the slack they may use nothing.
    priced = [float((c + price * s).min()) for c, s in zip(cost, size, strict=True)]
    rest = _sums_from([*priced, 0.0])
    magnitude = float(np.abs(np.where(valid, costs, 0.0)).sum()) + price * abs(slack)
    highest_bound = known_value + ROUNDING * magnitude
    used = np.zeros(1, dtype=np.int64)
    value = np.zeros(1)
    left_out = np.inf
    steps: list[tuple[IntArray, IntArray]] = []
    for row, column in enumerate(columns):
        grown = (used[:, None] + size[row]).ravel()
        worth = (value[:, None] + cost[row]).ravel()
        bound = worth + rest[row + 1] - price * (slack - grown)
        index = np.flatnonzero((grown <= slack) & (bound <= highest_bound))
        index = index[_undominated(grown[index], worth[index])]
        if len(index) > max_partial:
            by_bound = np.argsort(bound[index], kind="stable")
            left_out = min(left_out, float(bound[index[by_bound[max_partial:]]].min()))
            index = index[np.sort(by_bound[:max_partial])]
        used, value = grown[index], worth[index]
        steps.append((index // len(column), column[index % len(column)]))
    if not len(value):
        return Solution(np.zeros(0, dtype=np.int64), np.inf, left_out)
    last = int(np.argmin(value))
    return Solution(_trace(steps, last), float(value[last]), min(float(value[last]), left_out))


def _undominated(used: IntArray, worth: FloatArray) -> IntArray:
    """Indices, by use, of what nothing of less or equal use is as cheap as."""
    order = np.lexsort((worth, used))
    cheapest_before = np.minimum.accumulate(worth[order])[:-1]
    before = np.concatenate([[np.inf], cheapest_before])
    return order[worth[order] < before]


def _trace(steps: Sequence[tuple[IntArray, IntArray]], last: int) -> IntArray:
    """The choices of a partial solution, from the last group back to the first."""
    choices = np.zeros(len(steps), dtype=np.int64)
    at = last
    for row in reversed(range(len(steps))):
        parent, column = steps[row]
        choices[row] = column[at]
        at = int(parent[at])
    return choices


def _sums_from(values: Sequence[float]) -> list[float]:
    """Σ of the values from each place on, added up from the end."""
    sums = list(values)
    for place in reversed(range(len(sums) - 1)):
        sums[place] = sums[place + 1] + sums[place]
    return sums
