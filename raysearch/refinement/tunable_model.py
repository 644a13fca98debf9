"""A quantized model whose codes stand still while its scales, norms and biases learn."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from raysearch.evaluation.model.copies import reading_copy
from raysearch.hooks import put_floats
from raysearch.hooks.attach import attach_activation, attach_weight, check_weight
from raysearch.hooks.locations import module_of
from raysearch.quantizer import Quantizer, dequantize, make_quantizer, storable_through
from raysearch.records import QuantizationPoint, QuantizerRange
from raysearch.records.ranges import FloatArray
from raysearch.records.refinement import Candidate
from raysearch.records.scheme import Scheme
from raysearch.records.winner import Winner


class _Decoded(nn.Module):
    """Parametrization: the values of codes that stand still, at a scale that learns."""

    codes: Tensor
    zero_point: Tensor
    minimum: Tensor | None

    def __init__(self, point: QuantizationPoint, quantizer: Quantizer, codes: Tensor) -> None:
        super().__init__()
        self.granularity, self._scale_format = point.granularity, point.scale_format
        self.register_buffer("codes", codes)
        self.register_buffer("zero_point", quantizer.zero_points())
        self.register_buffer("minimum", quantizer.minimum)
        self.scale = nn.Parameter(quantizer.effective_scale().detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The values; of the weight the type counts alone."""
        scale = self.effective_scale()
        values = dequantize(self.codes, scale, self.zero_point, self.granularity, self.minimum)
        return values.to(weight.dtype)

    def effective_scale(self) -> Tensor:
        """The scale in force, positive, as it will be stored."""
        return storable_through(self.scale.abs(), self._scale_format)


class TunableModel:
    """A copy of the float model, quantized by an assignment, with what may be tuned.

    In eval mode. Weights are their codes times a scale. What learns is the scales of weights and activations,
    and every float parameter of at most one dimension: norms' factors and offsets, and biases. Each has a
    size, by which a step is measured: the root mean square of its values, 1 where those are all 0.

    Args:
        model: the float model; left as it is.
        winner: what it is quantized as.
        start: what is in force besides the winner's own ranges.

    Attributes:
        model: the quantized copy.
        learned: parameter → its size.
    """

    def __init__(self, model: nn.Module, winner: Winner, start: Candidate) -> None:
        setup, ranges = winner.setup, start.put_into(winner.ranges)
        self._start = start
        self._schemes = winner.assignment.per_point(setup)
        # Codes take the place of the matrices, which nothing writes into.
        vectors = {key for key, parameter in model.named_parameters() if parameter.ndim <= 1}
        self.model = reading_copy(model, vectors | start.floats.keys()).eval().requires_grad_(False)
        put_floats(self.model, start.floats)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._activations: dict[str, Quantizer] = {}
        for name, point in setup.of_kind("activation").items():
            quantizer = make_quantizer(point)
            quantizer.enabled = name in self._schemes
            if quantizer.enabled:
                quantizer.set_range(self._schemes[name].num_bits, ranges[name, self._schemes[name]])
            self._activations[name] = quantizer.to(device).requires_grad_(False)
        weights = setup.of_kind("weight")
        self._floats = _tunable_floats(self.model, set(weights))
        attach_activation(self.model, setup, self._activations)
        self._weights: dict[str, _Decoded] = {}
        for name, point in weights.items():
            if name in self._schemes:
                self._weights[name] = self._decode(point, ranges[name, self._schemes[name]], device)
        self.learned = self._make_learned()

    def candidate(self, name: str) -> Candidate:
        """What is in force now, as a candidate of that name."""
        ranges: dict[tuple[str, Scheme], QuantizerRange] = {}
        for point, decoded in self._weights.items():
            codes = decoded.codes.cpu().numpy()
            value = _range_of(decoded.effective_scale(), decoded.zero_point, codes.dtype.kind == "i")
            minimum = None if decoded.minimum is None else _numbers(decoded.minimum)
            ranges[point, self._schemes[point]] = replace(value, codes=codes, minimum=minimum)
        for point, quantizer in self._activations.items():
            if quantizer.enabled:
                scale, zero_points = quantizer.effective_scale(), quantizer.zero_points()
                ranges[point, self._schemes[point]] = _range_of(scale, zero_points, quantizer.signed)
        floats = {key: value.detach().cpu().numpy().copy() for key, value in self._floats.items()}
        return Candidate(name, ranges, {**self._start.floats, **floats})

    def tuned_modules(self) -> list[str]:
        """Names of the modules whose own norms or biases learn; their outputs can be compared."""
        return list(dict.fromkeys(key.rpartition(".")[0] for key in self._floats))

    def _decode(self, point: QuantizationPoint, value: QuantizerRange, device: torch.device) -> _Decoded:
        check_weight(self.model, point)
        scheme = self._schemes[point.id]
        effective = point.at(scheme)
        quantizer = make_quantizer(effective)
        quantizer.set_range(scheme.num_bits, value)
        site = point.sites[0]
        weight = module_of(self.model, site).get_parameter(site.name)
        codes = quantizer.codes(weight.cpu())
        if value.codes is not None:
            codes = torch.from_numpy(value.codes.copy())
        decoded = _Decoded(effective, quantizer, codes).to(device)
        attach_weight(self.model, point, decoded)
        return decoded

    def _make_learned(self) -> dict[nn.Parameter, float]:
        learned: dict[nn.Parameter, float] = {}
        for decoded in self._weights.values():
            learned[decoded.scale] = _size(decoded.scale)
        for quantizer in self._activations.values():
            if quantizer.enabled:
                learned |= dict(quantizer.learned())
        for parameter in self._floats.values():
            learned[parameter] = _size(parameter)
        for parameter in learned:
            parameter.requires_grad_(True)
        return learned


def _tunable_floats(model: nn.Module, weights: set[str]) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 and name not in weights and parameter.is_floating_point() and parameter.numel()
    }


def _size(parameter: Tensor) -> float:
    return float(parameter.detach().float().square().mean().sqrt()) or 1.0


def _range_of(scale: Tensor, zero_point: Tensor, signed: bool) -> QuantizerRange:
    zero_points = zero_point.detach().reshape(-1).int().cpu().numpy().copy()
    return QuantizerRange(_numbers(scale), zero_points, signed)


def _numbers(values: Tensor) -> FloatArray:
    numbers: FloatArray = values.detach().reshape(-1).float().cpu().numpy().copy()
    return numbers
