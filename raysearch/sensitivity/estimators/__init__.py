"""Estimators of a weight's Hessian trace, one a file, behind one protocol."""

from raysearch.sensitivity.estimators.make import default_chunk, make_estimator
from raysearch.sensitivity.estimators.protocol import TraceEstimator, TraceRequest

__all__ = [
    "TraceEstimator",
    "TraceRequest",
    "default_chunk",
    "make_estimator",
]
