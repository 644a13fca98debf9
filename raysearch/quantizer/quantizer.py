"""Quantizer modules: an integer grid whose step is learned (LSQ); the zero point stays as calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from raysearch.errors import ExportError, PlacementError, StorageError
from raysearch.quantizer.affine import AffineForm, fake_quantize, fake_quantize_by_magnitude, quantize
from raysearch.quantizer.blocks import spread
from raysearch.quantizer.levels import MAX_BITS, MIN_BITS, spec_levels
from raysearch.quantizer.scale_formats import storable_through
from raysearch.records import QuantizerRange, QuantizerSpec
from raysearch.records.granularity import PER_TENSOR, Granularity
from raysearch.records.point import Mode

Kind = Literal["weight", "activation"]


class Quantizer(nn.Module):
    """Fake-quantizes its input with a learned step; passes it through while disabled.

    A value is (q − z)·s of an integer code q, and strip reads the same s and z as the forward. The step in
    force is max(|scale|, 2⁻¹⁰⁰), or max(exp(scale), 2⁻¹⁰⁰) on a logarithmic scale: whatever training does to
    the parameter, it stays positive. Where scales are stored in less than float32 the step is the nearest
    one that is stored, with the gradient of the parameter itself.

    Args:
        shape: of the tensor it acts on; of an activation, one sample with a batch of 1 before it.
        granularity: which elements of that tensor share a scale.
        kind: "weight" or "activation"; None is what the subclass is the default for.
        spec: the kind of grid; None is the default of the kind.
        name: quantizer id, for messages.
        scale_format: form in which the scales are stored; the step in force is one that it holds.

    Attributes:
        name: quantizer id, for messages.
        kind: "weight" or "activation".
        spec: the kind of grid; None is the default of its kind (signed weights are narrow at 8 bits).
        granularity: which elements share a scale.
        scale_format: form in which the scales are stored.
        logarithmic: whether the step is stored as its logarithm.
        scale: parameter, shape [1, …, C, …, 1] (per channel), [1, …, C, …, groups, …, 1] (per group) or [1]
            (per tensor).
        zero_point: code of the value 0; a number, or where it may differ between channels or groups an int32
            buffer of the scale's shape.
        minimum: taken off every value, a buffer of the scale's shape; None but of a `MinimumQuantizer`.
        num_bits: bit-width in force.
        signed: whether codes are signed.
        enabled: whether it quantizes.
        frozen: whether its range is kept from learning.

    Raises:
        PlacementError: the spec is of the other mode, or an axis does not exist; names the quantizer.
    """

    mode: ClassVar[Mode]
    default_kind: ClassVar[Kind]
    zero_point: int | Tensor
    minimum: Tensor | None

    def __init__(
        self,
        shape: Sequence[int] = (),
        granularity: Granularity = PER_TENSOR,
        *,
        kind: Kind | None = None,
        spec: QuantizerSpec | None = None,
        name: str = "",
        scale_format: str = "float32",
    ) -> None:
        super().__init__()
        if spec is not None and spec.mode != self.mode:
            raise PlacementError(f"'{name}' is to be {spec.mode}, which no {type(self).__name__} is.")
        self.name = name
        self.kind: Kind = kind or self.default_kind
        self.spec = spec
        self.granularity = granularity.normalized(shape, name)
        self.scale_format = scale_format
        self.logarithmic = spec is not None and spec.logarithm_scale
        self.num_bits = 8
        forced = True if spec is None or spec.signed is None else spec.signed
        self.signed = self.mode == "symmetric" and forced
        self.enabled = True
        self.frozen = False
        self._sample_elements = math.prod(shape)
        self._group_elements = _elements_of_group(shape, self.granularity)
        sizes = self.granularity.scale_shape(shape)
        self.scale = nn.Parameter(torch.zeros(sizes) if self.logarithmic else torch.ones(sizes))
        if self.mode == "asymmetric" and self.granularity != PER_TENSOR:
            self.register_buffer("zero_point", torch.zeros(sizes, dtype=torch.int32))
        else:
            self.zero_point = 0
        minimum = torch.zeros(sizes) if self.mode == "minimum" else None
        self.register_buffer("minimum", minimum)

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

    def effective_scale(self) -> Tensor:
        """The positive step s that the forward uses, in the shape of `scale`."""
        scale = self.scale.detach() if self.frozen else self.scale
        return storable_through(scale.exp() if self.logarithmic else scale.abs(), self.scale_format)

    def zero_points(self) -> Tensor:
        """Codes of the value 0, int32, in the shape of `scale`."""
        if isinstance(self.zero_point, Tensor):
            return self.zero_point.clone()
        return torch.full(self.scale.shape, self.zero_point, dtype=torch.int32, device=self.scale.device)

    def gradient_scale(self, x: Tensor) -> float:
        """LSQ's γ = 1/√(N·Q): N elements share a scale, Q is the greatest level.

        For activations N counts one sample of the point's shape: the gradient depends neither on the batch
        size nor on where the batch stands in x. Of groups N counts a full one.
        """
        count = x.numel() if self.kind == "weight" else self._sample_elements
        count = self._group_elements or count // self.scale.numel()
        return 1.0 / math.sqrt(max(1, count) * self.levels[1])

    def set_range(self, num_bits: int, value: QuantizerRange) -> None:
        """Take a calibrated range; what was learned is overwritten.

        Raises:
            PlacementError: the range does not fit this quantizer; nothing was changed.
        """
        signed = self._sign_of(value.signed)
        low, high = self.levels_at(num_bits, signed=signed)
        count = self.scale.numel()
        zeros = value.zero_point.reshape(-1)
        has_zeros = self.mode == "asymmetric"
        wrong = ((zeros < low) | (zeros > high)).any() if has_zeros else zeros.any()
        if value.scale.size != count or zeros.size != count or wrong:
            ends = f"{low} … {high}" if has_zeros else "0"
            raise PlacementError(
                f"'{self.name}' at {num_bits} bits takes {count} scales and zero points of {ends}, but "
                f"the range has {value.scale.size} scales and the zero points {zeros[:8]}; calibrate anew."
            )
        if (value.minimum is None) != (self.minimum is None):
            words = "has none" if value.minimum is None else "has minima"
            raise PlacementError(
                f"minima go with the mode 'minimum', but '{self.name}' is of the mode '{self.mode}' and its "
                f"range {words}; calibrate anew."
            )
        self.num_bits, self.signed = num_bits, signed
        scale = torch.from_numpy(value.scale.copy()).reshape(self.scale.shape).to(self.device)
        zero_point = torch.from_numpy(value.zero_point.copy()).reshape(self.scale.shape).to(self.device)
        with torch.no_grad():
            self.scale.copy_(scale.log() if self.logarithmic else scale)
            if isinstance(self.zero_point, Tensor):
                self.zero_point.copy_(zero_point)
            else:
                # From the array, not the tensor: reading one number from a GPU waits for all that runs there.
                self.zero_point = int(zeros[0])
            if self.minimum is not None and value.minimum is not None:
                self.minimum.copy_(torch.from_numpy(value.minimum.copy()).reshape(self.scale.shape))

    def affine(self) -> AffineForm:
        """The grid in force, for strip and export."""
        with torch.no_grad():
            scale = self.effective_scale().detach().clone()
            minimum = None if self.minimum is None else self.minimum.clone()
            return AffineForm(scale, self.zero_points(), *self.levels, self.granularity, minimum)

    def forward(self, x: Tensor) -> Tensor:
        """The quantized values, in x's dtype; activations as Q and DQ nodes while exporting to ONNX."""
        if not self.enabled:
            return x
        if self.kind == "activation" and torch.onnx.is_in_onnx_export():
            return self._onnx(x)
        if torch.compiler.is_compiling():
            return self._fake_quantized(x)
        # Function modes, such as the one that sees a model's calls, look at every operation and attribute;
        # a quantizer's own are no part of the model's.
        with torch._C.DisableTorchFunction():
            return self._fake_quantized(x)

    def _fake_quantized(self, x: Tensor) -> Tensor:
        values = x.float()
        low, high = self.levels
        gamma = self.gradient_scale(values)
        is_plain = not self.logarithmic and not self.frozen and self.scale_format == "float32"
        scale = self.scale if is_plain else self.effective_scale()
        # One node of the graph in place of three: most scales are such.
        quantize_by = fake_quantize_by_magnitude if is_plain else fake_quantize
        quantized = quantize_by(values, scale, self.zero_point, low, high, gamma, self.granularity)
        return quantized.to(x.dtype)

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of x by the very arithmetic of `forward`; int8 if signed, else uint8."""
        low, high = self.levels
        scale = self.effective_scale()
        codes = quantize(x.float(), scale, self.zero_point, low, high, self.granularity)
        return codes.to(torch.int8 if self.signed else torch.uint8)

    def learned(self) -> list[tuple[nn.Parameter, float]]:
        """Its learnable parameters, each with the size that one step of training is measured against.

        The scale is measured against itself, a logarithm against 1.
        """
        size = 1.0 if self.logarithmic else float(self.effective_scale().detach().mean())
        return [(self.scale, size)]

    def freeze(self, frozen: bool = True) -> Self:
        """Keep the range as it is, or let it learn again; values do not change."""
        if frozen and not self.logarithmic:
            # A scale at or below 0 becomes what is in force, so that a reader of `scale` sees it.
            with torch.no_grad():
                self.scale.copy_(self.effective_scale())
        self.frozen = frozen
        return self.requires_grad_(not frozen)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As torch has it, but a frozen quantizer never learns."""
        return super().requires_grad_(requires_grad and not self.frozen)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.scale.device

    def get_extra_state(self) -> Tensor:
        """Width, zero point, enabled, frozen, signed as integers, so that a state dict holds everything."""
        flags = [int(self.enabled), int(self.frozen), int(self.signed)]
        return torch.tensor([self.num_bits, self._stored_zero(), *flags], dtype=torch.int32)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what `get_extra_state` gave; the first three values alone, as once written, will do.

        Raises:
            StorageError: the state is not of a quantizer of this kind; nothing was taken.
        """
        if state.shape not in ((3,), (5,)):
            raise StorageError(
                f"the state of the quantizer '{self.name}' has shape {tuple(state.shape)} instead of (5,)."
            )
        values = [int(value) for value in state]
        num_bits, zero_point, enabled = values[:3]
        frozen, signed = values[3:] or (int(self.frozen), int(self.signed))
        are_flags = {enabled, frozen, signed} <= {0, 1} and self._sign_of(bool(signed)) == bool(signed)
        is_width = MIN_BITS <= num_bits <= MAX_BITS
        if not (is_width and are_flags and self._may_store(num_bits, zero_point)):
            raise StorageError(
                f"the state of the quantizer '{self.name}' is (bits, zero point, enabled, frozen, signed) = "
                f"{(num_bits, zero_point, enabled, frozen, signed)}, which no {type(self).__name__} has; the "
                f"state dict is damaged or of another model."
            )
        self.num_bits, self.enabled, self.signed = num_bits, bool(enabled), bool(signed)
        if not isinstance(self.zero_point, Tensor):
            self.zero_point = zero_point
        if bool(frozen) != self.frozen:
            self.freeze(bool(frozen))

    def extra_repr(self) -> str:
        """Width, levels and granularity."""
        rest = f"enabled={self.enabled}" + (", frozen" if self.frozen else "")
        return f"{self.num_bits} bits, levels {self.levels}, {self.granularity}, {rest}"

    def _stored_zero(self) -> int:
        # Zero points of channels are a buffer, which the state dict holds by itself.
        return 0 if isinstance(self.zero_point, Tensor) else self.zero_point

    def _may_store(self, num_bits: int, zero_point: int) -> bool:
        if self.mode != "asymmetric" or isinstance(self.zero_point, Tensor):
            return zero_point == 0
        low, high = self.levels_at(num_bits, signed=False)
        return low <= zero_point <= high

    def _sign_of(self, data: bool) -> bool:
        """The sign in force, given that of the data: the spec's wins, and only symmetric codes have one."""
        if self.mode != "symmetric":
            return False
        forced = True if self.spec is None else self.spec.signed
        return data if forced is None else forced

    def onnx_grid(self) -> tuple[Tensor, Tensor, int]:
        """Scale, zero point and greatest code of an activation in a uint8 container, as ONNX has them."""
        low, high = self.levels
        scale = self.effective_scale().reshape(())
        return scale, torch.tensor(self._stored_zero() - low, dtype=torch.uint8), high - low

    def _onnx(self, x: Tensor) -> Tensor:
        if self.granularity != PER_TENSOR:
            raise ExportError(
                f"the activation quantizer '{self.name}' is per channel, which the target 'onnx' does not "
                f"take: runtimes have no integer kernels for it. Make it per tensor, or export 'packed'."
            )
        # A uint8 container at every width: runtimes fall back to float for UINT4 activations. Where the top
        # level is not the container's, a Min holds the codes to it; the low end is the container's own.
        scale, zero, limit = self.onnx_grid()
        symbolic = torch.onnx.ops.symbolic
        codes = symbolic("QuantizeLinear", (x, scale, zero), dtype=torch.uint8, shape=x.shape, version=21)
        if limit < 255:
            top = torch.tensor(limit, dtype=torch.uint8)
            codes = symbolic("Min", (codes, top), dtype=torch.uint8, shape=x.shape, version=21)
        result: Tensor = symbolic(
            "DequantizeLinear", (codes, scale, zero), dtype=torch.float32, shape=x.shape, version=21
        )
        return result


