"""From an interval to the scale and zero point of a quantizer's own grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raysearch.quantizer import SMALLEST_SCALE, point_levels
from raysearch.records import QuantizationPoint, QuantizerRange

FloatArray = npt.NDArray[np.float64]


def levels_of(point: QuantizationPoint, num_bits: int, *, signed: bool) -> tuple[int, int]:
    """(lowest code, highest code) of the point's quantizer.

    Args:
        point: the quantizer.
        num_bits: the width.
        signed: whether codes below 0 are among them.

    Raises:
        PlacementError: the grid does not exist; names the quantizer.
    """
    return point_levels(point, num_bits, signed=signed)


def affine_grid(low: float, high: float, levels: tuple[int, int]) -> tuple[float, int]:
    """(scale, zero point) of [low, high] widened to 0, with 0 exactly on the grid.

    s = (high − low)/(top − bottom), z = bottom + rne(−low/s): the grid is as wide as the interval and lies
    at most half a step beside it.

    Args:
        low: lower end, in the tensor's unit.
        high: upper end.
        levels: (lowest code, highest code).
    """
    scale, zero_point = _affine_grids(np.float64(low), np.float64(high), levels)
    return float(scale), int(zero_point)


def symmetric_scale(peak: float, levels: tuple[int, int]) -> float:
    """The scale that puts the highest code on `peak`."""
    return max(peak / levels[1], SMALLEST_SCALE)


def affine_range(low: FloatArray, high: FloatArray, levels: tuple[int, int]) -> QuantizerRange:
    """Range of an asymmetric quantizer, one scale and zero point a channel or group; see `affine_grid`.

    Args:
        low: lower ends, [num_scales].
        high: upper ends, [num_scales].
        levels: (lowest code, highest code).
    """
    scale, zero_point = _affine_grids(low, high, levels)
    return QuantizerRange(scale.astype(np.float32), zero_point.astype(np.int32), False)


def symmetric_range(peak: FloatArray, levels: tuple[int, int], *, signed: bool) -> QuantizerRange:
    """Range of a symmetric quantizer, one scale a channel or group.

    Args:
        peak: magnitudes that the highest code lies on, [num_scales].
        levels: (lowest code, highest code).
        signed: what the range says of its codes; `levels` must agree with it.
    """
    scales = np.maximum(peak / levels[1], SMALLEST_SCALE).astype(np.float32)
    return QuantizerRange(scales, np.zeros(scales.shape, np.int32), signed)


def _affine_grids(low: Any, high: Any, levels: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """(scales, zero points) of many intervals, or of one."""
    bottom, top = levels
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scale = np.maximum((high - low) / (top - bottom), SMALLEST_SCALE)
    return scale, np.clip(bottom + np.rint(-low / scale), bottom, top)
