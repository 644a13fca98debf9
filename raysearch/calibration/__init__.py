"""Calibration (range init): the scale and zero point of every quantizer at every width."""

from raysearch.calibration.calibrate import calibrate

__all__ = ["calibrate"]
