"""One optimizer step: forward and backward of its batches, and the change of the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from raysearch.errors import TrainingError
from raysearch.evaluation import Batch, batch_size
from raysearch.evaluation.batches import check_finite, map_tensors
from raysearch.training.context import Context
from raysearch.training.feed import Draws, drawn, in_steps
from raysearch.training.optimizer import Optimizer
from raysearch.training.phases import Phases
from raysearch.training.recipe import Recipe
from raysearch.training.schedule import Schedule


class DivergedError(TrainingError):
    """Training diverged; the text says where, and not what to do then."""


@dataclass(frozen=True)
class Step:
    """What an optimizer step was.

    Attributes:
        loss: the objective, a mean over the samples of this rank.
        samples: that all ranks saw.
    """

    loss: float
    samples: int


class Stepper:
    """Takes the optimizer steps of one rank.

    Args:
        recipe: what to train and how.
        context: this process.
        objective: the objective of a batch, wrapped for the group.
        optimizer: of its parameters.
        schedule: of the learning rates.
        phases: of the model.
    """

    def __init__(
        self,
        recipe: Recipe,
        context: Context,
        objective: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        phases: Phases,
    ) -> None:
        self._recipe = recipe
        self._context = context
        self._objective = objective
        self._optimizer = optimizer
        self._schedule = schedule
        self._phases = phases

    def steps(self, turns: Iterable[list[Batch]], epoch: int, step: int, first: int) -> Iterator[Step]:
        """Take the steps of an epoch, one each time that the next is asked for.

        Args:
            turns: the batches of the epoch and this rank.
            epoch: which one.
            step: optimizer steps that are done in all.
            first: optimizer steps of this epoch that are done.

        Raises:
            DivergedError: the objective is not finite.
        """
        draws = Draws(self._recipe.seed, epoch, self._context.rank)
        self._objective.train()
        index = 0
        shares = in_steps(drawn(turns, draws), self._recipe.settings.share_of_one(self._context.world))
        for place_in_epoch, parts in enumerate(shares):
            if place_in_epoch == 0:
                self._schedule.see_step_of(len(parts))
            if place_in_epoch >= first:
                share = self._schedule.share(step)
                self._phases.enter(share)
                self._optimizer.set_factor(self._schedule.factor(step))
                taken = self._take(parts, draws, epoch, index)
                self._phases.dampen(share, self._optimizer.learning_rate)
                yield taken
                step += 1
            index += len(parts)

    def _take(self, parts: list[Batch], draws: Draws, epoch: int, index: int) -> Step:
        """One step.

        Args:
            parts: its batches, whose gradients are accumulated.
            draws: the seeds of the epoch.
            epoch: the epoch.
            index: of the first batch in the epoch.
        """
        self._optimizer.zero_grad()
        sizes = [batch_size(batch) for batch in parts]
        total = self._context.total(sum(sizes))
        loss = 0.0
        for part, batch in enumerate(parts):
            draws.for_computing(index + part)
            # Gradients are averaged over the ranks, which have unequal shares at the end of an epoch.
            weight = sizes[part] * self._context.world / total
            with self._reduced(is_last=part == len(parts) - 1):
                value = self._objective(place(batch, self._context.device))
                number = value.item()
                self._check(number, batch, epoch, index + part)
                (value if weight == 1 else value * weight).backward()
            loss += sizes[part] / sum(sizes) * number
        limit = self._recipe.settings.max_grad_norm
        if limit is not None:
            nn.utils.clip_grad_norm_(self._optimizer.parameters, limit)
        self._optimizer.step()
        return Step(loss, total)

    def _reduced(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the ranks once a step, with its last batch."""
        if is_last or self._context.world == 1:
            return nullcontext()
        context: AbstractContextManager[None] = self._objective.no_sync()  # type: ignore[operator]
        return context

    def _check(self, value: float, batch: Batch, epoch: int, index: int) -> None:
        if math.isfinite(value):
            return
        check_finite(batch, f"the training data, epoch {epoch}, step {index}")
        raise DivergedError(
            f"the training objective is {value} at epoch {epoch}, step {index}, learning rate "
            f"{self._optimizer.learning_rate:.3g}; the batch itself is finite."
        )


def place(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    return map_tensors(batch, lambda tensor: tensor.to(device))
