"""Sensitivity: traces with standard errors, perturbations, responses; and measured assignments."""

from raysearch.sensitivity.measure import measure_sensitivity
from raysearch.simulation.objective import MeasuredObjective

__all__ = ["MeasuredObjective", "measure_sensitivity"]
