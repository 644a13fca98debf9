"""Weights that a model holds where torch does not look for them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from raysearch.evaluation.model.model_state import TORCH_NAMES


def warn_of_unregistered(model: nn.Module) -> None:
    """Tell of layers and parameters in plain lists, tuples, sets and dicts, which stay float.

    torch neither lists, moves, saves nor trains them: a model that is written so has lost them unnoticed.
    """
    known = {id(parameter) for parameter in model.parameters()}
    places: list[str] = []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in TORCH_NAMES and any(id(one) not in known for one in _parameters_in(value)):
                place = f"{path}.{name}" if path else name
                places.append(f"'{place}', a {type(value).__name__}")
    if places:
        warnings.warn(
            f"weights in plain containers are unknown to torch, so they stay float, uncounted and untrained: "
            f"{'; '.join(places)}. Make them nn.ModuleList, nn.ModuleDict, nn.ParameterList or "
            f"nn.ParameterDict.",
            stacklevel=3,
        )


def _parameters_in(value: Any) -> Iterator[nn.Parameter]:
    parts: Collection[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set):
        parts = value
    for part in parts:
        if isinstance(part, nn.Parameter):
            yield part
        elif isinstance(part, nn.Module):
            yield from part.parameters()
