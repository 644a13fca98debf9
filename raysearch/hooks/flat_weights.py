"""Weights of LSTM, GRU and RNN: torch reads them from a list of its own, which must follow quantizers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


def follow_parametrizations(module: nn.Module) -> None:
    """Let a recurrent layer read its weights as they are now; any other module is left alone.

    `nn.RNNBase` keeps the parameters in a list, `_flat_weights`, and hands that to one function. While a
    weight is parametrized, the list is made anew whenever it is read. Call it after each change of
    parametrizations.
    """
    if not isinstance(module, nn.RNNBase):
        return
    if not parametrize.is_parametrized(module):
        module._init_flat_weights()
        return
    # The class is the module's own: parametrize injects it.
    injected: Any = type(module)
    injected._flat_weights = property(_current_weights, _forget)
    injected._init_flat_weights = _keep
    injected._weights_have_changed = _never
    vars(module).pop("_flat_weights", None)


def _current_weights(module: Any) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _forget(module: nn.Module, weights: object) -> None:
    pass


def _keep(module: nn.Module) -> None:
    pass


def _never(module: nn.Module) -> bool:
    return False
