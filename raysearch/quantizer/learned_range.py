"""Quantizers that learn their range, with the parameters and the gradients of the NNCF reference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from raysearch.errors import DataError, ExportError
from raysearch.quantizer.affine import AffineForm
from raysearch.quantizer.quantizer import SMALLEST_SCALE, Kind, Quantizer
from raysearch.quantizer.reference import (
    EPSILON,
    RangeGrid,
    asymmetric_from_min_max,
    fake_quantize_range,
    symmetric_from_min_max,
    tune_range,
)
from raysearch.records import QuantizerSpec


class RangeQuantizer(Quantizer):
    """A quantizer whose parameters are the ends of its range."""

    @abstractmethod
    def grid(self) -> RangeGrid:
        """The grid in force, in constants."""

    def set_min_max(self, num_bits: int, low: Tensor, high: Tensor) -> None:
        """Take the extremes of the data by the reference's rule; one value a channel.

        Raises:
            DataError: an extreme is not finite; nothing was changed.
        """
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise DataError(f"the extremes of '{self.name}' are not finite: {low} … {high}; mend the data.")
        view = self.effective_scale().shape
        with torch.no_grad():
            self._take_min_max(num_bits, low.reshape(view), high.reshape(view))

    def effective_scale(self) -> Tensor:
        """The step: the distance of two levels. No gradient goes through it."""
        return self.grid().step

    def _codes(self, x: Tensor) -> Tensor:
        return self.grid().levels(x) + self.zero_points()

    @abstractmethod
    def _take_min_max(self, num_bits: int, low: Tensor, high: Tensor) -> None:
        """Take finite extremes in the shape of the scale."""

    def _positive(self, parameter: Tensor) -> Tensor:
        parameter = parameter.detach() if self.frozen else parameter
        value = parameter.exp() if self.logarithmic else parameter.abs() + EPSILON
        return value.clamp_min(SMALLEST_SCALE)

    def _stored(self, value: Tensor) -> Tensor:
        return value.log() if self.logarithmic else value


class SymmetricRangeQuantizer(RangeQuantizer):
    """Learns the value S of the top level: step = S / quant_max, lowest value S·quant_min / quant_max.

    Attributes:
        scale: parameter, S or on a logarithmic scale ln S; |S| + 1e-16 is in force.
    """

    mode = "symmetric"
    default_kind = "weight"

    def _make_parameters(self, shape: Sequence[int], view: Sequence[int]) -> None:
        self.scale = nn.Parameter(self._stored(torch.ones(view)))

    def grid(self) -> RangeGrid:
        """The grid in force, in constants."""
        with torch.no_grad():
            low, high = self.levels
            top = self._positive(self.scale)
            step = (top / high).clamp_min(SMALLEST_SCALE)
            lowest, highest = torch.full_like(top, low), torch.full_like(top, high)
            return RangeGrid(step, lowest, highest, None, top * (low / high), top, low / high)

    def zero_points(self) -> Tensor:
        """All 0."""
        return torch.zeros_like(self.scale, dtype=torch.int32)

    def learned(self) -> list[tuple[nn.Parameter, float]]:
        """The scale, measured against itself; a logarithm against 1."""
        top = self._positive(self.scale.detach())
        return [(self.scale, 1.0 if self.logarithmic else float(top.mean()))]

    def _fake_quantize(self, x: Tensor) -> Tensor:
        return fake_quantize_range(x, None, self._positive(self.scale), self.grid())

    def _take(self, scale: Tensor, zero_point: Tensor) -> None:
        self.scale.copy_(self._stored(scale * self.levels[1]))

    def _take_min_max(self, num_bits: int, low: Tensor, high: Tensor) -> None:
        forced = True if self.spec is None else self.spec.signed
        scale, signed = symmetric_from_min_max(low, high, signed=forced)
        self.levels_at(num_bits, signed=signed)
        self.num_bits, self.signed = num_bits, signed
        self.scale.copy_(self._stored(scale))


class AsymmetricRangeQuantizer(RangeQuantizer):
    """Learns the lower end and the length of its range; 0 is put on the grid by `tune_range`.

    Args:
        snap: see `tune_range`; False is the reference's rule.

    Attributes:
        input_low: parameter, the lower end.
        input_range: parameter, the length r, or on a logarithmic scale ln r; |r| + 1e-16 is in force.
    """

    mode = "asymmetric"
    default_kind = "activation"

    def __init__(
        self,
        shape: Sequence[int] = (),
        axis: int | None = None,
        ndim: int = 1,
        *,
        kind: Kind | None = None,
        spec: QuantizerSpec | None = None,
        name: str = "",
        snap: bool = False,
    ) -> None:
        super().__init__(shape, axis, ndim, kind=kind, spec=spec, name=name)
        self.snap = snap
        self._fixed_zero: int | None = None

    def _make_parameters(self, shape: Sequence[int], view: Sequence[int]) -> None:
        self.input_low = nn.Parameter(torch.zeros(view))
        self.input_range = nn.Parameter(self._stored(torch.ones(view)))

    def grid(self) -> RangeGrid:
        """The grid in force, in constants."""
        with torch.no_grad():
            n = self.levels[1] - self.levels[0]
            low, span = tune_range(self.input_low, self._positive(self.input_range), n + 1, snap=self.snap)
            step = (span / n).clamp_min(SMALLEST_SCALE)
            position = -low / step
            zero = torch.round(position).clamp(0, n)
            # A tuned end is on the grid but for the rounding of the division; only ends that could not be
            # tuned, within half a step of 0, leave a true fraction.
            loose = ((zero == 0) & (low < 0)) | ((zero == n) & (low + span > 0))
            offset = None if self.snap else torch.where(loose, position - zero, torch.zeros_like(zero))
            return RangeGrid(step, -zero, n - zero, offset, low, low + span, 0.0)

    def zero_points(self) -> Tensor:
        """Codes of the value 0, int32."""
        return (-self.grid().lowest).to(torch.int32)

    def affine(self) -> AffineForm:
        """The grid in force; with the offset where an end could not be put on the grid."""
        grid = self.grid()
        loose = grid.offset is not None and bool(grid.offset.any())
        return AffineForm(grid.step, self.zero_points(), *self.levels, grid.offset if loose else None)

    def learned(self) -> list[tuple[nn.Parameter, float]]:
        """Both parameters, measured against the length; a logarithm against 1."""
        size = float(self._positive(self.input_range.detach()).mean())
        return [(self.input_low, size), (self.input_range, 1.0 if self.logarithmic else size)]

    def freeze(self, frozen: bool = True) -> Self:
        """Keep the range, or let it learn again."""
        form = self.affine()
        plain = frozen and self.axis is None and form.offset is None
        self._fixed_zero = int(form.zero_point) if plain else None
        return super().freeze(frozen)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        low = self.input_low.detach() if self.frozen else self.input_low
        return fake_quantize_range(x, low, self._positive(self.input_range), self.grid())

    def _take(self, scale: Tensor, zero_point: Tensor) -> None:
        low, high = self.levels
        self.input_low.copy_(-(zero_point - low) * scale)
        self.input_range.copy_(self._stored((high - low) * scale))

    def _take_min_max(self, num_bits: int, low: Tensor, high: Tensor) -> None:
        self.levels_at(num_bits, signed=False)
        self.num_bits = num_bits
        start, span = asymmetric_from_min_max(low, high)
        self.input_low.copy_(start)
        self.input_range.copy_(self._stored(span))

    def _onnx_zero(self) -> int:
        if self._fixed_zero is None:
            raise ExportError(
                f"the activation quantizer '{self.name}' learns its range, or rounds with an offset that "
                f"QuantizeLinear cannot express; make it with snap=True and strip the model before exporting."
            )
        return self._fixed_zero
