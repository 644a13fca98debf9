"""Sensitivity: Hessian traces with standard errors, perturbations, and responses."""

from raysearch.sensitivity.measure import measure_sensitivity

__all__ = ["measure_sensitivity"]
