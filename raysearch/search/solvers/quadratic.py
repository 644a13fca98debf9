"""The full quadratic surrogate: a good assignment, and a proven bound on how good one can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.records.low_rank import LowRank
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
ROWS_AT_ONCE = MAX_OPTIONS
"""Rows of K that are looked at together."""
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
    if isinstance(surrogate.gram, LowRank):
        return _solve_low_rank(surrogate, solver, starts)
    costs = surrogate.option_costs
    rng = np.random.default_rng(seed)
    all_starts = [solver.exact(costs).choices, *starts]
    for _ in range(num_restarts):
        noise = np.exp(0.5 * rng.standard_normal(costs.shape))
        all_starts.append(solver.heuristic(costs * noise))
    ends = np.stack([descend(surrogate, solver, start) for start in all_starts])
    values = surrogate.predict(ends)
    best = ends[int(np.argmin(values))]
    value = float(values.min())
    bound = bound_cross_terms(surrogate, solver)
    num_options = surrogate.space.valid.size
    if num_options > MAX_OPTIONS:
        return Solution(best, value, min(bound, value))
    bound = max(bound, bound_convex(surrogate, solver, best))
    max_nodes = min(max_nodes, MAX_FIELD // (num_options * surrogate.space.num_columns))
    if max_nodes and bound < value:
        branched = _branch(surrogate, solver, best, value, max_nodes)
        best = branched.choices
        value = branched.value
        bound = max(bound, branched.lower_bound)
    return Solution(best, value, min(bound, value))


def _solve_low_rank(surrogate: Surrogate, solver: BudgetSolver, starts: Sequence[IntArray]) -> Solution:
    """Descent from the best start alone, and the bound of a few additive problems: all is of many options."""
    every = np.stack([solver.exact(surrogate.option_costs).choices, *starts])
    first = every[int(np.argmin(surrogate.predict(every)))]
    best = descend(surrogate, solver, first)
    value = float(surrogate.predict(best))
    return Solution(best, value, min(bound_convex(surrogate, solver, best), value))


def bound_cross_terms(surrogate: Surrogate, solver: BudgetSolver) -> float:
    """A bound for any K: each option counts half the least interaction it can have with every other group.

    ½zᵀKz = Σ_q z_q·½(K_qq + Σ_{m≠l(q)} Σ_{r∈m} K_qr z_r) ≥ Σ_q z_q·½(K_qq + Σ_{m≠l(q)} min_{r∈m} K_qr), and
    the right side is additive (Gilmore 1962, Lawler 1963). With K ≥ 0 it is at least the diagonal's optimum.
    """
    gram, valid = _gram(surrogate), surrogate.space.valid
    # Piece by piece: the least interactions of all options at once take as much memory as K.
    starts = range(0, len(gram), ROWS_AT_ONCE)
    sums = [_least_with_other_groups(gram, valid, start).sum(axis=1) for start in starts]
    costs = 0.5 * (np.diag(gram) + np.concatenate(sums)).reshape(valid.shape)
    return solver.lower_bound(np.where(valid, costs, 0.0))


def bound_convex(surrogate: Surrogate, solver: BudgetSolver, start: IntArray) -> float:
    """A bound for a positive semi-definite K: f(x) ≥ f(z) + ∇f(z)ᵀ(x − z) for every fractional z.

    So min f ≥ −½zᵀKz + min_x (Kz)ᵀx, an additive problem, whatever z is. z moves by Frank and Wolfe (1956)
    with exact steps, `CONVEX_ROUNDS` or `SLOW_ROUNDS` times, towards the minimum of the relaxation; the best
    bound counts.
    K is a Gram matrix; its least eigenvalue, where rounding makes it negative, is taken off: every z has as
    many ones as groups.

    Args:
        surrogate: with a quadratic form.
        solver: the limits.
        start: the first z, choices [L].
    """
    gram, space = surrogate.gram, surrogate.space
    assert gram is not None
    # F·Fᵀ has no negative eigenvalue.
    least = 0.0 if isinstance(gram, LowRank) else float(np.linalg.eigvalsh(gram)[0])
    shift = max(0.0, -least) * (1 + 1e-9)
    z = np.zeros(space.valid.size)
    z[space.flat(start)] = 1.0
    best = -np.inf
    is_fast = solver.is_single and not isinstance(gram, LowRank)
    for _ in range(CONVEX_ROUNDS if is_fast else SLOW_ROUNDS):
        gradient = gram @ z + shift * z
        linear_optimum = solver.exact(gradient.reshape(space.valid.shape))
        curvature = float(z @ gradient)
        bound = linear_optimum.lower_bound - 0.5 * curvature - 0.5 * shift * len(space.rows)
        best = max(best, bound)
        step = -z
        step[space.flat(linear_optimum.choices)] += 1.0
        length = float(step @ (gram @ step + shift * step))
        descent = -float(gradient @ step)
        if descent <= 1e-12 * max(curvature, 1e-300) or length <= 0:
            break
        z = z + min(1.0, descent / length) * step
    return best


def _branch(
    surrogate: Surrogate, solver: BudgetSolver, best: IntArray, value: float, max_nodes: int
) -> Solution:
    """Group by group, all partial assignments whose bound is below the best known value.

    What is fixed counts exactly, an open group by its cheapest option given what is fixed, plus half the
    least interactions among the open ones. More than `max_nodes` end it: the least of the bounds then bounds
    every assignment.
    """
    space, gram = surrogate.space, _gram(surrogate)
    order = _by_influence(surrogate)
    open_terms = _open_terms(gram, space.valid, order)
    least_use = [_least_use_after(limit.cost.linear, space.valid, order) for limit in solver.limits]
    nodes = np.zeros((1, len(order)), dtype=np.int64)
    fixed_cost = np.zeros(1)
    # Σ of the interactions of every option with what a node has fixed.
    field = np.zeros((1, space.valid.size))
    for depth, row in enumerate(order.tolist()):
        columns = np.flatnonzero(space.valid[row])
        options = row * space.num_columns + columns
        grown = np.repeat(nodes, len(columns), axis=0)
        grown[:, row] = np.tile(columns, len(nodes))
        own = 0.5 * np.diag(gram)[options]
        fixed_cost = (fixed_cost[:, None] + own + field[:, options]).ravel()
        field = (field[:, None, :] + gram[options][None]).reshape(len(grown), space.valid.size)
        open_cost = (field + open_terms[depth]).reshape(len(grown), *space.valid.shape)
        cheapest = np.where(space.valid, open_cost, np.inf).min(axis=2)
        bounds = fixed_cost + cheapest[:, order[depth + 1 :]].sum(axis=1)
        is_open = bounds < value - 1e-12 * abs(value)
        fixed_groups = order[: depth + 1]
        for limit, after in zip(solver.limits, least_use, strict=True):
            used = limit.cost.linear[fixed_groups, grown[:, fixed_groups]].sum(axis=1)
            is_open &= used + after[depth + 1] <= limit.capacity
        nodes = grown[is_open]
        fixed_cost = fixed_cost[is_open]
        field = field[is_open]
        if not len(nodes):
            return Solution(best, value, value)
        if len(nodes) > max_nodes:
            return Solution(best, value, float(bounds[is_open].min()))
    # Uses were bounded from below on the way, without couplings: now they are counted.
    is_feasible = np.array([solver.is_feasible(node) for node in nodes], dtype=bool)
    if not is_feasible.any():
        return Solution(best, value, value)
    values = np.where(is_feasible, surrogate.predict(nodes), np.inf)
    least = int(np.argmin(values))
    return Solution(nodes[least], float(values[least]), float(values[least]))


def _gram(surrogate: Surrogate) -> FloatArray:
    assert surrogate.gram is not None
    assert not isinstance(surrogate.gram, LowRank)
    return surrogate.gram


def _least_with_other_groups(gram: FloatArray, valid: BoolArray, start: int = 0) -> FloatArray:
    """Each option's least interaction with every other group, 0 with its own: [P, L], at most `ROWS_AT_ONCE`.

    Args:
        gram: K.
        valid: which of its entries are no padding.
        start: the first option.
    """
    rows = gram[start : start + ROWS_AT_ONCE]
    blocks = rows.reshape(len(rows), *valid.shape)
    least: FloatArray = np.where(valid, blocks, np.inf).min(axis=2)
    own_group = np.arange(start, start + len(rows)) // valid.shape[1]
    least[np.arange(len(rows)), own_group] = 0.0
    return least


def _by_influence(surrogate: Surrogate) -> IntArray:
    """Groups whose widths differ most in cost first: they decide, so they prune early."""
    costs, valid = surrogate.option_costs, surrogate.space.valid
    greatest = np.where(valid, costs, -np.inf).max(axis=1)
    least = np.where(valid, costs, np.inf).min(axis=1)
    return np.argsort(least - greatest, kind="stable")


def _open_terms(gram: FloatArray, valid: BoolArray, order: IntArray) -> list[FloatArray]:
    """Per depth [P]: ½K_qq plus half the least interactions with the other groups that are still open."""
    least = _least_with_other_groups(gram, valid)
    total = least.sum(axis=1)
    terms = []
    for row in order.tolist():
        total = total - least[:, row]
        terms.append(0.5 * (np.diag(gram) + total))
    return terms


def _least_use_after(linear: IntArray, valid: BoolArray, order: IntArray) -> IntArray:
    """[L + 1]: what the groups from each depth on use at least; couplings only add."""
    least = np.where(valid, linear, np.iinfo(np.int64).max).min(axis=1)[order]
    return np.concatenate([np.cumsum(least[::-1])[::-1], [0]])
