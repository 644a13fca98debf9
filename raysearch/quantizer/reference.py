"""The reference's arithmetic of ranges: tuning, min-max initialisation, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

EPSILON = 1e-16
"""What the reference adds to a range so that it is never 0."""


def tune_range(low: Tensor, span: Tensor, levels: int, *, snap: bool = False) -> tuple[Tensor, Tensor]:
    """Move one end of [low, low + span] so that 0 falls on the grid (TuneRange).

    With n = levels − 1, a = min(low, 0), b = max(low + span, 0), z = rne(−a·n/(b − a)): either b stays and
    a becomes z/(z − n)·b, or a stays and b becomes (z − n)/z·a; the wider of the two is taken. When z is 0
    or n, neither formula exists and the reference leaves both ends where they are, off the grid: codes are
    then rounded with a fractional offset that QuantizeLinear cannot express.

    Args:
        low: lower ends, any shape.
        span: lengths, same shape, positive.
        levels: number of levels.
        snap: move that end to 0 instead, so that the offset is 0 everywhere.

    Returns:
        The tuned low and span. The gradient to both arguments is the identity.

    Source: NNCF 2.18, `TuneRange`; golden values G6–G10.

    Example:
        >>> low, span = tune_range(torch.tensor(-1.0), torch.tensor(2.0), 16)
        >>> round(float(low), 6), round(float(span), 6)
        (-1.142857, 2.142857)
    """
    with torch.no_grad():
        n = levels - 1
        a, b = low.clamp_max(0), (low + span).clamp_min(0)
        z = torch.round(-a * n / (b - a))
        low_end, high_end = z < 0.5, z > n - 0.5
        zero = torch.zeros_like(a)
        moved_a = torch.where(high_end, a, z / torch.where(high_end, -1.0, z - n) * b)
        moved_b = torch.where(low_end, b, (z - n) / torch.where(low_end, 1.0, z) * a)
        keep_b = b - moved_a > moved_b - a
        new_low = torch.where(keep_b, moved_a, a)
        new_span = torch.where(keep_b, b - moved_a, moved_b - a)
        if snap:
            new_low = torch.where(low_end, zero, torch.where(high_end, a, new_low))
            new_span = torch.where(low_end, b, torch.where(high_end, -a, new_span))
    return new_low, new_span


def symmetric_from_min_max(
    low: Tensor, high: Tensor, *, signed: bool | None = None, floor: float = 0.1
) -> tuple[Tensor, bool]:
    """The reference's scale, the value of the top level, and the sign of a symmetric quantizer.

    scale = max(|low|, |high|) per channel, at least `floor`; signed = any(low < 0) over all channels, unless
    it is given. The floor of 0.1 is the reference's; it zeroes small channels, so pass 0 to do better.

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


class _RangeFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        low: Tensor | None,
        span: Tensor,
        step: Tensor,
        lowest: Tensor,
        highest: Tensor,
        offset: Tensor | None,
        x_low: Tensor,
        x_high: Tensor,
        slope_below: float,
    ) -> Tensor:
        return _levels(x, step, lowest, highest, offset).mul_(step)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, low, span, *grid, slope_below = inputs
        ctx.save_for_backward(x, *grid)
        ctx.rest = (None if low is None else low.shape, span.shape, slope_below)  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, lowest, highest, offset, x_low, x_high = ctx.saved_tensors
        low_shape, span_shape, slope_below = ctx.rest
        below, above = x < x_low, x > x_high
        inside = ~(below | above)
        grad_low = grad_span = None
        if ctx.needs_input_grad[1]:
            grad_low = (grad * ~inside).sum_to_size(low_shape)
        if ctx.needs_input_grad[2]:
            y = _levels(x.detach(), step, lowest, highest, offset) * step
            # Selected, not multiplied: outside the error may be infinite.
            slope = torch.where(inside, (y - x) / (x_high - x_low), torch.where(above, 1.0, slope_below))
            grad_span = (grad * slope).sum_to_size(span_shape)
        return grad * inside, grad_low, grad_span, *(None,) * 7


def _levels(x: Tensor, step: Tensor, lowest: Tensor, highest: Tensor, offset: Tensor | None) -> Tensor:
    scaled = torch.div(x, step)
    if offset is not None:
        scaled = scaled + offset
    return scaled.round_().clamp_(lowest, highest)


@dataclass(frozen=True)
class RangeGrid:
    """The grid that range parameters stand for; constants, their gradients are defined by the rule.

    Every tensor has the shape of the scale.

    Attributes:
        step: distance of two levels, positive.
        lowest: lowest level as a multiple of `step`.
        highest: highest level as a multiple of `step`.
        offset: added to x / step before rounding; None is 0.
        low: lowest value that passes gradient.
        high: highest value that passes gradient.
        slope_below: derivative of the lowest level by the span: quant_min / quant_max when symmetric, else 0.
    """

    step: Tensor
    lowest: Tensor
    highest: Tensor
    offset: Tensor | None
    low: Tensor
    high: Tensor
    slope_below: float

    def levels(self, x: Tensor) -> Tensor:
        """clamp(rne(x/step + offset), lowest, highest): the code relative to that of 0."""
        return _levels(x, self.step, self.lowest, self.highest, self.offset)


def fake_quantize_range(x: Tensor, low: Tensor | None, span: Tensor, grid: RangeGrid) -> Tensor:
    """Fake-quantize with the reference's gradients.

    y = clamp(rne(x/step + offset), lowest, highest)·step. With inside = low ≤ x ≤ high:

        dx = g·inside        dlow = Σ g outside
        dspan = Σ g·{(y − x)/(high − low) inside, slope_below below, 1 above}

    The sums are over the elements that share a parameter. Twice differentiable.

    Args:
        x: any shape, float32.
        low: parameter of the lower end, or None (symmetric); gets dlow, its value is not read.
        span: parameter of the length, or the symmetric scale; gets dspan, its value is not read.
        grid: what the parameters stand for.

    Source: NNCF 2.18, `QuantizeSymmetric`, `QuantizeAsymmetric`; golden values G16–G25.
    """
    constants = (grid.step, grid.lowest, grid.highest, grid.offset, grid.low, grid.high, grid.slope_below)
    result: Tensor = _RangeFakeQuantize.apply(x, low, span, *constants)  # type: ignore[no-untyped-call]
    return result
