"""Which width for which group: cost limits, surrogates, exact solvers, and the measured search."""

from raysearch.search.ask_tell import OnBatch, TrialLog
from raysearch.search.candidates import measured_candidates
from raysearch.search.evaluator import Evaluator, Measured, PlainEvaluator
from raysearch.search.feasibility import best_cost, check_budgets
from raysearch.search.least_cost import check_minimized, minimize_cost
from raysearch.search.live_study import LiveStudy
from raysearch.search.nncf_ratio import check_ratio, solve_ratio
from raysearch.search.optuna_bridge import STUDY_NAME, write_journal
from raysearch.search.prediction import best_predicted
from raysearch.search.problem import Limit, OptionSpace, Solution, Surrogate, make_limits, make_surrogate
from raysearch.search.problem.surrogates import SURROGATES
from raysearch.search.racing import MeasureShards, Race, ShardValues
from raysearch.search.samplers import SAMPLERS, KnapsackThompsonSampler, check_sampler
from raysearch.search.solvers import BudgetSolver
from raysearch.search.study import search_assignment
from raysearch.search.summary import rank_correlation, surrogate_agreement

__all__ = [
    "SAMPLERS",
    "STUDY_NAME",
    "SURROGATES",
    "BudgetSolver",
    "Evaluator",
    "KnapsackThompsonSampler",
    "Limit",
    "LiveStudy",
    "MeasureShards",
    "Measured",
    "OnBatch",
    "OptionSpace",
    "PlainEvaluator",
    "Race",
    "ShardValues",
    "Solution",
    "Surrogate",
    "TrialLog",
    "best_cost",
    "best_predicted",
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
