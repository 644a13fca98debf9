"""The cost model: bits → bits per value, bytes, operations, seconds; one for every stage."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from raysearch.errors import BudgetError
from raysearch.records.assignment import BitAssignment
from raysearch.records.costs.compression_ratio import ratio_of
from raysearch.records.costs.file_size import FileSize, packed_bytes
from raysearch.records.costs.memory import live_sets, tensor_bytes
from raysearch.records.latency import PICOSECONDS
from raysearch.records.setup import FLOAT_BITS, LiveTensor, QuantizationPoint, QuantizerSetup

COST_KINDS = ("avg_bits", "act_bits", "size", "bops", "effective", "activation_memory", "latency")
_NEEDS = {
    "effective": "it weighs layers by their MACs, and this setup holds none. Leave it out.",
    "activation_memory": "this setup does not say how long tensors are kept: an earlier version placed "
    "it, or it was made by hand. Start the run anew.",
    "latency": "it adds up measured times, and none are given. Give --latency-profile FILE "
    "(search.latency_profile).",
}


@dataclass(frozen=True)
class CostModel:
    """Costs of an assignment, exact, for one setup.

    - `avg_bits` = Σ nᵢ·bᵢ / Σ nᵢ over all weights, codes only;
    - `act_bits` = the same over the activation values of one sample;
    - `size` = bytes of model.safetensors: the packed weights, all other tensors, and the header; see
      `FileSize`, which also says how little it is above the file;
    - `bops` = Σ MACsᵢ·bᵢ·aᵢ per sample, aᵢ the width of the activation that feeds the weight's operation
      (32 when that is float);
    - `effective` = 8·Σ MACsᵢ / Σ MACsᵢ·max(bᵢ, aᵢ), NNCF's compression ratio: the more, the smaller;
    - `activation_memory` = the most bytes that live tensors take at once, per sample: see `live_sets`;
    - `latency` = seconds, the sum of the setup's measured times: see `LatencyProfile`.

    A group that the assignment does not name counts as float (32 bits). The last three are left out where
    the setup does not hold what they need.
    """

    setup: QuantizerSetup

    def costs(self, assignment: BitAssignment) -> dict[str, float]:
        """All known costs of an assignment by kind, in the order of `COST_KINDS`."""
        return self._from_bits(assignment.per_point(self.setup))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The costs that this setup has."""
        has_macs = any(point.macs for point in self.setup.of_kind("weight").values())
        missing = {"effective"} if not has_macs else set()
        missing |= set() if self.setup.tensors else {"activation_memory"}
        missing |= set() if self.setup.latency is not None else {"latency"}
        return tuple(kind for kind in COST_KINDS if kind not in missing)

    def require(self, kind: str) -> None:
        """Refuse a kind that this setup does not have.

        Raises:
            BudgetError: says what it needs.
        """
        if kind not in self.kinds:
            raise BudgetError(f"a budget of '{kind}' cannot be checked: {_NEEDS[kind]}")

    @cached_property
    def lowest(self) -> dict[str, float]:
        """The least value of every cost, each on its own; profiles that couple widths may forbid it.

        All but `latency` grow with every width (`effective` falls), so the extremes are at the extreme
        widths; of `latency` each layer's least time is taken, which is a bound.
        """
        return self._extreme(0)

    @cached_property
    def highest(self) -> dict[str, float]:
        """The greatest value of every cost, each on its own."""
        return self._extreme(-1)

    @cached_property
    def reference(self) -> dict[str, float]:
        """What 100 % means: float32 for `size`, `activation_memory` and `latency`, all-8-bit for `bops`.

        Of `size` that is the file of the float model.
        """
        eights = self._from_bits(dict.fromkeys(self.setup.points, 8), float_inputs_as=8)
        floats = self._from_bits({}, only=("size", "activation_memory", "latency"))
        return {**floats, "bops": eights["bops"]}

    def option_costs(self, kind: str) -> dict[tuple[str, int], float]:
        """What each option (group, width) adds to a cost, the other groups at their lowest widths.

        For `avg_bits`, `act_bits` and `size` these add up exactly to the cost (less the common base that
        the lowest assignment has). `bops` multiplies two groups' widths, so there the sum is a lower
        bound unless only one of the two is free.
        """
        base = BitAssignment.extreme(self.setup, 0)
        at_base = self.costs(base)[kind]
        return {
            (group, bits): self.costs(BitAssignment({**base.bits, group: bits}))[kind] - at_base
            for group, bits in self.setup.options()
        }

    def shares(self, kind: str, assignment: BitAssignment) -> dict[str, float]:
        """What each group contributes to a cost, in its unit; "" is what no group can change.

        Operations count for the group of their weight; of `activation_memory` the fullest step is taken, and
        of `effective` Σ MACs·max(b, a), which is what keeps it low.
        """
        bits, found = assignment.per_point(self.setup), dict.fromkeys(["", *self.setup.groups], 0.0)
        group_of = {p: g.id for g in self.setup.groups.values() for p in g.points}
        if kind == "activation_memory":
            for tensor in max(self.live, key=lambda live: self._bytes(live, bits)):
                found[group_of.get(tensor.point, "")] += tensor_bytes(
                    tensor, bits.get(tensor.point, FLOAT_BITS)
                )
            return found
        wanted = self.setup.of_kind("activation" if kind == "act_bits" else "weight")
        total = max(1, sum(point.num_elements for point in wanted.values()))
        for point in wanted.values():
            width, source = bits.get(point.id, FLOAT_BITS), bits.get(point.input_point, FLOAT_BITS)
            found[group_of[point.id]] += self._term(kind, point, width, source) / (
                total if kind in ("avg_bits", "act_bits") else 1
            )
        if kind == "latency" and self.setup.latency is not None:
            found[""] += self.setup.latency.other_seconds
        if kind == "size":
            found[""] += self.file.constant
        return found

    def _term(self, kind: str, point: QuantizationPoint, width: int, source: int) -> float:
        if kind == "size":
            return self.file.part(point, width) if width != FLOAT_BITS else packed_bytes(point, width)
        if kind == "bops":
            return point.macs * width * source
        if kind == "effective":
            return point.macs * max(width, source)
        if kind == "latency":
            return self._picoseconds(point, width, source) / PICOSECONDS
        return point.num_elements * width

    @cached_property
    def file(self) -> FileSize:
        """What the packed file takes."""
        return FileSize(self.setup)

    def weight_bytes(self, assignment: BitAssignment) -> int:
        """Σ `packed_bytes`: codes, scales and zero points of the weights, without the rest of the file."""
        bits = assignment.per_point(self.setup)
        points = self.setup.of_kind("weight").values()
        return sum(packed_bytes(point, bits.get(point.id, FLOAT_BITS)) for point in points)

    @cached_property
    def live(self) -> list[tuple[LiveTensor, ...]]:
        """See `live_sets`."""
        return live_sets(self.setup)

    def _extreme(self, which: int) -> dict[str, float]:
        found = self.costs(BitAssignment.extreme(self.setup, which))
        if "effective" in found:
            found["effective"] = self.costs(BitAssignment.extreme(self.setup, -1 - which))["effective"]
        if self.setup.latency is not None:
            found["latency"] = self._extreme_seconds(which)
        return found

    def _extreme_seconds(self, which: int) -> float:
        profile, total = self.setup.latency, 0
        assert profile is not None
        widths = {p: g.bit_widths for g in self.setup.groups.values() for p in g.points}
        for name, point in self.setup.of_kind("weight").items():
            every = [(w, a) for w in widths[name] for a in widths.get(point.input_point, (FLOAT_BITS,))]
            allowed = self.setup.pairs.get(name, every)
            total += sorted(profile.picoseconds(name, w, a) for w, a in every if (w, a) in allowed)[which]
        return (total + round(profile.other_seconds * PICOSECONDS)) / PICOSECONDS

    def _from_bits(
        self, bits: Mapping[str, int], float_inputs_as: int = FLOAT_BITS, only: Container[str] = COST_KINDS
    ) -> dict[str, float]:
        weights = self.setup.of_kind("weight").values()
        formulas: dict[str, Callable[[], float]] = {
            "avg_bits": lambda: _mean_bits(weights, bits),
            "act_bits": lambda: _mean_bits(self.setup.of_kind("activation").values(), bits),
            "size": lambda: self.file.of(bits),
            "bops": lambda: sum(
                p.macs * bits.get(p.id, FLOAT_BITS) * bits.get(p.input_point, float_inputs_as)
                for p in weights
            ),
            "effective": lambda: ratio_of(self.setup, bits),
            "activation_memory": lambda: max(self._bytes(live, bits) for live in self.live),
            "latency": lambda: self._seconds(bits),
        }
        return {kind: float(formulas[kind]()) for kind in self.kinds if kind in only}

    def _bytes(self, live: tuple[LiveTensor, ...], bits: Mapping[str, int]) -> int:
        return sum(tensor_bytes(tensor, bits.get(tensor.point, FLOAT_BITS)) for tensor in live)

    def _seconds(self, bits: Mapping[str, int]) -> float:
        assert self.setup.latency is not None
        total = round(self.setup.latency.other_seconds * PICOSECONDS)
        for point in self.setup.of_kind("weight").values():
            total += self._picoseconds(
                point, bits.get(point.id, FLOAT_BITS), bits.get(point.input_point, FLOAT_BITS)
            )
        return total / PICOSECONDS

    def _picoseconds(self, point: QuantizationPoint, weight_bits: int, input_bits: int) -> int:
        assert self.setup.latency is not None
        return self.setup.latency.picoseconds(point.id, weight_bits, input_bits)


def _mean_bits(points: Iterable[QuantizationPoint], bits: Mapping[str, int]) -> float:
    items = list(points)
    total = sum(p.num_elements for p in items)
    if total == 0:
        return 0.0
    return float(sum(p.num_elements * bits.get(p.id, FLOAT_BITS) for p in items)) / total
