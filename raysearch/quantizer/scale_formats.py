"""Scales as they are stored: rounded before any code is chosen by them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from raysearch.quantizer.shared_steps import shared_steps
from raysearch.records import QuantizationPoint, QuantizerRange
from raysearch.records.scale_format import SCALE_FORMATS, ScaleFormat


def storable(
    scale: Tensor, scale_format: str = "float32", step: Tensor | None = None, least: int = 1
) -> Tensor:
    """The nearest scales that the format stores, in the type that they come in.

    Where neighbours are integers times a float16, scales that are so already stay, and others get the float16
    of which the greatest of them is the highest integer.

    Args:
        scale: positive, any shape; of groups the last dimension runs along a row, or over all scales of a
            weight in their order.
        scale_format: one of `SCALE_FORMATS`.
        step: of `scale_steps`, in the scale's shape: what scales are to be integers of. So scales that are
            chosen one by one can be stored together.
        least: the least of the integers; 0 of minima, which may be 0 in any format.

    Example:
        >>> storable(torch.tensor([0.1, 1e9]), "float16").tolist()
        [0.0999755859375, 65504.0]
    """
    stored = SCALE_FORMATS[scale_format]
    single = scale.float()
    smallest = stored.smallest if least else 0.0
    if scale_format == "float32":
        return single.clamp_min(smallest).to(scale.dtype)
    if step is None:
        step = scale_steps(single, scale_format)
    if step is not None:
        integers = (single / step.float()).round().clamp(least, stored.highest)
        return (integers * step.float()).to(scale.dtype)
    dtype: torch.dtype = getattr(torch, scale_format)
    # Clamped before it is rounded: beyond the greatest value lies infinity, below the least one 0.
    return single.clamp(smallest, stored.largest).to(dtype).to(scale.dtype)


def scale_steps(scale: Tensor, scale_format: str) -> Tensor | None:
    """What neighbouring scales are integers of, in the scale's shape; None: the format stores each by itself.

    Args:
        scale: positive; see `storable`.
        scale_format: one of `SCALE_FORMATS`.
    """
    stored = SCALE_FORMATS[scale_format]
    if stored.sharing == 1:
        return None
    blocks_nk = scale.detach().float().reshape(-1, stored.sharing)
    common_n = shared_steps(blocks_nk, stored.highest)
    step_n = torch.where(common_n > 0, common_n, _least_step(blocks_nk, stored))
    return step_n[:, None].expand(-1, stored.sharing).reshape(scale.shape).to(scale.dtype)


def _least_step(blocks_nk: Tensor, stored: ScaleFormat) -> Tensor:
    """The float16 of which the greatest scale of a block is the highest integer, [n]."""
    least = blocks_nk.amax(1) / stored.highest
    half = SCALE_FORMATS["float16"]
    return least.clamp(half.smallest, half.largest).to(torch.float16).float()


def storable_through(scale: Tensor, scale_format: str) -> Tensor:
    """`storable`, with the gradient of the scale itself; of float32 only a clamp."""
    if scale_format == "float32":
        return scale.clamp_min(SCALE_FORMATS[scale_format].smallest)
    # The difference is exactly 0, so the value is the storable one bit for bit.
    return storable(scale.detach(), scale_format) + (scale - scale.detach())


def storable_range(value: QuantizerRange, point: QuantizationPoint) -> QuantizerRange:
    """The range with scales and minima that the point's format stores; itself where that is float32."""
    if point.scale_format == "float32":
        return value
    scale = storable(torch.from_numpy(value.scale.copy()), point.scale_format)
    minimum = value.minimum
    if minimum is not None:
        minimum = storable(torch.from_numpy(minimum.copy()), point.scale_format, least=0).numpy()
    return replace(value, scale=scale.numpy(), minimum=minimum)
