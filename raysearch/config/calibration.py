"""The calibration sample, and how ranges are estimated from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysearch.config.section import Percent, Section

Estimator = Literal[
    "min_max",
    "mean_min_max",
    "mixed_min_max",
    "threesigma",
    "percentile",
    "mean_percentile",
    "mse",
    "entropy",
]
"""A range estimator, as `calibration.weights` and `calibration.activations` may name it."""


class CalibrationConfig(Section):
    """Samples, shards and range estimators."""

    num_samples: int = Field(256, ge=1)
    shard_size: int = Field(32, ge=1)
    weights: Estimator = "mse"
    activations: Estimator = "mse"
    overrides: dict[str, Estimator] = Field(default_factory=dict)
    percentiles: tuple[Percent, Percent] = (0.1, 99.9)
    reference: bool = False
    batch_norm_samples: int = Field(0, ge=0)
