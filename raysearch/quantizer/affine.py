"""Affine quantization: codes, values, and the fake-quantize operation with learned scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from raysearch.quantizer.blocks import Blocks
from raysearch.records.granularity import PER_TENSOR, Granularity
from raysearch.records.scale_format import SCALE_FORMATS

SMALLEST_SCALE = SCALE_FORMATS["float32"].smallest
"""Keeps a learned scale away from 0, where the forward would hide it and the codes mean nothing."""

ZeroPoint = int | Tensor
"""Code of the value 0: a number for all elements, or a tensor of integers shaped like the scale."""


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: ZeroPoint,
    quant_min: int,
    quant_max: int,
    granularity: Granularity = PER_TENSOR,
) -> Tensor:
    """Integer codes clamp(rne(x / s) + z, quant_min, quant_max), in x's dtype.

    True division and round half to even, as ONNX defines QuantizeLinear: x·(1/s) would differ by a step on
    about one element in a million.

    Args:
        x: any shape, floating point.
        scale: step s, positive; of groups in the shape of their scales, else broadcastable to x.
        zero_point: code z of the value 0.
        quant_min: lowest code.
        quant_max: highest code.
        granularity: which inputs form groups; all that it is read for.
    """
    blocks = Blocks.of(x.shape, granularity)
    if blocks is not None:
        scale, zero_point = blocks.broadcast(scale), blocks.broadcast(zero_point)
        return blocks.join(quantize(blocks.cut(x), scale, zero_point, quant_min, quant_max))
    low, high = _bounds(zero_point, quant_min, quant_max)
    return torch.clamp(torch.round(x / scale), low, high) + zero_point


def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero_point: ZeroPoint,
    granularity: Granularity = PER_TENSOR,
    minimum: Tensor | None = None,
) -> Tensor:
    """Values (codes − z)·s, less the minimum where there is one, float32.

    Args:
        codes: any shape, integers in any dtype.
        scale: step s; of groups in the shape of their scales, else broadcastable to the codes.
        zero_point: code z of the value 0.
        granularity: which inputs form groups; all that it is read for.
        minimum: in the shape of the scale.
    """
    blocks = Blocks.of(codes.shape, granularity)
    if blocks is not None:
        scale, zero_point = blocks.broadcast(scale), blocks.broadcast(zero_point)
        minimum = None if minimum is None else blocks.broadcast(minimum)
        return blocks.join(dequantize(blocks.cut(codes), scale, zero_point, minimum=minimum))
    values = (codes.to(scale.dtype) - zero_point) * scale
    return values if minimum is None else values - minimum


@dataclass(frozen=True)
class AffineForm:
    """What a quantizer computes, as strip and export need it: (q − zero_point)·scale − minimum of a code q.

    Attributes:
        scale: float32, shape [1, …, C, …, 1] or [1], of groups [1, …, C, …, groups, …, 1]; positive.
        zero_point: int32, shape of `scale`.
        quant_min: lowest code.
        quant_max: highest code.
        granularity: which elements share a scale.
        minimum: shape of `scale`; None: 0.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    granularity: Granularity = PER_TENSOR
    minimum: Tensor | None = None

    def shifted(self, amount: int) -> AffineForm:
        """The same values with every code moved by `amount`."""
        low, high = self.quant_min + amount, self.quant_max + amount
        return replace(self, zero_point=self.zero_point + amount, quant_min=low, quant_max=high)

    def values(self, codes: Tensor) -> Tensor:
        """What codes stand for, float32; the bits of `dequantize`, in the memory of the result alone."""
        scale, zero_point, minimum = self.scale, self.zero_point, self.minimum
        values = codes.to(scale.dtype, copy=True)
        blocks = Blocks.of(codes.shape, self.granularity)
        if blocks is None:
            values.sub_(zero_point).mul_(scale)
            return values if minimum is None else values.sub_(minimum)
        cut = blocks.cut(values).sub_(blocks.broadcast(zero_point)).mul_(blocks.broadcast(scale))
        if minimum is not None:
            cut.sub_(blocks.broadcast(minimum))
        return blocks.join(cut)


