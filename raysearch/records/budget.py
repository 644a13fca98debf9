"""Budgets: the one parser of expressions such as `avg_bits<=4`, `size<=12.5%` or `bops<=1.2G`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from raysearch.errors import BudgetError
from raysearch.records.assignment import BitAssignment
from raysearch.records.costs import COST_KINDS, CostModel

_UNITS: dict[str, dict[str, float]] = {
    "avg_bits": {"": 1.0},
    "act_bits": {"": 1.0},
    "size": {
        "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9,
        "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    },
    "bops": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
}  # fmt: skip
_RELATIVE = ("size", "bops")
_EXPRESSION = re.compile(
    r"^\s*([A-Za-z_]+)\s*(<=|≤)\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*$"
)
TOLERANCE = 1e-9
"""Relative slack of a comparison, so that a sum in floating point does not break an exact limit."""


@dataclass(frozen=True)
class Budget:
    """A hard upper limit on one cost.

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
        """The limit in the kind's own unit."""
        return self.limit * model.reference[self.kind] if self.relative else self.limit


def parse_budget(text: str) -> Budget:
    """Read one budget expression: KIND<=NUMBER[UNIT].

    Raises:
        BudgetError: the form, the kind, the unit or the number is not one that is known.

    Example:
        >>> parse_budget("size<=12.5%")
        Budget(kind='size', limit=0.125, relative=True, text='size<=12.5%')
        >>> parse_budget("size <= 250KiB").limit
        256000.0
    """
    match = _EXPRESSION.match(text)
    if match is None:
        raise BudgetError(
            f"the budget '{text}' cannot be read; a budget is KIND<=NUMBER[UNIT], for example avg_bits<=4, "
            f"size<=250KiB, size<=12.5% or bops<=1.2G. Kinds: {', '.join(COST_KINDS)}."
        )
    kind, _, number, unit = match.groups()
    if kind not in COST_KINDS:
        raise BudgetError(
            f"the budget '{text}' is of the unknown kind '{kind}'; known: {', '.join(COST_KINDS)}."
        )
    value = float(number)
    if unit == "%":
        if kind not in _RELATIVE:
            raise BudgetError(
                f"the budget '{text}' is in percent; only {' and '.join(_RELATIVE)} have a 100 %."
            )
        return Budget(kind, _positive(value / 100, text), True, text)
    if unit not in _UNITS[kind]:
        allowed = ["%"] * (kind in _RELATIVE) + [repr(u) if u == "" else u for u in _UNITS[kind]]
        raise BudgetError(
            f"the budget '{text}' has the unit '{unit}'; allowed for {kind}: {', '.join(allowed)}."
        )
    return Budget(kind, _positive(value * _UNITS[kind][unit], text), False, text)


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


def excesses(budgets: Iterable[Budget], model: CostModel, costs: dict[str, float]) -> dict[str, float]:
    """Expression → (cost − limit) / limit; an assignment is feasible when every excess is ≤ 0."""
    found: dict[str, float] = {}
    for budget in budgets:
        limit = budget.absolute(model)
        excess = (costs[budget.kind] - limit) / limit
        found[budget.text] = 0.0 if 0 < excess <= TOLERANCE else excess
    return found


def is_feasible(budgets: Iterable[Budget], model: CostModel, assignment: BitAssignment) -> bool:
    """Whether an assignment keeps every budget."""
    return all(value <= 0 for value in excesses(budgets, model, model.costs(assignment)).values())


def check_achievable(budgets: Iterable[Budget], model: CostModel) -> None:
    """Refuse budgets below the smallest assignment; no compute is needed to know.

    Raises:
        BudgetError: states the achievable range and the smallest assignment's cost.
    """
    for budget in budgets:
        limit, low, high = budget.absolute(model), model.lowest[budget.kind], model.highest[budget.kind]
        if limit <= 0:
            raise BudgetError(
                f"the budget '{budget.text}' is a share of {budget.kind}, which is 0 for this model; give an "
                "absolute limit or leave it out."
            )
        if (low - limit) > TOLERANCE * limit:
            hint = ""
            if budget.relative:
                base = model.reference[budget.kind]
                hint = f" (that is {low / base:.2%} to {high / base:.2%})"
            raise BudgetError(
                f"the budget '{budget.text}' cannot be met: it allows {limit:.6g}, and even with every group "
                f"at its lowest width {budget.kind} is {low:.6g}. Achievable: {low:.6g} to {high:.6g}{hint}. "
                f"Raise the limit, allow lower widths (placement.weight_bit_widths), or lift a pin."
            )
