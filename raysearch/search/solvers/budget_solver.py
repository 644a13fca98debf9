"""Any additive option costs in, a feasible assignment out, under several budgets at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from raysearch.errors import BudgetError
from raysearch.search.problem.limits import Limit
from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import FloatArray, IntArray, OptionSpace
from raysearch.search.solvers.dominance import solve_exactly
from raysearch.search.solvers.knapsack import DEFAULT_STEPS, FINE_STEPS, Knapsack
from raysearch.search.solvers.lagrangian import priced_choices
from raysearch.search.solvers.repair import Moves

__all__ = ["FINE_STEPS", "SMALL_SPACE", "BudgetSolver"]

SMALL_SPACE = 20_000
"""Up to so many assignments, the feasible ones are listed, and the search ends when all are measured."""

MAX_KNAPSACKS = 4
"""Of more separable limits than this, the tightest are solved each on its own as a start."""

BASE_GAP = 0.01
"""Where the solver may stop that looks for a feasible base: any feasible assignment would do."""


class BudgetSolver:
    """Solves for the choices of least additive cost [L, B] that keep every limit.

    `heuristic` takes milliseconds: with one separable limit it is the exact knapsack; with more limits, or
    limits that couple groups, the knapsack solution of each separable limit, the choices under prices of all
    limits, and the lowest feasible ones are repaired and filled, and the cheapest is taken. `exact` proves
    the optimum, and is slower. None is ever refused: a repair that finds no single move goes to `base`, which
    is feasible.

    Args:
        space: the options.
        limits: the budgets as integer limits.
        num_steps: grid of the knapsacks.

    Attributes:
        base: feasible choices [L] of low use.

    Raises:
        BudgetError: no assignment keeps the limits.
    """

    def __init__(self, space: OptionSpace, limits: Sequence[Limit], num_steps: int = DEFAULT_STEPS) -> None:
        self.space = space
        self.limits = tuple(limits)
        self.base = self._feasible_base()
        separable = [limit for limit in self.limits if limit.is_separable]
        separable.sort(key=lambda limit: limit.capacity / max(1, limit.greatest))
        self._knapsacks = [
            Knapsack(limit.cost.linear, space.valid, limit.capacity, num_steps)
            for limit in separable[:MAX_KNAPSACKS]
        ]

    @cached_property
    def moves(self) -> Moves:
        """Repair and fill within the limits."""
        return Moves(self.space, self.limits, self.base)

    @property
    def is_single(self) -> bool:
        """Whether there is one limit, and each group adds its own part: the problem is a plain knapsack."""
        return len(self.limits) == 1 and self.limits[0].is_separable

    def scaled(self, fraction: float, num_steps: int = DEFAULT_STEPS) -> BudgetSolver:
        """A solver with a fraction of every capacity.

        Raises:
            BudgetError: no assignment keeps the fractions.
        """
        return BudgetSolver(self.space, [limit.scaled(fraction) for limit in self.limits], num_steps)

    def is_feasible(self, choices: IntArray) -> bool:
        """Whether choices [L] keep every limit."""
        return all(limit.is_kept(choices) for limit in self.limits)

    def keep_feasible(self, choices: IntArray) -> IntArray:
        """Those of choices [N, L] that keep every limit."""
        is_kept = np.ones(len(choices), dtype=bool)
        for limit in self.limits:
            is_kept &= limit.is_kept(choices)
        return choices[is_kept]

    def feasible_choices(self, most: int) -> IntArray | None:
        """All feasible choices [N, L], or None when the space has more than `most` assignments."""
        every = self.space.enumerate(most)
        return None if every is None else self.keep_feasible(every)

    def heuristic(self, costs: FloatArray) -> IntArray:
        """Feasible choices [L] of low Σ_l costs[l, x_l]; the least for one separable limit."""
        starts = [knapsack.solve(costs) for knapsack in self._knapsacks]
        if self.is_single:
            # On a coarse grid of capacities something may be left to spend.
            return starts[0] if self._knapsacks[0].exact else self.fill(starts[0], costs)
        starts += [priced_choices(self.space, self.limits, costs), self.base]
        ends = [self._make_feasible(start, costs) for start in starts]
        return min(ends, key=lambda choices: self.space.total(costs, choices))

    def exact(self, costs: FloatArray) -> Solution:
        """The choices of least Σ_l costs[l, x_l], with the bound that proves it, or says what is missing.

        One separable limit: by dominance, from the heuristic's choices. Otherwise a mixed-integer program.
        A group whose widths cost the same takes the widest that fits.
        """
        start = self.heuristic(costs)
        if self.is_single:
            (limit,) = self.limits
            solution = solve_exactly(limit.cost.linear, self.space.valid, limit.capacity, costs, start)
        else:
            # It imports scipy's optimizers, which one limit does without.
            from raysearch.search.solvers.milp import solve_milp

            solution = solve_milp(
                self.space,
                self.limits,
                costs,
                start,
                make_feasible=lambda choices: self._make_feasible(choices, costs),
            )
        choices = self.fill(solution.choices, costs)
        value = self.space.total(costs, choices)
        return Solution(choices, value, min(solution.lower_bound, value))

    def lower_bound(self, costs: FloatArray) -> float:
        """A value below which no feasible choices can be; the optimum itself unless `exact` gave up."""
        return self.exact(costs).lower_bound

    def greedy(self, costs: FloatArray) -> IntArray:
        """From the lowest feasible widths upwards, the best gain per use of the budgets first."""
        return self.fill(self.base, costs)

    def repair(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Change widths, the least harm per relief first, until every limit holds."""
        return self.moves.repair(choices, costs)

    def fill(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Spend what is left: moves that lower the cost and fit, the best gain per use first.

        A wider option of the same cost is taken last, if it fits.
        """
        return self.moves.fill(choices, costs)

    def _make_feasible(self, choices: IntArray, costs: FloatArray) -> IntArray:
        return self.fill(self.repair(choices, costs), costs)

    def _feasible_base(self) -> IntArray:
        """The lowest widths, or what comes nearest where limits forbid them.

        Raises:
            BudgetError: no assignment keeps the limits.
        """
        lowest = self.space.lowest
        if self.is_feasible(lowest):
            return lowest
        for limit in self.limits:
            least = int(limit.use(lowest))
            if limit.is_monotone and least > limit.capacity:
                raise BudgetError(
                    f"the budget '{limit.text}' is below the smallest assignment: it allows "
                    f"{limit.capacity}, the least is {least}."
                )
        if self.is_single:
            linear = np.where(self.space.valid, self.limits[0].cost.linear, np.iinfo(np.int64).max)
            least_use: IntArray = np.argmin(linear, axis=1).astype(np.int64)
            if self.is_feasible(least_use):
                return least_use
        from raysearch.search.solvers.milp import solve_milp

        return solve_milp(self.space, self.limits, self._relative_use(), rel_gap=BASE_GAP).choices

    def _relative_use(self) -> FloatArray:
        """[L, B]: roughly what share of the limits an option uses, so that the base leaves room."""
        share = np.zeros(self.space.valid.shape)
        for limit in self.limits:
            capacity = max(limit.capacity, 1)
            weights, inputs = limit.cost.edges.T
            share += limit.cost.linear / capacity
            # A coupling counts with its mean over the other group's options, for each of the two.
            np.add.at(share, weights, limit.cost.tables.mean(axis=2) / capacity)
            np.add.at(share, inputs, limit.cost.tables.mean(axis=1) / capacity)
        return share
