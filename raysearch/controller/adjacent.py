"""Which quantizers feed the same operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raysearch.records import QuantizerSetup
from raysearch.records.components import connected_components


@dataclass(frozen=True)
class AdjacentGroups:
    """Quantizers that feed the same operations, and which activation feeds a weight's operation.

    Attributes:
        groups: quantizer ids, each in exactly one group.
        weight_inputs: weight id → activation id; a weight without quantized input is not in it.
    """

    groups: tuple[tuple[str, ...], ...]
    weight_inputs: Mapping[str, str]

    @classmethod
    def of(cls, setup: QuantizerSetup) -> AdjacentGroups:
        """Computed from a setup: an activation, all weights it feeds, and all that shares their width."""
        weights = setup.of_kind("weight").items()
        inputs = {name: point.input_point for name, point in weights if point.input_point}
        shared = [(group.points[0], other) for group in setup.groups.values() for other in group.points]
        return cls(connected_components(setup.points, [*shared, *inputs.items()]), inputs)
