"""Any additive option costs in, a feasible assignment out, under several budgets at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.errors import BudgetError
from raysearch.search.knapsack import DEFAULT_STEPS, FINE_STEPS, Knapsack
from raysearch.search.space import FloatArray, IntArray, Limit, OptionSpace

SMALL_SPACE = 20_000
"""Up to so many assignments, the feasible ones are listed, and the search ends when all are measured."""


class Decoder:
    """Decodes costs [L, B] into choices that keep every limit.

    One separable limit: the exact knapsack. More limits, or bit operations with both widths free
    (a bilinear form): the knapsack solution of each separable limit, and for a bilinear one the
    unconstrained optimum and the lowest widths, are repaired downwards and filled upwards, and the
    cheapest is taken. Every limit grows with
    every width, so a repair that ends at the lowest widths is feasible: none is ever refused.

    Args:
        space: the options.
        limits: the budgets as integer limits.
        num_steps: grid of the knapsacks.

    Raises:
        BudgetError: the lowest assignment exceeds a limit.
    """

    def __init__(self, space: OptionSpace, limits: Sequence[Limit], num_steps: int = DEFAULT_STEPS) -> None:
        self.space, self.limits = space, tuple(limits)
        for limit in self.limits:
            least = int(limit.use(space.lowest))
            if least > limit.capacity:
                raise BudgetError(
                    f"the budget '{limit.budget.text}' is below the smallest assignment: it allows "
                    f"{limit.capacity}, the least is {least}."
                )
        self._knapsacks = [
            Knapsack(limit.linear, space.valid, limit.capacity, num_steps)
            for limit in self.limits
            if limit.pairs is None
        ]
        self._separable = len(self._knapsacks) == len(self.limits)
        self._columns = np.arange(space.widths.shape[1])

    def scaled(self, fraction: float, num_steps: int = DEFAULT_STEPS) -> Decoder:
        """A decoder with a fraction of every capacity.

        Raises:
            BudgetError: the lowest assignment exceeds the fraction.
        """
        return Decoder(self.space, [limit.scaled(fraction) for limit in self.limits], num_steps)

    def is_feasible(self, choices: IntArray) -> bool:
        """Whether choices [L] keep every limit."""
        return all(int(limit.use(choices)) <= limit.capacity for limit in self.limits)

    def feasible(self, most: int) -> IntArray | None:
        """All feasible choices [N, L], or None when the space has more than `most` assignments."""
        every = self.space.enumerate(most)
        if every is None:
            return None
        keep = np.ones(len(every), dtype=bool)
        for limit in self.limits:
            keep &= limit.use(every) <= limit.capacity
        return every[keep]

    def decode(self, costs: FloatArray) -> IntArray:
        """Feasible choices [L] of low Σ_l costs[l, x_l]; the least for one separable limit."""
        found = [knapsack.solve(costs) for knapsack in self._knapsacks]
        if len(self.limits) == 1 and found:
            return found[0] if self._knapsacks[0].exact else self.fill(found[0], costs)
        if not self._separable:
            found += [np.argmin(np.where(self.space.valid, costs, np.inf), axis=1), self.space.lowest]
        tried = [self.fill(self.repair(choices, costs), costs) for choices in found]
        return min(tried, key=lambda choices: float(self.space.take(costs, choices).sum()))

    def lower_bound(self, costs: FloatArray) -> float:
        """A value below which no feasible choices can be: the greatest over the limits taken alone.

        For bilinear bit operations each option counts with the other groups at their lowest widths,
        which is less than it uses: a relaxation.
        """
        bounds = []
        for limit in self.limits:
            sizes, capacity = limit.linear, limit.capacity
            if limit.pairs is not None:
                sizes, base = limit.changes(self.space.lowest), int(limit.use(self.space.lowest))
                capacity -= base
            bounds.append(Knapsack(sizes, self.space.valid, capacity, FINE_STEPS).lower_bound(costs))
        return max(bounds)

    def greedy(self, costs: FloatArray) -> IntArray:
        """From the lowest widths upwards, the best gain per use of the budgets first."""
        return self.fill(self.space.lowest, costs)

    def repair(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Lower widths, the least harm per relief first, until every limit holds."""
        found = choices.copy()
        while (over := self._violation(found)) > 0:
            harm = costs - self.space.take(costs, found)[:, None]
            relief = over - self._violations(found)
            score = np.where(harm > 0, harm / np.maximum(relief, 1e-300), harm * relief)
            score[~((self._columns < found[:, None]) & (relief > 0))] = np.inf
            row, column = divmod(int(np.argmin(score)), len(self._columns))
            if score[row, column] == np.inf:
                return self.space.lowest
            found[row] = column
        return found

    def fill(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Spend what is left: moves that lower the cost and fit, the best gain per use first.

        A wider option of the same cost is taken last, if it fits.
        """
        found = choices.copy()
        while True:
            fits, use = self.space.valid.copy(), np.zeros(self.space.valid.shape)
            for limit in self.limits:
                change = limit.changes(found)
                fits &= change <= limit.capacity - int(limit.use(found))
                use += np.maximum(change, 0) / max(limit.capacity, 1)
            gain = self.space.take(costs, found)[:, None] - costs
            score = np.where(fits & (gain > 0), gain / np.maximum(use, 1e-12), 0.0)
            if score.max() <= 0:
                score = (fits & (gain == 0) & (self._columns > found[:, None])).astype(float)
                if score.max() <= 0:
                    return found
            row, column = divmod(int(np.argmax(score)), len(self._columns))
            found[row] = column

    def _violation(self, choices: IntArray) -> float:
        return sum(
            max(0, int(limit.use(choices)) - limit.capacity) / max(limit.capacity, 1) for limit in self.limits
        )

    def _violations(self, choices: IntArray) -> FloatArray:
        """[L, B]: Σ over the limits of the relative excess after each single move."""
        total = np.zeros(self.space.valid.shape)
        for limit in self.limits:
            after = limit.changes(choices) + (int(limit.use(choices)) - limit.capacity)
            total += np.maximum(after, 0) / max(limit.capacity, 1)
        return total
