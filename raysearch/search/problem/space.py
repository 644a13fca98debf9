"""The search in numbers: options as a padded array, budgets as integer limits on it.

Shapes: L groups, B the greatest number of widths of a group, P = L·B. Group l at choice b is entry
[l, b], flat index l·B + b; entries where a group has fewer widths are padding (`valid` is False).
An assignment is `choices`, int64 of shape [L].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from raysearch.records import BitAssignment, Budget, CostModel, LiveTensor, QuantizerSetup, live_sets
from raysearch.records.costs.budget import TOLERANCE
from raysearch.search.problem.forms import Form, broken_pairs_form, forms_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PAIRS = "the width pairs of the hardware profile"
"""Name of the limit that keeps `QuantizerSetup.pairs`."""


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
        self._uncoupled = replace(setup, pairs={})
        self._column = [{bits: i for i, bits in enumerate(row)} for row in allowed]

    @property
    def lowest(self) -> IntArray:
        """Every group at its lowest width."""
        return np.zeros(len(self.groups), dtype=np.int64)

    @cached_property
    def live_sets(self) -> list[tuple[LiveTensor, ...]]:
        """See `records.live_sets`."""
        return live_sets(self.setup)

    def choices(self, assignment: BitAssignment) -> IntArray:
        """The choices of an assignment that fits the setup; width pairs are a limit, and not looked at.

        Raises:
            PlacementError: it does not fit.
        """
        assignment.check(self._uncoupled)
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
    """One budget in integers: `form`'s use(x) ≤ capacity.

    Attributes:
        text: the budget's expression, or what else asks for it.
        space: the options.
        form: what is added up.
        capacity: the greatest integer use that `records.excesses` calls feasible.
    """

    text: str
    space: OptionSpace
    form: Form
    capacity: int

    @property
    def is_separable(self) -> bool:
        """Whether each group adds its own part."""
        return not len(self.form.edges)

    @property
    def is_hard(self) -> bool:
        """Whether it forbids pairs of options: a capacity of 0, of which no fraction is taken."""
        return self.capacity == 0

    @cached_property
    def is_monotone(self) -> bool:
        """Whether the use grows, or stays, with every width."""
        form, valid = self.form, self.space.valid
        grows = (np.diff(form.linear, axis=1) >= 0) | ~valid[:, 1:]
        if self.is_separable:
            return bool(grows.all())
        weights, inputs = valid[form.edges[:, 0]], valid[form.edges[:, 1]]
        used = weights[:, :, None] & inputs[:, None, :]
        down = (np.diff(form.tables, axis=1) >= 0) | ~used[:, 1:]
        across = (np.diff(form.tables, axis=2) >= 0) | ~used[:, :, 1:]
        return bool(grows.all() and down.all() and across.all())

    @cached_property
    def greatest(self) -> int:
        """A use that no choices exceed."""
        form = self.form
        alone = np.where(self.space.valid, form.linear, np.iinfo(np.int64).min).max(axis=1)
        return int(alone.sum()) + (int(form.tables.max(axis=(1, 2)).sum()) if len(form.edges) else 0)

    def use(self, choices: IntArray) -> IntArray:
        """The use, integer, of choices [..., L]."""
        form = self.form
        found: IntArray = form.linear[self.space.rows, choices].sum(axis=-1)
        if len(form.edges):
            pairs = choices[..., form.edges[:, 0]], choices[..., form.edges[:, 1]]
            found = found + form.tables[(np.arange(len(form.edges)), *pairs)].sum(axis=-1)
        return found

    def parts(self, choices: IntArray) -> IntArray:
        """[L]: each group's part of the use, a coupling's counted with the first of its groups."""
        form = self.form
        found = form.linear[self.space.rows, choices]
        if len(form.edges):
            first, second = form.edges.T
            np.add.at(found, first, form.tables[np.arange(len(first)), choices[first], choices[second]])
        return found

    def changes(self, choices: IntArray) -> IntArray:
        """[L, B]: what the use grows by when one group takes one option, the others staying."""
        form = self.form
        change: IntArray = form.linear - form.linear[self.space.rows, choices][:, None]
        if len(form.edges):
            each, (first, second) = np.arange(len(form.edges)), form.edges.T
            now = form.tables[each, choices[first], choices[second]][:, None]
            by_first = form.tables[each, :, choices[second]] - now
            by_second = form.tables[each, choices[first], :] - now
            # Flat indices: numpy adds to a flat array ten times as fast as to rows.
            total, (at_first, at_second) = change.reshape(-1), self._flat_ends
            np.add.at(total, at_first, by_first.reshape(-1))
            np.add.at(total, at_second, by_second.reshape(-1))
            change = total.reshape(change.shape)
        return change

    def couplings(self, row: int) -> list[tuple[int, IntArray]]:
        """The groups that a group is coupled with, and the table [its option, the other's option] of each."""
        return self._couplings.get(row, [])

    @cached_property
    def _couplings(self) -> dict[int, list[tuple[int, IntArray]]]:
        found: dict[int, list[tuple[int, IntArray]]] = {}
        for (first, second), table in zip(self.form.edges.tolist(), self.form.tables, strict=True):
            found.setdefault(first, []).append((second, table))
            found.setdefault(second, []).append((first, table.T))
        return found

    @cached_property
    def _flat_ends(self) -> tuple[IntArray, IntArray]:
        """Flat indices of all options of the edges' first groups, and of their second ones."""
        width = self.space.widths.shape[1]
        first, second = self.form.edges.T[:, :, None] * width + np.arange(width)
        return first.reshape(-1), second.reshape(-1)

    def scaled(self, fraction: float) -> Limit:
        """The same limit with a fraction of the capacity."""
        return replace(self, capacity=int(self.capacity * fraction))


def make_limits(space: OptionSpace, budgets: Iterable[Budget], model: CostModel) -> tuple[Limit, ...]:
    """Budgets as integer limits that agree with `CostModel.costs` and `records.excesses` exactly.

    `activation_memory` gives one limit for each set of live tensors, and the setup's width pairs one more:
    no weight may break them. A limit that nothing can exceed is left out unless it is the only one.

    Raises:
        BudgetError: the setup does not have a budget's cost.
    """
    limits = []
    for budget in budgets:
        model.require(budget.kind)
        for form in forms_of(space, budget.kind):
            limits.append(Limit(budget.text, space, form, _capacity(budget, model, form)))
    if space.setup.pairs:
        limits.append(Limit(PAIRS, space, broken_pairs_form(space), 0))
    needed = [limit for limit in limits if limit.greatest > limit.capacity]
    return tuple(needed or limits[:1])


def _capacity(budget: Budget, model: CostModel, form: Form) -> int:
    # The comparison is the one of records.excesses, so both draw the line at the same integer.
    limit = budget.absolute(model)
    total = 8 * sum(point.macs for point in model.setup.of_kind("weight").values())

    def is_kept(use: int) -> bool:
        cost = total / use if budget.at_least else float(use) / form.divisor
        return budget.excess(cost, limit) <= 0

    most = total / limit if budget.at_least else limit * form.divisor
    value = int(min(most * (1 + TOLERANCE), 2.0**62)) + 1
    step = max(1, value >> 52)
    while value > 0 and not is_kept(value):
        value -= step
    return value - form.constant
