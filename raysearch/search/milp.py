"""Any number of budgets at once, exactly: a mixed-integer linear programme, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, hstack, vstack

from raysearch.errors import BudgetError
from raysearch.search.forms import Form
from raysearch.search.quiet_stdout import quiet_stdout
from raysearch.search.solution import Solution
from raysearch.search.space import BoolArray, FloatArray, IntArray, Limit, OptionSpace

REL_GAP = 1e-4
NODE_LIMIT = 2000
"""Nodes of the search tree; a limit in seconds would make the result depend on the machine."""

TOLERANCE = 1e-6
"""Of HiGHS, relative to the objective: how far its bound may be from a proven one."""


@dataclass(frozen=True)
class _Programme:
    """min costs·z, equal·z = right, limits·z ≤ ceilings, 0 ≤ z ≤ upper; the options come first: integers."""

    options: IntArray
    costs: FloatArray
    equal: csr_array
    right: FloatArray
    limits: csr_array
    ceilings: FloatArray
    upper: FloatArray


def solve_milp(
    space: OptionSpace,
    limits: Sequence[Limit],
    costs: FloatArray,
    start: IntArray | None = None,
    *,
    rel_gap: float = REL_GAP,
    node_limit: int = NODE_LIMIT,
    time_limit: float | None = None,
) -> Solution:
    """Min Σ_l c[l, x_l] within all limits.

    One binary variable an option; one continuous variable for each pair of options of two groups that a
    limit couples, with Σ over either group equal to the other's binary, so that it is their product. Options
    whose reduced cost under the linear relaxation's prices exceeds the gap to `start` are taken out first:
    no better assignment has them. The answer is checked in integers; where the solver's tolerance let it
    exceed a limit, it is solved again with that much less.

    Cost: one linear programme and one branch-and-bound; 1,000 groups of 6 widths and 3 separable limits take
    a second or so.

    Args:
        space: the options.
        limits: what must hold.
        costs: [L, B].
        start: feasible choices [L], handed back when nothing better is found.
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
    kept, bound = space.valid.copy(), ground
    if start is not None and all(limit.is_separable for limit in limits):
        bound, kept = _fix(space, limits, extra / unit, (value - ground) / unit)
        bound = ground + unit * bound
        if value - bound <= rel_gap * abs(value):
            return Solution(start, value, min(bound, value))
    options = {"mip_rel_gap": rel_gap * abs(value) / unit, "node_limit": node_limit}
    if time_limit is not None:
        options["time_limit"] = time_limit
    tighter, edges = np.zeros(len(limits)), _Edges.of(space, limits, kept)
    for attempt in range(4):
        found, proven = _run(
            _programme(space, limits, extra / unit, kept, tighter, edges), dict(options), space
        )
        if attempt == 0:
            bound = max(bound, ground + unit * (proven - TOLERANCE))
        if found is None:
            break
        over = np.array([int(limit.use(found)) - limit.capacity for limit in limits], dtype=np.float64)
        if (over <= 0).all():
            better = float(space.take(costs, found).sum())
            if start is None or better < value:
                return Solution(found, better, min(bound, better))
            break
        tighter += 2 * np.maximum(over, 0.0)
    if start is None:
        asked = ", ".join(dict.fromkeys(limit.text for limit in limits))
        raise BudgetError(f"no assignment keeps {asked} together. Raise a limit, or allow other widths.")
    return Solution(start, value, min(bound, value))


