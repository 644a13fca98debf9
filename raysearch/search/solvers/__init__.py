"""Exact and fast solvers of the choice of one option a group within limits."""

from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.search.solvers.local_search import descend
from raysearch.search.solvers.quadratic import solve_quadratic

__all__ = ["BudgetSolver", "descend", "solve_quadratic"]
