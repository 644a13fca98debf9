"""How fast training goes at each step, and when it ends."""

from __future__ import annotations

import math

from raysearch.config import TrainingConfig
from raysearch.errors import ConfigError


class Schedule:
    """A factor of the learning rates for each step: a rise over the warm-up, then ½(1 + cos(π·t)).

    t goes from 0 to 1 over the steps behind the warm-up. While the length of the data is not known, which
    is so in the first pass over an iterable without one, the factor stays at the top.

    Args:
        settings: how to train.
        num_batches: batches of a rank in a pass over the data; None where the data does not tell.

    Attributes:
        steps_per_epoch: optimizer steps in a pass over the data; None while that is not known.

    Raises:
        ConfigError: the warm-up is a share of a number that is not known.
    """

    def __init__(self, settings: TrainingConfig, num_batches: int | None) -> None:
        self._settings = settings
        self._num_batches = num_batches
        self.steps_per_epoch = num_batches
        if 0 < settings.warmup_steps < 1 and self.total is None:
            raise ConfigError(
                f"training.warmup_steps is {settings.warmup_steps}, a share of all steps, but the training "
                f"data has no length, so their number is not known; give a number of steps, or "
                f"training.steps."
            )

    def see_step_of(self, num_batches: int) -> None:
        """Learn from the first step of an epoch how many batches a step has."""
        if self._num_batches is not None:
            self.steps_per_epoch = -(-self._num_batches // num_batches)

    def see_epoch_of(self, num_steps: int) -> None:
        """Learn from an epoch that is over how many steps it has, where the data does not tell."""
        if self._num_batches is None:
            self.steps_per_epoch = num_steps

    @property
    def total(self) -> int | None:
        """All optimizer steps, as far as they are known."""
        if self._settings.steps is not None:
            return self._settings.steps
        if self.steps_per_epoch is None:
            return None
        return self._settings.epochs * self.steps_per_epoch

    def is_over(self, epoch: int, step: int) -> bool:
        """Whether training ends before an epoch, given the optimizer steps that are done."""
        if self._settings.steps is not None:
            return step >= self._settings.steps
        return epoch >= self._settings.epochs

    def ends_with(self, step: int) -> bool:
        """Whether training ends within an epoch, given the optimizer steps that are done."""
        return self._settings.steps is not None and step >= self._settings.steps

    def share(self, step: int) -> float:
        """The share of the training that is done before a step; 0 while its length is not known."""
        total = self.total
        return step / total if total else 0.0

    def factor(self, step: int) -> float:
        """What the learning rates of a step, counted from 0, are multiplied with."""
        warmup = self._settings.warmup_steps
        total = self.total
        if 0 < warmup < 1 and total is not None:
            warmup = math.ceil(warmup * total)
        if step < warmup:
            return (step + 1) / warmup
        if total is None:
            return 1.0
        share = (step - warmup) / max(1.0, total - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
