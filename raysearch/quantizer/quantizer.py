"""The quantizer modules: a learned scale around the affine maths."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from raysearch.errors import StorageError
from raysearch.quantizer.affine import fake_quantize, quantize
from raysearch.quantizer.levels import MAX_BITS, MIN_BITS, quant_levels
from raysearch.records import QuantizerRange

SMALLEST_SCALE = 2.0**-100
"""Keeps a learned scale away from 0, where the forward would hide it and the codes mean nothing."""


class Quantizer(nn.Module):
    """Fake-quantizes its input with a learned scale; passes it through while disabled.

    The scale in force is max(|s|, 2⁻¹⁰⁰): whatever training does to s, it stays positive, and strip reads
    the same value.

    Attributes:
        scale: parameter, shape [1, …, C, …, 1] (per channel) or [1] (per tensor).
        num_bits: bit-width in force.
        zero_point: code of the value 0.
        enabled: whether it quantizes.
    """

    signed = True

    def __init__(self, shape: tuple[int, ...], axis: int | None, ndim: int) -> None:
        super().__init__()
        view = [1] if axis is None else [shape[axis] if d == axis else 1 for d in range(ndim)]
        self.scale = nn.Parameter(torch.ones(view))
        self.axis = axis
        self.num_bits = 8
        self.zero_point = 0
        self.enabled = True

    @property
    def levels(self) -> tuple[int, int]:
        """(quant_min, quant_max)."""
        return quant_levels(self.num_bits, signed=self.signed)

    def effective_scale(self) -> Tensor:
        """The positive scale the forward uses, in the shape of `scale`."""
        return self.scale.abs().clamp_min(SMALLEST_SCALE)

    def set_range(self, num_bits: int, value: QuantizerRange) -> None:
        """Take a calibrated range; the learned scale is overwritten."""
        self.num_bits = num_bits
        self.zero_point = int(value.zero_point.reshape(-1)[0])
        with torch.no_grad():
            scale = torch.from_numpy(value.scale.copy()).reshape(self.scale.shape)
            self.scale.copy_(scale)

    def gradient_scale(self, x: Tensor) -> float:
        """LSQ's γ = 1/√(N·Q): N elements share a scale, Q is the greatest level."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The quantized values, in x's dtype."""
        if not self.enabled:
            return x
        low, high = self.levels
        y = fake_quantize(
            x.float(), self.effective_scale(), self.zero_point, low, high, self.gradient_scale(x)
        )
        return y.to(x.dtype)

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of x by the very arithmetic of `forward`; int8 if signed, else uint8."""
        values = quantize(x.float(), self.effective_scale(), self.zero_point, *self.levels)
        return values.to(torch.int8 if self.signed else torch.uint8)

    def get_extra_state(self) -> Tensor:
        """Width, zero point and switch as an integer tensor, so that a state dict holds everything."""
        return torch.tensor([self.num_bits, self.zero_point, int(self.enabled)], dtype=torch.int32)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what `get_extra_state` gave.

        Raises:
            StorageError: the state is not of a quantizer of this kind; nothing was taken.
        """
        if state.shape != (3,):
            raise StorageError(f"a quantizer's state has shape {tuple(state.shape)} instead of (3,).")
        num_bits, zero_point, enabled = (int(v) for v in state)
        low, high = quant_levels(num_bits, signed=self.signed) if MIN_BITS <= num_bits <= MAX_BITS else (1, 0)
        if not low <= zero_point <= high or enabled not in (0, 1):
            raise StorageError(
                f"a quantizer's state is (bits, zero point, enabled) = {(num_bits, zero_point, enabled)}, "
                f"which no {type(self).__name__} has; the state dict is damaged or of another model."
            )
        self.num_bits, self.zero_point, self.enabled = num_bits, zero_point, bool(enabled)

    def extra_repr(self) -> str:
        """Width, levels and granularity."""
        where = "per tensor" if self.axis is None else f"per channel of axis {self.axis}"
        return f"{self.num_bits} bits, levels {self.levels}, {where}, enabled={self.enabled}"


class SymmetricQuantizer(Quantizer):
    """Signed codes around 0: for weights, one scale per channel of `axis`."""

    def gradient_scale(self, x: Tensor) -> float:
        """N = weights that share one scale."""
        return 1.0 / math.sqrt(max(1, x.numel() // self.scale.numel()) * self.levels[1])


class AsymmetricQuantizer(Quantizer):
    """Unsigned codes with a zero point: for activations, one scale per tensor, 0 exactly on the grid."""

    signed = False

    def __init__(self) -> None:
        super().__init__((), None, 1)

    def gradient_scale(self, x: Tensor) -> float:
        """N = values of one sample, so that the gradient does not depend on the batch size."""
        per_sample = x.numel() // max(1, x.shape[0]) if x.ndim else 1
        return 1.0 / math.sqrt(max(1, per_sample) * self.levels[1])

    def forward(self, x: Tensor) -> Tensor:
        """The quantized values; while exporting to ONNX, as QuantizeLinear and DequantizeLinear."""
        if self.enabled and torch.onnx.is_in_onnx_export():
            return self._onnx(x)
        return super().forward(x)

    def _onnx(self, x: Tensor) -> Tensor:
        # A uint8 container at every width: runtimes fall back to float for UINT4 activations. Below 8 bits
        # a Min holds the codes to the top level; the low end is the container's own.
        scale = self.effective_scale().reshape(())
        zero = torch.tensor(self.zero_point, dtype=torch.uint8)
        symbolic = torch.onnx.ops.symbolic
        codes = symbolic("QuantizeLinear", (x, scale, zero), dtype=torch.uint8, shape=x.shape, version=21)
        if self.num_bits < 8:
            top = torch.tensor(self.levels[1], dtype=torch.uint8)
            codes = symbolic("Min", (codes, top), dtype=torch.uint8, shape=x.shape, version=21)
        result: Tensor = symbolic(
            "DequantizeLinear", (codes, scale, zero), dtype=torch.float32, shape=x.shape, version=21
        )
        return result
