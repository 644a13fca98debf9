"""Estimators of a weight's Hessian trace, one a file, behind one protocol."""

from raysearch.sensitivity.estimators.make import EstimatorName, default_chunk, make_estimator
from raysearch.sensitivity.estimators.protocol import TraceEstimator, TraceLoss

__all__ = ["EstimatorName", "TraceEstimator", "TraceLoss", "default_chunk", "make_estimator"]