def least_use(space: OptionSpace, limits: Sequence[Limit], forms: Sequence[Form]) -> IntArray:
    """Choices [L] of the least greatest use of the forms, within the limits.

    Raises:
        BudgetError: no assignment keeps the limits.
    """
    unbounded = [Limit("", space, form, 1) for form in forms]
    edges = _Edges.of(space, [*limits, *unbounded], space.valid)
    plain = _programme(space, limits, np.zeros(space.valid.shape), space.valid, np.zeros(len(limits)), edges)
    rows = np.stack([_line(limit, plain.options, edges) for limit in unbounded])
    scale = max(float(np.abs(rows).max()), 1.0)
    # One more variable is at least the use of each form, and is what is minimised.
    column = np.full((len(rows), 1), -1.0)
    peaks = csr_array(np.concatenate([rows / scale, column], axis=1))
    none = csr_array((plain.equal.shape[0], 1)), csr_array((plain.limits.shape[0], 1))
    offsets = np.array([-form.constant / scale for form in forms])
    programme = _Programme(
        plain.options,
        np.concatenate([np.zeros(len(plain.costs)), [1.0]]),
        hstack([plain.equal, none[0]], format="csr"),
        plain.right,
        vstack([hstack([plain.limits, none[1]], format="csr"), peaks], format="csr"),
        np.concatenate([plain.ceilings, offsets]),
        np.concatenate([plain.upper, [np.inf]]),
    )
    found, _ = _run(programme, {"mip_rel_gap": REL_GAP, "node_limit": NODE_LIMIT}, space)
    if found is None:
        raise BudgetError(f"no assignment keeps {', '.join(dict.fromkeys(limit.text for limit in limits))}.")
    return found


def _run(
    programme: _Programme, options: dict[str, float], space: OptionSpace
) -> tuple[IntArray | None, float]:
    """Choices, where some were found, and the bound; infeasible is a bound of +∞."""
    count = len(programme.options)
    with quiet_stdout():
        result = milp(
            programme.costs,
            constraints=[
                LinearConstraint(programme.equal, programme.right, programme.right),
                LinearConstraint(programme.limits, -np.inf, programme.ceilings),
            ],
            bounds=Bounds(0, programme.upper),
            integrality=np.arange(len(programme.costs)) < count,
            options=options,
        )
    if result.status == 2:
        return None, np.inf
    bound = result.mip_dual_bound
    proven = -np.inf if bound is None or not np.isfinite(bound) else float(bound)
    if result.x is None:
        return None, proven
    taken = np.zeros(space.valid.size)
    taken[programme.options] = result.x[:count]
    return np.argmax(taken.reshape(space.valid.shape), axis=1).astype(np.int64), proven


def _programme(
    space: OptionSpace,
    limits: Sequence[Limit],
    costs: FloatArray,
    kept: BoolArray,
    tighter: FloatArray,
    edges: _Edges,
) -> _Programme:
    options = np.flatnonzero(kept.ravel())
    count, width = len(options), space.widths.shape[1]
    column = np.full(space.valid.size, -1)
    column[options] = np.arange(count)
    rows = options // width
    total = count + edges.count
    equal = [csr_array((np.ones(count), (rows, np.arange(count))), shape=(len(space.rows), total))]
    equal.append(edges.products(column, count, total))
    right = np.concatenate([np.ones(len(space.rows)), np.zeros(equal[1].shape[0])])
    upper = np.concatenate([np.ones(count), edges.upper])
    lines, ceilings = [], []
    for limit, less in zip(limits, tighter, strict=True):
        line = _line(limit, options, edges)
        scale = max(abs(limit.capacity), float(np.abs(line).max()), 1.0)
        lines.append(csr_array(line[None] / scale))
        ceilings.append((limit.capacity - less) / scale)
    table = vstack(lines, format="csr") if lines else csr_array((0, total))
    objective = np.concatenate([costs.ravel()[options], np.zeros(edges.count)])
    return _Programme(
        options, objective, vstack(equal, format="csr"), right, table, np.array(ceilings), upper
    )


def _line(limit: Limit, options: IntArray, edges: _Edges) -> FloatArray:
    alone = limit.form.linear.ravel()[options].astype(np.float64)
    return np.concatenate([alone, edges.uses(limit)])


