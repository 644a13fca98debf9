"""Budgets as integer limits on the options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from raysearch.records import Budget, CostFormula, CostModel
from raysearch.records.costs.budget import TOLERANCE
from raysearch.search.problem.integer_costs import IntegerCost, broken_pairs_cost, integer_costs
from raysearch.search.problem.space import BoolArray, IntArray, OptionSpace

PAIRS = "the width pairs of the hardware profile"
"""Name of the limit that keeps `QuantizerSetup.pairs`."""


@dataclass(frozen=True)
class Limit:
    """One budget in integers: `cost`'s use(x) ≤ capacity.

    Attributes:
        text: the budget's expression, or what else asks for it.
        space: the options.
        cost: what is added up.
        capacity: the greatest integer use that `records.excesses` calls feasible.
    """

    text: str
    space: OptionSpace
    cost: IntegerCost
    capacity: int

    @property
    def is_separable(self) -> bool:
        """Whether each group adds its own part."""
        return not len(self.cost.edges)

    @property
    def is_hard(self) -> bool:
        """Whether it forbids pairs of options: a capacity of 0, of which no fraction is taken."""
        return self.capacity == 0

    @cached_property
    def is_monotone(self) -> bool:
        """Whether the use grows, or stays, with every width."""
        valid = self.space.valid
        grows = (np.diff(self.cost.linear, axis=1) >= 0) | ~valid[:, 1:]
        if self.is_separable:
            return bool(grows.all())
        weights, inputs = self.cost.edges.T
        used = valid[weights][:, :, None] & valid[inputs][:, None, :]
        grows_with_weight = (np.diff(self.cost.tables, axis=1) >= 0) | ~used[:, 1:]
        grows_with_input = (np.diff(self.cost.tables, axis=2) >= 0) | ~used[:, :, 1:]
        return bool(grows.all() and grows_with_weight.all() and grows_with_input.all())

    @cached_property
    def greatest(self) -> int:
        """A use that no choices exceed."""
        alone = np.where(self.space.valid, self.cost.linear, np.iinfo(np.int64).min).max(axis=1)
        total = int(alone.sum())
        if not self.is_separable:
            total += int(self.cost.tables.max(axis=(1, 2)).sum())
        return total

    def use(self, choices: IntArray) -> IntArray:
        """The use, integer, of choices [..., L]."""
        use: IntArray = self.cost.linear[self.space.rows, choices].sum(axis=-1)
        if not self.is_separable:
            first, second = self.cost.edges.T
            edges = np.arange(len(first))
            use = use + self.cost.tables[edges, choices[..., first], choices[..., second]].sum(axis=-1)
        return use

    def is_kept(self, choices: IntArray) -> BoolArray:
        """Whether choices [..., L] use no more than the capacity."""
        fits: BoolArray = self.use(choices) <= self.capacity
        return fits

    def room(self, choices: IntArray) -> int:
        """What choices [L] leave of the capacity; negative where they exceed it."""
        return self.capacity - int(self.use(choices))

    def parts(self, choices: IntArray) -> IntArray:
        """[L]: each group's part of the use, a coupling's counted with the first of its groups."""
        parts = self.cost.linear[self.space.rows, choices]
        if not self.is_separable:
            first, second = self.cost.edges.T
            edges = np.arange(len(first))
            np.add.at(parts, first, self.cost.tables[edges, choices[first], choices[second]])
        return parts

    def changes(self, choices: IntArray) -> IntArray:
        """[L, B]: what the use grows by when one group takes one option, the others staying."""
        change: IntArray = self.cost.linear - self.cost.linear[self.space.rows, choices][:, None]
        if self.is_separable:
            return change
        tables = self.cost.tables
        first, second = self.cost.edges.T
        edges = np.arange(len(first))
        now = tables[edges, choices[first], choices[second]][:, None]
        by_first = tables[edges, :, choices[second]] - now
        by_second = tables[edges, choices[first], :] - now
        # Flat indices: numpy adds to a flat array ten times as fast as to rows.
        total = change.reshape(-1)
        options_of_first, options_of_second = self._flat_ends
        np.add.at(total, options_of_first, by_first.reshape(-1))
        np.add.at(total, options_of_second, by_second.reshape(-1))
        return total.reshape(change.shape)

    def couplings(self, row: int) -> list[tuple[int, IntArray]]:
        """The groups that a group is coupled with, and the table [its option, the other's option] of each."""
        return self._couplings.get(row, [])

    @cached_property
    def _couplings(self) -> dict[int, list[tuple[int, IntArray]]]:
        couplings: dict[int, list[tuple[int, IntArray]]] = {}
        for (first, second), table in zip(self.cost.edges.tolist(), self.cost.tables, strict=True):
            couplings.setdefault(first, []).append((second, table))
            couplings.setdefault(second, []).append((first, table.T))
        return couplings

    @cached_property
    def _flat_ends(self) -> tuple[IntArray, IntArray]:
        """Flat indices of all options of the edges' first groups, and of their second ones."""
        columns = np.arange(self.space.num_columns)
        first, second = self.cost.edges.T[:, :, None] * self.space.num_columns + columns
        return first.reshape(-1), second.reshape(-1)

    def scaled(self, fraction: float) -> Limit:
        """The same limit with a fraction of the capacity."""
        return replace(self, capacity=int(self.capacity * fraction))


def make_limits(space: OptionSpace, budgets: Iterable[Budget], model: CostModel) -> tuple[Limit, ...]:
    """Budgets as integer limits that agree with `CostModel.costs` and `records.excesses` exactly.

    A cost with several sums gives one limit for each (`activation_memory`: for each set of live tensors), and
    the setup's width pairs one more: no weight may break them. A limit that nothing can exceed is left out
    unless it is the only one.

    Args:
        space: the options.
        budgets: the limits.
        model: the costs of the same setup.

    Raises:
        BudgetError: the setup does not have a budget's cost.
    """
    limits = []
    for budget in budgets:
        formula = model.formula(budget.kind)
        capacity = _capacity(budget, model, formula)
        for cost in integer_costs(space, formula):
            limits.append(Limit(budget.text, space, cost, capacity - cost.constant))
    if space.setup.pairs:
        limits.append(Limit(PAIRS, space, broken_pairs_cost(space), 0))
    needed = [limit for limit in limits if limit.greatest > limit.capacity]
    return tuple(needed or limits[:1])


def _capacity(budget: Budget, model: CostModel, formula: CostFormula) -> int:
    """The greatest integer use that `records.excesses` calls feasible."""
    limit = budget.absolute(model)
    use = int(min(formula.use_at(limit) * (1 + TOLERANCE), 2.0**62)) + 1
    # Beyond 2^52 a float does not tell neighbouring integers apart, so neither does the comparison.
    step = max(1, use >> 52)
    while use > 0 and budget.excess(formula.cost(use), limit) > 0:
        use -= step
    return use
