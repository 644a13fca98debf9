"""The quantizers of one model: which width each has, which act, and which ranges the user froze."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from raysearch.controller.distribution import broadcast_assignment, broadcast_quantizers
from raysearch.controller.scheduler import Kind
from raysearch.controller.switches import Switches
from raysearch.hooks import replace_weight
from raysearch.quantizer import Quantizer, successor
from raysearch.records import BitAssignment, QuantizationPoint, QuantizerSetup, RangeTable, Scheme
from raysearch.records.applicable import check_assignment


class CompressionStage(enum.Enum):
    """How much of what is to be quantized is quantized now."""

    UNCOMPRESSED = 0
    PARTIALLY_COMPRESSED = 1
    FULLY_COMPRESSED = 2


class QuantizerSet:
    """Quantizers by id, at the schemes of an assignment.

    A weight whose scheme asks for other groups or another mode than its quantizer has gets another one.

    Args:
        model: that holds the quantizers.
        quantizers: id → quantizer, weights first; each as its point is without a scheme.
        setup: where they are, and the widths they may have.
        ranges: calibrated ranges, by quantizer and width.

    Attributes:
        quantizers: id → quantizer, weights first.
        setup: where they are.
        ranges: calibrated ranges.
        assignment: the bit assignment in force; a group that it does not name is off.
    """

    def __init__(
        self,
        model: nn.Module,
        quantizers: Mapping[str, Quantizer],
        setup: QuantizerSetup,
        ranges: RangeTable,
    ) -> None:
        self._model = model
        self.quantizers = dict(quantizers)
        self.setup = setup
        # What each quantizer was made for.
        self._points: dict[str, QuantizationPoint] = dict(setup.points)
        self.ranges = ranges
        self._switches = Switches(self.quantizers)
        bits: dict[str, int] = {}
        for group in setup.groups.values():
            first = self.quantizers.get(group.points[0])
            if first is not None and first.enabled:
                bits[group.id] = first.num_bits
        self.assignment = BitAssignment(bits)

    def schemes(self) -> dict[str, Scheme]:
        """Quantizer id → scheme, of those that the assignment quantizes."""
        return self.assignment.per_point(self.setup)

    def names(self, kind: Kind) -> list[str]:
        """The weights, or the activations, that the assignment quantizes."""
        return [name for name in self.schemes() if self.setup.points[name].kind == kind]

    def apply(self, assignment: BitAssignment) -> None:
        """Set every width and its calibrated range; groups that are not named are off.

        Raises:
            PlacementError: a group is unknown, the width is not one of its own, or its range is missing;
                nothing was changed.
        """
        check_assignment(self.setup, self.ranges, assignment)
        self._adopt(assignment, keep_equal=False)

    def restore(self, assignment: BitAssignment, ranges: RangeTable, frozen: Iterable[str]) -> None:
        """Take what a state holds; quantizers that have the width already keep their learned ranges.

        Args:
            assignment: the widths.
            ranges: calibrated ranges.
            frozen: quantizers whose ranges do not learn.

        Raises:
            PlacementError: as `apply`.
        """
        check_assignment(self.setup, ranges, assignment)
        self.ranges = ranges
        self._adopt(assignment, keep_equal=True)
        self._switches.freeze(frozen)

    def take_ranges(self, ranges: RangeTable, names: Iterable[str]) -> None:
        """Put newly calibrated ranges in force, of the named quantizers at their present widths.

        Codes that were chosen for their weights before are dropped: they belong to the ranges before.
        """
        rounded = {key: value for key, value in self.ranges.rounded.items() if key not in ranges.ranges}
        self.ranges = RangeTable({**self.ranges.ranges, **ranges.ranges}, rounded)
        schemes = self.schemes()
        for name in names:
            scheme = schemes[name]
            self.quantizers[name].set_range(scheme.num_bits, ranges[name, scheme])

    def switch(self, names: Iterable[str], enabled: bool) -> None:
        """Turn quantizers on or off."""
        for name in names:
            self._switches.set(name, enabled)

    def switch_to(self, enabled: Collection[str]) -> None:
        """Turn on the named quantizers of the assignment, and off its others."""
        for name in self.schemes():
            self._switches.set(name, name in enabled)

    def enabled(self) -> list[str]:
        """The quantizers that act now."""
        return [name for name, quantizer in self.quantizers.items() if quantizer.enabled]

    def frozen(self) -> list[str]:
        """Quantizers whose range parameters the user froze."""
        return self._switches.frozen()

    def stage(self) -> CompressionStage:
        """How much of the assignment is in force, by the quantizers' own flags."""
        flags = [self.quantizers[name].enabled for name in self.schemes()]
        if flags and all(flags):
            return CompressionStage.FULLY_COMPRESSED
        if any(flags):
            return CompressionStage.PARTIALLY_COMPRESSED
        return CompressionStage.UNCOMPRESSED

    def broadcast(self) -> None:
        """Give every rank the schemes, ranges, signs and switches of rank 0; see `broadcast_quantizers`."""
        device = next((quantizer.device for quantizer in self.quantizers.values()), torch.device("cpu"))
        assignment = broadcast_assignment(self.setup, self.assignment, device)
        self._fit(assignment.per_point(self.setup))
        broadcast_quantizers(self.quantizers, device)
        self.assignment = assignment
        self._switches.refresh()

    def _adopt(self, assignment: BitAssignment, keep_equal: bool) -> None:
        schemes = assignment.per_point(self.setup)
        replaced = self._fit(schemes)
        for name, quantizer in self.quantizers.items():
            self._switches.set(name, name in schemes)
            if name not in schemes:
                continue
            num_bits = schemes[name].num_bits
            if keep_equal and name not in replaced and quantizer.num_bits == num_bits:
                continue
            quantizer.set_range(num_bits, self.ranges[name, schemes[name]])
        self.assignment = assignment

    def _fit(self, schemes: Mapping[str, Scheme]) -> set[str]:
        """Give each weight a quantizer that can hold its scheme, and tell which ones are new.

        What a weight without a scheme gets is known too, so that the assignment alone says which parameters
        the model has.
        """
        replaced: set[str] = set()
        for name, point in self.setup.of_kind("weight").items():
            due = point.at(schemes[name]) if name in schemes else point
            if due == self._points[name]:
                continue
            self.quantizers[name] = successor(self.quantizers[name], due)
            replace_weight(self._model, due, self.quantizers[name])
            self._points[name] = due
            replaced.add(name)
        return replaced
