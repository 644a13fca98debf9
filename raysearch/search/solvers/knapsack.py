"""The multiple-choice knapsack: one option a group, least cost, total size within a capacity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from raysearch.errors import BudgetError
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray

DEFAULT_STEPS = 4000
"""Grid of a decode: 54 groups × 4 widths in some milliseconds."""

FINE_STEPS = 20_000
"""Grid of a reported optimum or bound."""

ROUNDING = 1e-12
"""Error of a bound, relative to the magnitudes of what is added up, that is allowed for."""


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
        self.sizes = sizes
        self.valid = valid
        self.capacity = int(capacity)
        # Python integers from here on: bit operations times steps would overflow int64.
        options = [row[is_option].tolist() for row, is_option in zip(sizes, valid, strict=True)]
        least = [min(row) for row in options]
        self.slack = self.capacity - sum(least)
        if self.slack < 0:
            raise BudgetError(
                f"the budget is below the smallest assignment: it allows {capacity}, the least is "
                f"{sum(least)}."
            )
        extras = [size - low for row, low in zip(options, least, strict=True) for size in row]
        unit = gcd(*extras) or 1
        most = sum(max(row) - low for row, low in zip(options, least, strict=True))
        # Where everything fits, sizes do not matter: they count as 0, on a grid of one point.
        self._everything_fits = most <= self.slack
        steps = 0 if self._everything_fits else self.slack // unit
        self.exact = steps <= num_steps
        self.num_steps = steps if self.exact else num_steps
        self._unit = unit
        self._steps = [
            [
                self._steps_of(int(size) - low) if is_option else None
                for size, is_option in zip(*row, strict=True)
            ]
            for *row, low in zip(sizes, valid, least, strict=True)
        ]

    def solve(self, costs: FloatArray) -> IntArray:
        """The best choices [L] for costs [L, B], float64; entries that are no option are ignored.

        Ties go to the wider option: a cost that says nothing must not take bits away.

        Raises:
            ValueError: a cost is not finite.
        """
        if not np.isfinite(costs[self.valid]).all():
            raise ValueError("every option needs a finite cost")
        choices = self._trace(self._picks(costs))
        if int(self.sizes[np.arange(len(choices)), choices].sum()) > self.capacity:
            raise AssertionError("the knapsack solution exceeds its capacity")
        return choices

    def _steps_of(self, extra: int) -> int | None:
        """Steps that a size above the row's least takes, rounded up; None when it can never fit."""
        if self._everything_fits:
            return 0
        unrounded = extra if self.exact else extra * self.num_steps
        unit = self._unit if self.exact else self.slack
        steps = -(-unrounded // unit)
        return steps if steps <= self.num_steps else None

    def _picks(self, costs: FloatArray) -> IntArray:
        """[L, steps + 1]: the best option of each group, given those before it and the steps to spend."""
        width = self.num_steps + 1
        # best[g]: least cost of the groups so far within g steps.
        best = np.zeros(width)
        columns = np.min_scalar_type(-self.sizes.shape[1])
        picks = np.zeros((len(self._steps), width), dtype=columns)
        for row, steps in enumerate(self._steps):
            if steps.count(None) == len(steps) - 1:  # one option, of the least size
                picks[row] = next(column for column, step in enumerate(steps) if step is not None)
                best = best + costs[row, picks[row, 0]]
                continue
            with_row = np.full(width, np.inf)
            # The widest option first: a narrower one replaces it only where it costs less.
            for column in reversed(range(len(steps))):
                step = steps[column]
                if step is None:
                    continue
                candidate = best[: width - step] + costs[row, column]
                is_better = candidate < with_row[step:]
                np.copyto(with_row[step:], candidate, where=is_better)
                np.copyto(picks[row, step:], column, where=is_better, casting="unsafe")
            best = with_row
        return picks

    def _trace(self, picks: IntArray) -> IntArray:
        """The choices, from the last group with all steps to spend back to the first."""
        choices = np.zeros(len(picks), dtype=np.int64)
        left = self.num_steps
        for row in reversed(range(len(picks))):
            choices[row] = picks[row, left]
            left -= self._steps[row][choices[row]] or 0
        return choices


@dataclass(frozen=True)
class Dual:
    """The Lagrangian dual of a knapsack, max_λ≥0 Σ_l min_b (c + λ·s) − λ·S.

    Attributes:
        price: λ of the greatest value that was seen.
        bound: that value; no feasible choice costs less.
        feasible_cost: the least Σ c of the choices seen on the way that keep the capacity; ∞ without any.
    """

    price: float
    bound: float
    feasible_cost: float


def above_least(sizes: IntArray, valid: BoolArray, capacity: int) -> tuple[IntArray, int]:
    """Sizes above each row's least, int64 [L, B], and what the least ones leave of the capacity.

    They say the same as the sizes and the capacity, in smaller numbers. An entry that is no option is 0.

    Args:
        sizes: [L, B], in the capacity's unit.
        valid: bool [L, B], the entries that are options.
        capacity: the most that the choices' sizes may add up to.
    """
    least = np.min(sizes, axis=1, where=valid, initial=np.iinfo(np.int64).max)
    extras = np.where(valid, sizes - least[:, None], 0)
    # By Python's integers, whose sum cannot overflow.
    return extras, int(capacity) - sum(least.tolist())


def lagrange(costs: FloatArray, sizes: IntArray, valid: BoolArray, capacity: int) -> Dual:
    """Maximise the Lagrangian dual: its value bounds the optimum for any price.

    Rounding is allowed for, so that the bound holds for floating-point numbers too.

    Args:
        costs: [L, B].
        sizes: int64 [L, B].
        valid: bool [L, B], which entries are options.
        capacity: S.
    """
    # Price times capacity is what rounds: without the least sizes it is of the costs' own magnitude.
    extras, slack = above_least(sizes, valid, capacity)
    rows = np.arange(len(sizes))
    cost = np.where(valid, costs, np.inf)
    largest_cost = float(np.abs(np.where(valid, costs, 0.0)).max(axis=1, initial=0.0).sum())
    best = Dual(0.0, -np.inf, np.inf)

    def visit(price: float) -> int:
        """Evaluate the dual at a price; returns how much its choices use beyond the capacity."""
        nonlocal best
        chosen = np.argmin(cost + price * extras, axis=1)
        chosen_cost = float(cost[rows, chosen].sum())
        used = int(extras[rows, chosen].sum())
        over = used - slack
        magnitude = largest_cost + price * (used + abs(over))
        bound = chosen_cost + price * over - ROUNDING * magnitude
        feasible_cost = best.feasible_cost
        if over <= 0:
            feasible_cost = min(feasible_cost, chosen_cost)
        if bound > best.bound:
            best = Dual(price, bound, feasible_cost)
        else:
            best = replace(best, feasible_cost=feasible_cost)
        return over

    if visit(0.0) <= 0:
        return best
    # The dual is concave with the overuse as its slope: bracket its maximum, then halve.
    low, high = 0.0, _first_price(costs, valid, extras)
    for _ in range(200):
        if visit(high) <= 0:
            break
        low, high = high, high * 4
    for _ in range(80):
        middle = (low + high) / 2
        if visit(middle) > 0:
            low = middle
        else:
            high = middle
    return best


def _first_price(costs: FloatArray, valid: BoolArray, extras: IntArray) -> float:
    """A price of the magnitude that the costs and sizes have: their spreads' ratio, 1 where one is 0."""
    option_costs = costs[valid]
    cost_spread = float(option_costs.max() - option_costs.min())
    return cost_spread / float(max(extras.max(), 1)) or 1.0
