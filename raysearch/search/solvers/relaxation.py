"""The linear relaxation of the choice: a bound that holds, what no better choice has, and a first choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from raysearch.search.problem.limits import Limit
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray, OptionSpace
from raysearch.search.solvers.linear_program import Edges, LinearProgram, make_linear_program
from raysearch.search.solvers.quiet_stdout import quiet_stdout

ROUNDING = 1e-12
"""Relative error of a sum of costs, which a bound allows for."""


@dataclass(frozen=True)
class Relaxation:
    """What the prices of the linear relaxation tell.

    With a price λ ≥ 0 for each limit and a free one μ for each equation Σ_d y[b, d] = x[b], the objective is
    at least Σ_l min_b r_l[b] + Σ_e min_{b,d} r_e[b, d] − λ·S for every choice, r the options' and products'
    costs with the prices of what they use. So it holds for any prices, and the solver's need not be exact.

    Attributes:
        bound: no choice within the limits costs less.
        choices: the fractional solution's greatest options [L]; it may exceed limits a little.
        options: [L, B], a choice with this option costs `bound` + this at least; ∞ for what is no option.
        products: the same for each product of two options, of `edges`.
        edges: all products.
    """

    bound: float
    choices: IntArray
    options: FloatArray
    products: FloatArray
    edges: Edges

    def within(self, room: float) -> tuple[BoolArray, Edges]:
        """The options, and the products of two of them, that a choice of at most `bound` + room may have."""
        is_possible = self.options <= room
        used = self.products <= room
        # Without an option its products go, and without a product on some edge its options: until all stay.
        while True:
            used = used & is_possible.ravel()[self.edges.first] & is_possible.ravel()[self.edges.second]
            fewer = is_possible & self._paired(used)
            if (fewer == is_possible).all():
                return is_possible, self.edges.only(used)
            is_possible = fewer

    def _paired(self, used: BoolArray) -> BoolArray:
        """[L, B]: whether the option is in a used product of each edge of its group."""
        paired = np.ones(self.options.shape, dtype=bool)
        for rows, columns in self.edges.ends():
            has_product = np.zeros((len(rows), self.options.shape[1]), dtype=bool)
            has_product[self.edges.which[used], columns[used]] = True
            np.logical_and.at(paired, rows, has_product)
        return paired


def relax(space: OptionSpace, limits: Sequence[Limit], costs: FloatArray) -> Relaxation | None:
    """Solve the linear relaxation of min Σ_l c[l, x_l] within the limits; None where HiGHS does not.

    The options' costs should be of about the size of the optimum, which HiGHS's tolerances are made for.

    Args:
        space: the options.
        limits: what must hold.
        costs: [L, B].
    """
    edges = Edges.of(space, limits, space.valid)
    program = make_linear_program(space, limits, costs, space.valid, np.zeros(len(limits)), edges)
    with quiet_stdout():
        result = linprog(
            program.costs,
            A_ub=program.limits,
            b_ub=program.ceilings,
            A_eq=program.equal,
            b_eq=program.right,
            bounds=np.stack([np.zeros(len(program.upper)), program.upper], axis=1),
            method="highs",
        )
    if result.status != 0:
        return None
    alone, pairs, prices = _priced(program, result.ineqlin.marginals, result.eqlin.marginals, len(space.rows))
    priced = _as_table(space, program, alone, np.inf)
    least = priced.min(axis=1)
    least_pair = np.full(len(edges.pairs), np.inf)
    np.minimum.at(least_pair, edges.which, pairs)
    paid = prices * program.ceilings
    rounding = ROUNDING * float(np.abs(least).sum() + np.abs(least_pair).sum() + np.abs(paid).sum())
    bound = float(least.sum()) + float(least_pair.sum()) - float(paid.sum()) - rounding
    options, products = _above_bound(priced - least[:, None], pairs - least_pair[edges.which], edges)
    taken = _as_table(space, program, result.x[: len(program.options)], 0.0)
    choices = np.argmax(taken, axis=1).astype(np.int64)
    return Relaxation(bound, choices, options, products, edges)


def _as_table(space: OptionSpace, program: LinearProgram, values: FloatArray, otherwise: float) -> FloatArray:
    """[L, B]: the values of the program's options, and another one for what is no option."""
    table = np.full(space.valid.size, otherwise)
    table[program.options] = values
    return table.reshape(space.valid.shape)


def _priced(
    program: LinearProgram, limit_marginals: FloatArray, equation_marginals: FloatArray, num_groups: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The costs of options and of products with the prices of what they use, and the limits' prices."""
    num_options = len(program.options)
    prices = np.maximum(-limit_marginals, 0.0)
    # "One option a group" is no priced equation: the minimum over the options keeps it.
    messages = equation_marginals.copy()
    messages[:num_groups] = 0.0
    priced = program.costs + program.limits.T @ prices - program.equal.T @ messages
    pairs = np.where(program.upper[num_options:] > 0, priced[num_options:], np.inf)
    return priced[:num_options], pairs, prices


def _above_bound(alone: FloatArray, pairs: FloatArray, edges: Edges) -> tuple[FloatArray, FloatArray]:
    """How much more than the bound a choice with an option, and one with a product, costs at least."""
    first = alone.ravel()[edges.first]
    second = alone.ravel()[edges.second]
    options = alone.copy()
    for (rows, columns), other_end in zip(edges.ends(), (second, first), strict=True):
        # An option comes with one product of each edge of its group, and so with an option of its other end.
        least = np.full((len(rows), alone.shape[1]), np.inf)
        np.minimum.at(least, (edges.which, columns), pairs + other_end)
        np.add.at(options, rows, least)
    return options, pairs + first + second
