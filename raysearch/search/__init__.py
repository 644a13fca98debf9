"""Which width for which group: cost limits, surrogates, exact decoding, and the measured search."""

from raysearch.search.decoder import Decoder
from raysearch.search.journal import STUDY_NAME, write_journal
from raysearch.search.knapsack import Knapsack
from raysearch.search.ratio import check_ratio, choose, solve_ratio
from raysearch.search.sampler import SAMPLERS, KnapsackThompsonSampler
from raysearch.search.space import Limit, OptionSpace, make_limits
from raysearch.search.study import Evaluate, OnBatch, search_assignment
from raysearch.search.surrogates import SURROGATES, Surrogate, make_surrogate

__all__ = [
    "SAMPLERS",
    "STUDY_NAME",
    "SURROGATES",
    "Decoder",
    "Evaluate",
    "Knapsack",
    "KnapsackThompsonSampler",
    "Limit",
    "OnBatch",
    "OptionSpace",
    "Surrogate",
    "check_ratio",
    "choose",
    "make_limits",
    "make_surrogate",
    "search_assignment",
    "solve_ratio",
    "write_journal",
]
