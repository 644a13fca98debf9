"""Any number of budgets at once, exactly: a mixed-integer linear program, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, hstack, vstack

from raysearch.errors import BudgetError
from raysearch.search.problem.integer_costs import IntegerCost
from raysearch.search.problem.limits import Limit
from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray, OptionSpace
from raysearch.search.solvers.linear_program import Edges, LinearProgram, limit_row, make_linear_program
from raysearch.search.solvers.quiet_stdout import quiet_stdout
from raysearch.search.solvers.relaxation import relax

REL_GAP = 1e-4
NODE_LIMIT = 2000
"""Nodes of the search tree; a limit in seconds would make the result depend on the machine."""

CORE = 3
"""Gaps above the relaxation's bound within which the optimum is looked for first (Pisinger 1995's core)."""

TOLERANCE = 1e-6
"""Of HiGHS, relative to the objective: how far its bound may be from a proven one."""


def solve_milp(
    space: OptionSpace,
    limits: Sequence[Limit],
    costs: FloatArray,
    start: IntArray | None = None,
    *,
    make_feasible: Callable[[IntArray], IntArray] | None = None,
    rel_gap: float = REL_GAP,
    node_limit: int = NODE_LIMIT,
    time_limit: float | None = None,
) -> Solution:
    """Min Σ_l c[l, x_l] within all limits.

    One binary variable an option; one continuous variable for each pair of options of two groups that a
    limit couples, with Σ over either group equal to the other's binary, so that it is their product. The
    linear relaxation, made feasible, may better `start`; options and products that its prices show to be in
    no assignment better than that are taken out (`relaxation.relax`), and at first even those of which a
    better one could be no more than `CORE` gaps above the relaxation: mostly that is enough for the proof.
    The answer is checked in integers; where the solver's tolerance let it exceed a limit, it is solved again
    with that much less.

    Cost: one linear program and one branch-and-bound over what is left; 1,000 groups of 6 widths and 3
    limits take a second or so, see benchmarks/results/search.md.

    Args:
        space: the options.
        limits: what must hold.
        costs: [L, B].
        start: feasible choices [L], handed back when nothing better is found.
        make_feasible: brings choices [L] that may exceed limits a little within them, at little cost.
        rel_gap: where the solver may stop: (value − bound)/value.
        node_limit: where it stops in any case.
        time_limit: seconds; the result then depends on the machine's speed.

    Returns:
        The best assignment found and the solver's proven bound (less its tolerance).

    Raises:
        BudgetError: no assignment keeps the limits, or none was found and there is no `start`.
    """
    base = np.where(space.valid, costs, np.inf).min(axis=1, keepdims=True)
    extra, ground = np.where(space.valid, costs - base, 0.0), float(base.sum())
    worst = ground + float(extra.max(axis=1).sum())
    value = worst if start is None else float(space.take(costs, start).sum())
    unit = max(value - ground, 1e-12 * abs(ground), 1e-300)
    options = {"mip_rel_gap": rel_gap * abs(value) / unit, "node_limit": node_limit}
    if time_limit is not None:
        options["time_limit"] = time_limit
    relaxed = None if start is None else relax(space, limits, extra / unit)
    if start is None or relaxed is None:
        edges = Edges.of(space, limits, space.valid)
        found, proven = _search(space, limits, extra / unit, space.valid, edges, options)
        bound = max(ground, ground + unit * (proven - TOLERANCE))
        if found is not None and (start is None or float(space.take(costs, found).sum()) < value):
            start, value = found, float(space.take(costs, found).sum())
        if start is None:
            asked = ", ".join(dict.fromkeys(limit.text for limit in limits))
            raise BudgetError(f"no assignment keeps {asked} together. Raise a limit, or allow other widths.")
        return Solution(start, value, min(bound, value))
    least = bound = ground + unit * relaxed.bound
    if make_feasible is not None:
        rounded = make_feasible(relaxed.choices)
        if (cost := float(space.take(costs, rounded).sum())) < value:
            start, value = rounded, cost
    for core in (CORE * rel_gap * abs(value), np.inf):
        if value - bound <= rel_gap * abs(value):
            break
        room = min(core, value - least) / unit
        found, proven = _search(space, limits, extra / unit, *relaxed.within(room), options)
        # What was left out costs more than the relaxation's bound and the room.
        bound = max(bound, min(ground + unit * (proven - TOLERANCE), least + unit * room))
        if found is not None and (cost := float(space.take(costs, found).sum())) < value:
            start, value = found, cost
    return Solution(start, value, min(bound, value))


def _search(
    space: OptionSpace,
    limits: Sequence[Limit],
    costs: FloatArray,
    kept: BoolArray,
    edges: Edges,
    options: dict[str, float],
) -> tuple[IntArray | None, float]:
    """The best choices of the kept options that were found, and the bound of the limits as they are."""
    tighter, bound = np.zeros(len(limits)), -np.inf
    for attempt in range(4):
        found, proven = _run(
            make_linear_program(space, limits, costs, kept, tighter, edges), dict(options), space
        )
        if attempt == 0:
            bound = proven
        if found is None:
            break
        over = np.array([int(limit.use(found)) - limit.capacity for limit in limits], dtype=np.float64)
        if (over <= 0).all():
            return found, bound
        tighter += 2 * np.maximum(over, 0.0)
    return None, bound


def least_use(space: OptionSpace, limits: Sequence[Limit], costs: Sequence[IntegerCost]) -> IntArray:
    """Choices [L] of the least greatest use of the costs, within the limits.

    Raises:
        BudgetError: no assignment keeps the limits.
    """
    unbounded = [Limit("", space, cost, 1) for cost in costs]
    edges = Edges.of(space, [*limits, *unbounded], space.valid)
    plain = make_linear_program(
        space, limits, np.zeros(space.valid.shape), space.valid, np.zeros(len(limits)), edges
    )
    rows = np.stack([limit_row(limit, plain.options, edges) for limit in unbounded])
    scale = max(float(np.abs(rows).max()), 1.0)
    # One more variable is at least the use of each cost, and is what is minimised.
    column = np.full((len(rows), 1), -1.0)
    peaks = csr_array(np.concatenate([rows / scale, column], axis=1))
    none = csr_array((plain.equal.shape[0], 1)), csr_array((plain.limits.shape[0], 1))
    offsets = np.array([-cost.constant / scale for cost in costs])
    program = LinearProgram(
        plain.options,
        np.concatenate([np.zeros(len(plain.costs)), [1.0]]),
        hstack([plain.equal, none[0]], format="csr"),
        plain.right,
        vstack([hstack([plain.limits, none[1]], format="csr"), peaks], format="csr"),
        np.concatenate([plain.ceilings, offsets]),
        np.concatenate([plain.upper, [np.inf]]),
    )
    found, _ = _run(program, {"mip_rel_gap": REL_GAP, "node_limit": NODE_LIMIT}, space)
    if found is None:
        raise BudgetError(f"no assignment keeps {', '.join(dict.fromkeys(limit.text for limit in limits))}.")
    return found


def _run(
    program: LinearProgram, options: dict[str, float], space: OptionSpace
) -> tuple[IntArray | None, float]:
    """Choices, where some were found, and the bound; infeasible is a bound of +∞."""
    count = len(program.options)
    with quiet_stdout():
        result = milp(
            program.costs,
            constraints=[
                LinearConstraint(program.equal, program.right, program.right),
                LinearConstraint(program.limits, -np.inf, program.ceilings),
            ],
            bounds=Bounds(0, program.upper),
            integrality=np.arange(len(program.costs)) < count,
            options=options,
        )
    if result.status == 2:
        return None, np.inf
    bound = result.mip_dual_bound
    proven = -np.inf if bound is None or not np.isfinite(bound) else float(bound)
    if result.x is None:
        return None, proven
    taken = np.zeros(space.valid.size)
    taken[program.options] = result.x[:count]
    return np.argmax(taken.reshape(space.valid.shape), axis=1).astype(np.int64), proven
