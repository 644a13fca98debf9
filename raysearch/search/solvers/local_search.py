"""Descent on a surrogate with interactions, within the budgets."""

from __future__ import annotations

import numpy as np

from raysearch.search.problem.limits import Limit
from raysearch.search.problem.space import FloatArray, IntArray
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.solvers.budget_solver import BudgetSolver

MAX_MOVES = 2000


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
        Feasible choices [L] that no fitting move improves; ties go to the lowest index.
    """
    space = surrogate.space
    num_columns = space.widths.shape[1]
    linear = np.zeros(space.valid.shape) if extra is None else extra
    if surrogate.gram is None:
        linear = linear + surrogate.option_costs
    gram = np.zeros((space.valid.size,) * 2) if surrogate.gram is None else surrogate.gram
    diagonal, group_of = np.diag(gram), np.repeat(space.rows, num_columns)
    column_of = np.tile(np.arange(num_columns), len(space.rows))
    found = start.copy()
    field = gram[:, space.flat(found)].sum(axis=1)
    least = 1e-12 * max(float(np.abs(diagonal).max()), float(np.abs(linear).max()), 1e-300)
    for _ in range(MAX_MOVES):
        now = space.flat(found)
        current = now[group_of]
        step = field - field[current] + 0.5 * (diagonal + diagonal[current])
        step += linear.ravel() - linear.ravel()[current] - gram[np.arange(len(current)), current]
        moves = _best_single(solver, found, step, least) or _best_swap(
            solver, found, step, gram, now, least, group_of, column_of
        )
        if not moves:
            break
        for move in moves:
            field = field + gram[:, move] - gram[:, now[group_of[move]]]
            found[group_of[move]] = column_of[move]
    return found


def _best_single(solver: BudgetSolver, found: IntArray, step: FloatArray, least: float) -> list[int]:
    fits = solver.space.valid.ravel().copy()
    for limit in solver.limits:
        fits &= limit.changes(found).ravel() <= limit.capacity - int(limit.use(found))
    gains = np.where(fits, step, np.inf)
    best = int(np.argmin(gains))
    return [best] if gains[best] < -least else []


def _best_swap(
    solver: BudgetSolver,
    found: IntArray,
    step: FloatArray,
    gram: FloatArray,
    now: IntArray,
    least: float,
    group_of: IntArray,
    column_of: IntArray,
) -> list[int]:
    valid, current = solver.space.valid.ravel(), found[group_of]
    up, down = np.flatnonzero(valid & (column_of > current)), np.flatnonzero(valid & (column_of < current))
    if not len(up) or not len(down):
        return []
    up_group, down_group = group_of[up], group_of[down]
    from_up, from_down = now[up_group], now[down_group]
    gains = step[up][:, None] + step[down][None, :]
    gains += gram[np.ix_(up, down)] - gram[np.ix_(up, from_down)]
    gains += gram[np.ix_(from_up, from_down)] - gram[np.ix_(from_up, down)]
    gains[up_group[:, None] == down_group[None, :]] = np.inf
    for limit in solver.limits:
        change = limit.changes(found).ravel()
        total = change[up][:, None] + change[down][None, :]
        if not limit.is_separable:
            _add_couplings(total, limit, found, up, down, num_columns=current.size // len(found))
        gains[total > limit.capacity - int(limit.use(found))] = np.inf
    row, column = divmod(int(np.argmin(gains)), len(down))
    return [int(up[row]), int(down[column])] if gains[row, column] < -least else []


def _add_couplings(
    total: IntArray, limit: Limit, found: IntArray, up: IntArray, down: IntArray, num_columns: int
) -> None:
    """What two moves on one edge change besides their sum: T[b,d] − T[b,y] − T[x,d] + T[x,y]."""
    of_up, of_down = up // num_columns, down // num_columns
    for (first, second), table in zip(limit.cost.edges, limit.cost.tables, strict=True):
        mixed = table - table[found[first]][None, :] - table[:, found[second]][:, None]
        mixed = mixed + table[found[first], found[second]]
        for rows, columns, values in ((first, second, mixed), (second, first, mixed.T)):
            at, to = np.flatnonzero(of_up == rows), np.flatnonzero(of_down == columns)
            if len(at) and len(to):
                total[np.ix_(at, to)] += values[np.ix_(up[at] % num_columns, down[to] % num_columns)]
