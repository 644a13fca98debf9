"""Estimators of a weight's Hessian trace, one a file, behind one protocol."""

from raysearch.sensitivity.estimators.make import (
    PER_SAMPLE,
    EstimatorName,
    default_chunk,
    make_estimator,
)
from raysearch.sensitivity.estimators.protocol import TraceEstimator, TraceLoss

__all__ = [
    "PER_SAMPLE",
    "EstimatorName",
    "TraceEstimator",
    "TraceLoss",
    "default_chunk",
    "make_estimator",
]
