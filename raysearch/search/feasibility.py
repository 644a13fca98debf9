"""Whether budgets can be met, each and together, and what stands in the way; before any compute."""

from __future__ import annotations

from collections.abc import Sequence

from raysearch.errors import BudgetError
from raysearch.records import Budget, CostModel, QuantizerSetup, check_achievable, limiting_groups
from raysearch.search.problem.integer_costs import integer_costs
from raysearch.search.problem.limits import make_limits
from raysearch.search.problem.space import OptionSpace
from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.search.solvers.milp import least_use


def check_budgets(budgets: Sequence[Budget], setup: QuantizerSetup) -> None:
    """Refuse budgets that no assignment meets.

    Each on its own first; then together and within the setup's width pairs, by a mixed-integer program.

    Raises:
        BudgetError: names the budget, what can be achieved (of several: the least of each while the others
            hold), and the groups that hold it up.
    """
    model = CostModel(setup)
    check_achievable(budgets, model)
    space = OptionSpace(setup)
    try:
        BudgetSolver(space, make_limits(space, budgets, model))
    except BudgetError as error:
        lines = [_reachable(space, model, budgets, index) for index in range(len(budgets))]
        coupled = " with the hardware profile's width pairs" if setup.pairs else ""
        raise BudgetError(
            f"the budgets {', '.join(b.text for b in budgets)} cannot be met together{coupled}. "
            f"{' '.join(lines)} Raise one of the limits, allow lower widths (placement.weight_bit_widths, "
            "placement.activation_bit_widths), or lift a pin."
        ) from error


def best_cost(space: OptionSpace, model: CostModel, kind: str, others: Sequence[Budget]) -> float:
    """The best value that a cost can have while other budgets and the width pairs hold.

    Raises:
        BudgetError: the others cannot be met.
    """
    limits = list(make_limits(space, others, model)) if others or space.setup.pairs else []
    choices = least_use(space, limits, integer_costs(space, model.formula(kind)))
    return model.costs(space.assignment(choices))[kind]


def _reachable(space: OptionSpace, model: CostModel, budgets: Sequence[Budget], index: int) -> str:
    budget = budgets[index]
    others = [other for number, other in enumerate(budgets) if number != index]
    limit = budget.absolute(model)
    asked = "at least" if budget.at_least else "at most"
    try:
        best = best_cost(space, model, budget.kind, others)
    except BudgetError:
        return f"Without '{budget.text}' the others still cannot be met."
    held = " while the others hold" if others else ""
    return (
        f"'{budget.text}' asks for {asked} {limit:.6g}; the best{held} is {best:.6g}. "
        f"{limiting_groups(model, budget.kind)}".strip()
    )


__all__ = ["best_cost", "check_budgets"]
