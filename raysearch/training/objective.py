"""What QAT minimises, as one module: a batch in, a scalar out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import TaskError
from raysearch.evaluation import Batch
from raysearch.hooks import checkpoint_blocks
from raysearch.training.features import BlockFeatures
from raysearch.training.recipe import Recipe


class Objective(nn.Module):
    """The task's loss of the quantized model, its divergence to the float model, or both.

    Being a module, it is what DDP wraps: then the task's forward gets the plain model, whatever it calls on
    it, and DDP finds every parameter that the scalar depends on, whatever type the outputs have.

    Attributes:
        model: the quantized model.

    Raises:
        ConfigError: gradient checkpointing or a weight of features is asked for, and the model has no
            blocks.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe
        # In a tuple the teacher is no submodule: it stays in eval mode, and DDP leaves it alone.
        self._teacher = (teacher,)
        if recipe.settings.gradient_checkpointing:
            checkpoint_blocks(model)
        self._features = BlockFeatures(model, teacher) if recipe.settings.feature_weight else None

    def forward(self, batch: Batch) -> Tensor:
        """The objective of one batch.

        Cost: one forward; with "distill" one of the float model more.

        Raises:
            TaskError: the task's loss is no scalar.
        """
        # Of the CPU or a GPU, wherever the model is.
        kind = next(self.model.parameters()).device.type
        is_half = self._recipe.settings.precision == "bfloat16"
        with torch.autocast(kind, torch.bfloat16, enabled=is_half):
            return self._value(batch)

    def _value(self, batch: Batch) -> Tensor:
        recipe = self._recipe
        outputs = recipe.forward(self.model, batch)
        if recipe.objective == "loss" and self._features is None:
            return self._loss(outputs, batch)
        with torch.no_grad():
            float_outputs = recipe.forward(self._teacher[0], batch)
        if recipe.objective == "loss":
            value = self._loss(outputs, batch)
        else:
            value = self._divergence(outputs, float_outputs, batch)
        if recipe.objective == "mixed":
            weight = recipe.settings.distill_weight
            value = (1 - weight) * self._loss(outputs, batch) + weight * value
        if self._features is not None:
            value = value + recipe.settings.feature_weight * self._features.distance()
        return value

    def _loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The task's loss."""
        loss = self._recipe.loss
        assert loss is not None  # without one the recipe's objective is "distill"
        value = loss(outputs, batch)
        if not isinstance(value, Tensor):
            raise TaskError(
                f"the task's loss gives a {type(value).__name__}, which has no gradient; for training it "
                f"must be a tensor that depends on the model's weights."
            )
        if value.numel() != 1:
            raise TaskError(f"the task's loss has shape {tuple(value.shape)}; it must be a scalar.")
        return value

    def _divergence(self, outputs: Any, float_outputs: Any, batch: Batch) -> Tensor:
        """The mean divergence over the samples of a batch.

        Args:
            outputs: of the quantized model.
            float_outputs: of the float model.
            batch: what both were given.
        """
        divergence = self._recipe.divergence
        target = divergence.judged(float_outputs, batch)
        return divergence.per_sample(divergence.judged(outputs, batch), target).mean()
