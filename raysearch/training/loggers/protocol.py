"""What takes in the curves of training."""

from __future__ import annotations

from typing import Protocol

from raysearch.records import TrainingStatus


class TrainingLogger(Protocol):
    """Is given every status of training, steps and validations alike."""

    def log(self, status: TrainingStatus) -> None:
        """Take in a status: a step where it has a loss, else a validation."""
        ...

    def close(self) -> None:
        """Training is over, or was cut."""
        ...
