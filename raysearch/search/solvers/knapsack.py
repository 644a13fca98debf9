"""The multiple-choice knapsack: one option a group, least cost, total size within a capacity."""

from __future__ import annotations

from math import gcd

import numpy as np

from raysearch.errors import BudgetError
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray

DEFAULT_STEPS = 4000
"""Grid of a decode: 54 groups × 4 widths in some milliseconds."""

FINE_STEPS = 20_000
"""Grid of a reported optimum or bound."""


class Knapsack:
    """min Σ_l c[l, x_l] subject to Σ_l s[l, x_l] ≤ S, by dynamic programming over a grid of capacities.

    Each row's least size is taken off, so the slack R = S − Σ_l min_b s[l, b] is what there is to spend.
    Sizes are counted in steps of their greatest common divisor when the slack has at most `num_steps` of
    them (then the solution is exact), else in steps of R/num_steps, rounded up: never over the capacity.

    Args:
        sizes: int64 [L, B], any unit.
        valid: bool [L, B], which entries are options; at least one a row.
        capacity: S, in the same unit.
        num_steps: most steps of the grid.

    Raises:
        BudgetError: the capacity is below the smallest assignment.

    Example:
        >>> sizes = np.array([[2, 4], [2, 8]])
        >>> knapsack = Knapsack(sizes, sizes > 0, capacity=10)
        >>> knapsack.solve(np.array([[3.0, 1.0], [5.0, 0.0]])).tolist()
        [0, 1]
    """

    def __init__(
        self, sizes: IntArray, valid: BoolArray, capacity: int, num_steps: int = DEFAULT_STEPS
    ) -> None:
        self.sizes, self.valid, self.capacity = sizes, valid, int(capacity)
        lowest = [min(row[ok].tolist()) for row, ok in zip(sizes, valid, strict=True)]
        self.slack = self.capacity - sum(lowest)
        if self.slack < 0:
            raise BudgetError(
                f"the budget is below the smallest assignment: it allows {capacity}, the least is "
                f"{sum(lowest)}."
            )
        # Python integers: bit operations times steps would overflow int64.
        self._extra = [
            [int(size) - low if ok else None for size, ok in zip(row, oks, strict=True)]
            for row, oks, low in zip(sizes, valid, lowest, strict=True)
        ]
        sizes_used = [extra for row in self._extra for extra in row if extra is not None]
        unit = gcd(*sizes_used) or 1
        most = sum(max(extra for extra in row if extra is not None) for row in self._extra)
        if most <= self.slack:  # everything fits, so sizes do not matter
            self._extra = [[None if extra is None else 0 for extra in row] for row in self._extra]
            most, unit = 0, 1
        steps = min(self.slack, most) // unit
        self.exact = steps <= num_steps
        self.num_steps = steps if self.exact else num_steps
        self._unit = unit

    def solve(self, costs: FloatArray) -> IntArray:
        """The best choices [L] for costs [L, B], float64; entries that are no option are ignored.

        Ties go to the wider option: a cost that says nothing must not take bits away.

        Raises:
            ValueError: a cost is not finite.
        """
        choices, _ = self._solve(costs, self._weights(round_up=True))
        if int(self.sizes[np.arange(len(choices)), choices].sum()) > self.capacity:
            raise AssertionError("the knapsack solution exceeds its capacity")
        return choices

    def lower_bound(self, costs: FloatArray) -> float:
        """A value that no feasible choice can be below; the optimum itself when `exact`.

        Otherwise the greater of two relaxations: sizes rounded down to the grid, and Lagrange's
        max_λ≥0 Σ_l min_b (c + λ·s) − λ·S.
        """
        _, bound = self._solve(costs, self._weights(round_up=False))
        return bound if self.exact else max(bound, lagrange(costs, self.sizes, self.valid, self.capacity)[1])

    def _weights(self, round_up: bool) -> list[list[int | None]]:
        """Steps each option takes; None when it is no option or can never fit."""
        if self.exact:
            counts = [[None if e is None else e // self._unit for e in row] for row in self._extra]
        else:
            up = self.slack - 1 if round_up else 0
            counts = [
                [None if e is None else (e * self.num_steps + up) // self.slack for e in row]
                for row in self._extra
            ]
        return [[None if c is None or c > self.num_steps else c for c in row] for row in counts]

    def _solve(self, costs: FloatArray, weights: list[list[int | None]]) -> tuple[IntArray, float]:
        if not np.isfinite(costs[self.valid]).all():
            raise ValueError("every option needs a finite cost")
        num_groups, width = len(weights), self.num_steps + 1
        # best[g]: least cost of the groups so far with capacity g.
        best = np.zeros(width)
        picks = np.zeros((num_groups, width), dtype=np.int8)
        for row, steps in enumerate(weights):
            if steps.count(None) == len(steps) - 1:  # one option, of the least size
                picks[row] = next(column for column, step in enumerate(steps) if step is not None)
                best = best + costs[row, picks[row, 0]]
                continue
            found = np.full(width, np.inf)
            for column in reversed(range(len(steps))):
                step = steps[column]
                if step is None:
                    continue
                candidate = best[: width - step] + costs[row, column]
                better = candidate < found[step:]
                np.copyto(found[step:], candidate, where=better)
                np.copyto(picks[row, step:], column, where=better, casting="unsafe")
            best = found
        choices, at = np.zeros(num_groups, dtype=np.int64), width - 1
        for row in reversed(range(num_groups)):
            choices[row] = picks[row, at]
            at -= weights[row][choices[row]] or 0
        return choices, float(best[-1])


def lagrange(costs: FloatArray, sizes: IntArray, valid: BoolArray, capacity: int) -> tuple[float, float]:
    """The λ ≥ 0 of the greatest Σ_l min_b (c + λ·s) − λ·S found, and that value: a bound for any λ."""
    cost = np.where(valid, costs, np.inf)
    size = sizes.astype(np.float64)

    def dual(price: float) -> tuple[float, float]:
        priced = cost + price * size
        chosen = np.argmin(priced, axis=1)[:, None]
        value = float(np.take_along_axis(priced, chosen, 1).sum()) - price * capacity
        return value, float(np.take_along_axis(size, chosen, 1).sum()) - capacity

    found, over = dual(0.0)
    if over <= 0:
        return 0.0, found
    at, low, high = 0.0, 0.0, 1.0
    # The dual is concave with the overuse as its slope: bracket its maximum, then halve.
    for _ in range(200):
        value, over = dual(high)
        at, found = (high, value) if value > found else (at, found)
        if over <= 0:
            break
        low, high = high, high * 4
    for _ in range(80):
        price = (low + high) / 2
        value, over = dual(price)
        at, found = (price, value) if value > found else (at, found)
        low, high = (price, high) if over > 0 else (low, price)
    return at, found
