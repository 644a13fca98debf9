"""Estimators by name; a module is imported when its estimator is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from raysearch.errors import ConfigError
from raysearch.sensitivity.estimators.protocol import TraceEstimator


@dataclass(frozen=True)
class Entry:
    """Where an estimator is.

    Attributes:
        module: in this folder.
        factory: called with `arguments`.
        draw_chunk: draws in a unit of work, where the user sets none: the graph that a unit builds should
            cost little beside its draws.
        arguments: of the factory, which has defaults for the rest.
    """

    module: str
    factory: str
    draw_chunk: int
    arguments: tuple[str, ...] = ()


ESTIMATORS: Mapping[str, Entry] = {
    "hutchinson": Entry("hutchinson", "Hutchinson", 8),
    "joint": Entry("joint", "JointHutchinson", 32),
    "xnystrace": Entry("xnystrace", "XNysTrace", 2),
    "xtrace": Entry("xtrace", "XTrace", 2),
    "ggn": Entry("gauss_newton", "GaussNewton", 2),
    "ggn-top": Entry("gauss_newton", "GaussNewton", 2, ("ggn-top",)),
    "ggn-exact": Entry("gauss_newton", "ExactGaussNewton", 1),
    "fisher": Entry("empirical_fisher", "EmpiricalFisher", 1),
}


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


def _entry(name: str) -> Entry:
    if name not in ESTIMATORS:
        raise ConfigError(f"the trace estimator '{name}' is unknown; known: {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[name]
