"""Which way what is measured gets better, and what is said where a value lies on the wrong side."""

from __future__ import annotations

from collections.abc import Mapping

from raysearch.config import SearchConfig
from raysearch.errors import ConfigError
from raysearch.evaluation.metric import Direction, MetricFunction, as_metric, direction_of
from raysearch.records import drop_of

MINIMIZED = ("divergence", "loss")
"""What raysearch measures itself; less of it is better."""

UNLIKELY_GAIN = 0.1
"""A quantized model that is better than the float one by more than this share is worth a word."""


def measured_direction(metrics: Mapping[str, MetricFunction], search: SearchConfig) -> Direction:
    """Which way what trials are measured by gets better.

    Args:
        metrics: the task's.
        search: names what is measured; its `direction` may say which way is better.

    Raises:
        ConfigError: neither the metric nor the settings state it, or they contradict each other.
    """
    name = search.measured
    said: Direction | None = None if search.direction == "auto" else search.direction
    if name in MINIMIZED:
        known: Direction | None = "minimize"
    else:
        known = direction_of(name, metrics[name])
    # A well-known name is no statement of the user's, so the setting has its way.
    is_stated = name in MINIMIZED or as_metric(metrics[name]).direction is not None
    if said is not None and known is not None and said != known and is_stated:
        raise ConfigError(
            f"search.direction is '{said}', but of '{name}' {_better(known)} is better; leave it out."
        )
    direction = said or known
    if direction is None:
        raise ConfigError(
            f"the search is to follow the metric '{name}', and nothing says whether more or less of it is "
            f"better. State it in the task: metrics={{'{name}': raysearch.Metric(function, "
            f"direction='minimize')}} where less is better, 'maximize' where more is; or set "
            f"search.direction."
        )
    return direction


def unlikely_gain(name: str, value: float, float_value: float, direction: Direction) -> str:
    """A sentence where a quantized model is much better than the float one; else "".

    Args:
        name: the metric.
        value: of the quantized model.
        float_value: of the float model.
        direction: which way it gets better.
    """
    gain = -drop_of(value, float_value, direction == "maximize")
    if not gain > UNLIKELY_GAIN * abs(float_value) or gain == 0:
        return ""
    other: Direction = "minimize" if direction == "maximize" else "maximize"
    return (
        f"'{name}' is {value:.6g} for the quantized model and {float_value:.6g} for the float one, and "
        f"{_better(direction)} of it is taken for better: quantization seldom improves a model by so much. "
        f"If {_better(other)} of it is better, state it: raysearch.Metric(function, direction='{other}')."
    )


def _better(direction: Direction) -> str:
    return "more" if direction == "maximize" else "less"
