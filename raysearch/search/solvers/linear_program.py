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
    """min costs·z, equal·z = right, limits·z ≤ ceilings, 0 ≤ z ≤ upper; the options come first: integers."""

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
    kept: BoolArray,
    tighter: FloatArray,
    edges: Edges,
) -> LinearProgram:
    """The program of the kept options and the edges' products, each limit with so much `tighter` a use.

    One row says that a group takes one option, one each that Σ over a product's other end is the option.
    """
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
        line = limit_row(limit, options, edges)
        scale = max(abs(limit.capacity), float(np.abs(line).max()), 1.0)
        lines.append(csr_array(line[None] / scale))
        ceilings.append((limit.capacity - less) / scale)
    table = vstack(lines, format="csr") if lines else csr_array((0, total))
    objective = np.concatenate([costs.ravel()[options], np.zeros(edges.count)])
    return LinearProgram(
        options, objective, vstack(equal, format="csr"), right, table, np.array(ceilings), upper
    )


def limit_row(limit: Limit, options: IntArray, edges: Edges) -> FloatArray:
    """What each option, then each product, uses of a limit."""
    alone = limit.cost.linear.ravel()[options].astype(np.float64)
    return np.concatenate([alone, edges.uses(limit)])


@dataclass(frozen=True)
class Edges:
    """Products of the options of two groups: flat indices `first` and `second`, of the edge `which`."""

    pairs: list[tuple[int, int]]
    which: IntArray
    first: IntArray
    second: IntArray
    shape: tuple[int, int]
    upper: FloatArray

    @property
    def count(self) -> int:
        """Products."""
        return len(self.first)

    @classmethod
    def of(cls, space: OptionSpace, limits: Sequence[Limit], kept: BoolArray) -> Edges:
        """All products of kept options of the groups that some limit couples."""
        pairs = list(dict.fromkeys((int(i), int(j)) for limit in limits for i, j in limit.cost.edges))
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

    def only(self, used: BoolArray) -> Edges:
        """The products that are marked."""
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
        width = self.shape[1]
        return (groups[:, 0], self.first % width), (groups[:, 1], self.second % width)

    def uses(self, limit: Limit) -> FloatArray:
        """What each product adds to a limit."""
        table = {(int(i), int(j)): t for (i, j), t in zip(limit.cost.edges, limit.cost.tables, strict=True)}
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
