"""Scales as they are stored: rounded before any code is chosen by them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from raysearch.records import QuantizationPoint, QuantizerRange
from raysearch.records.scale_format import SCALE_FORMATS


def storable(scale: Tensor, scale_format: str = "float32") -> Tensor:
    """The nearest scales that the format stores, in the type that they come in.

    Args:
        scale: positive, any shape; of groups the last dimension runs along a row, or over all scales of a
            weight in their order.
        scale_format: one of `SCALE_FORMATS`.

    Example:
        >>> storable(torch.tensor([0.1, 1e9]), "float16").tolist()
        [0.0999755859375, 65504.0]
    """
    stored = SCALE_FORMATS[scale_format]
    single = scale.float()
    if scale_format == "float32":
        return single.clamp_min(stored.smallest).to(scale.dtype)
    dtype: torch.dtype = getattr(torch, scale_format)
    # Clamped before it is rounded: beyond the greatest value lies infinity, below the least one 0.
    return single.clamp(stored.smallest, stored.largest).to(dtype).to(scale.dtype)


def storable_through(scale: Tensor, scale_format: str) -> Tensor:
    """`storable`, with the gradient of the scale itself; of float32 only a clamp."""
    if scale_format == "float32":
        return scale.clamp_min(SCALE_FORMATS[scale_format].smallest)
    # The difference is exactly 0, so the value is the storable one bit for bit.
    return storable(scale.detach(), scale_format) + (scale - scale.detach())


def storable_range(value: QuantizerRange, point: QuantizationPoint) -> QuantizerRange:
    """The range with scales that the point's format stores; itself where that is float32."""
    if point.scale_format == "float32":
        return value
    scale = storable(torch.from_numpy(value.scale.copy()), point.scale_format)
    return replace(value, scale=scale.numpy())
