"""The search as integers: options, costs, limits and surrogates."""

from raysearch.search.problem.limits import Limit, make_limits
from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import OptionSpace
from raysearch.search.problem.surrogates import Surrogate, make_surrogate

__all__ = ["Limit", "OptionSpace", "Solution", "Surrogate", "make_limits", "make_surrogate"]
