"""Any number of budgets at once, exactly: a mixed-integer linear program, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
"""Where the solver may stop: (value − bound)/value."""

NODE_LIMIT = 2000
"""Nodes of the search tree; a limit in seconds would make the result depend on the machine."""

CORE = 3
"""Gaps above the relaxation's bound within which the optimum is looked for first (Pisinger 1995's core)."""

TOLERANCE = 1e-6
"""Of HiGHS, relative to the objective: how far its bound may be from a proven one."""

MAX_ATTEMPTS = 4
"""Solutions with more and more of the limits left free, where the solver's tolerance exceeds one."""

_INFEASIBLE = 2
"""The status by which scipy says that a program has no solution."""


def solve_milp(
    space: OptionSpace,
    limits: Sequence[Limit],
    costs: FloatArray,
    start: IntArray | None = None,
    *,
    make_feasible: Callable[[IntArray], IntArray] | None = None,
    rel_gap: float = REL_GAP,
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

    Returns:
        The best assignment found and the solver's proven bound (less its tolerance).

    Raises:
        BudgetError: no assignment keeps the limits, or none was found and there is no `start`.
    """
    # The solver gets the costs above each group's least, in units of about the optimum.
    base = np.where(space.valid, costs, np.inf).min(axis=1, keepdims=True)
    extra = np.where(space.valid, costs - base, 0.0)
    ground = float(base.sum())
    value = ground + float(extra.max(axis=1).sum()) if start is None else space.total(costs, start)
    unit = max(value - ground, 1e-12 * abs(ground), 1e-300)
    options = {"mip_rel_gap": rel_gap * abs(value) / unit, "node_limit": NODE_LIMIT}
    relaxed = None if start is None else relax(space, limits, extra / unit)
    if start is None or relaxed is None:
        edges = Edges.of(space, limits, space.valid)
        choices, proven = _search(space, limits, extra / unit, space.valid, edges, options)
        bound = max(ground, ground + unit * (proven - TOLERANCE))
        if choices is not None and (start is None or space.total(costs, choices) < value):
            start = choices
            value = space.total(costs, choices)
        if start is None:
            raise BudgetError(
                f"no assignment keeps {_texts(limits)} together. Raise a limit, or allow other widths."
            )
        return Solution(start, value, min(bound, value))
    least = bound = ground + unit * relaxed.bound
    if make_feasible is not None:
        rounded = make_feasible(relaxed.choices)
        rounded_value = space.total(costs, rounded)
        if rounded_value < value:
            start, value = rounded, rounded_value
    for core in (CORE * rel_gap * abs(value), np.inf):
        if value - bound <= rel_gap * abs(value):
            break
        room = min(core, value - least) / unit
        choices, proven = _search(space, limits, extra / unit, *relaxed.within(room), options)
        # What was left out costs more than the relaxation's bound and the room.
        bound = max(bound, min(ground + unit * (proven - TOLERANCE), least + unit * room))
        if choices is not None and space.total(costs, choices) < value:
            start = choices
            value = space.total(costs, choices)
    return Solution(start, value, min(bound, value))


def _search(
    space: OptionSpace,
    limits: Sequence[Limit],
    costs: FloatArray,
    is_variable: BoolArray,
    edges: Edges,
    options: Mapping[str, float],
) -> tuple[IntArray | None, float]:
    """The best choices of the options that are variables, and the bound of the limits as they are."""
    reserves = np.zeros(len(limits))
    bound = -np.inf
    for attempt in range(MAX_ATTEMPTS):
        program = make_linear_program(space, limits, costs, is_variable, reserves, edges)
        choices, proven = _run(program, options, space)
        if attempt == 0:
            bound = proven
        if choices is None:
            break
        excess = np.array([-limit.room(choices) for limit in limits], dtype=np.float64)
        if (excess <= 0).all():
            return choices, bound
        reserves += 2 * np.maximum(excess, 0.0)
    return None, bound


def least_use(space: OptionSpace, limits: Sequence[Limit], costs: Sequence[IntegerCost]) -> IntArray:
    """Choices [L] of the least greatest use of the costs, within the limits.

    Args:
        space: the options.
        limits: what must hold.
        costs: the sums whose greatest is minimised.

    Raises:
        BudgetError: no assignment keeps the limits.
    """
    unbounded = [Limit("", space, cost, 1) for cost in costs]
    edges = Edges.of(space, [*limits, *unbounded], space.valid)
    no_costs = np.zeros(space.valid.shape)
    plain = make_linear_program(space, limits, no_costs, space.valid, np.zeros(len(limits)), edges)
    program = _with_peak(plain, [limit_row(limit, plain.options, edges) for limit in unbounded], costs)
    choices, _ = _run(program, {"mip_rel_gap": REL_GAP, "node_limit": NODE_LIMIT}, space)
    if choices is None:
        raise BudgetError(f"no assignment keeps {_texts(limits)}.")
    return choices


def _with_peak(
    plain: LinearProgram, uses: Sequence[FloatArray], costs: Sequence[IntegerCost]
) -> LinearProgram:
    """The program with one more variable: it is at least the use of each cost, and is minimised."""
    rows = np.stack(uses)
    scale = max(float(np.abs(rows).max()), 1.0)
    peak = np.full((len(rows), 1), -1.0)
    below_peak = csr_array(np.concatenate([rows / scale, peak], axis=1))
    without_peak = hstack([plain.limits, csr_array((plain.limits.shape[0], 1))], format="csr")
    offsets = np.array([-cost.constant / scale for cost in costs])
    return LinearProgram(
        options=plain.options,
        costs=np.concatenate([np.zeros(len(plain.costs)), [1.0]]),
        equal=hstack([plain.equal, csr_array((plain.equal.shape[0], 1))], format="csr"),
        right=plain.right,
        limits=vstack([without_peak, below_peak], format="csr"),
        ceilings=np.concatenate([plain.ceilings, offsets]),
        upper=np.concatenate([plain.upper, [np.inf]]),
    )


def _run(
    program: LinearProgram, options: Mapping[str, float], space: OptionSpace
) -> tuple[IntArray | None, float]:
    """Choices, where some were found, and the bound; infeasible is a bound of +∞."""
    num_options = len(program.options)
    constraints = [
        LinearConstraint(program.equal, program.right, program.right),
        LinearConstraint(program.limits, -np.inf, program.ceilings),
    ]
    with quiet_stdout():
        result = milp(
            program.costs,
            constraints=constraints,
            bounds=Bounds(0, program.upper),
            integrality=np.arange(len(program.costs)) < num_options,
            options=dict(options),
        )
    if result.status == _INFEASIBLE:
        return None, np.inf
    bound = result.mip_dual_bound
    proven = -np.inf if bound is None or not np.isfinite(bound) else float(bound)
    if result.x is None:
        return None, proven
    taken = np.zeros(space.valid.size)
    taken[program.options] = result.x[:num_options]
    return np.argmax(taken.reshape(space.valid.shape), axis=1).astype(np.int64), proven


def _texts(limits: Sequence[Limit]) -> str:
    """The limits' names, each once."""
    return ", ".join(dict.fromkeys(limit.text for limit in limits))
