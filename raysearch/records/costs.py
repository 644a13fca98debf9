"""The cost model: bits → average bits, bytes, BOPs. One function for search, statistics and export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from raysearch.records.assignment import BitAssignment
from raysearch.records.setup import FLOAT_BITS, QuantizationPoint, QuantizerSetup

SCALE_BYTES = 4
ZERO_POINT_BYTES = 1
COST_KINDS = ("avg_bits", "act_bits", "size", "bops")


def packed_bytes(point: QuantizationPoint, num_bits: int) -> int:
    """Bytes of one stored weight: its codes, bit-packed, its float32 scales, and int8 zero points.

    ⌈n·b/8⌉ + 4·(number of scales) + (number of zero points, none if symmetric); a float weight takes 4·n.
    """
    if num_bits == FLOAT_BITS:
        return 4 * point.num_elements
    codes = (point.num_elements * num_bits + 7) // 8
    return codes + SCALE_BYTES * point.num_scales + ZERO_POINT_BYTES * point.num_zero_points


@dataclass(frozen=True)
class CostModel:
    """Costs of an assignment, exact, for one setup.

    - `avg_bits` = Σ nᵢ·bᵢ / Σ nᵢ over all weights, codes only;
    - `act_bits` = the same over the activation values of one sample;
    - `size` = Σ `packed_bytes`, in bytes;
    - `bops` = Σ MACsᵢ·bᵢ·aᵢ per sample, aᵢ the width of the activation that feeds the weight's operation
      (32 when that is float).

    A group that the assignment does not name counts as float (32 bits).
    """

    setup: QuantizerSetup

    def costs(self, assignment: BitAssignment) -> dict[str, float]:
        """All costs of an assignment by kind, in the order of `COST_KINDS`."""
        return self._from_bits(assignment.per_point(self.setup))

    @cached_property
    def lowest(self) -> dict[str, float]:
        """The least value of every cost: each grows with every width, so it is at the lowest widths."""
        return self.costs(BitAssignment.extreme(self.setup, 0))

    @cached_property
    def highest(self) -> dict[str, float]:
        """The greatest value of every cost."""
        return self.costs(BitAssignment.extreme(self.setup, -1))

    @cached_property
    def reference(self) -> dict[str, float]:
        """What 100 % means: float32 weights for `size`, all-8-bit for `bops`."""
        eights = self._from_bits(dict.fromkeys(self.setup.points, 8), float_inputs_as=8)
        return {"size": self._from_bits({})["size"], "bops": eights["bops"]}

    def option_costs(self, kind: str) -> dict[tuple[str, int], float]:
        """What each option (group, width) adds to a cost, the other groups at their lowest widths.

        For `avg_bits`, `act_bits` and `size` these add up exactly to the cost (less the common base that
        the lowest assignment has). `bops` multiplies two groups' widths, so there the sum is a lower
        bound unless only one of the two is free.
        """
        base = BitAssignment.extreme(self.setup, 0)
        at_base = self.lowest[kind]
        return {
            (group, bits): self.costs(BitAssignment({**base.bits, group: bits}))[kind] - at_base
            for group, bits in self.setup.options()
        }

    def _from_bits(self, bits: Mapping[str, int], float_inputs_as: int = FLOAT_BITS) -> dict[str, float]:
        weights = self.setup.of_kind("weight").values()
        activations = self.setup.of_kind("activation").values()
        size = sum(packed_bytes(p, bits.get(p.id, FLOAT_BITS)) for p in weights)
        bops = sum(
            p.macs * bits.get(p.id, FLOAT_BITS) * bits.get(p.input_point, float_inputs_as) for p in weights
        )
        return {
            "avg_bits": _mean_bits(weights, bits),
            "act_bits": _mean_bits(activations, bits),
            "size": float(size),
            "bops": float(bops),
        }


def _mean_bits(points: Iterable[QuantizationPoint], bits: Mapping[str, int]) -> float:
    items = list(points)
    total = sum(p.num_elements for p in items)
    if total == 0:
        return 0.0
    return float(sum(p.num_elements * bits.get(p.id, FLOAT_BITS) for p in items)) / total