@dataclass(frozen=True)
class _Edges:
    """Products of the options of two groups: flat indices `first` and `second`, of the edge `which`."""

    pairs: list[tuple[int, int]]
    which: IntArray
    first: IntArray
    second: IntArray
    shape: tuple[int, int]
    upper: FloatArray

    @property
    def count(self) -> int:
        return len(self.first)

    @classmethod
    def of(cls, space: OptionSpace, limits: Sequence[Limit], kept: BoolArray) -> _Edges:
        pairs = list(dict.fromkeys((int(i), int(j)) for limit in limits for i, j in limit.form.edges))
        width, parts = space.widths.shape[1], []
        for number, (i, j) in enumerate(pairs):
            a, b = np.meshgrid(np.flatnonzero(kept[i]), np.flatnonzero(kept[j]), indexing="ij")
            parts.append(np.stack([np.full(a.size, number), i * width + a.ravel(), j * width + b.ravel()]))
        which, first, second = np.concatenate([np.zeros((3, 0), dtype=np.int64), *parts], axis=1)
        edges = cls(pairs, which, first, second, (len(space.rows), width), np.ones(len(first)))
        for limit in limits:
            if limit.is_hard:
                edges.upper[edges.uses(limit) > 0] = 0.0
        return edges

    def uses(self, limit: Limit) -> FloatArray:
        """What each product adds to a limit."""
        table = {(int(i), int(j)): t for (i, j), t in zip(limit.form.edges, limit.form.tables, strict=True)}
        stacked = [table.get(pair, np.zeros((self.shape[1],) * 2, dtype=np.int64)) for pair in self.pairs]
        if not stacked:
            return np.zeros(0)
        found: FloatArray = np.stack(stacked)[
            self.which, self.first % self.shape[1], self.second % self.shape[1]
        ].astype(np.float64)
        return found

    def products(self, column: IntArray, count: int, total: int) -> csr_array:
        """Rows of Σ_d y[b, d] − x[b] = 0 and Σ_b y[b, d] − x[d] = 0."""
        keys = np.concatenate([2 * self.which, 2 * self.which + 1]) * len(column)
        keys += np.concatenate([self.first, self.second])
        unique, row = np.unique(keys, return_inverse=True)
        y = count + np.tile(np.arange(self.count), 2)
        x = column[unique % len(column)]
        data = np.concatenate([np.ones(len(y)), -np.ones(len(x))])
        where = np.concatenate([row, np.arange(len(x))]), np.concatenate([y, x])
        return csr_array((data, where), shape=(len(unique), total))


def _fix(
    space: OptionSpace, limits: Sequence[Limit], costs: FloatArray, value: float
) -> tuple[float, BoolArray]:
    """A Lagrangian bound at the linear relaxation's prices, and the options that a better choice may have."""
    sizes = np.stack([limit.form.linear for limit in limits]).astype(np.float64)
    capacity = np.array([limit.capacity for limit in limits], dtype=np.float64)
    scale = np.maximum(np.abs(capacity), 1.0)
    flat = space.valid.ravel()
    with quiet_stdout():
        relaxed = linprog(
            costs.ravel()[flat],
            A_ub=(sizes / scale[:, None, None]).reshape(len(limits), -1)[:, flat],
            b_ub=capacity / scale,
            A_eq=csr_array(
                (np.ones(flat.sum()), (np.repeat(space.rows, space.valid.sum(axis=1)), np.arange(flat.sum())))
            ),
            b_eq=np.ones(len(space.rows)),
            bounds=(0, 1),
            method="highs",
        )
    if relaxed.status != 0:
        return 0.0, space.valid.copy()
    prices = np.maximum(-relaxed.ineqlin.marginals, 0.0) / scale
    priced = np.where(space.valid, costs + np.tensordot(prices, sizes, axes=1), np.inf)
    least = priced.min(axis=1, keepdims=True)
    # Any prices give a bound; sums are rounded, so a little is allowed for.
    rounding = 1e-12 * (float(np.abs(least).sum()) + float(prices @ np.abs(capacity)))
    bound = float(least.sum()) - float(prices @ capacity) - rounding
    return bound, space.valid & (bound + priced - least <= value)
