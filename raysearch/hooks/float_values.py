"""Values of what stays float in a quantized model: norms' parameters and statistics, biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import PlacementError


def put_floats(model: nn.Module, floats: Mapping[str, Any]) -> None:
    """Write parameters and buffers of a model, by their names in its state dict; all of them or none.

    Raises:
        PlacementError: the model has none of a name, or has it in another shape.
    """
    own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: torch.as_tensor(value) for name, value in floats.items()}
    for name, value in values.items():
        if name not in own or own[name].shape != value.shape:
            raise PlacementError(
                f"the model has no parameter or buffer '{name}' of shape {tuple(value.shape)}: these values "
                f"are of another model. Run the search for this one."
            )
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
