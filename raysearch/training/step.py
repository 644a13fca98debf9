"""One optimizer step: forward and backward of its batches, and the change of the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import nn

from raysearch.errors import TrainingError
from raysearch.evaluation import Batch, batch_size
from raysearch.evaluation.batches import check_finite, map_tensors
from raysearch.training.feed import Draws, drawn, in_steps
from raysearch.training.optimizer import Optimizer
from raysearch.training.recipe import Recipe
from raysearch.training.schedule import Schedule


class Rank(Protocol):
    """This process among those that train together."""

    rank: int
    world: int
    device: torch.device


class Stepper:
    """Takes the optimizer steps of one rank.

    Args:
        recipe: what to train and how.
        rank: this process.
        objective: the objective of a batch, wrapped for the group.
        optimizer: of its parameters.
        schedule: of the learning rates.
    """

    def __init__(
        self, recipe: Recipe, rank: Rank, objective: nn.Module, optimizer: Optimizer, schedule: Schedule
    ) -> None:
        self._recipe = recipe
        self._rank = rank
        self._objective = objective
        self._optimizer = optimizer
        self._schedule = schedule

    def train_epoch(self, batches: Iterable[Batch], epoch: int, step: int) -> int:
        """Take the steps of an epoch, or as many as are left.

        Args:
            batches: of the epoch and this rank.
            epoch: which one.
            step: optimizer steps that are done.

        Returns:
            The optimizer steps that are done then.

        Raises:
            TrainingError: the objective is not finite, or there is no batch.
        """
        settings = self._recipe.settings
        draws = Draws(self._recipe.seed, epoch, self._rank.rank)
        self._objective.train()
        first_step = step
        index = 0
        for parts in in_steps(drawn(batches, draws), settings.worker_share):
            if step == first_step:
                self._schedule.see_step_of(len(parts))
            self._take(parts, draws, index, epoch, step)
            index += len(parts)
            step += 1
            if self._schedule.ends_with(step):
                break
        if step == first_step:
            raise TrainingError(
                "the training data gave no batch; pass data with at least one batch a worker."
            )
        self._schedule.see_epoch_of(step - first_step)
        return step

    def _take(self, parts: list[Batch], draws: Draws, index: int, epoch: int, step: int) -> None:
        """One step.

        Args:
            parts: its batches, whose gradients are accumulated.
            draws: the seeds of the epoch.
            index: of the first batch in the epoch.
            epoch: the epoch.
            step: optimizer steps before this one.
        """
        self._optimizer.set_factor(self._schedule.factor(step))
        self._optimizer.zero_grad()
        sizes = [batch_size(batch) for batch in parts]
        for place_in_step, batch in enumerate(parts):
            draws.for_computing(index + place_in_step)
            is_last = place_in_step == len(parts) - 1
            with self._reduced(is_last):
                value = self._objective(place(batch, self._rank.device))
                self._check(value.item(), batch, epoch, index + place_in_step)
                weight = sizes[place_in_step] / sum(sizes)
                (value if len(parts) == 1 else value * weight).backward()
        limit = self._recipe.settings.max_grad_norm
        if limit is not None:
            nn.utils.clip_grad_norm_(self._optimizer.parameters, limit)
        self._optimizer.step()

    def _reduced(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the ranks once a step, with its last batch."""
        if is_last or self._rank.world == 1:
            return nullcontext()
        context: AbstractContextManager[None] = self._objective.no_sync()  # type: ignore[operator]
        return context

    def _check(self, value: float, batch: Batch, epoch: int, index: int) -> None:
        if math.isfinite(value):
            return
        check_finite(batch, f"the training data, epoch {epoch}, step {index}")
        raise TrainingError(
            f"the training objective is {value} at epoch {epoch}, step {index}, learning rate "
            f"{self._optimizer.learning_rate:.3g}; lower training.learning_rate or "
            f"training.scale_learning_rate; the batch itself is finite."
        )


def place(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    return map_tensors(batch, lambda tensor: tensor.to(device))
