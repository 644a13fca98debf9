"""Ranges of weights: min-max, and the clip that minimises the squared error at each bit-width."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.calibration.observer import ObservationPlan, Observer
from raysearch.calibration.statistics import Statistics
from raysearch.quantizer import quant_levels, scale_steps, storable
from raysearch.quantizer.blocks import Blocks
from raysearch.records import Granularity, QuantizerRange
from raysearch.records.scale_format import SCALE_FORMATS

NUM_CLIPS = 80
"""Clips tried per scale between 0 and the largest magnitude; a tenth as many are tried above it."""

NUM_POLISHES = 4
"""Least-squares steps from the best clip."""

NUM_END_CLIPS = 8
"""Clips tried of each end of an asymmetric interval, every pair of them."""

END_ROUNDS = 3
"""Rounds around the best pair, each at half the distance of the one before."""


def scale_rows(weight: Tensor, granularity: Granularity) -> Tensor:
    """The weight as one row a scale, in the order of its scales: [num_scales, elements].

    A last group that is shorter ends in zeros, which are on every grid; `row_sizes` tells where.
    """
    weight = weight.detach()
    places = granularity.normalized(weight.shape)
    if places.axis is None:
        return weight.reshape(1, -1)
    blocks = Blocks.of(weight.shape, places)
    if blocks is None:
        return weight.movedim(places.axis, 0).reshape(weight.shape[places.axis], -1)
    channel = places.axis + (places.axis > blocks.axis)
    first, second = sorted((channel, blocks.axis))
    rows = blocks.cut(weight).movedim((first, second, blocks.axis + 1), (0, 1, 2))
    return rows.reshape(places.num_scales(weight.shape), -1)


def row_sizes(shape: Sequence[int], granularity: Granularity) -> npt.NDArray[np.int64]:
    """How many elements of the weight each row of `scale_rows` holds, [num_scales]."""
    num_scales = granularity.num_scales(shape)
    blocks = Blocks.of(shape, granularity)
    if blocks is None:
        return np.full(num_scales, prod(shape) // num_scales)
    sizes = granularity.scale_shape(shape)
    starts = np.arange(0, blocks.length, blocks.size)
    inputs = np.minimum(blocks.size, blocks.length - starts)
    along = np.expand_dims(inputs, tuple(d for d in range(len(shape)) if d != blocks.axis))
    others = prod(shape) // (blocks.length * (num_scales // len(starts)))
    return np.broadcast_to(along, sizes).reshape(-1) * others


def observe_rows(weight: Tensor, granularity: Granularity, plan: ObservationPlan) -> Statistics:
    """What an observer sees of a weight as one sample, each scale a channel; of short groups no zeros behind.

    Args:
        weight: the weight.
        granularity: which elements share a scale.
        plan: of the rows, whose dimension 1 has the scales.
    """
    rows, sizes = scale_rows(weight, granularity), row_sizes(weight.shape, granularity)
    parts = {size: np.flatnonzero(sizes == size) for size in np.unique(sizes)}
    if len(parts) == 1:
        # A view: the rows by their places would be a copy of the weight.
        return _observe(rows[:, : next(iter(parts))], plan)
    seen = {size: _observe(rows[places, :size], plan) for size, places in parts.items()}
    order = np.argsort(np.concatenate(list(parts.values())))
    extremes = np.concatenate([part.rows for part in seen.values()], axis=1)[:, order]
    counted = [distribution for part in seen.values() for distribution in part.distributions]
    distributions = tuple(counted[place] for place in order) if counted else ()
    return Statistics(extremes, distributions)


def _observe(rows: Tensor, plan: ObservationPlan) -> Statistics:
    observer = Observer(plan)
    observer(rows[None])
    return Statistics.from_units([observer.collect()])


def min_max_scale(
    weight: Tensor,
    granularity: Granularity,
    num_bits: int,
    levels: tuple[int, int] | None = None,
    scale_format: str = "float32",
) -> npt.NDArray[np.float32]:
    """max|w| / quant_max of each scale; the smallest one of a quantizer where all is 0.

    Args:
        weight: the weight.
        granularity: which elements share a scale.
        num_bits: the width; not read where `levels` are given.
        levels: (lowest code, highest code); None: the signed ones of the width.
        scale_format: form in which the scales are stored.
    """
    _, top = levels or quant_levels(num_bits, signed=True)
    peak = scale_rows(weight, granularity).float().abs().amax(1)
    return _array(storable(peak / top, scale_format))


def mse_scale(
    weight: Tensor,
    granularity: Granularity,
    num_bits: int,
    levels: tuple[int, int] | None = None,
    scale_format: str = "float32",
) -> npt.NDArray[np.float32]:
    """The stored scale that minimises ‖Q(w) − w‖² of its elements; never worse than `min_max_scale`.

    The best of 1.1·NUM_CLIPS evenly spaced clips, ties to the larger one, then polished: for codes c of a
    scale s the best scale is ⟨w, c⟩/⟨c, c⟩, and rounding anew to it can only lower the error further.

    Scales that are stored as integers of one number are found twice: each by itself, which says what number
    that is, and then among its multiples.

    Cost: 1.1·NUM_CLIPS + NUM_POLISHES fake-quantizations of the weight, in memory a few copies of it.

    Args:
        weight: the weight.
        granularity: which elements share a scale.
        num_bits: the width.
        levels: lowest and highest code, where they are not those of a signed weight of this width.
        scale_format: form in which the scales are stored.
    """
    low, high = levels or quant_levels(num_bits, signed=True)
    rows = scale_rows(weight, granularity).float()
    steps: Tensor | None = None
    if SCALE_FORMATS[scale_format].sharing > 1:
        single = mse_scale(weight, granularity, num_bits, levels)
        steps = scale_steps(torch.from_numpy(single).to(rows.device)[:, None], scale_format)
    peak = rows.abs().amax(1, keepdim=True)
    best, scale = torch.full_like(peak, float("inf")), peak / high

    def codes_of(candidate: Tensor) -> Tensor:
        return torch.clamp(torch.round(rows / candidate), low, high)

    def consider(candidate: Tensor) -> None:
        nonlocal best, scale
        candidate = storable(candidate, scale_format, steps)
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


def mse_affine(
    weight: Tensor, granularity: Granularity, levels: tuple[int, int], scale_format: str = "float32"
) -> QuantizerRange:
    """The stored scale and zero point of least ‖Q(w) − w‖² of their elements; never worse than min-max.

    The interval is [min w, max w] of a channel or group, widened to 0. Each end is clipped by itself: every
    pair of NUM_END_CLIPS evenly spaced clips, then the neighbours of the best pair, END_ROUNDS times at half
    the distance. Ties go to what is tried first, the wider interval. Then the scale is polished as that of
    `mse_scale`, with the zero point where it is.

    Cost: 92 fake-quantizations of the weight, in memory a few copies of it.

    Args:
        weight: the weight.
        granularity: which elements share a scale.
        levels: (lowest code, highest code).
        scale_format: form in which the scales are stored.
    """
    bottom, top = levels
    rows = scale_rows(weight, granularity).float()
    low, high = rows.amin(1, keepdim=True).clamp_max(0), rows.amax(1, keepdim=True).clamp_min(0)
    ones = torch.ones_like(low)
    best = torch.full_like(low, float("inf"))
    scale, zero, low_clip, high_clip = ones, torch.zeros_like(low), ones, ones

    def codes_of(size: Tensor, place: Tensor) -> Tensor:
        return torch.clamp(torch.round(rows / size), bottom - place, top - place)

    def consider(size: Tensor, place: Tensor, clips: tuple[Tensor, Tensor]) -> None:
        nonlocal best, scale, zero, low_clip, high_clip
        size = storable(size, scale_format)
        error = (codes_of(size, place) * size - rows).square().sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, size, scale), torch.where(better, place, zero)
        low_clip, high_clip = (
            torch.where(better, clips[0], low_clip),
            torch.where(better, clips[1], high_clip),
        )

    def consider_ends(clips: tuple[Tensor, Tensor]) -> None:
        clipped_low, clipped_high = low * clips[0], high * clips[1]
        size = storable((clipped_high - clipped_low) / (top - bottom), scale_format)
        consider(size, (bottom + torch.round(-clipped_low / size)).clamp(bottom, top), clips)

    shares = [step / NUM_END_CLIPS for step in range(NUM_END_CLIPS, 0, -1)]
    for low_share, high_share in product(shares, shares):
        consider_ends((ones * low_share, ones * high_share))
    distance = 1 / NUM_END_CLIPS
    for _ in range(END_ROUNDS):
        distance /= 2
        center = (low_clip, high_clip)
        for low_step, high_step in product((distance, 0.0, -distance), repeat=2):
            if low_step or high_step:
                clips = (center[0] + low_step, center[1] + high_step)
                consider_ends((clips[0].clamp(distance, 1), clips[1].clamp(distance, 1)))
    for _ in range(NUM_POLISHES):
        codes = codes_of(scale, zero)
        fitted = (rows * codes).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True).clamp_min(1)
        consider(fitted, zero, (low_clip, high_clip))
    codes_of_zero = zero.reshape(-1).cpu().numpy().astype(np.int32)
    return QuantizerRange(_array(scale.reshape(-1)), codes_of_zero, False)


def mse_minimum(
    weight: Tensor, granularity: Granularity, levels: tuple[int, int], scale_format: str
) -> QuantizerRange:
    """The stored scale and minimum of least ‖Q(w) − w‖² of their elements, Q(w) = q·s − m, m ≥ 0.

    From the steps of `mse_affine`: for codes q of a scale and a minimum the best ones are those of the line
    through (q, w), and rounding anew to them can only lower the error further. Both are then stored. Where
    that is as integers of a number for each block, the neighbours of both integers are tried, every pair.

    Cost: 115 fake-quantizations of the weight, in memory a few copies of it.

    Args:
        weight: the weight.
        granularity: which elements share a scale.
        levels: (lowest code, highest code).
        scale_format: form in which scales and minima are stored.
    """
    start = mse_affine(weight, granularity, levels)
    rows = scale_rows(weight, granularity).float()
    scale = torch.from_numpy(start.scale).to(rows.device)[:, None]
    minimum = torch.from_numpy(start.zero_point.astype(np.float32)).to(rows.device)[:, None] * scale
    best = torch.full_like(scale, float("inf"))

    def codes_of(size: Tensor, offset: Tensor) -> Tensor:
        return torch.clamp(torch.round((rows + offset) / size), *levels)

    def consider(size: Tensor, offset: Tensor) -> None:
        nonlocal best, scale, minimum
        error = (codes_of(size, offset) * size - offset - rows).square().sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, minimum = torch.where(better, size, scale), torch.where(better, offset, minimum)

    consider(scale, minimum)
    for _ in range(NUM_POLISHES):
        consider(*_line(codes_of(scale, minimum), rows, scale))
    best = torch.full_like(best, float("inf"))
    scale_step, minimum_step = scale_steps(scale, scale_format), scale_steps(minimum, scale_format)
    scale = storable(scale, scale_format, scale_step)
    minimum = storable(minimum, scale_format, minimum_step, least=0)
    if scale_step is not None and minimum_step is not None:
        for _ in range(END_ROUNDS):
            center = scale, minimum
            for scale_move, minimum_move in product((0, 1, -1), repeat=2):
                size = storable(center[0] + scale_move * scale_step, scale_format, scale_step)
                moved = center[1] + minimum_move * minimum_step
                consider(size, storable(moved, scale_format, minimum_step, least=0))
    zeros = np.zeros(len(scale), np.int32)
    return QuantizerRange(_array(scale.reshape(-1)), zeros, False, minimum=_array(minimum.reshape(-1)))


def _line(codes: Tensor, rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the minimum, 0 or more, whose values codes·s − m miss the rows least."""
    mean_code, mean = codes.mean(1, keepdim=True), rows.mean(1, keepdim=True)
    away = codes - mean_code
    spread = away.square().sum(1, keepdim=True)
    slope = (away * rows).sum(1, keepdim=True) / torch.where(spread > 0, spread, 1)
    slope = torch.where(slope > 0, slope, scale)
    minimum = slope * mean_code - mean
    # The line through the origin is the best one where the other would need a minimum below 0.
    through = (codes * rows).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True).clamp_min(1)
    slope = torch.where((minimum < 0) & (through > 0), through, slope)
    return slope, minimum.clamp_min(0)


def _array(scale: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = scale.cpu().numpy().astype(np.float32)
    return array
