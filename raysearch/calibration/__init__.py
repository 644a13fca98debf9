"""Calibration (range init): the scale and zero point of every quantizer at every width."""

from raysearch.calibration.batch_norm import adapt_batch_norm, apply_batch_norm
from raysearch.calibration.calibrate import calibrate, calibrate_model
from raysearch.calibration.rules import choose_rules
from raysearch.config.calibration import Estimator

__all__ = [
    "Estimator",
    "adapt_batch_norm",
    "apply_batch_norm",
    "calibrate",
    "calibrate_model",
    "choose_rules",
]
