"""Names and numbers of a run as trackers take them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raysearch.records import RunResult, SearchTrial, TrainingStatus


def trial_values(trial: SearchTrial, objective: str) -> dict[str, float]:
    """A trial's value and costs; of a failed one the costs alone."""
    values = {f"search/{objective}": trial.value, "search/predicted": trial.predicted}
    return finite(values | {f"search/{kind}": value for kind, value in trial.costs.items()})


def training_values(status: TrainingStatus) -> dict[str, float]:
    """A step's loss and learning rate, or the metrics of a validation."""
    if status.loss is not None:
        return finite({"training/loss": status.loss, "training/learning_rate": status.learning_rate})
    return finite({f"validation/{name}": value for name, value in status.validation.items()})


def result_values(result: RunResult) -> dict[str, float]:
    """Metrics of the float and of the quantized model, on test data too, and the costs."""
    values = {f"cost/{kind}": value for kind, value in result.costs.items()}
    models = {"float": result.float_metrics, "quantized": result.quantized_metrics}
    models |= {f"test_{model}": metrics for model, metrics in result.test_metrics.items()}
    for model, metrics in models.items():
        values |= {f"{model}/{name}": value for name, value in metrics.items()}
    return finite(values)


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The values without those that are no number, which trackers refuse or draw wrongly."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of sections as "section.name" → value."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values
