"""The full quadratic surrogate: a good assignment, and a proven bound on how good one can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.search.solvers.local_search import descend

NUM_RESTARTS = 16
MAX_NODES = 20_000
CONVEX_ROUNDS = 12
SLOW_ROUNDS = 4
"""Rounds where each is a mixed-integer program."""
MAX_OPTIONS = 2000
"""Of more options only the bound of the cross terms: K's eigenvalues alone would take minutes."""
MAX_FIELD = 2**25
"""Numbers that the branch-and-bound holds at most, for all partial assignments together."""


def solve_quadratic(
    surrogate: Surrogate,
    solver: BudgetSolver,
    starts: Sequence[IntArray] = (),
    *,
    seed: int = 0,
    num_restarts: int = NUM_RESTARTS,
    max_nodes: int = MAX_NODES,
) -> Solution:
    """Min ½·zᵀKz within the limits, z the 0/1 vector of the chosen options.

    Descent (`local_search.descend`) from the exact additive optimum, from `starts`, and from optima of the
    additive costs times log-normal noise, seeded; then a branch-and-bound that takes `max_nodes` partial
    assignments a group at most: on small spaces it proves the optimum, on large ones it gives up.

    Args:
        surrogate: the quadratic form; an additive one gives `BudgetSolver.optimum`.
        solver: the limits.
        starts: more choices to descend from.
        seed: of the noise.
        num_restarts: descents from noise.
        max_nodes: of the branch-and-bound; 0 leaves it out.

    Returns:
        The best assignment found, and the greatest of the bounds of `bound_cross_terms`, `bound_convex` and
        the branch-and-bound; the last two only up to `MAX_OPTIONS` options.
    """
    if surrogate.gram is None:
        return solver.exact(surrogate.option_costs)
    rng = np.random.default_rng(seed)
    seeds = [solver.exact(surrogate.option_costs).choices, *starts]
    for _ in range(num_restarts):
        noise = np.exp(0.5 * rng.standard_normal(surrogate.option_costs.shape))
        seeds.append(solver.heuristic(surrogate.option_costs * noise))
    ends = np.stack([descend(surrogate, solver, start) for start in seeds])
    values = surrogate.predict(ends)
    best, value = ends[int(np.argmin(values))], float(values.min())
    bound, num_options = bound_cross_terms(surrogate, solver), surrogate.space.valid.size
    if num_options <= MAX_OPTIONS:
        bound = max(bound, bound_convex(surrogate, solver, best))
        max_nodes = min(max_nodes, MAX_FIELD // (num_options * surrogate.space.valid.shape[1]))
    else:
        max_nodes = 0
    if max_nodes and bound < value:
        found = _branch(surrogate, solver, best, value, max_nodes)
        best, value, bound = found.choices, found.value, max(bound, found.lower_bound)
    return Solution(best, value, min(bound, value))


def bound_cross_terms(surrogate: Surrogate, solver: BudgetSolver) -> float:
    """A bound for any K: each option counts half the least interaction it can have with every other group.

    ½zᵀKz = Σ_q z_q·½(K_qq + Σ_{m≠l(q)} Σ_{r∈m} K_qr z_r) ≥ Σ_q z_q·½(K_qq + Σ_{m≠l(q)} min_{r∈m} K_qr), and
    the right side is additive (Gilmore 1962, Lawler 1963). With K ≥ 0 it is at least the diagonal's optimum.
    """
    gram, valid = _gram(surrogate), surrogate.space.valid
    least = _least_by_group(gram, valid)
    own = np.arange(len(valid)).repeat(valid.shape[1])
    least[np.arange(len(own)), own] = 0.0
    costs = 0.5 * (np.diag(gram) + least.sum(axis=1)).reshape(valid.shape)
    return solver.lower_bound(np.where(valid, costs, 0.0))


def bound_convex(surrogate: Surrogate, solver: BudgetSolver, start: IntArray) -> float:
    """A bound for a positive semi-definite K: f(x) ≥ f(z) + ∇f(z)ᵀ(x − z) for every fractional z.

    So min f ≥ −½zᵀKz + min_x (Kz)ᵀx, an additive problem, whatever z is. z moves by Frank and Wolfe (1956)
    with exact steps, `CONVEX_ROUNDS` or `SLOW_ROUNDS` times, towards the minimum of the relaxation; the best
    bound counts.
    K is a Gram matrix; its least eigenvalue, where rounding makes it negative, is taken off: every z has as
    many ones as groups.
    """
    gram, space = _gram(surrogate), surrogate.space
    shift = max(0.0, -float(np.linalg.eigvalsh(gram)[0])) * (1 + 1e-9)
    at = np.zeros(space.valid.size)
    at[space.flat(start)] = 1.0
    best = -np.inf
    for _ in range(CONVEX_ROUNDS if solver.is_single else SLOW_ROUNDS):
        slope = gram @ at + shift * at
        found = solver.exact(slope.reshape(space.valid.shape))
        curvature = float(at @ slope)
        best = max(best, found.lower_bound - 0.5 * curvature - 0.5 * shift * len(space.rows))
        step = -at
        step[space.flat(found.choices)] += 1.0
        length = float(step @ (gram @ step + shift * step))
        descent = -float(slope @ step)
        if descent <= 1e-12 * max(curvature, 1e-300) or length <= 0:
            break
        at = at + min(1.0, descent / length) * step
    return best


def _branch(
    surrogate: Surrogate, solver: BudgetSolver, known: IntArray, value: float, max_nodes: int
) -> Solution:
    """Group by group, all partial assignments whose bound is below the best known value.

    What is fixed counts exactly, an open group by its cheapest option given what is fixed, plus half the
    least interactions among the open ones. More than `max_nodes` end it: the least of the bounds then bounds
    every assignment.
    """
    space, gram = surrogate.space, _gram(surrogate)
    width, order = space.valid.shape[1], _by_influence(surrogate)
    open_terms = _open_terms(gram, space.valid, order)
    least = [_least_use_after(limit.cost.linear, space.valid, order) for limit in solver.limits]
    nodes = np.zeros((1, len(order)), dtype=np.int64)
    fixed, field = np.zeros(1), np.zeros((1, space.valid.size))
    for depth, row in enumerate(order.tolist()):
        columns = np.flatnonzero(space.valid[row])
        picked = row * width + columns
        grown = np.repeat(nodes, len(columns), axis=0)
        grown[:, row] = np.tile(columns, len(nodes))
        fixed = (fixed[:, None] + 0.5 * np.diag(gram)[picked] + field[:, picked]).ravel()
        field = (field[:, None, :] + gram[picked][None]).reshape(len(grown), space.valid.size)
        rest = (field + open_terms[depth]).reshape(len(grown), *space.valid.shape)
        rest = np.where(space.valid, rest, np.inf).min(axis=2)[:, order[depth + 1 :]].sum(axis=1)
        keep = fixed + rest < value - 1e-12 * abs(value)
        for limit, after in zip(solver.limits, least, strict=True):
            used = limit.cost.linear[order[: depth + 1], grown[:, order[: depth + 1]]].sum(axis=1)
            keep &= used + after[depth + 1] <= limit.capacity
        nodes, fixed, field, bounds = grown[keep], fixed[keep], field[keep], (fixed + rest)[keep]
        if not len(nodes):
            return Solution(known, value, value)
        if len(nodes) > max_nodes:
            return Solution(known, value, float(bounds.min()))
    feasible = np.array([solver.is_feasible(node) for node in nodes], dtype=bool)
    if not feasible.any():
        return Solution(known, value, value)
    values = np.where(feasible, surrogate.predict(nodes), np.inf)
    best = int(np.argmin(values))
    return Solution(nodes[best], float(values[best]), float(values[best]))


def _gram(surrogate: Surrogate) -> FloatArray:
    assert surrogate.gram is not None
    return surrogate.gram


def _least_by_group(gram: FloatArray, valid: BoolArray) -> FloatArray:
    """[P, L]: each option's least interaction with every group."""
    blocks = gram.reshape(len(gram), *valid.shape)
    least: FloatArray = np.where(valid, blocks, np.inf).min(axis=2)
    return least


def _by_influence(surrogate: Surrogate) -> IntArray:
    """Groups whose widths differ most in cost first: they decide, so they prune early."""
    costs, valid = surrogate.option_costs, surrogate.space.valid
    spread = np.where(valid, costs, -np.inf).max(axis=1) - np.where(valid, costs, np.inf).min(axis=1)
    return np.argsort(-spread, kind="stable")


def _open_terms(gram: FloatArray, valid: BoolArray, order: IntArray) -> list[FloatArray]:
    """Per depth [P]: ½K_qq plus half the least interactions with the groups still open, its own left out."""
    least, own = _least_by_group(gram, valid), np.arange(len(valid)).repeat(valid.shape[1])
    least[np.arange(len(own)), own] = 0.0
    found, total = [], least.sum(axis=1)
    for row in order.tolist():
        total = total - least[:, row]
        found.append(0.5 * (np.diag(gram) + total))
    return found


def _least_use_after(linear: IntArray, valid: BoolArray, order: IntArray) -> IntArray:
    """[L + 1]: what the groups from each depth on use at least; couplings only add."""
    least = np.where(valid, linear, np.iinfo(np.int64).max).min(axis=1)[order]
    return np.concatenate([np.cumsum(least[::-1])[::-1], [0]])
