"""The cost model: bits → bits per value, bytes, operations, seconds; one for every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from raysearch.errors import BudgetError
from raysearch.records.assignment import BitAssignment
from raysearch.records.costs.file_size import packed_bytes
from raysearch.records.costs.formula import CostFormula, CostSum
from raysearch.records.costs.kinds import COST_KINDS
from raysearch.records.point import FLOAT_BITS, QuantizationPoint
from raysearch.records.scheme import Scheme
from raysearch.records.setup import QuantizerGroup, QuantizerSetup

LOWEST, HIGHEST = 0, -1
"""Index of an extreme in what ascends."""


@dataclass(frozen=True)
class CostModel:
    """Costs of an assignment, exact, for one setup; `COST_KINDS` has their formulas.

    - `avg_bits`: mean bits of the weights, codes only;
    - `bpw`: all bits that are stored for the weights, scales and zero points included, per weight;
    - `act_bits`: the same over the activation values of one sample;
    - `size`: bytes of model.safetensors; `FileSize` says how little it is above the file;
    - `bops`: bit operations per sample;
    - `effective`: NNCF's compression ratio: the more, the smaller the model;
    - `activation_memory`: the most bytes that live tensors take at once, per sample;
    - `latency`: seconds, the sum of the setup's measured times.

    A group that the assignment does not name counts as float (32 bits). The last three are left out where
    the setup does not hold what they need.
    """

    setup: QuantizerSetup

    def costs(self, assignment: BitAssignment) -> dict[str, float]:
        """All known costs of an assignment by kind, in the order of `COST_KINDS`."""
        schemes = assignment.per_point(self.setup)
        return {kind: formula.of(schemes) for kind, formula in self._formulas.items()}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The costs that this setup has."""
        return tuple(self._formulas)

    def require(self, kind: str) -> None:
        """Refuse a kind that this setup does not have.

        Raises:
            BudgetError: says what it needs.
        """
        if kind not in self._formulas:
            raise BudgetError(f"a budget of '{kind}' cannot be checked: {COST_KINDS[kind].needs}")

    def formula(self, kind: str) -> CostFormula:
        """The integers that a cost is made of.

        Raises:
            BudgetError: this setup does not have what the kind needs.
        """
        self.require(kind)
        return self._formulas[kind]

    @cached_property
    def lowest(self) -> dict[str, float]:
        """The least value of every cost, each on its own; profiles that couple widths may forbid it.

        Most costs grow with every width (`effective` falls), so their extremes are at the extreme widths. Of
        the others (`CostKind.is_monotone`) each group's least part is taken; where a part depends on the
        input's width too (`latency`), each layer's, which is a bound.
        """
        return {kind: self._extreme(kind, LOWEST) for kind in self._formulas}

    @cached_property
    def highest(self) -> dict[str, float]:
        """The greatest value of every cost, each on its own."""
        return {kind: self._extreme(kind, HIGHEST) for kind in self._formulas}

    @cached_property
    def reference(self) -> dict[str, float]:
        """What 100 % means, of the costs that have it: all points at `CostKind.reference_bits`.

        That is float32 for `size` (the file of the float model), `activation_memory` and `latency`, and 8
        bits, of float inputs too, for `bops`.
        """
        references: dict[str, float] = {}
        for kind, formula in self._formulas.items():
            reference_bits = COST_KINDS[kind].reference_bits
            if reference_bits is not None:
                references[kind] = formula.of({}, unnamed=reference_bits)
        return references

    def extreme(self, kind: str, which: int) -> BitAssignment:
        """Every group at the scheme of its least (`LOWEST`) or greatest (`HIGHEST`) part of a cost.

        A part that depends on the input's width too is taken at the extreme width.
        """
        (part, *more) = self._formulas[kind].sums
        if COST_KINDS[kind].is_monotone or part.is_coupled or more:
            return BitAssignment.extreme(self.setup, which)
        counted = {point.id: point for point in part.points}
        schemes: dict[str, Scheme] = {}
        for group in self.setup.groups.values():
            members = [counted[name] for name in group.points if name in counted]
            parts = _parts(part, group, members)
            schemes[group.id] = sorted(group.schemes, key=parts.__getitem__)[which]
        return BitAssignment(schemes)

    def shares(self, kind: str, assignment: BitAssignment) -> dict[str, float]:
        """What each group contributes to a cost, in its unit; "" is what no group can change.

        Operations count for the group of their weight; of `activation_memory` the fullest step is taken, and
        of `effective` Σ MACs·max(b, a), which is what keeps it low.
        """
        schemes = assignment.per_point(self.setup)
        group_of = {point: group.id for group in self.setup.groups.values() for point in group.points}
        formula = self._formulas[kind]
        fullest = max(formula.sums, key=lambda part: part.use(schemes))
        shares = dict.fromkeys(["", *self.setup.groups], 0.0)
        shares[""] = fullest.constant / formula.divisor
        for point, term in fullest.terms(schemes):
            shares[group_of[point.id]] += term / formula.divisor
        return shares

    def weight_bytes(self, assignment: BitAssignment) -> int:
        """Σ `packed_bytes`: codes, scales and zero points of the weights, without the rest of the file."""
        schemes = assignment.per_point(self.setup)
        total = 0
        for name, point in self.setup.of_kind("weight").items():
            if name in schemes:
                total += packed_bytes(point.at(schemes[name]), schemes[name].num_bits)
            else:
                total += packed_bytes(point, FLOAT_BITS)
        return total

    @cached_property
    def _formulas(self) -> Mapping[str, CostFormula]:
        known = [kind for kind in COST_KINDS.values() if kind.is_known(self.setup)]
        return {kind.name: kind.formula(self.setup) for kind in known}

    def _extreme(self, kind: str, which: int) -> float:
        formula = self._formulas[kind]
        if not COST_KINDS[kind].is_monotone and any(part.is_coupled for part in formula.sums):
            return formula.cost(max(self._extreme_use(part, which) for part in formula.sums))
        # A cost that falls as widths grow is lowest at the highest widths.
        end = HIGHEST - which if COST_KINDS[kind].at_least else which
        return formula.of(self.extreme(kind, end).per_point(self.setup))

    def _extreme_use(self, part: CostSum, which: int) -> int:
        """The sum of each point's extreme term over the widths that it and its input may take together."""
        groups = {point: group for group in self.setup.groups.values() for point in group.points}
        use = part.constant
        for point in part.points:
            source = groups.get(point.input_point)
            input_widths = source.bit_widths if source is not None else (FLOAT_BITS,)
            terms = []
            for scheme in groups[point.id].schemes:
                effective, num_bits = point.at(scheme), scheme.num_bits
                pairs = [(num_bits, width) for width in input_widths]
                allowed = self.setup.pairs.get(point.id, pairs)
                terms += [part.term(effective, *pair) for pair in pairs if pair in allowed]
            use += sorted(terms)[which]
        return use


def _parts(part: CostSum, group: QuantizerGroup, members: Sequence[QuantizationPoint]) -> dict[Scheme, int]:
    """What each scheme of a group adds to a sum in which every point counts by itself.

    Args:
        part: the sum.
        group: its schemes.
        members: the group's points that count.
    """
    parts: dict[Scheme, int] = {}
    for scheme in group.schemes:
        terms = (part.term(point.at(scheme), scheme.num_bits, FLOAT_BITS) for point in members)
        parts[scheme] = sum(terms)
    return parts
