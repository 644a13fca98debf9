"""The search in numbers: options as a padded array, budgets as integer limits on it.

Shapes: L groups, B the greatest number of widths of a group, P = L·B. Group l at choice b is entry
[l, b], flat index l·B + b; entries where a group has fewer widths are padding (`valid` is False).
An assignment is `choices`, int64 of shape [L].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from raysearch.records import BitAssignment, Budget, CostModel, QuantizerSetup, packed_bytes
from raysearch.records.budget import TOLERANCE
from raysearch.records.setup import FLOAT_BITS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class OptionSpace:
    """All options of a setup as an array [L, B], widths ascending.

    Attributes:
        setup: the setup.
        groups: group ids, in the order of the setup.
        widths: int64 [L, B], bits; 0 where padded.
        valid: bool [L, B].
        is_weight: bool [L].
    """

    def __init__(self, setup: QuantizerSetup) -> None:
        self.setup = setup
        self.groups = tuple(setup.groups)
        allowed = [setup.groups[name].bit_widths for name in self.groups]
        self.widths: IntArray = np.zeros((len(allowed), max(map(len, allowed))), dtype=np.int64)
        for row, bits in enumerate(allowed):
            self.widths[row, : len(bits)] = bits
        self.valid: BoolArray = self.widths > 0
        self.is_weight: BoolArray = np.array([setup.group_kind(g) == "weight" for g in self.groups])
        self.rows: IntArray = np.arange(len(self.groups))
        self._column = [{bits: i for i, bits in enumerate(row)} for row in allowed]

    @property
    def lowest(self) -> IntArray:
        """Every group at its lowest width."""
        return np.zeros(len(self.groups), dtype=np.int64)

    def choices(self, assignment: BitAssignment) -> IntArray:
        """The choices of an assignment that fits the setup.

        Raises:
            PlacementError: it does not fit.
        """
        assignment.check(self.setup)
        pairs = zip(self.groups, self._column, strict=True)
        return np.array([column[assignment.bits[name]] for name, column in pairs], dtype=np.int64)

    def assignment(self, choices: IntArray) -> BitAssignment:
        """The assignment of choices, in group order."""
        picked = self.widths[self.rows, choices].tolist()
        return BitAssignment(dict(zip(self.groups, picked, strict=True)))

    def take(self, table: FloatArray, choices: IntArray) -> FloatArray:
        """Entries [..., L] of a table [L, B] at choices [..., L]."""
        found: FloatArray = table[self.rows, choices]
        return found

    def flat(self, choices: IntArray) -> IntArray:
        """Flat indices [..., L] of choices [..., L]."""
        flat: IntArray = self.rows * self.widths.shape[1] + choices
        return flat

    def enumerate(self, most: int) -> IntArray | None:
        """All assignments, shape [N, L], or None when there are more than `most`."""
        counts = self.valid.sum(axis=1).tolist()
        total = 1
        for count in counts:
            total *= count
            if total > most:
                return None
        return np.array(list(product(*map(range, counts))), dtype=np.int64)


@dataclass(frozen=True)
class Limit:
    """One budget in integers: use(x) = Σ_l linear[l, x_l] + ½·wᵀ·pairs·w ≤ capacity, w_l the width.

    Attributes:
        budget: the budget.
        space: the options.
        linear: int64 [L, B].
        pairs: int64 [L, L], symmetric with a zero diagonal; None when the cost is separable. Only `bops`
            has it: MACs of the operations between a weight group and the activation group that feeds it.
        capacity: the greatest integer use that `records.excesses` calls feasible.
    """

    budget: Budget
    space: OptionSpace
    linear: IntArray
    pairs: IntArray | None
    capacity: int

    def use(self, choices: IntArray) -> IntArray:
        """The use, integer, of choices [..., L]."""
        found: IntArray = self.linear[self.space.rows, choices].sum(axis=-1)
        if self.pairs is not None:
            width = self.space.widths[self.space.rows, choices]
            found = found + (width @ self.pairs * width).sum(axis=-1) // 2
        return found

    def changes(self, choices: IntArray) -> IntArray:
        """[L, B]: what the use grows by when one group takes one option, the others staying."""
        rows = self.space.rows
        change: IntArray = self.linear - self.linear[rows, choices][:, None]
        if self.pairs is not None:
            width = self.space.widths[rows, choices]
            change = change + (self.space.widths - width[:, None]) * (self.pairs @ width)[:, None]
        return change

    def scaled(self, fraction: float) -> Limit:
        """The same limit with a fraction of the capacity."""
        return replace(self, capacity=int(self.capacity * fraction))


def make_limits(space: OptionSpace, budgets: Iterable[Budget], model: CostModel) -> tuple[Limit, ...]:
    """Budgets as integer limits that agree with `CostModel.costs` and `records.excesses` exactly."""
    limits = []
    for budget in budgets:
        linear, pairs, divisor = _bops(space) if budget.kind == "bops" else _separable(space, budget.kind)
        limits.append(Limit(budget, space, linear, pairs, _capacity(budget.absolute(model), divisor)))
    return tuple(limits)


def _capacity(limit: float, divisor: int) -> int:
    # The comparison is the one of records.excesses, so both draw the line at the same integer.
    value = int(min(limit * (1 + TOLERANCE) * divisor, 2.0**62)) + 1
    step = max(1, value >> 52)
    while (float(value) / divisor - limit) / limit > TOLERANCE:
        value -= step
    return value


def _separable(space: OptionSpace, kind: str) -> tuple[IntArray, None, int]:
    setup, linear, total = space.setup, np.zeros_like(space.widths), 0
    wanted = "activation" if kind == "act_bits" else "weight"
    for row, name in enumerate(space.groups):
        points = [setup.points[p] for p in setup.groups[name].points]
        if points[0].kind != wanted:
            continue
        elements = sum(point.num_elements for point in points)
        total += elements
        for column, bits in enumerate(setup.groups[name].bit_widths):
            size = sum(packed_bytes(point, bits) for point in points) if kind == "size" else elements * bits
            linear[row, column] = size
    return linear, None, 1 if kind == "size" else max(total, 1)


def _bops(space: OptionSpace) -> tuple[IntArray, IntArray | None, int]:
    setup, linear, count = space.setup, np.zeros_like(space.widths), len(space.groups)
    row_of = {p: row for row, name in enumerate(space.groups) for p in setup.groups[name].points}
    macs = np.zeros((count, count), dtype=np.int64)
    for point in setup.of_kind("weight").values():
        row = row_of[point.id]
        if point.input_point in row_of:
            macs[row, row_of[point.input_point]] += point.macs
        else:
            linear[row] += point.macs * FLOAT_BITS * space.widths[row]
    pairs = np.zeros((count, count), dtype=np.int64)
    fixed = space.valid.sum(axis=1) == 1
    for weight, activation in np.argwhere(macs):
        # A product with a width that cannot move is linear in the other one.
        if fixed[activation]:
            linear[weight] += macs[weight, activation] * space.widths[activation, 0] * space.widths[weight]
        elif fixed[weight]:
            linear[activation] += (
                macs[weight, activation] * space.widths[weight, 0] * space.widths[activation]
            )
        else:
            pairs[weight, activation] = pairs[activation, weight] = macs[weight, activation]
    return linear, pairs if pairs.any() else None, 1
