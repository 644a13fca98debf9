"""Descent on a quadratic form whose matrix is a factor times its transpose."""

from __future__ import annotations

import numpy as np

from raysearch.records.low_rank import LowRank, diagonal
from raysearch.search.problem.space import FloatArray, IntArray, OptionSpace
from raysearch.search.solvers.budget_solver import BudgetSolver

ROUNDS = 40
"""Additive problems that are solved at most."""

GROWTH = 4.0

LEAST_GAIN = 1e-6
"""A smaller share of the value is not worth another look at all options."""


def descend_low_rank(
    gram: LowRank, space: OptionSpace, solver: BudgetSolver, start: IntArray, linear: FloatArray
) -> IntArray:
    """Many groups change at once, each round by one additive problem within the limits.

    f(z) = ½·‖Fᵀz‖² + Σ linear. Where n groups change by d_l = F_b − F_a, ‖Σ d_l‖² ≤ n·Σ‖d_l‖², so

        f(z′) − f(z) ≤ Σ_l [(Kz)_b − (Kz)_a + linear_b − linear_a + ½ρ‖d_l‖²]   for ρ ≥ n,

    and the right side is additive and 0 where nothing changes: its minimum lowers f (Lange, MM Optimization
    Algorithms, 2016). Less than n mostly does; so ρ begins at 1, grows until f falls, and shrinks again. A
    round costs two passes over F, where a matrix of all pairs would not fit into memory.

    Args:
        gram: K by flat index, rows of zeros where padded.
        space: the options.
        solver: the limits.
        start: feasible choices [L].
        linear: additive costs [L, B] on top.

    Returns:
        Feasible choices [L], no worse than those of the start.
    """
    choices = start
    value = _value(gram, space, linear, choices)
    squares = diagonal(gram).reshape(space.valid.shape)
    curvature = 1.0
    for _ in range(ROUNDS):
        slopes, apart = _changes(gram, space, squares, choices)
        slopes = slopes + linear - space.take(linear, choices)[:, None]
        gain = 0.0
        while curvature <= GROWTH * len(choices):
            costs = np.where(space.valid, slopes + 0.5 * curvature * apart, 0.0)
            proposal = solver.heuristic(costs)
            if np.array_equal(proposal, choices):
                # A greater curvature moves less.
                return choices
            gain = value - _value(gram, space, linear, proposal)
            if gain > 0:
                break
            curvature *= GROWTH
        if gain <= LEAST_GAIN * abs(value):
            return proposal if gain > 0 else choices
        choices, value = proposal, value - gain
        curvature = max(1.0, curvature / GROWTH)
    return choices


def _value(gram: LowRank, space: OptionSpace, linear: FloatArray, choices: IntArray) -> float:
    total = gram.factor[space.flat(choices)].sum(axis=0)
    return 0.5 * float(total @ total) + space.total(linear, choices)


def _changes(
    gram: LowRank, space: OptionSpace, squares: FloatArray, choices: IntArray
) -> tuple[FloatArray, FloatArray]:
    """(Kz)_b − (Kz)_a and ‖F_b − F_a‖² of every option b of a group whose option is a: [L, B] each."""
    current = gram.factor[space.flat(choices)]
    shape = space.valid.shape
    field = (gram.factor @ current.sum(axis=0)).reshape(shape)
    blocks = gram.factor.reshape(*shape, gram.factor.shape[1])
    inner = np.einsum("lbm,lm->lb", blocks, current)
    apart = squares + space.take(squares, choices)[:, None] - 2 * inner
    return field - space.take(field, choices)[:, None], np.maximum(apart, 0.0)
