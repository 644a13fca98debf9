"""Which estimator each quantizer gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from raysearch.calibration.ranges import Rule
from raysearch.config.calibration import Estimator
from raysearch.errors import ConfigError
from raysearch.placement.scopes import match
from raysearch.records import QuantizerSetup


def choose_rules(
    setup: QuantizerSetup,
    weights: Estimator,
    activations: Estimator,
    overrides: Mapping[str, Estimator],
    percentiles: tuple[float, float] = (0.1, 99.9),
    reference: bool = False,
) -> dict[str, Rule]:
    """The rule of every point: its kind's estimator, or that of the last override that fits it.

    Args:
        setup: the points.
        weights: estimator for weights.
        activations: estimator for activations.
        overrides: name, glob or "re:…" → estimator, in order.
        percentiles: lower and upper percentile.
        reference: the reference's definitions for its six estimators.

    Raises:
        ConfigError: an estimator that does not exist, or percentiles that are not ordered in 0 … 100.
        PlacementError: an override fits nothing; names the nearest quantizers.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ConfigError(
            f"calibration.percentiles is {list(percentiles)}; write a lower and a higher one of 0 to 100."
        )
    chosen: dict[str, Estimator] = {
        point.id: weights if point.kind == "weight" else activations for point in setup.points.values()
    }
    for pattern, estimator in overrides.items():
        for point in match(pattern, setup.points.values(), "calibration.overrides"):
            chosen[point.id] = estimator
    known = get_args(Estimator)
    for name, estimator in chosen.items():
        if estimator not in known:
            raise ConfigError(
                f"the estimator '{estimator}' of '{name}' is unknown; known: {', '.join(known)}."
            )
    return {name: Rule(estimator, percentiles, reference) for name, estimator in chosen.items()}
