"""Which estimator each quantizer gets."""

from __future__ import annotations

from typing import get_args

from raysearch.calibration.ranges import Rule
from raysearch.config.calibration import CalibrationConfig, Estimator
from raysearch.errors import ConfigError
from raysearch.placement.scopes import match
from raysearch.records import QuantizerSetup


def choose_rules(setup: QuantizerSetup, settings: CalibrationConfig) -> dict[str, Rule]:
    """The rule of every point: its kind's estimator, or that of the last override that fits it.

    Raises:
        ConfigError: an estimator that does not exist, or a lower percentile that is not below the upper.
        PlacementError: an override fits nothing; names the nearest quantizers.
    """
    lower, upper = settings.percentiles
    if not 0 <= lower < upper <= 100:
        raise ConfigError(
            f"calibration.percentiles is {[lower, upper]}; write a lower and a higher one of 0 to 100."
        )
    estimators: dict[str, Estimator] = {}
    for point in setup.points.values():
        estimators[point.id] = settings.weights if point.kind == "weight" else settings.activations
    for pattern, estimator in settings.overrides.items():
        for point in match(pattern, setup.points.values(), "calibration.overrides"):
            estimators[point.id] = estimator
    # Settings that were not validated come here too: those of `init_range`.
    choices = get_args(Estimator)
    for name, estimator in estimators.items():
        if estimator not in choices:
            raise ConfigError(
                f"the estimator '{estimator}' of '{name}' is unknown; known: {', '.join(choices)}."
            )
    return {
        name: Rule(estimator, settings.percentiles, settings.reference)
        for name, estimator in estimators.items()
    }
