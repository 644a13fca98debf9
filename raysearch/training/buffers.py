"""Buffers of a model that its forward makes anew."""

from __future__ import annotations

from torch import Tensor, nn


class Buffers:
    """The buffers that a model has before training: what a forward keeps of a batch beside them is no state.

    Args:
        model: that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = _buffers(model)

    def put_back_remade(self) -> None:
        """Put back buffers that a forward made anew in another shape, and take those away that it added."""
        for (module, key), buffer in _buffers(self._model).items():
            if (module, key) not in self._before:
                del module._buffers[key]
                continue
            earlier = self._before[module, key]
            shapes = [None if tensor is None else tensor.shape for tensor in (earlier, buffer)]
            if shapes[0] != shapes[1]:
                module._buffers[key] = earlier


def _buffers(model: nn.Module) -> dict[tuple[nn.Module, str], Tensor | None]:
    return {(module, key): buffer for module in model.modules() for key, buffer in module._buffers.items()}
