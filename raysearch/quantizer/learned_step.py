"""Quantizers that learn their step (LSQ); the zero point stays as calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from raysearch.quantizer.affine import ZeroPoint, fake_quantize, quantize
from raysearch.quantizer.quantizer import SMALLEST_SCALE, Quantizer


class StepQuantizer(Quantizer):
    """A quantizer whose parameter is the step.

    The step in force is max(|scale|, 2⁻¹⁰⁰), or max(exp(scale), 2⁻¹⁰⁰) on a logarithmic scale: whatever
    training does to the parameter, it stays positive.

    Attributes:
        scale: parameter, shape [1, …, C, …, 1] (per channel) or [1] (per tensor).
        zero_point: code of the value 0; a number, or where it may differ between channels an int32 buffer
            of the scale's shape.
    """

    zero_point: int | Tensor

    def _make_parameters(self, shape: Sequence[int], view: Sequence[int]) -> None:
        self._sample_elements = math.prod(shape)
        self.scale = nn.Parameter(torch.zeros(view) if self.logarithmic else torch.ones(view))
        if self.mode == "asymmetric" and self.axis is not None:
            self.register_buffer("zero_point", torch.zeros(view, dtype=torch.int32))
        else:
            self.zero_point = 0

    def effective_scale(self) -> Tensor:
        """The positive step the forward uses, in the shape of `scale`."""
        scale = self.scale.detach() if self.frozen else self.scale
        return (scale.exp() if self.logarithmic else scale.abs()).clamp_min(SMALLEST_SCALE)

    def zero_points(self) -> Tensor:
        """Codes of the value 0, int32, in the shape of `scale`."""
        if isinstance(self.zero_point, Tensor):
            return self.zero_point.clone()
        return torch.full(self.scale.shape, self.zero_point, dtype=torch.int32, device=self.scale.device)

    def gradient_scale(self, x: Tensor) -> float:
        """LSQ's γ = 1/√(N·Q): N elements share a scale, Q is the greatest level.

        For activations N counts one sample of the point's shape: the gradient depends neither on the batch
        size nor on where the batch stands in x.
        """
        count = x.numel() if self.kind == "weight" else self._sample_elements
        count //= self.scale.numel()
        return 1.0 / math.sqrt(max(1, count) * self.levels[1])

    def learned(self) -> list[tuple[nn.Parameter, float]]:
        """The scale, measured against itself; a logarithm against 1."""
        size = 1.0 if self.logarithmic else float(self.effective_scale().detach().mean())
        return [(self.scale, size)]

    def freeze(self, frozen: bool = True) -> Self:
        """Keep the scale, or let it learn again; a scale below the smallest becomes what is in force."""
        if frozen and not self.logarithmic:
            with torch.no_grad():
                self.scale.copy_(self.effective_scale())
        return super().freeze(frozen)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        gamma = self.gradient_scale(x)
        return fake_quantize(x, self.effective_scale(), self._zero(), *self.levels, gamma)

    def _codes(self, x: Tensor) -> Tensor:
        return quantize(x, self.effective_scale(), self._zero(), *self.levels)

    def _zero(self) -> ZeroPoint:
        return self.zero_point

    def _take(self, scale: Tensor, zero_point: Tensor) -> None:
        self.scale.copy_(scale.log() if self.logarithmic else scale)
        if isinstance(self.zero_point, Tensor):
            self.zero_point.copy_(zero_point)
        else:
            self.zero_point = int(zero_point.reshape(-1)[0])

    def _stored_zero(self) -> int:
        return 0 if isinstance(self.zero_point, Tensor) else self.zero_point

    def _restore_zero(self, zero_point: int) -> None:
        if not isinstance(self.zero_point, Tensor):
            self.zero_point = zero_point

    def _may_store(self, num_bits: int, zero_point: int) -> bool:
        if self.mode == "symmetric" or isinstance(self.zero_point, Tensor):
            return zero_point == 0
        low, high = self.levels_at(num_bits, signed=False)
        return low <= zero_point <= high


class SymmetricQuantizer(StepQuantizer):
    """Levels around 0: the default for weights, signed, narrow at 8 bits, one scale per channel."""

    mode = "symmetric"
    default_kind = "weight"


class AsymmetricQuantizer(StepQuantizer):
    """Unsigned codes with a zero point, 0 exactly on the grid: the default for activations, per tensor."""

    mode = "asymmetric"
    default_kind = "activation"