class _FakeQuantize(torch.autograd.Function):
    """By a step, or with `smallest` by max(|scale|, smallest): one node in place of three."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Any, high: Any, gamma: float, smallest: float | None
    ) -> Tensor:
        step = scale if smallest is None else scale.abs().clamp_min_(smallest)
        _FakeQuantize._keep(ctx, (x, scale, step), low, high, gamma, smallest)
        return _values(x, step, low, high)

    @staticmethod
    def _keep(
        ctx: Any, saved: tuple[Tensor, ...], low: Any, high: Any, gamma: float, smallest: float | None
    ) -> None:
        # Bounds per channel are tensors; saved with the others, so that nothing is kept alive by the graph.
        tensors = (low, high) if isinstance(low, Tensor) else ()
        ctx.save_for_backward(*saved, *tensors)
        ctx.bounds = (None if tensors else (low, high), gamma, smallest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, step, *tensors = ctx.saved_tensors
        bounds, gamma, smallest = ctx.bounds
        low, high = tensors if bounds is None else bounds
        has_graph = torch.is_grad_enabled()
        if has_graph and smallest is not None:
            step = scale.abs().clamp_min(smallest)
        # While a graph of the gradient is built, nothing may change in place.
        derive = _gradients if tensors or has_graph else _gradients_in_place
        passed, slope = derive(x, step, low, high, gamma, grad, ctx.needs_input_grad[1])
        if slope is not None and smallest is not None:
            slope = slope * _sign_beyond(scale.detach(), smallest)
        return passed, slope, None, None, None, None


def _sign_beyond(scale: Tensor, smallest: float) -> Tensor:
    """The derivative of max(|scale|, smallest): the sign of a scale, 0 where |scale| < smallest."""
    # What is shrunk to 0 includes the bound itself, which is therefore the next number below.
    below = smallest * (1 - torch.finfo(scale.dtype).eps / 2)
    return torch.nn.functional.hardshrink(scale, below).sgn_()


class _TransformableFakeQuantize(_FakeQuantize):
    # torch.func and the compiler want the two halves apart; apart, torch binds the signature anew at every
    # call, which costs more than the arithmetic on a small weight.
    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor, scale: Tensor, low: Any, high: Any, gamma: float, smallest: float | None
    ) -> Tensor:
        return _values(x, scale, low, high)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, *rest = inputs
        _FakeQuantize._keep(ctx, (x, scale, scale), *rest)


def _values(x: Tensor, scale: Tensor, low: Any, high: Any) -> Tensor:
    # In place on fresh temporaries: an allocation costs as much as two passes over a weight.
    return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)


def _bounds(zero_point: ZeroPoint, quant_min: int, quant_max: int) -> tuple[Any, Any]:
    """Lowest and highest level relative to 0; both numbers, or both tensors."""
    return quant_min - zero_point, quant_max - zero_point


def _gradients(
    x: Tensor, scale: Tensor, low: Any, high: Any, gamma: float, grad: Tensor, with_scale: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients by operations that autograd can differentiate again."""
    v = x / scale
    rounded = torch.round(v)
    levels = torch.clamp(rounded, low, high)
    inside = levels == rounded
    grad_scale = None
    if with_scale:
        # Selected, not multiplied: with a tiny scale v overflows, and 0·inf would be NaN.
        slope = levels - torch.where(inside, v, torch.zeros_like(v))
        grad_scale = gamma * (grad * slope).sum_to_size(scale.shape)
    return grad * inside, grad_scale


