"""Optuna samplers that propose assignments within limits; `SAMPLERS` lists them."""

from raysearch.config.search import SAMPLERS
from raysearch.search.samplers.base import WholeAssignmentSampler, make_distributions
from raysearch.search.samplers.brute import ListingSampler
from raysearch.search.samplers.feasible import FeasibleSampler
from raysearch.search.samplers.make import SamplerInputs, check_sampler, make_samplers
from raysearch.search.samplers.thompson import KnapsackThompsonSampler

__all__ = [
    "SAMPLERS",
    "FeasibleSampler",
    "KnapsackThompsonSampler",
    "ListingSampler",
    "SamplerInputs",
    "WholeAssignmentSampler",
    "check_sampler",
    "make_distributions",
    "make_samplers",
]
