"""Costs as integers over the options: a part for each group alone, and tables for pairs of groups."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from raysearch.records import FLOAT_BITS, CostFormula, CostSum, QuantizationPoint
from raysearch.search.problem.space import IntArray, OptionSpace


@dataclass(frozen=True)
class IntegerCost:
    """use(x) = constant + Σ_l linear[l, x_l] + Σ_e tables[e, x_i, x_j], (i, j) = edges[e]; all int64.

    Attributes:
        linear: [L, B].
        edges: [E, 2], row of a weight group and row of the activation group that feeds it.
        tables: [E, B, B].
        constant: what no choice changes.
    """

    linear: IntArray
    edges: IntArray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    tables: IntArray = field(default_factory=lambda: np.zeros((0, 1, 1), dtype=np.int64))
    constant: int = 0


def integer_costs(space: OptionSpace, formula: CostFormula) -> list[IntegerCost]:
    """The sums of a cost over the options; the greatest of them is its use.

    Only `activation_memory` has several sums, one a set of live tensors.
    """
    return [_tabulate(space, part) for part in formula.sums]


def broken_pairs_cost(space: OptionSpace) -> IntegerCost:
    """The number of weights whose width does not go with that of their input."""
    pairs = space.setup.pairs

    def is_broken(point: QuantizationPoint, weight_bits: int, input_bits: int) -> int:
        if point.id not in pairs or input_bits == FLOAT_BITS:
            return 0
        return int((weight_bits, input_bits) not in pairs[point.id])

    weights = tuple(space.setup.of_kind("weight").values())
    return _tabulate(space, CostSum(weights, is_broken, is_coupled=True))


def _tabulate(space: OptionSpace, part: CostSum) -> IntegerCost:
    """The terms of a sum by group and option, those of two groups as tables."""
    linear = np.zeros_like(space.widths)
    tables: dict[tuple[int, int], IntArray] = {}
    for point in part.points:
        row = space.row_of[point.id]
        stored = [(point.at(scheme), scheme.num_bits) for scheme in space.allowed[row]]
        fed = space.row_of.get(point.input_point) if part.is_coupled else None
        if fed is None:
            linear[row, : len(stored)] += [part.term(*option, FLOAT_BITS) for option in stored]
            continue
        table = tables.setdefault((row, fed), np.zeros((space.num_columns, space.num_columns), np.int64))
        for column, option in enumerate(stored):
            terms = [part.term(*option, scheme.num_bits) for scheme in space.allowed[fed]]
            table[column, : len(terms)] += np.array(terms, dtype=np.int64)
    edges = []
    for (row, fed), table in tables.items():
        num_rows, num_columns = len(space.allowed[row]), len(space.allowed[fed])
        used = table[:num_rows, :num_columns]
        # What depends on one of the two widths alone is no coupling.
        if (used == used[:, :1]).all():
            linear[row, :num_rows] += used[:, 0]
        elif (used == used[:1]).all():
            linear[fed, :num_columns] += used[0]
        else:
            edges.append((row, fed))
    if not edges:
        return IntegerCost(linear, constant=part.constant)
    stacked = np.stack([tables[edge] for edge in edges])
    return IntegerCost(linear, np.array(edges, dtype=np.int64), stacked, part.constant)
