"""Feasibility: whether budgets can be met, each and together, and what limits them; before any compute."""

from __future__ import annotations

from collections.abc import Sequence

from raysearch.errors import BudgetError
from raysearch.records import Budget, CostModel, QuantizerSetup, check_achievable, limiting_groups
from raysearch.records.costs.text import cost
from raysearch.search.problem.integer_costs import integer_costs
from raysearch.search.problem.limits import make_limits
from raysearch.search.problem.space import OptionSpace
from raysearch.search.solvers.budget_solver import BudgetSolver


def check_budgets(budgets: Sequence[Budget], setup: QuantizerSetup) -> None:
    """Refuse budgets that no assignment meets.

    Each on its own first; then together and within the setup's width pairs, by a mixed-integer program.

    Raises:
        BudgetError: names the budget, what can be achieved (of several: the least of each while the others
            hold), and the groups that limit it.
    """
    model = CostModel(setup)
    check_achievable(budgets, model)
    space = OptionSpace(setup)
    try:
        BudgetSolver(space, make_limits(space, budgets, model))
    except BudgetError as error:
        lines = [_best_beside(space, model, budgets, index) for index in range(len(budgets))]
        coupled = " with the hardware profile's width pairs" if setup.pairs else ""
        raise BudgetError(
            f"the budgets {', '.join(b.text for b in budgets)} cannot be met together{coupled}. "
            f"{' '.join(lines)} Raise one of the limits, allow lower widths (placement.weight_bit_widths, "
            "placement.activation_bit_widths), or lift a pin."
        ) from error


def best_cost(space: OptionSpace, model: CostModel, kind: str, others: Sequence[Budget]) -> float:
    """The best value that a cost can have while other budgets and the width pairs hold.

    Args:
        space: the options.
        model: the costs of the same setup.
        kind: one of `COST_KINDS`.
        others: the budgets that hold.

    Raises:
        BudgetError: the others cannot be met.
    """
    limits = make_limits(space, others, model) if others or space.setup.pairs else ()
    from raysearch.search.solvers.milp import least_use

    choices = least_use(space, limits, integer_costs(space, model.formula(kind)))
    return model.costs(space.assignment(choices))[kind]


def _best_beside(space: OptionSpace, model: CostModel, budgets: Sequence[Budget], index: int) -> str:
    """A sentence: what one budget asks for, and the best that can be had beside the others."""
    budget = budgets[index]
    others = [other for number, other in enumerate(budgets) if number != index]
    try:
        best = best_cost(space, model, budget.kind, others)
    except BudgetError:
        return f"Without '{budget.text}' the others still cannot be met."
    bound = "at least" if budget.at_least else "at most"
    condition = " while the others hold" if others else ""
    sentence = (
        f"'{budget.text}' asks for {bound} {cost(budget.kind, budget.absolute(model))}; the best{condition} "
        f"is {cost(budget.kind, best)}. {limiting_groups(model, budget.kind)}"
    )
    return sentence.strip()
