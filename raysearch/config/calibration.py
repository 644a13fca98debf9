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
    """Samples, shards and range estimators.

    Attributes:
        num_samples: exactly so many are read, or all if there are fewer.
        shard_size: samples in one forward.
        weights: the estimator for weights; `calibration.statistics.interval` has the definitions.
        activations: the estimator for activations.
        overrides: name, glob or "re:…" of a quantizer → its estimator; later ones win.
        percentiles: lower and upper percentile, for "percentile" and "mean_percentile".
        reference: the definitions of NNCF (`calibration.reference`) for its six estimators; a shard is a
            batch. Values are then kept one by one where its definitions need them.
        batch_norm_samples: samples on which BatchNorm statistics are adapted to the quantized model; 0: they
            are left as they are.
    """

    num_samples: int = Field(256, ge=1)
    shard_size: int = Field(32, ge=1)
    weights: Estimator = "mse"
    activations: Estimator = "mse"
    overrides: dict[str, Estimator] = Field(default_factory=dict)
    percentiles: tuple[Percent, Percent] = (0.1, 99.9)
    reference: bool = False
    batch_norm_samples: int = Field(0, ge=0)
