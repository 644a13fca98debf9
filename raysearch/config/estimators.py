"""The trace estimators by name: which there are, where they are, and what they can do; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator


@dataclass(frozen=True)
class EstimatorEntry:
    """Where an estimator is, and what is known of it without making it.

    Attributes:
        module: in `raysearch/sensitivity/estimators`.
        factory: called with `arguments`.
        draw_chunk: draws in a unit of work, where the user sets none: the graph that a unit builds should
            cost little beside its draws.
        arguments: of the factory, which has defaults for the rest.
        per_sample: whether it sees single samples, see `TraceEstimator.per_sample`.
    """

    module: str
    factory: str
    draw_chunk: int
    arguments: tuple[str, ...] = ()
    per_sample: bool = False


ESTIMATORS: Mapping[str, EstimatorEntry] = {
    "hutchinson": EstimatorEntry("hutchinson", "Hutchinson", 8),
    "joint": EstimatorEntry("joint", "JointHutchinson", 32),
    "xnystrace": EstimatorEntry("xnystrace", "XNysTrace", 2),
    "xtrace": EstimatorEntry("xtrace", "XTrace", 2),
    "ggn": EstimatorEntry("gauss_newton", "GaussNewton", 2, per_sample=True),
    "ggn-top": EstimatorEntry("gauss_newton", "GaussNewton", 2, ("ggn-top",), per_sample=True),
    "ggn-exact": EstimatorEntry("gauss_newton", "ExactGaussNewton", 1, per_sample=True),
    "fisher": EstimatorEntry("empirical_fisher", "EmpiricalFisher", 1, per_sample=True),
}
"""Every estimator; a new one is its file and its line here."""

PER_SAMPLE: tuple[str, ...] = tuple(name for name, entry in ESTIMATORS.items() if entry.per_sample)
"""Those that see single samples."""


NO_TRACES = "none"
"""Stands in `sensitivity.estimator` for no traces."""


def _check_name(name: str) -> str:
    if name not in (*ESTIMATORS, NO_TRACES):
        raise ValueError(f"no trace estimator; known: {', '.join(ESTIMATORS)}, or {NO_TRACES}")
    return name


EstimatorName = Annotated[str, AfterValidator(_check_name)]
"""One of `ESTIMATORS`, or "none"."""