def _gradients_in_place(
    x: Tensor, scale: Tensor, low: Any, high: Any, gamma: float, grad: Tensor, with_scale: bool
) -> tuple[Tensor, Tensor | None]:
    """The same in a third of the time: three temporaries, and a mask without booleans.

    hardtanh's backward selects between two bounds, strictly. rne takes a tie to the even side, so the tie
    half a step beyond an even end belongs to that end, and the bound lies one float further out.
    """
    v = torch.div(x, scale)
    above_one = 1.0 + 0.75 * torch.finfo(v.dtype).eps
    below = (low - 0.5) * (1.0 if low % 2 else above_one)
    above = (high + 0.5) * (1.0 if high % 2 else above_one)
    passed = torch.ops.aten.hardtanh_backward(grad, v, below, above)
    if not with_scale:
        return passed, None
    # m·v selected, not multiplied: with a tiny scale v overflows, and 0·inf would be NaN.
    slope = torch.ops.aten.hardtanh_backward(v, v, below, above)
    slope.sub_(v.round_().clamp_(low, high)).mul_(grad)
    return passed, slope.sum_to_size(scale.shape).mul_(-gamma)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: ZeroPoint,
    quant_min: int,
    quant_max: int,
    gamma: float = 1.0,
    granularity: Granularity = PER_TENSOR,
) -> Tensor:
    """Quantize and dequantize in one differentiable step (LSQ).

    With v = x/s, c = clamp(rne(v), quant_min − z, quant_max − z): y = c·s. Backward for an upstream g,
    with m = [c = rne(v)]:

        dL/dx = g·m        dL/ds = γ·Σ g·(c − m·v)

    the sum over all elements that share the scale. m is judged on the rounded code, so values up to half
    a step beyond the end still pass gradient. Twice differentiable in g. The value equals
    `dequantize(quantize(x))` bit for bit.

    Args:
        x: any shape, floating point.
        scale: s, positive; of groups in the shape of their scales, else broadcastable to x.
        zero_point: code of the value 0; a number, or an integer tensor of the scale's shape.
        quant_min: lowest code.
        quant_max: highest code.
        gamma: LSQ's gradient scale, 1/√(N·Q).
        granularity: which inputs form groups; all that it is read for.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020, equations 1–5.
    """
    return _fake_quantized(x, scale, (zero_point, quant_min, quant_max), gamma, granularity, None)


def fake_quantize_by_magnitude(
    x: Tensor,
    scale: Tensor,
    zero_point: ZeroPoint,
    quant_min: int,
    quant_max: int,
    gamma: float = 1.0,
    granularity: Granularity = PER_TENSOR,
) -> Tensor:
    """`fake_quantize` by the step max(|scale|, `SMALLEST_SCALE`), with the gradient of `scale` itself.

    Args:
        x: any shape, floating point.
        scale: of any sign; of groups in the shape of their scales, else broadcastable to x.
        zero_point: code of the value 0; a number, or an integer tensor of the scale's shape.
        quant_min: lowest code.
        quant_max: highest code.
        gamma: LSQ's gradient scale, 1/√(N·Q).
        granularity: which inputs form groups; all that it is read for.
    """
    levels = (zero_point, quant_min, quant_max)
    return _fake_quantized(x, scale, levels, gamma, granularity, SMALLEST_SCALE)


def _fake_quantized(
    x: Tensor,
    scale: Tensor,
    levels: tuple[ZeroPoint, int, int],
    gamma: float,
    granularity: Granularity,
    smallest: float | None,
) -> Tensor:
    """See `fake_quantize` and `fake_quantize_by_magnitude`.

    Args:
        x: any shape, floating point.
        scale: the step, or the parameter of which it is the magnitude.
        levels: zero point, lowest and highest code.
        gamma: LSQ's gradient scale.
        granularity: which inputs form groups.
        smallest: the least step of a magnitude; None: `scale` is the step.
    """
    blocks = Blocks.of(x.shape, granularity)
    if blocks is not None:
        scale, levels = blocks.broadcast(scale), (blocks.broadcast(levels[0]), *levels[1:])
        cut = _fake_quantized(blocks.cut(x), scale, levels, gamma, PER_TENSOR, smallest)
        return blocks.join(cut)
    low, high = _bounds(*levels)
    function: Any = _FakeQuantize
    if _is_transformed():
        function = _TransformableFakeQuantize
        if smallest is not None:
            scale, smallest = scale.abs().clamp_min(smallest), None
    result: Tensor = function.apply(x, scale, low, high, gamma, smallest)
    return result


def _is_transformed() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
