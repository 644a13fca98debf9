"""The weights that will be deployed, made in one place and kept between forwards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raysearch.freed_memory import return_freed
from raysearch.quantizer import Quantizer, make_quantizer
from raysearch.records import QuantizationPoint, QuantizerSetup, RangeTable, Scheme

CACHE_BYTES = 2**30
"""What a worker may keep between forwards by default: half of it fake-quantized weights, half the outputs of
layers before the quantized one. More only saves time; the results are the same."""


class DeployedWeights:
    """Makes the fake-quantized form of a weight at a scheme: the one place where measurements get it.

    Perturbations, responses and measured trials all read what is made here, so they are all about the same
    weights. It equals, bit for bit, what the controller's parametrization computes: of a weight whose codes
    a rounding method chose, those codes; of any other, the nearest ones.

    Args:
        weights: quantizer id → float weight.
        setup: the points.
        ranges: calibrated ranges.
    """

    def __init__(self, weights: Mapping[str, Tensor], setup: QuantizerSetup, ranges: RangeTable) -> None:
        self.float_weights = weights
        self._setup = setup
        self._ranges = ranges
        # One a point as its scheme makes it: plain schemes share theirs.
        self._quantizers: dict[tuple[str, QuantizationPoint], Quantizer] = {}

    def make(self, name: str, scheme: Scheme) -> Tensor:
        """The fake-quantized weight, a new tensor of the float one's shape and dtype.

        Args:
            name: quantizer id.
            scheme: one of its group's.
        """
        weight = self.float_weights[name]
        quantizer = self._quantizer(name, scheme)
        value = self._ranges[name, scheme]
        quantizer.set_range(scheme.num_bits, value)
        with torch.no_grad():
            if value.codes is None:
                quantized: Tensor = quantizer(weight)
                return quantized
            codes = torch.from_numpy(value.codes.copy()).to(weight.device)
            return quantizer.affine().values(codes).to(weight.dtype)

    def _quantizer(self, name: str, scheme: Scheme) -> Quantizer:
        point = self._setup.points[name].at(scheme)
        if (name, point) not in self._quantizers:
            self._quantizers[name, point] = make_quantizer(point).to(self.float_weights[name].device)
        return self._quantizers[name, point]


class WeightCache:
    """Fake-quantized weights, each made once while there is room.

    A weight that comes when there is no room left is made anew at every use, and none is dropped to make
    room for it. Options are measured in the same order over and over, so the least recently used weight is
    the very one that is needed next: dropping it, as an LRU cache would, would miss every time. Only the last
    one is kept for a layer that reads it twice in a row; on a GPU, where codes come from the host, all since
    `forget_last` are, while memory is free.

    Args:
        source: makes a weight that is not kept.
        limit_bytes: of weights kept.
    """

    def __init__(self, source: DeployedWeights, limit_bytes: int) -> None:
        self._source = source
        self._free_bytes = limit_bytes
        self._weights: dict[tuple[str, Scheme], nn.Parameter] = {}
        self._last: dict[tuple[str, Scheme], nn.Parameter] = {}

    def get(self, name: str, scheme: Scheme) -> nn.Parameter:
        """One weight at one scheme; see `DeployedWeights.make`."""
        key = (name, scheme)
        for table in (self._weights, self._last):
            if key in table:
                return table[key]
        if not self._has_spare(self._source.float_weights[name]):
            # Before the next one is made: both at once would be twice the memory.
            self.forget_last()
        weight = nn.Parameter(self._source.make(name, scheme), requires_grad=False)
        if weight.nbytes <= self._free_bytes:
            self._free_bytes -= weight.nbytes
            self._weights[key] = weight
        else:
            self._last[key] = weight
        return weight

    def forget_last(self) -> None:
        """Let go of what is kept for the present assignment alone."""
        self._last.clear()

    def end_forward(self) -> None:
        """Let go of the last weight before outputs are judged; on a GPU the assignment's stay."""
        if self._last and not any(weight.is_cuda for weight in self._last.values()):
            self._last.clear()
            # Weights that do not fit come and go, and leave gaps that grow with every forward.
            return_freed()

    @staticmethod
    def _has_spare(weight: Tensor) -> bool:
        """Whether a copy of a weight leaves a quarter of its GPU's memory free."""
        if not weight.is_cuda:
            return False
        free_bytes, all_bytes = torch.cuda.mem_get_info(weight.device)
        return free_bytes - weight.nbytes > all_bytes / 4
