"""Estimators of a weight's Hessian trace, one a file, behind one protocol."""

from raysearch.sensitivity.estimators.protocol import TraceEstimator, TraceLoss

__all__ = ["TraceEstimator", "TraceLoss"]
