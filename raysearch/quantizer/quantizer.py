"""What every quantizer module has: a grid, a width, switches, a state; how it learns is a subclass's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from raysearch.errors import ExportError, PlacementError, StorageError
from raysearch.quantizer.affine import AffineForm
from raysearch.quantizer.levels import MAX_BITS, MIN_BITS, scale_shape, spec_levels
from raysearch.records import QuantizerRange, QuantizerSpec

SMALLEST_SCALE = 2.0**-100
"""Keeps a learned scale away from 0, where the forward would hide it and the codes mean nothing."""

Kind = Literal["weight", "activation"]


class Quantizer(nn.Module, ABC):
    """Fake-quantizes its input with a learned range; passes it through while disabled.

    A value is (q − z)·s of an integer code q, and strip reads the same s and z as the forward.

    Args of every subclass:
        shape: of the tensor it acts on; of an activation, one sample with a batch of 1 before it.
        axis: channel axis of that tensor; None is one scale per tensor.
        ndim: its dimensions.
        kind: "weight" or "activation"; None is what the subclass is the default for.
        spec: the kind of grid; None is the default of the kind.
        name: quantizer id, for messages.

    Attributes:
        name: quantizer id, for messages.
        kind: "weight" or "activation".
        spec: the kind of grid; None is the default of its kind (signed weights are narrow at 8 bits).
        axis: channel axis of the tensor it acts on; None is per tensor.
        logarithmic: whether a learned length is stored as its logarithm.
        num_bits: bit-width in force.
        signed: whether codes are signed.
        enabled: whether it quantizes.
        frozen: whether its range is kept from learning.
    """

    mode: ClassVar[Literal["symmetric", "asymmetric"]]
    default_kind: ClassVar[Kind]

    def __init__(
        self,
        shape: Sequence[int] = (),
        axis: int | None = None,
        ndim: int = 1,
        *,
        kind: Kind | None = None,
        spec: QuantizerSpec | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if spec is not None and spec.mode != self.mode:
            raise PlacementError(f"'{name}' is to be {spec.mode}, which no {type(self).__name__} is.")
        self.name = name
        self.kind: Kind = kind or self.default_kind
        self.spec = spec
        self.axis = axis
        self.logarithmic = spec is not None and spec.logarithm_scale
        self.num_bits = 8
        forced = True if spec is None or spec.signed is None else spec.signed
        self.signed = self.mode == "symmetric" and forced
        self.enabled = True
        self.frozen = False
        self._make_parameters(shape, scale_shape(shape, axis, ndim))

    @property
    def levels(self) -> tuple[int, int]:
        """(quant_min, quant_max)."""
        return self.levels_at(self.num_bits, signed=self.signed)

    def levels_at(self, num_bits: int, *, signed: bool) -> tuple[int, int]:
        """(quant_min, quant_max) that it would have; see `spec_levels`.

        Raises:
            PlacementError: the grid does not exist; names the quantizer.
        """
        return spec_levels(self.spec, num_bits, signed=signed and self.mode == "symmetric", name=self.name)

    @abstractmethod
    def effective_scale(self) -> Tensor:
        """The positive step s the forward uses."""

    @abstractmethod
    def zero_points(self) -> Tensor:
        """Codes of the value 0, int32, in the shape of `effective_scale`."""

    def set_range(self, num_bits: int, value: QuantizerRange) -> None:
        """Take a calibrated range; what was learned is overwritten.

        Raises:
            PlacementError: the range does not fit this quantizer; nothing was changed.
        """
        signed = self._sign_of(value.signed)
        low, high = self.levels_at(num_bits, signed=signed)
        count = self.effective_scale().numel()
        zeros = value.zero_point.reshape(-1)
        wrong = zeros.any() if self.mode == "symmetric" else ((zeros < low) | (zeros > high)).any()
        if value.scale.size != count or zeros.size != count or wrong:
            ends = "0" if self.mode == "symmetric" else f"{low} … {high}"
            raise PlacementError(
                f"'{self.name}' at {num_bits} bits takes {count} scales and zero points of {ends}, but "
                f"the range has {value.scale.size} scales and the zero points {zeros[:8]}; calibrate anew."
            )
        self.num_bits, self.signed = num_bits, signed
        scale = torch.from_numpy(value.scale.copy()).reshape(self.effective_scale().shape)
        zero_point = torch.from_numpy(value.zero_point.copy()).reshape(scale.shape)
        with torch.no_grad():
            self._take(scale.to(self.device), zero_point.to(self.device))

    def affine(self) -> AffineForm:
        """The grid in force, for strip and export."""
        with torch.no_grad():
            scale = self.effective_scale().detach().clone()
            return AffineForm(scale, self.zero_points(), *self.levels)

    def forward(self, x: Tensor) -> Tensor:
        """The quantized values, in x's dtype; activations as Q and DQ nodes while exporting to ONNX."""
        if not self.enabled:
            return x
        if self.kind == "activation" and torch.onnx.is_in_onnx_export():
            return self._onnx(x)
        return self._fake_quantize(x.float()).to(x.dtype)

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of x by the very arithmetic of `forward`; int8 if signed, else uint8."""
        return self._codes(x.float()).to(torch.int8 if self.signed else torch.uint8)

    @abstractmethod
    def learned(self) -> list[tuple[nn.Parameter, float]]:
        """Its learnable parameters, each with the size that one step of training is measured against."""

    def freeze(self, frozen: bool = True) -> Self:
        """Keep the range as it is, or let it learn again; values do not change."""
        self.frozen = frozen
        return self.requires_grad_(not frozen)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As torch has it, but a frozen quantizer never learns."""
        return super().requires_grad_(requires_grad and not self.frozen)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    def get_extra_state(self) -> Tensor:
        """Width, zero point, enabled, frozen, signed as integers, so that a state dict holds everything."""
        values = [self.num_bits, self._stored_zero(), int(self.enabled), int(self.frozen), int(self.signed)]
        return torch.tensor(values, dtype=torch.int32)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what `get_extra_state` gave; the first three values alone, as once written, will do.

        Raises:
            StorageError: the state is not of a quantizer of this kind; nothing was taken.
        """
        if state.shape not in ((3,), (5,)):
            raise StorageError(
                f"the state of the quantizer '{self.name}' has shape {tuple(state.shape)} instead of (5,)."
            )
        num_bits, zero_point, enabled, frozen, signed = (
            int(v) for v in (*state.tolist(), int(self.frozen), int(self.signed))[:5]
        )
        flags = {enabled, frozen, signed} <= {0, 1} and self._sign_of(bool(signed)) == bool(signed)
        if not (MIN_BITS <= num_bits <= MAX_BITS and flags and self._may_store(num_bits, zero_point)):
            raise StorageError(
                f"the state of the quantizer '{self.name}' is (bits, zero point, enabled, frozen, signed) = "
                f"{(num_bits, zero_point, enabled, frozen, signed)}, which no {type(self).__name__} has; the "
                f"state dict is damaged or of another model."
            )
        self.num_bits, self.enabled, self.signed = num_bits, bool(enabled), bool(signed)
        self._restore_zero(zero_point)
        if bool(frozen) != self.frozen:
            self.freeze(bool(frozen))

    def extra_repr(self) -> str:
        """Width, levels and granularity."""
        where = "per tensor" if self.axis is None else f"per channel of axis {self.axis}"
        rest = f"enabled={self.enabled}" + (", frozen" if self.frozen else "")
        return f"{self.num_bits} bits, levels {self.levels}, {where}, {rest}"

    @abstractmethod
    def _make_parameters(self, shape: Sequence[int], view: Sequence[int]) -> None:
        """Register what is learned, in the shape `view` of the scale."""

    @abstractmethod
    def _fake_quantize(self, x: Tensor) -> Tensor:
        """The quantized values of float32 ones."""

    @abstractmethod
    def _codes(self, x: Tensor) -> Tensor:
        """Their integer codes, in float32."""

    @abstractmethod
    def _take(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take a calibrated range of the width in force."""

    def _stored_zero(self) -> int:
        return 0

    def _restore_zero(self, zero_point: int) -> None:
        pass

    def _may_store(self, num_bits: int, zero_point: int) -> bool:
        return zero_point == 0

    def _sign_of(self, data: bool) -> bool:
        """The sign in force, given that of the data: the spec's wins, and asymmetric codes have none."""
        if self.mode == "asymmetric":
            return False
        forced = True if self.spec is None else self.spec.signed
        return data if forced is None else forced

    def _onnx_zero(self) -> int:
        """The zero point as a number; while exporting, tensors have no values."""
        return self._stored_zero()

    def _onnx(self, x: Tensor) -> Tensor:
        if self.axis is not None:
            raise ExportError(
                f"the activation quantizer '{self.name}' is per channel, which the target 'onnx' does not "
                f"take: runtimes have no integer kernels for it. Make it per tensor, or export 'packed'."
            )
        # A uint8 container at every width: runtimes fall back to float for UINT4 activations. Where the top
        # level is not the container's, a Min holds the codes to it; the low end is the container's own.
        low, high = self.levels
        scale = self.effective_scale().reshape(())
        zero = torch.tensor(self._onnx_zero() - low, dtype=torch.uint8)
        symbolic = torch.onnx.ops.symbolic
        codes = symbolic("QuantizeLinear", (x, scale, zero), dtype=torch.uint8, shape=x.shape, version=21)
        if high - low < 255:
            top = torch.tensor(high - low, dtype=torch.uint8)
            codes = symbolic("Min", (codes, top), dtype=torch.uint8, shape=x.shape, version=21)
        result: Tensor = symbolic(
            "DequantizeLinear", (codes, scale, zero), dtype=torch.float32, shape=x.shape, version=21
        )
        return result
