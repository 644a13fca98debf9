"""Affine quantization: codes, values, and the fake-quantize operation with learned scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def quantize(x: Tensor, scale: Tensor, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    """Integer codes clamp(rne(x / s) + z, quant_min, quant_max), in x's dtype.

    True division and round half to even, as ONNX defines QuantizeLinear: x·(1/s) would differ by a step on
    about one element in a million.
    """
    return torch.clamp(torch.round(x / scale), quant_min - zero_point, quant_max - zero_point) + zero_point


def dequantize(codes: Tensor, scale: Tensor, zero_point: int) -> Tensor:
    """Values (codes − z)·s, float32."""
    return (codes.to(scale.dtype) - zero_point) * scale


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor, low: int, high: int, gamma: float) -> Tensor:
        return torch.clamp(torch.round(x / scale), low, high) * scale

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, low, high, gamma = inputs
        ctx.save_for_backward(x, scale)
        ctx.bounds = (low, high, gamma)  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        low, high, gamma = ctx.bounds
        v = x / scale
        rounded = torch.round(v)
        levels = torch.clamp(rounded, low, high)
        inside = levels == rounded
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # Selected, not multiplied: with a tiny scale v overflows, and 0·inf would be NaN.
            slope = levels - torch.where(inside, v, torch.zeros_like(v))
            grad_scale = gamma * (grad * slope).sum_to_size(scale.shape)
        return grad * inside, grad_scale, None, None, None


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: int, quant_min: int, quant_max: int, gamma: float = 1.0
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
        scale: broadcastable to x, positive.
        zero_point: code of the value 0; the same for all elements.
        quant_min: lowest code.
        quant_max: highest code.
        gamma: LSQ's gradient scale, 1/√(N·Q).

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020, equations 1–5.
    """
    low, high = quant_min - zero_point, quant_max - zero_point
    result: Tensor = _FakeQuantize.apply(x, scale, low, high, gamma)  # type: ignore[no-untyped-call]
    return result
