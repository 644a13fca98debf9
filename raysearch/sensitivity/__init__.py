"""Sensitivity: traces with standard errors, perturbations, responses; and measured assignments."""

from raysearch.sensitivity.measure import measure_sensitivity
from raysearch.sensitivity.trials import TrialEvaluator

__all__ = ["TrialEvaluator", "measure_sensitivity"]
