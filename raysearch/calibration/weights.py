"""Ranges of weights: min-max, and the clip that minimises the squared error at each bit-width."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.quantizer import quant_levels
from raysearch.quantizer.quantizer import SMALLEST_SCALE
from raysearch.records import QuantizerRange

NUM_CLIPS = 80
"""Clips tried per channel between 0 and the largest magnitude; a tenth as many are tried above it."""

NUM_POLISHES = 4
"""Least-squares steps from the best clip."""


def channel_rows(weight: Tensor, axis: int | None) -> Tensor:
    """The weight as one row a scale: [num_scales, elements], float32."""
    if axis is None:
        return weight.detach().float().reshape(1, -1)
    return weight.detach().float().movedim(axis, 0).reshape(weight.shape[axis], -1)


def min_max_scale(
    weight: Tensor, axis: int | None, num_bits: int, levels: tuple[int, int] | None = None
) -> npt.NDArray[np.float32]:
    """max|w| / quant_max per channel; the smallest scale of a quantizer for an all-zero channel.

    Args:
        weight: the weight.
        axis: dimension of the channels; None: one scale.
        num_bits: the width; not read where `levels` are given.
        levels: (lowest code, highest code); None: the signed ones of the width.
    """
    _, top = levels or quant_levels(num_bits, signed=True)
    peak = channel_rows(weight, axis).abs().amax(1)
    return _array(peak / top)


def mse_scale(
    weight: Tensor, axis: int | None, num_bits: int, levels: tuple[int, int] | None = None
) -> npt.NDArray[np.float32]:
    """The scale that minimises ‖Q(w) − w‖² per channel; never worse than `min_max_scale`.

    The best of 1.1·NUM_CLIPS evenly spaced clips, ties to the larger one, then polished: for codes c of a
    scale s the best scale is ⟨w, c⟩/⟨c, c⟩, and rounding anew to it can only lower the error further.

    Cost: 1.1·NUM_CLIPS + NUM_POLISHES fake-quantizations of the weight, in memory a few copies of it.

    Args:
        weight: the weight.
        axis: dimension of the channels; None: one scale.
        num_bits: the width.
        levels: lowest and highest code, where they are not those of a signed weight of this width.
    """
    low, high = levels or quant_levels(num_bits, signed=True)
    rows = channel_rows(weight, axis)
    peak = rows.abs().amax(1, keepdim=True)
    best, scale = torch.full_like(peak, float("inf")), peak / high

    def codes_of(candidate: Tensor) -> Tensor:
        return torch.clamp(torch.round(rows / candidate), low, high)

    def consider(candidate: Tensor) -> None:
        nonlocal best, scale
        candidate = candidate.clamp_min(SMALLEST_SCALE)
        error = (codes_of(candidate) * candidate - rows).square().sum(1, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, candidate, scale)

    # Below 8 bits the grid reaches one level further down than up; clips above the peak let it. The clip
    # at the peak is among them, so that a weight which is on a min-max grid already stays as it is.
    for step in range(NUM_CLIPS + NUM_CLIPS // 10, 0, -1):
        consider(peak * (step / NUM_CLIPS) / high)
    for _ in range(NUM_POLISHES):
        codes = codes_of(scale)
        consider((rows * codes).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True).clamp_min(1))
    return _array(scale.reshape(-1))


def mse_affine(weight: Tensor, axis: int | None, levels: tuple[int, int]) -> QuantizerRange:
    """The scale and zero point that minimise ‖Q(w) − w‖² per channel among NUM_CLIPS clips.

    The interval of a channel is [min w, max w] widened to 0; a clip shrinks both ends by the same factor,
    so that a channel costs NUM_CLIPS fake-quantizations. Ties go to the larger clip; min-max is among them.

    Args:
        weight: the weight.
        axis: dimension of the channels; None: one scale.
        levels: (lowest code, highest code).
    """
    bottom, top = levels
    rows = channel_rows(weight, axis)
    low, high = rows.amin(1, keepdim=True).clamp_max(0), rows.amax(1, keepdim=True).clamp_min(0)
    best = torch.full_like(low, float("inf"))
    scale, zero = torch.ones_like(low), torch.zeros_like(low)
    for step in range(NUM_CLIPS, 0, -1):
        size = ((high - low) * (step / NUM_CLIPS) / (top - bottom)).clamp_min(SMALLEST_SCALE)
        place = (bottom + torch.round(-low * (step / NUM_CLIPS) / size)).clamp(bottom, top)
        codes = torch.clamp(torch.round(rows / size), bottom - place, top - place)
        error = (codes * size - rows).square().sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, size, scale), torch.where(better, place, zero)
    codes_of_zero = zero.reshape(-1).cpu().numpy().astype(np.int32)
    return QuantizerRange(_array(scale.reshape(-1)), codes_of_zero, False)


def _array(scale: Tensor) -> npt.NDArray[np.float32]:
    # The floor is the quantizer's own, so that the table holds what is deployed.
    array: npt.NDArray[np.float32] = scale.clamp_min(SMALLEST_SCALE).cpu().numpy().astype(np.float32)
    return array
