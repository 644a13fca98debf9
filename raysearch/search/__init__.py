"""Which width for which group: cost limits, surrogates, exact decoding, and the measured search."""

from raysearch.search.agreement import rank_correlation, surrogate_agreement
from raysearch.search.ask_tell import Evaluate, OnBatch
from raysearch.search.candidates import measured_candidates
from raysearch.search.feasibility import best_cost, check_budgets
from raysearch.search.journal import STUDY_NAME, write_journal
from raysearch.search.least_cost import check_minimized, minimize_cost
from raysearch.search.nncf_ratio import check_ratio, solve_ratio
from raysearch.search.problem.limits import Limit, make_limits
from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import OptionSpace
from raysearch.search.problem.surrogates import SURROGATES, Surrogate, make_surrogate
from raysearch.search.racing import Measured, MeasureShards, Race, ShardValues
from raysearch.search.samplers.make import SAMPLERS, check_sampler
from raysearch.search.samplers.thompson import KnapsackThompsonSampler
from raysearch.search.solvers.decoder import Decoder
from raysearch.search.solvers.knapsack import Knapsack
from raysearch.search.study import search_assignment

__all__ = [
    "SAMPLERS",
    "STUDY_NAME",
    "SURROGATES",
    "Decoder",
    "Evaluate",
    "Knapsack",
    "KnapsackThompsonSampler",
    "Limit",
    "MeasureShards",
    "Measured",
    "OnBatch",
    "OptionSpace",
    "Race",
    "ShardValues",
    "Solution",
    "Surrogate",
    "best_cost",
    "check_budgets",
    "check_minimized",
    "check_ratio",
    "check_sampler",
    "make_limits",
    "make_surrogate",
    "measured_candidates",
    "minimize_cost",
    "rank_correlation",
    "search_assignment",
    "solve_ratio",
    "surrogate_agreement",
    "write_journal",
]
