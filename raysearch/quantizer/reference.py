"""The reference's arithmetic of ranges: a grid with 0 on it, and ranges from extremes (NNCF 2.18)."""

from __future__ import annotations

import torch
from torch import Tensor


def tune_range(low: Tensor, span: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Move one end of [low, low + span] so that 0 falls on the grid (TuneRange).

    With n = levels − 1, a = min(low, 0), b = max(low + span, 0), z = rne(−a·n/(b − a)): either b stays and
    a becomes z/(z − n)·b, or a stays and b becomes (z − n)/z·a; the wider of the two is taken. When z is 0
    or n, neither formula exists and the reference leaves both ends where they are, off the grid.

    Args:
        low: lower ends, any shape.
        span: lengths, same shape, positive.
        levels: number of levels.

    Returns:
        The tuned low and span.

    Source: NNCF 2.18, `TuneRange`; golden values G6–G10.

    Example:
        >>> low, span = tune_range(torch.tensor(-1.0), torch.tensor(2.0), 16)
        >>> round(float(low), 6), round(float(span), 6)
        (-1.142857, 2.142857)
    """
    n = levels - 1
    a, b = low.clamp_max(0), (low + span).clamp_min(0)
    z = torch.round(-a * n / (b - a))
    is_low_end, is_high_end = z < 0.5, z > n - 0.5
    # The denominators that would be 0 are replaced; where they are, the end is not moved.
    moved_a = torch.where(is_high_end, a, z / torch.where(is_high_end, -1.0, z - n) * b)
    moved_b = torch.where(is_low_end, b, (z - n) / torch.where(is_low_end, 1.0, z) * a)
    keep_b = b - moved_a > moved_b - a
    return torch.where(keep_b, moved_a, a), torch.where(keep_b, b - moved_a, moved_b - a)


def symmetric_from_min_max(
    low: Tensor, high: Tensor, *, signed: bool | None = None, floor: float = 0.1
) -> tuple[Tensor, bool]:
    """The reference's scale, the value of the top level, and the sign of a symmetric quantizer.

    scale = max(|low|, |high|) per channel, at least `floor`; signed = any(low < 0) over all channels, unless
    it is given. The floor of 0.1 is the reference's; it zeroes small channels, so pass 0 to do better.

    Args:
        low: least value of each channel.
        high: greatest value of each channel.
        signed: the sign, where it is forced; None takes it from the data.
        floor: the least scale.

    Source: NNCF 2.18; golden values G11–G15.
    """
    scale = torch.maximum(low.abs(), high.abs()).clamp_min(floor)
    return scale, bool((low < 0).any()) if signed is None else signed


def asymmetric_from_min_max(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's (low, span) of an asymmetric quantizer; not tuned yet.

    A channel's span is widened about its middle to a hundredth of the widest channel's at least.

    Source: NNCF 2.18; golden values G11–G15.
    """
    span = high - low
    widest = span.max()
    margin = (torch.minimum(span.clamp_min(0.01 * widest), widest) - span) / 2
    return low - margin, span + 2 * margin