def _elements_of_group(shape: Sequence[int], granularity: Granularity) -> int:
    """Elements of a full group; 0 where there are no groups."""
    axis, size = granularity.group_axis, granularity.group_size
    if axis is None or size is None:
        return 0
    others = [n for place, n in enumerate(shape) if place not in (axis, granularity.axis)]
    return min(size, shape[axis]) * math.prod(others)


class SymmetricQuantizer(Quantizer):
    """Levels around 0: the default for weights, signed, narrow at 8 bits, one scale per channel."""

    mode = "symmetric"
    default_kind = "weight"


class AsymmetricQuantizer(Quantizer):
    """Unsigned codes with a zero point, 0 exactly on the grid: the default for activations, per tensor."""

    mode = "asymmetric"
    default_kind = "activation"


class MinimumQuantizer(Quantizer):
    """Unsigned codes and a real number: a value is q·s − m, as GGUF's types with minima have it.

    The minima stay as calibrated while the scale learns, as zero points do.
    """

    mode = "minimum"
    default_kind = "weight"
    minimum: Tensor

    def _fake_quantized(self, x: Tensor) -> Tensor:
        minimum = spread(self.minimum, x.shape, self.granularity)
        return (super()._fake_quantized(x.float() + minimum) - minimum).to(x.dtype)

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of x by the very arithmetic of `forward`, uint8."""
        return super().codes(x.float() + spread(self.minimum, x.shape, self.granularity))
