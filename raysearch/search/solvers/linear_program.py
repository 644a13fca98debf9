"""The choice of one option a group under integer limits, as the matrices of a linear program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array, vstack

from raysearch.search.problem.limits import Limit
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray, OptionSpace


@dataclass(frozen=True)
class LinearProgram:
    """min costs·z, equal·z = right, limits·z ≤ ceilings, 0 ≤ z ≤ upper.

    The variables z are the options, which are integers, and then the products of two options.

    Attributes:
        options: flat indices of the options.
        costs: of all variables.
        equal: matrix of the equations.
        right: right side of the equations.
        limits: matrix of the limits, each divided by about its capacity.
        ceilings: right side of the limits, divided likewise.
        upper: 1, or 0 for a product that a hard limit forbids.
    """

    options: IntArray
    costs: FloatArray
    equal: csr_array
    right: FloatArray
    limits: csr_array
    ceilings: FloatArray
    upper: FloatArray


def make_linear_program(
    space: OptionSpace,
    limits: Sequence[Limit],
    costs: FloatArray,
    is_variable: BoolArray,
    reserves: FloatArray,
    edges: Edges,
) -> LinearProgram:
    """The linear program of the options that are variables and the edges' products.

    One equation says that a group takes one option, one each that Σ of the products over an edge's other end
    is the option.

    Args:
        space: the options.
        limits: what must hold.
        costs: [L, B].
        is_variable: bool [L, B], the options that are variables.
        reserves: use of each limit that is left free, against the solver's tolerance.
        edges: the products that are variables.
    """
    options = np.flatnonzero(is_variable.ravel())
    num_options = len(options)
    num_variables = num_options + edges.count
    variable_of = np.full(space.valid.size, -1)
    variable_of[options] = np.arange(num_options)
    groups = options // space.num_columns
    positions = (groups, np.arange(num_options))
    one_option = csr_array((np.ones(num_options), positions), shape=(len(space.rows), num_variables))
    is_product = edges.product_rows(variable_of, num_options, num_variables)
    right = np.concatenate([np.ones(len(space.rows)), np.zeros(is_product.shape[0])])
    lines: list[csr_array] = []
    ceilings = []
    for limit, reserve in zip(limits, reserves, strict=True):
        line = limit_row(limit, options, edges)
        # Coefficients of about 1, which the solver's absolute tolerances are made for.
        scale = max(abs(limit.capacity), float(np.abs(line).max()), 1.0)
        lines.append(csr_array(line[None] / scale))
        ceilings.append((limit.capacity - reserve) / scale)
    return LinearProgram(
        options=options,
        costs=np.concatenate([costs.ravel()[options], np.zeros(edges.count)]),
        equal=vstack([one_option, is_product], format="csr"),
        right=right,
        limits=vstack(lines, format="csr") if lines else csr_array((0, num_variables)),
        ceilings=np.array(ceilings),
        upper=np.concatenate([np.ones(num_options), edges.upper]),
    )


def limit_row(limit: Limit, options: IntArray, edges: Edges) -> FloatArray:
    """What each option, then each product, uses of a limit.

    Args:
        limit: what must hold.
        options: flat indices into [L, B] of the options that are variables.
        edges: the products that are variables.
    """
    alone = limit.cost.linear.ravel()[options].astype(np.float64)
    return np.concatenate([alone, edges.uses(limit)])


@dataclass(frozen=True)
class Edges:
    """Products of the options of two groups that some limit couples.

    Attributes:
        pairs: edge → its two groups.
        which: product → its edge.
        first: product → flat index of its option of the edge's first group.
        second: the same of the second group.
        shape: (L, B) of the options.
        upper: product → 1, or 0 where a hard limit forbids it.
    """

    pairs: list[tuple[int, int]]
    which: IntArray
    first: IntArray
    second: IntArray
    shape: tuple[int, int]
    upper: FloatArray

    @property
    def count(self) -> int:
        """Number of products."""
        return len(self.first)

    @classmethod
    def of(cls, space: OptionSpace, limits: Sequence[Limit], is_variable: BoolArray) -> Edges:
        """All products of the options that are variables, of the groups that some limit couples.

        Args:
            space: the options.
            limits: what must hold.
            is_variable: bool [L, B].
        """
        pairs = list(dict.fromkeys((int(i), int(j)) for limit in limits for i, j in limit.cost.edges))
        products = [np.zeros((3, 0), dtype=np.int64)]
        for number, (i, j) in enumerate(pairs):
            a, b = np.meshgrid(np.flatnonzero(is_variable[i]), np.flatnonzero(is_variable[j]), indexing="ij")
            first = i * space.num_columns + a.ravel()
            second = j * space.num_columns + b.ravel()
            products.append(np.stack([np.full(a.size, number), first, second]))
        which, first, second = np.concatenate(products, axis=1)
        shape = len(space.rows), space.num_columns
        edges = cls(pairs, which, first, second, shape, np.ones(len(first)))
        for limit in limits:
            if limit.is_hard:
                edges.upper[edges.uses(limit) > 0] = 0.0
        return edges

    def only(self, used: BoolArray) -> Edges:
        """The products where `used` is true."""
        return replace(
            self,
            which=self.which[used],
            first=self.first[used],
            second=self.second[used],
            upper=self.upper[used],
        )

    def ends(self) -> tuple[tuple[IntArray, IntArray], tuple[IntArray, IntArray]]:
        """For the first and the second end: the group of each edge, and the column of each product."""
        groups = np.array(self.pairs, dtype=np.int64).reshape(-1, 2)
        num_columns = self.shape[1]
        return (groups[:, 0], self.first % num_columns), (groups[:, 1], self.second % num_columns)

    def uses(self, limit: Limit) -> FloatArray:
        """What each product adds to a limit."""
        if not self.pairs:
            return np.zeros(0)
        num_columns = self.shape[1]
        table_of = dict(zip(map(tuple, limit.cost.edges.tolist()), limit.cost.tables, strict=True))
        nothing = np.zeros((num_columns, num_columns), dtype=np.int64)
        tables = np.stack([table_of.get(pair, nothing) for pair in self.pairs])
        uses = tables[self.which, self.first % num_columns, self.second % num_columns]
        as_floats: FloatArray = uses.astype(np.float64)
        return as_floats

    def product_rows(self, variable_of: IntArray, num_options: int, num_variables: int) -> csr_array:
        """Rows of Σ_d y[b, d] − x[b] = 0 and Σ_b y[b, d] − x[d] = 0.

        Args:
            variable_of: flat index of an option → its variable.
            num_options: variables that are options; the products come after them.
            num_variables: all of them.
        """
        # One row for each option of each end of each edge, numbered in the order of these keys.
        keys = np.concatenate([2 * self.which, 2 * self.which + 1]) * len(variable_of)
        keys += np.concatenate([self.first, self.second])
        unique, row = np.unique(keys, return_inverse=True)
        y = num_options + np.tile(np.arange(self.count), 2)
        x = variable_of[unique % len(variable_of)]
        values = np.concatenate([np.ones(len(y)), -np.ones(len(x))])
        rows = np.concatenate([row, np.arange(len(x))])
        columns = np.concatenate([y, x])
        return csr_array((values, (rows, columns)), shape=(len(unique), num_variables))
