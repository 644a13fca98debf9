"""Descent on a surrogate with interactions, within the budgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.records.low_rank import LowRank
from raysearch.search.problem.limits import Limit
from raysearch.search.problem.space import FloatArray, IntArray
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.search.solvers.low_rank import descend_low_rank

MAX_MOVES = 2000

ROWS_AT_ONCE = 4096
"""Rows of K whose chosen entries are copied together."""

MAX_SWAPPED = 4096
"""Options that are tried as one side of a swap; in a larger space those whose own change is least."""

ROUNDING = 1e-12
"""Gains below this share of the greatest cost are rounding errors, and no reason to move."""


def descend(
    surrogate: Surrogate, solver: BudgetSolver, start: IntArray, extra: FloatArray | None = None
) -> IntArray:
    """Steepest descent by single moves, then by swaps (one group up, another down), to a local optimum.

    f(z) = ½·zᵀKz + Σ extra, z the 0/1 vector of the chosen options. With h = K·z kept up to date (O(P) a
    move), replacing option a by b changes f by h_b − h_a + ½(K_aa + K_bb − 2K_ab), and two moves together
    by their sum plus K_bd − K_bc − K_ad + K_ac. A swap is tried when no single move helps.

    Args:
        surrogate: the quadratic form; an additive one is its option costs with K = 0.
        solver: the limits.
        start: feasible choices [L].
        extra: additive costs [L, B] on top of a quadratic form.

    Returns:
        Feasible choices [L] that no fitting move improves; ties go to the lowest index. Of a factor in place
        of K see `descend_low_rank`.
    """
    if isinstance(surrogate.gram, LowRank):
        linear = np.zeros(surrogate.space.valid.shape) if extra is None else extra
        return descend_low_rank(surrogate.gram, surrogate.space, solver, start, linear)
    descent = _Descent(surrogate, solver, start, extra)
    for _ in range(MAX_MOVES):
        changes = descent.changes()
        options = descent.best_single(changes)
        if not options:
            # Looked for only here: their number grows with the square of the options.
            options = descent.best_swap(changes)
        if not options:
            break
        descent.take(options)
    return descent.choices


class _Descent:
    """Choices, and h = K·z of them, kept up to date; options are flat indices [P].

    Attributes:
        choices: [L].
    """

    def __init__(
        self, surrogate: Surrogate, solver: BudgetSolver, start: IntArray, extra: FloatArray | None
    ) -> None:
        space = surrogate.space
        linear = np.zeros(space.valid.shape) if extra is None else extra
        num_options = space.valid.size
        gram = surrogate.gram
        assert not isinstance(gram, LowRank)
        if gram is None:
            linear = linear + surrogate.option_costs
            gram = np.zeros((num_options, num_options))
        self.choices = start.copy()
        self._solver = solver
        self._space = space
        self._gram = gram
        self._linear = linear.ravel()
        self._diagonal = np.diag(gram)
        self._valid = space.valid.ravel()
        self._group_of = np.repeat(space.rows, space.num_columns)
        self._column_of = np.tile(np.arange(space.num_columns), len(space.rows))
        self._field = _row_sums(gram, space.flat(start))
        greatest = max(float(np.abs(self._diagonal).max()), float(np.abs(linear).max()), 1e-300)
        self._least_gain = ROUNDING * greatest

    def changes(self) -> FloatArray:
        """[P]: by how much f changes when the option replaces its group's."""
        current = self._space.flat(self.choices)[self._group_of]
        change: FloatArray = self._field - self._field[current]
        change = change + 0.5 * (self._diagonal + self._diagonal[current])
        interaction = self._gram[np.arange(len(current)), current]
        return change + (self._linear - self._linear[current] - interaction)

    def take(self, options: Sequence[int]) -> None:
        """Let groups take options, each of another group."""
        before = self._space.flat(self.choices)
        for option in options:
            group = self._group_of[option]
            self._field = self._field + self._gram[:, option] - self._gram[:, before[group]]
            self.choices[group] = self._column_of[option]

    def best_single(self, changes: FloatArray) -> list[int]:
        """The fitting option that lowers f most; none where nothing does."""
        fits = self._valid.copy()
        for limit in self._solver.limits:
            fits &= limit.changes(self.choices).ravel() <= limit.room(self.choices)
        fitting = np.where(fits, changes, np.inf)
        best = int(np.argmin(fitting))
        return [best] if fitting[best] < -self._least_gain else []

    def best_swap(self, changes: FloatArray) -> list[int]:
        """A wider option of one group and a narrower one of another that together lower f most and fit."""
        now = self._space.flat(self.choices)
        current = self.choices[self._group_of]
        up = _likeliest(np.flatnonzero(self._valid & (self._column_of > current)), changes)
        down = _likeliest(np.flatnonzero(self._valid & (self._column_of < current)), changes)
        if not len(up) or not len(down):
            return []
        up_group = self._group_of[up]
        down_group = self._group_of[down]
        before_up = now[up_group]
        before_down = now[down_group]
        total = changes[up][:, None] + changes[down][None, :]
        total += self._gram[np.ix_(up, down)] - self._gram[np.ix_(up, before_down)]
        total += self._gram[np.ix_(before_up, before_down)] - self._gram[np.ix_(before_up, down)]
        total[up_group[:, None] == down_group[None, :]] = np.inf
        for limit in self._solver.limits:
            use = limit.changes(self.choices).ravel()
            grown = use[up][:, None] + use[down][None, :]
            if not limit.is_separable:
                _add_couplings(grown, limit, self.choices, up, down)
            total[grown > limit.room(self.choices)] = np.inf
        row, column = divmod(int(np.argmin(total)), len(down))
        return [int(up[row]), int(down[column])] if total[row, column] < -self._least_gain else []


def _row_sums(gram: FloatArray, columns: IntArray) -> FloatArray:
    """Σ over some columns of every row, without a copy of all those entries."""
    starts = range(0, len(gram), ROWS_AT_ONCE)
    return np.concatenate([gram[start : start + ROWS_AT_ONCE, columns].sum(axis=1) for start in starts])


def _likeliest(options: IntArray, changes: FloatArray) -> IntArray:
    """Those whose own change is least, in their order, where there are too many to try all pairs."""
    if len(options) <= MAX_SWAPPED:
        return options
    best = np.argsort(changes[options], kind="stable")[:MAX_SWAPPED]
    return options[np.sort(best)]


def _add_couplings(grown: IntArray, limit: Limit, choices: IntArray, up: IntArray, down: IntArray) -> None:
    """What two moves on one edge change besides their sum: T[b,d] − T[b,y] − T[x,d] + T[x,y].

    Args:
        grown: [U, D], changed in place.
        limit: whose use it is.
        choices: [L], with x and y of an edge's two groups.
        up: flat indices [U] of the one moves' options.
        down: flat indices [D] of the others'.
    """
    num_columns = limit.space.num_columns
    of_up, of_down = up // num_columns, down // num_columns
    for (first, second), table in zip(limit.cost.edges, limit.cost.tables, strict=True):
        x, y = choices[first], choices[second]
        mixed = table - table[x][None, :] - table[:, y][:, None] + table[x, y]
        for up_group, down_group, values in ((first, second, mixed), (second, first, mixed.T)):
            rows = np.flatnonzero(of_up == up_group)
            columns = np.flatnonzero(of_down == down_group)
            if len(rows) and len(columns):
                picked = np.ix_(up[rows] % num_columns, down[columns] % num_columns)
                grown[np.ix_(rows, columns)] += values[picked]
