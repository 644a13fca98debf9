"""Models in half precision, which are measured in float32.

A step of bfloat16 is 2⁻⁸ of a value. What 8-bit quantization changes in an output is less than that, so in
bfloat16 a response would be the rounding of the output and not what the quantizer did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from raysearch.evaluation.batches import Batch, map_tensors, tensors_of

HALF = (torch.float16, torch.bfloat16)

_Name = TypeVar("_Name")


def half_type(model: nn.Module) -> torch.dtype | None:
    """The first half-precision type among a model's parameters; None where all are wider."""
    return next((parameter.dtype for parameter in model.parameters() if parameter.dtype in HALF), None)


def in_float32(
    model: nn.Module, data: Mapping[_Name, list[Batch]]
) -> tuple[nn.Module, Mapping[_Name, list[Batch]]]:
    """A model in half precision, and the batches that it is run on, in float32; others as they are.

    Args:
        model: it is changed in place; every value stays what it is.
        data: name → batches; they are copied where they hold half precision.
    """
    if half_type(model) is None:
        return model, data
    return widened_model(model), widened_data(data)


def widened_model(model: nn.Module) -> nn.Module:
    """A model with its half-precision tensors in float32, changed in place; every value stays what it is."""
    if half_type(model) is not None:
        # Not `model.float()`, which would narrow float64 too.
        model._apply(_widened)  # type: ignore[no-untyped-call]
    return model


def widened_data(data: Mapping[_Name, list[Batch]]) -> dict[_Name, list[Batch]]:
    """Name → batches, copied where they hold half precision."""
    return {name: [widened_batch(batch) for batch in batches] for name, batches in data.items()}


def widened_batch(batch: Batch) -> Batch:
    """A batch with its half-precision tensors in float32; the batch itself where it has none."""
    if not any(tensor.dtype in HALF for _, tensor in tensors_of(batch)):
        return batch
    return map_tensors(batch, _widened)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor
