"""What a training worker needs to build the quantized model again and train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from raysearch.config import TrainingConfig
from raysearch.controller import QuantizationController, create_controller
from raysearch.errors import ConfigError
from raysearch.evaluation import Batch, Forward, Loss, Objective
from raysearch.evaluation.metric import MetricFunction
from raysearch.evaluation.model.copies import private_copy
from raysearch.hooks import put_floats
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable


@dataclass(frozen=True)
class Recipe:
    """The quantized model as something that can be shipped: its float model and what was decided.

    Attributes:
        model: the float model; also the teacher.
        setup: where quantizers go.
        ranges: calibrated ranges.
        assignment: group id → bit-width.
        train: the training data, as the user gave it.
        validation: shards that choose the best epoch.
        forward: (model, batch) → outputs.
        divergence: the label-free objective.
        loss: (outputs, batch) → scalar, or None.
        metrics: name → function (outputs, batch) → number.
        settings: how to train.
        seed: the run's seed.
        deterministic: whether deterministic algorithms are taken where there are any; one that has none is
            told as a warning, since much was computed before training.
        floats: parameter or buffer → what the quantized model starts from; the teacher keeps its own.
    """

    model: nn.Module
    setup: QuantizerSetup
    ranges: RangeTable
    assignment: BitAssignment
    train: Any
    validation: list[Batch]
    forward: Forward
    divergence: Objective
    loss: Loss | None = None
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)
    settings: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    deterministic: bool = True
    floats: Mapping[str, Tensor] = field(default_factory=dict)

    def build(self) -> QuantizationController:
        """A controller on a copy of the float model, at the ranges and float values that it starts from."""
        model = private_copy(self.model)
        put_floats(model, self.floats)
        return create_controller(model, self.setup, self.ranges, self.assignment)

    @property
    def objective(self) -> Literal["loss", "distill", "mixed"]:
        """The objective in force.

        Raises:
            ConfigError: "loss" or "mixed" is set, but the task has none.
        """
        objective = self.settings.objective
        if objective in ("loss", "mixed") and self.loss is None:
            raise ConfigError(
                f"training.objective is '{objective}', but the Task has no loss; set it to 'distill'."
            )
        if objective == "auto":
            return "distill" if self.loss is None else "loss"
        return objective

    @property
    def monitor(self) -> str:
        """The validation metric that chooses the best epoch; lower is better."""
        return "divergence" if self.objective == "distill" else "loss"
