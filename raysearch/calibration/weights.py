"""Ranges of weights: min-max, and the clip that minimises the squared error at each bit-width."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.quantizer import quant_levels

NUM_CLIPS = 96
"""Clips tried per channel, evenly from 1/NUM_CLIPS·1.1 to 1.1 of the largest magnitude."""


def channel_rows(weight: Tensor, axis: int | None) -> Tensor:
    """The weight as one row a scale: [num_scales, elements], float32."""
    if axis is None:
        return weight.detach().float().reshape(1, -1)
    return weight.detach().float().movedim(axis, 0).reshape(weight.shape[axis], -1)


def min_max_scale(weight: Tensor, axis: int | None, num_bits: int) -> npt.NDArray[np.float32]:
    """max|w| / quant_max per channel; the smallest normal number for an all-zero channel."""
    _, top = quant_levels(num_bits, signed=True)
    peak = channel_rows(weight, axis).abs().amax(1)
    return _positive(peak / top)


def mse_scale(weight: Tensor, axis: int | None, num_bits: int) -> npt.NDArray[np.float32]:
    """The scale that minimises ‖Q(w) − w‖² per channel over `NUM_CLIPS` clips; ties take the larger clip.

    Cost: NUM_CLIPS fake-quantizations of the weight, in memory one copy of it.
    """
    low, high = quant_levels(num_bits, signed=True)
    rows = channel_rows(weight, axis)
    peak = rows.abs().amax(1, keepdim=True)
    best = torch.full_like(peak, float("inf"))
    scale = peak / high
    for step in range(NUM_CLIPS, 0, -1):
        # Below 8 bits the grid reaches one level further down than up; clips up to 1.1 let it.
        candidate = (peak * (1.1 * step / NUM_CLIPS) / high).clamp_min(torch.finfo(torch.float32).tiny)
        error = (torch.clamp(torch.round(rows / candidate), low, high) * candidate - rows).square()
        total = error.sum(1, keepdim=True)
        better = total < best
        best = torch.where(better, total, best)
        scale = torch.where(better, candidate, scale)
    return _positive(scale.reshape(-1))


def _positive(scale: Tensor) -> npt.NDArray[np.float32]:
    tiny = torch.finfo(torch.float32).tiny
    found: npt.NDArray[np.float32] = scale.clamp_min(tiny).cpu().numpy().astype(np.float32)
    return found
