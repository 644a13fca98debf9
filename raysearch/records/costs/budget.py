"""Budgets: the one parser of expressions such as `avg_bits<=4`, `size<=12.5%` or `bops<=1.2G`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from raysearch.errors import BudgetError
from raysearch.records.assignment import BitAssignment
from raysearch.records.costs.kinds import COST_KINDS
from raysearch.records.costs.model import LOWEST, CostModel
from raysearch.records.costs.text import cost

_EXPRESSION = re.compile(
    r"^\s*([A-Za-z_]+)\s*(<=|≤|>=|≥)\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ%]*)\s*$"
)
TOLERANCE = 1e-9
"""Relative slack of a comparison, so that a sum in floating point does not break an exact limit."""


@dataclass(frozen=True)
class Budget:
    """A hard limit on one cost: the most it may be, for `effective` the least.

    Attributes:
        kind: one of `COST_KINDS`.
        limit: in the kind's own unit (bits, bytes, bit operations), or a fraction when `relative`.
        relative: whether `limit` is a fraction of `CostModel.reference`.
        text: the expression as it was written.
    """

    kind: str
    limit: float
    relative: bool
    text: str

    def absolute(self, model: CostModel) -> float:
        """The limit in the kind's own unit.

        Raises:
            BudgetError: it is a share of a cost that the setup does not have.
        """
        if not self.relative:
            return self.limit
        model.require(self.kind)
        return self.limit * model.reference[self.kind]

    @property
    def at_least(self) -> bool:
        """Whether the cost must be at least the limit."""
        return COST_KINDS[self.kind].at_least

    def excess(self, cost: float, limit: float) -> float:
        """How far a cost is beyond the limit, as a share of it; ≤ 0 keeps it.

        (cost − limit)/limit, and for `effective` (limit − cost)/cost; within `TOLERANCE` it is 0.
        """
        excess = (limit - cost) / cost if self.at_least else (cost - limit) / limit
        return 0.0 if 0 < excess <= TOLERANCE else excess


def parse_budget(text: str) -> Budget:
    """Read one budget expression: KIND<=NUMBER[UNIT], or effective>=NUMBER.

    Raises:
        BudgetError: the form, the kind, the unit or the number is not one that is known.

    Example:
        >>> parse_budget("size<=12.5%")
        Budget(kind='size', limit=0.125, relative=True, text='size<=12.5%')
        >>> parse_budget("size <= 250KiB").limit
        256000.0
        >>> parse_budget("latency<=12ms").limit
        0.012
    """
    match = _EXPRESSION.match(text)
    if match is None:
        raise BudgetError(
            f"the budget '{text}' cannot be read; a budget is KIND<=NUMBER[UNIT], for example avg_bits<=4, "
            f"bpw<=4.5, size<=250KiB, size<=12.5%, bops<=1.2G, effective>=1.5 or latency<=12ms. "
            f"Kinds: {', '.join(COST_KINDS)}."
        )
    name, sign, number, unit = match.groups()
    if name not in COST_KINDS:
        raise BudgetError(
            f"the budget '{text}' is of the unknown kind '{name}'; known: {', '.join(COST_KINDS)}."
        )
    kind = COST_KINDS[name]
    if sign.replace("≥", ">=").replace("≤", "<=") != kind.sign:
        raise BudgetError(f"the budget '{text}' compares with '{sign}'; {name} takes '{kind.sign}'.")
    value = float(number)
    if unit == "%":
        if not kind.is_relative:
            relative = [other.name for other in COST_KINDS.values() if other.is_relative]
            raise BudgetError(
                f"the budget '{text}' is in percent; only {' and '.join(relative)} have a 100 %."
            )
        return Budget(name, _positive(value / 100, text), True, text)
    if unit not in kind.units:
        allowed = ["%"] if kind.is_relative else []
        allowed += [name_of_unit or "''" for name_of_unit in kind.units]
        raise BudgetError(
            f"the budget '{text}' has the unit '{unit}'; allowed for {name}: {', '.join(allowed)}."
        )
    return Budget(name, _positive(value * kind.units[unit], text), False, text)


def _positive(limit: float, text: str) -> float:
    if not 0 < limit < float("inf"):
        raise BudgetError(f"the budget '{text}' has the limit {limit}; a limit is a positive number.")
    return limit


def parse_budgets(texts: Iterable[str]) -> tuple[Budget, ...]:
    """Read several expressions; all of them must hold at once.

    Raises:
        BudgetError: none is given, or one cannot be read.
    """
    budgets = tuple(parse_budget(text) for text in texts)
    if not budgets:
        raise BudgetError('no budget is given; set one, for example --budget "avg_bits<=4".')
    return budgets


def excesses(budgets: Iterable[Budget], model: CostModel, costs: Mapping[str, float]) -> dict[str, float]:
    """Expression → `Budget.excess`; an assignment is feasible when every excess is ≤ 0.

    Args:
        budgets: the limits.
        model: what 100 % of a relative budget is.
        costs: kind → cost of the assignment.

    Raises:
        BudgetError: the setup does not have a budget's cost.
    """
    excess: dict[str, float] = {}
    for budget in budgets:
        model.require(budget.kind)
        excess[budget.text] = budget.excess(costs[budget.kind], budget.absolute(model))
    return excess


def is_feasible(budgets: Iterable[Budget], model: CostModel, assignment: BitAssignment) -> bool:
    """Whether an assignment keeps every budget.

    Args:
        budgets: the limits.
        model: the costs.
        assignment: group → width.
    """
    excess = excesses(budgets, model, model.costs(assignment))
    return all(value <= 0 for value in excess.values())


def check_achievable(budgets: Iterable[Budget], model: CostModel) -> None:
    """Refuse budgets that no assignment meets even on their own; no compute is needed to know.

    Raises:
        BudgetError: states the achievable range, and the groups that limit it.
    """
    for budget in budgets:
        model.require(budget.kind)
        limit = budget.absolute(model)
        if limit <= 0:
            raise BudgetError(
                f"the budget '{budget.text}' is a share of {budget.kind}, which is 0 for this model; give an "
                "absolute limit or leave it out."
            )
        low = model.lowest[budget.kind]
        high = model.highest[budget.kind]
        best = high if budget.at_least else low
        if best > 0 and budget.excess(best, limit) > 0:
            shown = partial(cost, budget.kind)
            verb, remedy = ("asks for", "Lower") if budget.at_least else ("allows", "Raise")
            raise BudgetError(
                f"the budget '{budget.text}' cannot be met: it {verb} {shown(limit)}, and even with the "
                f"least that every group allows {budget.kind} is {shown(best)}. Achievable: {shown(low)} to "
                f"{shown(high)}{_percentages(budget, model)}. {limiting_groups(model, budget.kind)}{remedy} "
                "the limit, allow lower widths (placement.weight_bit_widths, weight_schemes), or lift a pin."
            )


def _percentages(budget: Budget, model: CostModel) -> str:
    if not budget.relative:
        return ""
    base = model.reference[budget.kind]
    return f" (that is {model.lowest[budget.kind] / base:.2%} to {model.highest[budget.kind] / base:.2%})"


def limiting_groups(model: CostModel, kind: str, num_groups: int = 4) -> str:
    """A sentence that names what keeps a cost up at its least, the greatest shares first.

    Groups with one scheme come first: pins and profiles make them so, and a user can lift those.

    Args:
        model: the costs.
        kind: one of `COST_KINDS`.
        num_groups: the most groups that are named.
    """
    lowest = model.extreme(kind, LOWEST)
    shares = model.shares(kind, lowest)
    total = sum(shares.values())
    if total <= 0:
        return ""
    fixed_share = shares.pop("")
    fixed = {name for name, group in model.setup.groups.items() if len(group.schemes) == 1}
    contributing = [name for name, share in shares.items() if name and share > 0]
    contributing.sort(key=lambda name: (name not in fixed, -shares[name], name))
    parts = []
    for name in contributing[:num_groups]:
        only = "only " if name in fixed else ""
        parts.append(f"'{name}' ({only}{lowest.schemes[name].in_words}, {shares[name] / total:.1%})")
    if fixed_share > 0:
        parts.append(f"what stays float or has no width ({fixed_share / total:.1%})")
    return f"Limited by {', '.join(parts)}. "
