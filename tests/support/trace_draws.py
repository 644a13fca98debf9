"""Draws of a trace estimator on a replica's calibration data, without a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raysearch.config.sensitivity import TraceLoss
from raysearch.evaluation import DataSet, Replica, ShardView
from raysearch.sensitivity.estimators import TraceEstimator, TraceRequest


def draw(
    estimator: TraceEstimator,
    replica: Replica,
    weights: Sequence[str],
    loss: TraceLoss = "divergence",
    *,
    draws: range = range(1),
    seed: int = 0,
    shard: int = 0,
) -> Mapping[str, np.ndarray]:
    """Weight → [draws, samples or 1]."""
    view = ShardView(replica, DataSet.CALIBRATION, shard)
    return estimator.draw(view, TraceRequest(tuple(weights), loss, seed, draws))
