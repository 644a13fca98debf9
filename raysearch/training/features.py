"""How far the outputs of a model's repeated blocks are from the float model's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import ConfigError
from raysearch.hooks.checkpointed_blocks import repeated_blocks


class BlockFeatures:
    """Keeps what the repeated blocks of a quantized model and of the float model gave last.

    Args:
        model: the quantized model.
        teacher: the float model, of the same build.

    Raises:
        ConfigError: the model has no repeated blocks.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        names = list(repeated_blocks(model, with_batch_norm=True))
        if not names:
            raise ConfigError(
                f"training.feature_weight is set, but {type(model).__name__} has no repeated blocks (two "
                f"children of one class in a ModuleList or Sequential, with parts of their own); set it to 0."
            )
        self._student = [_LastOutput(model.get_submodule(name)) for name in names]
        self._teacher = [_LastOutput(teacher.get_submodule(name)) for name in names]

    def distance(self) -> Tensor:
        """The mean over blocks of ‖h − h⁰‖² / ‖h⁰‖², of the batch that both models ran last."""
        distances: list[Tensor] = []
        for student, teacher in zip(self._student, self._teacher, strict=True):
            target = teacher.taken().float()
            error = (student.taken().float() - target).square().sum()
            distances.append(error / target.square().sum().clamp_min(torch.finfo(torch.float32).tiny))
        return torch.stack(distances).mean()


class _LastOutput:
    """The first tensor of a module's last output."""

    def __init__(self, module: nn.Module) -> None:
        self._value: Tensor | None = None
        module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self._value = output[0] if isinstance(output, tuple) else output

    def taken(self) -> Tensor:
        """The output, which is not kept any longer: it holds a graph."""
        value, self._value = self._value, None
        assert value is not None  # the model ran
        return value
