"""Estimators by name; a module is imported when its estimator is asked for."""

from __future__ import annotations

from importlib import import_module

from raysearch.config.estimators import ESTIMATORS, EstimatorEntry
from raysearch.errors import ConfigError
from raysearch.sensitivity.estimators.protocol import TraceEstimator


def make_estimator(name: str) -> TraceEstimator:
    """The estimator of a name, with its defaults.

    Raises:
        ConfigError: the name is unknown; the message lists those that are not.
    """
    entry = _entry(name)
    module = import_module(f"raysearch.sensitivity.estimators.{entry.module}")
    estimator: TraceEstimator = getattr(module, entry.factory)(*entry.arguments)
    return estimator


def default_chunk(name: str) -> int:
    """Draws in a unit of work of a named estimator; 8 for one that is not listed."""
    return ESTIMATORS[name].draw_chunk if name in ESTIMATORS else 8


def _entry(name: str) -> EstimatorEntry:
    if name not in ESTIMATORS:
        raise ConfigError(f"the trace estimator '{name}' is unknown; known: {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[name]
