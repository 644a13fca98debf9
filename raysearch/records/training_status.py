"""What training says of itself while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainingStatus:
    """Where training is.

    Attributes:
        epoch: the epoch in progress, from 0.
        epochs: all of them; 0 where steps are counted instead.
        step: optimizer steps that are done.
        steps: all of them; 0 while unknown.
        samples: samples of a step, over all workers.
        loss: the objective of the last step; None before there was one.
        learning_rate: of weights in the last step.
        validation: the last validation's metrics.
        message: what is waited for, for people; "" while training goes on.
    """

    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    samples: int = 0
    loss: float | None = None
    learning_rate: float = 0.0
    validation: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
