"""A moving average of the trained parameters, which is validated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raysearch.errors import StorageError


class Average:
    """ā ← d·ā + (1 − d)·p after every step, with d = min(decay, (1 + t) / (10 + t)) at step t.

    Buffers are not averaged: BatchNorm's statistics are averages already.

    Args:
        model: that is trained.
        decay: d once many steps are done; 0 averages nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad] if decay else []
        self._names = [name for name, _ in named]
        self._parameters = [parameter.detach() for _, parameter in named]
        self._averages = [parameter.clone() for parameter in self._parameters]

    def update(self, step: int) -> None:
        """Take in the parameters after a step, counted from 1."""
        if self._averages:
            decay = min(self._decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The averages in place of the parameters."""
        trained = [parameter.clone() for parameter in self._parameters]
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            parameter.copy_(average)
        try:
            yield
        finally:
            for parameter, value in zip(self._parameters, trained, strict=True):
                parameter.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Parameter → its average."""
        return dict(zip(self._names, self._averages, strict=True))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; averages that it lacks begin at the parameters.

        Raises:
            StorageError: a parameter has another shape.
        """
        for name, average, parameter in zip(self._names, self._averages, self._parameters, strict=True):
            value = tensors.get(name, parameter)
            if value.shape != average.shape:
                raise StorageError(
                    f"the average of '{name}' has shape {tuple(value.shape)} in the checkpoint, which "
                    f"belongs to another setup; start a new run."
                )
            average.copy_(value)
