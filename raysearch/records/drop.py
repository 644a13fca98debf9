"""How far a metric may fall behind the float model's: `accuracy=0.01`, `accuracy=1%`, `loss=0.05`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raysearch.errors import ConfigError
from raysearch.records.costs.text import cost

_EXPRESSION = re.compile(r"^\s*(.+?)\s*=\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%?)\s*$")
TOLERANCE = 1e-9
"""Slack of the comparison, as a share of the float value or of 1, for the rounding of means."""


@dataclass(frozen=True)
class MaxDrop:
    """The most that a metric may get worse.

    Attributes:
        metric: "divergence", "loss" or a metric's name.
        amount: in the metric's own unit, or a fraction when `relative`.
        relative: whether `amount` is a fraction of the float model's absolute value.
        text: the expression.
    """

    metric: str
    amount: float
    relative: bool
    text: str

    def allowed(self, float_value: float) -> float:
        """The greatest drop, in the metric's own unit."""
        return self.amount * abs(float_value) if self.relative else self.amount

    def is_kept(self, drop: float, float_value: float) -> bool:
        """Whether a drop from the float value is allowed; one that is not finite never is."""
        return drop <= self.allowed(float_value) + TOLERANCE * max(1.0, abs(float_value))


def drop_of(value: float, float_value: float, maximize: bool) -> float:
    """How much worse a value is than the float model's: float − value where more is better, else the rise.

    Args:
        value: of the quantized model, in the metric's unit.
        float_value: of the float model.
        maximize: whether more is better.
    """
    return float_value - value if maximize else value - float_value


def parse_max_drop(text: str) -> MaxDrop:
    """Read METRIC=AMOUNT or METRIC=AMOUNT%.

    Raises:
        ConfigError: the form or the number is not one, or a share of the divergence is asked for, whose value
            is 0 for the float model.

    Example:
        >>> parse_max_drop("accuracy=1%")
        MaxDrop(metric='accuracy', amount=0.01, relative=True, text='accuracy=1%')
    """
    match = _EXPRESSION.match(text)
    if match is None:
        raise ConfigError(
            f"the greatest drop '{text}' cannot be read; write METRIC=AMOUNT or METRIC=AMOUNT%, for example "
            "accuracy=0.01, accuracy=1%, loss=0.05 or divergence=0.02."
        )
    metric, number, percent = match.groups()
    amount = float(number) / (100 if percent else 1)
    if not math.isfinite(amount):
        raise ConfigError(f"the greatest drop '{text}' is not finite; give a number of at least 0.")
    if percent and metric == "divergence":
        raise ConfigError(
            f"the greatest drop '{text}' is a share of the float model's divergence, which is 0; give an "
            "absolute amount, such as divergence=0.02."
        )
    return MaxDrop(metric, amount, bool(percent), text)


@dataclass(frozen=True)
class LeastCost:
    """What the search for the least cost found.

    Attributes:
        kind: the cost that was minimised.
        cost: the least found, in its own unit.
        metric: what may drop.
        max_drop: the expression, such as "accuracy=1%".
        allowed: the greatest drop in the metric's unit.
        float_value: the float model's value on the search's samples.
        value: the found assignment's, on the same samples, calibrated and not trained.
        drop: how much worse that is; at most `allowed`.
        trained_drop: the same of the trained model on the whole validation data; None before it is known.
        direction: "maximize" or "minimize", which way the metric gets better; "" in records of before.
        is_taken: whether a user chose the assignment among the trials, so that a lesser cost may be known.
    """

    kind: str
    cost: float
    metric: str
    max_drop: str
    allowed: float
    float_value: float
    value: float
    drop: float
    trained_drop: float | None = None
    direction: str = ""
    is_taken: bool = False

    def taken(self, cost: float, value: float) -> LeastCost:
        """The same of another trial that a user chose in place of the cheapest.

        Args:
            cost: the trial's.
            value: the trial's, of the metric.
        """
        # Records of before do not name the direction.
        maximize = self.direction == "maximize" or (
            not self.direction and self.drop == drop_of(self.value, self.float_value, True)
        )
        drop = drop_of(value, self.float_value, maximize)
        return replace(self, cost=cost, value=value, drop=drop, is_taken=True)

    def describe(self) -> str:
        """One sentence for people."""
        which = f"The {self.kind} of the chosen trial" if self.is_taken else f"The least {self.kind} found"
        change = "rise" if self.direction == "minimize" else "drop"
        after = (
            ""
            if self.trained_drop is None
            else (f"; the exported model's on the whole validation data: {self.trained_drop:.6g}")
        )
        over = self.trained_drop is not None and self.trained_drop > self.allowed
        return (
            f"{which} with {self.max_drop} is {cost(self.kind, self.cost)}: "
            f"{self.metric} is {self.value:.6g} on the search's samples before training, "
            f"{self.float_value:.6g} for the float model, a {change} of {self.drop:.6g} of "
            f"{self.allowed:.6g} allowed{after}"
            f"{', which is more than that' if over else ''}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        # Records of before lack it.
        if not self.is_taken:
            del values["is_taken"]
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LeastCost:
        """Read what `as_dict` gave.

        Raises:
            TypeError: a field is missing or unknown.
        """
        return cls(**data)
