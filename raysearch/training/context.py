"""Where the loop runs: alone in a process, or as one rank of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from raysearch.records import TrainingStatus
from raysearch.training.progress import CheckpointFolder

Tell = Callable[[TrainingStatus], None]
"""Is given the status of training whenever it changes."""


def silent(status: TrainingStatus) -> None:
    """Tells nobody."""


class Context(Protocol):
    """One rank of those that train together."""

    rank: int
    world: int
    device: torch.device
    folder: CheckpointFolder

    def prepare(self, objective: nn.Module, has_unused: Callable[[], bool]) -> nn.Module:
        """Wrap what is differentiated for the group.

        Args:
            objective: a batch in, a scalar out.
            has_unused: tries whether some parameters get no gradient.
        """
        ...

    def tell(self, status: TrainingStatus) -> None:
        """Called by every rank after every step and validation."""
        ...

    def gather(self, values: list[Any]) -> list[list[Any]]:
        """What each rank gives, on all of them, in the order of ranks."""
        ...

    def total(self, count: int) -> int:
        """The sum of what all ranks count."""
        ...

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0."""
        ...


class ProcessContext:
    """The loop alone in this process.

    Args:
        use_gpu: whether it runs on a GPU where there is one.
        tell: see `Context.tell`.
        folder: where checkpoints go; nowhere unless given.
    """

    rank = 0
    world = 1

    def __init__(
        self, use_gpu: bool = False, tell: Tell = silent, folder: CheckpointFolder | None = None
    ) -> None:
        kind = "cuda" if use_gpu and torch.cuda.is_available() else "cpu"
        self.device = torch.device(kind)
        self.folder = folder or CheckpointFolder(None)
        self._tell = tell

    def prepare(self, objective: nn.Module, has_unused: Callable[[], bool]) -> nn.Module:
        """The objective as it is."""
        return objective

    def tell(self, status: TrainingStatus) -> None:
        """Pass it on."""
        self._tell(status)

    def gather(self, values: list[Any]) -> list[list[Any]]:
        """The values of this process alone."""
        return [values]

    def total(self, count: int) -> int:
        """The count of this process alone."""
        return count

    def share_buffers(self, model: nn.Module) -> None:
        """Nobody to share with."""
